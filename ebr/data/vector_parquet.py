"""Vector files as Parquet: columns of text, and the vector as a list of fixed size; also the rows beside an npy file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ebr.data.vectors import VECTOR, Columns, VectorBatch, as_float32, as_type, wanted_columns
from ebr.errors import DataError, first_line

_GROUP_ROWS = 16_384  # rows of a row group, the least that is in memory when a file is read: 25 MB at 384 dimensions
_LEAF = f"{VECTOR}.list.element"


def write_parquet(
    path: Path, columns: pa.Table, vectors: npt.NDArray[np.float32] | None, dtype: str = "float32", *, packed: bool = True
) -> None:
    """Write columns of text, and checked vectors when there are any. The file says nothing beyond them and its writer.

    packed: as small as it gets; False = as fast as it goes, for a file that is soon read and removed.
    """
    table = _plain(columns)
    if vectors is not None:
        flat = pa.array(as_type(vectors, dtype).reshape(-1))
        field = pa.field(VECTOR, pa.list_(pa.field("element", flat.type), vectors.shape[1]))
        column = pa.FixedSizeListArray.from_arrays(flat, type=field.type)
        names = table.column_names
        table = pa.Table.from_arrays([*table.columns, column], schema=pa.schema([*(table.field(n) for n in names), field]))
    with _writer(path, table.schema, packed=packed) as writer:
        writer.write_table(table, row_group_size=_GROUP_ROWS)


def _plain(columns: pa.Table) -> pa.Table:
    """Columns as strings, without the notes that other tools leave in a schema."""
    schema = pa.schema([pa.field(name, pa.string()) for name in columns.column_names])
    return pa.Table.from_arrays([column.cast(pa.string()) for column in columns.columns], schema=schema)


def _writer(path: Path, schema: pa.Schema, *, packed: bool = True) -> pq.ParquetWriter:
    if not packed:
        return pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False)
    texts = [name for name in schema.names if name != VECTOR]
    # Numbers of a vector hardly repeat, so a dictionary only costs; their bytes by place (sign and exponent together)
    # compress far better.
    splits = {_LEAF: "BYTE_STREAM_SPLIT"} if VECTOR in schema.names else None
    return pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=texts, write_statistics=texts, column_encoding=splits
    )


def join_parquet(parts: Sequence[Path], output: Path) -> None:
    """Copy parts into one file, row group by row group. Raises DataError when columns or vectors differ in type."""
    with _opened(parts[0]) as first:
        schema = first.schema_arrow
    with _writer(output, schema) as writer:
        for part in parts:
            for group in _groups(part):
                if not group.schema.equals(schema):
                    raise DataError(f"{part}: its columns differ from those of {parts[0]}; remove the parts and run again")
                writer.write_table(group, row_group_size=_GROUP_ROWS)
            # Or what each part leaves in Arrow's pool adds up, until memory depends on how many parts there are.
            pa.default_memory_pool().release_unused()


def _groups(path: Path) -> Iterator[pa.Table]:
    """The row groups of a file. A generator of its own, so that an error of the writer is not taken for one of reading."""
    with _opened(path) as file:
        yield from (file.read_row_group(group) for group in range(file.num_row_groups))


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


def count_parquet_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def read_parquet(path: Path, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[VectorBatch]:
    """Batches of at most batch_rows rows; the vector may be any list of floats. Raises DataError naming column or row."""
    with _opened(path) as file:
        schema = file.schema_arrow
        if VECTOR not in schema.names:
            raise DataError(f"{path}: no column {VECTOR!r} (a vector file); it has {', '.join(map(repr, schema.names))}")
        _check_type(path, schema.field(VECTOR).type)
        names = wanted_columns(path, schema.names, columns)
        row, dim = 1, None
        for batch in file.iter_batches(batch_rows, columns=[*names, VECTOR]):
            if not batch.num_rows:
                continue
            vectors = as_float32(path, row, _matrix(path, row, batch.column(VECTOR), dim))
            yield VectorBatch(vectors, {name: texts(path, name, batch.column(name)) for name in names})
            row, dim = row + len(vectors), vectors.shape[1]


def read_rows_beside(path: Path, names: Sequence[str], batch_rows: int) -> Iterator[tuple[int, Columns]]:
    """(rows, columns of text) in batches, from a file without vectors."""
    with _opened(path) as file:
        for batch in file.iter_batches(batch_rows, columns=list(names)):
            yield batch.num_rows, {name: texts(path, name, batch.column(name)) for name in names}


def texts(path: Path, name: str, column: pa.Array) -> list[str | None]:
    """A column as text, null as None. Raises DataError for lists and records, and for bytes that are not UTF-8."""
    try:
        cells: list[str | None] = column.cast(pa.string()).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError):
        raise DataError(
            f"{path}: column {name!r} is {column.type} and cannot be read as text; name the columns to keep"
        ) from None
    return cells


def _check_type(path: Path, kind: pa.DataType) -> None:
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not (is_list and types.is_floating(kind.value_type)):
        raise DataError(f"{path}: column {VECTOR!r} is {kind}; it must be a list of floats")


def _matrix(path: Path, first_row: int, column: pa.Array, dim: int | None) -> npt.NDArray[np.floating[Any]]:
    """(N, D) from a column of lists. Raises DataError when one is null, empty, or of another length."""
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    expected = dim or (lengths[0] if len(lengths) else 0)
    wrong = np.flatnonzero(~(lengths == expected) | (lengths == 0))  # the length of null is nan, which equals nothing
    if wrong.size:
        row, length = first_row + int(wrong[0]), lengths[wrong[0]]
        if not length > 0:
            raise DataError(f"{path}: row {row}: the vector is empty")
        raise DataError(f"{path}: row {row}: the vector has {int(length)} numbers where the first has {int(expected)}")
    numbers = column.flatten()
    if numbers.null_count:
        raise DataError(f"{path}: a vector among rows {first_row} to {first_row + len(column) - 1} holds null")
    matrix: npt.NDArray[np.floating[Any]] = numbers.to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return matrix
