"""Texts in the columns of a terminal, where a Chinese character takes two."""

from __future__ import annotations

import unicodedata
from itertools import accumulate

_REPLACEMENT = "\ufffd"
_OVERRIDES = str.maketrans(dict.fromkeys("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", _REPLACEMENT))
"""Unicode's marks that turn the direction of what follows: with them lab14 is shown as lab41."""


def text_columns(text: str) -> int:
    """How many columns of a terminal a text takes: two for a Chinese character, none for a combining mark."""
    return sum(map(_character_columns, text))


def _character_columns(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def in_order(text: str) -> str:
    """A text whose characters are shown in their order: marks that turn its direction become U+FFFD.

    Arabic and Hebrew need none of them to be written from right to left.
    """
    return text if text.isascii() else text.translate(_OVERRIDES)


def one_line(text: str) -> str:
    """A text on one line, in_order; what would steer a terminal (ESC and other control characters) becomes U+FFFD."""
    line = in_order(" ".join(text.split()))
    if line.isprintable():
        return line
    return "".join(_REPLACEMENT if unicodedata.category(character) == "Cc" else character for character in line)


def cut_text(text: str, columns: int) -> str:
    """A text as one_line gives it, closed with … where it is longer than so many columns."""
    line = one_line(text)
    if text_columns(line) <= columns:
        return line
    # One column is kept for the ellipsis.
    n_kept = sum(end <= columns - 1 for end in accumulate(map(_character_columns, line)))
    return line[:n_kept].rstrip() + "…"


def pad_text(text: str, columns: int) -> str:
    """A text with spaces behind it, so many columns wide."""
    return text + " " * (columns - text_columns(text))
