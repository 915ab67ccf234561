"""Look: vectors in; a map, an interactive page and their numbers out."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ebr.config import VisualizationConfig
from ebr.config.visualization import PAGE
from ebr.data.files import write_json
from ebr.workflow.map_drawing import MapContent, MapPanel
from ebr.workflow.map_numbers import Coords, DrawnMap, MapNumbers
from ebr.workflow.map_rows import MapRows, read_map_rows
from ebr.workflow.speech import Say

if TYPE_CHECKING:
    from ebr.visualization.map_cache import MapCache

_METHODS = {"tsne": ["tsne"], "umap": ["umap"], "pca": ["pca"], "both": ["tsne", "umap"]}
_NOTEBOOK_WIDTH = 1000
_MEASURED_AHEAD, _MEASURED_AHEAD_UP_TO = 4, 200_000
"""Columns beside the label column whose groups are measured too, and the rows up to which that takes seconds."""
_WORDS = {"en": ("before", "after"), "zh": ("微调前", "微调后")}


@dataclass(frozen=True)
class VisualizationPlan:
    """Which vectors a map would show."""

    config: VisualizationConfig
    rows: MapRows

    def lines(self) -> list[str]:
        """The plan, for people."""
        n_rows, dim = self.rows.vectors.shape
        before = (
            [f"before  {self.config.before_path}: vectors of {self.rows.before.shape[1]}"]
            if self.rows.before is not None
            else []
        )
        return [
            f"input   {self.config.embeddings_path}: {n_rows:,} vectors of {dim}, {len(set(self.rows.labels))} labels",
            *before,
            *(f"warning: {note}" for note in self.rows.notes),
            f"output  {self.config.output_path}",
        ]


@dataclass(frozen=True)
class VisualizationResult:
    """What was drawn and its numbers. picture, page and atlas are None where they were not asked for."""

    picture: Path | None
    page: Path | None
    numbers: Path
    atlas: Path | None
    lines: list[str]

    def summary(self) -> str:
        """The metrics with what they mean, and where the files are."""
        made = {"picture": self.picture, "page": self.page, "numbers": self.numbers, "atlas": self.atlas}
        lines = [*self.lines, *(f"{name:<9}{path}" for name, path in made.items() if path is not None)]
        if self.atlas is not None:
            from ebr.visualization.atlas import atlas_command

            lines.append(f"open it  {atlas_command(self.atlas)}")
        return "\n".join(lines)

    def _ipython_display_(self) -> None:
        """In a notebook: the picture, where there is one that it can show, and the table below it."""
        from IPython.display import SVG, Image, display

        if self.picture is not None and self.picture.suffix.lower() == ".png":
            display(Image(filename=str(self.picture), width=_NOTEBOOK_WIDTH))
        elif self.picture is not None and self.picture.suffix.lower() == ".svg":
            display(SVG(filename=str(self.picture)))
        sys.stdout.write(self.summary() + "\n")


def plan_visualization(config: VisualizationConfig) -> VisualizationPlan:
    """Read the vectors and check the columns, and draw nothing."""
    config.check()
    return VisualizationPlan(config, read_map_rows(config, _cache(config)))


def visualize_embeddings(config: VisualizationConfig, *, say: Say = print) -> VisualizationResult:
    """Draw vectors as a map, and measure their clusters in the original space and how far the map can be trusted.

    Raises EBRError subclasses that say what to mend.
    """
    plan = plan_visualization(config)
    for line in plan.lines():
        say(line)
    content = _content(plan.rows, config, say)
    output, is_page = config.output_path, config.output_path.suffix.lower() == PAGE
    picture = None if is_page else output
    page = output.with_suffix(PAGE) if is_page or config.page else None
    atlas = output.with_suffix(".atlas.parquet") if config.export == "atlas" else None
    if picture is not None:
        content.write_picture(picture)
    if page is not None:
        content.write_page(page)
    if atlas is not None:
        content.write_atlas(atlas)
    numbers = output.with_suffix(".json")
    write_json(numbers, content.to_json())
    return VisualizationResult(picture, page, numbers, atlas, content.lines())


def _cache(config: VisualizationConfig) -> MapCache | None:
    from ebr.visualization.map_cache import MapCache

    return MapCache() if config.cache else None


def _content(rows: MapRows, config: VisualizationConfig, say: Say) -> MapContent:
    """Everything that takes long: the rows chosen, projected and measured."""
    drawn, projected = _chosen(rows, config, say)
    cache = _cache(config)
    after = MapNumbers(drawn.vectors, projected, config, cache, say)
    before = None if drawn.before is None else MapNumbers(drawn.before, projected, config, cache, say)
    content = _single(drawn, after, config) if before is None else _compared(drawn, before, after, config)
    if cache is not None and len(drawn.ids) <= _MEASURED_AHEAD_UP_TO:
        # Small beside the projection, and then a map by another label column is drawn as fast as one with another title.
        for column in content.columns[1 : 1 + _MEASURED_AHEAD]:
            for numbers in (after, *([] if before is None else [before])):
                numbers.quality(column.name, drawn.columns[column.name])
    return content


def _single(rows: MapRows, numbers: MapNumbers, config: VisualizationConfig) -> MapContent:
    panels = [MapPanel("", numbers.map(method)) for method in _METHODS[config.method]]
    needs_neighbours = config.page or config.output_path.suffix.lower() == PAGE or config.export is not None
    quality = numbers.quality(rows.label, rows.labels)
    return MapContent(rows, config, panels, {"": quality}, numbers.neighbours() if needs_neighbours else None)


def _chosen(rows: MapRows, config: VisualizationConfig, say: Say) -> tuple[MapRows, NDArray[np.int64]]:
    """The rows that are drawn, and which of them are projected."""
    from ebr.visualization.sampling import stratified_sample

    n_rows, way = len(rows.vectors), config.over_max_points
    if n_rows <= config.max_points or way == "project":
        return rows, np.arange(n_rows)
    sample = stratified_sample(rows.labels, config.max_points, seed=config.seed)
    where = f"a sample of {len(sample):,} of {n_rows:,} rows, every label in proportion (max_points)"
    if way == "place":
        say(f"{where} is projected; the rest is placed by its neighbours in it")
        return rows, sample
    say(where)
    return rows.take(sample), np.arange(len(sample))


def _compared(rows: MapRows, before: MapNumbers, after: MapNumbers, config: VisualizationConfig) -> MapContent:
    """Two models' maps of the same rows: begun at the same places, the newer turned and scaled onto the older."""
    from ebr.visualization.alignment import movement, procrustes_align

    method = "tsne" if config.method == "both" else config.method
    start = before.map("pca").projection.coords
    older, newer = before.map(method, start), after.map(method, start)
    aligned = procrustes_align(older.projection.coords, newer.projection.coords)
    older, newer = _begun_together(older, older.projection.coords), _begun_together(newer, aligned)
    names = _WORDS[config.language]
    near = after.neighbours()
    return MapContent(
        rows,
        config,
        [MapPanel(f"{name} · {one.projection.method}", one) for name, one in zip(names, (older, newer), strict=True)],
        {name: numbers.quality(rows.label, rows.labels) for name, numbers in zip(names, (before, after), strict=True)},
        near,
        movement(older.projection.coords, aligned, before.neighbours(), near),
    )


def _begun_together(one: DrawnMap, coords: Coords) -> DrawnMap:
    """One of two maps as it is drawn, its settings telling where both began; a PCA began nowhere."""
    from ebr.visualization.captions import SHARED_START

    settings = {name: SHARED_START if name == "start" else value for name, value in one.projection.settings.items()}
    return replace(one, projection=replace(one.projection, coords=coords, settings=settings))
