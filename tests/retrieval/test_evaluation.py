import json
from dataclasses import replace

import numpy as np
import pytest

from ebr.data.evaluation.comparison import HEADLINES, Outcome
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.retrieval.measures.measurement import Evaluation, compare, evaluate_encoder, evaluate_ranking
from ebr.retrieval.measures.metrics import METRICS

VECTORS = {"east": (1, 0), "north": (0, 1), "north-east": (0.8, 0.6), "west": (-1, 0)}


class CompassEncoder:
    """Each text is a direction; queries may be turned around to make a bad encoder."""

    def __init__(self, query_sign=1):
        self.query_sign = query_sign

    def encode_queries(self, texts):
        return self.query_sign * self.encode_documents(texts)

    def encode_documents(self, texts):
        return np.array([VECTORS[text] for text in texts], np.float32)


DATASET = EvaluationSet(
    name="compass",
    query_ids=["qe", "qn"],
    queries=["east", "north"],
    doc_ids=["d-east", "d-ne", "d-west"],
    documents=["east", "north-east", "west"],
    qrels={"qe": {"d-ne": 1, "d-gone": 1}, "qn": {"d-ne": 2}},
    n_unjudged_queries=0,
    n_unknown_queries=0,
    n_missing_documents=1,
)


def evaluation(ndcg, n_documents=1234):
    ndcg = np.asarray(ndcg, np.float64)
    scores = dict.fromkeys(METRICS, np.full(len(ndcg), 0.5)) | {"ndcg@10": ndcg}
    nothing = np.empty((len(ndcg), 0))
    query_ids = [f"q{i}" for i in range(len(ndcg))]
    return Evaluation("toy", query_ids, n_documents, scores, nothing.astype(np.int64), nothing.astype(np.float32))


def test_a_ranking_is_scored_query_by_query():
    result = evaluate_encoder(CompassEncoder(), DATASET)
    # East finds d-ne at rank 2 and never finds d-gone; north finds d-ne at rank 1.
    assert result.scores["mrr@10"].tolist() == [0.5, 1]
    assert result.scores["recall@10"].tolist() == [0.5, 1]
    assert result.mean("mrr@10") == 0.75
    assert result.means()["recall@1"] == 0.5
    assert tuple(result.means()) == (*METRICS, "unjudged@10")
    # East has one judged document among its three, north too.
    assert result.mean("unjudged@10") == pytest.approx(2 / 3)
    # East: itself, north-east, west; north: north-east, then east and west, which tie, the lower row first.
    assert result.rows.tolist() == [[0, 1, 2], [1, 0, 2]]
    assert result.similarities[0].tolist() == pytest.approx([1, 0.8, -1])
    assert (result.dataset, result.query_ids, result.n_documents) == ("compass", ["qe", "qn"], 3)


def test_queries_and_documents_go_through_their_own_encoders():
    turned = evaluate_encoder(CompassEncoder(query_sign=-1), DATASET)
    assert turned.scores["mrr@10"].tolist() == [0.5, pytest.approx(1 / 3)]


def test_metrics_that_look_deeper_than_the_search_are_left_out():
    shallow = evaluate_encoder(CompassEncoder(), DATASET, k=99)
    assert tuple(shallow.means()) == (*(metric for metric in METRICS if metric != "recall@100"), "unjudged@10")


def test_a_ranking_may_come_from_anywhere_and_may_lack_documents():
    rows = np.array([[1, -1, -1], [-1, -1, -1]])
    result = evaluate_ranking(rows, np.array([[0.5, 0, 0], [0, 0, 0]], np.float32), DATASET, k=100)
    assert result.scores["recall@10"].tolist() == [0.5, 0]
    assert result.scores["unjudged@10"].tolist() == [0, 0]


