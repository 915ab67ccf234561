"""Exact nearest neighbours by inner product, in numpy alone: the reference that every index is measured against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ebr.data.progress import progress_bar
from ebr.errors import ModelError

Rows = npt.NDArray[np.floating[Any]]
Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_LONG_S = 3.0  # a search that is over sooner needs no bar
_QUERY_BLOCK = 512
_ROWS_AT_A_TIME = 65_536
_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_MAGNITUDE_BITS = np.int32(0x7FFFFFFF)


def unit_rows(vectors: Rows) -> Scores:
    """Rows of length one, (N, D) -> (N, D) float32, in one new array; an all-zero row stays zero.

    Raises ValueError when a row holds NaN or infinity, or when vectors is not a matrix.
    """
    if np.ndim(vectors) != 2:
        raise ValueError(f"vectors must be a matrix, one row a vector; these have the shape {np.shape(vectors)}")
    unit = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        block = np.asarray(vectors[start : start + _ROWS_AT_A_TIME], dtype=np.float64)  # squares of float32 can overflow it
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        if not np.isfinite(lengths).all():
            row = start + int(np.flatnonzero(~np.isfinite(lengths[:, 0]))[0])
            raise ValueError(f"vector {row} holds NaN or infinity; leave such rows out")
        unit[start : start + len(block)] = np.divide(block, lengths, out=np.zeros_like(block), where=lengths > 0)
    return unit


def exact_search(
    queries: Rows, documents: Rows, k: int, *, block: int = 8192
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Find the k documents with the largest inner product for each query, best first.

    queries: (Q, D). documents: (N, D), N < 2**32; a memory map is read one block of rows at a time. Returns scores float32 and
    rows int64, both (Q, min(k, N)). Equal scores stand in row order, the lower row first. `block`, in rows, bounds memory
    (about 40 bytes x 512 queries x block) and does not change the result.
    Raises ValueError when the shapes disagree or k or block is below 1, ModelError when a score is not finite.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(f"queries {queries.shape} and documents {documents.shape} must be two matrices of the same width")
    if k < 1 or block < 1:
        raise ValueError(f"k and block must be at least 1, not {k} and {block}")
    k = min(k, len(documents))
    keys = np.empty((len(queries), k), np.int64)
    with progress_bar(total=len(queries), desc="search", unit="query", delay=_LONG_S) as bar:
        for start in range(0, len(queries), _QUERY_BLOCK):
            rows = slice(start, start + _QUERY_BLOCK)
            keys[rows] = _best_keys(queries[rows], documents, k, block)
            bar.update(len(keys[rows]))
    return _unpack(keys)


def keep_best(scores: Scores, rows: Ids, k: int) -> tuple[Scores, Ids]:
    """The k best of (Q, any number) candidates, best first; of equal scores the one that stands first.

    With it blocks of documents that exist one at a time are searched: what is left of those before, then the new ones.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _best_keys(queries: Rows, documents: Rows, k: int, block: int) -> npt.NDArray[np.int64]:
    """(Q, k) keys of the best documents, best first."""
    best = np.empty((len(queries), 0), np.int64)
    for first_row, scores in _score_blocks(queries, documents, block):
        candidates = np.concatenate([best, _pack(scores, first_row)], axis=1)
        kept = min(k, candidates.shape[1])
        best = np.partition(candidates, -kept, axis=1)[:, -kept:]
    return np.sort(best, axis=1)[:, ::-1]


def _score_blocks(queries: Rows, documents: Rows, block: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(first row, (Q, <= block) scores) for each block of documents."""
    # In float32 the last bit depends on where in a block a row stands, so equal vectors would not tie. A float64 sum of float32
    # products is far finer than the float32 it is rounded to.
    wide_queries = queries.astype(np.float64)
    for first_row in range(0, len(documents), block):
        scores = (wide_queries @ documents[first_row : first_row + block].astype(np.float64).T).astype(np.float32)
        if not np.isfinite(scores).all():
            raise ModelError("the model gives vectors with nan or inf: its weights diverged; lower learning_rate")
        yield first_row, scores


def _pack(scores: npt.NDArray[np.float32], first_row: int) -> npt.NDArray[np.int64]:
    """One sortable integer for each score and row: a larger key is a better score, or the same score in a lower row.

    Such keys never tie, which is what makes the order of a partition deterministic.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0, its equal
    rows = np.arange(first_row, first_row + scores.shape[1])
    keys: npt.NDArray[np.int64] = (_float_order(bits).astype(np.int64) << _ROW_BITS) | (_ROW_MASK - rows)
    return keys


def _unpack(keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    scores = _float_order((keys >> _ROW_BITS).astype(np.int32)).view(np.float32)
    rows: npt.NDArray[np.int64] = _ROW_MASK - (keys & _ROW_MASK)
    return scores, rows


def _float_order(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Turn float bits into integers of the same order, and back: floats hold sign and magnitude, integers two's complement."""
    return np.where(bits < 0, bits ^ _MAGNITUDE_BITS, bits)
