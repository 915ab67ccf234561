"""The sample of a map: exactly as many rows as asked for, every label in proportion, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.visualization.project.sampling import stratified_sample

QUICK = settings(deadline=None, max_examples=30, database=None)
labels_of = st.lists(st.sampled_from(["a", "b", "c", "北京", ""]), min_size=1, max_size=60)


@QUICK
@given(labels_of, st.integers(1, 60), st.integers(0, 5))
def test_exactly_at_most_rows_are_drawn_each_once_in_order(labels, at_most, seed):
    rows = stratified_sample(labels, at_most, seed=seed).tolist()
    assert len(rows) == min(at_most, len(labels))
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(len(labels)))


@QUICK
@given(labels_of, st.integers(1, 60))
def test_every_label_keeps_a_row_and_its_share_within_those_given_to_rare_ones(labels, at_most):
    drawn = Counter(labels[row] for row in stratified_sample(labels, at_most, seed=0))
    counts = Counter(labels)
    assert len(drawn) == min(len(counts), at_most)
    shares = {label: count * min(1, at_most / len(labels)) for label, count in counts.items()}
    n_rare = sum(share < 1 for share in shares.values())
    for label, share in shares.items():
        assert drawn[label] <= counts[label]
        assert share - 1 - n_rare < drawn[label] < share + 1 or drawn[label] == 1


def test_largest_remainder_by_hand():
    # 5 of 10 rows: exact shares 3.5, 1.5; one row is left over and goes to the first of the two halves.
    assert Counter("aaaaaaabbb"[row] for row in stratified_sample("aaaaaaabbb", 5, seed=0)) == {"a": 4, "b": 1}
    # 7 of 10 rows: 4.2, 2.1, 0.7.
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    assert Counter(labels[row] for row in stratified_sample(labels, 7, seed=0)) == {"a": 4, "b": 2, "c": 1}


def test_a_rare_label_keeps_one_row_and_the_others_share_the_rest():
    # 5 of 10 rows: shares 3.0, 1.5, 0.5; c would be dropped, so it gets one, and a and b share four: 2.67, 1.33.
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    assert Counter(labels[row] for row in stratified_sample(labels, 5, seed=0)) == {"a": 3, "b": 1, "c": 1}
    # 20 of 1,006 rows: six labels of one row each, and fourteen rows left for 1,000.
    labels = ["a"] * 1000 + list("bcdefg")
    assert Counter(labels[row] for row in stratified_sample(labels, 20, seed=0)) == {"a": 14} | dict.fromkeys("bcdefg", 1)


def test_where_labels_outnumber_rows_the_frequent_ones_stay():
    labels = ["rare"] + ["b"] * 3 + ["a"] * 5 + ["c"] * 3
    drawn = [Counter(labels[row] for row in stratified_sample(labels, 2, seed=seed)) for seed in range(20)]
    assert all(one in ({"a": 1, "b": 1}, {"a": 1, "c": 1}) for one in drawn)
    assert len({tuple(sorted(one)) for one in drawn}) == 2  # of equally frequent ones, the seed draws, not the alphabet


def test_of_labels_that_all_differ_a_sample_reaches_from_the_first_to_the_last():
    rows = stratified_sample([f"{row:04}" for row in range(1000)], 100, seed=0)
    assert rows.min() < 100 and rows.max() >= 900
    assert abs(rows.mean() - 499.5) < 4 * 28  # uniform on 0..999: the mean of 100 drawn has a sd of 28


@pytest.mark.parametrize("at_most", [10, 11])
def test_few_rows_are_all_shown(at_most):
    assert stratified_sample(list("abcabcabca"), at_most, seed=0).tolist() == list(range(10))


def test_seed_decides_the_rows():
    labels = ["a", "b"] * 500
    first, again, other = (stratified_sample(labels, 100, seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_rows_of_a_label_are_drawn_from_its_whole_length():
    rows = stratified_sample(["a"] * 1000, 100, seed=0)
    # Uniform on 0..999: mean 499.5, sd of the mean of 100 drawn 28.
    assert rows.mean() == pytest.approx(499.5, abs=112)
