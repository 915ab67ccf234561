r"""Delimited tables (\001 by default, as Hive exports them), streamed in and out.

A person never types \001, so quoting is off: one stray " would swallow the next rows. Only the comma has standard quoting.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ebr.errors import ConfigError, DataError

NULL = "\\N"
"""How Hive writes a null."""


@dataclass(frozen=True)
class Row:
    """One good row: its cells in the order of the header, where it stands, and its bytes as they are in the file."""

    line: int
    cells: list[str]
    raw: bytes


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands, why, and its bytes as they are in the file."""

    file: Path
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


def find_tables(folder: Path, pattern: str) -> list[Path]:
    """The tables of a folder and its subfolders, sorted. Raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(f"input_dir {folder}: no such folder")
    try:
        found = [path for path in folder.rglob(pattern) if path.is_file()]
    except (NotImplementedError, ValueError):
        raise ConfigError(f"file_pattern {pattern!r}: must lie below input_dir, like *.csv") from None
    # Hidden files and folders, _SUCCESS and _temporary: what tools leave beside the data.
    files = sorted(path for path in found if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts))
    if not files:
        raise DataError(f"input_dir {folder}: no file matches {pattern!r}; set file_pattern or put tables there")
    return files


def read_header(file: Path, delimiter: str) -> list[str]:
    """The column names of a table. Raises DataError when the file is empty, unreadable, or names a column twice."""
    with _open(file) as stream:
        header = next(_records(stream, delimiter), None)
    if header is None:
        raise DataError(f"{file}: is empty; a table starts with a line of column names")
    if header[2] is None:
        raise DataError(f"{file}:{header[0]}: the header is not UTF-8; save the file as UTF-8")
    names = [name.strip() for name in header[2]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file}:1: column {', '.join(twice)} occurs twice; rename one")
    return names


def column_index(file: Path, header: Sequence[str], column: str, option: str) -> int:
    """Where a column stands in the header. Raises DataError that names the option and the nearest column."""
    if column in header:
        return list(header).index(column)
    near = difflib.get_close_matches(column, header, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if len(header) == 1:
        hint = "; the line has one column only: is the delimiter right?"
    raise DataError(f"{file}: no column {column!r} ({option}); it has {', '.join(map(repr, header))}{hint}")


def read_rows(file: Path, delimiter: str, n_columns: int) -> Iterator[Row | BadRow]:
    """The rows below the header, one at a time; a row that is ragged or not UTF-8 comes as BadRow, in its place."""
    with _open(file) as stream:
        # The header is the first record, not line 1: empty lines may stand above it.
        for number, raw, cells in islice(_records(stream, delimiter), 1, None):
            if cells is None:
                yield BadRow(file, number, _why_unreadable(raw), raw)
            elif len(cells) != n_columns:
                yield BadRow(file, number, f"{len(cells)} columns where the header has {n_columns}", raw)
            else:
                yield Row(number, cells, raw)


def _why_unreadable(raw: bytes) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    n_lines = raw.count(b"\n")
    return f"csv cannot read it ({n_lines} lines): a quote that never closes, a bare \\r, or a cell over 131,072 characters"


def join_cells(cells: Sequence[str], delimiter: str) -> str:
    """One line of a table, without its line end: the inverse of reading."""
    if delimiter != ",":
        return delimiter.join(cells)
    line = io.StringIO()
    # The writer quotes a line break in a cell only when its own line end holds that character.
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n")


def _open(file: Path) -> io.BufferedReader:
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def _records(stream: io.BufferedReader, delimiter: str) -> Iterator[tuple[int, bytes, list[str] | None]]:
    """(line number from 1, raw bytes, cells or None when not readable) of every record that is not an empty line."""
    for number, raw, cells in _quoted(stream) if delimiter == "," else _plain(stream, delimiter):
        if raw.strip(b"\r\n"):
            yield number, raw, cells


def _plain(stream: io.BufferedReader, delimiter: str) -> Iterator[tuple[int, bytes, list[str] | None]]:
    for number, raw in enumerate(stream, start=1):
        try:
            text = raw.rstrip(b"\n").removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield number, raw, None
        else:
            yield number, raw, text.split(delimiter)


def _quoted(stream: io.BufferedReader) -> Iterator[tuple[int, bytes, list[str] | None]]:
    """csv.reader draws as many lines as an open quote needs, and no more: it alone knows which quote opens one."""
    drawn: list[bytes] = []

    def lines() -> Iterator[str]:
        for number, raw in enumerate(stream, start=1):
            drawn.append(raw)
            yield _decoded(raw, number)

    reader, start = csv.reader(lines(), strict=True), 1
    while True:
        drawn.clear()
        try:
            cells: list[str] | None = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a bare \r in a cell, or a cell beyond csv's limit
            cells = None
        yield start, b"".join(drawn), None if cells is None or any(map(_is_torn, cells)) else cells
        start += len(drawn)


def _decoded(raw: bytes, number: int) -> str:
    """The text; bytes that are not UTF-8 become lone surrogates, which no UTF-8 text holds."""
    return raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")


def _is_torn(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)
