"""High-dimensional vectors become points on a map: t-SNE, UMAP, and PCA, which is also where the other two start."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from math import ceil, log10
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ebr.data.progress import Bar, is_watched, progress_bar
from ebr.data.vectors.exact_search import unit_rows
from ebr.visualization.library_caches import settle_numba_cache
from ebr.visualization.project.neighbours import Neighbours, limited_threads, neighbours_of_unit_rows

Coords: TypeAlias = NDArray[np.float32]
Settings: TypeAlias = dict[str, float | int | str]

# A map of fewer points has no neighbourhoods to keep: (7 - 1) / 3 is the first perplexity that counts two neighbours.
FEWEST_POINTS = 7

_BARNES_HUT_UP_TO = 5_000
_ONE_THREAD_UP_TO = 10_000
# openTSNE's own defaults: iterations of early exaggeration, then of the embedding itself.
_TSNE_ITERATIONS = (250, 500)
_EARLY_EXAGGERATION = 12
_CALLBACK_EVERY = 25
# How wide a cell of the grid is on which repulsion is interpolated. The map grows far beyond the 50 cells that openTSNE starts
# with, and its Fourier transforms then take most of the time: at 1.5 instead of 1 they take half of it, and trustworthiness and
# kept neighbours stay within what another seed changes; at 2, neighbours begin to be lost (docs/measurements.md).
_GRID_CELL = 1.5

# Two directions of 50,000 vectors are those of a million; beyond, PCA only reads the rows, block by block.
_PCA_FITTED_ON = 50_000


class _Advance:
    """openTSNE's callback: moves a bar on. Giving nothing back tells openTSNE to go on."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    def __call__(self, iteration: int, error: float, embedding: object) -> None:
        self.bar.update(_CALLBACK_EVERY)


@dataclass(frozen=True)
class Projection:
    """Where each vector lies on a map.

    method: its name for people: "t-SNE", "UMAP", "PCA" or "PCA instead of …". coords: (N, 2) float32, in the order of the
    vectors; neighbourhoods mean something, the axes only for PCA. settings: what was really used, defaults as their numbers.
    """

    method: str
    coords: Coords
    settings: Settings = field(default_factory=dict)


def default_perplexity(n_points: int) -> float:
    """30, lowered to a third of the other points (van der Maaten & Hinton 2008 advise 5 to 50)."""
    return min(30.0, (n_points - 1) / 3)


def tsne_neighbours(n_points: int, perplexity: float | None) -> int:
    """How many neighbours of a point t-SNE looks at: three times the perplexity (van der Maaten 2014)."""
    return min(n_points - 1, ceil(3 * (perplexity or default_perplexity(n_points))))


def default_neighbors(n_points: int) -> int:
    """UMAP's own 15 up to 10,000 points, then 15 more for each power of ten, lowered to the other points."""
    return min(round(15 + 15 * max(0.0, log10(max(n_points, 1)) - 4)), n_points - 1)


