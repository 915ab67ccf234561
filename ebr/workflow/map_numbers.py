"""Everything of a map that takes long, each computed once and then found again: coordinates, neighbours, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ebr.config import VisualizationConfig
from ebr.workflow.map_vectors import MapVectors, Vectors
from ebr.workflow.speech import Say

if TYPE_CHECKING:
    from ebr.visualization.columns import MapColumn
    from ebr.visualization.map_cache import MapCache
    from ebr.visualization.neighbours import Neighbours
    from ebr.visualization.projection import Projection
    from ebr.visualization.quality import ClusterQuality
    from ebr.visualization.trust import MapTrust

Coords = NDArray[np.float32]

NEIGHBOURS = 10
"""Nearest neighbours kept of a row: what the page shows and the atlas holds."""


@dataclass(frozen=True)
class DrawnMap:
    """One panel: where the points lie, and how far that can be trusted."""

    projection: Projection
    trust: MapTrust


class MapNumbers:
    """Computes what a map of these vectors needs, or takes it from the cache.

    vectors: (N, D), every row that is drawn. projected: the rows (M,) that are projected; the others are placed by their
    neighbours among them.
    """

    def __init__(
        self, vectors: MapVectors, projected: NDArray[np.int64], config: VisualizationConfig, cache: MapCache | None, say: Say
    ) -> None:
        self._vectors = vectors
        self.projected = projected
        self.config = config
        self.cache = cache
        self.say = say
        self._found: Neighbours | None = None

    @property
    def vectors(self) -> Vectors:
        """(N, D), read now if nothing needed them before."""
        return self._vectors.array

    def map(self, method: str, start: Coords | None = None) -> DrawnMap:
        """The map by one method, and its figures. start: (M, 2), where the points begin; None = at their PCA."""
        from ebr.visualization.projection import Projection
        from ebr.visualization.trust import MapTrust, map_trust

        options = self._options_of(method)
        key = {
            "what": "map",
            "method": method,
            "options": options,
            "seed": self.config.seed,
            "n_projected": len(self.projected),
            "projected": _fingerprint(self.projected),
        }
        if method != "pca":  # which has neither
            key |= {"mode": self.config.mode, "start": None if start is None else _fingerprint(start)}

        def compute() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
            projection = self._project(method, options, start)
            trust = map_trust(self.vectors, projection.coords, seed=self.config.seed)
            facts = {"method": projection.method, "settings": projection.settings, "trust": asdict(trust)}
            return {"coords": projection.coords}, facts

        arrays, facts = self._kept(key, compute)
        return DrawnMap(Projection(facts["method"], arrays["coords"], facts["settings"]), MapTrust.from_json(facts["trust"]))

    def neighbours(self) -> Neighbours:
        """The nearest rows of each in the original space, NEIGHBOURS of them."""
        from ebr.visualization.neighbours import EXACT_UP_TO, Neighbours

        def compute() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
            found = self._search(NEIGHBOURS)
            return {"indices": found.indices, "similarities": found.similarities}, {"exact": found.exact}

        key: dict[str, Any] = {"what": "neighbours", "k": NEIGHBOURS}
        if len(self._vectors) > EXACT_UP_TO:  # only then is there chance in them
            key |= {"seed": self.config.seed, "mode": self.config.mode}
        arrays, facts = self._kept(key, compute)
        return Neighbours(arrays["indices"], arrays["similarities"], facts["exact"])

    def _search(self, k: int) -> Neighbours:
        """The k nearest rows of each among all rows; those of a larger k are at hand once a projection asked for them."""
        from ebr.visualization.neighbours import nearest_neighbours

        if self._found is None or self._found.indices.shape[1] < min(k, len(self._vectors) - 1):
            self.say(f"neighbours of {len(self._vectors):,} rows in the original space")
            n_jobs = 1 if self.config.mode == "reproducible" else None
            self._found = nearest_neighbours(self.vectors, k, seed=self.config.seed, n_jobs=n_jobs)
        return self._found.first(k)

    def quality(self, column: MapColumn) -> ClusterQuality:
        """How well the labels of a column group in the original space."""
        from ebr.visualization.quality import ClusterQuality, cluster_quality, quality_of_numbers

        if column.numbers is not None:
            return quality_of_numbers(column.numbers)

        def compute() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
            self.say(f"measuring how {column.name!r} groups the rows")
            return {}, asdict(cluster_quality(self.vectors, column.texts, seed=self.config.seed))

        key = {"what": "quality", "labels": _fingerprint(column.texts), "seed": self.config.seed}
        return ClusterQuality.from_json(self._kept(key, compute)[1])

    def _kept(
        self, key: Mapping[str, Any], compute: Callable[[], tuple[dict[str, NDArray[Any]], dict[str, Any]]]
    ) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]:
        if self.cache is None:
            return compute()
        from ebr.visualization.map_cache import key_of

        name = key_of(self._vectors.digest, key)
        if (found := self.cache.load(name)) is not None:
            return found.arrays, found.facts
        arrays, facts = compute()
        self.cache.store(name, arrays, facts)
        return arrays, facts

    def _options_of(self, method: str) -> dict[str, Any]:
        config = self.config
        if method == "tsne":
            return {
                "perplexity": config.tsne_perplexity,
                "learning_rate": config.tsne_learning_rate,
                "engine": config.tsne_engine,
            }
        return {"n_neighbors": config.umap_neighbors, "min_dist": config.umap_min_dist} if method == "umap" else {}

    def _project(self, method: str, options: Mapping[str, Any], start: Coords | None) -> Projection:
        from dataclasses import replace

        from ebr.visualization.placement import place_by_neighbours
        from ebr.visualization.projection import project_pca, project_tsne, project_umap

        among, n_rows = len(self.projected), len(self._vectors)
        self.say(f"projecting {among:,} points: {method}")
        sample = self.vectors if among == n_rows else self.vectors[self.projected]
        if method == "pca":
            projection = project_pca(sample, seed=self.config.seed)
        else:
            project: Callable[..., Projection] = project_tsne if method == "tsne" else project_umap
            reproducible = self.config.mode == "reproducible"
            projection = project(
                sample,
                **options,
                initialization=start,
                reproducible=reproducible,
                seed=self.config.seed,
                neighbours=self._neighbours_for(method) if among == n_rows else None,
            )
        if among == n_rows:
            return projection
        others = np.setdiff1d(np.arange(n_rows), self.projected, assume_unique=True)
        self.say(f"placing the other {len(others):,} by their neighbours")
        coords = np.empty((n_rows, 2), np.float32)
        coords[self.projected] = projection.coords
        coords[others] = place_by_neighbours(sample, projection.coords, self.vectors, rows=others)
        return replace(projection, coords=coords, settings={**projection.settings, "placed by neighbours": len(others)})

    def _neighbours_for(self, method: str) -> Neighbours | None:
        """What the projection would search for itself, where others can use it too; None for a method that does its own."""
        from ebr.visualization.projection import FEWEST_POINTS, default_neighbors, tsne_neighbours

        n_rows = len(self._vectors)
        if n_rows < FEWEST_POINTS or (method == "tsne" and self.config.tsne_engine == "sklearn"):
            return None
        if method == "tsne":
            return self._search(max(tsne_neighbours(n_rows, self.config.tsne_perplexity), NEIGHBOURS))
        return self._search(max((self.config.umap_neighbors or default_neighbors(n_rows)) - 1, NEIGHBOURS))


def _fingerprint(values: NDArray[Any] | Sequence[str]) -> str:
    import hashlib

    digest = hashlib.sha256()
    if isinstance(values, np.ndarray):
        digest.update(f"{values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    else:
        digest.update(np.fromiter(map(len, values), np.int64, len(values)).tobytes())
        digest.update("".join(values).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
