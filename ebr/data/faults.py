"""What is wrong with files, told in one go."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from ebr.errors import DataError

SHOWN = 20
"""Different problems that are told in full."""


class Faults:
    """Problems of files, gathered so that a file is mended in one go: each once, where it first stands, and how often.

    stops: raise when SHOWN different ones were found, where to read on would take long.
    """

    def __init__(self, *, stops: bool = False) -> None:
        self._stops = stops
        self._counts: dict[tuple[Path, str], int] = {}
        self._places: list[str] = []
        self._n_hidden = 0

    def add(self, file: Path, where: str, problem: str) -> None:
        """One more; where: the file and the place in it, as `corpus.jsonl:3`."""
        key = file, problem
        if key in self._counts:
            self._counts[key] += 1
        elif len(self._places) < SHOWN:
            self._counts[key] = 1
            self._places.append(where)
            if self._stops and len(self._places) == SHOWN:
                self._raise("and perhaps more")
        else:
            self._n_hidden += 1

    def raise_if_any(self) -> None:
        """Raise one DataError with all of them, the first SHOWN in full."""
        if self._places:
            self._raise(f"and {self._n_hidden:,} more" if self._n_hidden else "")

    def _raise(self, last: str) -> NoReturn:
        lines = [
            f"{where}: {problem}" + (f" (and {count - 1:,} more like it)" if count > 1 else "")
            for where, ((_, problem), count) in zip(self._places, self._counts.items(), strict=True)
        ]
        raise DataError("\n".join(filter(None, [*lines, last]))) from None
