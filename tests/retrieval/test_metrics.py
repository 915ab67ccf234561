import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.data.evaluation.trec_runs import write_run
from ebr.retrieval.measures.metrics import METRICS, metrics_within, score_run, unjudged_share
from tests.trec import read_run


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


def test_scores_that_are_equal_as_float32_tie_in_every_metric():
    # In double precision a is ahead of ten others; trec_eval keeps floats, so it goes last, by its name.
    run = {"a": 0.7 + 1e-12, **{f"b{i}": 0.7 for i in range(10)}}
    scores = score_one(run, {"a": 1})
    assert (scores["recall@1"], scores["mrr@10"], scores["recall@10"], scores["map"]) == (0, 0, 0, pytest.approx(1 / 11))
    assert unjudged_share({"q": run}, {"q": {"a": 1}}).tolist() == [1]


def test_a_negative_grade_gains_and_counts_nothing():
    # a (grade 2) at rank 2, behind x (grade -2): its gain is not lowered, and x is not relevant.
    scores = score_one(ranking("x", "a"), {"a": 2, "x": -2})
    assert scores["ndcg@10"] == pytest.approx(1 / math.log2(3))
    assert (scores["recall@10"], scores["map"], scores["mrr@10"]) == (1, 0.5, 0.5)


def test_grades_beyond_the_cut_still_make_the_ideal_ranking():
    # Twelve documents of grade 1 and nothing found but one: the ideal ten are summed, recall is of twelve.
    scores = score_one(ranking("d0"), {f"d{i}": 1 for i in range(12)})
    assert scores["ndcg@10"] == pytest.approx(1 / sum(1 / math.log2(rank + 1) for rank in range(1, 11)))
    assert scores["recall@10"] == pytest.approx(1 / 12)


def test_values_follow_the_order_of_the_qrels_and_an_unanswered_query_scores_zero():
    run = {"q3": ranking("b", "a"), "q1": ranking("a"), "unasked": ranking("a"), "q0": {}}
    qrels = {query_id: {"a": 1} for query_id in ("q1", "q2", "q3", "q0")}
    assert score_run(run, qrels)["mrr@10"].tolist() == [1, 0, 0.5, 0]


@pytest.mark.parametrize("grades", [{}, {"a": 0}, {"a": -1}])
def test_a_query_without_a_positive_grade_is_refused(grades):
    with pytest.raises(ValueError, match="without a positive grade: 1, such as 'hollow'"):
        score_run({}, {"q": {"a": 1}, "hollow": grades})


def test_empty_qrels_are_refused():
    with pytest.raises(ValueError, match="the qrels are empty"):
        score_run({"q": ranking("a")}, {})


def test_only_the_metrics_asked_for_come_in_the_order_asked():
    run, qrels = {"q": ranking("x", "a")}, {"q": {"a": 1}}
    assert list(score_run(run, qrels, ("map", "ndcg@10"))) == ["map", "ndcg@10"]
    assert score_run(run, qrels, ("map",))["map"].item() == 0.5
    with pytest.raises(ValueError, match=r"'ndcg@5' is not a metric; known are ndcg@10, mrr@10"):
        score_run(run, qrels, ("ndcg@5",))


def test_a_shallow_ranking_allows_the_metrics_that_look_no_deeper():
    assert metrics_within(1000) == metrics_within(100) == METRICS
    assert metrics_within(99) == metrics_within(10) == ("ndcg@10", "mrr@10", "recall@1", "recall@10", "map")
    assert metrics_within(9) == metrics_within(1) == ("recall@1",)
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        metrics_within(0)


# --- results that nobody judged


def test_every_grade_is_a_judgement_zero_and_negative_ones_too():
    assert unjudged_share({"q": ranking("a", "b", "c", "x")}, {"q": {"a": 2, "b": 0, "c": -1}}).tolist() == [0.25]


