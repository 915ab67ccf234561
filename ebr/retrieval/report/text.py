"""How the report writes numbers and texts: in the reader's language, and so that no text can harm the page."""

from __future__ import annotations

import math
import re

from markupsafe import Markup, escape

from ebr.data.text.terminal_text import in_order
from ebr.retrieval.report.words import METRIC_NAMES, WORDS

MISSING = "–"
SHOWN_CHARACTERS = 300

_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1f\x85]")
# HTML forbids control characters, and half a surrogate pair cannot be encoded.
_FORBIDDEN = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


class Wording:
    """The words of one language, "en" or "zh", as templates use them. Values are escaped unless they are Markup."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._words = WORDS[language]

    def __call__(self, key: str, **values: object) -> Markup:
        """The words of a key, with its placeholders filled."""
        return Markup(self._words[key]).format(**values)

    def __contains__(self, key: str) -> bool:
        return key in self._words

    def count(self, what: str, n: int) -> Markup:
        """'1 query', '1,000 queries'. what: "queries" or "documents"."""
        return self(f"{what}_1") if n == 1 else self(f"{what}_n", n=f"{n:,}")

    def metric(self, name: str) -> str:
        """A metric's name as papers write it, or as it is."""
        return METRIC_NAMES.get(name, name)

    def share(self, value: float | None) -> str:
        """A share as per cent: '12.3 %'."""
        return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def score(value: float | None) -> str:
    """Four digits, as trec_eval gives them; a dash for what is unknown."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference with its sign, a true minus; what rounds to nothing has none."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:+.4f}".replace("-", "−")
    return "0.0000" if text in ("+0.0000", "−0.0000") else text


def probability(value: float | None) -> str:
    """Four digits; what would round to 0.0000 is named by its bound."""
    return "< 0.0001" if value is not None and 0 <= value < 0.00005 else score(value)


def printable(text: str) -> str:
    """Text that UTF-8 and HTML can hold: lone surrogates and control characters become U+FFFD, all line breaks newlines."""
    return _FORBIDDEN.sub("\ufffd", _LINE_BREAKS.sub("\n", in_order(text)))


def isolated(text: str) -> Markup:
    """A name for the middle of a sentence; its direction of writing cannot reach the words around it."""
    return Markup("<bdi>") + escape(printable(text)) + Markup("</bdi>")


def shortened(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """The first characters of a text on one line; what is cut ends in an ellipsis."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1].rstrip() + "…"


def without_unit(label: str) -> str:
    """'3–5 words' → '3–5': the heading above says what is counted, in the reader's language."""
    return label.removesuffix(" words").removesuffix(" word")
