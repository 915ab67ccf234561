"""What smaller vectors cost: nDCG@10 and bytes a vector for fewer dimensions and for coarser numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.progress import Bar, progress_bar
from ebr.data.vectors.exact_search import Rows, exact_search, keep_best, unit_rows
from ebr.retrieval.measures.measurement import as_run, search_depth, without_own_documents
from ebr.retrieval.measures.metrics import score_run

KINDS = ("float32", "float16", "int8", "binary")
"""How a number of a vector is stored: 32, 16, 8 bits, or its sign alone."""

_Vectors = npt.NDArray[np.float32]

_SMALLEST_DIM = 32
_FEWEST_QUERIES = 50
_BLOCK = 16_384
_LEVELS = 255
_LONG_S = 3.0


@dataclass(frozen=True)
class Compressed:
    """One way to store documents. kind: one of KINDS. ndcg: mean nDCG@10 over the scored queries."""

    dim: int
    kind: str
    bytes_per_vector: int
    ndcg: float


def compress_table(
    queries: Rows,
    documents: Rows,
    dataset: EvaluationSet,
    *,
    k: int = 100,
    max_scored: int = 100_000_000,
    unit: bool = True,
) -> list[Compressed]:
    """nDCG@10 for the first D, D/2, D/4, … (32 at least) dimensions, each in every one of KINDS; full vectors in float32 first.

    queries: (Q, D), documents: (N, D), rows in the dataset's order; documents may be a memory map and are read in blocks.
    unit: rows are of length 1, and scaled to it again when they are cut (Kusupati et al. 2022). Queries stay float32; only
    documents are stored smaller. int8: 256 levels between the least and the largest value of each dimension, as
    sentence-transformers' quantize_embeddings sets them, read back as the middle of a level. binary: the signs, as +1 and -1.
    k: depth of the ranking, without each query's own document; with an evaluation's k, the first row is its nDCG@10 exactly.
    max_scored: query-document scores in one row of the table. Where Q x N is more, scored_queries picks queries.
    Raises ValueError when the shapes disagree, ModelError when a score is not finite.
    """
    if queries.shape != (len(dataset.query_ids), documents.shape[1]) or len(documents) != len(dataset.doc_ids):
        raise ValueError(
            f"queries {queries.shape} and documents {documents.shape} do not fit {len(dataset.query_ids)} queries "
            f"and {len(dataset.doc_ids)} documents"
        )
    chosen = scored_queries(len(queries), len(documents), max_scored=max_scored)
    own_rows, depth = dataset.own_rows()[chosen], search_depth(dataset, k)
    dims = _dims(documents.shape[1])
    n_vectors = len(documents) * len(dims) * len(KINDS)
    table = []
    with progress_bar(total=n_vectors, desc="compress", unit="vector", unit_scale=True, delay=_LONG_S) as bar:
        for dim in dims:
            short_queries = _shortened(queries[chosen], dim, unit)
            value_range = _value_range(documents, dim, unit)
            for kind in KINDS:
                stored = _stored_blocks(documents, dim, kind, value_range, bar, unit)
                scores, rows = _search_blocks(short_queries, stored, depth)
                rows, scores = without_own_documents(rows, scores, own_rows, k)
                table.append(Compressed(dim, kind, _bytes_per_vector(dim, kind), _mean_ndcg(dataset, chosen, scores, rows)))
    return table


def scored_queries(n_queries: int, n_documents: int, *, max_scored: int = 100_000_000) -> npt.NDArray[np.int64]:
    """Rows of the queries that compress_table scores: all of them, or max_scored / n_documents, evenly spaced, 50 at least."""
    wanted = max(_FEWEST_QUERIES, max_scored // max(n_documents, 1))
    if n_queries <= wanted:
        return np.arange(n_queries)
    return np.arange(wanted) * n_queries // wanted


def _dims(width: int) -> list[int]:
    dims = [width]
    while dims[-1] // 2 >= _SMALLEST_DIM:
        dims.append(dims[-1] // 2)
    return dims


def _bytes_per_vector(dim: int, kind: str) -> int:
    return {"float32": 4 * dim, "float16": 2 * dim, "int8": dim, "binary": -(-dim // 8)}[kind]


def _shortened(vectors: Rows, dim: int, unit: bool) -> _Vectors:
    """The first dim numbers of each row, where unit at length 1; whole rows stay as they are, bit by bit."""
    cut = vectors[:, :dim]
    return np.asarray(cut, np.float32) if dim == vectors.shape[1] or not unit else unit_rows(cut)


def _blocks(documents: Rows, dim: int, unit: bool) -> Iterator[_Vectors]:
    for start in range(0, len(documents), _BLOCK):
        yield _shortened(documents[start : start + _BLOCK], dim, unit)


def _value_range(documents: Rows, dim: int, unit: bool = True) -> _Vectors:
    """(2, dim) least and largest value of each dimension."""
    ends = [(block.min(axis=0), block.max(axis=0)) for block in _blocks(documents, dim, unit)]
    if not ends:
        return np.zeros((2, dim), np.float32)
    return np.stack([np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0)])


def _stored_blocks(documents: Rows, dim: int, kind: str, value_range: _Vectors, bar: Bar, unit: bool) -> Iterator[_Vectors]:
    for block in _blocks(documents, dim, unit):
        yield _read_back(block, kind, value_range)
        bar.update(len(block))


def _read_back(vectors: _Vectors, kind: str, value_range: _Vectors) -> _Vectors:
    """What is left of float32 vectors that were stored as `kind`."""
    if kind == "float16":
        return vectors.astype(np.float16).astype(np.float32)
    if kind == "int8":
        return _from_levels(_to_levels(vectors, value_range), value_range)
    if kind == "binary":
        # Packing eight signs into a byte would lose nothing more.
        return np.where(vectors > 0, np.float32(1), np.float32(-1))
    return vectors


def _to_levels(vectors: _Vectors, value_range: _Vectors) -> npt.NDArray[np.uint8]:
    low, high = value_range
    step = (high - low) / _LEVELS
    levels = np.floor((vectors - low) / np.where(step > 0, step, 1))
    clipped: npt.NDArray[np.uint8] = np.clip(levels, 0, _LEVELS).astype(np.uint8)
    return clipped


def _from_levels(levels: npt.NDArray[np.uint8], value_range: _Vectors) -> _Vectors:
    """The middle of each level, so that no value is off by more than half a step."""
    low, high = value_range
    values: _Vectors = low + (levels + np.float32(0.5)) * ((high - low) / _LEVELS)
    return values


def _search_blocks(queries: _Vectors, blocks: Iterator[_Vectors], k: int) -> tuple[_Vectors, npt.NDArray[np.int64]]:
    """exact_search over blocks of documents that exist one at a time."""
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    first_row = 0
    for block in blocks:
        new_scores, new_rows = exact_search(queries, block, k)
        # Of equal scores the one found before stands first, and it has the lower row.
        scores, rows = keep_best(np.hstack([scores, new_scores]), np.hstack([rows, new_rows + first_row]), k)
        first_row += len(block)
    return scores, rows


def _mean_ndcg(dataset: EvaluationSet, chosen: npt.NDArray[np.int64], scores: _Vectors, rows: npt.NDArray[np.int64]) -> float:
    query_ids = [dataset.query_ids[row] for row in chosen]
    run = as_run(query_ids, dataset.doc_ids, rows, scores)
    qrels = {query_id: dataset.qrels[query_id] for query_id in query_ids}
    return float(score_run(run, qrels, ("ndcg@10",))["ndcg@10"].mean())
