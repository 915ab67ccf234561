"""Input files → shards: so many consecutive rows of one file, the unit of work. A shard's digest stands for its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ebr.data.blank import is_blank
from ebr.data.columnar import columnar_schema, n_columnar_rows, refuse_columns_without_text
from ebr.data.contents import TableKind, looks_like_gbk
from ebr.data.cutting import Limits, columnar_pieces, piece_digest, text_pieces
from ebr.data.dialects import UTF8, Dialect
from ebr.data.json_rows import JsonRows
from ebr.data.records import find_records, read_records
from ebr.data.table_files import TableFile, find_tables, open_table
from ebr.data.tables import NOT_UTF8, BadRow, Cells, column_index, read_all_cells, read_cells
from ebr.data.unpacking import bytes_on_disk
from ebr.data.vectors import VECTOR
from ebr.errors import ConfigError, DataError

MOST_BYTES = 64 * 2**20
"""Bytes of a shard, unless a single row has more."""


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
class Source:
    """All input files, in the order they are read. has_header: text files start with a line of column names."""

    input_dir: Path
    files: tuple[TableFile, ...]
    empty_files: tuple[Path, ...]
    schema: Schema
    has_header: bool

    @property
    def n_bytes(self) -> int:
        """Size of all files on disk."""
        return sum(file.n_bytes for file in self.files)


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of one file, not parsed yet.

    first_line: line (text) or row (columns), from 1, of its first row. n_lines: its rows, good and bad, without blank lines.
    digest: sha256 in hex of all that its rows depend on: the same digest, the same rows and the same rejects.
    dialect: how its text is written, in the file's own encoding. payload: its lines in UTF-8, or the needed columns as text.
    read_share: share of all input bytes (0 to 1) that is read up to its end.
    """

    file: str
    first_line: int
    n_lines: int
    digest: str
    dialect: Dialect
    columns: tuple[str, ...]
    partitions: tuple[tuple[str, str | None], ...]
    payload: bytes | pa.Table
    read_share: float


@dataclass(frozen=True)
class ShardRows:
    """A parsed shard: the good rows in order, and the bad ones.

    texts, keys (of the key column), lines and raws (the row's bytes; of columns, the row as JSON): one a good row.
    columns: the output columns, all strings, null for null.
    """

    texts: list[str]
    columns: pa.Table
    keys: list[str] | None
    lines: list[int]
    raws: Sequence[bytes]
    bad: list[BadRow]


def open_source(
    input_dir: Path,
    file_pattern: str,
    dialect: Dialect,
    text_column: str,
    output_columns: Sequence[str] | None,
    *,
    column_names: Sequence[str] | None = None,
    key_column: str | None = None,
) -> Source:
    """Find the tables and check every header before a row is read.

    column_names: those of text files without a header line; None = their first line names them. output_columns: None = all.
    Raises DataError naming file and column, ConfigError for a column named twice in an option.
    """
    if column_names is not None and len(set(column_names)) < len(column_names):
        raise ConfigError(f"column_names: {', '.join(column_names)} names a column twice; name each once")
    opened = {path: open_table(path, input_dir, dialect, column_names) for path in find_tables(input_dir, file_pattern)}
    files = tuple(file for file in opened.values() if file is not None)
    if not files:
        raise DataError(f"input_dir {input_dir}: all {len(opened)} files that match {file_pattern!r} are empty")
    columns = files[0].all_columns if output_columns is None else tuple(output_columns)
    schema = Schema(text_column, columns, dialect, key_column)
    for file in files:
        if output_columns is None and set(file.all_columns) != set(columns):
            raise DataError(
                f"{file.path}: its columns {list(file.all_columns)} differ from {list(columns)} of {files[0].path}; "
                "name those to keep in output_columns"
            )
        _check_columns(file, schema)
    if len(set(columns)) < len(columns):
        raise DataError(f"output_columns: {', '.join(columns)} names a column twice; name each once")
    if VECTOR in columns:
        raise DataError(f"output_columns: {VECTOR!r} is the name of the column that the run adds; rename the input column")
    empty = tuple(path for path, file in opened.items() if file is None)
    return Source(input_dir, files, empty, schema, has_header=column_names is None)


def _check_columns(file: TableFile, schema: Schema) -> None:
    # A folder's column is the same in every row: nothing to embed.
    column_index(file.path, file.columns, schema.text_column, "description_column")
    for name in schema.columns:
        column_index(file.path, file.all_columns, name, "output_columns")
    if schema.key_column is not None:
        column_index(file.path, file.all_columns, schema.key_column, "incremental_key")
    if file.kind is not TableKind.TEXT:
        stored = columnar_schema(file.path, file.kind)
        own = [(name, stored.types[file.columns.index(name)]) for name in schema.needed() if name in file.columns]
        refuse_columns_without_text(file.path, own)


def count_rows(source: Source) -> int:
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


