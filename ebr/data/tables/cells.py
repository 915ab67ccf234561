r"""Delimited tables (\001 by default, as Hive exports them), streamed in and out.

Only \n ends a line, and a \r before it goes with it: U+2028, U+0085, NUL and a lone \r are part of a text.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ebr.data.files.contents import open_text
from ebr.data.files.dialects import NULL, UTF8, Dialect
from ebr.data.tables.records import Records, end_of_quoted, is_escaped, read_records
from ebr.errors import DataError

Cells = list[str | None]
"""The cells of a row in the order of the columns; None is null."""

HEADER_BLOCK = 64 * 2**10
"""Bytes in which a header is looked for."""

NOT_UTF8 = "not UTF-8"

VECTOR = "vector"
"""The name of the column that holds the vector."""


@dataclass(frozen=True)
class Row:
    """One good row: its cells in the order of the header, where it stands, and its bytes as they are in the file."""

    line: int
    cells: Cells
    raw: bytes


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands, why, and its bytes as they are in the file."""

    file: Path | str
    line: int
    reason: str
    raw: bytes


def read_header(file: Path, delimiter: str) -> list[str]:
    """The column names of a table. Raises DataError when the file is empty, unreadable, or names a column twice."""
    dialect = Dialect.of(delimiter)
    with open_text(file) as stream:
        first = first_records(file, stream, dialect)
    if first is None:
        raise DataError(f"{file}: is empty; a table starts with a line of column names")
    return names_of(file, first, dialect)


def first_records(file: Path, stream: BinaryIO, dialect: Dialect) -> Records | None:
    """The records that an open table starts with; None when it holds nothing but line ends. Raises DataError."""
    return next((records for records in read_records(file, stream, dialect, HEADER_BLOCK) if len(records)), None)


def names_of(file: Path, records: Records, dialect: Dialect, mend: str = "save the file as UTF-8") -> list[str]:
    """The column names in the first of the records. Raises DataError when they cannot be read, or one occurs twice.

    mend: what to do about a header in another encoding.
    """
    where = f"{file}:{records.line_of(0)}"
    try:
        names = split_record(records.data[records.starts[0] : records.ends[0]], dialect)
    except ValueError as error:
        reason = str(error)
        said = f"is {reason}; {mend}" if reason.startswith("not ") else f"cannot be used: {reason}"
        raise DataError(f"{where}: the header {said}") from None
    if any("\0" in name for name in names):
        raise DataError(f"{where}: the header holds NUL bytes: this is no table of text; leave the file out")
    return without_twins(where, [name.strip() for name in names])