def test_a_comparison_holds_both_means_and_the_difference_of_every_metric():
    comparison = compare(evaluation([0.2, 0.4, 0.6]), evaluation([0.3, 0.4, 0.8]), seed=0)
    assert [change.metric for change in comparison.changes] == list(METRICS)
    ndcg = comparison.changes[0]
    assert (ndcg.base, ndcg.tuned) == (pytest.approx(0.4), pytest.approx(0.5))
    assert ndcg.interval.difference == pytest.approx(0.1)
    # Of the 27 resamples of the gains 0.1, 0, 0.2 one is all 0 and one all 0.2, each likelier than 2.5 %.
    assert (ndcg.interval.low, ndcg.interval.high) == (pytest.approx(0), pytest.approx(0.2))
    assert comparison.change("mrr@10").interval == replace(ndcg.interval, difference=0.0, low=0.0, high=0.0)
    # Of the 8 ways to sign 0.1, 0 and 0.2, the four with both gains on one side are as extreme; six metrics make it 1.
    assert (ndcg.p, ndcg.p_holm, comparison.change("mrr@10").p) == (pytest.approx(0.5), 1, 1)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.1, "nDCG@10 rose by 0.1000: the interval lies above zero"),
        (-0.1, "nDCG@10 fell by 0.1000: the interval lies below zero"),
        (0.001, "nDCG@10 shows no clear difference: the interval includes zero"),
        (-0.001, "nDCG@10 shows no clear difference: the interval includes zero"),
    ],
)
def test_the_last_line_of_the_table_says_in_words_what_happened(gain, words):
    before = np.linspace(0.2, 0.8, 40)
    wobble = np.tile([0.05, -0.05], 20)
    comparison = compare(evaluation(before), evaluation(before + gain + wobble), seed=0)
    assert comparison.table().split("\n")[-1] == f"{words} (40 queries, 1,234 documents)."


def test_an_interval_that_excludes_zero_proves_nothing_on_few_queries():
    comparison = compare(evaluation([0.1, 0.2, 0.3]), evaluation([0.5, 0.5, 0.9]), seed=0)
    change = comparison.change("ndcg@10")
    # Two of the eight ways to sign three gains are as extreme.
    assert change.interval.low > 0 and change.p == pytest.approx(0.25)
    assert change.outcome is Outcome.UNCLEAR
    assert comparison.verdict().startswith("nDCG@10 shows no clear difference: chance alone does as much with p = 0.25 (3")


def test_one_query_proves_nothing():
    comparison = compare(evaluation([0.1]), evaluation([0.9], n_documents=1234), seed=0)
    assert comparison.verdict().startswith("nDCG@10 shows no clear difference: one query")
    assert comparison.verdict().endswith("(1 query, 1,234 documents).")


def test_the_table_is_aligned_and_shows_four_digits():
    lines = compare(evaluation([0.25, 0.5]), evaluation([0.5, 0.75]), seed=0).table().split("\n")
    assert lines[:3] == [
        "metric        base   tuned  difference  95 % interval            p",
        "nDCG@10     0.3750  0.6250     +0.2500  [+0.2500, +0.2500]  0.5000",
        "MRR@10      0.5000  0.5000     +0.0000  [+0.0000, +0.0000]  1.0000",
    ]
    assert [line.split()[0] for line in lines[1:5]] == list(HEADLINES.values())


def test_the_same_seed_gives_the_same_comparison():
    rng = np.random.default_rng(0)
    before, after = evaluation(rng.random(30)), evaluation(rng.random(30))
    assert compare(before, after, seed=7) == compare(before, after, seed=7)
    assert compare(before, after, seed=7) != compare(before, after, seed=8)


def test_json_holds_plain_numbers_that_survive_a_round_trip():
    comparison = compare(evaluation([0.25, 0.5]), evaluation([0.5, 0.75]), seed=0)
    record = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert record == comparison.to_json()
    assert (record["dataset"], record["n_queries"], record["n_documents"], record["confidence"]) == ("toy", 2, 1234, 0.95)
    change = {"base": 0.375, "tuned": 0.625, "difference": 0.25, "low": 0.25, "high": 0.25, "p": 0.5, "p_holm": 1.0}
    change["outcome"] = "unclear"
    assert record["metrics"]["ndcg@10"] == pytest.approx(change)


@pytest.mark.parametrize("other", [evaluation([0.1, 0.2]), evaluation([0.1], n_documents=9)])
def test_evaluations_of_different_sets_are_not_compared(other):
    with pytest.raises(ValueError, match="differ in queries or documents"):
        compare(evaluation([0.1]), other, seed=0)
