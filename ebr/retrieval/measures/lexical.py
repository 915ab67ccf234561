"""Ranking by shared words, BM25: what a model must beat; and the fusion of such a ranking with a model's."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import bm25s
import numpy as np
import numpy.typing as npt
import rjieba

from ebr.data.progress import is_watched, progress_bar
from ebr.data.text.scripts import IDEOGRAPHS, SOUTH_EAST_ASIAN
from ebr.errors import DataError, first_line

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

RRF_CONSTANT = 60
FUSION_DEPTH = 100
"""How many hits of each ranking a fusion reads at least, as the report's does: so the first hits are the same for every k."""

# BEIR's own BM25 takes these; on our four sets they are as good as 1.2 and 0.75, Lucene's, or better, save for one-line texts.
_K1, _B = 0.9, 0.4
_BAR_AFTER_S = 2.0
_LONG_CORPUS = 100_000  # the library's own bars know no delay

_HAN = f"々〇{IDEOGRAPHS}"
# Of kana the letters: a stop between two words is no part of either.
_UNSPACED = f"{SOUTH_EAST_ASIAN}\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_RUNS = re.compile(f"([{_HAN}]+)|([{_UNSPACED}]+)")
_SPACED_WORDS = re.compile(r"[\w\u0900-\u0963\u0966-\u0dff]+")  # \w leaves out the vowel signs of India


def segment(text: str) -> list[str]:
    """The words that a text is found by, in its order, repeats kept; case, width and English plurals make no difference.

    Chinese gives its words, its characters, and its pairs of neighbouring characters. Words alone miss what the dictionary cuts
    differently in query and document, names and traditional script above all: nDCG@10 on zh_cmrc2018 and zh_drcd is 0.821 and
    0.880 with words, 0.816 and 0.881 with pairs, 0.839 and 0.900 with all three. Other scripts without spaces give pairs.
    """
    words: list[str] = []
    # Split by two groups, a text comes as spaced, han, unspaced, spaced, ...; a group that did not match is None.
    for index, part in enumerate(_RUNS.split(unicodedata.normalize("NFKC", text).casefold())):
        if not part:
            continue
        if index % 3 == 0:
            words += map(_singular, _SPACED_WORDS.findall(part))
        elif index % 3 == 1:
            words += _chinese_words(part)
        else:
            words += _pairs(part) or [part]
    return words


class LexicalIndex:
    """BM25 over the words of some documents (Robertson and Zaragoza 2009), in Lucene's form: every word weighs more than 0."""

    def __init__(self, documents: Iterable[str]) -> None:
        """Segment and count. A million documents of 100 words, 55 of them different, take 2 GB meanwhile, and 1.3 GB after."""
        self._vocabulary: dict[str, int] = {}
        word_ids = [
            array("i", [self._vocabulary.setdefault(word, len(self._vocabulary)) for word in segment(text)])
            for text in progress_bar(documents, desc="segment", unit="text", delay=_BAR_AFTER_S)
        ]
        self.n_documents = len(word_ids)
        self._bm25 = bm25s.BM25(method="lucene", k1=_K1, b=_B, csc_backend="scipy")  # its numpy sort takes twice the memory
        if self._vocabulary:  # without a word there is no mean length to divide by
            self._bm25.scores = self._bm25.build_index_from_ids(
                list(self._vocabulary.values()), word_ids, show_progress=len(word_ids) >= _LONG_CORPUS and is_watched()
            )

    @property
    def n_words(self) -> int:
        """Different words of the documents."""
        return len(self._vocabulary)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that no document has."""
        return [word for word in segment(text) if word not in self._vocabulary]

    def save(self, folder: Path) -> None:
        """Write arrays and JSON into a folder, as bm25s itself opens them. Raises ValueError when no document has a word."""
        if not self._vocabulary:
            raise ValueError("no document has a word, so there is nothing to save")
        self._bm25.vocab_dict = self._vocabulary
        self._bm25.save(folder, show_progress=False)

    @classmethod
    def load(cls, folder: Path) -> LexicalIndex:
        """What was saved, its arrays mapped into memory as they are read. Raises DataError when the files cannot be used."""
        index = cls(())
        try:
            index._bm25 = bm25s.BM25.load(folder, mmap=True, allow_pickle=False)
            index._vocabulary = index._bm25.vocab_dict
            n_words = len(index._bm25.scores["indptr"]) - 1
            index.n_documents = int(index._bm25.scores["num_docs"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{folder}: cannot be read as a BM25 index ({first_line(error)}); build it anew") from None
        if n_words != index.n_words:
            raise DataError(f"{folder}: has weights of {n_words:,} words, and {index.n_words:,} words; build it anew")
        return index

    def search(self, queries: Sequence[str], k: int, *, show_progress: bool = True) -> tuple[Scores, Rows]:
        """Find the k best documents of each query, best first: scores float32 and rows int64, both (Q, k).

        A document that shares no word with the query is not found: where fewer than k share one, the rest is row -1 and score
        0. Equal scores stand in row order, the lower row first. Raises ValueError when k is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        scores, rows = np.zeros((len(queries), k), np.float32), np.full((len(queries), k), -1, np.int64)
        bar = progress_bar(queries, desc="search by words", unit="query", delay=_BAR_AFTER_S, disable=not show_progress)
        for index, query in enumerate(bar):
            found = self.scores(query)
            best = _best_rows(found, np.flatnonzero(found), k)
            scores[index, : len(best)], rows[index, : len(best)] = found[best], best
        return scores, rows

    def scores(self, query: str) -> Scores:
        """(N,) BM25 of every document; 0 where it shares no word with the query."""
        word_ids = [self._vocabulary[word] for word in segment(query) if word in self._vocabulary]
        if not word_ids:
            return np.zeros(self.n_documents, np.float32)
        found: Scores = self._bm25.get_scores_from_ids(word_ids)
        return found


