"""When two texts say the same: by their normal form, or by the share of their words, in languages with spaces or without."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b

from ebr.data.text.near_duplicates import jaccard
from ebr.data.text.scripts import IDEOGRAPHS, KANA, SOUTH_EAST_ASIAN

# With the signs that stand among Han: a run of these is no word.
_UNSPACED = f"\u3005-\u3007{KANA}{IDEOGRAPHS}{SOUTH_EAST_ASIAN}"
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}]")


def _marks() -> str:
    """Vowel signs and other marks, as ranges of a character class: isalnum knows none of them, yet they part no Hindi word."""
    # Scripts beyond the first plane would double the class and slow every search down.
    marks = [code for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in {"Mn", "Mc"}]
    marks = [code for code in marks if not _IS_UNSPACED.match(chr(code))]
    starts = [code for code, before in zip(marks, [0, *marks], strict=False) if code != before + 1]
    ends = [code for code, after in zip(marks, [*marks[1:], 0], strict=True) if after != code + 1]
    return "".join(rf"\u{start:04x}-\u{end:04x}" for start, end in zip(starts, ends, strict=True))


_MARKS = _marks()
_LETTERS = rf"[^\W_{_UNSPACED}]"
_RUN = re.compile(rf"[{_UNSPACED}]+|{_LETTERS}+(?:[{_MARKS}]+{_LETTERS}*)*")


def normal_form(text: str) -> str:
    """The text with compatible characters made one (NFKC), without case, each run of white space one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def form_digest(form: str) -> bytes:
    """16 bytes that stand for a normal form."""
    return blake2b(form.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shingles(text: str) -> frozenset[str]:
    """What two texts are compared by: the distinct words of normal_form, and of writing without spaces the pairs of neighbours.

    A run of one such character is a shingle itself. Punctuation counts for nothing.
    """
    return frozenset(each_shingle(normal_form(text)))


def each_shingle(normal: str) -> Iterator[str]:
    """The shingles of a text in its normal form, as they come, repeats too."""
    for match in _RUN.finditer(normal):
        run = match[0]
        if _IS_UNSPACED.match(run) and len(run) > 1:
            yield from (run[start : start + 2] for start in range(len(run) - 1))
        else:
            yield run


def is_near(left: frozenset[str], right: frozenset[str], threshold: float) -> bool:
    """Whether two texts' shingles have a Jaccard similarity >= threshold; texts without any are near to none."""
    fewer, more = (len(left), len(right)) if len(left) < len(right) else (len(right), len(left))
    if not fewer or fewer / more < threshold:
        return False  # the larger set alone keeps them apart: most pairs end here
    return jaccard(left, right) >= threshold
