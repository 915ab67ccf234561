"""How well an encoder retrieves, and whether a tuned one does so better than its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ebr.data.evaluation_set import EvaluationSet
from ebr.retrieval.metrics import METRICS, Interval, Scores, paired_bootstrap, score_run
from ebr.retrieval.search import exact_search

HEADLINES = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@10": "Recall@10", "recall@100": "Recall@100"}
CONFIDENCE = 0.95
_DEEPEST_CUT = 100
_COLUMNS = "{:<10}  {:>6}  {:>6}  {:>10}  {}"


class TextEncoder(Protocol):
    """Texts → (n, D) float32 unit rows, in the order of the texts. Queries and documents may take different prompts."""

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, D) unit rows of n queries."""

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, D) unit rows of n documents."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one encoder on one evaluation set; `scores[metric]` is (Q,) float64 in the order of `query_ids`."""

    dataset: str
    query_ids: list[str]
    n_documents: int
    scores: dict[str, Scores]

    def mean(self, metric: str) -> float:
        """Mean of one of METRICS over the queries."""
        return float(self.scores[metric].mean())

    def means(self) -> dict[str, float]:
        """Mean of every metric over the queries, in the order of METRICS."""
        return {metric: self.mean(metric) for metric in METRICS}


def evaluate_encoder(encode: TextEncoder, dataset: EvaluationSet, *, k: int = 100) -> Evaluation:
    """Encode, search all documents exactly for the k best of each query, and score the ranking.

    Raises ValueError when k is below 100, the depth that Recall@100 needs; a larger k only deepens map.
    """
    if k < _DEEPEST_CUT:
        raise ValueError(f"k is {k}; recall@{_DEEPEST_CUT} needs at least {_DEEPEST_CUT}")
    scores, rows = exact_search(encode.encode_queries(dataset.queries), encode.encode_documents(dataset.documents), k)
    run = {
        query_id: {dataset.doc_ids[row]: score for row, score in zip(query_rows, query_scores, strict=True)}
        for query_id, query_rows, query_scores in zip(dataset.query_ids, rows.tolist(), scores.tolist(), strict=True)
    }
    return Evaluation(dataset.name, dataset.query_ids, len(dataset.doc_ids), score_run(run, dataset.qrels))


@dataclass(frozen=True)
class Change:
    """One metric before and after: the two means, and the difference with its interval."""

    metric: str
    base: float
    tuned: float
    interval: Interval


@dataclass(frozen=True)
class Comparison:
    """Base against tuned on the same queries, one Change for each headline metric."""

    dataset: str
    n_queries: int
    n_documents: int
    changes: tuple[Change, ...]

    def table(self) -> str:
        """Aligned text for people, closed by one line that says in words what became of nDCG@10."""
        header = _COLUMNS.format("metric", "base", "tuned", "difference", f"{CONFIDENCE:.0%} interval".replace("%", " %"))
        return "\n".join([header, *map(_table_row, self.changes), "", self.verdict()])

    def verdict(self) -> str:
        """Whether nDCG@10 rose, fell, or shows no clear difference, and on how many queries and documents."""
        interval = next(change.interval for change in self.changes if change.metric == "ndcg@10")
        if self.n_queries == 1:
            outcome = "nDCG@10 shows no clear difference: one query has no spread to judge it by"
        elif interval.low > 0:
            outcome = f"nDCG@10 rose by {interval.difference:.4f}: the interval lies above zero"
        elif interval.high < 0:
            outcome = f"nDCG@10 fell by {-interval.difference:.4f}: the interval lies below zero"
        else:
            outcome = "nDCG@10 shows no clear difference: the interval includes zero"
        return f"{outcome} ({_count(self.n_queries, 'query', 'queries')}, {_count(self.n_documents, 'document', 'documents')})."

    def to_json(self) -> dict[str, Any]:
        """Plain numbers: counts, confidence, and for each metric base, tuned, difference, low, high."""
        return {
            "dataset": self.dataset,
            "n_queries": self.n_queries,
            "n_documents": self.n_documents,
            "confidence": CONFIDENCE,
            "metrics": {change.metric: _plain_numbers(change) for change in self.changes},
        }


def compare(before: Evaluation, after: Evaluation, *, seed: int) -> Comparison:
    """Pair two evaluations query by query; the intervals are 95 % paired bootstraps.

    Raises ValueError when the two do not stand on the same queries and as many documents: such means cannot be compared.
    """
    if before.query_ids != after.query_ids or before.n_documents != after.n_documents:
        raise ValueError(f"'{before.dataset}' and '{after.dataset}' differ in queries or documents; evaluate both on one set")
    changes = tuple(_change(metric, before, after, seed) for metric in HEADLINES)
    return Comparison(after.dataset, len(after.query_ids), after.n_documents, changes)


def _change(metric: str, before: Evaluation, after: Evaluation, seed: int) -> Change:
    interval = paired_bootstrap(before.scores[metric], after.scores[metric], seed=seed, confidence=CONFIDENCE)
    return Change(metric, before.mean(metric), after.mean(metric), interval)


def _table_row(change: Change) -> str:
    interval = change.interval
    bounds = f"[{interval.low:+.4f}, {interval.high:+.4f}]"
    return _COLUMNS.format(
        HEADLINES[change.metric], f"{change.base:.4f}", f"{change.tuned:.4f}", f"{interval.difference:+.4f}", bounds
    )


def _plain_numbers(change: Change) -> dict[str, float]:
    interval = change.interval
    return {
        "base": change.base,
        "tuned": change.tuned,
        "difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
    }


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
