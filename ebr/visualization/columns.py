"""A column that colours a map: names with a colour each, or numbers on a scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MOST_NUMBERS_AS_NAMES = 12
"""A column of so many different numbers, or fewer, holds classes: 0 and 1, or stars from 1 to 5."""

_LARGEST = 1e300


@dataclass(frozen=True)
class MapColumn:
    """A cell a row, '' where it is missing. kind: "auto" goes by the cells; the others say it."""

    name: str
    texts: tuple[str, ...]
    kind: Literal["auto", "categories", "numbers"] = "auto"

    @cached_property
    def numbers(self) -> NDArray[np.float64] | None:
        """(N,) with nan for what is missing or no number; None for a column of names.

        Numbers are what is finite, in every cell that is not missing, with more than MOST_NUMBERS_AS_NAMES different ones.
        """
        if self.kind == "categories":
            return None
        different = set(self.texts) - {""}
        if self.kind == "auto" and (
            len(different) <= MOST_NUMBERS_AS_NAMES or any(np.isnan(_number(text)) for text in different)
        ):
            return None
        number_of = {text: _number(text) for text in different} | {"": np.nan}
        values = np.array([number_of[text] for text in self.texts], dtype=np.float64)
        return values if np.isfinite(values).any() else None


def _number(text: str) -> float:
    try:
        value = float(text) if text else np.nan
    except ValueError:
        return np.nan
    # "nan" and "inf" are names, 1_000 is one that Python alone reads, and spans beyond _LARGEST overflow.
    return value if abs(value) <= _LARGEST and "_" not in text else np.nan
