r"""Delimited tables (\001 by default, as Hive exports them), streamed in and out.

A person never types \001, so quoting is off: one stray " would swallow the next rows. Only the comma has standard quoting.
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

from ebr.data.records import Records, end_of_quoted, read_records
from ebr.errors import ConfigError, DataError

NULL = "\\N"
"""How Hive writes a null."""

Cells = list[str | None]
"""The cells of a row in the order of the columns; None is null."""

_HEADER_BLOCK = 64 * 2**10
_NOT_UTF8 = "not UTF-8"


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


def parse_delimiter(text: str) -> str:
    r"""One character from how a person types it: `\001`, `\x01`, `\t`, or the character itself."""
    try:
        delimiter = text.encode("latin-1", "backslashreplace").decode("unicode_escape") if text.startswith("\\") else text
    except UnicodeDecodeError:
        delimiter = text
    if len(delimiter) != 1 or delimiter in "\n\r":
        raise ConfigError(f"delimiter: must be one character, like \\001, \\t or , (got {text!r})")
    if delimiter in " +-.0123456789e":
        raise ConfigError(f"delimiter: {delimiter!r} also stands inside the vectors of the output; choose another, like \\001")
    return delimiter


def read_header(file: Path, delimiter: str) -> list[str]:
    """The column names of a table. Raises DataError when the file is empty, unreadable, or names a column twice."""
    with _open(file) as stream:
        names = first_names(file, stream, delimiter)
    if names is None:
        raise DataError(f"{file}: is empty; a table starts with a line of column names")
    return names


def first_names(file: Path, stream: BinaryIO, delimiter: str) -> list[str] | None:
    """The column names that an open table starts with; None when it holds nothing but line ends. Raises DataError."""
    for records in read_records(file, stream, delimiter, _HEADER_BLOCK):
        if len(records):
            return names_of(file, records, delimiter)
    return None


def names_of(file: Path, records: Records, delimiter: str) -> list[str]:
    """The column names in the first of the records. Raises DataError when they cannot be read, or one occurs twice."""
    where = f"{file}:{records.line_of(0)}"
    try:
        cells = split_record(records.data[records.starts[0] : records.ends[0]], delimiter)
    except ValueError as error:
        reason = str(error)
        mend = "is not UTF-8; save the file as UTF-8" if reason == _NOT_UTF8 else f"cannot be used: {reason}"
        raise DataError(f"{where}: the header {mend}") from None
    return without_twins(where, [name.strip() for name in cells])


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
    with _open(file) as stream:
        # The header is the first record, not line 1: empty lines may stand above it.
        above = 1
        for records in read_records(file, stream, delimiter):
            for line, raw in list(zip(records.lines(), records.raws(), strict=True))[above:]:
                try:
                    yield Row(line, read_cells(raw, delimiter, n_columns), raw)
                except ValueError as error:
                    yield BadRow(file, line, str(error), raw)
            above = 0 if len(records) else above


def read_cells(raw: bytes, delimiter: str, n_columns: int) -> Cells:
    r"""The cells of one record, None for \N. Raises ValueError, whose text is the reason, when it is no row of n_columns."""
    cells = split_record(raw, delimiter)
    if len(cells) != n_columns:
        raise ValueError(f"{len(cells)} columns instead of {n_columns}")
    return [None if cell == NULL else cell for cell in cells]


def read_all_cells(raws: Sequence[bytes], delimiter: str, n_columns: int) -> list[Cells] | None:
    """The cells of many records, faster than one by one; None when one of them may be bad: read_cells tells which."""
    try:
        texts = [raw.removesuffix(b"\n").removesuffix(b"\r").decode() for raw in raws]
        if delimiter == "," and any("\r" in text for text in texts):
            return None  # csv would take it for a line end
        rows: list[Any] = (
            list(csv.reader(texts, strict=True)) if delimiter == "," else [text.split(delimiter) for text in texts]
        )
    except (UnicodeDecodeError, csv.Error):
        return None
    # A quote left open takes the next record into its own.
    if len(rows) != len(raws) or any(len(row) != n_columns for row in rows):
        return None
    return [[None if cell == NULL else cell for cell in row] if NULL in row else row for row in rows]


def join_cells(cells: Sequence[str | None], delimiter: str) -> str:
    r"""One line of a table, without its line end: the inverse of reading. None is written as \N."""
    texts = [NULL if cell is None else cell for cell in cells]
    if delimiter != ",":
        return delimiter.join(texts)
    line = io.StringIO()
    # The writer quotes a line break in a cell only when its own line end holds that character.
    csv.writer(line, lineterminator="\r\n").writerow(texts)
    return line.getvalue().removesuffix("\r\n")


def split_record(raw: bytes, delimiter: str) -> list[str]:
    """The cells of one record as they are written. Raises ValueError, whose text is the reason, when it cannot be read."""
    try:
        text = raw.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise ValueError(_NOT_UTF8) from None
    return _split_quoted(text) if delimiter == "," and '"' in text else text.split(delimiter)


def _split_quoted(text: str) -> list[str]:
    # Not csv.reader: it refuses cells over 131,072 characters, and then takes the lines of such a cell for rows.
    cells, at = [], 0
    while True:
        if text.startswith('"', at):
            end = end_of_quoted(text, '"', at, len(text))
            if end is None or text[end : end + 1] not in {"", ","}:
                lines = text.count("\n") + 1
                raise ValueError(f"csv cannot read it ({lines} lines): a quote that never closes, or text after a closing one")
            cells.append(text[at + 1 : end - 1].replace('""', '"'))
        else:
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            cells.append(text[at:end])
        if end == len(text):
            return cells
        at = end + 1


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
