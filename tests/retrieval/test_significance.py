import itertools
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ebr.retrieval.measures import significance
from ebr.retrieval.measures.significance import WinsTiesLosses, holm, paired_bootstrap, randomization_test, wins_ties_losses


def changes(*differences):
    """Scores before and after in which each query changes by the number given."""
    return np.full(len(differences), 0.5), 0.5 + np.array(differences, np.float64)


def p_of(*differences, **options):
    return randomization_test(*changes(*differences), **({"seed": 0} | options))


# --- the paired bootstrap


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
    after = before + rng.normal(0.01, 0.01, size=100)
    assert paired_bootstrap(before, after, seed=0).low > 0
    assert randomization_test(before, after, seed=0) < 0.001


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


JUDGES = [lambda *pair: paired_bootstrap(*pair, seed=0), lambda *pair: randomization_test(*pair, seed=0), wins_ties_losses]


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize(("before", "after"), [([1.0], [1.0, 2.0]), ([], []), ([[1.0]], [[1.0]])])
def test_scores_that_are_not_paired_are_refused(judge, before, after):
    with pytest.raises(ValueError, match="paired scores"):
        judge(np.array(before), np.array(after))


# --- the randomisation test


def test_three_gains_are_as_extreme_as_two_of_the_eight_sign_patterns():
    assert p_of(0.1, 0.2, 0.3) == 2 / 8


def test_a_loss_among_three_is_counted_by_hand():
    # Sums of ±1 ±2 ±4: seen is 1 + 2 - 4 = -1, and every one of the eight is at least 1 in size. Seen 4 + 2 - 1 = 5: ±7, ±5.
    assert p_of(0.1, 0.2, -0.4) == 1
    assert p_of(-0.1, 0.2, 0.4) == 4 / 8


def test_sums_that_differ_by_rounding_alone_count_as_just_as_extreme():
    # 0.1 + 0.2 is not 0.3 in binary. Signs (+ + -) and (- - +) give 0, and 0 was seen: each of the 8 is as extreme.
    assert 0.1 + 0.2 != 0.3
    assert randomization_test(np.zeros(3), np.array([0.1, 0.2, -0.3]), seed=0) == 1
    # Seen 0.3 + 0.2 - 0.1 = 0.4: ±0.6 and ±0.4 are as extreme, ±0.2 and ±0 are not; by patterns 4 of 8.
    assert randomization_test(np.zeros(3), np.array([-0.1, 0.2, 0.3]), seed=0) == 4 / 8
    # Signs of 0.1 and -0.1 that leave them opposed give 0.2, as seen; else 0.4 or 0. Naively 0.1 + 0.2 - 0.1 is not 0.2.
    assert randomization_test(np.zeros(3), np.array([0.1, 0.2, -0.1]), seed=0) == 6 / 8
    # All gains equal: only all plus and all minus, however their sum is rounded.
    assert randomization_test(np.zeros(10), np.full(10, 0.1), seed=0) == 2 / 2**10


def test_queries_that_stay_have_no_say():
    assert p_of(0.1, 0.2, 0.3, *[0.0] * 50) == 2 / 8
    assert p_of(0.1, 0.2, 0.3, *[1e-12] * 50) == 2 / 8


@pytest.mark.parametrize("n", [1, 3, 5000])
def test_a_model_against_itself_gives_one_exactly(n):
    scores = np.random.default_rng(0).random(n)
    assert randomization_test(scores, scores.copy(), seed=0) == 1
    assert randomization_test(scores, scores + 1e-13, seed=0) == 1


def test_one_query_can_prove_nothing():
    assert p_of(0.9) == 1


def test_random_patterns_never_give_zero_and_agree_with_all_patterns():
    # Twenty gains: 2 of 2**20 patterns are as extreme, and hardly one of 999 random ones.
    assert p_of(*[0.1] * 20, rounds=999) == 1 / 1000
    differences = np.random.default_rng(1).normal(0.1, 0.3, 12)
    assert p_of(*differences, rounds=4095) != p_of(*differences, rounds=4096)  # 2**12 = 4096 is exact
    assert p_of(*differences, rounds=4096) == p_of(*differences, rounds=4096, seed=9)


@pytest.mark.parametrize("gain", [-0.3, -0.1, 0, 0.1, 0.3])
def test_random_patterns_come_near_to_all_patterns(gain):
    differences = np.random.default_rng(2).normal(gain, 0.5, 12)
    exact = p_of(*differences, rounds=4096)
    assert p_of(*differences, rounds=4095) == pytest.approx(exact, abs=3.5 * math.sqrt(exact * (1 - exact) / 4095))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-1.0, -0.63, -0.5, -1 / 3, -0.1, 0.1, 0.2, 0.3, 1 / 3, 0.387, 0.5, 1.0]), min_size=1, max_size=9)
)
def test_exact_p_equals_every_pattern_in_exact_fractions_and_scipy(differences):
    exact = [Fraction(value).limit_denominator(1000) for value in differences]
    sums = [
        abs(sum(s * d for s, d in zip(signs, exact, strict=True))) for signs in itertools.product((1, -1), repeat=len(exact))
    ]
    expected = sum(value >= abs(sum(exact)) for value in sums) / len(sums)
    p = randomization_test(np.zeros(len(differences)), np.array(differences), seed=0)
    assert p == expected
    if abs(sum(exact)) > 0 and len(differences) > 1:  # at 0 scipy's relative tolerance leaves nothing for rounding
        theirs = stats.permutation_test(
            (np.array(differences),), lambda values, axis: values.sum(axis=axis), permutation_type="samples", vectorized=True
        )
        assert p == pytest.approx(theirs.pvalue)


