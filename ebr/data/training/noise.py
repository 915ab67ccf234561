"""Noise augmentation: texts with words dropped, neighbours swapped, or characters dropped."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from ebr.data.text.scripts import IDEOGRAPHS, KANA

# What rjieba cuts into words.
_UNSPACED = f"{KANA}{IDEOGRAPHS}"
_RUN = re.compile(f"[{_UNSPACED}]+|[^\\s{_UNSPACED}]+|\\s+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")


def words(text: str) -> list[str]:
    """Words and the white space between them; joined they are the text again. Chinese is segmented by rjieba."""
    parts: list[str] = []
    for run in _RUN.findall(text):
        parts.extend(_segment(run) if _IS_UNSPACED.match(run) else [run])
    return parts


def _segment(run: str) -> list[str]:
    import rjieba  # its dictionary takes 0.14 s to load, and only noise on Chinese needs it

    return list(rjieba.cut(run))


def random_delete(text: str, share: float, rng: np.random.Generator) -> str:
    """Drop each word with chance `share`: at least one, never all."""
    parts = words(text)
    places = [index for index, part in enumerate(parts) if not part.isspace()]
    dropped = set(_choose(places, share, rng))
    return _tidy("".join(part for index, part in enumerate(parts) if index not in dropped))


def random_swap(text: str, share: float, rng: np.random.Generator) -> str:
    """Swap neighbouring words: each word with chance `share` with the next, at least one pair."""
    parts = words(text)
    places = [index for index, part in enumerate(parts) if not part.isspace()]
    for position in _choose(list(range(len(places) - 1)), share, rng, may_take_all=True):
        here, there = places[position], places[position + 1]
        parts[here], parts[there] = parts[there], parts[here]
    return "".join(parts)


def char_delete(text: str, share: float, rng: np.random.Generator) -> str:
    """Drop each character with chance `share`: at least one, never all; white space stays."""
    places = [index for index, char in enumerate(text) if not char.isspace()]
    dropped = set(_choose(places, share, rng))
    return "".join(char for index, char in enumerate(text) if index not in dropped)


def _choose(places: Sequence[int], share: float, rng: np.random.Generator, *, may_take_all: bool = False) -> list[int]:
    """A random part of places: each with chance `share`, at least one, and unless allowed never all."""
    most = len(places) if may_take_all else len(places) - 1
    if most < 1:
        return []
    count = min(most, max(1, int(rng.binomial(len(places), share))))
    return sorted(int(place) for place in rng.choice(np.asarray(places), size=count, replace=False))


def _tidy(text: str) -> str:
    return re.sub(r"\s{2,}", " ", text).strip()


NOISE: dict[str, Callable[[str, float, np.random.Generator], str]] = {
    "random_delete": random_delete,
    "random_swap": random_swap,
    "char_delete": char_delete,
}
"""Noise functions by the name that the option noise_type gives them."""
