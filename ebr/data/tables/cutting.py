"""One file → pieces of so many rows, cut the same way however the file is read, and what a piece holds as one digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ebr.data.tables.cells import names_of
from ebr.data.tables.columnar import are_unnamed, as_text, columnar_batches, columnar_schema, n_columnar_rows
from ebr.data.tables.files import TableFile
from ebr.data.tables.records import Records, read_records
from ebr.errors import DataError


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a file: lines as they are, or columns as text. first_line: line or row, from 1, of the first.

    disk_position: bytes of the file on disk up to its end.
    """

    first_line: int
    n_rows: int
    payload: bytes | pa.Table
    disk_position: float


@dataclass(frozen=True)
class Limits:
    """A piece ends after most_rows rows, or before most_bytes bytes, whichever comes first; one row it always has."""

    most_rows: int
    most_bytes: int


def text_pieces(file: TableFile, *, has_header: bool, limits: Limits) -> Iterator[Piece]:
    """The rows of a text file. Raises DataError when it cannot be read, or its header changed meanwhile."""
    with file.open() as stream:
        stretches = read_records(file.path, stream, file.dialect)
        if has_header:
            stretches = _below_header(file, stretches)
        for first_line, n_rows, payload, end in cut(stretches, limits):
            yield Piece(first_line, n_rows, payload, stream.disk_position(end))


def _below_header(file: TableFile, stretches: Iterable[Records]) -> Iterator[Records]:
    above = True
    for records in stretches:
        if above and len(records):
            above = False
            if tuple(names_of(file.path, records, file.dialect)) != file.columns:
                raise _changed(file)
            yield replace(records, starts=records.starts[1:], ends=records.ends[1:])
        else:
            yield records


def cut(stretches: Iterable[Records], limits: Limits) -> Iterator[tuple[int, int, bytes, int]]:
    """Pieces of a text: (line of the first row, rows, bytes from its first row to the end of its last, where that end is).

    The same however the text was split into stretches.
    """
    parts: list[bytes] = []
    n_rows = first_line = start = end = 0
    for records in stretches:
        at = 0
        while at < len(records):
            left = 0  # where the piece begins in this stretch
            if not n_rows:
                left, first_line = int(records.starts[at]), records.line_of(at)
                start = records.offset + left
            ends = records.ends[at : at + limits.most_rows - n_rows] + records.offset
            take = _n_fitting(ends - start, n_rows, limits)
            at, n_rows = at + take, n_rows + take
            if take:
                end = records.offset + int(records.ends[at - 1])
            if at < len(records) or n_rows == limits.most_rows:
                parts.append(records.data[left : max(left, end - records.offset)])
                # Blank lines between two pieces belong to neither.
                yield first_line, n_rows, b"".join(parts)[: end - start], end
                parts, n_rows = [], 0
            else:
                parts.append(records.data[left:])
        if n_rows and not len(records):
            parts.append(records.data)
    if n_rows:
        yield first_line, n_rows, b"".join(parts)[: end - start], end


def _n_fitting(n_bytes_with: npt.NDArray[np.int64], n_rows: int, limits: Limits) -> int:
    """How many more rows a piece of n_rows takes. n_bytes_with: its bytes with the next row, the next two, as far as it may."""
    return max(0 if n_rows else 1, int(np.searchsorted(n_bytes_with, limits.most_bytes, side="right")))


def columnar_pieces(file: TableFile, columns: Sequence[str], limits: Limits) -> Iterator[Piece]:
    """The rows of a file of columns, these of them, as text. Raises DataError when it cannot be read, or changed meanwhile."""
    stored = columnar_schema(file.path, file.kind).names
    if tuple(stored) != file.columns and not (are_unnamed(stored) and len(stored) == len(file.columns)):
        raise _changed(file)
    bytes_a_row = file.n_bytes / max(1, n_columnar_rows(file.path, file.kind))
    parts: list[pa.Table] = []
    n_rows = n_bytes = end = 0
    for batch in _text_batches(file, columns):
        ends = np.cumsum(_n_bytes(batch))
        at = 0
        while at < len(batch):
            before = int(ends[at - 1]) if at else 0
            take = _n_fitting(ends[at : at + limits.most_rows - n_rows] - before + n_bytes, n_rows, limits)
            parts.append(batch.slice(at, take))
            at, n_rows, end = at + take, n_rows + take, end + take
            n_bytes += (int(ends[at - 1]) if at else 0) - before
            if at < len(batch) or n_rows == limits.most_rows:
                yield _columnar_piece(parts, end, bytes_a_row)
                parts, n_rows, n_bytes = [], 0, 0
    if n_rows:
        yield _columnar_piece(parts, end, bytes_a_row)


def _text_batches(file: TableFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    for batch in columnar_batches(file.path, file.kind, [file.columns.index(name) for name in columns]):
        cells = zip(columns, batch.columns, strict=True)
        yield pa.table({name: as_text(file.path, name, column) for name, column in cells})


def _columnar_piece(parts: Sequence[pa.Table], end: int, bytes_a_row: float) -> Piece:
    table = pa.concat_tables(parts).combine_chunks()
    return Piece(end - len(table) + 1, len(table), table, end * bytes_a_row)


def _n_bytes(batch: pa.Table) -> npt.NDArray[np.int64]:
    """The bytes of each row, over all columns."""
    n_bytes = np.zeros(len(batch), np.int64)
    for column in batch.columns:
        n_bytes += pc.fill_null(pc.binary_length(column), 0).to_numpy()
    return n_bytes


def _changed(file: TableFile) -> DataError:
    return DataError(f"{file.path}: its columns are not {', '.join(file.columns)} any more; it changed meanwhile: run again")


def piece_digest(file: TableFile, piece: Piece) -> str:
    """sha256 in hex of all that the rows of a piece depend on; the same however its columns lie in memory."""
    dialect = file.dialect
    facts: list[Any] = [
        file.kind.value,
        file.name,
        piece.first_line,
        piece.n_rows,
        file.columns,
        file.partitions,
        dialect.delimiter,
    ]
    facts += [dialect.facts()] if dialect.facts() else []
    digest = hashlib.sha256(json.dumps(facts).encode() + b"\n")
    if isinstance(piece.payload, bytes):
        digest.update(piece.payload)
    else:
        for name in piece.payload.column_names:
            lengths, content = _content(piece.payload.column(name).combine_chunks())
            digest.update(json.dumps(name).encode() + b"\n" + lengths.astype("<i4").tobytes())
            digest.update(content)
    return digest.hexdigest()


def _content(cells: pa.StringArray) -> tuple[npt.NDArray[np.int32], Any]:
    """The length of each cell in bytes (-1 for null), and the bytes of all cells one after another."""
    filled = cells.cast(pa.binary()).fill_null(b"")
    _, offsets, content = filled.buffers()
    ends = np.frombuffer(offsets, np.int32)[filled.offset : filled.offset + len(filled) + 1]
    lengths = np.diff(ends)
    lengths[cells.is_null().to_numpy(zero_copy_only=False)] = -1
    return lengths, b"" if content is None else memoryview(content)[ends[0] : ends[-1]]