def test_p_does_not_depend_on_the_block_size(monkeypatch):
    differences = np.random.default_rng(2).normal(0.02, 0.3, 800)  # a multiple of 8: blocks draw whole bytes alike
    whole = p_of(*differences, rounds=500)
    monkeypatch.setattr(significance, "_RESAMPLED_AT_ONCE", 800 * 16)
    assert p_of(*differences, rounds=500) == whole


def test_rounds_below_one_are_refused():
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        p_of(0.1, rounds=0)


def test_the_seed_decides_the_random_patterns():
    differences = np.random.default_rng(3).normal(0.01, 0.3, 100)
    assert p_of(*differences, seed=1) == p_of(*differences, seed=1) != p_of(*differences, seed=2)


# --- claims at their stated rates: 600 comparisons of two measurements of one quality, and of a better one

N_COMPARISONS, N_QUERIES = 600, 80


def band(rate, n=N_COMPARISONS):
    """A share of n that chance leaves once in 2,000: 3.5 standard errors either way."""
    error = 3.5 * math.sqrt(rate * (1 - rate) / n)
    return rate - error, rate + error


def measured_twice(rng, gain=0.0):
    """Two noisy measurements of the same queries: shuffled halves of one pool of readings, the second better by `gain`.

    As in ranking metrics, queries differ widely and many readings are exactly 0 or 1.
    """
    quality = rng.beta(0.7, 0.7, size=(N_QUERIES, 1))
    pool = rng.permuted(np.clip(quality + rng.normal(0, 0.3, size=(N_QUERIES, 2)), 0, 1), axis=1)
    return pool[:, 0], np.clip(pool[:, 1] + gain, 0, 1)


@pytest.fixture(scope="module")
def null_p_values():
    rng = np.random.default_rng(11)
    return np.array([randomization_test(*measured_twice(rng), seed=seed, rounds=999) for seed in range(N_COMPARISONS)])


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2, 0.5])
def test_halves_of_one_quality_differ_as_often_as_the_level_says(null_p_values, level):
    low, high = band(level)
    assert low <= np.mean(null_p_values <= level) <= high


def test_intervals_of_halves_exclude_zero_about_one_time_in_twenty():
    rng = np.random.default_rng(12)
    intervals = [paired_bootstrap(*measured_twice(rng), seed=seed, resamples=500) for seed in range(N_COMPARISONS)]
    excluded = np.mean([interval.low > 0 or interval.high < 0 for interval in intervals])
    # Percentile intervals are a little narrow: sqrt(79 / 80) of the spread, and normal rather than t tails, make 5.5 % of 5.
    assert band(0.05)[0] <= excluded <= band(0.06)[1]


def test_few_queries_make_the_interval_miss_as_often_as_its_docstring_says():
    # 1.96 standard errors, made narrower by sqrt(19 / 20), of t with 19 degrees of freedom: 7.1 %.
    rng = np.random.default_rng(13)
    n = 1000
    intervals = [paired_bootstrap(np.zeros(20), rng.normal(size=20), seed=seed, resamples=400) for seed in range(n)]
    excluded = np.mean([interval.low > 0 or interval.high < 0 for interval in intervals])
    assert band(0.071, n)[0] <= excluded <= band(0.071, n)[1]


def test_a_planted_improvement_is_found():
    rng = np.random.default_rng(14)
    pairs = [measured_twice(rng, gain=0.25) for _ in range(60)]
    assert np.mean([randomization_test(*pair, seed=0, rounds=999) <= 0.01 for pair in pairs]) >= 0.95
    assert np.mean([paired_bootstrap(*pair, seed=0, resamples=500).low > 0 for pair in pairs]) >= 0.95


def test_five_metrics_together_err_no_more_than_one_time_in_twenty(null_p_values):
    families = null_p_values.reshape(-1, 5)
    high = band(0.05, len(families))[1]
    assert np.mean([min(holm(family.tolist())) <= 0.05 for family in families]) <= high
    assert np.mean((families <= 0.05).any(axis=1)) > high  # what goes wrong without: 1 - 0.95**5 = 23 %


# --- Holm


def test_holm_of_four_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and the last may not be below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_caps_at_one_and_knows_one_and_none():
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_never_swaps_and_is_no_harsher_than_bonferroni(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= min(1, len(p_values) * p) or a == pytest.approx(p) for p, a in zip(p_values, adjusted, strict=True))
    by_p = [a for _, a in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)
    assert min(adjusted) == min(1, len(p_values) * min(p_values))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, wrong])


# --- wins, ties, losses


def test_wins_ties_and_losses_are_counted_and_rounding_is_a_tie():
    before = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.0])
    after = np.array([0.6, 0.5, 0.5 + 5e-10, 0.5 - 5e-10, 0.4, 2e-9])
    assert wins_ties_losses(before, after) == WinsTiesLosses(wins=2, ties=3, losses=1)
    assert wins_ties_losses(after, before) == WinsTiesLosses(wins=1, ties=3, losses=2)
