"""Vectors in an archive of NumPy arrays: one is the matrix, those with one value a row are columns."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ebr.data.files.contents import unpacked
from ebr.data.vectors.batch import VectorBatch, as_float32, slices, wanted_columns
from ebr.data.vectors.layout import OPTION, Layout, like_vectors
from ebr.data.vectors.npy import checked_matrix
from ebr.errors import DataError, first_line

_OBJECTS = "Python objects, which are not unpickled"
_BYTES = "bytes that are no array"


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
