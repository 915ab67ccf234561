"""Vector files as npy: the matrix alone, to be mapped into memory, and the columns in a Parquet file beside it."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib import format as npy

from ebr.data.files.contents import unpacked, without_packing
from ebr.data.vectors.batch import Columns, VectorBatch, Vectors, as_float32, as_type, slices, wanted_columns
from ebr.data.vectors.layout import OPTION, Layout, like_vectors
from ebr.data.vectors.parquet import (
    count_parquet_rows,
    join_parquet,
    parquet_columns,
    read_rows_beside,
    rows_beside_layout,
    write_parquet,
)
from ebr.errors import DataError, first_line

ROWS_SUFFIX = ".rows.parquet"
"""How the file beside `x.npy` ends: x.rows.parquet holds the columns, row by row as the vectors."""

_OBJECTS = "Python objects, which are not unpickled"
_BYTES = "bytes that are no array"
_COPY_BYTES = 1 << 20


def rows_path(path: Path) -> Path:
    """The file of columns beside a matrix."""
    return without_packing(path).with_suffix(ROWS_SUFFIX)


def write_npy(path: Path, columns: pa.Table, vectors: Vectors, dtype: str) -> None:
    """Write checked vectors and, beside them, their columns."""
    stored = as_type(vectors, dtype)
    write_parquet(rows_path(path), columns, None)
    with path.open("wb") as file:
        _write_header(file, stored.dtype, stored.shape)
        file.write(stored.data)


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})


def join_npy(parts: Sequence[Path], output: Path) -> None:
    """Copy parts into one matrix, and the columns beside them into one file. Raises DataError when their shapes differ."""
    stored = [_stored(part) for part in parts]
    for part, one in zip(parts, stored, strict=True):
        if (one.dim, one.dtype) != (stored[0].dim, stored[0].dtype):
            raise DataError(f"{part}: its dimension or type differs from {parts[0]}'s; remove the parts and run again")
    with output.open("wb") as whole:
        _write_header(whole, stored[0].dtype, (sum(one.n_rows for one in stored), stored[0].dim))
        for part, one in zip(parts, stored, strict=True):
            with part.open("rb") as file:
                file.seek(one.start)
                shutil.copyfileobj(file, whole, _COPY_BYTES)
    join_parquet([rows_path(part) for part in parts], rows_path(output))


class _Stored(NamedTuple):
    """A matrix in its file; start: the byte at which its numbers begin."""

    n_rows: int
    dim: int
    dtype: np.dtype[Any]
    start: int


def _stored(path: Path) -> _Stored:
    # Looked at and let go: a mapping keeps its file open, of which a process may have 1,024, and its pages count as memory.
    matrix = mapped(path)
    return _Stored(len(matrix), matrix.shape[1], matrix.dtype, path.stat().st_size - matrix.nbytes)


def mapped(path: Path) -> npt.NDArray[Any]:
    """The (N, D) matrix of an npy file, mapped; in memory where the file is packed.

    Raises DataError when it is none, holds no numbers, or is cut short.
    """
    source = unpacked(path)
    try:
        matrix = np.load(source, mmap_mode="r" if source is path else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as npy ({first_line(error)})") from None
    if not isinstance(matrix, np.ndarray):
        raise DataError(f"{path}: is an archive; call it .npz")
    return checked_matrix(path, matrix)


def checked_matrix(path: Path, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The matrix. Raises DataError when it is none, or holds no numbers."""
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or not matrix.shape[1]:
        what = f"{matrix.dtype} of shape {matrix.shape}"
        raise DataError(f"{path}: is {what}; it must be a matrix of numbers, one vector a row")
    return matrix


def npy_layout(path: Path) -> Layout:
    """The columns beside a matrix. Raises DataError when they cannot be read."""
    beside = rows_path(path)
    return rows_beside_layout(beside) if beside.is_file() else Layout((), ())


