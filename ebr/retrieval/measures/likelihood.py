"""How likely the right answers are by a model's similarities: finer than any metric of ranks, as each of them counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.vectors.batch import Vectors
from ebr.retrieval.measures.metrics import Scores

_TEMPERATURES = tuple(0.2 / 1.6**place for place in range(12))
"""Of the cosine, down to 0.001."""


def log_likelihoods(queries: Vectors, documents: Vectors, dataset: EvaluationSet) -> Scores:
    """(Q,) nats: the mean log-probability of a query's right answers among all documents, by a softmax over similarities.

    queries, documents: (Q, D) and (N, D), whose inner product is the similarity. The softmax has the temperature that suits
    these vectors best, so that to spread all similarities alike is no gain (Guo et al. 2017, "On calibration of modern neural
    networks"). A query's own document is no candidate. It is the contrastive loss with all documents as candidates, its sign
    turned: higher is better. Raises ValueError for a query without a right answer among the documents.
    """
    row_of = {one: row for row, one in enumerate(dataset.doc_ids)}
    own_rows = dataset.own_rows()
    found = np.empty((len(dataset.queries), len(_TEMPERATURES)))
    # As wide as cosines are, whatever the length of the vectors.
    scale = _typical_length(queries) * _typical_length(documents)
    for place, query_id in enumerate(dataset.query_ids):
        similarities = (documents @ queries[place]).astype(np.float64) / scale
        right = [row_of[one] for one, grade in dataset.qrels[query_id].items() if grade > 0 and one in row_of]
        if not right:
            raise ValueError(f"query {query_id} has no right answer among the documents")
        answers = similarities[right]
        if own_rows[place] >= 0:
            similarities[own_rows[place]] = -np.inf
        for column, temperature in enumerate(_TEMPERATURES):
            found[place, column] = np.mean(answers) / temperature - logsumexp(similarities / temperature)
    best: npt.NDArray[np.float64] = found[:, int(np.argmax(found.mean(axis=0)))]
    return best


def _typical_length(vectors: Vectors) -> float:
    return max(float(np.sqrt(np.mean(np.square(vectors, dtype=np.float64).sum(axis=1)))), 1e-12)
