"""Vectors and text out of Arrow batches, as Parquet files and the like give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from ebr.data.files.contents import TableKind, unpacked
from ebr.data.tables.cells import without_twins
from ebr.data.tables.columnar import as_text, columnar_batches, columnar_schema, has_text_form, storage_of
from ebr.data.vectors.batch import VectorBatch, as_float32, wanted_columns
from ebr.data.vectors.layout import Layout, find_vector
from ebr.data.vectors.numbers import read_vectors
from ebr.errors import DataError, first_line

Read = Callable[[list[str]], Iterator[pa.RecordBatch]]
"""All rows of the columns named, in batches."""


def arrow_layout(path: Path, schema: pa.Schema, vector_column: str | None, read: Read) -> Layout:
    """Which columns are what; those of bytes are looked at. Raises DataError when no column is the vector."""
    vector = _find_vector(path, schema, vector_column)
    others = [name for name in schema.names if name not in vector]
    texts, left_out = text_columns(path, schema, others, read)
    return Layout(vector, texts, left_out)


def _find_vector(path: Path, schema: pa.Schema, vector_column: str | None) -> tuple[str, ...]:
    names = without_twins(str(path), list(schema.names))
    return find_vector(path, names, vector_column, [name for name in names if _is_number(schema.field(name).type)])


def text_columns(path: Path, schema: pa.Schema, names: Sequence[str], read: Read) -> tuple[tuple[str, ...], dict[str, str]]:
    """Those of the columns that can be read as text, and what the others are. Bytes can where all of them are UTF-8."""
    kinds = {name: schema.field(name).type for name in names}
    left_out = {name: str(kind) for name, kind in kinds.items() if not has_text_form(kind)}
    of_bytes = [name for name, kind in kinds.items() if name not in left_out and _is_bytes(kind)]
    for batch in read(of_bytes) if of_bytes else ():
        for name in of_bytes:
            try:
                texts(path, name, batch.column(name), "")
            except DataError:
                left_out[name] = f"{kinds[name]}, not UTF-8"
    return tuple(name for name in names if name not in left_out), left_out


def read_arrow(
    path: Path, schema: pa.Schema, columns: Mapping[str, str] | None, vector_column: str | None, read: Read
) -> Iterator[VectorBatch]:
    """The rows of a file. Raises DataError naming column or row."""
    vector = _find_vector(path, schema, vector_column)
    _check_types(path, schema, vector)
    names = wanted_columns(path, schema.names, columns, vector)
    options = columns or {}
    row, dim = 1, None
    for batch in read([*names, *vector]):
        if not batch.num_rows:
            continue
        vectors = as_float32(path, row, _matrix(path, row, [batch.column(name) for name in vector], dim))
        yield VectorBatch(vectors, {name: texts(path, name, batch.column(name), options.get(name, "")) for name in names})
        row, dim = row + len(vectors), vectors.shape[1]


def columnar_layout(path: Path, kind: TableKind, vector_column: str | None) -> Layout:
    """Which columns of an ORC or Arrow file are what. Raises DataError when none is the vector."""
    schema = columnar_schema(path, kind)
    return arrow_layout(path, schema, vector_column, _reader(path, kind, schema))


def read_columnar(
    path: Path, kind: TableKind, columns: Mapping[str, str] | None, vector_column: str | None
) -> Iterator[VectorBatch]:
    """The rows of an ORC or Arrow file, in batches. Raises DataError naming column or row."""
    schema = columnar_schema(path, kind)
    return read_arrow(path, schema, columns, vector_column, _reader(path, kind, schema))


def json_layout(path: Path, vector_column: str | None) -> Layout:
    """Which keys of a file of JSON lines are what. Raises DataError when none is the vector."""
    table = _json_table(path)
    return arrow_layout(path, table.schema, vector_column, lambda names: iter(table.select(names).to_batches()))


def read_json_lines(
    path: Path, columns: Mapping[str, str] | None, batch_rows: int, vector_column: str | None
) -> Iterator[VectorBatch]:
    """The rows of a file of JSON lines, in batches; the file is in memory. Raises DataError naming key or row."""
    table = _json_table(path)
    yield from read_arrow(
        path, table.schema, columns, vector_column, lambda names: iter(table.select(names).to_batches(batch_rows))
    )


def _json_table(path: Path) -> pa.Table:
    source = unpacked(path)
    content = source.read_bytes() if isinstance(source, Path) else source.read()
    # As one block: what a key holds is inferred for each, and whole numbers in one would not fit fractions in the next.
    options = pa.json.ReadOptions(block_size=len(content) + 1)
    try:
        return pa.json.read_json(pa.BufferReader(content), read_options=options)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as JSON lines ({first_line(error)})") from None


def _reader(path: Path, kind: TableKind, schema: pa.Schema) -> Read:
    return lambda names: columnar_batches(path, kind, [schema.names.index(name) for name in names])


def texts(path: Path, name: str, column: pa.Array, option: str) -> list[str | None]:
    """A column as text, null as None. Raises DataError for lists and records, and for bytes that are not UTF-8.

    option: what names the column; "" = nothing does.
    """
    try:
        cells: list[str | None] = as_text(path, name, column).to_pylist()
    except (DataError, UnicodeDecodeError):
        mend = f"choose another for {option}" if option else "leave it out of the file, or save it as text"
        raise DataError(f"{path}: column {name!r} is {column.type} and cannot be read as text; {mend}") from None
    return cells


def _stored(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _is_bytes(kind: pa.DataType) -> bool:
    """Bytes that may be no text, as those of a UUID are not."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not isinstance(kind, pa.UuidType) and any(test(storage_of(kind)) for test in tests)


def _is_number(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal))


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string))


def _check_types(path: Path, schema: pa.Schema, vector: Sequence[str]) -> None:
    for name in vector:
        kind = storage_of(schema.field(name).type)
        numbers = _is_list(kind) and _is_number(kind.value_type)
        if len(vector) == 1 and not numbers and not _is_text(kind):
            raise DataError(
                f"{path}: column {name!r} is {kind}; it must be a list of numbers, or text that is one (--vector_column)"
            )


def _matrix(path: Path, first_row: int, columns: Sequence[pa.Array], dim: int | None) -> npt.NDArray[Any]:
    """(N, D) numbers. Raises DataError when one is null, a vector empty or of another length."""
    if len(columns) > 1:
        return np.stack([_numbers(path, first_row, len(column), column) for column in columns], axis=1)
    column = _stored(columns[0])
    if _is_text(column.type):
        return read_vectors(column.to_pylist(), dim, lambda row: f"{path}: row {first_row + row}")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    expected = dim or (lengths[0] if len(lengths) else 0)
    wrong = np.flatnonzero(~(lengths == expected) | (lengths == 0))  # the length of null is nan, which equals nothing
    if wrong.size:
        row, length = first_row + int(wrong[0]), lengths[wrong[0]]
        if not length > 0:
            raise DataError(f"{path}: row {row}: the vector is empty")
        raise DataError(f"{path}: row {row}: the vector has {int(length)} numbers where the first has {int(expected)}")
    return _numbers(path, first_row, len(column), column.flatten()).reshape(len(column), -1)


def _numbers(path: Path, first_row: int, n_rows: int, numbers: pa.Array) -> npt.NDArray[Any]:
    if numbers.null_count:
        raise DataError(f"{path}: a vector among rows {first_row} to {first_row + n_rows - 1} holds null")
    if pa.types.is_decimal(numbers.type):
        numbers = numbers.cast(pa.float64())
    found: npt.NDArray[Any] = numbers.to_numpy(zero_copy_only=False)
    return found