def without_twins(where: str, names: list[str]) -> list[str]:
    """The names. Raises DataError when a column occurs twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: column {', '.join(twice)} occurs twice; rename one")
    return names


def column_index(file: Path, header: Sequence[str], column: str, option: str) -> int:
    """Where a column stands in the header. Raises DataError that names the option and the nearest column."""
    if column in header:
        return list(header).index(column)
    near = difflib.get_close_matches(column, header, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    # One name with odd characters in it is a line that another delimiter would split.
    if len(header) == 1 and re.search(r"[^\w .-]", header[0]):
        hint = "; the line has one column only: is the delimiter right?"
    raise DataError(f"{file}: no column {column!r} ({option}); it has {', '.join(map(repr, header))}{hint}")


def read_rows(file: Path, delimiter: str, n_columns: int) -> Iterator[Row | BadRow]:
    """The rows below the header, one at a time; a row that is ragged or not UTF-8 comes as BadRow, in its place."""
    dialect = Dialect.of(delimiter)
    with open_text(file) as stream:
        # The header is the first record, not line 1: empty lines may stand above it.
        above = 1
        for records in read_records(file, stream, dialect):
            for line, raw in list(zip(records.lines(), records.raws(), strict=True))[above:]:
                try:
                    yield Row(line, read_cells(raw, dialect, n_columns), raw)
                except ValueError as error:
                    yield BadRow(file, line, str(error), raw)
            above = 0 if len(records) else above


def read_cells(raw: bytes, dialect: Dialect, n_columns: int) -> Cells:
    """The cells of one record, None for null. Raises ValueError, whose text is the reason, when it is no row of n_columns."""
    cells = _split(_text(raw, dialect), dialect)
    if len(cells) != n_columns:
        raise ValueError(f"{len(cells)} columns instead of {n_columns}")
    return cells


def read_all_cells(raws: Sequence[bytes], dialect: Dialect, n_columns: int) -> list[Cells] | None:
    """The cells of many records, faster than one by one; None when one of them may be bad: read_cells tells which."""
    try:
        texts = [raw.removesuffix(b"\n").removesuffix(b"\r").decode() for raw in raws]
        rows = _split_all(texts, dialect)
    except (UnicodeDecodeError, csv.Error):
        return None
    # A quote left open takes the next record into its own.
    if rows is None or len(rows) != len(raws) or any(len(row) != n_columns for row in rows):
        return None
    return rows


def _split_all(texts: Sequence[str], dialect: Dialect) -> list[Cells] | None:
    if dialect.escape and any(dialect.escape in text for text in texts):
        return None if dialect.quote else [_split(text, dialect) for text in texts]
    if not dialect.quote:
        rows: list[Any] = [text.split(dialect.delimiter) for text in texts]
    elif any("\r" in text for text in texts):
        return None  # csv would take it for a line end
    else:
        rows = list(csv.reader(texts, delimiter=dialect.delimiter, quotechar=dialect.quote, strict=True))
    for null in dialect.nulls:
        rows = [[None if cell == null else cell for cell in row] if null in row else row for row in rows]
    return rows


def join_cells(cells: Sequence[str | None], delimiter: str) -> str:
    r"""One line of a table, without its line end: the inverse of reading. None is written as \N."""
    texts = [NULL if cell is None else cell for cell in cells]
    if delimiter != ",":
        return delimiter.join(texts)
    line = io.StringIO()
    # The writer quotes a line break in a cell only when its own line end holds that character.
    csv.writer(line, lineterminator="\r\n").writerow(texts)
    return line.getvalue().removesuffix("\r\n")


def split_record(raw: bytes, dialect: Dialect) -> list[str]:
    """The cells of one record as text. Raises ValueError, whose text is the reason, when it cannot be read."""
    return [NULL if cell is None else cell for cell in _split(_text(raw, dialect), dialect)]


def _text(raw: bytes, dialect: Dialect) -> str:
    try:
        return raw.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF8 if dialect.encoding == UTF8 else f"not {dialect.encoding}") from None


def _split(text: str, dialect: Dialect) -> Cells:
    if dialect.quote and dialect.quote in text:
        return _with_nulls(_split_quoted(text, dialect), dialect)
    cells = text.split(dialect.delimiter)
    if not dialect.quote and dialect.escape and dialect.escape in text:
        return _unescaped(cells, dialect)
    return _with_nulls(cells, dialect)


def _with_nulls(cells: list[str], dialect: Dialect) -> Cells:
    return [None if cell in dialect.nulls else cell for cell in cells]


def _unescaped(pieces: Sequence[str], dialect: Dialect) -> Cells:
    r"""The cells of a record that was split at every delimiter, the escaped ones too; \\N is no null, but the text \N."""
    cells: Cells = []
    parts: list[str] = []
    pattern = re.compile(re.escape(dialect.escape) + "(.)", re.DOTALL)
    for index, piece in enumerate(pieces, start=1):
        parts.append(piece)
        if index < len(pieces) and is_escaped(piece, len(piece), dialect.escape):
            continue
        cell = dialect.delimiter.join(parts)
        # As Hive reads since 2.0: before, no line end could be escaped.
        plain = pattern.sub(lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), cell)
        cells.append(None if cell in dialect.nulls else plain)
        parts = []
    return cells


def _split_quoted(text: str, dialect: Dialect) -> list[str]:
    # Not csv.reader: it refuses cells over 131,072 characters, and then takes the lines of such a cell for rows.
    quote, delimiter, escape = dialect.quote, dialect.delimiter, dialect.escape
    cells, at = [], 0
    while True:
        if text.startswith(quote, at):
            end = end_of_quoted(text, quote, at, len(text), escape)
            if end is None or text[end : end + 1] not in {"", delimiter}:
                lines = text.count("\n") + 1
                raise ValueError(f"csv cannot read it ({lines} lines): a quote that never closes, or text after a closing one")
            cells.append(_unquoted(text[at + 1 : end - 1], quote, escape))
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            cells.append(text[at:end])
        if end == len(text):
            return cells
        at = end + 1


def _unquoted(cell: str, quote: str, escape: str) -> str:
    if not escape or escape not in cell:
        return cell.replace(quote * 2, quote)
    # As Spark writes: an escape before anything else is a character like any other.
    own, mark = re.escape(quote), re.escape(escape)
    return re.sub(f"{mark}([{own}{mark}])|{own}{own}", lambda found: found[1] or quote, cell)
