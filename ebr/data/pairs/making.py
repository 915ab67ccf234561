"""What can stand for a question and its answer in a text that nobody asked anything about.

A title and its text; the first sentence of a text and the rest of it; two crops of a text, drawn independently (Izacard et al.
2022, Contriever, whose crops these are).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ebr.data.records.documents import Document
from ebr.data.text.normal_form import normal_form
from ebr.data.training.noise import words

_CROP_SHARES = (0.1, 0.5)
"""Of the words of a text, as the paper has it."""
_TRIES = 10
# A full stop of Latin script ends a sentence before white space alone: not the one of 3.5.
_SENTENCE_END = re.compile("[。！？…]+[”’」』）)]*|[.!?]+[\"'”’)\\]]*(?=\\s|$)|\n")


class PairKind(str, Enum):
    """What stands for the query, and what for its answer."""

    TITLE = "title"
    FIRST_SENTENCE = "first_sentence"
    CROPS = "crops"


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together."""

    query: str
    answer: str


@dataclass(frozen=True)
class PairMaker:
    """Makes pairs of documents. min_words: what has fewer words, Chinese segmented, is too short; a title never is."""

    min_words: int
    rng: np.random.Generator

    def make(self, kind: PairKind, document: Document) -> Pair | None:
        """A pair of a document; None where it is too short for one, or both sides would say the same."""
        if kind is PairKind.TITLE:
            pair = self._title(document)
        elif kind is PairKind.FIRST_SENTENCE:
            pair = self._first_sentence(document.text)
        else:
            return next((pair for pair in self._crops(document.text) if _is_one(pair)), None)
        return pair if pair is not None and _is_one(pair) else None

    def _title(self, document: Document) -> Pair | None:
        title, text = document.title.strip(), document.text.strip()
        return Pair(title, text) if title and self._is_long(text) else None

    def _first_sentence(self, text: str) -> Pair | None:
        """The first sentence that is long enough, with those before it."""
        ends = (match.end() for match in _SENTENCE_END.finditer(text))
        end = next((end for end in ends if self._is_long(text[:end])), len(text))
        first, rest = text[:end].strip(), text[end:].strip()
        return Pair(first, rest) if self._is_long(rest) else None

    def _crops(self, text: str) -> Iterator[Pair]:
        parts = words(text.strip())
        for _ in range(_TRIES if self._is_long(text) else 0):
            query, answer = self._crop(parts), self._crop(parts)
            if self._is_long(query) and self._is_long(answer):
                yield Pair(query, answer)

    def _crop(self, parts: list[str]) -> str:
        length = max(1, round(len(parts) * self.rng.uniform(*_CROP_SHARES)))
        start = int(self.rng.integers(len(parts) - length + 1))
        return "".join(parts[start : start + length]).strip()

    def _is_long(self, text: str) -> bool:
        return sum(any(map(str.isalnum, word)) for word in words(text)) >= self.min_words


def _is_one(pair: Pair) -> bool:
    """Whether the two sides differ: a text is like itself without any training."""
    return normal_form(pair.query) != normal_form(pair.answer)