def project_tsne(
    vectors: NDArray[np.floating],
    *,
    perplexity: float | None = None,
    learning_rate: float | None = None,
    engine: Literal["opentsne", "sklearn"] = "opentsne",
    initialization: NDArray[np.floating] | None = None,
    reproducible: bool = True,
    seed: int = 42,
    neighbours: Neighbours | None = None,
) -> Projection:
    """t-SNE map by cosine (van der Maaten & Hinton 2008), by openTSNE (Poličar et al. 2024) or scikit-learn.

    vectors: (N, D), finite. perplexity: about how many neighbours count, at most (N - 1) / 3; None: default_perplexity.
    learning_rate: None lets it follow N as the engine does, N / exaggeration (Belkina et al. 2019). initialization: (N, 2)
    where the points start, at any scale; None: PCA. reproducible: one thread, equal bits for equal seeds; else all threads.
    neighbours: those of the vectors, where they are known already. Fewer than FEWEST_POINTS points, or equal ones, get the PCA
    layout. Raises ValueError for no vectors, NaN, and an initialization that does not fit.
    """
    rows = _usable(vectors)
    if reason := _why_not_projectable(rows):
        return _pca_instead_of("t-SNE", reason, rows, seed)
    perplexity = min(perplexity or default_perplexity(len(rows)), (len(rows) - 1) / 3)
    with warnings.catch_warnings(), limited_threads(one=reproducible):
        warnings.simplefilter("ignore")
        start = _start(rows, initialization, seed)
        # So small that early exaggeration pulls freely; a hundredth of noise parts equal points.
        small = _scaled(start, 1e-4 / max(float(start.std(axis=0).max()), 1e-30), noise=1e-6, seed=seed).astype(np.float64)
        if engine == "sklearn":
            coords, settings = _sklearn_tsne(rows, small, perplexity, learning_rate, seed)
        else:
            near = _neighbours(rows, tsne_neighbours(len(rows), perplexity), neighbours, reproducible, seed)
            # For few points, threads wait for each other longer than they work.
            n_jobs = 1 if reproducible or len(rows) <= _ONE_THREAD_UP_TO else os.cpu_count() or 1
            coords, settings = _open_tsne(near, small, perplexity, learning_rate, n_jobs, seed)
    stated = {"perplexity": round(perplexity, 2), **settings, "iterations": sum(_TSNE_ITERATIONS)}
    return Projection("t-SNE", coords, stated | _run_settings(len(rows), initialization, reproducible, seed))


def project_umap(
    vectors: NDArray[np.floating],
    *,
    n_neighbors: int | None = None,
    min_dist: float = 0.1,
    initialization: NDArray[np.floating] | None = None,
    reproducible: bool = True,
    seed: int = 42,
    neighbours: Neighbours | None = None,
) -> Projection:
    """UMAP map by cosine (McInnes et al. 2018; umap-learn).

    vectors: (N, D), finite. n_neighbors: points of a neighbourhood, itself included, at most N - 1; None: default_neighbors.
    min_dist: smallest distance between points on the map, 0 to 1. initialization: (N, 2) where the points start, at any scale;
    None: PCA. reproducible: one thread, equal bits for equal seeds; else all threads, and no two runs are equal.
    neighbours: those of the vectors, where they are known already. Fewer than FEWEST_POINTS points, or equal ones, get the PCA
    layout. Raises ValueError for no vectors, NaN, and an initialization that does not fit.
    """
    rows = _usable(vectors)
    if reason := _why_not_projectable(rows):
        return _pca_instead_of("UMAP", reason, rows, seed)
    n_points = len(rows)
    n_neighbors = max(2, min(n_neighbors or default_neighbors(n_points), n_points - 1))
    with warnings.catch_warnings(), limited_threads(one=reproducible):
        # It warns about choices made here on purpose: one thread for the seed's sake, neighbours without their index.
        warnings.simplefilter("ignore")
        start = _start(rows, initialization, seed)
        # umap-learn's own scale for a PCA or a spectral start.
        wide = _scaled(start, 10 / max(float(np.abs(start).max()), 1e-30), noise=1e-4, seed=seed)
        near = _neighbours(rows, n_neighbors - 1, neighbours, reproducible, seed)
        del rows  # at a million rows, half of the memory that UMAP leaves free
        coords, epochs = _umap(near, wide, n_neighbors, min_dist, seed if reproducible else None)
    stated: Settings = {"neighbors": n_neighbors, "min dist": min_dist, "epochs": epochs, "engine": "umap-learn"}
    stated["neighbor search"] = "exact" if near.exact else "NN-descent"
    return Projection(
        "UMAP",
        coords,
        stated | _run_settings(n_points, initialization, reproducible, seed if reproducible else "none"),
    )


