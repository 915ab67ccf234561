"""When two texts say the same, in writing with spaces and without."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.data.text.normal_form import is_near, normal_form, shingles


@pytest.mark.parametrize(
    ("text", "form"),
    [("  Red\n shoe ", "red shoe"), ("ＡＢＣ　１２", "abc 12"), ("Straße", "strasse"), ("ﾃｽﾄ", "テスト"), ("退款！", "退款!")],
)
def test_normal_form_knows_neither_case_nor_width_nor_white_space(text, form):
    assert normal_form(text) == form


@given(st.text())
def test_white_space_around_a_text_makes_no_other_text(text):
    assert normal_form(text) == normal_form(text.strip()) == normal_form(f" {text}\n")


def test_words_are_compared_in_spaced_writing_and_pairs_of_neighbours_in_chinese():
    assert shingles("Red shoe, red!") == {"red", "shoe"}
    assert shingles("退款三天到账") == {"退款", "款三", "三天", "天到", "到账"}
    assert shingles("用iPhone15拍照") == {"用", "iphone15", "拍照"}
    assert shingles("テスト") == {"テス", "スト"}
    assert shingles("!? …") == frozenset()


def test_vowel_signs_and_accents_are_part_of_their_word():
    assert shingles("लाल जूता, लाल!") == {"लाल", "जूता"}
    assert not is_near(shingles("लाल जूता"), shingles("लूल जीता"), 0.1)
    assert is_near(shingles("लाल जूता"), shingles("जूता: लाल"), 1)
    # Tamil, Bengali, pointed Arabic and Hebrew; a letter with an accent that has no composed form.
    for word in ("தமிழ்", "বাংলা", "كَتَبَ", "שָׁלוֹם", "x̂y"):
        assert shingles(f"{word} a") == {normal_form(word), "a"}
    # A mark alone, like the one that makes a heart red, is no word.
    assert shingles("❤️ a") == {"a"}


def test_thai_is_compared_by_pairs_of_neighbours_vowel_signs_among_them():
    assert shingles("ลดราคา") == {"ลด", "ดร", "รา", "าค", "คา"}
    assert shingles("ปี่ ok") == {"ปี", "ี่", "ok"}
    # Two characters more: 4 of 6 pairs.
    assert is_near(shingles("สีแดง"), shingles("สีแดงๆๆ"), 4 / 6) and not is_near(shingles("สีแดง"), shingles("สีแดงๆๆ"), 0.7)


def test_near_is_by_shared_over_all():
    # 退款三天到账 / 退款五天到账 share 退款, 天到, 到账 of 7 pairs.
    three, five = shingles("退款三天到账"), shingles("退款五天到账")
    assert is_near(three, five, 3 / 7) and not is_near(three, five, 0.43)
    # One more character at the end: 5 of 6.
    assert is_near(three, shingles("退款三天到账了"), 5 / 6) and not is_near(three, shingles("退款三天到账了"), 0.84)
    nine, ten = frozenset("abcdefghi"), frozenset("abcdefghij")
    assert is_near(nine, ten, 0.9) and not is_near(nine, ten, 0.91)


def test_texts_without_a_word_are_near_to_none():
    assert not is_near(frozenset(), frozenset(), 0.1)
    assert not is_near(frozenset(), frozenset("a"), 0.1)


@given(st.frozensets(st.integers(0, 9)), st.frozensets(st.integers(0, 9)), st.floats(0.01, 1))
def test_near_is_the_definition_of_jaccard_and_symmetric(left, right, threshold):
    expected = bool(left | right) and len(left & right) / len(left | right) >= threshold
    assert is_near(left, right, threshold) == is_near(right, left, threshold) == (expected and bool(left and right))
