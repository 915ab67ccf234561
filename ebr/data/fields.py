"""One field of a record: a text, a list of texts, or their scores; what is wrong with it is said, and how to mend it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ebr.errors import DataError


def refuse_misspelt(record: dict[str, Any], fields: Mapping[str, str]) -> None:
    """fields: the right name by a wrong one. To pass over a wrong name would be to lose its texts. Raises DataError."""
    for wrong, right in fields.items():
        if wrong in record:
            raise DataError(f"has {wrong!r}; the field is {right!r}")


def read_texts(name: str, value: object, *, empty: str) -> tuple[str, ...]:
    """A list of texts, or one text, or null for none; empty: how to mend a text that stands alone and is blank.

    Raises DataError; name: the field as it is called there.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        return (read_text(name, value, empty=empty),)
    return tuple(
        read_text(f"{name}[{place}]", "" if text is None else text, empty="give a text or take it out of the list")
        for place, text in enumerate(value)
    )


def read_text(name: str, value: object, *, empty: str = "give a text or remove the record") -> str:
    """One text, as it is written. Raises DataError."""
    if value is None:
        raise DataError(f"{name} is missing; give a text")
    if not isinstance(value, str):
        mend = "give a text" if isinstance(value, (list, dict)) else "put it in quotes"
        raise DataError(f"{name} is {type(value).__name__}, not a text; {mend}")
    if not value.strip():
        raise DataError(f"{name} is empty; {empty}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half a character (a lone \\ud800–\\udfff escape); repair the text") from None
    return value


def read_scores(name: str, value: object, n_texts: int) -> tuple[float, ...]:
    """As many scores as texts, a plain number for one text, or none: null or an empty list. Raises DataError."""
    if value is None or value == []:
        return ()
    scores = value if isinstance(value, list) else [value]
    if len(scores) != n_texts:
        given = f"{len(scores)} score{'s' if len(scores) > 1 else ''}"
        raise DataError(f"{name} has {given} for {n_texts} text{'' if n_texts == 1 else 's'}; give one for each, or none")
    return tuple(_score(f"{name}[{place}]" if isinstance(value, list) else name, score) for place, score in enumerate(scores))


def _score(name: str, value: object) -> float:
    # true is an int to Python.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{name} is {type(value).__name__}, not a number; give a number, or leave the scores out")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise DataError(f"{name} is not a finite number; give one, or leave the scores out")
    return score
