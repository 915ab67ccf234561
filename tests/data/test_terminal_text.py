"""Texts in the columns of a terminal."""

import pytest

from ebr.data.text.terminal_text import cut_text, in_order, one_line, pad_text, text_columns


def test_a_chinese_character_takes_two_columns_and_a_combining_mark_none():
    assert text_columns("ab退款") == 6 and text_columns("e\u0301") == 1
    assert pad_text("退", 4) == "退  "


@pytest.mark.parametrize(
    ("text", "columns", "cut"),
    [("abcdef", 6, "abcdef"), ("abcdef", 5, "abcd…"), ("退款 到账", 6, "退款…"), ("a\n b\tc", 9, "a b c")],
)
def test_a_text_is_cut_to_columns_on_one_line(text, columns, cut):
    assert cut_text(text, columns) == cut


@pytest.mark.parametrize("character", ["\x1b", "\x00", "\x07", "\x08", "\x7f", "\x9b"])
def test_what_would_steer_a_terminal_is_replaced(character):
    assert one_line(f"a{character}[31m退") == "a\ufffd[31m退"
    assert cut_text(f"{character}abc", 3) == "\ufffda…"
    # Joiners and marks are writing, not steering.
    assert one_line("\u0915\u094d\u200d\u0937") == "\u0915\u094d\u200d\u0937"


@pytest.mark.parametrize("mark", ["\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"])
def test_what_would_turn_the_direction_of_a_line_is_replaced(mark):
    assert one_line(f"lab{mark}14 退") == in_order(f"lab{mark}14 退") == "lab\ufffd14 退"
    assert one_line("שלום 14\u200f") == "שלום 14\u200f"
