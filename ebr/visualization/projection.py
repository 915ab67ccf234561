"""High-dimensional vectors become points on a map: t-SNE and UMAP, with PCA where there is too little to project."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

# A map of fewer points has no neighbourhoods to keep: (7 - 1) / 3 is the first perplexity that counts two neighbours.
FEWEST_POINTS = 7

# Up to here neighbours are found exactly, in seconds; beyond, the quadratic cost would outgrow the projection itself.
_EXACT_NEIGHBOURS_UP_TO = 30_000
_BARNES_HUT_UP_TO = 10_000
_ONE_THREAD_UP_TO = 10_000


# openTSNE's own defaults: iterations of early exaggeration, then of the embedding itself.
_TSNE_ITERATIONS = (250, 500)
_CALLBACK_EVERY = 25


class _Advance:
    """openTSNE's callback: moves a bar on. Giving nothing back tells openTSNE to go on."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def __call__(self, iteration: int, error: float, embedding: object) -> None:
        self.bar.update(_CALLBACK_EVERY)


@dataclass(frozen=True)
class Projection:
    """Where each vector lies on a map.

    method: its name for people: "t-SNE", "UMAP", or "PCA instead of …". coords: (N, 2) float32, in the order of the vectors;
    neighbourhoods mean something, the axes do not. settings: what was really used, for example a perplexity that was lowered.
    """

    method: str
    coords: NDArray[np.float32]
    settings: dict[str, float | int | str] = field(default_factory=dict)


def project_tsne(vectors: NDArray[np.floating], *, perplexity: float, learning_rate: float | None, seed: int) -> Projection:
    """t-SNE map by cosine (van der Maaten & Hinton 2008; openTSNE), started from PCA; the same seed gives equal coordinates.

    vectors: (N, D). perplexity: about how many neighbours count, lowered to (N - 1) / 3 for few points. learning_rate: None
    lets it follow N (Belkina et al. 2019). Fewer than FEWEST_POINTS points, or N equal ones, get the PCA layout.
    """
    rows = _unit_rows(vectors)
    if reason := _why_not_projectable(rows):
        return _pca_instead_of("t-SNE", reason, rows, seed)
    from openTSNE import TSNE, initialization

    n_points = len(rows)
    perplexity = min(perplexity, (n_points - 1) / 3)
    start = initialization.rescale(pca_layout(rows, seed=seed).astype(np.float64))
    with (
        warnings.catch_warnings(),
        tqdm(total=sum(_TSNE_ITERATIONS), desc="t-SNE", unit="iteration", dynamic_ncols=True) as bar,
    ):
        warnings.simplefilter("ignore")
        model = TSNE(
            perplexity=perplexity,
            learning_rate="auto" if learning_rate is None else learning_rate,
            # Euclidean on unit rows ranks as cosine does; openTSNE's own "cosine" divides by zero on an all-zero row.
            metric="euclidean",
            neighbors="exact" if n_points <= _EXACT_NEIGHBOURS_UP_TO else "auto",
            # Repulsion by Barnes-Hut, N log N, or by interpolation, linear in N with a high base cost.
            negative_gradient_method="bh" if n_points <= _BARNES_HUT_UP_TO else "fft",
            initialization=initialization.jitter(start, inplace=False, random_state=seed),
            # Any number of threads gives the same bits; for few points, threads wait for each other longer than they work.
            n_jobs=1 if n_points <= _ONE_THREAD_UP_TO else os.cpu_count() or 1,
            random_state=seed,
            early_exaggeration_iter=_TSNE_ITERATIONS[0],
            n_iter=_TSNE_ITERATIONS[1],
            callbacks=_Advance(bar),
            callbacks_every_iters=_CALLBACK_EVERY,
        )
        coords = np.asarray(model.fit(rows), dtype=np.float32)
    rate = "auto" if learning_rate is None else learning_rate
    return Projection("t-SNE", coords, {"perplexity": round(perplexity, 2), "learning rate": rate})


def project_umap(vectors: NDArray[np.floating], *, n_neighbors: int, min_dist: float, seed: int) -> Projection:
    """UMAP map by cosine (McInnes et al. 2018; umap-learn); the same seed gives equal coordinates, on one thread.

    vectors: (N, D). n_neighbors: neighbours of a point, lowered to N - 1 for few points. min_dist: smallest distance between
    points on the map, 0 to 1. Fewer than FEWEST_POINTS points, or N equal ones, get the PCA layout.
    """
    rows = _unit_rows(vectors)
    if reason := _why_not_projectable(rows):
        return _pca_instead_of("UMAP", reason, rows, seed)
    n_neighbors = min(n_neighbors, len(rows) - 1)
    with warnings.catch_warnings():
        # It warns about choices made here on purpose: one thread for the seed's sake, a spectral start that falls back.
        warnings.simplefilter("ignore")
        from umap import UMAP

        model = UMAP(
            n_neighbors=n_neighbors,
            min_dist=min_dist,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
            tqdm_kwds={"disable": False, "desc": "UMAP", "unit": "epoch", "bar_format": None, "dynamic_ncols": True},
        )
        coords = np.asarray(model.fit_transform(rows), dtype=np.float32)
    return Projection("UMAP", coords, {"neighbors": n_neighbors, "min dist": min_dist})


def pca_layout(vectors: NDArray[np.floating], *, seed: int) -> NDArray[np.float32]:
    """The two directions in which the vectors vary most, (N, D) -> (N, 2); zeros where there is no second, or no first."""
    from sklearn.decomposition import PCA

    coords = np.zeros((len(vectors), 2), dtype=np.float32)
    n_components = min(2, len(vectors) - 1, vectors.shape[1])
    if n_components >= 1 and not _all_equal(vectors):
        coords[:, :n_components] = PCA(n_components, random_state=seed).fit_transform(vectors)
    return coords


def _unit_rows(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of length one; an all-zero row stays zero."""
    rows = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


def _all_equal(rows: NDArray[np.floating]) -> bool:
    return bool(np.allclose(rows, rows[:1], rtol=0, atol=1e-6))


def _why_not_projectable(rows: NDArray[np.float32]) -> str:
    if len(rows) < FEWEST_POINTS:
        return f"{len(rows)} points are too few" if len(rows) > 1 else "one point is too few"
    return "all vectors point the same way" if _all_equal(rows) else ""


def _pca_instead_of(method: str, reason: str, rows: NDArray[np.float32], seed: int) -> Projection:
    return Projection(f"PCA instead of {method}", pca_layout(rows, seed=seed), {"because": reason})
