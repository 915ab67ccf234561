"""Training examples: what a query belongs with, and what it does not."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ebr.data.records.files import SUFFIXES, each_record, is_named_like_records
from ebr.data.records.layouts import layout_of
from ebr.errors import DataError

Parsed = TypeVar("Parsed")

# A manifest lies beside the training file that it describes; see ebr.data.files.write.manifest_path.
_MANIFEST_SUFFIX = ".manifest.json"
_MOST_PROBLEMS = 30


@dataclass(frozen=True)
class Example:
    """A query with the texts that belong to it, and texts that are known not to."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] = ()
    """A teacher's score of each positive, or none."""
    negative_scores: tuple[float, ...] = ()
    """A teacher's score of each negative, or none."""

    def texts(self) -> Iterator[str]:
        """Every text of the example."""
        yield self.query
        yield from self.positives
        yield from self.negatives


def find_training_files(data_path: str, *, option: str = "data_path") -> list[Path]:
    """The files of records of a file, a glob, or a folder (not its subfolders), without manifests and hidden files.

    A file that is named itself is taken whatever its name, of others those that is_named_like_records.
    option: what the user calls data_path. Raises DataError when there are none.
    """
    path = Path(data_path)
    if path.is_file():
        return [path]
    found = list(path.iterdir()) if path.is_dir() else [Path(name) for name in glob.glob(data_path)]  # noqa: PTH207
    files = sorted(
        file
        for file in found
        # Hidden: what another program is still writing.
        if file.is_file()
        and is_named_like_records(file)
        and not file.name.endswith(_MANIFEST_SUFFIX)
        and not file.name.startswith(".")
    )
    if not files:
        one = " or ".join([", ".join(SUFFIXES[:-1]), SUFFIXES[-1]])
        what = f"holds no {one} file" if path.is_dir() else f"is no file, folder or glob that matches a {one} file"
        raise DataError(f"{option} {data_path}: {what}")
    return files


# ---------------------------------------------------------------- reading


def read_examples(files: Sequence[Path]) -> list[Example]:
    """Every record of the files as an example: ebr.data.records.files says what a file is, parse_record what a record is.

    Raises one DataError that lists every wrong record: nothing is trained on a half-read set.
    """
    return read_objects(files, parse_record)


def read_objects(files: Sequence[Path], parse: Callable[[dict[str, Any]], Parsed]) -> list[Parsed]:
    """What parse makes of every record of the files, in order. Files and errors as in read_examples; parse raises DataError."""
    parsed: list[Parsed] = []
    problems = _Problems()
    for file in files:
        for where, record in each_record(file):
            try:
                parsed.append(parse(_object(record)))
            except DataError as error:
                problems.add(where, error)
    problems.raise_if_any()
    if not parsed:
        raise DataError(f"{', '.join(map(str, files))}: no records")
    return parsed


def parse_record(record: dict[str, Any], *, with_scores: bool = True) -> Example:
    """One record in a layout that ebr.data.records.layouts knows: anchor / positive / negative, query / pos / neg, or another.

    Positives and negatives are a text or a list; one positive is needed. with_scores: read what a teacher says of them too.
    Keys that mean nothing to training (prompt, type, id, …) are passed over. Raises DataError; a list's element is named by its
    place, 'pos'[0] being the first.
    """
    layout = layout_of(record)
    layout.check(record)
    query, positives = layout.read_query(record), layout.read_positives(record)
    negatives = layout.read_negatives(record)
    scores = layout.read_scores(record, len(positives), len(negatives)) if with_scores else ((), ())
    return Example(query, positives, negatives, *scores)


def _object(record: object) -> dict[str, Any]:
    if isinstance(record, dict):
        return record
    raise record if isinstance(record, DataError) else DataError(f"is {type(record).__name__}, not an object like {{…}}")


class _Problems:
    """Wrong records, gathered so that files are mended in one go; only the first few are kept as text."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._n_found = 0

    def add(self, where: str, error: DataError) -> None:
        self._n_found += 1
        if len(self._shown) < _MOST_PROBLEMS:
            self._shown.append(f"{where}: {error}")

    def raise_if_any(self) -> None:
        if not self._n_found:
            return
        head = f"{self._n_found} wrong record{'s' if self._n_found > 1 else ''}; nothing was read:"
        n_hidden = self._n_found - len(self._shown)
        raise DataError("\n  ".join([head, *self._shown, *([f"… and {n_hidden} more"] if n_hidden else [])]))
