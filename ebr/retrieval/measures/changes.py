"""Which queries changed between two rankings, what each ranking found, and whether long queries fared as short ones did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ebr.data.evaluation.comparison import Interval
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.training.noise import words
from ebr.retrieval.measures.measurement import Evaluation
from ebr.retrieval.measures.significance import paired_bootstrap

_METRIC = "ndcg@10"
_SAME = 1e-9
_HITS_SHOWN = 5
_EXPECTED_SHOWN = 10
_FEWEST_TO_SLICE = 8
_QUARTILES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Hit:
    """A document that was found. rank: from 1. grade: None when nobody judged it."""

    rank: int
    doc_id: str
    text: str
    similarity: float
    grade: int | None


@dataclass(frozen=True)
class Expected:
    """A relevant document and its ranks from 1 in both rankings, None where it was not found.

    text: empty when the corpus lacks the document.
    """

    doc_id: str
    text: str
    grade: int
    rank_before: int | None
    rank_after: int | None


@dataclass(frozen=True)
class ChangedQuery:
    """A query with its nDCG@10 before and after, what both rankings found first, and what they should have found."""

    query_id: str
    text: str
    before: float
    after: float
    found_before: tuple[Hit, ...]
    found_after: tuple[Hit, ...]
    expected: tuple[Expected, ...]


@dataclass(frozen=True)
class Slice:
    """Mean nDCG@10 of a part of the queries, before and after, with the interval of the difference."""

    label: str
    n_queries: int
    base: float
    tuned: float
    interval: Interval


def most_changed(
    dataset: EvaluationSet, base: Evaluation, tuned: Evaluation, *, n: int = 20
) -> tuple[list[ChangedQuery], list[ChangedQuery]]:
    """The n queries whose nDCG@10 fell most, and the n whose rose most, the largest change first; ties in query order.

    Fewer where fewer changed by more than rounding. Of each, the first 5 documents found by both, and up to 10 relevant ones,
    the best grade first. Ranks count the rows of the evaluations: where scores tie, trec_eval may have seen another order.
    Raises ValueError when an evaluation has not the dataset's queries.
    """
    difference = _paired(dataset, tuned) - _paired(dataset, base)
    worse = [int(row) for row in np.argsort(difference, kind="stable")[:n] if difference[row] < -_SAME]
    better = [int(row) for row in np.argsort(-difference, kind="stable")[:n] if difference[row] > _SAME]
    row_of = _rows_of_judged(dataset, [*worse, *better])

    def described(row: int) -> ChangedQuery:
        return _changed_query(dataset, base, tuned, row, row_of)

    return list(map(described, worse)), list(map(described, better))


def slices_by_query_length(dataset: EvaluationSet, base: Evaluation, tuned: Evaluation, *, seed: int) -> list[Slice]:
    """Mean nDCG@10 of short to long queries, cut at the quartiles of the number of words; the interval is a paired bootstrap's.

    A Chinese word is one that the dictionary finds; punctuation is none. Queries of one length stay together, so there may be
    fewer than four slices; of fewer than 8 queries there is one.
    Raises ValueError when an evaluation has not the dataset's queries.
    """
    before, after = _paired(dataset, base), _paired(dataset, tuned)
    lengths = np.array([_n_words(query) for query in dataset.queries])
    # Each bound is a length that occurs, so no slice is empty.
    bounds = np.unique(np.quantile(lengths, _QUARTILES, method="inverted_cdf"))
    slice_of = np.searchsorted(bounds, lengths) if len(lengths) >= _FEWEST_TO_SLICE else np.zeros(len(lengths), np.int64)
    slices = []
    for place in np.unique(slice_of):
        inside = slice_of == place
        interval = paired_bootstrap(before[inside], after[inside], seed=seed)
        label = _length_label(int(lengths[inside].min()), int(lengths[inside].max()))
        slices.append(Slice(label, int(inside.sum()), float(before[inside].mean()), float(after[inside].mean()), interval))
    return slices


def _paired(dataset: EvaluationSet, evaluation: Evaluation) -> npt.NDArray[np.float64]:
    if evaluation.query_ids != dataset.query_ids:
        raise ValueError(f"the evaluation of '{evaluation.dataset}' has other queries than '{dataset.name}'; evaluate it anew")
    return evaluation.scores[_METRIC]


def _n_words(text: str) -> int:
    # Not lexical.segment: that gives the characters of a long Chinese word once more.
    return sum(any(map(str.isalnum, word)) for word in words(text))


def _length_label(fewest: int, most: int) -> str:
    if fewest < most:
        return f"{fewest}–{most} words"
    return f"{fewest} word" if fewest == 1 else f"{fewest} words"


def _rows_of_judged(dataset: EvaluationSet, query_rows: Sequence[int]) -> dict[str, int]:
    """Where the corpus holds the documents that are judged for these queries."""
    judged = {doc_id for row in query_rows for doc_id in dataset.qrels[dataset.query_ids[row]]}
    return {doc_id: row for row, doc_id in enumerate(dataset.doc_ids) if doc_id in judged}


def _changed_query(
    dataset: EvaluationSet, base: Evaluation, tuned: Evaluation, row: int, row_of: Mapping[str, int]
) -> ChangedQuery:
    query_id = dataset.query_ids[row]
    grades = dataset.qrels[query_id]
    before, after = _ranks(base.rows[row]), _ranks(tuned.rows[row])
    # sorted() is stable: equal grades stay in the order of the qrels.
    relevant = sorted((doc_id for doc_id, grade in grades.items() if grade > 0), key=lambda doc_id: -grades[doc_id])
    expected = []
    for doc_id in relevant[:_EXPECTED_SHOWN]:
        found = row_of.get(doc_id)
        text = "" if found is None else dataset.documents[found]
        ranks = (None, None) if found is None else (before.get(found), after.get(found))
        expected.append(Expected(doc_id, text, grades[doc_id], *ranks))
    return ChangedQuery(
        query_id=query_id,
        text=dataset.queries[row],
        before=float(base.scores[_METRIC][row]),
        after=float(tuned.scores[_METRIC][row]),
        found_before=_first_hits(dataset, base, row),
        found_after=_first_hits(dataset, tuned, row),
        expected=tuple(expected),
    )


def _ranks(rows: npt.NDArray[np.int64]) -> dict[int, int]:
    """Row of a document → its rank from 1; -1, which is nothing retrieved, has none."""
    return {row: rank for rank, row in enumerate(rows.tolist(), start=1) if row >= 0}


def _first_hits(dataset: EvaluationSet, evaluation: Evaluation, query_row: int) -> tuple[Hit, ...]:
    grades = dataset.qrels[dataset.query_ids[query_row]]
    rows = evaluation.rows[query_row, :_HITS_SHOWN].tolist()
    similarities = evaluation.similarities[query_row, :_HITS_SHOWN].tolist()
    return tuple(
        Hit(rank, dataset.doc_ids[row], dataset.documents[row], similarity, grades.get(dataset.doc_ids[row]))
        for rank, (row, similarity) in enumerate(zip(rows, similarities, strict=True), start=1)
        if row >= 0
    )
