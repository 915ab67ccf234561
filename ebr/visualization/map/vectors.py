"""The vectors of a map, read only where something is computed from them: a map that is drawn again needs the columns alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ebr.data.vectors.batch import Columns, Vectors
from ebr.data.vectors.embeddings import VerifiedEmbeddings, find_embeddings
from ebr.errors import DataError

if TYPE_CHECKING:
    from ebr.visualization.map.cache import MapCache

Rows = NDArray[np.int64]

_MOST_KEPT_BYTES = 256 * 2**20
"""Of columns: larger ones would push the maps out of their cache."""


@dataclass(frozen=True)
class MapVectors:
    """shape: (N, D). digest: tells equal vectors from others without reading them; '' where nothing is cached."""

    shape: tuple[int, int]
    digest: str
    read: Callable[[], Vectors]

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def array(self) -> Vectors:
        """(N, D) float32."""
        return self.read()

    def take(self, rows: Rows) -> MapVectors:
        """Some of the rows."""
        digest = self.digest and sha256(self.digest.encode() + np.ascontiguousarray(rows).tobytes()).hexdigest()
        return MapVectors((len(rows), self.shape[1]), digest, lambda: self.array[rows])


@dataclass(frozen=True)
class VectorTable:
    """What a vector file holds, and its manifest; None for one that was made elsewhere."""

    vectors: MapVectors
    columns: Columns
    manifest: Mapping[str, Any] | None
    left_out: Mapping[str, str]
    """Columns that are no text, and what they are."""


def read_vector_table(
    path: Path, delimiter: str, cache: MapCache | None, *, option: str, vector_column: str | None = None
) -> VectorTable:
    """Read a file or folder of vectors; one that was read before, byte by byte the same, gives its columns from the cache.

    option: what names the path. Raises DataError as read_embeddings does.
    """
    from ebr.visualization.map.cache import digest_of, key_of

    files = find_embeddings(path, delimiter, option, vector_column=vector_column)
    if cache is None:
        found = files.read()
        return VectorTable(_in_memory(found.vectors, ""), found.columns, files.manifest, files.left_out)
    key = key_of(files.fingerprint(), {"what": "table"})
    if (kept := cache.load(key)) is not None:
        n_rows, dim = kept.facts["shape"]
        digest = kept.facts["digest"]
        vectors = MapVectors((n_rows, dim), digest, lambda: _read_again(files, digest))
        return VectorTable(vectors, _unpacked(kept.arrays["columns"]), files.manifest, files.left_out)
    found = files.read()
    digest = digest_of(found.vectors)
    packed = _packed(found.columns)
    if packed.nbytes <= _MOST_KEPT_BYTES:
        cache.store(key, {"columns": packed}, {"shape": found.vectors.shape, "digest": digest})
    return VectorTable(_in_memory(found.vectors, digest), found.columns, files.manifest, files.left_out)


def _in_memory(vectors: Vectors, digest: str) -> MapVectors:
    return MapVectors((vectors.shape[0], vectors.shape[1]), digest, lambda: vectors)


def _read_again(files: VerifiedEmbeddings, digest: str) -> Vectors:
    from ebr.visualization.map.cache import digest_of

    vectors = files.read(columns={}).vectors
    if digest_of(vectors) != digest:
        raise DataError(f"{files.path}: changed while it was read; draw the map again")
    return vectors


def _packed(columns: Columns) -> NDArray[np.uint8]:
    """Columns of text as the bytes of an Arrow stream."""
    table = pa.table({name: pa.array(cells, pa.large_string()) for name, cells in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return np.frombuffer(sink.getvalue(), dtype=np.uint8)


def _unpacked(packed: NDArray[np.uint8]) -> Columns:
    table = pa.ipc.open_stream(pa.py_buffer(packed)).read_all()
    return {name: table.column(name).to_pylist() for name in table.column_names}
