"""Noise: what each kind may change in a text, in Chinese and in English, and what it never does."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.data.training.noise import NOISE, char_delete, random_delete, random_swap, words

QUICK = settings(deadline=None, max_examples=30, database=None)

CHINESE = "我在北京大学读书，每天都去图书馆"
ENGLISH = "the quick brown fox jumps over the lazy dog"
MIXED = "我用 Python 3 写代码\n每天 hello  world"

texts = st.text(st.sampled_from("北京大学图书馆的我你他读写，。 \n\u3000abcXY.,!1éß🙂𠀀カナ"), min_size=1, max_size=30).filter(
    str.strip
)
shares = st.floats(0, 1)
seeds = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


def spoken(text):
    """The words of a text without the white space between them."""
    return [word for word in words(text) if not word.isspace()]


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(item in rest for item in part)


@QUICK
@given(st.text())
def test_words_joined_are_the_text_again(text):
    assert "".join(words(text)) == text


def test_chinese_words_come_from_a_segmenter():
    assert words(CHINESE) == ["我", "在", "北京大学", "读书", "，", "每天", "都", "去", "图书馆"]


def test_words_of_a_mixed_text_by_hand():
    assert words("用Python写 code, ok") == ["用", "Python", "写", " ", "code,", " ", "ok"]


@pytest.mark.parametrize("kind", NOISE)
@QUICK
@given(text=texts, share=shares, seed=seeds)
def test_no_text_is_ever_emptied_and_the_seed_decides(kind, text, share, seed):
    noisy = NOISE[kind](text, share, rng(seed))
    assert noisy.strip()
    assert noisy == NOISE[kind](text, share, rng(seed))


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("text", [CHINESE, ENGLISH, MIXED])
def test_noise_changes_the_text_and_other_seeds_change_it_otherwise(kind, text):
    noisy = {NOISE[kind](text, 0.2, rng(seed)) for seed in range(20)}
    assert len(noisy) > 5
    # Swapping two equal neighbours is no change, but none of these texts has any.
    assert text not in noisy


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind in NOISE for text in ("word", "北京大学")])
def test_single_word_survives_where_words_are_touched(kind, text):
    noisy = NOISE[kind](text, 1.0, rng())
    assert noisy == text if kind != "char_delete" else len(noisy) == 1


def test_single_character_survives():
    assert char_delete("我", 1.0, rng()) == "我"


# ---------------------------------------------------------------- random_delete


@pytest.mark.parametrize("text", [CHINESE, ENGLISH, MIXED])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_delete_takes_at_least_one_word_leaves_one_and_keeps_the_order(text, share):
    for seed in range(20):
        # The noisy text is not segmented again: its characters, spaces apart, are a subsequence of the words' characters.
        left = random_delete(text, share, rng(seed))
        assert is_subsequence("".join(left.split()), "".join(text.split()))
        n_lost = len("".join(spoken(text))) - len("".join(left.split()))
        assert n_lost >= min(map(len, spoken(text)))
        if share == 1.0:
            assert left in spoken(text)


def test_delete_drops_whole_words_of_english():
    for seed in range(50):
        left = random_delete(ENGLISH, 0.3, rng(seed)).split(" ")
        assert is_subsequence(left, ENGLISH.split(" "))
        assert 1 <= len(left) <= 8


def test_delete_drops_whole_words_of_chinese():
    whole = words(CHINESE)
    single_losses = {"".join(whole[:i] + whole[i + 1 :]) for i in range(len(whole))}
    assert {random_delete(CHINESE, 0.0, rng(seed)) for seed in range(200)} == single_losses


def test_share_zero_deletes_exactly_one_word():
    lengths = {len(random_delete(ENGLISH, 0.0, rng(seed)).split()) for seed in range(30)}
    assert lengths == {8}


def test_share_is_the_part_of_the_words_that_goes():
    text = " ".join(f"w{i}" for i in range(1000))
    left = [len(random_delete(text, 0.3, rng(seed)).split()) for seed in range(20)]
    # Binomial(1000, 0.3): 300 lost, sd 14.5; the mean of 20 has sd 3.2.
    assert np.mean(left) == pytest.approx(700, abs=13)


def test_delete_leaves_no_double_space():
    assert {random_delete("a b c", 0.0, rng(seed)) for seed in range(50)} == {"b c", "a c", "a b"}


# ---------------------------------------------------------------- random_swap


@QUICK
@given(text=texts, share=shares, seed=seeds)
def test_swap_keeps_every_character(text, share, seed):
    noisy = random_swap(text, share, rng(seed))
    assert Counter(noisy) == Counter(text)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_swap_keeps_the_multiset_of_words(share):
    for seed in range(30):
        noisy = random_swap(ENGLISH, share, rng(seed))
        assert Counter(noisy.split(" ")) == Counter(ENGLISH.split(" "))
        assert noisy != ENGLISH


def test_share_zero_swaps_exactly_one_pair_of_neighbours():
    whole = words(CHINESE)
    swaps = {"".join([*whole[:i], whole[i + 1], whole[i], *whole[i + 2 :]]) for i in range(len(whole) - 1)}
    assert {random_swap(CHINESE, 0.0, rng(seed)) for seed in range(200)} == swaps


def test_two_words_are_exchanged_and_their_space_stays():
    assert random_swap("left \n right", 0.5, rng()) == "right \n left"
    assert random_swap("每天读书", 0.5, rng()) == "读书每天"


# ---------------------------------------------------------------- char_delete


@QUICK
@given(text=texts, share=shares, seed=seeds)
def test_char_delete_removes_characters_only_and_no_white_space(text, share, seed):
    noisy = char_delete(text, share, rng(seed))
    assert is_subsequence(noisy, text)
    assert [char for char in noisy if char.isspace()] == [char for char in text if char.isspace()]
    n_letters = len("".join(text.split()))
    assert 1 <= len("".join(noisy.split())) <= max(1, n_letters - 1)


def test_share_one_leaves_one_character():
    assert len(char_delete(CHINESE, 1.0, rng())) == 1
