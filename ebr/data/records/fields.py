"""One field of a record: a text, a list of texts, or their scores; what is wrong with it is said, and how to mend it."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings

from ebr.data.text.blank import is_blank
from ebr.errors import DataError

# Nearly every text does, and is neither blank nor a list: one look instead of two.
_BEGINS_WITH_A_WORD = re.compile(r"[0-9A-Za-z\u4e00-\u9fff]")


def read_texts(name: str, value: object, *, empty: str) -> tuple[str, ...]:
    """A list of texts, or one text, or null for none; empty: how to mend a text that stands alone and is blank.

    Raises DataError; name: the field as it is called there.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        return (read_text(name, value, empty=empty),)
    mend = "give a text or take it out of the list"
    return tuple([read_text(f"{name}[{place}]", "" if text is None else text, empty=mend) for place, text in enumerate(value)])


def read_text(name: str, value: object, *, empty: str = "give a text or remove the record") -> str:
    """One text, as it is written. Raises DataError."""
    if value is None:
        raise DataError(f"{name} is missing; give a text")
    if not isinstance(value, str):
        mend = "give a text" if isinstance(value, (list, dict)) else "put it in quotes"
        raise DataError(f"{name} is {type(value).__name__}, not a text; {mend}")
    if not _BEGINS_WITH_A_WORD.match(value):
        if is_blank(value):
            raise DataError(f"{name} is empty; {empty}")
        if _is_written_list(value.strip()):
            raise DataError(f"{name} is a list written as text; write it as a JSON list")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half a character (a lone \\ud800–\\udfff escape); repair the text") from None
    return value


def _is_written_list(text: str) -> bool:
    """Whether a text is a list of texts as JSON, or as Python prints it: what a table has where a list was meant."""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    for parse in (json.loads, _literal):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
    return False


def _literal(text: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of "\d" and the like in somebody's text
        return ast.literal_eval(text)


def read_scores(name: str, value: object, n_texts: int) -> tuple[float, ...]:
    """As many scores as texts, a plain number for one text, or none: null or an empty list. Raises DataError."""
    if value is None or value == []:
        return ()
    scores = value if isinstance(value, list) else [value]
    if len(scores) != n_texts:
        given = f"{len(scores)} score{'s' if len(scores) > 1 else ''}"
        raise DataError(f"{name} has {given} for {n_texts} text{'' if n_texts == 1 else 's'}; give one for each, or none")
    if not isinstance(value, list):
        return (_score(name, value),)
    return tuple([_score(f"{name}[{place}]", score) for place, score in enumerate(scores)])


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
