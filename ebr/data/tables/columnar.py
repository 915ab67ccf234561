"""Files of columns (Parquet, ORC, Arrow), read in batches, as they are or as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.orc
import pyarrow.parquet as pq

from ebr.data.files.contents import TableKind
from ebr.data.files.unpacking import BUFFER, readable
from ebr.errors import DataError, first_line

_BATCH_ROWS = 2048
_UNNAMED = re.compile(r"_col\d+")


def columnar_schema(path: Path, kind: TableKind) -> pa.Schema:
    """The columns of a file with their types. Raises DataError when it cannot be read."""
    with readable(path):
        if kind is TableKind.PARQUET:
            return pq.read_schema(path)
        if kind is TableKind.ORC:
            return pa.orc.ORCFile(path).schema
        with pa.ipc.open_file(path) as file:
            return file.schema


def n_columnar_rows(path: Path, kind: TableKind) -> int:
    """The rows of a file, from its footer or the heads of its batches. Raises DataError when it cannot be read."""
    with readable(path):
        if kind is TableKind.PARQUET:
            return int(pq.read_metadata(path).num_rows)
        if kind is TableKind.ORC:
            return int(pa.orc.ORCFile(path).nrows)
        # No column's data: the length of a batch stands before it.
        with pa.ipc.open_file(path, options=pa.ipc.IpcReadOptions(included_fields=[0])) as file:
            return sum(file.get_batch(index).num_rows for index in range(file.num_record_batches))


def are_unnamed(names: Sequence[str]) -> bool:
    """Whether these are the columns of an ORC file of old Hive, which knows their places alone: _col0, _col1, …."""
    return bool(names) and all(map(_UNNAMED.fullmatch, names))


def columnar_batches(path: Path, kind: TableKind, places: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
    """Consecutive rows of a file, few at a time, as they are. places: of the columns, in this order; None = all.

    Raises DataError on a broken file.
    """
    schema = columnar_schema(path, kind)
    at = range(len(schema)) if places is None else places
    names = [schema.names[place] for place in at]
    with readable(path):
        for batch in _batches(path, kind, names, sorted(at)):
            for start in range(0, len(batch), _BATCH_ROWS):
                rows = batch.slice(start, _BATCH_ROWS)
                yield pa.RecordBatch.from_arrays([rows.column(name) for name in names], names=names)


def _batches(path: Path, kind: TableKind, names: list[str], places: list[int]) -> Iterator[pa.RecordBatch]:
    if kind is TableKind.PARQUET:
        # A buffer has columns streamed; without one, a row group's columns are read whole.
        with pq.ParquetFile(path, buffer_size=BUFFER) as file:
            yield from file.iter_batches(_BATCH_ROWS, columns=names)
    elif kind is TableKind.ORC:
        orc = pa.orc.ORCFile(path)
        for stripe in range(orc.nstripes):
            yield orc.read_stripe(stripe, columns=names)
    else:
        with pa.ipc.open_file(path, options=pa.ipc.IpcReadOptions(included_fields=places)) as arrow:
            for index in range(arrow.num_record_batches):
                yield arrow.get_batch(index)


def refuse_columns_without_text(path: Path, columns: Iterable[tuple[str, pa.DataType]]) -> None:
    """Raise DataError when a column holds what has no text form: lists, structs, maps. columns: (name, type) of each."""
    for name, kind in columns:
        if not has_text_form(kind):
            raise DataError(f"{path}: column {name!r} is {kind}, which has no text form; leave it out of output_columns")


def has_text_form(kind: pa.DataType) -> bool:
    """Whether as_text takes a column of a type: no lists, structs and maps, nor what is kept as one, like a tensor."""
    try:
        pa.array([], storage_of(kind)).cast(pa.string())
    except pa.ArrowException:
        return False
    return True


def storage_of(kind: pa.DataType) -> pa.DataType:
    """What tensors, UUIDs and others of their kind are kept in; any other type itself."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def as_text(path: Path, name: str, cells: pa.Array) -> pa.Array:
    """A column as text; ids of 16 bytes that are called UUIDs, as those are written.

    Text and bytes that are not UTF-8 come through as they are: it is a matter of their rows. Raises DataError for a type that
    has no text form.
    """
    if isinstance(cells.type, pa.UuidType):
        return pa.array([None if cell is None else str(UUID(bytes=cell)) for cell in cells.storage.to_pylist()], pa.string())
    try:
        return cells.cast(options=pc.CastOptions(pa.string(), allow_invalid_utf8=True))
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: column {name!r} is {cells.type} and not text ({first_line(error)}); leave it out of output_columns"
        ) from None