def project_pca(vectors: NDArray[np.floating], *, seed: int = 42) -> Projection:
    """The two directions in which unit vectors vary most: a linear map, and the baseline for the other two.

    vectors: (N, D), finite. settings: the share of the variance that each axis shows. Raises ValueError for no vectors and NaN.
    """
    rows = _usable(vectors)
    coords = pca_layout(rows, seed=seed)
    # Unit rows: the mean of their squared lengths is the share of non-zero rows, and what the mean takes is not variance.
    centre = rows.mean(axis=0, dtype=np.float64)
    total = float(np.count_nonzero(rows.any(axis=1)) / len(rows) - centre @ centre)
    shares = coords.var(axis=0, dtype=np.float64) / total if total > 1e-9 else np.zeros(2)
    stated: Settings = {"variance on x": round(float(shares[0]), 4), "variance on y": round(float(shares[1]), 4)}
    return Projection("PCA", coords, {**stated, "fitted on": min(len(rows), _PCA_FITTED_ON), "points": len(rows)})


def pca_layout(vectors: NDArray[np.floating], *, seed: int) -> Coords:
    """The two directions in which the vectors vary most, (N, D) -> (N, 2); zeros where there is no second, or no first.

    The directions of more than 50,000 rows are those of a seeded sample; the rows are read in blocks and never copied whole.
    """
    from sklearn.decomposition import PCA

    coords = np.zeros((len(vectors), 2), dtype=np.float32)
    n_components = min(2, len(vectors) - 1, vectors.shape[1])
    if n_components < 1 or _all_equal(vectors):
        return coords
    n_fitted = min(len(vectors), _PCA_FITTED_ON)
    sample = np.sort(np.random.default_rng(seed).choice(len(vectors), size=n_fitted, replace=False))
    with limited_threads(one=True):  # it takes seconds, and what starts there should not depend on how many threads there are
        pca = PCA(n_components, random_state=seed).fit(vectors[sample])
        for first in range(0, len(vectors), _PCA_FITTED_ON):
            coords[first : first + _PCA_FITTED_ON, :n_components] = pca.transform(vectors[first : first + _PCA_FITTED_ON])
    return coords


def _open_tsne(
    near: Neighbours, start: NDArray[np.float64], perplexity: float, learning_rate: float | None, n_jobs: int, seed: int
) -> tuple[Coords, Settings]:
    from openTSNE import TSNE
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    n_points = len(start)
    # Euclidean between unit rows: |a - b|² = 2 - 2 cos.
    distances = np.sqrt(np.maximum(2 - 2 * near.similarities.astype(np.float64), 0))
    affinities = PerplexityBasedNN(
        perplexity=perplexity, knn_index=PrecomputedNeighbors(near.indices, distances), n_jobs=n_jobs, random_state=seed
    )
    with progress_bar(total=sum(_TSNE_ITERATIONS), desc="t-SNE", unit="iteration") as bar:
        model = TSNE(
            learning_rate="auto" if learning_rate is None else learning_rate,
            # Repulsion by Barnes-Hut, N log N, or by interpolation, linear in N with a high base cost.
            negative_gradient_method="bh" if n_points <= _BARNES_HUT_UP_TO else "fft",
            ints_in_interval=_GRID_CELL,
            n_jobs=n_jobs,
            random_state=seed,
            early_exaggeration=_EARLY_EXAGGERATION,
            early_exaggeration_iter=_TSNE_ITERATIONS[0],
            n_iter=_TSNE_ITERATIONS[1],
            callbacks=_Advance(bar),
            callbacks_every_iters=_CALLBACK_EVERY,
        )
        coords = np.asarray(model.fit(affinities=affinities, initialization=start), dtype=np.float32)
    rates: Settings = {"learning rate": learning_rate if learning_rate is not None else n_points}
    if learning_rate is None:
        rates["early learning rate"] = round(n_points / _EARLY_EXAGGERATION, 1)
    return coords, {**rates, "engine": "openTSNE", "neighbor search": "exact" if near.exact else "NN-descent"}


def _sklearn_tsne(
    rows: NDArray[np.float32], start: NDArray[np.float64], perplexity: float, learning_rate: float | None, seed: int
) -> tuple[Coords, Settings]:
    from sklearn.manifold import TSNE

    # Its "auto", whose gradient has a factor of four that openTSNE's lacks.
    rate = max(len(rows) / _EARLY_EXAGGERATION / 4, 50.0) if learning_rate is None else learning_rate
    model = TSNE(
        perplexity=perplexity,
        learning_rate=rate,
        early_exaggeration=_EARLY_EXAGGERATION,
        max_iter=sum(_TSNE_ITERATIONS),
        init=start.astype(np.float32),
        random_state=seed,
    )
    coords = np.asarray(model.fit_transform(rows), dtype=np.float32)
    return coords, {"learning rate": round(rate, 1), "engine": "scikit-learn", "neighbor search": "exact"}


