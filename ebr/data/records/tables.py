"""Rows of tables as records: csv, tsv, Parquet, ORC and Feather, the columns' names being the keys."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from ebr.data.files.contents import TableKind
from ebr.data.files.unpacking import UnreadableError
from ebr.data.records.layouts import SCORE_KEYS, is_text_key, layout_of
from ebr.data.records.lines import decoded
from ebr.data.tables.columnar import as_text, columnar_batches, columnar_schema
from ebr.errors import DataError

Found = tuple[str, object]
"""Where a record stands and the record, or the DataError that says why it cannot be read."""

_LONGEST_CELL = 2**31 - 1  # the most that a C long holds everywhere


def table_rows(file: Path, stream: Iterator[bytes], delimiter: str, of_training: bool) -> Iterator[Found]:
    """The rows below the header as objects; of_training as in each_record."""
    rows = quoted_rows(file, stream, delimiter)
    where, header = next(rows, (str(file), None))
    if header is None:
        return
    if isinstance(header, DataError):
        yield where, header
        return
    names = [name.strip() for name in header]
    try:
        _check_columns(names, of_training)
    except DataError as error:
        hint = "; the line has one column only: is the delimiter right?" if len(names) == 1 else ""
        yield where, DataError(f"{error}{hint}")
        return
    for where, row in rows:
        if isinstance(row, DataError):
            yield where, row
        elif len(row) != len(names):
            yield (
                where,
                DataError(f"has {len(row)} cells, and the header {len(names)}; put a cell with {delimiter!r} in quotes"),
            )
        else:
            value = _cell_value if of_training else _plain_cell
            yield where, {name: value(name, cell) for name, cell in zip(names, row, strict=True)}


class _Lines:
    """Lines of text, and the number of the last. A generator would be over after the first line that is not UTF-8."""

    def __init__(self, stream: Iterator[bytes]) -> None:
        self.number = 0
        self._stream = stream

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = next(self._stream)
        self.number += 1
        return decoded(raw, self.number)


def _check_columns(names: Sequence[str], of_training: bool) -> None:
    """Raise DataError for columns that no record can come from: better told once than once a row."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"column {twice[0]!r} occurs twice; rename one")
    if of_training and not any(map(is_text_key, names)):
        layout_of(dict.fromkeys(names, ""))


def quoted_rows(file: Path, stream: Iterator[bytes], delimiter: str) -> Iterator[tuple[str, list[str] | DataError]]:
    """The rows of a table with standard quoting (RFC 4180), blank lines left out; a row is placed where it begins."""
    lines = _Lines(stream)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    with _cells_of_any_length():
        while True:
            begin = lines.number + 1
            try:
                row = next(rows, None)
            except UnreadableError:
                raise
            except DataError as error:
                yield f"{file}:{lines.number}", error
                continue
            except csv.Error as error:
                yield f"{file}:{begin}", DataError(f'is no row of a table ({error}); is a quote (") left open or not doubled?')
                continue
            if row is None:
                return
            if row:
                yield f"{file}:{begin}", row


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _plain_cell(_: str, cell: str) -> str | None:
    return cell or None


def _cell_value(name: str, cell: str) -> Any:  # noqa: ANN401
    """A cell is text; but none is null, a JSON list is a list, and the cells of scores and labels are numbers."""
    if not cell:
        return None
    if name not in SCORE_KEYS and not cell.startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if name in SCORE_KEYS:
        return value
    # "[3]" may be a text, a footnote's mark.
    is_text = not isinstance(value, list) or (is_text_key(name) and any(isinstance(one, (int, float)) for one in value))
    return cell if is_text else value


# ---------------------------------------------------------------- columns


def columnar_rows(file: Path, kind: TableKind, of_training: bool) -> Iterator[Found]:
    """The rows of a file of columns as objects; of_training as in each_record. Raises DataError when it cannot be used."""
    number = 0
    _check_columns(columnar_schema(file, kind).names, of_training)
    for batch in columnar_batches(file, kind):
        for row in _python_rows(_with_texts(file, batch)):
            number += 1
            yield f"{file}: row {number}", row


def _with_texts(file: Path, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with text where a writer forgot to say that its bytes are text."""
    names = batch.schema.names
    columns = [_with_text(file, name, column) for name, column in zip(names, batch.columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=names)


def _with_text(file: Path, name: str, column: pa.Array) -> pa.Array:
    is_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
    # One row that is no text is a matter of that row, where the column is one of texts.
    if isinstance(column.type, pa.UuidType) or (is_bytes and is_text_key(name)):
        return as_text(file, name, column)
    if not is_bytes:
        return column
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return column


def _python_rows(batch: pa.RecordBatch) -> Iterator[object]:
    """Each row as an object. Text in columns is whatever its writer called so: it need not be UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            yield DataError("holds text that is not UTF-8; write the file anew in UTF-8")
            return
        for place in range(len(batch)):
            yield from _python_rows(batch.slice(place, 1))
