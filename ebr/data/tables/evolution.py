"""Tables that got columns over time (ALTER TABLE ADD COLUMNS): their older files lack the new ones, which are null there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ebr.data.files.contents import TableKind
from ebr.data.tables.cells import first_records, split_record
from ebr.data.tables.files import TableFile
from ebr.errors import DataError


def widest(files: Sequence[TableFile]) -> TableFile:
    """The first of the files that have most columns: the table as it is now."""
    return max(files, key=lambda file: len(file.all_columns))


def is_older(file: TableFile, now: TableFile) -> bool:
    """Whether a file has what another has but for columns that may have come later: of text, the last ones."""
    own, partitions = file.all_columns, {name for name, _ in now.partitions}
    missing = set(now.all_columns).difference(own)
    if partitions & missing or not set(own) <= set(now.all_columns):
        return False
    return file.kind is not TableKind.TEXT or file.columns == now.columns[: len(file.columns)]


def with_own_widths(files: Sequence[TableFile], column_names: Sequence[str], text_column: str) -> tuple[TableFile, ...]:
    """Files whose columns column_names gives, each with as many of them as it has.

    Fewer than all only where every row that a text file begins with has so many, its text among them, and some other file has
    all: rows that line breaks tore apart are not taken for whole ones. Raises DataError when ORC has fewer, and no file all.
    """
    own = tuple(_with_own_width(file, text_column) for file in files)
    if any(set(column_names) <= set(file.columns) for file in own):
        return own
    for file in files:
        if file.kind is TableKind.ORC and file.columns == tuple(column_names[: len(file.columns)]):
            raise DataError(f"{file.path}: has {len(file.columns)} columns, column_names {len(column_names)}; name each once")
    return tuple(files)


def _with_own_width(file: TableFile, text_column: str) -> TableFile:
    if file.kind is not TableKind.TEXT:
        return file
    width = _width(file)
    return replace(file, columns=file.columns[:width]) if text_column in file.columns[:width] else file


def _width(file: TableFile) -> int:
    """How many cells the rows have that a file begins with, where all have as many and fewer than it has columns."""
    n_columns = len(file.columns)
    with file.open() as stream:
        records = first_records(file.path, stream, file.dialect)
    widths = set()
    for raw in records.raws() if records else ():
        try:
            widths.add(len(split_record(raw, file.dialect)))
        except ValueError:
            widths.add(n_columns)
        if len(widths) > 1 or max(widths) >= n_columns:
            return n_columns
    return widths.pop() if widths else n_columns