def read_shards(source: Source, shard_rows: int, *, max_bytes: int = MOST_BYTES) -> Iterator[Shard]:
    """The shards of all files in order; each ends after shard_rows rows or before max_bytes, whichever comes first.

    They depend on nothing but the files' content and these arguments. One is in memory at a time.
    Raises DataError when a file cannot be read, or has other columns than when the source was opened.
    """
    schema, limits, n_before = source.schema, Limits(shard_rows, max_bytes), 0
    for file in source.files:
        if file.kind is TableKind.TEXT:
            pieces = text_pieces(file, has_header=source.has_header, limits=limits)
        else:
            pieces = columnar_pieces(file, [name for name in schema.needed() if name in file.columns], limits)
        for piece in pieces:
            yield Shard(
                file=file.name,
                first_line=piece.first_line,
                n_lines=piece.n_rows,
                digest=piece_digest(file, piece),
                dialect=file.dialect,
                columns=file.columns,
                partitions=file.partitions,
                payload=piece.payload,
                read_share=min(1.0, (n_before + piece.disk_position) / source.n_bytes),
            )
        n_before += file.n_bytes


def parse_shard(shard: Shard, schema: Schema) -> ShardRows:
    """The rows of a shard. One that cannot be used is among `bad`, in its place, with its reason and its bytes."""
    parsed = _parse_text(shard, schema) if isinstance(shard.payload, bytes) else _parse_columns(shard, shard.payload)
    cells = parsed.cells
    for name, value in shard.partitions:
        cells = cells.append_column(name, pa.repeat(pa.scalar(value, pa.string()), len(parsed.lines)))
    texts: list[str | None] = cells.column(schema.text_column).to_pylist()
    keys: list[str | None] | None = None if schema.key_column is None else cells.column(schema.key_column).to_pylist()
    reasons = _reasons(texts, keys, schema)
    empty = [BadRow(shard.file, parsed.lines[row], why, parsed.raws[row]) for row, why in reasons.items()]
    good = [row for row in range(len(texts)) if row not in reasons]
    columns = cells.select(schema.columns)
    return ShardRows(
        texts=[text for row in good if (text := texts[row]) is not None],
        columns=columns.take(pa.array(good, pa.int64())) if reasons else columns,
        keys=None if keys is None else [key for row in good if (key := keys[row]) is not None],
        lines=[parsed.lines[row] for row in good],
        raws=parsed.raws.take(good) if isinstance(parsed.raws, JsonRows) else [parsed.raws[row] for row in good],
        bad=sorted([*parsed.bad, *empty], key=lambda bad: bad.line),
    )


@dataclass(frozen=True)
class _Parsed:
    """Rows that could be read, of the columns that are needed, and those that could not."""

    cells: pa.Table
    lines: list[int]
    raws: Sequence[bytes]
    bad: list[BadRow]


def _reasons(texts: Sequence[str | None], keys: Sequence[str | None] | None, schema: Schema) -> dict[int, str]:
    """Row → what it lacks."""
    reasons = {row: f"{schema.text_column} is empty" for row, text in enumerate(texts) if text is None or is_blank(text)}
    for row, key in enumerate(keys or ()):
        if not key:
            reasons.setdefault(row, f"{schema.key_column} is empty")
    return reasons


def _parse_text(shard: Shard, schema: Schema) -> _Parsed:
    dialect = shard.dialect
    records = find_records(shard.payload, dialect, shard.first_line)
    lines, raws = records.lines(), records.raws()
    bad: list[BadRow] = []
    rows: Sequence[Cells] | None = read_all_cells(raws, dialect, len(shard.columns))
    if rows is None:
        numbered, rows = list(zip(lines, raws, strict=True)), []
        lines, raws = [], []
        for line, raw in numbered:
            try:
                rows.append(read_cells(raw, dialect, len(shard.columns)))
            except ValueError as error:
                reason = f"{error}{_hint(str(error), raw, dialect)}"
                bad.append(BadRow(shard.file, line, reason, bytes_on_disk(raw, dialect.encoding)))
            else:
                lines.append(line)
                raws.append(raw)
    columns = [(name, index) for index, name in enumerate(shard.columns) if name in schema.needed()]
    cells = {name: pa.array([row[index] for row in rows], pa.string()) for name, index in columns}
    raws = raws if dialect.encoding == UTF8 else [bytes_on_disk(raw, dialect.encoding) for raw in raws]
    return _Parsed(pa.table(cells), lines, raws, bad)


def _hint(reason: str, raw: bytes, dialect: Dialect) -> str:
    """What option would have the row read, by its looks."""
    if reason == NOT_UTF8 and looks_like_gbk(raw):
        return "; it reads as GBK: set encoding gb18030"
    if dialect.quote and not dialect.escape and b"\\" + dialect.quote.encode() in raw:
        return f"; it holds \\{dialect.quote}: set escape \\\\"
    return ""


def _parse_columns(shard: Shard, cells: pa.Table) -> _Parsed:
    raws = JsonRows(cells, range(len(cells)))
    broken = _rows_not_utf8(cells)
    good = [row for row in range(len(cells)) if row not in broken]
    return _Parsed(
        cells=cells.take(pa.array(good, pa.int64())) if broken else cells,
        lines=[shard.first_line + row for row in good],
        raws=raws.take(good),
        bad=[BadRow(shard.file, shard.first_line + row, "not UTF-8", raws[row]) for row in sorted(broken)],
    )


def _rows_not_utf8(cells: pa.Table) -> set[int]:
    """Text of Parquet and ORC is whatever its writer called so."""
    try:
        cells.validate(full=True)
    except pa.ArrowInvalid:
        columns = [column.cast(pa.binary()).to_pylist() for column in cells.columns]
        return {row for column in columns for row, cell in enumerate(column) if cell is not None and not _is_utf8(cell)}
    return set()


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True
