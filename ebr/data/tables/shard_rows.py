"""A shard → its rows: those that can be used, and those that cannot, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ebr.data.files.contents import looks_like_gbk
from ebr.data.files.dialects import UTF8, Dialect
from ebr.data.files.unpacking import bytes_on_disk
from ebr.data.tables.cells import NOT_UTF8, BadRow, Cells, read_all_cells, read_cells
from ebr.data.tables.json_rows import JsonRows
from ebr.data.tables.records import find_records
from ebr.data.tables.shards import Schema, Shard, Stretch
from ebr.data.text.blank import is_blank


class Lines(NamedTuple):
    """Where rows of one file stand, and their bytes; of columns, each row as JSON."""

    file: str
    lines: Sequence[int]
    raws: Sequence[bytes]


@dataclass(frozen=True)
class Origins:
    """Where the rows of a shard stand. files: in order. rows: which of all their rows these are, counted on over the files."""

    files: Sequence[Lines]
    rows: Sequence[int]

    @classmethod
    def of(cls, files: Sequence[Lines]) -> Origins:
        """Of all rows of these files."""
        return cls(files, range(sum(len(file.lines) for file in files)))

    def take(self, rows: Sequence[int]) -> Origins:
        """Of some of the rows."""
        return Origins(self.files, [self.rows[row] for row in rows])

    def bad(self, row: int, reason: str) -> BadRow:
        """A row as one that cannot be used."""
        number = self.rows[row]
        for file, lines, raws in self.files:
            if number < len(lines):
                return BadRow(file, lines[number], reason, raws[number])
            number -= len(lines)
        raise IndexError(row)


@dataclass(frozen=True)
class ShardRows:
    """A parsed shard: the good rows in order, and the bad ones.

    texts, keys (of the key column), origins: one a good row. columns: the output columns, all strings, null for null.
    overruled: rows whose file gives a column another value than their folder, each with what the file says.
    """

    texts: list[str]
    columns: pa.Table
    keys: list[str] | None
    origins: Origins
    bad: list[BadRow]
    overruled: list[str]


def parse_shard(shard: Shard, schema: Schema) -> ShardRows:
    """The rows of a shard. One that cannot be used is among `bad`, in its place, with its reason and its bytes."""
    parsed = [_parse(stretch, schema) for stretch in shard.stretches]
    cells = pa.concat_tables([one.cells for one in parsed])
    origins = Origins.of([one.lines for one in parsed])
    texts: list[str | None] = cells.column(schema.text_column).to_pylist()
    keys: list[str | None] | None = None if schema.key_column is None else cells.column(schema.key_column).to_pylist()
    reasons = _reasons(texts, keys, schema)
    empty = [origins.bad(row, why) for row, why in reasons.items()]
    good = [row for row in range(len(texts)) if row not in reasons]
    columns = cells.select(schema.columns)
    return ShardRows(
        texts=[text for row in good if (text := texts[row]) is not None],
        columns=columns.take(pa.array(good, pa.int64())) if reasons else columns,
        keys=None if keys is None else [key for row in good if (key := keys[row]) is not None],
        origins=origins.take(good) if reasons else origins,
        bad=shard.in_order([*empty, *(row for one in parsed for row in one.bad)]),
        overruled=[said for one in parsed for said in one.overruled],
    )


class _Parsed(NamedTuple):
    """Rows of one file that could be read, of the columns that are needed, and those that could not."""

    cells: pa.Table
    lines: Lines
    bad: list[BadRow]
    overruled: list[str]


def _parse(stretch: Stretch, schema: Schema) -> _Parsed:
    is_text = isinstance(stretch.payload, bytes)
    cells, lines, bad = _parse_text(stretch, schema) if is_text else _parse_columns(stretch, schema)
    overruled = []
    for name, value in stretch.partitions:
        if name in cells.column_names:
            others = _others(cells.column(name), value)
            overruled += [f"{stretch.file}:{lines.lines[row]}: {name} is {cell!r}" for row, cell in others]
            cells = cells.drop_columns(name)
        cells = cells.append_column(name, pa.repeat(pa.scalar(value, pa.string()), len(cells)))
    for name in set(schema.needed()).difference(cells.column_names):
        cells = cells.append_column(name, pa.nulls(len(cells), pa.string()))
    return _Parsed(cells.select(schema.needed()), lines, bad, overruled)


def _others(cells: pa.ChunkedArray, value: str | None) -> list[tuple[int, str | None]]:
    """(row, cell) of the cells that do not mean a folder's value."""
    differing = {cell for cell in pc.unique(cells).to_pylist() if not _means(cell, value)}
    return [(row, cell) for row, cell in enumerate(cells.to_pylist()) if cell in differing] if differing else []