def read_npy(path: Path, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[VectorBatch]:
    """Batches of at most batch_rows rows. Raises DataError naming file, column or row."""
    matrix = mapped(path)
    row, n_rows, is_mapped = 0, len(matrix), isinstance(matrix, np.memmap)
    for count, cells in _cell_batches(path, columns, n_rows, batch_rows):
        # Mapped anew for each batch: the pages of a mapping that is kept would add up.
        matrix = mapped(path) if is_mapped else matrix
        vectors = as_float32(path, row + 1, matrix[row : row + count])
        yield VectorBatch(vectors, cells)
        row += count


def _cell_batches(path: Path, columns: Mapping[str, str] | None, n_rows: int, batch_rows: int) -> Iterator[tuple[int, Columns]]:
    beside = rows_path(path)
    if not beside.is_file() and columns:
        raise DataError(f"{path}: no columns beside it; put {', '.join(columns)} into {beside.name}")
    names = wanted_columns(beside, parquet_columns(beside), columns) if beside.is_file() else []
    if not names:
        yield from ((min(batch_rows, n_rows - start), {}) for start in range(0, n_rows, batch_rows))
    elif count_parquet_rows(beside) != n_rows:
        raise DataError(f"{path}: {n_rows} vectors, but {count_parquet_rows(beside)} rows in {beside.name}; write both again")
    else:
        yield from read_rows_beside(beside, {name: (columns or {}).get(name, "") for name in names}, batch_rows)


def npz_layout(path: Path, vector_column: str | None) -> Layout:
    """Which arrays are what. Raises DataError when none, or more than one, could be the vectors."""
    return _opened(path, vector_column)[0]


def read_npz(
    path: Path, columns: Mapping[str, str] | None, batch_rows: int, vector_column: str | None = None
) -> Iterator[VectorBatch]:
    """Batches of at most batch_rows rows; the arrays are in memory. Raises DataError naming array or row."""
    layout, arrays = _opened(path, vector_column)
    matrix = arrays[layout.vector[0]]
    names = wanted_columns(path, layout.texts, columns, layout.vector)
    for rows in slices(len(matrix), batch_rows):
        cells = {name: _texts(arrays[name][rows]) for name in names}
        yield VectorBatch(as_float32(path, rows.start + 1, matrix[rows]), cells)


def _opened(path: Path, vector_column: str | None) -> tuple[Layout, dict[str, npt.NDArray[Any]]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    left_out: dict[str, str] = {}
    try:
        with np.load(unpacked(path), allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    member = archive[name]
                except ValueError as error:  # objects, that only pickle could read
                    left_out[name] = _OBJECTS if "allow_pickle" in str(error) else first_line(error)
                    continue
                if isinstance(member, np.ndarray):
                    arrays[name] = member
                else:
                    left_out[name] = _BYTES
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as npz ({first_line(error)})") from None
    matrix = _matrix_name(path, arrays, left_out, vector_column)
    n_rows = len(checked_matrix(path, arrays[matrix]))
    texts = [name for name, array in arrays.items() if array.shape == (n_rows,) and name != matrix]
    left_out |= {name: f"of shape {array.shape}" for name, array in arrays.items() if name not in (matrix, *texts)}
    return Layout((matrix,), tuple(texts), left_out), arrays


def _matrix_name(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], left_out: Mapping[str, str], vector_column: str | None
) -> str:
    there = ", ".join(f"{name!r} of shape {array.shape}" for name, array in arrays.items())
    there = ", ".join([*([there] if there else []), *(f"{name!r} of {what}" for name, what in left_out.items())])
    if vector_column is not None:
        if vector_column not in arrays:
            raise DataError(f"{path}: no array {vector_column!r} ({OPTION}); it has {there or 'none'}")
        return vector_column
    matrices = [name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "fiu"]
    matrices = like_vectors(matrices) if len(matrices) > 1 and like_vectors(matrices) else matrices
    if len(matrices) != 1:
        what = "several matrices" if matrices else "no matrix"
        raise DataError(f"{path}: has {what} ({there or 'no array'}); name the array of the vectors with --{OPTION}")
    return matrices[0]


def _texts(array: npt.NDArray[Any]) -> list[str | None]:
    if array.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in array.tolist()]
    return [str(value) if value == value else None for value in array]  # nan is no text
