"""Who shares a batch: rows of one source, as often as its weight says, the same whoever asks and however many take part."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.training.batches.sampling import EpochBatches, batches_per_epoch, is_needed, separate_duplicates

QUICK = settings(deadline=None, max_examples=40, database=None)
WEIGHTS = st.sampled_from([0.01, 0.1, 0.25, 0.29, 1 / 3, 0.5, 0.75, 1, 1.5, 2, 3])


@st.composite
def samplers(draw):
    """Arguments of a sampler over one to three sources, some without a row left."""
    weights = draw(st.lists(WEIGHTS, min_size=1, max_size=3))
    sources = draw(st.permutations([s for s, n in enumerate(draw(counts(len(weights)))) for _ in range(n)]))
    lengths = draw(st.sampled_from([None, [(7 * row) % 11 for row in range(len(sources))]]))
    size, seed, processes = draw(st.integers(1, 9)), draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 3))
    return {
        "weights": weights, "sources": sources, "lengths": lengths, "batch_size": size, "seed": seed, "n_processes": processes,
    }  # fmt: skip


def counts(n_sources):
    return st.lists(st.integers(0, 40), min_size=n_sources, max_size=n_sources).filter(any)


def epoch(sampler, number):
    sampler.set_epoch(number)
    return list(sampler)


def rows_of(batches):
    return Counter(row for batch in batches for row in batch)


# ---------------------------------------------------------------- what holds for all


@QUICK
@given(samplers(), st.integers(0, 5))
def test_each_round_is_of_one_source_and_as_large_as_allowed(arguments, number):
    batches = epoch(EpochBatches(**arguments), number)
    n = arguments["n_processes"]
    for start in range(0, len(batches), n):
        taken_at_once = batches[start : start + n]
        assert len({arguments["sources"][row] for batch in taken_at_once for row in batch}) == 1
        sizes = [len(batch) for batch in taken_at_once]
        assert 1 <= min(sizes) <= max(sizes) <= min(arguments["batch_size"], min(sizes) + 1)


@QUICK
@given(samplers(), st.integers(0, 7))
def test_the_number_of_batches_is_known_for_every_epoch(arguments, number):
    sampler = EpochBatches(**arguments)
    n_rows = np.bincount(arguments["sources"], minlength=len(arguments["weights"])).tolist()
    wanted = batches_per_epoch(n_rows, arguments["weights"], arguments["batch_size"], arguments["n_processes"])
    assert len(epoch(sampler, number)) == len(sampler) == wanted
    assert wanted % arguments["n_processes"] == 0


@QUICK
@given(samplers(), st.integers(0, 5))
def test_an_epoch_is_drawn_the_same_whatever_was_drawn_before(arguments, number):
    used = EpochBatches(**arguments)
    epoch(used, 9)
    assert epoch(used, number) == epoch(EpochBatches(**arguments), number)


@QUICK
@given(samplers())
def test_processes_that_take_batches_in_turn_share_out_the_epoch(arguments):
    n, sampler = arguments["n_processes"], EpochBatches(**arguments)
    batches = epoch(sampler, 1)
    for even in (True, False):
        shares = [list(BatchSamplerShard(sampler, n, process, even_batches=even)) for process in range(n)]
        assert shares == [batches[process::n] for process in range(n)]
        assert {len(share) for share in shares} == {len(batches) // n}


@QUICK
@given(st.integers(2, 60), st.integers(2, 9), st.sampled_from([1, 2, 3]), st.integers(0, 9), st.booleans())
def test_with_a_whole_weight_each_record_is_drawn_that_often_an_epoch(n_rows, batch_size, weight, number, grouped):
    sampler = EpochBatches(
        sources=[0] * n_rows, weights=[weight], batch_size=batch_size, seed=1, lengths=range(n_rows) if grouped else None
    )
    batches = epoch(sampler, number)
    assert rows_of(batches) == dict.fromkeys(range(n_rows), weight)
    assert all(len(set(batch)) == len(batch) for batch in batches)


@QUICK
@given(st.integers(2, 60), st.integers(2, 9), st.sampled_from([2, 3, 4]), st.booleans())
def test_a_record_of_weight_one_kth_is_drawn_once_in_k_epochs(n_rows, batch_size, k, grouped):
    n_rows = max(n_rows, k)  # of fewer, one is drawn in each epoch all the same
    sampler = EpochBatches(
        sources=[0] * n_rows, weights=[1 / k], batch_size=batch_size, seed=3, lengths=[5] * n_rows if grouped else None
    )
    for start in (0, k):
        drawn = rows_of(batch for number in range(start, start + k) for batch in epoch(sampler, number))
        assert drawn == dict.fromkeys(range(n_rows), 1)


# ---------------------------------------------------------------- by hand


def test_each_source_has_its_own_short_batch():
    # 10 rows in batches of 4: 4, 4, 2; half of 6 rows: 3.
    sampler = EpochBatches(sources=[0] * 10 + [1] * 6, weights=[1, 0.5], batch_size=4, seed=7)
    assert sorted(map(len, epoch(sampler, 0))) == [2, 3, 4, 4]
    assert len(sampler) == batches_per_epoch([10, 6], [1, 0.5], 4) == 4


def test_half_of_an_odd_source_is_three_then_two_rows_of_five():
    sampler = EpochBatches(sources=[0] * 5, weights=[0.5], batch_size=8, seed=7)
    assert [len(rows_of(epoch(sampler, number))) for number in range(4)] == [2, 3, 2, 3]


def test_a_rest_of_one_row_shares_with_the_batch_before():
    # 9 rows in batches of 4 would be 4, 4, 1, and a row alone has no other's positive for a negative.
    sampler = EpochBatches(sources=[0] * 9, weights=[1], batch_size=4, seed=7, lengths=[1] * 9)
    assert sorted(map(len, sampler)) == [2, 3, 4]


def test_a_small_source_drawn_often_gives_whole_passes_and_not_its_rows_many_times_a_batch():
    sampler = EpochBatches(sources=[0] * 5 + [1] * 40, weights=[3, 1], batch_size=20, seed=7)
    assert sorted(sorted(batch) for batch in sampler if max(batch) < 5) == [[0, 1, 2, 3, 4]] * 3
    assert len(sampler) == 5


def test_a_half_pass_beside_whole_ones_leaves_each_batch_without_twins():
    # 5 rows 2.5 times: 12 draws, then 13, which begin in the midst of a pass: 5 + 5 + 3 however they lie.
    for seed in range(50):
        batches = epoch(EpochBatches(sources=[0] * 5, weights=[2.5], batch_size=20, seed=seed), 1)
        assert sorted(map(len, batches)) == [3, 5, 5]
        assert all(len(set(batch)) == len(batch) for batch in batches)


def test_the_last_round_of_a_source_is_shared_out_to_all_processes():
    # 2 processes with batches of 4: a round of 8 rows, and 5 more that are dealt 3 to 2.
    batches = list(EpochBatches(sources=[0] * 13, weights=[1], batch_size=4, seed=7, n_processes=2))
    assert rows_of(batches) == dict.fromkeys(range(13), 1)
    assert sorted([len(batches[start]), len(batches[start + 1])] for start in (0, 2)) == [[3, 2], [4, 4]]


def test_a_process_without_a_row_repeats_anothers():
    assert list(EpochBatches(sources=[0], weights=[1], batch_size=4, seed=7, n_processes=3)) == [[0], [0], [0]]


def test_batches_of_the_sources_are_mixed_and_differ_by_epoch_and_by_seed():
    arguments = {"sources": [0] * 80 + [1] * 80, "weights": [1, 1], "batch_size": 4}
    sampler = EpochBatches(**arguments, seed=7)
    order, later = ("".join("01"[batch[0] >= 80] for batch in epoch(sampler, number)) for number in (0, 1))
    assert order.count("0") == order.count("1") == later.count("0") == 20
    assert order != later
    assert order not in ("0" * 20 + "1" * 20, "1" * 20 + "0" * 20, "01" * 20, "10" * 20)
    assert epoch(sampler, 1) != epoch(sampler, 0) != epoch(EpochBatches(**arguments, seed=8), 0)


def test_batches_by_length_hold_texts_of_like_length():
    # 240 rows of lengths 0..239 in batches of 6 are sorted 60 at a time: 60 of 240 lie 4 apart, so a batch spans about 20.
    lengths = np.arange(240)
    sampler = EpochBatches(lengths=lengths, batch_size=6, seed=7)
    batches = list(sampler)
    assert rows_of(batches) == dict.fromkeys(range(240), 1)
    assert 10 < np.mean([np.ptp(lengths[batch]) for batch in batches]) < 30  # 171 = 240 × 5/7 as they fall
    starts = [lengths[batch].min() for batch in batches]
    assert starts != sorted(starts) and starts != sorted(starts, reverse=True)
    later = epoch(sampler, 1)
    assert not {frozenset(batch) for batch in later} & {frozenset(batch) for batch in batches}


def test_where_two_sorted_parts_meet_lengths_are_alike_too():
    # 401 rows twice, in batches of 2: all parts of the second pass begin and end inside of batches.
    lengths = np.arange(401)
    sampler = EpochBatches(lengths=lengths, batch_size=2, seed=7, weights=[2])
    spans = [np.ptp(lengths[batch]) for number in range(3) for batch in epoch(sampler, number)]
    assert max(spans) < 60  # an end beside a beginning would span about 400


@pytest.mark.parametrize("grouped", [False, True])
def test_a_row_drawn_twice_is_in_two_batches(grouped):
    # 7 rows twice in batches of 4: the second batch takes the end of one pass and the start of the next.
    for seed in range(50):
        sampler = EpochBatches(
            sources=[0] * 7, weights=[2], batch_size=4, seed=seed, lengths=list(range(7)) if grouped else None
        )
        assert [len(set(batch)) for batch in sampler] == [len(batch) for batch in sampler]


def test_twins_are_swapped_with_the_nearest_batch_that_can_take_them():
    # 1 stands in the next batch too, so its twin goes to the one after, for the first row that batch 0 has not.
    rounds = [[1, 2, 1], [1, 4, 5], [2, 6, 7], [8, 9]]
    separate_duplicates(rounds)
    assert rounds == [[1, 2, 6], [1, 4, 5], [2, 1, 7], [8, 9]]


def test_a_twin_without_another_place_stays():
    rounds = [[1, 1, 2], [1, 2, 3]]
    separate_duplicates(rounds)
    assert rounds == [[1, 1, 2], [1, 2, 3]]


def test_a_source_that_the_split_took_whole_has_no_batch():
    assert sorted(next(iter(EpochBatches(sources=[1, 1, 1], weights=[2, 1], batch_size=4, seed=7)))) == [0, 1, 2]
    assert batches_per_epoch([0, 3], [2, 1], 4) == 1


def test_the_stock_sampler_does_where_nothing_asks_for_another():
    assert not is_needed([1.0], group_by_length=False)
    assert is_needed([1.0], group_by_length=True)
    assert is_needed([0.5], group_by_length=False)
    assert is_needed([1.0, 1.0], group_by_length=False)


def test_rows_must_be_known():
    with pytest.raises(ValueError, match=r"must be given, .* rows \[\]"):
        EpochBatches(batch_size=4, seed=7)
    with pytest.raises(ValueError, match=r"as many of both: rows \[2, 3\]"):
        EpochBatches(batch_size=4, seed=7, sources=[0, 0, 0], lengths=[1, 2])


def test_a_loader_that_skips_goes_on_with_the_epochs_other_batches():
    sampler = EpochBatches(sources=[0] * 9 + [1] * 8, weights=[1, 2], batch_size=4, seed=7)
    wanted = epoch(sampler, 2)
    sampler.set_epoch(0)
    loader = DataLoaderShard(list(range(17)), batch_sampler=sampler, collate_fn=list)
    resumed = skip_first_batches(loader, 3)
    resumed.set_epoch(2)  # as the trainer does, which sets the sampler's too
    sampler.set_epoch(2)
    assert list(resumed) == wanted[3:]
    assert len(loader) == len(wanted)
