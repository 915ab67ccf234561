"""The nearest neighbours of vectors, by cosine: all pairs in blocks of matrix products, or by NN-descent for very many rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from ebr.data.progress import progress_bar
from ebr.data.vectors.exact_search import unit_rows
from ebr.visualization.library_caches import settle_numba_cache

EXACT_UP_TO = 100_000
"""Rows whose neighbours are found exactly, in about 160 core-seconds at 384 dimensions; NN-descent takes hardly less."""

# A block of similarities fills this many bytes at most, whatever the number of rows; NumPy's passes over it take as much again.
_BLOCK_BYTES = 64 * 2**20
_MOST_THREADS = 8
"""Each holds a block of its own, three times over."""

# Cosines are compared in steps of a millionth: finer differences are rounding errors of the matrix product, and they would
# order equal rows by chance. In float32 all multiples of 2^-20 up to 1 are exact.
_STEPS = np.float32(2**20)


@dataclass(frozen=True)
class Neighbours:
    """The k nearest rows of each row, nearest first; of equally near ones the lower row comes first.

    indices: (N, k) int32. similarities: (N, k) float32, cosine in steps of 2^-20. exact: False when NN-descent found them:
    then a few of the true neighbours are missing, and rows further away stand in for them.
    """

    indices: NDArray[np.int32]
    similarities: NDArray[np.float32]
    exact: bool = True

    def first(self, k: int) -> Neighbours:
        """The k nearest of these, as views."""
        return Neighbours(self.indices[:, :k], self.similarities[:, :k], self.exact)


def nearest_neighbours(
    vectors: NDArray[np.floating], k: int, *, exact_up_to: int = EXACT_UP_TO, seed: int = 42, n_jobs: int | None = None
) -> Neighbours:
    """The k nearest other rows of every row by cosine.

    vectors: (N, D) of any length; an all-zero row is at similarity 0 from all. k is lowered to N - 1. Beyond exact_up_to rows
    NN-descent finds them (Dong et al. 2011; pynndescent), seeded, on n_jobs threads (None: all). Raises ValueError for NaN.
    """
    return neighbours_of_unit_rows(unit_rows(vectors), k, exact_up_to=exact_up_to, seed=seed, n_jobs=n_jobs)


def neighbours_of_unit_rows(
    rows: NDArray[np.float32], k: int, *, exact_up_to: int = EXACT_UP_TO, seed: int = 42, n_jobs: int | None = None
) -> Neighbours:
    """What nearest_neighbours finds, without a copy: rows (N, D) float32 are of length one (or zero) already."""
    k = min(k, len(rows) - 1)
    if k < 1:
        return _none_of(len(rows))
    if len(rows) > exact_up_to:
        return _by_descent(rows, k, seed=seed, n_jobs=n_jobs)
    return _by_blocks(rows, rows, k, without_self=True)


def neighbours_in(reference: NDArray[np.floating], queries: NDArray[np.floating], k: int) -> Neighbours:
    """The k rows of the reference that are nearest to each query by cosine, exactly, in bounded memory.

    reference: (M, D). queries: (Q, D), for example memory-mapped: they are read block by block. k is lowered to M.
    Returns (Q, k) rows of the reference. Raises ValueError when D differs, and for NaN.
    """
    if np.ndim(queries) != 2 or np.ndim(reference) != 2 or reference.shape[1] != queries.shape[1]:
        raise ValueError(f"queries of shape {np.shape(queries)} have no neighbours in vectors of shape {np.shape(reference)}")
    k = min(k, len(reference))
    if k < 1 or not len(queries):
        return _none_of(len(queries))
    return _by_blocks(unit_rows(reference), queries, k, without_self=False)


def _none_of(n_rows: int) -> Neighbours:
    return Neighbours(np.empty((n_rows, 0), dtype=np.int32), np.empty((n_rows, 0), dtype=np.float32))


def _by_blocks(reference: NDArray[np.float32], queries: NDArray[np.floating], k: int, *, without_self: bool) -> Neighbours:
    indices = np.empty((len(queries), k), dtype=np.int32)
    similarities = np.empty((len(queries), k), dtype=np.float32)
    n_each = max(1, _BLOCK_BYTES // (4 * len(reference)))

    def search(start: int) -> int:
        block = reference[start : start + n_each] if without_self else unit_rows(queries[start : start + n_each])
        steps: NDArray[np.float32] = block @ reference.T
        steps *= _STEPS
        np.rint(steps, out=steps)
        if without_self:
            np.fill_diagonal(steps[:, start:], -np.inf)
        part = slice(start, start + len(block))
        indices[part], similarities[part] = _largest(steps, k)
        return len(block)

    _for_each_block(search, range(0, len(queries), n_each), len(queries))
    similarities /= _STEPS
    return Neighbours(indices, np.clip(similarities, -1, 1, out=similarities))


def _for_each_block(search: Callable[[int], int], starts: range, n_rows: int) -> None:
    """Search blocks on several threads, each block on one: so no bit depends on how many there are, as in a shared product."""
    n_threads = min(os.cpu_count() or 1, _MOST_THREADS)
    # A bar that shows itself only where there is something to wait for.
    bar = progress_bar(total=n_rows, desc="neighbours", unit="row", delay=2)
    with limited_threads(one=True), bar, ThreadPoolExecutor(n_threads) as pool:
        for n_done in pool.map(search, starts):
            bar.update(n_done)


def limited_threads(*, one: bool) -> AbstractContextManager[object]:
    """Sums of several threads depend on which comes first, or on their number; so reproducible means one."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1) if one else nullcontext()