def _means(cell: str | None, value: str | None) -> bool:
    """Whether a cell is what a folder says: the same number or moment, however it is spelt; Hive's null is empty as well."""
    if value is None or cell is None:
        return not cell and not value
    return cell == value or _plain(cell) == _plain(value)


def _plain(text: str) -> object:
    try:
        return Decimal(text)
    except InvalidOperation:
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text.lower() if text.lower() in {"true", "false"} else text


def _reasons(texts: Sequence[str | None], keys: Sequence[str | None] | None, schema: Schema) -> dict[int, str]:
    """Row → what it lacks."""
    reasons = {row: f"{schema.text_column} is empty" for row, text in enumerate(texts) if text is None or is_blank(text)}
    for row, key in enumerate(keys or ()):
        if not key:
            reasons.setdefault(row, f"{schema.key_column} is empty")
    return reasons


_Read = tuple[pa.Table, Lines, list[BadRow]]


def _parse_text(stretch: Stretch, schema: Schema) -> _Read:
    assert isinstance(stretch.payload, bytes)
    dialect, n_columns = stretch.dialect, len(stretch.columns)
    records = find_records(stretch.payload, dialect, stretch.first_line)
    lines, raws = records.lines(), records.raws()
    bad: list[BadRow] = []
    rows: Sequence[Cells] | None = read_all_cells(raws, dialect, n_columns)
    if rows is None:
        numbered, rows = list(zip(lines, raws, strict=True)), []
        lines, raws = [], []
        for line, raw in numbered:
            try:
                rows.append(read_cells(raw, dialect, n_columns))
            except ValueError as error:
                reason = f"{error}{_hint(str(error), raw, dialect)}"
                bad.append(BadRow(stretch.file, line, reason, bytes_on_disk(raw, dialect.encoding)))
            else:
                lines.append(line)
                raws.append(raw)
    columns = [(name, index) for index, name in enumerate(stretch.columns) if name in schema.needed()]
    cells = {name: pa.array([row[index] for row in rows], pa.string()) for name, index in columns}
    raws = raws if dialect.encoding == UTF8 else [bytes_on_disk(raw, dialect.encoding) for raw in raws]
    return pa.table(cells), Lines(stretch.file, lines, raws), bad


def _hint(reason: str, raw: bytes, dialect: Dialect) -> str:
    """What option would have the row read, by its looks."""
    if reason == NOT_UTF8 and looks_like_gbk(raw):
        return "; it reads as GBK: set encoding gb18030"
    if dialect.quote and not dialect.escape and b"\\" + dialect.quote.encode() in raw:
        return f"; it holds \\{dialect.quote}: set escape \\\\"
    return ""


def _parse_columns(stretch: Stretch, schema: Schema) -> _Read:
    assert isinstance(stretch.payload, pa.Table)
    cells = stretch.payload
    first, raws = stretch.first_line, JsonRows(cells)
    broken = _rows_not_utf8(cells)
    if not broken:
        return cells, Lines(stretch.file, range(first, first + len(cells)), raws), []
    good = [row for row in range(len(cells)) if row not in broken]
    bad = [BadRow(stretch.file, first + row, _not_utf8(name, schema), raws[row]) for row, name in sorted(broken.items())]
    kept = cells.take(pa.array(good, pa.int64()))
    return kept, Lines(stretch.file, [first + row for row in good], JsonRows(kept)), bad


def _not_utf8(name: str, schema: Schema) -> str:
    mend = "" if name in (schema.text_column, schema.key_column) else "; if it is no text, leave it out of output_columns"
    return f"{name} is {NOT_UTF8}{mend}"


def _rows_not_utf8(cells: pa.Table) -> dict[int, str]:
    """Row → the column that is none. Text of Parquet and ORC is whatever its writer called so, or bytes."""
    try:
        cells.validate(full=True)
    except pa.ArrowInvalid:
        return {
            row: name
            for name in reversed(cells.column_names)
            for row, cell in enumerate(cells.column(name).cast(pa.binary()).to_pylist())
            if cell is not None and not _is_utf8(cell)
        }
    return {}


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True
