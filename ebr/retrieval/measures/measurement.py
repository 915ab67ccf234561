"""How well an encoder retrieves, and whether a tuned one does so better than its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ebr.data.evaluation.comparison import CONFIDENCE, HEADLINES, Change, Comparison, Interval
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.result_tables import DataFrame, Table
from ebr.data.vectors.batch import Vectors
from ebr.data.vectors.exact_search import exact_search
from ebr.retrieval.measures.metrics import METRICS, Scores, metrics_within, score_run, unjudged_share
from ebr.retrieval.measures.significance import holm, paired_bootstrap, randomization_test

UNJUDGED = "unjudged@10"
"""The metric that is no quality: which share of the first ten nobody has judged."""


class TextEncoder(Protocol):
    """Texts → (n, D) float32, in the order of the texts, whose inner product is their similarity: unit rows for the cosine.

    Queries and documents may take different prompts.
    """

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, D) rows of n queries."""

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, D) rows of n documents."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one way of ranking gave for the Q queries of an evaluation set, in the order of `query_ids`."""

    dataset: str
    query_ids: list[str]
    n_documents: int
    scores: dict[str, Scores] = field(repr=False)
    """By metric, (Q,) float64: those of METRICS that k is deep enough for, UNJUDGED, and what else was measured."""
    rows: npt.NDArray[np.int64] = field(repr=False)
    """(Q, k) rows of the documents, best first; -1 where fewer were retrieved."""
    similarities: npt.NDArray[np.float32] = field(repr=False)
    """(Q, k) what the documents were ranked by; 0 where none was retrieved."""
    n_own_documents: int = 0
    """Queries whose ranking leaves out the document under their own id: see EvaluationSet.own_rows."""
    queries: Sequence[str] = field(default=(), repr=False)
    """Q texts; none for an evaluation made without them."""

    @property
    def per_query(self) -> Table:
        """A row for each query: its id, its text, and every metric."""
        return Table({**_queries(self), **{name: of.tolist() for name, of in self.scores.items()}})

    def to_frame(self) -> DataFrame:
        """per_query as a DataFrame."""
        return self.per_query.to_frame()

    def mean(self, metric: str) -> float:
        """Mean of one metric over the queries."""
        return float(self.scores[metric].mean())

    def means(self) -> dict[str, float]:
        """Mean of every metric over the queries, in the order of METRICS."""
        return {metric: self.mean(metric) for metric in self.scores}


def evaluate_encoder(encode: TextEncoder, dataset: EvaluationSet, *, k: int = 100) -> Evaluation:
    """Encode, search all documents exactly for the k best of each query, and score the ranking."""
    return evaluate_vectors(encode.encode_queries(dataset.queries), encode.encode_documents(dataset.documents), dataset, k=k)


def evaluate_vectors(queries: Vectors, documents: Vectors, dataset: EvaluationSet, *, k: int = 100) -> Evaluation:
    """Search all documents exactly for the k best of each query, and score the ranking.

    queries: (Q, D), documents: (N, D), in the order of the dataset; a memory map of the documents is read block by block.
    """
    similarities, rows = exact_search(queries, documents, search_depth(dataset, k))
    return evaluate_ranking(rows, similarities, dataset, k=k)


def evaluate_ranking(
    rows: npt.NDArray[np.int64], similarities: npt.NDArray[np.float32], dataset: EvaluationSet, *, k: int
) -> Evaluation:
    """Score a ranking, however it was made.

    rows, similarities: (Q, any depth), best first, as in Evaluation; search_depth says how many to look for. k: how many count,
    without each query's own document; metrics that look deeper are left out.
    """
    own_rows = dataset.own_rows()
    rows, similarities = without_own_documents(rows, similarities, own_rows, k)
    run = as_run(dataset.query_ids, dataset.doc_ids, rows, similarities)
    scores = score_run(run, dataset.qrels, metrics_within(k)) | {UNJUDGED: unjudged_share(run, dataset.qrels)}
    return Evaluation(
        dataset.name,
        dataset.query_ids,
        len(dataset.doc_ids),
        scores,
        rows,
        similarities,
        int((own_rows >= 0).sum()),
        dataset.queries,
    )


def search_depth(dataset: EvaluationSet, k: int) -> int:
    """How many documents to look for so that k are left without each query's own."""
    return k + bool(dataset.n_own_documents)


def without_own_documents(
    rows: npt.NDArray[np.int64], similarities: npt.NDArray[np.float32], own_rows: npt.NDArray[np.int64], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k best of a (Q, any depth) ranking less each query's own document; -1 and 0 at the end where fewer are left.

    own_rows: (Q,) as EvaluationSet.own_rows gives them.
    """
    is_own = (rows == own_rows[:, None]) & (rows >= 0)
    order = np.argsort(is_own, axis=1, kind="stable")[:, :k]
    left = np.where(is_own, -1, rows), np.where(is_own, np.float32(0), similarities)
    return np.take_along_axis(left[0], order, axis=1), np.take_along_axis(left[1], order, axis=1)


def as_run(
    query_ids: Sequence[str], doc_ids: Sequence[str], rows: npt.NDArray[np.int64], similarities: npt.NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    """A (Q, k) ranking as score_run takes it: query id → document id → score; row -1 is no document."""
    return {
        query_id: {doc_ids[row]: score for row, score in zip(query_rows, query_scores, strict=True) if row >= 0}
        for query_id, query_rows, query_scores in zip(query_ids, rows.tolist(), similarities.tolist(), strict=True)
    }


def compare(before: Evaluation, after: Evaluation, *, seed: int) -> Comparison:
    """Pair two evaluations query by query: 95 % paired bootstraps, and p-values corrected for the number of metrics.

    Raises ValueError when the two do not stand on the same queries and as many documents, ranked for as many queries without
    their own document: such means cannot be compared.
    """
    if before.query_ids != after.query_ids or before.n_documents != after.n_documents:
        raise ValueError(f"'{before.dataset}' and '{after.dataset}' differ in queries or documents; evaluate both on one set")
    if before.n_own_documents != after.n_own_documents:
        raise ValueError(f"the judgements of '{before.dataset}' are not those of '{after.dataset}'; evaluate both on one set")
    metrics = [metric for metric in METRICS if metric in before.scores and metric in after.scores]
    pairs = [(before.scores[metric], after.scores[metric]) for metric in metrics]
    p_values = [randomization_test(base, tuned, seed=seed) for base, tuned in pairs]
    changes = tuple(
        Change(metric, float(base.mean()), float(tuned.mean()), _interval(base, tuned, seed), p, p_holm)
        for metric, (base, tuned), p, p_holm in zip(metrics, pairs, p_values, holm(p_values), strict=True)
    )
    return Comparison(after.dataset, len(after.query_ids), after.n_documents, changes, _side_by_side(before, after))


def _side_by_side(before: Evaluation, after: Evaluation) -> Table:
    found = {"base": before.scores, "tuned": after.scores}
    names = [name for name in HEADLINES if name in before.scores and name in after.scores]
    pairs = {f"{name}_{which}": scores[name].tolist() for name in names for which, scores in found.items()}
    return Table({**_queries(after), **pairs})


def _queries(evaluation: Evaluation) -> dict[str, Sequence[str]]:
    texts = {"query": evaluation.queries} if evaluation.queries else {}
    return {"query_id": evaluation.query_ids, **texts}


def _interval(base: Scores, tuned: Scores, seed: int) -> Interval:
    return paired_bootstrap(base, tuned, seed=seed, confidence=CONFIDENCE)
