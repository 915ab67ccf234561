"""How good a ranking is, in trec_eval's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytrec_eval

Scores = npt.NDArray[np.float64]
Run = Mapping[str, Mapping[str, float]]

_MRR_CUT = 10
# Our name → trec_eval's, and how deep a ranking it needs. recip_rank knows no cut: it is taken from runs that were cut before.
_TREC_NAMES = {
    "ndcg@10": "ndcg_cut_10",
    "mrr@10": "recip_rank",
    "recall@1": "recall_1",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "map": "map",
}
_CUT_BEFORE = "mrr@10"
# What to ask trec_eval for; it takes all cuts of one measure at once.
_TREC_ASKED = {
    name: {"ndcg": "ndcg_cut.10", "reca": "recall.1,10,100", "map": "map", "mrr@": "recip_rank"}[name[:4]]
    for name in _TREC_NAMES
}
_HIGHEST_GRADE = 1000
_DEPTHS = {"ndcg@10": 10, "mrr@10": 10, "recall@1": 1, "recall@10": 10, "recall@100": 100, "map": 10}
METRICS = tuple(_TREC_NAMES)


def score_run(run: Run, qrels: Mapping[str, Mapping[str, int]], metrics: Sequence[str] = METRICS) -> dict[str, Scores]:
    """Each of `metrics` for each query of `qrels`, in its order: arrays of (Q,) float64 between 0 and 1.

    run: query id → document id → score; scores that are equal as float32 rank by document id, descending, as in trec_eval. A
    query that is absent from the run scores 0, and so does a relevant document. nDCG uses the grade itself as gain (linear,
    Järvelin and Kekäläinen 2002); a negative grade counts as 0. Every other metric counts a grade of 1 or more as relevant.
    map sees no deeper than the run.
    Raises ValueError when there is no query, when a query has no positive grade (no metric is defined for it), when a grade
    lies beyond ±1000, or when a metric is not one of METRICS.
    """
    unknown = [name for name in metrics if name not in _TREC_NAMES]
    if unknown:
        raise ValueError(f"'{unknown[0]}' is not a metric; known are {', '.join(METRICS)}")
    if any(abs(grade) > _HIGHEST_GRADE for grades in qrels.values() for grade in grades.values()):
        raise ValueError(f"a grade lies beyond ±{_HIGHEST_GRADE}; trec_eval keeps a counter for each and overflows")
    if not qrels:
        raise ValueError("no query to score: the qrels are empty")
    # Not only a matter of taste: pytrec_eval versions differ on empty qrels, and some then misjudge the queries after them.
    hopeless = [query_id for query_id, grades in qrels.items() if max(grades.values(), default=0) < 1]
    if hopeless:
        raise ValueError(
            f"queries without a positive grade: {len(hopeless)}, such as '{hopeless[0]}'; leave them out of the qrels"
        )
    full = {query_id: _plain(run.get(query_id, {})) for query_id in qrels}
    judgements = {query_id: dict(grades) for query_id, grades in qrels.items()}
    asked = {_TREC_ASKED[name] for name in metrics if name != _CUT_BEFORE}
    runs = [(asked, full)]
    if _CUT_BEFORE in metrics:
        cut = {query_id: _best(ranking, _MRR_CUT) for query_id, ranking in full.items()}
        runs.append(({_TREC_ASKED[_CUT_BEFORE]}, cut))
    measured: dict[str, dict[str, float]] = {query_id: {} for query_id in qrels}
    for names, rankings in runs:
        for query_id, values in pytrec_eval.RelevanceEvaluator(judgements, names).evaluate(rankings).items() if names else ():
            measured[query_id] |= values
    return {name: np.array([measured[query_id][_TREC_NAMES[name]] for query_id in qrels], np.float64) for name in metrics}


def metrics_within(k: int) -> tuple[str, ...]:
    """Those of METRICS that a ranking of the k best documents allows, in their order; map needs 10, and sees no deeper than k.

    Raises ValueError when k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return tuple(name for name, depth in _DEPTHS.items() if depth <= k)


def unjudged_share(run: Run, qrels: Mapping[str, Mapping[str, int]], cut: int = 10) -> Scores:
    """Share of each query's first `cut` results that nobody judged: (Q,) float64 in the order of `qrels`.

    Every grade is a judgement, 0 and negative ones too. Fewer results than `cut` are a share of those; no results give 0. A
    high share says that the other metrics may be too low: a good answer that nobody looked at counts as a bad one.
    Raises ValueError when cut is below 1.
    """
    if cut < 1:
        raise ValueError(f"cut must be at least 1, not {cut}")
    shares = []
    for query_id, grades in qrels.items():
        found = _best(_plain(run.get(query_id, {})), cut)
        shares.append(sum(doc_id not in grades for doc_id in found) / max(1, len(found)))
    return np.array(shares, np.float64)


def _plain(ranking: Mapping[str, Any]) -> dict[str, float]:
    # pytrec_eval takes python floats only, and compares them as float32: what ties there must tie in our own cuts.
    return dict(zip(ranking, np.fromiter(ranking.values(), np.float32, len(ranking)).tolist(), strict=True))


def _best(ranking: dict[str, float], n: int) -> dict[str, float]:
    """Cut a ranking to its first n in trec_eval's order: by score, then by document id, both descending."""
    ordered = sorted(ranking.items(), key=lambda item: (item[1], item[0]), reverse=True)
    return dict(ordered[:n])