def reciprocal_ranks(ranks: Rows, *, constant: int = RRF_CONSTANT) -> npt.NDArray[np.float64]:
    """What ranks, from 1, add to the score of a fusion: 1 / (constant + rank) (Cormack et al. 2009)."""
    gains: npt.NDArray[np.float64] = 1 / (constant + ranks)
    return gains


def reciprocal_rank_fusion(rankings: Sequence[Rows], k: int, *, constant: int = RRF_CONSTANT) -> tuple[Scores, Rows]:
    """One ranking out of several: a document scores the sum of 1 / (constant + its rank) (Cormack et al. 2009).

    rankings: each (Q, any depth) rows, best first; -1 is no document. Ranks start at 1, and a document that a ranking lacks
    gets nothing from it. Returns scores float32 and rows int64, both (Q, k), best first, equal scores in row order; where there
    are fewer than k documents, the rest is row -1 and score 0.
    Raises ValueError when there is no ranking, the rankings differ in their number of queries, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    shapes = [ranking.shape for ranking in rankings]
    if not shapes or any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"rankings must be matrices of as many queries each, not {shapes}")
    ranked = np.concatenate(rankings, axis=1)
    gains = np.concatenate([reciprocal_ranks(1 + np.arange(depth), constant=constant) for _, depth in shapes])
    scores, rows = np.zeros((len(ranked), k), np.float32), np.full((len(ranked), k), -1, np.int64)
    for index, candidates in enumerate(ranked):
        found = candidates >= 0
        documents, which = np.unique(candidates[found], return_inverse=True)
        # Rounded before they are ordered: the same ranks in another order of rankings must tie.
        fused = np.bincount(which, weights=gains[found], minlength=len(documents)).astype(np.float32)
        best = _best_rows(fused, np.arange(len(documents)), k)
        scores[index, : len(best)], rows[index, : len(best)] = fused[best], documents[best]
    return scores, rows


def _chinese_words(run: str) -> list[str]:
    # hmm=False: words that are guessed are guessed differently in query and document.
    return [*rjieba.cut(run, hmm=False), *run, *_pairs(run)]


def _pairs(run: str) -> list[str]:
    return [run[start : start + 2] for start in range(len(run) - 1)]


def _singular(word: str) -> str:
    """What an English word's singular and plural share: shoe of shoes, battery of batteries, movy of movie; others themselves.

    After Harman 1991, 'How effective is suffixing?', without the exceptions that keep shoes from shoe and movies from movie.
    """
    if len(word) < 4 or not word.isascii():
        return word
    if word.endswith("s") and word[-2] not in "us":
        word = word[:-1]
    return word[:-2] + "y" if word.endswith("ie") and len(word) > 3 else word


def _best_rows(scores: Scores, rows: Rows, k: int) -> Rows:
    """The k of some ascending rows with the best scores, best first, equal scores in row order."""
    if len(rows) > k:
        kth_best = np.partition(scores[rows], -k)[-k]
        rows = rows[scores[rows] >= kth_best]
    return rows[np.argsort(-scores[rows], kind="stable")[:k]]
