r"""Vector files as text: a header, then the cells of each row and its vector as numbers between spaces."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ebr.data.files.dialects import NULL
from ebr.data.tables.cells import VECTOR, BadRow, join_cells, read_header, read_rows
from ebr.data.vectors.batch import Columns, VectorBatch, Vectors, slices, wanted_columns
from ebr.data.vectors.layout import Layout, find_vector
from ebr.data.vectors.numbers import format_vectors, read_vectors
from ebr.errors import DataError

_SLICE_NUMBERS = 1 << 15  # numbers formatted at once: their cells and temporary arrays stay in the cache
_SLICE_ROWS = 256  # rows parsed at once
_COPY_BYTES = 1 << 20


def write_text(path: Path, columns: pa.Table, vectors: Vectors, delimiter: str) -> None:
    """Write checked vectors, (N, D) float32, and their columns."""
    with path.open("wb") as file:
        file.write((join_cells([*columns.column_names, VECTOR], delimiter) + "\n").encode())
        write_text_rows(file, columns, vectors, delimiter)


def write_text_rows(file: BinaryIO, columns: pa.Table, vectors: Vectors, delimiter: str) -> None:
    """Append rows; the memory of a slice of them."""
    for rows in slices(len(vectors), max(1, _SLICE_NUMBERS // vectors.shape[1])):
        prefixes = _prefixes(columns.slice(rows.start, rows.stop - rows.start), rows.stop - rows.start, delimiter)
        lines = [prefix + vector for prefix, vector in zip(prefixes, format_vectors(vectors[rows]), strict=True)]
        file.write(b"\n".join(lines) + b"\n")


def _prefixes(columns: pa.Table, n_rows: int, delimiter: str) -> list[bytes]:
    """What stands before the vector of each row."""
    if not columns.num_columns:
        return [b""] * n_rows
    cells = [column.to_pylist() for column in columns.columns]
    # A last empty cell leaves the delimiter behind it, where the vector goes: digits never need quotes.
    return [join_cells([*row, ""], delimiter).encode() for row in zip(*cells, strict=True)]


def unfit_names(names: Sequence[str], delimiter: str) -> str | None:
    """Why a header could not be read back; None when it can."""
    for name in names:
        if name != name.strip() or name.startswith("\ufeff") or name == NULL:
            return f"{name!r} would be read back as another name"
        if "\n" in name or "\r" in name:
            return f"{name!r} holds a line break"
        if delimiter != "," and delimiter in name:
            return f"{name!r} holds the delimiter {delimiter!r}"
    return None


def unfit_text_rows(columns: pa.Table, delimiter: str) -> dict[int, str]:
    r"""Rows that could not be read back, and why. A comma file has quotes, so only a literal `\N` is in its way."""
    unfit: dict[int, str] = {}
    for name, column in zip(columns.column_names, columns.columns, strict=True):
        tests = {f"{NULL}, which means null": pc.equal(column, NULL)}
        if delimiter != ",":
            tests[f"the delimiter {delimiter!r}"] = pc.match_substring(column, delimiter)
            tests["a line break"] = pc.match_substring(column, "\n")
        for what, test in tests.items():
            if pc.any(test).as_py():
                for row in np.flatnonzero(pc.fill_null(test, False).to_numpy()).tolist():
                    unfit.setdefault(row, f"{name} holds {what}: txt output cannot hold it, parquet and npy can")
    return dict(sorted(unfit.items()))


def join_text(parts: Sequence[Path], output: Path) -> None:
    """Copy parts into one file under the header of the first. Raises DataError when a header differs."""
    with output.open("wb") as whole:
        header = b""
        for part in parts:
            with part.open("rb") as file:
                # unfit_names keeps line breaks out of headers, so the header is the first line in comma files too.
                line = file.readline()
                if not header:
                    whole.write(header := line)
                elif line != header:
                    raise DataError(f"{part}: its header differs from that of {parts[0]}; remove the parts and run again")
                shutil.copyfileobj(file, whole, _COPY_BYTES)


def text_layout(path: Path, delimiter: str, vector_column: str | None) -> Layout:
    """What the header says. Raises DataError when no column is the vector."""
    header = read_header(path, delimiter)
    vector = find_vector(path, header, vector_column)
    return Layout(vector, tuple(wanted_columns(path, header, None, vector)))


def read_text(
    path: Path, delimiter: str, columns: Mapping[str, str] | None, batch_rows: int, vector_column: str | None = None
) -> Iterator[VectorBatch]:
    """Batches of batch_rows rows. Raises DataError naming the line that cannot be read."""
    header = read_header(path, delimiter)
    at = [header.index(name) for name in find_vector(path, header, vector_column)]
    kept = {name: header.index(name) for name in wanted_columns(path, header, columns, [header[index] for index in at])}
    rows = _good_rows(path, delimiter, len(header))
    vectors: list[Vectors] = []
    cells: Columns = {name: [] for name in kept}
    n_rows, dim = 0, len(at) if len(at) > 1 else None
    # Raw lines and cells of vectors are large: a slice of them is let go before the next is read.
    while chunk := list(islice(rows, min(_SLICE_ROWS, batch_rows - n_rows))):
        texts = [row[at[0]] if len(at) == 1 else _in_one(row, at) for _, row in chunk]
        lines = [line for line, _ in chunk]
        vectors.append(read_vectors(texts, dim, lambda row, lines=lines: f"{path}:{lines[row]}"))  # type: ignore[misc]
        n_rows, dim = n_rows + len(chunk), vectors[-1].shape[1]
        for name, index in kept.items():
            cells[name].extend(row[index] for _, row in chunk)
        if n_rows == batch_rows:
            yield VectorBatch(np.concatenate(vectors), cells)
            n_rows, vectors, cells = 0, [], {name: [] for name in kept}
    if vectors:
        yield VectorBatch(np.concatenate(vectors), cells)


def _in_one(row: Sequence[str | None], at: Sequence[int]) -> str:
    return " ".join((row[index] or NULL).strip() for index in at)


def _good_rows(path: Path, delimiter: str, n_columns: int) -> Iterator[tuple[int, Sequence[str | None]]]:
    for row in read_rows(path, delimiter, n_columns):
        if isinstance(row, BadRow):
            raise DataError(f"{path}:{row.line}: {row.reason}")
        yield row.line, row.cells
