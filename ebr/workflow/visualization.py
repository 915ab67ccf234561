"""Look: vectors in, a map and its numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ebr.config import VisualizationConfig
from ebr.data.embeddings import Embeddings, read_embeddings
from ebr.data.files import write_json
from ebr.data.tables import parse_delimiter
from ebr.workflow.speech import Say

if TYPE_CHECKING:
    from ebr.visualization.projection import Projection
    from ebr.visualization.quality import ClusterQuality, Measure


@dataclass(frozen=True)
class VisualizationPlan:
    """Which vectors a map would show."""

    config: VisualizationConfig
    embeddings: Embeddings

    @cached_property
    def labels(self) -> list[str]:
        """One label a row; '' where it is missing."""
        return [(label or "").strip() for label in self.embeddings.columns[self.config.label_column]]

    def lines(self) -> list[str]:
        """The plan, for people."""
        n_rows, dim = self.embeddings.vectors.shape
        return [
            f"input   {self.config.embeddings_path}: {n_rows:,} vectors of {dim}, {len(set(self.labels))} labels",
            f"output  {self.config.output_path}",
        ]


@dataclass(frozen=True)
class VisualizationResult:
    """A picture and its numbers."""

    picture: Path
    numbers: Path
    lines: list[str]

    def summary(self) -> str:
        """The metrics with what they mean, and where the files are."""
        return "\n".join([*self.lines, f"picture  {self.picture}", f"numbers  {self.numbers}"])


def plan_visualization(config: VisualizationConfig) -> VisualizationPlan:
    """Read the vectors and check the label column, and draw nothing."""
    config.check()
    embeddings = read_embeddings(
        config.embeddings_path, parse_delimiter(config.delimiter), columns={config.label_column: "label_column"}
    )
    return VisualizationPlan(config, embeddings)


def visualize_embeddings(config: VisualizationConfig, *, say: Say = print) -> VisualizationResult:
    """Draw vectors as a map, and measure their clusters in the original space and the map's trustworthiness.

    Raises EBRError subclasses that say what to mend.
    """
    from ebr.visualization.plot import draw_maps
    from ebr.visualization.quality import cluster_quality, map_trustworthiness, quality_lines
    from ebr.visualization.sampling import stratified_sample

    plan = plan_visualization(config)
    for line in plan.lines():
        say(line)
    rows = stratified_sample(plan.labels, config.max_points, seed=config.seed)
    if len(rows) < len(plan.labels):
        say(f"a sample of {len(rows):,} of {len(plan.labels):,} rows, every label in proportion (max_points)")
    vectors, labels = plan.embeddings.vectors[rows], [plan.labels[row] for row in rows]
    quality = cluster_quality(vectors, labels, seed=config.seed)
    projections = [_project(vectors, method, config, say) for method in _methods(config)]
    trust = {projection.method: map_trustworthiness(vectors, projection.coords, seed=config.seed) for projection in projections}
    draw_maps(
        projections,
        labels,
        config.output_path,
        title=_map_title(plan),
        notes=[_trust_note(measure) for measure in trust.values()],
        preferred_fonts=config.chinese_fonts,
        seed=config.seed,
    )
    numbers = config.output_path.with_suffix(".json")
    write_json(numbers, _map_numbers(config, quality, trust, projections))
    return VisualizationResult(config.output_path, numbers, quality_lines(quality, trust))


def _methods(config: VisualizationConfig) -> list[str]:
    return ["tsne", "umap"] if config.method == "both" else [config.method]


def _project(vectors: np.ndarray, method: str, config: VisualizationConfig, say: Say) -> Projection:
    from ebr.visualization.projection import project_tsne, project_umap

    say(f"projecting {len(vectors):,} points: {method}")
    if method == "tsne":
        return project_tsne(
            vectors, perplexity=config.tsne_perplexity, learning_rate=config.tsne_learning_rate, seed=config.seed
        )
    return project_umap(vectors, n_neighbors=config.umap_neighbors, min_dist=config.umap_min_dist, seed=config.seed)


def _map_title(plan: VisualizationPlan) -> str:
    model = (plan.embeddings.manifest or {}).get("model")
    return Path(model).name if model else plan.config.embeddings_path.name


def _trust_note(measure: Measure) -> str:
    return f"trustworthiness {measure.value:.3f}" if measure.value is not None else ""


def _map_numbers(
    config: VisualizationConfig, quality: ClusterQuality, trust: Mapping[str, Measure], projections: list[Projection]
) -> dict[str, Any]:
    return {
        "config": config.to_json(),
        "quality": asdict(quality),
        "trustworthiness": {method: asdict(measure) for method, measure in trust.items()},
        "settings": {projection.method: projection.settings for projection in projections},
    }
