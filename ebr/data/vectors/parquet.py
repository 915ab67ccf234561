"""Vector files as Parquet: columns of text, and the vector as a list of fixed size; also the rows beside an npy file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ebr.data.files.contents import unpacked
from ebr.data.files.unpacking import unreadable
from ebr.data.tables.cells import VECTOR, without_twins
from ebr.data.vectors.arrow import Read, arrow_layout, read_arrow, text_columns, texts
from ebr.data.vectors.batch import Columns, VectorBatch, as_type
from ebr.data.vectors.layout import Layout
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
        with pq.ParquetFile(unpacked(path)) as file:
            yield file
    except UnicodeEncodeError as error:
        raise unreadable(path, error) from None
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


def parquet_layout(path: Path, vector_column: str | None) -> Layout:
    """Which columns are what. Raises DataError when none is the vector."""
    with _opened(path) as file:
        return arrow_layout(path, file.schema_arrow, vector_column, _reader(file))


def read_parquet(
    path: Path, columns: Mapping[str, str] | None, batch_rows: int, vector_column: str | None = None
) -> Iterator[VectorBatch]:
    """Batches of at most batch_rows rows. Raises DataError naming column or row."""
    with _opened(path) as file:
        yield from read_arrow(path, file.schema_arrow, columns, vector_column, _reader(file, batch_rows))


def rows_beside_layout(path: Path) -> Layout:
    """The columns of a file without vectors."""
    with _opened(path) as file:
        names = without_twins(str(path), list(file.schema_arrow.names))
        return Layout((), *text_columns(path, file.schema_arrow, names, _reader(file)))


def read_rows_beside(path: Path, columns: Mapping[str, str], batch_rows: int) -> Iterator[tuple[int, Columns]]:
    """(rows, columns of text) in batches, from a file without vectors. columns: each with the option that names it."""
    with _opened(path) as file:
        for batch in _reader(file, batch_rows)(list(columns)):
            yield batch.num_rows, {name: texts(path, name, batch.column(name), option) for name, option in columns.items()}


def _reader(file: pq.ParquetFile, batch_rows: int = 4096) -> Read:
    return lambda names: file.iter_batches(batch_rows, columns=names)
