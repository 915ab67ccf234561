"""A map as the Parquet that Apple's embedding-atlas opens, for more points than a page can hold.

Its columns: x and y; neighbors, a record {ids, distances} of zero-based row numbers and distances, nearest first
(apple.github.io/embedding-atlas/tool.html); then the data's own, as text. Opened with embedding-atlas 0.26.0.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ebr.data.files.write import write_aside
from ebr.errors import DataError, first_line
from ebr.visualization.project.neighbours import Neighbours

X, Y, NEIGHBOURS = "x", "y", "neighbors"
_GROUP_ROWS = 65_536
"""Rows of a row group, the most that is built in memory: about 30 MB with ten neighbours and a sentence each."""
_TEXT_KEY = b"ebr.text_column"
_TAKEN = (X, Y, NEIGHBOURS, "file_name", "__row_index__")
"""Ours, and the two that the atlas adds itself."""


def write_atlas(
    path: Path,
    coords: NDArray[np.floating],
    columns: Mapping[str, Sequence[str]],
    neighbours: Neighbours | None = None,
    *,
    text_column: str | None = None,
) -> None:
    """Write a map whole or not at all, row group by row group.

    coords: (N, 2). columns: N cells each, '' = missing and written as null. neighbours: (N, k) among the same rows; distances
    are 1 - cosine. text_column: the one of columns that atlas_command names as the text. A column of the data whose name is
    taken gets a number behind it; DuckDB, which serves the file there, sees no upper and lower case. Raises ValueError when
    lengths differ, DataError when the file cannot be written.
    """
    _check_lengths(len(coords), columns, neighbours)
    names = _free_names(columns)
    schema = _schema(list(names.values()), neighbours is not None)
    if text_column is not None:
        schema = schema.with_metadata({_TEXT_KEY: names[text_column].encode()})
    try:
        with write_aside(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            for group in _groups(schema, coords, columns, neighbours):
                writer.write_batch(group)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({first_line(error)}); choose another output_path") from None


def atlas_command(path: Path) -> str:
    """The command that opens a file of write_atlas, quoted for a shell. Raises DataError when it is no such file."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)}); export it again") from None
    words = ["embedding-atlas", str(path), "--x", X, "--y", Y]
    if NEIGHBOURS in schema.names:
        words += ["--neighbors", NEIGHBOURS]
    text = (schema.metadata or {}).get(_TEXT_KEY)
    return shlex.join([*words, *(["--text", text.decode()] if text else [])])


def _check_lengths(n_rows: int, columns: Mapping[str, Sequence[str]], neighbours: Neighbours | None) -> None:
    lengths = {f"column {name!r}": len(cells) for name, cells in columns.items()}
    if neighbours is not None:
        lengths["neighbours"] = len(neighbours.indices)
    for what, length in lengths.items():
        if length != n_rows:
            raise ValueError(f"{n_rows} points but {length} rows of {what}")


def _free_names(columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A name in the file for each column of the data: its own where that is free, else with _1, _2, ... behind it."""
    taken, names = set(_TAKEN), {}
    own = {name.casefold() for name in columns}
    for name in columns:
        free, number = name, 0
        while free.casefold() in taken or (number and free.casefold() in own):
            number += 1
            free = f"{name}_{number}"
        taken.add(free.casefold())
        names[name] = free
    return names


def _schema(names: Sequence[str], has_neighbours: bool) -> pa.Schema:
    numbers = [pa.field(X, pa.float32()), pa.field(Y, pa.float32())]
    if has_neighbours:
        record = pa.struct([pa.field("ids", pa.list_(pa.int32())), pa.field("distances", pa.list_(pa.float32()))])
        numbers.append(pa.field(NEIGHBOURS, record))
    return pa.schema([*numbers, *(pa.field(name, pa.string()) for name in names)])


def _groups(
    schema: pa.Schema, coords: NDArray[np.floating], columns: Mapping[str, Sequence[str]], neighbours: Neighbours | None
) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(coords), _GROUP_ROWS):
        part = slice(start, start + _GROUP_ROWS)
        points = np.asarray(coords[part], dtype=np.float32)
        arrays = [pa.array(np.ascontiguousarray(points[:, axis])) for axis in (0, 1)]
        if neighbours is not None:
            arrays.append(_records(neighbours.indices[part], neighbours.similarities[part], schema.field(NEIGHBOURS).type))
        arrays += [pa.array([cell or None for cell in cells[part]], pa.string()) for cells in columns.values()]
        yield pa.record_batch(arrays, schema=schema)


def _records(indices: NDArray[np.int32], similarities: NDArray[np.float32], kind: pa.DataType) -> pa.StructArray:
    """(n, k) rows and cosines as n records of two lists."""
    offsets = pa.array(np.arange(len(indices) + 1, dtype=np.int32) * indices.shape[1], pa.int32())
    distances = np.clip(1 - np.asarray(similarities, dtype=np.float32), 0, 2)
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)))
        for values in (np.asarray(indices, dtype=np.int32), distances)
    ]
    return pa.StructArray.from_arrays(lists, fields=list(kind))
