"""Input files → shards: so many consecutive rows, the unit of work. A shard's digest stands for its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ebr.data.files.contents import TableKind
from ebr.data.files.dialects import Dialect
from ebr.data.tables.cells import VECTOR, BadRow, column_index
from ebr.data.tables.columnar import columnar_schema, n_columnar_rows, refuse_columns_without_text
from ebr.data.tables.cutting import Limits, columnar_pieces, piece_digest, text_pieces
from ebr.data.tables.evolution import is_older, widest, with_own_widths
from ebr.data.tables.files import TableFile, find_tables, open_table
from ebr.data.tables.records import read_records
from ebr.errors import ConfigError, DataError

MOST_BYTES = 64 * 2**20
"""Bytes of a shard, unless a single row has more."""

_SHARED = 8
"""Small files share shards of at most an eighth of the others: when one changes, no more than that is done again."""


@dataclass(frozen=True)
class Schema:
    """How a shard's rows are read. columns: those of the output in order, of the files and of their folders."""

    text_column: str
    columns: tuple[str, ...]
    dialect: Dialect
    key_column: str | None = None

    @property
    def delimiter(self) -> str:
        """Between the columns of the input, and of text output."""
        return self.dialect.delimiter

    def needed(self) -> tuple[str, ...]:
        """Every column that is read, each once."""
        key = () if self.key_column is None else (self.key_column,)
        return tuple(dict.fromkeys((*self.columns, self.text_column, *key)))


@dataclass(frozen=True)
class TableSource:
    """All input files, in the order they are read. has_header: text files start with a line of column names."""

    files: tuple[TableFile, ...]
    empty_files: tuple[Path, ...]
    unfinished_files: tuple[Path, ...]
    schema: Schema
    has_header: bool

    @property
    def n_bytes(self) -> int:
        """Size of all files on disk."""
        return sum(file.n_bytes for file in self.files)

    def lacking(self) -> list[tuple[TableFile, list[str]]]:
        """The files that lack columns of the output, which are null there."""
        own = ((file, set(file.all_columns)) for file in self.files)
        lacking = [(file, [name for name in self.schema.columns if name not in names]) for file, names in own]
        return [(file, names) for file, names in lacking if names]


@dataclass(frozen=True)
class Stretch:
    """Consecutive rows of one file, not parsed yet.

    first_line: line (text) or row (columns), from 1, of its first row. n_lines: its rows, good and bad, without blank lines.
    digest: sha256 in hex of all that its rows depend on: the same digest, the same rows and the same rejects.
    dialect: how its text is written, in the file's own encoding. payload: its lines in UTF-8, or the needed columns as text.
    """

    file: str
    first_line: int
    n_lines: int
    digest: str
    dialect: Dialect
    columns: tuple[str, ...]
    partitions: tuple[tuple[str, str | None], ...]
    payload: bytes | pa.Table

    @property
    def n_bytes(self) -> int:
        """Size of the payload."""
        if isinstance(self.payload, bytes):
            return len(self.payload)
        return sum(pc.sum(pc.binary_length(column)).as_py() or 0 for column in self.payload.columns)


@dataclass(frozen=True)
class Shard:
    """Consecutive rows: of one file, or of several small ones, each whole.

    read_share: share of all input bytes (0 to 1) that is read up to its end.
    """

    stretches: tuple[Stretch, ...]
    read_share: float

    @property
    def n_lines(self) -> int:
        """Its rows, good and bad."""
        return sum(stretch.n_lines for stretch in self.stretches)

    @property
    def digest(self) -> str:
        """sha256 in hex of all that its rows depend on."""
        if len(self.stretches) == 1:
            return self.stretches[0].digest
        return sha256("".join(stretch.digest for stretch in self.stretches).encode()).hexdigest()

    def __str__(self) -> str:
        first = self.stretches[0]
        return f"{first.file}: the shard from line {first.first_line}"

    def in_order(self, bad: Sequence[BadRow]) -> list[BadRow]:
        """Bad rows of this shard as they stand in its files."""
        place = {stretch.file: number for number, stretch in enumerate(self.stretches)}
        return sorted(bad, key=lambda row: (place[str(row.file)], row.line))


def open_source(
    input_dir: Path,
    file_pattern: str,
    dialect: Dialect,
    text_column: str,
    output_columns: Sequence[str] | None,
    *,
    column_names: Sequence[str] | None = None,
    key_column: str | None = None,
) -> TableSource:
    """Find the tables and check every header before a row is read.

    column_names: those of text files without a header line; None = their first line names them. output_columns: None = all.
    Raises DataError naming file and column, ConfigError for a column named twice in an option.
    """
    if column_names is not None and len(set(column_names)) < len(column_names):
        raise ConfigError(f"column_names: {', '.join(column_names)} names a column twice; name each once")
    found, unfinished = find_tables(input_dir, file_pattern)
    home = input_dir.parent if input_dir.is_file() else input_dir
    opened = {path: open_table(path, home, dialect, column_names) for path in found}
    files = tuple(file for file in opened.values() if file is not None)
    if not files:
        raise DataError(f"input_dir {input_dir}: all {len(opened)} files that match {file_pattern!r} are empty")
    if column_names is not None:
        files = with_own_widths(files, column_names, text_column)
    now = widest(files)
    columns = now.all_columns if output_columns is None else tuple(output_columns)
    schema = Schema(text_column, columns, dialect, key_column)
    for file in files:
        if output_columns is None and set(file.all_columns) != set(columns) and not is_older(file, now):
            raise DataError(
                f"{file.path}: its columns {list(file.all_columns)} differ from {list(columns)} of {now.path}; "
                "name those to keep in output_columns"
            )
        _check_columns(file, schema, now)
    if len(set(columns)) < len(columns):
        raise DataError(f"output_columns: {', '.join(columns)} names a column twice; name each once")
    if VECTOR in columns:
        raise DataError(f"output_columns: {VECTOR!r} is the name of the column that the run adds; rename the input column")
    empty = tuple(path for path, file in opened.items() if file is None)
    return TableSource(files, empty, tuple(unfinished), schema, has_header=column_names is None)


