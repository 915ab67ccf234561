"""From which similarity on the hits of a search are precise enough."""

from __future__ import annotations

import numpy as np

from ebr.data.evaluation.calibration import PRECISIONS, Calibration, OperatingPoint
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.retrieval.measures.measurement import Evaluation
from ebr.retrieval.measures.space import positive_pairs


def calibrate(evaluation: Evaluation, dataset: EvaluationSet, similarity: str) -> Calibration:
    """The lowest similarity at which each of PRECISIONS is reached, and the recall that it leaves.

    The (Q, k) documents found for all queries are judged together: precision at a threshold is the share of those at or above
    it that are relevant (a positive grade; what nobody judged counts as not relevant), recall the share of all relevant
    documents, found or not. Every similarity that was found is a threshold, as in scikit-learn's precision_recall_curve, and
    nothing between them; of those that reach a precision the one with the highest recall is taken.
    similarity: what the ranking is by.
    """
    n_documents = len(dataset.doc_ids)
    found = evaluation.rows >= 0
    places = evaluation.rows + n_documents * np.arange(len(evaluation.rows))[:, None]
    relevant_places = [query_row * n_documents + row for query_row, row in positive_pairs(dataset)]
    is_relevant = np.isin(places, relevant_places)[found]
    scores = evaluation.similarities[found]
    order = np.argsort(-scores, kind="stable")
    scores, n_relevant = scores[order], np.cumsum(is_relevant[order])
    # A threshold takes all hits of one similarity: the last of them.
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.empty(0, np.int64)
    precisions = n_relevant[ends] / (ends + 1)
    n_all = sum(grade > 0 for grades in dataset.qrels.values() for grade in grades.values())

    def point(precision: float) -> OperatingPoint:
        enough = ends[precisions >= precision]
        if not enough.size:
            return OperatingPoint(precision, None, None, None)
        last = int(enough[-1])
        return OperatingPoint(precision, float(scores[last]), float(n_relevant[last] / n_all), last + 1)

    return Calibration(dataset.name, similarity, evaluation.rows.shape[1], tuple(map(point, PRECISIONS)))
