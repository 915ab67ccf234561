"""What a tokenizer cannot spell of some texts, counted: the tokens that it lacks, and what is lost without and with them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ebr.data.progress import progress_bar
from ebr.model.vocabulary.spelling import Spelling

_BAR_AFTER_S = 2


@dataclass(frozen=True)
class Unspelt:
    """What is unknown of some texts. n_lost: characters, of all without white space; n_broken: texts that hold one."""

    n_lost: int
    n_characters: int
    n_broken: int
    n_texts: int

    @property
    def share(self) -> float:
        """Of the characters."""
        return self.n_lost / max(1, self.n_characters)

    @property
    def share_of_texts(self) -> float:
        """Of the texts, that hold one at least."""
        return self.n_broken / max(1, self.n_texts)

    def to_json(self) -> dict[str, int]:
        """Plain JSON values."""
        return {"characters": self.n_lost, "of_characters": self.n_characters, "texts": self.n_broken, "of_texts": self.n_texts}


@dataclass(frozen=True)
class MissingTokens:
    """tokens: those to be added, the most frequent first, of n_missing. before, after: what is unknown without, with them."""

    tokens: tuple[str, ...]
    n_missing: int
    before: Unspelt
    after: Unspelt


class _Counted:
    """Texts, word by word: each distinct word once, and 4 bytes for each word of a text that is lost in it.

    To a Unigram a run without spaces is one word, so that of Chinese nearly the whole text is kept.
    """

    def __init__(self, spelling: Spelling, texts: Iterable[str]) -> None:
        self._spelling = spelling
        self._counts: Counter[str] = Counter()
        self._lacking: dict[str, list[str]] = {}
        self._n_texts = 0
        self._lost_words: dict[str, int] = {}
        self._of_texts = array("I")
        self._starts = array("q")
        for text in texts:
            self._add(spelling.words(text))

    def _add(self, words: list[str]) -> None:
        self._n_texts += 1
        self._counts.update(words)
        lost: set[int] = set()
        for word in set(words):
            if word not in self._lacking:
                self._lacking[word] = self._spelling.lacking(word)
                if self._spelling.n_lost(word, self._lacking[word]):
                    self._lost_words[word] = len(self._lost_words)
            if word in self._lost_words:
                lost.add(self._lost_words[word])
        if lost:
            self._starts.append(len(self._of_texts))
            self._of_texts.extend(lost)

    def tokens(self) -> list[str]:
        """Those that are lacking, the most frequent first; of equal ones the first in Unicode's order."""
        counts: Counter[str] = Counter()
        for word in self._lost_words:
            for token in self._lacking[word]:
                counts[token] += self._counts[word]
        return sorted(counts, key=lambda token: (-counts[token], token))

    def unspelt(self, added: Set[str]) -> Unspelt:
        """What is unknown once these tokens are added."""
        lost = {
            word: self._spelling.n_lost(word, [token for token in self._lacking[word] if token not in added])
            for word in self._lost_words
        }
        return Unspelt(
            n_lost=sum(self._counts[word] * n_lost for word, n_lost in lost.items()),
            n_characters=sum(count * self._spelling.n_characters(word) for word, count in self._counts.items()),
            n_broken=self._n_broken(np.array([n_lost > 0 for n_lost in lost.values()], dtype=np.bool_)),
            n_texts=self._n_texts,
        )

    def _n_broken(self, is_lost: npt.NDArray[np.bool_]) -> int:
        if not len(self._starts):
            return 0
        return int(np.logical_or.reduceat(is_lost[np.asarray(self._of_texts)], np.asarray(self._starts)).sum())


def find_missing(spelling: Spelling, texts: Iterable[str], most: int) -> MissingTokens:
    """The `most` most frequent tokens that a tokenizer lacks for these texts."""
    counted = _Counted(spelling, progress_bar(texts, desc="look for unknown characters", unit="text", delay=_BAR_AFTER_S))
    ordered = counted.tokens()
    chosen = tuple(ordered[:most])
    return MissingTokens(chosen, len(ordered), counted.unspelt(frozenset()), counted.unspelt(frozenset(chosen)))