def _check_columns(file: TableFile, schema: Schema, now: TableFile) -> None:
    # A folder's column is the same in every row: nothing to embed.
    varying = [name for name in file.columns if name not in dict(file.partitions)]
    column_index(file.path, varying, schema.text_column, "description_column")
    known = now.all_columns if is_older(file, now) else file.all_columns
    for name in schema.columns:
        column_index(file.path, known, name, "output_columns")
    if schema.key_column is not None:
        column_index(file.path, file.all_columns, schema.key_column, "incremental_key")
    if file.kind is not TableKind.TEXT:
        stored = columnar_schema(file.path, file.kind)
        own = [(name, stored.types[file.columns.index(name)]) for name in schema.needed() if name in file.columns]
        refuse_columns_without_text(file.path, own)


def count_rows(source: TableSource) -> int:
    """How many rows all files hold, good and bad. Text is read whole for it, files of columns are not."""
    n_rows = 0
    for file in source.files:
        if file.kind is not TableKind.TEXT:
            n_rows += n_columnar_rows(file.path, file.kind)
        else:
            with file.open() as stream:
                records = read_records(file.path, stream, file.dialect)
                n_rows += sum(map(len, records)) - source.has_header
    return n_rows


def read_shards(source: TableSource, shard_rows: int, *, max_bytes: int = MOST_BYTES, shared: bool = True) -> Iterator[Shard]:
    """The shards of all files in order; each ends after shard_rows rows or before max_bytes, whichever comes first.

    shared: whether small files share shards. They depend on nothing but the files' content and these arguments. One is in
    memory at a time. Raises DataError when a file cannot be read, or has other columns than when the source was opened.
    """
    limits, n_before = Limits(shard_rows, max_bytes), 0
    gathered = _Gathered(limits)
    for file in source.files:
        for number, (stretch, disk_position) in enumerate(_stretches(file, source, limits)):
            read_share = min(1.0, (n_before + disk_position) / source.n_bytes)
            if shared and not number and gathered.is_small(stretch):
                yield from gathered.add(stretch, read_share)
            else:
                yield from gathered.shard()
                yield Shard((stretch,), read_share)
        n_before += file.n_bytes
    yield from gathered.shard()


def _stretches(file: TableFile, source: TableSource, limits: Limits) -> Iterator[tuple[Stretch, float]]:
    """The rows of a file as a shard holds them at most, each with the bytes on disk up to their end."""
    if file.kind is TableKind.TEXT:
        pieces = text_pieces(file, has_header=source.has_header, limits=limits)
    else:
        pieces = columnar_pieces(file, [name for name in source.schema.needed() if name in file.columns], limits)
    for piece in pieces:
        stretch = Stretch(
            file=file.name,
            first_line=piece.first_line,
            n_lines=piece.n_rows,
            digest=piece_digest(file, piece),
            dialect=file.dialect,
            columns=file.columns,
            partitions=file.partitions,
            payload=piece.payload,
        )
        yield stretch, piece.disk_position


class _Gathered:
    """Small files on their way into a shard of their own.

    Where it ends depends on the names and sizes of its last files alone, not on how many came before: a file that is new,
    changed or gone leaves the shards of most others as they are.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._stretches: list[Stretch] = []
        self._share = self._read_share = 0.0

    def is_small(self, stretch: Stretch) -> bool:
        """Whether a stretch, the first of its file, is all of it, and little."""
        return self._share_of(stretch) <= 1 / 2

    def add(self, stretch: Stretch, read_share: float) -> Iterator[Shard]:
        """Take in a small file; the shards that are full now."""
        share = self._share_of(stretch)
        if self._share + share > 1:
            yield from self.shard()
        self._stretches.append(stretch)
        self._share, self._read_share = self._share + share, read_share
        # By chance, but always the same: on average after half of what there is room for.
        if int(sha256(stretch.file.encode()).hexdigest()[:8], 16) / 2**32 < 2 * share:
            yield from self.shard()

    def shard(self) -> Iterator[Shard]:
        """The shard of what was taken in, if anything."""
        if self._stretches:
            yield Shard(tuple(self._stretches), self._read_share)
            self._stretches, self._share = [], 0.0

    def _share_of(self, stretch: Stretch) -> float:
        """Share of the room for small files, an eighth of a shard, that a stretch takes."""
        return _SHARED * max(stretch.n_lines / self._limits.most_rows, stretch.n_bytes / self._limits.most_bytes)
