"""What every format of vector files shares: the name of the vector's column, a batch of rows, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ebr.data.tables.cells import VECTOR, column_index
from ebr.errors import DataError

Vectors = npt.NDArray[np.float32]

Columns = dict[str, list[str | None]]
"""Cells by the name of their column; None is null."""


@dataclass(frozen=True)
class VectorBatch:
    """Consecutive rows of a vector file: row i has vectors[i], (N, D) float32, and columns[name][i]."""

    vectors: Vectors
    columns: Columns


def wanted_columns(
    path: Path, header: Sequence[str], columns: Mapping[str, str] | None, vector: Sequence[str] = (VECTOR,)
) -> list[str]:
    """The columns to keep: all but the vector's, or those named, each with the option that names it.

    Raises DataError when one is not in the header.
    """
    if columns is None:
        return [name for name in header if name not in vector]
    for name, option in columns.items():
        if name in vector:
            raise DataError(f"{path}: {name!r} ({option}) holds the vectors themselves; choose another column")
        column_index(path, header, name, option)
    return list(columns)


def checked_vectors(columns: pa.Table, vectors: Vectors) -> Vectors:
    """The vectors as C-ordered (N, D) float32, one a row of the columns.

    Raises DataError naming the first row that holds nan or inf, ValueError when shapes disagree.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise ValueError(f"vectors must be (N, D) with D > 0, not {vectors.shape}")
    if columns.num_columns and columns.num_rows != len(vectors):
        raise ValueError(f"{columns.num_rows} rows of columns for {len(vectors)} vectors")
    index = first_broken(vectors)
    if index is not None:
        cells = [str(columns.column(at)[index].as_py()) for at in range(columns.num_columns)]
        row = repr(" | ".join(cells)[:200]) if cells else str(index)
        raise DataError(f"the model gave nan or inf for the row {row}; its weights may be broken")
    return vectors


def first_broken(vectors: npt.NDArray[np.floating[Any]]) -> int | None:
    """The first row that holds nan or inf; None when all are finite."""
    finite = np.isfinite(vectors).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def as_float32(path: Path, first_row: int, vectors: npt.NDArray[np.floating[Any]]) -> Vectors:
    """Vectors of any float type that were read, as float32. Raises DataError naming the row (from 1) with nan or inf."""
    with np.errstate(over="ignore"):
        vectors = vectors.astype(np.float32)
    index = first_broken(vectors)
    if index is not None:
        raise DataError(f"{path}: row {first_row + index}: the vector holds nan, inf or a number beyond float32")
    return vectors


def as_type(vectors: Vectors, dtype: str) -> npt.NDArray[np.floating[Any]]:
    """Finite float32 vectors in the type they are stored in. Raises DataError when one goes beyond float16."""
    with np.errstate(over="ignore"):
        stored = vectors.astype(np.dtype(dtype), copy=False)
    index = first_broken(stored)
    if index is not None:
        largest = float(np.abs(vectors[index]).max())
        raise DataError(f"the vector of row {index + 1} holds {largest:g}, beyond float16 (65504); write float32")
    return stored


def slices(n_rows: int, rows_a_slice: int) -> Iterator[slice]:
    """Consecutive slices that cover n_rows rows."""
    return (slice(start, min(start + rows_a_slice, n_rows)) for start in range(0, n_rows, rows_a_slice))


def sample_rows(n_rows: int, at_most: int, seed: int | np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows of a seeded sample without repetition, sorted; all of them when they are few enough."""
    if n_rows <= at_most:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, at_most, replace=False))
