import math
import warnings

import numpy as np
import pytest

from ebr.retrieval.metrics import METRICS, paired_bootstrap, score_run


def ranking(*doc_ids):
    """A run in which the documents stand in the order given."""
    return {doc_id: float(-rank) for rank, doc_id in enumerate(doc_ids)}


def score_one(run, grades):
    return {metric: values.item() for metric, values in score_run({"q": run}, {"q": grades}).items()}


def test_ndcg_takes_the_grade_itself_as_gain():
    # Ranks 1, 2, 3 hold grades 1, 0, 3; at best they would hold 3, 1.
    found = 1 / math.log2(2) + 3 / math.log2(4)
    best = 3 / math.log2(2) + 1 / math.log2(3)
    assert score_one(ranking("c", "x", "a"), {"a": 3, "c": 1, "x": 0})["ndcg@10"] == pytest.approx(found / best)


def test_every_metric_of_one_ranking_by_hand():
    # Relevant: a at rank 2, b at rank 4, and c that is not retrieved.
    scores = score_one(ranking("x", "a", "y", "b"), {"a": 1, "b": 1, "c": 1, "x": 0})
    assert tuple(scores) == METRICS
    assert scores == {
        "ndcg@10": pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / math.log2(4))),
        "mrr@10": pytest.approx(1 / 2),
        "recall@1": 0,
        "recall@10": pytest.approx(2 / 3),
        "recall@100": pytest.approx(2 / 3),
        "map": pytest.approx((1 / 2 + 2 / 4) / 3),
    }


@pytest.mark.parametrize(("rank", "mrr", "recall_10", "recall_100"), [(10, 0.1, 1, 1), (11, 0, 0, 1), (101, 0, 0, 0)])
def test_cuts_include_their_last_rank_and_nothing_beyond(rank, mrr, recall_10, recall_100):
    others = [f"x{i}" for i in range(150)]
    scores = score_one(ranking(*others[: rank - 1], "a", *others[rank - 1 :]), {"a": 1})
    assert (scores["mrr@10"], scores["recall@10"], scores["recall@100"]) == (pytest.approx(mrr), recall_10, recall_100)
    assert scores["map"] == pytest.approx(1 / rank)


def test_equal_scores_rank_by_document_id_descending_in_every_metric():
    run = {f"d{i:02}": 1.0 for i in range(11)}
    assert score_one(run, {"d10": 1})["mrr@10"] == 1
    assert score_one(run, {"d01": 1})["mrr@10"] == pytest.approx(1 / 10)
    last = score_one(run, {"d00": 1})
    assert (last["mrr@10"], last["ndcg@10"], last["map"]) == (0, 0, pytest.approx(1 / 11))


def test_neighbouring_float32_scores_keep_their_order():
    low = np.float32(0.7)
    run = {"z": low, "a": np.nextafter(low, np.float32(1))}
    assert score_one(run, {"a": 1})["mrr@10"] == 1


def test_values_follow_the_order_of_the_qrels_and_an_unanswered_query_scores_zero():
    run = {"q3": ranking("b", "a"), "q1": ranking("a"), "unasked": ranking("a"), "q0": {}}
    qrels = {query_id: {"a": 1} for query_id in ("q1", "q2", "q3", "q0")}
    assert score_run(run, qrels)["mrr@10"].tolist() == [1, 0, 0.5, 0]


@pytest.mark.parametrize("grades", [{}, {"a": 0}, {"a": -1}])
def test_a_query_without_a_positive_grade_is_refused(grades):
    with pytest.raises(ValueError, match="without a positive grade: 1, such as 'hollow'"):
        score_run({}, {"q": {"a": 1}, "hollow": grades})


def test_identical_scores_give_exactly_zero_without_a_warning():
    scores = np.random.default_rng(0).random(50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = paired_bootstrap(scores, scores.copy(), seed=0)
    assert (interval.difference, interval.low, interval.high, interval.n) == (0, 0, 0, 50)


@pytest.mark.parametrize("n", [1, 3])
def test_the_same_gain_for_every_query_has_no_width_at_all(n):
    # Means of three times 0.1 are off by one bit, which would leave a width.
    interval = paired_bootstrap(np.zeros(n), np.full(n, 0.1), seed=0)
    assert (interval.difference, interval.low, interval.high, interval.n) == (0.1, 0.1, 0.1, n)


def test_a_planted_improvement_lies_above_zero_and_its_reverse_below():
    rng = np.random.default_rng(3)
    before = rng.random(200)
    after = before + rng.normal(0.1, 0.2, size=200)
    gain, loss = paired_bootstrap(before, after, seed=0), paired_bootstrap(after, before, seed=0)
    assert 0 < gain.low < gain.difference < gain.high
    assert loss.low < loss.difference < loss.high < 0
    # A mean of 200 differences of deviation 0.2 has a standard error of 0.2 / sqrt(200); the interval spans 2 x 1.96 of it.
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * 0.2 / math.sqrt(200), rel=0.15)


def test_pairs_stay_together():
    # Queries differ far more from each other than the two systems do: unpaired, such a gain would drown.
    rng = np.random.default_rng(4)
    before = rng.random(100)
    assert paired_bootstrap(before, before + rng.normal(0.01, 0.01, size=100), seed=0).low > 0


def test_noise_around_zero_includes_zero():
    rng = np.random.default_rng(5)
    before = rng.random(200)
    interval = paired_bootstrap(before, before + rng.normal(0, 0.2, size=200), seed=0)
    assert interval.low < 0 < interval.high


def test_the_seed_decides_and_the_confidence_widens():
    rng = np.random.default_rng(6)
    before, after = rng.random(60), rng.random(60)
    first = paired_bootstrap(before, after, seed=1)
    assert paired_bootstrap(before, after, seed=1) == first
    assert paired_bootstrap(before, after, seed=2) != first
    narrow = paired_bootstrap(before, after, seed=1, confidence=0.5)
    assert first.low < narrow.low < narrow.high < first.high


@pytest.mark.parametrize(("before", "after"), [([1.0], [1.0, 2.0]), ([], []), ([[1.0]], [[1.0]])])
def test_scores_that_are_not_paired_are_refused(before, after):
    with pytest.raises(ValueError, match="paired scores"):
        paired_bootstrap(np.array(before), np.array(after), seed=0)
