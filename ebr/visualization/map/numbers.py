"""Everything of a map that takes long, each computed once and then found again: coordinates, neighbours, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ebr.config import VisualizationConfig
from ebr.data.speech import Say
from ebr.data.vectors.batch import Vectors
from ebr.visualization.map.vectors import MapVectors

if TYPE_CHECKING:
    from ebr.visualization.map.cache import MapCache
    from ebr.visualization.picture.columns import MapColumn
    from ebr.visualization.project.neighbours import Neighbours
    from ebr.visualization.project.projection import Projection
    from ebr.visualization.project.quality import ClusterQuality
    from ebr.visualization.project.trust import MapTrust

Coords = NDArray[np.float32]

METHODS = {"tsne": ["tsne"], "umap": ["umap"], "pca": ["pca"], "both": ["tsne", "umap"]}
"""What is projected, by the option."""
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

    @property
    def vectors(self) -> Vectors:
        """(N, D), read now if nothing needed them before."""
        return self._vectors.array

    def map(self, method: str, start: Coords | None = None) -> DrawnMap:
        """The map by one method, and its figures. start: (M, 2), where the points begin; None = at their PCA."""
        from ebr.visualization.project.projection import Projection
        from ebr.visualization.project.trust import MapTrust, map_trust

        options = self._options_of(method)
        key = {
            "what": "map",
            "method": method,
            "options": options,
            "seed": self.config.seed,
            "n_projected": len(self.projected),
            "projected": _fingerprint(self.projected),
        }
        if method != "pca":  # which has none of them
            key |= {"mode": self.config.mode, "start": None if start is None else _fingerprint(start), **self._search_facts()}

        def compute() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
            projection = self._project(method, options, start)
            trust = map_trust(self.vectors, projection.coords, seed=self.config.seed)
            facts = {"method": projection.method, "settings": projection.settings, "trust": asdict(trust)}
            return {"coords": projection.coords}, facts

        arrays, facts = self._kept(key, compute)
        return DrawnMap(Projection(facts["method"], arrays["coords"], facts["settings"]), MapTrust.from_json(facts["trust"]))

    def neighbours(self) -> Neighbours:
        """The nearest rows of each in the original space, NEIGHBOURS of them."""
        from ebr.visualization.project.neighbours import Neighbours

        def compute() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
            found = self._searched.first(NEIGHBOURS)
            return {"indices": found.indices, "similarities": found.similarities}, {"exact": found.exact}

        arrays, facts = self._kept({"what": "neighbours", "k": NEIGHBOURS, **self._search_facts()}, compute)
        return Neighbours(arrays["indices"], arrays["similarities"], facts["exact"])

    @cached_property
    def _searched(self) -> Neighbours:
        """The nearest rows of each among all rows, in one search for the maps and the page."""
        from ebr.visualization.project.neighbours import nearest_neighbours

        self.say(f"neighbours of {len(self._vectors):,} rows in the original space")
        n_jobs = 1 if self.config.mode == "reproducible" else None
        return nearest_neighbours(self.vectors, self._n_searched, seed=self.config.seed, n_jobs=n_jobs)

    @property
    def _n_searched(self) -> int:
        """Neighbours of a row that are searched: those of the page, or of the map that looks at most."""
        return max([NEIGHBOURS, *(n for n in map(self._n_neighbours, METHODS[self.config.method]) if n is not None)])

    def _search_facts(self) -> dict[str, Any]:
        """What the neighbours depend on beside the vectors. An approximate search of more also finds other first ten."""
        from ebr.visualization.project.neighbours import EXACT_UP_TO

        if len(self._vectors) <= EXACT_UP_TO:
            return {}
        return {"seed": self.config.seed, "mode": self.config.mode, "n_searched": self._n_searched}

    def quality(self, column: MapColumn) -> ClusterQuality:
        """How well the labels of a column group in the original space."""
        from ebr.visualization.project.quality import ClusterQuality, cluster_quality, quality_of_numbers

        if column.numbers is not None:
            return quality_of_numbers(column.numbers)

        def compute() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
            if column.name:
                self.say(f"measuring how {column.name!r} groups the rows")
            return {}, asdict(cluster_quality(self.vectors, column.texts, seed=self.config.seed))

        key = {"what": "quality", "labels": _fingerprint(column.texts), "seed": self.config.seed}
        return ClusterQuality.from_json(self._kept(key, compute)[1])

    def _kept(
        self, key: Mapping[str, Any], compute: Callable[[], tuple[dict[str, NDArray[Any]], dict[str, Any]]]
    ) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]:
        if self.cache is None:
            return compute()
        from ebr.visualization.map.cache import key_of

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

        from ebr.visualization.project.placement import place_by_neighbours
        from ebr.visualization.project.projection import project_pca, project_tsne, project_umap

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
                neighbours=None if self._n_neighbours(method) is None else self._searched,
            )
        if among == n_rows:
            return projection
        others = np.setdiff1d(np.arange(n_rows), self.projected, assume_unique=True)
        self.say(f"placing the other {len(others):,} by their neighbours")
        coords = np.empty((n_rows, 2), np.float32)
        coords[self.projected] = projection.coords
        coords[others] = place_by_neighbours(sample, projection.coords, self.vectors, rows=others)
        return replace(projection, coords=coords, settings={**projection.settings, "placed by neighbours": len(others)})

    def _n_neighbours(self, method: str) -> int | None:
        """How many neighbours among all rows a projection looks at; None for one that needs none, or searches on its own."""
        from ebr.visualization.project.projection import FEWEST_POINTS, default_neighbors, tsne_neighbours

        n_rows = len(self._vectors)
        if len(self.projected) < n_rows or n_rows < FEWEST_POINTS or method == "pca":
            return None
        if method == "umap":
            return (self.config.umap_neighbors or default_neighbors(n_rows)) - 1
        return None if self.config.tsne_engine == "sklearn" else tsne_neighbours(n_rows, self.config.tsne_perplexity)


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
