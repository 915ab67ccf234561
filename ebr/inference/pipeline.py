"""Tables in, vector file out: reader → chunks of rows → engine → writer. A table is never in memory whole."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from ebr.data.embeddings import VECTOR, VectorFileWriter, vector_file
from ebr.data.files import hash_files, write_aside
from ebr.data.tables import NULL, BadRow, Row, column_index, find_tables, read_header, read_rows
from ebr.errors import DataError

if TYPE_CHECKING:
    from ebr.inference.engines import Engine

CHUNK_ROWS = 512
_FIRST_REJECTS = 5


@dataclass(frozen=True)
class Table:
    """One input table, its header read and checked: which columns go out, and which is embedded."""

    path: Path
    header: list[str]
    kept: list[int]
    text: int


@dataclass(frozen=True)
class Source:
    """All input tables; each gives the same output columns."""

    tables: list[Table]
    columns: list[str]
    delimiter: str
    n_lines: int


@dataclass(frozen=True)
class EmbeddedTables:
    """What a finished run wrote, and what it could not use."""

    output_path: Path
    rejects_path: Path | None
    n_files: int
    n_rows: int
    n_rejected: int
    first_rejects: list[str]
    dim: int


def open_source(folder: Path, pattern: str, delimiter: str, text_column: str, output_columns: Sequence[str] | None) -> Source:
    """Find the tables and check every header before anything is embedded. Raises DataError naming file and column."""
    tables: list[Table] = []
    columns = list(output_columns) if output_columns is not None else None
    n_lines = 0
    for path in find_tables(folder, pattern):
        header = read_header(path, delimiter)
        if columns is None:
            columns = header
        if output_columns is None and set(header) != set(columns):
            raise DataError(
                f"{path}: its columns {header} differ from {columns} of {tables[0].path}; name those to keep in output_columns"
            )
        kept = [column_index(path, header, name, "output_columns") for name in columns]
        tables.append(Table(path, header, kept, column_index(path, header, text_column, "description_column")))
        n_lines += max(0, _count_lines(path) - 1)
    if columns and len(set(columns)) < len(columns):
        raise DataError(f"output_columns: {', '.join(columns)} names a column twice; name each once")
    if columns and VECTOR in columns:
        raise DataError(f"output_columns: {VECTOR!r} is the name of the column that the run adds; rename the input column")
    return Source(tables, columns or [], delimiter, n_lines)


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        count, last = 0, b"\n"
        while chunk := file.read(1 << 20):
            count, last = count + chunk.count(b"\n"), chunk[-1:]
    return count + (last != b"\n")


def embed_tables(source: Source, engine: Engine, output_path: Path, manifest: dict[str, Any]) -> EmbeddedTables:
    """Embed every row of the source into one vector file; rows that cannot be used are listed beside it, with their bytes.

    Raises DataError when not one row could be used. Interrupted, it leaves what was there before.
    """
    with _rejects_file(output_path.with_name(output_path.name + ".rejects.jsonl")) as rejects:
        with vector_file(output_path, source.columns, source.delimiter) as writer:
            with tqdm(total=source.n_lines, desc="embed", unit="row", dynamic_ncols=True) as bar:
                for chunk, bad in _chunks(source):
                    _embed_chunk(chunk, engine, writer)
                    rejects.add(bad)
                    bar.update(len(chunk) + len(bad))
            if not writer.facts["n_rows"]:
                why = f"the first reason: {rejects.first[0]}" if rejects.first else "the tables hold a header and no rows"
                raise DataError(f"no row could be embedded; {why}")
            inputs = hash_files([table.path for table in source.tables])
            writer.facts |= {"inputs_sha256": inputs, "n_rejected": rejects.n_rows, **manifest}
    return EmbeddedTables(
        output_path=output_path,
        rejects_path=rejects.path if rejects.n_rows else None,
        n_files=len(source.tables),
        n_rows=writer.facts["n_rows"],
        n_rejected=rejects.n_rows,
        first_rejects=rejects.first,
        dim=writer.facts["dim"],
    )


def _embed_chunk(chunk: Sequence[tuple[list[str], str]], engine: Engine, writer: VectorFileWriter) -> None:
    if chunk:
        writer.write([cells for cells, _ in chunk], engine.encode([text for _, text in chunk]))


def _chunks(source: Source) -> Iterator[tuple[list[tuple[list[str], str]], list[BadRow]]]:
    """(output cells, text) of up to CHUNK_ROWS rows, with the bad rows met on the way."""
    good: list[tuple[list[str], str]] = []
    bad: list[BadRow] = []
    for table in source.tables:
        for row in read_rows(table.path, source.delimiter, len(table.header)):
            usable = _without_empty(row, table)
            if isinstance(usable, BadRow):
                bad.append(usable)
            else:
                good.append(([usable.cells[index] for index in table.kept], usable.cells[table.text]))
            if len(good) + len(bad) >= CHUNK_ROWS:
                yield good, bad
                good, bad = [], []
    yield good, bad


def _without_empty(row: Row | BadRow, table: Table) -> Row | BadRow:
    if isinstance(row, Row) and (not row.cells[table.text].strip() or row.cells[table.text] == NULL):
        return BadRow(table.path, row.line, f"{table.header[table.text]} is empty", row.raw)
    return row


class _Rejects:
    """Rows that could not be used, one JSON object each; the bytes as base64, for they may not be text."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.n_rows = 0
        self.first: list[str] = []
        self._file = file

    def add(self, rows: Sequence[BadRow]) -> None:
        for bad in rows:
            raw = base64.b64encode(bad.raw).decode("ascii")
            record = {"file": str(bad.file), "line": bad.line, "reason": bad.reason, "raw_base64": raw}
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            if len(self.first) < _FIRST_REJECTS:
                self.first.append(f"{bad.file}:{bad.line}: {bad.reason}")
        self.n_rows += len(rows)


@contextmanager
def _rejects_file(path: Path) -> Iterator[_Rejects]:
    """The list of rejected rows; no file when there are none."""
    with write_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        rejects = _Rejects(path, file)
        yield rejects
    if not rejects.n_rows:
        path.unlink()
