"""Which queries changed, what was found, and the slices by length: every number by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.retrieval.measures.changes import Expected, Hit, most_changed, slices_by_query_length
from ebr.retrieval.measures.measurement import Evaluation
from ebr.retrieval.measures.significance import paired_bootstrap

LONG = "a text that is far longer than what any report would show of it, " * 20


def evaluation_of(ndcg, rows=None, similarities=None, n_documents=6):
    query_ids = [f"q{row}" for row in range(len(ndcg))]
    rows = np.full((len(ndcg), 3), -1) if rows is None else rows
    rows = np.array(rows, np.int64)
    similarities = np.zeros(rows.shape) if similarities is None else similarities
    scores = {"ndcg@10": np.array(ndcg, np.float64), "map": np.array(ndcg, np.float64)[::-1]}
    return Evaluation("set", query_ids, n_documents, scores, rows, np.array(similarities, np.float32))


def dataset_of(queries, qrels=None, documents=("zero", "one", LONG, "three", "four", "five")):
    query_ids = [f"q{row}" for row in range(len(queries))]
    qrels = qrels or [{"d0": 1}] * len(queries)
    doc_ids = [f"d{row}" for row in range(len(documents))]
    return EvaluationSet(
        "set", query_ids, list(queries), doc_ids, list(documents), dict(zip(query_ids, qrels, strict=True)), 0, 0, 0
    )


def changes_of(before, after, **options):
    dataset = dataset_of([f"query {row}" for row in range(len(before))])
    worse, better = most_changed(dataset, evaluation_of(before), evaluation_of(after), **options)
    return [query.query_id for query in worse], [query.query_id for query in better]


def test_the_largest_changes_come_first_and_what_stayed_is_left_out():
    before, after = [0.5, 0.5, 0.5, 0.5, 0.5], [0.4, 0.5, 0.9, 0.1, 0.6]
    assert changes_of(before, after) == (["q3", "q0"], ["q2", "q4"])


def test_equal_changes_stand_in_query_order_and_only_n_are_kept():
    assert changes_of([0.5] * 6, [0.25, 0.75] * 3, n=2) == (["q0", "q2"], ["q1", "q3"])


def test_a_change_within_rounding_is_none():
    assert changes_of([0.3, 0.3], [0.3 + 5e-10, 0.3 - 5e-10]) == ([], [])
    assert changes_of([0.3, 0.3], [0.3 + 5e-9, 0.3 - 5e-9]) == (["q1"], ["q0"])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60), st.integers(1, 30))
def test_worse_and_better_swap_when_the_models_do_and_share_no_query(scores, n):
    before, after = map(list, zip(*scores, strict=True))
    worse, better = changes_of(before, after, n=n)
    assert changes_of(after, before, n=n) == (better, worse)
    assert not set(worse) & set(better)
    assert len(worse) == min(n, sum(a - b < -1e-9 for b, a in scores))


def one_change():
    """One query that fell, with graded, unjudged and missing documents."""
    qrels = [{"d4": 1, "lost": 3, "d2": 2, "d0": 0, "d1": 1}]
    base = evaluation_of([0.8], [[2, 4, 0, 3, 5, 1]], [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    tuned = evaluation_of([0.2], [[3, 0, 4, -1, -1, -1]], [[0.75, 0.5, 0.25, 0, 0, 0]])
    worse, better = most_changed(dataset_of(["which?"], qrels), base, tuned)
    assert better == []
    return worse[0]


def test_a_changed_query_shows_its_text_and_scores():
    found = one_change()
    assert (found.query_id, found.text, found.before, found.after) == ("q0", "which?", 0.8, 0.2)


def test_five_documents_found_are_shown_whole_with_their_grade():
    found = one_change()
    assert [(hit.rank, hit.doc_id, hit.grade) for hit in found.found_before] == [
        (1, "d2", 2), (2, "d4", 1), (3, "d0", 0), (4, "d3", None), (5, "d5", None),
    ]  # fmt: skip
    assert found.found_before[0] == Hit(1, "d2", LONG, pytest.approx(0.9), 2)
    assert found.found_after == (Hit(1, "d3", "three", 0.75, None), Hit(2, "d0", "zero", 0.5, 0), Hit(3, "d4", "four", 0.25, 1))


def test_expected_documents_stand_by_grade_with_their_ranks_in_both():
    assert one_change().expected == (
        Expected("lost", "", 3, None, None),
        Expected("d2", LONG, 2, 1, None),
        Expected("d4", "four", 1, 2, 3),
        Expected("d1", "one", 1, 6, None),
    )


def test_at_most_ten_expected_documents_are_shown_the_best_grades_first():
    qrels = [{f"d{row}": 1 for row in range(14)} | {"d13": 2}]
    dataset = dataset_of(["many"], qrels, documents=[f"text {row}" for row in range(14)])
    worse, _ = most_changed(dataset, evaluation_of([1.0]), evaluation_of([0.0]))
    assert [document.doc_id for document in worse[0].expected] == ["d13", *(f"d{row}" for row in range(9))]


def test_evaluations_of_other_queries_are_refused():
    dataset = dataset_of(["one", "two"])
    right, wrong = evaluation_of([0.1, 0.2]), replace(evaluation_of([0.1, 0.2]), query_ids=["q1", "q0"])
    for pair in ((right, wrong), (wrong, right)):
        with pytest.raises(ValueError, match="other queries"):
            most_changed(dataset, *pair)
        with pytest.raises(ValueError, match="other queries"):
            slices_by_query_length(dataset, *pair, seed=0)


def sliced(lengths, before=None, after=None, *, seed=0):
    queries = [" ".join(["word"] * length) for length in lengths]
    before = [0.0] * len(lengths) if before is None else before
    after = [0.5] * len(lengths) if after is None else after
    return slices_by_query_length(dataset_of(queries), evaluation_of(before), evaluation_of(after), seed=seed)


def test_queries_are_cut_into_quarters_by_their_length():
    found = sliced([8, 7, 6, 5, 4, 3, 2, 1])
    assert [(part.label, part.n_queries) for part in found] == [
        ("1–2 words", 2), ("3–4 words", 2), ("5–6 words", 2), ("7–8 words", 2),
    ]  # fmt: skip
    # Half of ten are the first five, three quarters the first eight.
    assert [part.label for part in sliced(range(1, 11))] == ["1–3 words", "4–5 words", "6–8 words", "9–10 words"]


def test_queries_of_one_length_stay_together():
    found = sliced([1] * 5 + [2] * 2 + [7])
    assert [(part.label, part.n_queries) for part in found] == [("1 word", 5), ("2 words", 2), ("7 words", 1)]
    assert [(part.label, part.n_queries) for part in sliced([3] * 20)] == [("3 words", 20)]


@pytest.mark.parametrize("n_queries", [1, 7])
def test_a_handful_of_queries_is_one_slice(n_queries):
    found = sliced(range(1, n_queries + 1))
    assert [(part.label, part.n_queries) for part in found] == [("1 word" if n_queries == 1 else "1–7 words", n_queries)]


def test_a_slice_has_its_own_means_and_interval():
    rng = np.random.default_rng(0)
    lengths, before, after = rng.integers(1, 9, 60), rng.random(60), rng.random(60)
    found = sliced(lengths, before, after, seed=3)
    shortest = found[0]
    inside = lengths <= int(shortest.label.removesuffix(" words").split("–")[-1].removesuffix(" word"))
    assert shortest.n_queries == inside.sum() < 60
    assert shortest.base == pytest.approx(before[inside].mean())
    assert shortest.tuned == pytest.approx(after[inside].mean())
    assert shortest.interval == paired_bootstrap(before[inside], after[inside], seed=3)
    assert shortest.interval != paired_bootstrap(before[inside], after[inside], seed=4)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=80))
def test_every_query_is_in_one_slice_and_slices_do_not_overlap(lengths):
    # As many queries as differences are equal: the interval needs no resampling.
    found = sliced(lengths)
    assert sum(part.n_queries for part in found) == len(lengths)
    bounds = [int(end) for part in found for end in part.label.split(" ")[0].split("–")]
    assert bounds == sorted(bounds)
    assert bounds[0] == min(lengths) and bounds[-1] == max(lengths)
    assert 1 <= len(found) <= 4


def test_chinese_words_are_counted_by_the_dictionary_and_punctuation_is_none():
    queries = ["我们中出了一个叛徒？", "苹果手机！", "red shoes, please -", "…"]
    found = slices_by_query_length(dataset_of(queries * 3), evaluation_of([0.0] * 12), evaluation_of([0.5] * 12), seed=0)
    labels = [part.label for part in found]
    assert labels[0] == "0 words"
    assert labels[1] == "2 words"  # 苹果 手机
    assert labels[2] == "3 words"
    assert sum(part.n_queries for part in found) == 12
