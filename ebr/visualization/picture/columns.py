"""A column that colours a map: names with a colour each, or numbers on a scale."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MOST_NUMBERS_AS_NAMES = 12
"""A column of so many different numbers, or fewer, holds classes: 0 and 1, or stars from 1 to 5."""
MOST_CLASSES = 1000
"""Of whole numbers that repeat, more different ones are measurements: prices, lengths, times."""

_LEAST_ROWS_A_CLASS = 2
_LARGEST = 1e300
_CODE = re.compile(r"[+-]?0\d.*|\d+[eE]\d+", re.DOTALL)
"""Written as no measurement is: 007, or 12e4 without a point or a sign (a hash, an article number)."""


@dataclass(frozen=True)
class MapColumn:
    """A cell a row, '' where it is missing.

    kind: "auto" goes by the cells; the others say it. most_classes: different whole numbers that "auto" still takes for names.
    """

    name: str
    texts: tuple[str, ...]
    kind: Literal["auto", "categories", "numbers"] = "auto"
    most_classes: int = MOST_CLASSES

    @cached_property
    def numbers(self) -> NDArray[np.float64] | None:
        """(N,) with nan for what is missing or no number; None for a column of names.

        Under "auto", numbers are what is finite in every cell that is not missing, with more than MOST_NUMBERS_AS_NAMES
        different ones, and is not written or repeated as the names of classes are.
        """
        if self.kind == "categories" or (self.kind == "auto" and (not self._could_be_numbers or self._are_class_ids)):
            return None
        number_of = self._number_of | {"": np.nan}
        values = np.array([number_of[text] for text in self.texts], dtype=np.float64)
        return values if np.isfinite(values).any() else None

    @property
    def doubt(self) -> str:
        """What "auto" took whole numbers for, and the option that says otherwise; '' where there was nothing to decide."""
        if self.kind != "auto" or not self._could_be_numbers or not self._are_whole:
            return ""
        holds = f"{self.name!r} holds {len(self._number_of):,} different whole numbers"
        if self.numbers is None:
            return f"{holds}, taken for classes; if they measure something: --label_kind numbers"
        return f"{holds}, taken for measurements (a colour bar, no figures); if they name classes: --label_kind categories"

    @cached_property
    def _number_of(self) -> dict[str, float]:
        return {text: _number(text) for text in dict.fromkeys(self.texts) if text}

    @property
    def _could_be_numbers(self) -> bool:
        return len(self._number_of) > MOST_NUMBERS_AS_NAMES and not any(map(np.isnan, self._number_of.values()))

    @property
    def _are_whole(self) -> bool:
        return all(value.is_integer() for value in self._number_of.values())

    @cached_property
    def _are_class_ids(self) -> bool:
        if any(map(_CODE.fullmatch, self._number_of)):
            return True
        n_given = len(self.texts) - self.texts.count("")
        repeat = n_given >= _LEAST_ROWS_A_CLASS * len(self._number_of)
        return repeat and len(self._number_of) <= self.most_classes and self._are_whole


def _number(text: str) -> float:
    try:
        value = float(text) if text else np.nan
    except ValueError:
        return np.nan
    # "nan" and "inf" are names, 1_000 is one that Python alone reads, and spans beyond _LARGEST overflow.
    return value if abs(value) <= _LARGEST and "_" not in text else np.nan
