"""The files of a warehouse: which they are, what they are (by their first bytes), and their content as one stream.

Hive's part files carry no suffix, and folders like dt=2026-01-01 carry a column.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from ebr.data.records import read_records
from ebr.data.tables import first_names, without_twins
from ebr.errors import ConfigError, DataError, first_line

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""How Hive names the folder of rows whose partition column is null."""

_PARQUET_MAGIC = b"PAR1"
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BUFFER = 1 << 20
_BATCH_ROWS = 2048


class TableKind(str, Enum):
    """How a file's rows are stored."""

    TEXT = "text"
    PARQUET = "parquet"


class Compression(str, Enum):
    """How a text file as a whole is packed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True)
class TableFile:
    """One input file, its header read and checked.

    name: posix path from input_dir. columns: the file's own, in its order. partitions: the columns that its folders give,
    each with its value (None is null). n_bytes: size on disk.
    """

    path: Path
    name: str
    kind: TableKind
    compression: Compression
    columns: tuple[str, ...]
    partitions: tuple[tuple[str, str | None], ...]
    n_bytes: int

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The file's own columns, then those of its folders."""
        return (*self.columns, *(name for name, _ in self.partitions))


def find_tables(folder: Path, pattern: str) -> list[Path]:
    """The tables of a folder and its subfolders, sorted. Raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(f"input_dir {folder}: no such folder")
    try:
        found = {path for below in _with_linked_folders(folder) for path in below.rglob(pattern) if path.is_file()}
    except (NotImplementedError, ValueError):
        raise ConfigError(f"file_pattern {pattern!r}: must lie below input_dir, like *.csv") from None
    files = sorted(path for path in found if not any(map(_is_left_by_a_tool, path.relative_to(folder).parts)))
    if not files:
        raise DataError(f"input_dir {folder}: no file matches {pattern!r}; set file_pattern or put tables there")
    return files


def _with_linked_folders(folder: Path) -> Iterator[Path]:
    """The folder, and every folder below it that is a link to elsewhere, which rglob does not enter; each real one once."""
    yield folder
    home = folder.resolve()
    seen = {home}
    for place, names, _ in os.walk(folder, followlinks=True):
        for name in sorted(names):
            below = Path(place, name)
            if not below.is_symlink():
                continue
            real = below.resolve()
            if real in seen or home in real.parents or real in home.parents:
                names.remove(name)  # met already, on another way, or a loop
            else:
                seen.add(real)
                yield below


def _is_left_by_a_tool(part: str) -> bool:
    """Hidden files and folders, _SUCCESS, _temporary, checksums: no data. A folder like _dt=2026 is a partition after all."""
    return part.startswith(".") or part.endswith(".crc") or (part.startswith("_") and "=" not in part)


def open_table(path: Path, input_dir: Path, delimiter: str, column_names: Sequence[str] | None) -> TableFile | None:
    """Say what a file is and which columns it has; None for one that holds nothing but line ends.

    column_names: those of a text file without a header line; None = its first line names them. Parquet has its own.
    Raises DataError when the file cannot be read, names a column twice, or has a column that its folders give too.
    """
    relative = path.relative_to(input_dir)
    with _readable(path):
        n_bytes = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(8)
    kind = TableKind.PARQUET if head.startswith(_PARQUET_MAGIC) else TableKind.TEXT
    compression = _compression(head) if kind is TableKind.TEXT else Compression.NONE
    file = TableFile(path, relative.as_posix(), kind, compression, (), _partitions(path, relative), n_bytes)
    columns = list(parquet_schema(path).names) if kind is TableKind.PARQUET else _text_columns(file, delimiter, column_names)
    if columns is None:
        return None
    shared = sorted(set(columns) & {name for name, _ in file.partitions})
    if shared:
        raise DataError(f"{path}: its folders give the column {', '.join(shared)}, which the file has too; rename one")
    return TableFile(path, file.name, kind, compression, tuple(without_twins(str(path), columns)), file.partitions, n_bytes)


def _compression(head: bytes) -> Compression:
    # Tools that pack in parallel put a frame before the data that readers skip: 50 to 5f, then 2a 4d 18.
    skippable = head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    if head.startswith(_ZSTD_MAGIC) or skippable:
        return Compression.ZSTD
    return Compression.GZIP if head.startswith(_GZIP_MAGIC) else Compression.NONE


def _partitions(path: Path, relative: Path) -> tuple[tuple[str, str | None], ...]:
    try:
        relative.as_posix().encode()
        pairs = [part.split("=", 1) for part in relative.parent.parts if part.find("=") > 0]
        found = [(unquote(name, errors="strict"), unquote(value, errors="strict")) for name, value in pairs]
    except UnicodeError:
        raise DataError(f"{str(path)!a}: its name or a folder's is not UTF-8; rename it") from None
    without_twins(str(path), [name for name, _ in found])
    return tuple((name, None if value == HIVE_NULL else value) for name, value in found)


def _text_columns(file: TableFile, delimiter: str, column_names: Sequence[str] | None) -> list[str] | None:
    with open_bytes(file) as stream:
        if column_names is None:
            return first_names(file.path, stream, delimiter)
        is_empty = not any(map(len, read_records(file.path, stream, delimiter, _BUFFER)))
    return None if is_empty else list(column_names)


class TableStream(io.BufferedReader):
    """The unpacked bytes of a text file; every failure to read them is a DataError that names the file."""

    def __init__(self, file: TableFile) -> None:
        super().__init__(_Unpacked(file), _BUFFER)

    def disk_position(self, offset: int) -> float:
        """About how many bytes of the file on disk hold the first `offset` bytes of its content."""
        raw = cast(_Unpacked, self.raw)
        return offset * raw.disk.tell() / max(1, raw.n_unpacked)


def open_bytes(file: TableFile) -> TableStream:
    """The content of a text file, unpacked. Raises DataError when it cannot be read, or when the archive is broken."""
    return TableStream(file)


class _Unpacked(io.RawIOBase):
    """What TableStream buffers."""

    def __init__(self, file: TableFile) -> None:
        self.file = file
        self.n_unpacked = 0
        with _readable(file.path):
            self.disk: BinaryIO = file.path.open("rb")
        self._content: Any = self.disk
        if file.compression is Compression.GZIP:
            self._content = gzip.GzipFile(fileobj=self.disk, mode="rb")
        elif file.compression is Compression.ZSTD:
            self._content = pa.CompressedInputStream(pa.PythonFile(self.disk, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        try:
            n_bytes = int(self._content.readinto(buffer))
        except (OSError, EOFError, zlib.error) as error:
            if self.file.compression is Compression.NONE or getattr(error, "strerror", None):
                raise _unreadable(self.file.path, error) from None
            packed = self.file.compression.value
            raise DataError(
                f"{self.file.path}: the {packed} archive is broken or cut short ({first_line(error)}); copy the file again"
            ) from None
        self.n_unpacked += n_bytes
        return n_bytes

    def close(self) -> None:
        if not self.closed:
            self.disk.close()
        super().close()


def parquet_schema(path: Path) -> pa.Schema:
    """The columns of a Parquet file with their types. Raises DataError when it cannot be read."""
    with _readable(path):
        return pq.read_schema(path)


def n_parquet_rows(path: Path) -> int:
    """The rows of a Parquet file, from its footer. Raises DataError when it cannot be read."""
    with _readable(path):
        return int(pq.read_metadata(path).num_rows)


def refuse_columns_without_text(path: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise DataError when one of these columns of a Parquet file holds what has no text form: lists, structs, maps."""
    for name in columns:
        kind = schema.field(name).type
        try:
            pa.array([], kind).cast(pa.string())
        except pa.ArrowException:
            raise DataError(
                f"{path}: column {name!r} is {kind}, which has no text form; leave it out of output_columns"
            ) from None


def parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Consecutive rows of a Parquet file, of the columns named, as text.

    A cell of a text column that is not UTF-8 comes through as it is; DataError when a binary one is not, or on a broken file.
    """
    with _readable(path):
        # A buffer has columns streamed; without one, a row group's columns are read whole.
        with pq.ParquetFile(path, buffer_size=_BUFFER) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
                yield pa.table({name: _as_text(path, name, batch.column(name)) for name in columns})


def _as_text(path: Path, name: str, cells: pa.Array) -> pa.Array:
    try:
        return cells.cast(pa.string())
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: column {name!r} is {cells.type} and not text ({first_line(error)}); leave it out of output_columns"
        ) from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or first_line(error)})")
