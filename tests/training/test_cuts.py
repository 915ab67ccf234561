"""The cut of sorted texts into micro-batches: the cheapest there is, found by trying all on small sets."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.training.batches.gradient_cache import least_padding_cuts


def cost(lengths, cuts, pass_cost):
    return sum(max(lengths[i] for i in cut) * len(cut) + pass_cost for cut in cuts)


def every_cut(lengths, token_budget):
    """All ways to cut the texts, sorted by length, that keep the budget."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for marks in itertools.product([False, True], repeat=len(order) - 1):
        cuts = [[order[0]]]
        for index, is_new in zip(order[1:], marks, strict=True):
            cuts.append([index]) if is_new else cuts[-1].append(index)
        if all(len(cut) == 1 or lengths[cut[0]] * len(cut) <= token_budget for cut in cuts):
            yield cuts


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 120), st.integers(0, 60))
def test_no_other_cut_is_cheaper_and_every_text_is_in_one_micro_batch_within_the_budget(lengths, token_budget, pass_cost):
    cuts = [cut.tolist() for cut in least_padding_cuts(lengths, token_budget, pass_cost)]
    assert sorted(itertools.chain(*cuts)) == list(range(len(lengths)))
    assert all(len(cut) == 1 or max(lengths[i] for i in cut) * len(cut) <= token_budget for cut in cuts)
    cheapest = min(cost(lengths, other, pass_cost) for other in every_cut(lengths, token_budget))
    assert cost(lengths, cuts, pass_cost) == cheapest


@pytest.mark.parametrize(
    ("pass_cost", "expected"),
    [
        (1, [[1], [0, 2]]),  # 10 + 1 and 4 + 1 are 16; one pass is 30 + 1
        (100, [[1, 0, 2]]),  # 30 + 100 against 14 + 200
    ],
)
def test_a_dear_pass_is_saved_by_padding(pass_cost, expected):
    assert [cut.tolist() for cut in least_padding_cuts([2, 10, 2], 1000, pass_cost)] == expected


def test_the_longest_come_first_and_a_text_beyond_the_budget_goes_alone():
    assert [cut.tolist() for cut in least_padding_cuts([3, 900, 3], 100, 0)] == [[1], [0, 2]]


def test_no_texts_are_no_micro_batches():
    assert least_padding_cuts(np.empty(0, np.int64), 100, 10) == []
