"""Which columns of a vector file are what: the one that holds the vectors, however it is called, and those that are text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ebr.data.tables.cells import VECTOR, column_index
from ebr.errors import DataError

OPTION = "vector_column"

_LIKE_VECTOR = re.compile(r"(?:.*[^a-z0-9])?(?:vector|embedding|emb|vec)s?", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)
_FEWEST = 2
_SHOWN = 20


@dataclass(frozen=True)
class Layout:
    """vector: the column that holds the vectors, or several, one number each, in their order.

    texts: the other columns that can be read as text. left_out: those that cannot, and what they are.
    """

    vector: tuple[str, ...]
    texts: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Where the vector stands, for people."""
        if len(self.vector) == 1:
            return f"the vector in the column {self.vector[0]!r}"
        return f"one number of the vector in each of the {len(self.vector):,} columns {self.vector[0]!r} to {self.vector[-1]!r}"


def find_vector(
    path: Path, names: Sequence[str], asked: str | None = None, numeric: Collection[str] | None = None
) -> tuple[str, ...]:
    """The column of the vectors, or the columns of their numbers, like x_0, x_1, x_2.

    asked: its name, or what stands before the numbers; None = vector, else the one column with a like name, else columns that
    are numbered from 0 or 1. numeric: the columns that hold numbers, where that is known.
    Raises DataError when there is none, or more than one.
    """
    if asked is not None:
        if asked in names:
            return (asked,)
        numbered = _numbered(names, numeric).get(asked)
        return numbered or (names[column_index(path, names[:_SHOWN], asked, OPTION)],)
    if VECTOR in names:
        return (VECTOR,)
    like = like_vectors(names)
    if len(like) == 1:
        return (like[0],)
    if like:
        raise DataError(f"{path}: {', '.join(map(repr, like))} may all hold the vectors; name one with --{OPTION}")
    widest = max(_numbered(names, numeric).values(), key=len, default=())
    return widest or (names[column_index(path, names[:_SHOWN], VECTOR, OPTION)],)


def like_vectors(names: Iterable[str]) -> list[str]:
    """The names that say vector, embedding or the like: embedding, text_embedding, emb."""
    return [name for name in names if _LIKE_VECTOR.fullmatch(name)]


def _numbered(names: Sequence[str], numeric: Collection[str] | None) -> dict[str, tuple[str, ...]]:
    """Columns numbered without a gap from 0 or 1, by what stands before the number."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if (match := _NUMBERED.fullmatch(name)) and (numeric is None or name in numeric):
            found.setdefault(match[1], {})[int(match[2])] = name
    return {
        prefix: tuple(places[place] for place in sorted(places))
        for prefix, places in found.items()
        if len(places) >= _FEWEST and min(places) in (0, 1) and max(places) - min(places) + 1 == len(places)
    }