def _umap(near: Neighbours, start: Coords, n_neighbors: int, min_dist: float, seed: int | None) -> tuple[Coords, int]:
    settle_numba_cache("umap")
    from umap import UMAP

    watched = is_watched()  # then umap-learn's own bar moves
    epochs = 500 if len(start) <= 10_000 else 200  # umap-learn's own choice, made here so that it can be stated
    itself = np.arange(len(start), dtype=np.int32)[:, None]
    model = UMAP(
        n_neighbors=n_neighbors,
        min_dist=min_dist,
        metric="cosine",
        n_epochs=epochs,
        init=start,
        precomputed_knn=(
            np.concatenate([itself, near.indices], axis=1),
            np.concatenate([np.zeros_like(itself, dtype=np.float32), 1 - near.similarities], axis=1),
        ),
        random_state=seed,
        n_jobs=-1 if seed is None else 1,
        tqdm_kwds={"disable": not watched, "desc": "UMAP", "unit": "epoch", "bar_format": None, "dynamic_ncols": True},
    )
    # With the neighbours given, UMAP only counts the data; it would copy the vectors three times.
    with progress_bar(total=epochs, desc="UMAP", unit="epoch", disable=watched) as bar:
        coords = np.asarray(model.fit_transform(start), dtype=np.float32)
        bar.update(epochs)
    return coords, epochs


def _neighbours(rows: NDArray[np.float32], k: int, known: Neighbours | None, reproducible: bool, seed: int) -> Neighbours:
    if known is not None and len(known.indices) == len(rows) and known.indices.shape[1] >= k:
        return known.first(k)
    return neighbours_of_unit_rows(rows, k, seed=seed, n_jobs=1 if reproducible else None)


def _run_settings(n_points: int, initialization: object, reproducible: bool, seed: int | str) -> Settings:
    return {
        "start": "PCA" if initialization is None else "given",
        "mode": "reproducible" if reproducible else "fast",
        "seed": seed,
        "points": n_points,
    }


def _start(rows: NDArray[np.float32], initialization: NDArray[np.floating] | None, seed: int) -> Coords:
    if initialization is None:
        return pca_layout(rows, seed=seed)
    start = np.array(initialization, dtype=np.float32)
    if start.shape != (len(rows), 2) or not np.isfinite(start).all():
        raise ValueError(f"the initialization must be {len(rows)} × 2 finite numbers; it has the shape {start.shape}")
    return np.asarray(start - start.mean(axis=0), dtype=np.float32)


def _scaled(coords: Coords, factor: float, *, noise: float, seed: int) -> Coords:
    jitter = np.random.default_rng(seed).normal(scale=noise, size=coords.shape)
    return np.asarray(coords * factor + jitter, dtype=np.float32)


def _usable(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    if not len(vectors):
        raise ValueError("no vectors; a map needs at least one")
    return unit_rows(vectors)


def _all_equal(rows: NDArray[np.floating]) -> bool:
    # The first rows nearly always decide; only where they are equal are all of a million compared.
    return all(np.allclose(rows[i : i + 10_000], rows[:1], rtol=0, atol=1e-6) for i in range(0, len(rows), 10_000))


def _why_not_projectable(rows: NDArray[np.float32]) -> str:
    if len(rows) < FEWEST_POINTS:
        return f"{len(rows)} points are too few" if len(rows) > 1 else "one point is too few"
    return "all vectors point the same way" if _all_equal(rows) else ""


def _pca_instead_of(method: str, reason: str, rows: NDArray[np.float32], seed: int) -> Projection:
    return Projection(f"PCA instead of {method}", pca_layout(rows, seed=seed), {"because": reason})