def _largest(values: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns and values of the k largest of each row, largest first, equal ones by column: (B, M) -> (B, k), (B, k).

    The maxima of groups of columns come first: the k largest values lie in the k groups with the largest maxima. That leaves
    one fast pass over the whole block, and only k groups a row for the costly partition.
    """
    n_columns = values.shape[1]
    depth = max(1, isqrt(n_columns // k))
    width = n_columns // depth
    maxima = values[:, : depth * width].reshape(len(values), depth, width).max(axis=1)
    groups = np.argpartition(maxima, width - k, axis=1)[:, width - k :]
    columns = (groups[:, None, :] + width * np.arange(depth)[None, :, None]).reshape(len(values), -1)
    left_over = np.broadcast_to(np.arange(depth * width, n_columns), (len(values), n_columns - depth * width))
    columns = np.concatenate([columns, left_over], axis=1)
    candidates = np.take_along_axis(values, columns, axis=1)
    chosen = np.argpartition(candidates, columns.shape[1] - k, axis=1)[:, columns.shape[1] - k :]
    columns = np.take_along_axis(columns, chosen, axis=1)
    smallest = np.take_along_axis(candidates, chosen, axis=1).min(axis=1)
    # Where more than k columns reach the smallest value that was chosen, the partition took any of them.
    for row in np.flatnonzero(np.count_nonzero(values >= smallest[:, None], axis=1) > k):
        tied = np.flatnonzero(values[row] >= smallest[row])
        columns[row] = tied[np.argsort(-values[row, tied], kind="stable")[:k]]
    columns.sort(axis=1)
    found = np.take_along_axis(values, columns, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(found, order, axis=1)


def _by_descent(rows: NDArray[np.float32], k: int, *, seed: int, n_jobs: int | None) -> Neighbours:
    settle_numba_cache("pynndescent")
    from pynndescent import NNDescent

    # Euclidean on unit rows ranks as cosine does, and unlike its "cosine" copies nothing. A row is its own first neighbour.
    graph = NNDescent(rows, n_neighbors=k + 1, metric="euclidean", random_state=seed, n_jobs=n_jobs, verbose=False)
    found = graph.neighbor_graph[0]
    indices = np.empty((len(rows), k), dtype=np.int32)
    similarities = np.empty((len(rows), k), dtype=np.float32)
    n_each = max(1, _BLOCK_BYTES // (4 * (k + 1) * rows.shape[1]))

    def rank(start: int) -> int:
        own = np.arange(start, min(start + n_each, len(rows)))
        near = np.sort(found[own], axis=1)
        values = np.rint(np.einsum("bkd,bd->bk", rows[near], rows[own]) * _STEPS)
        values[near == own[:, None]] = -np.inf  # among many equal rows it is not always the first, or there at all
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        indices[own] = np.take_along_axis(near, order, axis=1)
        similarities[own] = np.take_along_axis(values, order, axis=1) / _STEPS
        return len(own)

    _for_each_block(rank, range(0, len(rows), n_each), len(rows))
    return Neighbours(indices, np.clip(similarities, -1, 1, out=similarities), exact=False)
