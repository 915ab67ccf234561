"""The health of an embedding space: how its vectors lie, apart from any one ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.vectors.batch import sample_rows
from ebr.data.vectors.exact_search import Rows, exact_search

_Wide = npt.NDArray[np.float64]

_NEIGHBOURS = 10
_BLOCK = 1024
_UNIFORMITY_T = 2.0


@dataclass(frozen=True)
class SpaceHealth:
    """Six numbers about a space; measure_space says how each is measured. n_documents: how many documents were looked at."""

    alignment: float
    uniformity: float
    mean_cosine: float
    hubness: float
    largest_hub: float
    orphans: float
    n_documents: int


def positive_pairs(dataset: EvaluationSet) -> list[tuple[int, int]]:
    """(query row, document row) of every positive grade whose document is in the corpus, in the order of the qrels."""
    judged = {doc_id for grades in dataset.qrels.values() for doc_id in grades}
    row_of = {doc_id: row for row, doc_id in enumerate(dataset.doc_ids) if doc_id in judged}
    return [
        (query_row, row_of[doc_id])
        for query_row, query_id in enumerate(dataset.query_ids)
        for doc_id, grade in dataset.qrels[query_id].items()
        if grade > 0 and doc_id in row_of
    ]


def measure_space(
    queries: Rows, documents: Rows, positives: Sequence[tuple[int, int]], *, seed: int, max_documents: int = 5000
) -> SpaceHealth:
    """Measure a space by its documents, and by how near queries stand to what answers them.

    queries: (Q, D), documents: (N, D), unit rows; documents may be a memory map. positives: (query row, document row) pairs.
    What looks at pairs of documents does so on a seeded sample of at most max_documents, in blocks.

    alignment: mean squared distance of a query and its positive, 0 to 4; 0 is best (Wang and Isola 2020).
    uniformity: log of the mean of exp(-2 |x - y|²) over pairs of documents, -8 to 0; lower is more evenly spread (ibid.).
    mean_cosine: over pairs of documents; near 1, the vectors fill a narrow cone (anisotropy, Ethayarajh 2019).
    hubness: skewness of how often a document stands among the 10 nearest of another; above 1, few documents crowd out the rest
    (Radovanović et al. 2010). largest_hub: the largest share of the others' lists that one document stands in. orphans: the
    share of documents in no list. Equal vectors count once in these three: which of them is nearer would be row order alone.

    What is undefined is 0: alignment without positives, the rest with fewer than two documents, hubness where every document
    stands in equally many lists. Raises ValueError when the shapes disagree, ModelError when a document is not finite.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(f"queries {queries.shape} and documents {documents.shape} must be two matrices of the same width")
    sample = np.asarray(documents[sample_rows(len(documents), max_documents, seed)])
    counts = _occurrences(np.unique(sample, axis=0))
    wide = sample.astype(np.float64)
    return SpaceHealth(
        alignment=_alignment(queries, documents, np.array(positives, np.int64).reshape(-1, 2)),
        uniformity=_uniformity(wide),
        mean_cosine=_mean_cosine(wide),
        hubness=_skewness(counts),
        largest_hub=float(counts.max() / (len(counts) - 1)) if len(counts) > 1 else 0.0,
        orphans=float((counts == 0).mean()) if len(counts) > 1 else 0.0,
        n_documents=len(sample),
    )


def _alignment(queries: Rows, documents: Rows, positives: npt.NDArray[np.int64]) -> float:
    if not len(positives):
        return 0.0
    total = 0.0
    for start in range(0, len(positives), _BLOCK):
        query_rows, document_rows = positives[start : start + _BLOCK].T
        apart = queries[query_rows].astype(np.float64) - documents[document_rows].astype(np.float64)
        total += float((apart**2).sum())
    return total / len(positives)


def _uniformity(documents: _Wide) -> float:
    n = len(documents)
    if n < 2:
        return 0.0
    # A document's distance to itself is 0 and would count as exp(0): each row's own term is taken out.
    total = sum(float(np.exp(-_UNIFORMITY_T * squares).sum()) - len(squares) for squares in _squared_distances(documents))
    return float(np.log(total / (n * (n - 1))))


def _squared_distances(documents: _Wide) -> Iterator[_Wide]:
    """(<= _BLOCK, n) squared distances of each block of documents to all; exactly 0 to oneself."""
    lengths = (documents**2).sum(axis=1)
    for start in range(0, len(documents), _BLOCK):
        rows = slice(start, start + _BLOCK)
        squares = lengths[rows, None] + lengths - 2 * documents[rows] @ documents.T
        here = np.arange(len(squares))
        squares[here, start + here] = 0.0
        yield squares


def _mean_cosine(documents: _Wide) -> float:
    """Mean inner product over pairs of unit rows: of all n² products, the sum's square, the n with oneself are no pairs."""
    n = len(documents)
    if n < 2:
        return 0.0
    together = documents.sum(axis=0)
    return float((together @ together - (documents**2).sum()) / (n * (n - 1)))


def _occurrences(documents: Rows) -> npt.NDArray[np.int64]:
    """(n,) in how many other documents' lists of the 10 nearest each document stands (N_10)."""
    n = len(documents)
    k = min(_NEIGHBOURS, n - 1)
    if k < 1:
        return np.zeros(n, np.int64)
    _, found = exact_search(documents, documents, k + 1)
    is_self = found == np.arange(n)[:, None]
    # Rounding can put a document's near double before itself, and even itself out of its own list; then the last one goes.
    is_self[~is_self.any(axis=1), -1] = True
    return np.bincount(found[~is_self], minlength=n)


def _skewness(counts: npt.NDArray[np.int64]) -> float:
    return float(stats.skew(counts)) if len(counts) and np.ptp(counts) else 0.0
