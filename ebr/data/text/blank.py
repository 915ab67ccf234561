"""When a text says nothing: white space, and what is as invisible as that."""

from __future__ import annotations

import re

# White space, control and format characters; then those that Unicode calls letters, marks or signs and nobody sees:
# the joiner 034f, fillers of Hangul, vowels of Khmer, selectors of variants, tags, the blank of Braille.
# The format characters 0600-0605, 06dd, 070f and their like are left out: they are seen.
_INVISIBLE = (
    r"\s\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"
)
_VISIBLE = re.compile(f"[^{_INVISIBLE}]")


def is_blank(text: str) -> bool:
    """Whether a text holds nothing that can be seen: no character, or only white space, control and zero-width ones."""
    return _VISIBLE.search(text) is None
