"""How good a ranking is, in trec_eval's own numbers, and how sure one may be that another is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytrec_eval
from scipy import stats

Scores = npt.NDArray[np.float64]
Run = Mapping[str, Mapping[str, float]]

_MRR_CUT = 10
# Our name → trec_eval's. recip_rank knows no cut: it is taken from runs that were cut before.
_TREC_NAMES = {
    "ndcg@10": "ndcg_cut_10",
    "mrr@10": "recip_rank",
    "recall@1": "recall_1",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "map": "map",
}
METRICS = tuple(_TREC_NAMES)
_RESAMPLED_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A mean difference over n queries, and the confidence interval [low, high] around it."""

    difference: float
    low: float
    high: float
    n: int


def score_run(run: Run, qrels: Mapping[str, Mapping[str, int]]) -> dict[str, Scores]:
    """Each of METRICS for each query of `qrels`, in its order: arrays of (Q,) float64 between 0 and 1.

    run: query id → document id → score; equal scores rank by document id, descending, as in trec_eval. A query that is absent
    from the run scores 0, and so does a relevant document. nDCG uses the grade itself as gain (linear, Järvelin and Kekäläinen
    2002); every other metric counts a grade of 1 or more as relevant. map sees no deeper than the run.
    Raises ValueError when a query has no positive grade: no metric is defined for it.
    """
    # Not only a matter of taste: pytrec_eval versions differ on empty qrels, and some then misjudge the queries after them.
    hopeless = [query_id for query_id, grades in qrels.items() if max(grades.values(), default=0) < 1]
    if hopeless:
        raise ValueError(
            f"queries without a positive grade: {len(hopeless)}, such as '{hopeless[0]}'; leave them out of the qrels"
        )
    full = {query_id: _plain(run.get(query_id, {})) for query_id in qrels}
    cut = {query_id: _best(ranking, _MRR_CUT) for query_id, ranking in full.items()}
    judgements = {query_id: dict(grades) for query_id, grades in qrels.items()}
    measured = pytrec_eval.RelevanceEvaluator(judgements, {"ndcg_cut.10", "recall.1,10,100", "map"}).evaluate(full)
    measured_cut = pytrec_eval.RelevanceEvaluator(judgements, {"recip_rank"}).evaluate(cut)
    return {
        name: np.array([{**measured[query_id], **measured_cut[query_id]}[trec_name] for query_id in qrels], np.float64)
        for name, trec_name in _TREC_NAMES.items()
    }


def paired_bootstrap(
    before: Scores, after: Scores, *, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Mean of after - before over the same queries, with its percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13).

    before, after: (Q,), row i of both is the same query. Queries are resampled, their pairs stay together. When every query
    changes by the same amount, one query included, there is no spread to resample and the interval has no width.
    Raises ValueError when the shapes disagree or are empty.
    """
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise ValueError(f"paired scores must be two vectors of the same length, not {before.shape} and {after.shape}")
    differences = after - before
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        same = float(differences[0])
        return Interval(same, same, same, len(differences))
    bounds = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _RESAMPLED_AT_ONCE // len(differences)),  # all at once would take resamples x queries x 8 bytes
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(bounds.low), float(bounds.high), len(differences))


def _plain(ranking: Mapping[str, Any]) -> dict[str, float]:
    # pytrec_eval takes python floats only; every float32 is one exactly, so the order stays.
    return {doc_id: float(score) for doc_id, score in ranking.items()}


def _best(ranking: dict[str, float], n: int) -> dict[str, float]:
    """Cut a ranking to its first n in trec_eval's order: by score, then by document id, both descending."""
    ordered = sorted(ranking.items(), key=lambda item: (item[1], item[0]), reverse=True)
    return dict(ordered[:n])