def test_unjudged_results_are_counted_in_the_first_ten_in_the_order_of_trec_eval():
    judged = {f"d{i:02}": 1 for i in range(10)}
    run = {
        "deep": ranking(*judged, "x", "y"),
        "shallow": ranking("x", "d00", "y"),
        "silent": {},
        "ties": dict.fromkeys(["x", *judged], 1.0),
    }
    shares = unjudged_share(run, dict.fromkeys(["ties", "deep", "shallow", "silent", "absent"], judged))
    # x ties with the ten judged and goes first by its name, which pushes out d00.
    assert shares.tolist() == [0.1, 0, pytest.approx(2 / 3), 0, 0]
    assert unjudged_share(run, {"shallow": judged}, cut=1).tolist() == [1]
    with pytest.raises(ValueError, match="cut must be at least 1"):
        unjudged_share(run, {"deep": judged}, cut=0)


# --- against the definitions, written out once more without pytrec_eval


def by_definition(run, grades):
    """trec_eval's measures of one query, from their definitions; scores must be exact in float32."""
    found = [doc_id for doc_id, _ in sorted(run.items(), key=lambda item: (item[1], item[0].encode()), reverse=True)]
    relevant = {doc_id for doc_id, grade in grades.items() if grade >= 1}
    hits = [doc_id in relevant for doc_id in found]

    def dcg(gains):
        return sum(max(gain, 0) / math.log2(rank + 1) for rank, gain in enumerate(gains[:10], start=1))

    precisions = [sum(hits[:rank]) / rank for rank, hit in enumerate(hits, start=1) if hit]
    return {
        "ndcg@10": dcg([grades.get(doc_id, 0) for doc_id in found]) / dcg(sorted(grades.values(), reverse=True)),
        "mrr@10": next((1 / rank for rank, hit in enumerate(hits[:10], start=1) if hit), 0),
        **{f"recall@{cut}": sum(hits[:cut]) / len(relevant) for cut in (1, 10, 100)},
        "map": sum(precisions) / len(relevant),
    }


def agree(run, qrels):
    scores = score_run(run, qrels)
    for index, (query_id, grades) in enumerate(qrels.items()):
        expected = by_definition(run.get(query_id, {}), grades)
        assert {name: values[index] for name, values in scores.items()} == pytest.approx(expected, abs=1e-12), query_id


def test_metrics_of_a_saved_run_equal_the_definitions(tmp_path):
    # Thirty queries, up to 150 results each, scores in steps of 1/32 so that many tie, grades -1 to 3, some never retrieved.
    rng = random.Random(7)
    doc_ids = [f"文{i}" if i % 5 == 0 else f"d{i}" for i in range(200)]
    rows, scores, qrels = np.full((30, 150), -1), np.zeros((30, 150), np.float32), {}
    for index in range(30):
        depth = rng.choice([0, 1, 9, 10, 11, 99, 100, 101, 150])
        rows[index, :depth] = rng.sample(range(200), depth)
        scores[index, :depth] = sorted((rng.randint(0, 64) / 32 for _ in range(depth)), reverse=True)
        judged = rng.sample(doc_ids, rng.choice([1, 3, 20, 60]))
        qrels[f"q{index}"] = {doc_id: rng.choice([-1, 0, 1, 1, 2, 3]) for doc_id in judged} | {judged[0]: 1, "gone": 1}
    write_run(tmp_path / "run.trec", list(qrels), doc_ids, rows, scores, "saved")
    run = read_run(tmp_path / "run.trec")
    assert sum(map(len, run.values())) > 1000
    agree(run, qrels)
    assert unjudged_share(run, qrels).mean() > 0.3


DOCUMENTS = st.sampled_from([*"abcdefghijklmnop", "é", "文", "\U00020000", "\uffee"])
RANKING = st.dictionaries(DOCUMENTS, st.integers(-4, 4).map(lambda step: step / 4), max_size=20)
GRADES = st.dictionaries(DOCUMENTS, st.integers(-2, 4), min_size=1, max_size=12).filter(lambda grades: max(grades.values()) > 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(RANKING, GRADES), min_size=1, max_size=4))
def test_metrics_of_any_run_with_ties_equal_the_definitions(queries):
    run = {f"q{index}": ranking for index, (ranking, _) in enumerate(queries)}
    agree(run, {f"q{index}": grades for index, (_, grades) in enumerate(queries)})


def test_a_grade_that_overflows_trec_evals_counters_is_refused():
    with pytest.raises(ValueError, match="±1000"):
        score_run({"q": {"a": 1.0}}, {"q": {"a": 4294967297}})
