"""All that a report says of models on one evaluation set: measured one by one, then each held against the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.vectors.batch import Vectors
from ebr.data.vectors.exact_search import unit_rows
from ebr.model.encoder.encoder import COSINE, DOT
from ebr.retrieval.measures.changes import most_changed, slices_by_query_length
from ebr.retrieval.measures.compression import compress_table
from ebr.retrieval.measures.lexical import LexicalIndex, reciprocal_rank_fusion
from ebr.retrieval.measures.measurement import (
    Evaluation,
    TextEncoder,
    compare,
    evaluate_ranking,
    evaluate_vectors,
    search_depth,
)
from ebr.retrieval.measures.significance import wins_ties_losses
from ebr.retrieval.measures.space import measure_space, positive_pairs
from ebr.retrieval.measures.thresholds import calibrate
from ebr.retrieval.report.write import Contrast, DatasetReport, Measured

BM25 = "BM25"
_HEADLINE = "ndcg@10"
_ROUNDING = 1e-3


def measure_encoder(
    name: str, encode: TextEncoder, dataset: EvaluationSet, *, k: int, seed: int, facts: Mapping[str, Any]
) -> Measured:
    """One model on one set: its ranking, metrics and thresholds, the health of its space, what smaller vectors would cost."""
    queries = encode.encode_queries(dataset.queries)
    documents = encode.encode_documents(dataset.documents)
    evaluation = evaluate_vectors(queries, documents, dataset, k=k)
    unit = _are_unit(documents)
    compression = compress_table(queries, documents, dataset, k=k, unit=unit)
    if not unit:  # compared by inner product; the health of a space is told in angles
        queries, documents = unit_rows(queries), unit_rows(documents)
    space = measure_space(queries, documents, positive_pairs(dataset), seed=seed)
    thresholds = calibrate(evaluation, dataset, COSINE if unit else DOT)
    return Measured(name, evaluation, space, compression, dict(facts), thresholds)


def _are_unit(vectors: Vectors) -> bool:
    """Whether the rows are of length 1, as those of a model that compares by cosine are."""
    lengths = np.linalg.norm(vectors, axis=1)
    return bool(np.all((np.abs(lengths - 1) < _ROUNDING) | (lengths == 0)))


def report_on(
    dataset: EvaluationSet, measured: Sequence[Measured], *, k: int, seed: int, baselines: bool, facts: Mapping[str, Any]
) -> DatasetReport:
    """What was measured on one set, the first model held against each of the others.

    baselines: also rank by BM25 alone, and by BM25 and each model together.
    """
    rankings = {model.name: model.evaluation for model in measured}
    by_words = _baselines(dataset, rankings, k) if baselines else {}
    base = measured[0]
    return DatasetReport(
        name=dataset.name,
        facts={**dataset_facts(dataset), **facts},
        measured=list(measured),
        baselines={name: evaluation.means() for name, evaluation in by_words.items()},
        contrasts=[contrast(dataset, base, tuned, seed=seed) for tuned in measured[1:]],
        rankings=rankings | by_words,
    )


def contrast(dataset: EvaluationSet, base: Measured, tuned: Measured, *, seed: int) -> Contrast:
    """Base against tuned: which metrics changed and how surely, and which queries made the difference."""
    before, after = base.evaluation, tuned.evaluation
    worse, better = most_changed(dataset, before, after)
    return Contrast(
        base=base.name,
        tuned=tuned.name,
        comparison=compare(before, after, seed=seed),
        counts=wins_ties_losses(before.scores[_HEADLINE], after.scores[_HEADLINE]),
        worse=worse,
        better=better,
        slices=slices_by_query_length(dataset, before, after, seed=seed),
    )


def dataset_facts(dataset: EvaluationSet) -> dict[str, int]:
    """How much there is of everything, and what the files held beyond it."""
    return {
        "n_queries": len(dataset.queries),
        "n_documents": len(dataset.documents),
        "n_judgements": sum(map(len, dataset.qrels.values())),
        "n_unjudged_queries": dataset.n_unjudged_queries,
        "n_unknown_queries": dataset.n_unknown_queries,
        "n_missing_documents": dataset.n_missing_documents,
        "n_own_documents": dataset.n_own_documents,
    }


def _baselines(dataset: EvaluationSet, dense: Mapping[str, Evaluation], k: int) -> dict[str, Evaluation]:
    """BM25 alone, and fused with each model's ranking."""
    n_documents = len(dataset.documents)
    depth = min(search_depth(dataset, k), n_documents)
    similarities, rows = LexicalIndex(dataset.documents).search(dataset.queries, depth)
    found = {BM25: evaluate_ranking(rows, similarities, dataset, k=k)}
    places = _tie_places(dataset.doc_ids)
    lexical = _as_scored(found[BM25], places)
    for name, evaluation in dense.items():
        fused, fused_rows = reciprocal_rank_fusion([lexical, _as_scored(evaluation, places)], min(k, n_documents))
        found[f"{BM25} + {name}"] = evaluate_ranking(fused_rows, fused, dataset, k=k)
    return found


def _tie_places(doc_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """(N,) where each document stands when all are ordered by id, descending."""
    places = np.empty(len(doc_ids), np.int64)
    places[sorted(range(len(doc_ids)), key=doc_ids.__getitem__, reverse=True)] = np.arange(len(doc_ids))
    return places


def _as_scored(evaluation: Evaluation, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(Q, k) rows in the order that trec_eval scores: equal similarities by id, descending.

    A fusion of ranks would otherwise freeze ties in the order of the corpus, and gain or lose by it.
    """
    rows = evaluation.rows
    # An empty place (-1) has the similarity 0, which is more than a document's may be: it stands last whatever it has.
    order = np.lexsort((places[rows], -evaluation.similarities, rows < 0), axis=1)
    return np.take_along_axis(rows, order, axis=1)
