r"""Delimited tables (\001 by default, as Hive exports them), streamed in and out.

A person never types \001, so quoting is off: one stray " would swallow the next rows. Only the comma has standard quoting.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    return delimiter


def find_tables(folder: Path, pattern: str) -> list[Path]:
    """The tables of a folder and its subfolders, sorted. Raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(f"input_dir {folder}: no such folder")
    files = sorted(path for path in folder.rglob(pattern) if path.is_file() and not path.name.startswith((".", "_")))
    if not files:
        raise DataError(f"input_dir {folder}: no file matches {pattern!r}; set file_pattern or put tables there")
    return files


def read_header(file: Path, delimiter: str) -> list[str]:
    """The column names of a table. Raises DataError when the file is empty, unreadable, or names a column twice."""
    with _open(file) as stream:
        try:
            header = next(_records(stream, delimiter), None)
        except UnicodeDecodeError:
            raise DataError(f"{file}:1: the header is not UTF-8; save the file as UTF-8") from None
    if header is None:
        raise DataError(f"{file}: is empty; a table starts with a line of column names")
    names = [name.strip() for name in header[2] or []]
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
    if len(header) == 1 and not near:
        hint = "; the line has one column only: is the delimiter right?"
    raise DataError(f"{file}: no column {column!r} ({option}); it has {', '.join(map(repr, header))}{hint}")


def read_rows(file: Path, delimiter: str, n_columns: int) -> Iterator[Row | BadRow]:
    """The rows below the header, one at a time; a row that is ragged or not UTF-8 comes as BadRow, in its place."""
    with _open(file) as stream:
        for number, raw, cells in _records(stream, delimiter):
            if number == 1:
                continue
            if cells is None:
                yield BadRow(file, number, "not UTF-8", raw)
            elif len(cells) != n_columns:
                yield BadRow(file, number, f"{len(cells)} columns where the header has {n_columns}", raw)
            else:
                yield Row(number, cells, raw)


def join_cells(cells: Sequence[str], delimiter: str) -> str:
    """One line of a table, without its line end: the inverse of reading."""
    if delimiter != ",":
        return delimiter.join(cells)
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _open(file: Path) -> io.BufferedReader:
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def _records(stream: io.BufferedReader, delimiter: str) -> Iterator[tuple[int, bytes, list[str] | None]]:
    """(line number from 1, raw bytes, cells or None when not UTF-8) of every record that is not an empty line."""
    for number, raw in _logical_lines(stream, quoted=delimiter == ","):
        line = raw.rstrip(b"\n").removesuffix(b"\r")
        if not line:
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            if number == 1:
                raise
            yield number, raw, None
            continue
        yield number, raw, _cells(text, delimiter)


def _logical_lines(stream: io.BufferedReader, *, quoted: bool) -> Iterator[tuple[int, bytes]]:
    """Lines with the number of their first line; with quoting, a line goes on while a quote is open."""
    number = 0
    pending, start = b"", 1
    for line in stream:
        number += 1
        pending, start = pending + line, start if pending else number
        if quoted and pending.count(b'"') % 2:
            continue
        yield start, pending
        pending = b""
    if pending:
        yield start, pending


def _cells(text: str, delimiter: str) -> list[str]:
    if delimiter != ",":
        return text.split(delimiter)
    return next(csv.reader(io.StringIO(text, newline="")))
