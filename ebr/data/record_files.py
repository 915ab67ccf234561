"""Files of records, whichever tool wrote them: JSON, JSON lines, csv, tsv and Parquet, all but the last also gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ebr.data.record_layouts import SCORE_KEYS, TEXT_KEYS, is_text_key, layout_of
from ebr.errors import DataError, first_line

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BOM = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 2048
_LONGEST_CELL = 2**31 - 1  # the most that a C long holds everywhere

Found = tuple[str, object]
"""Where a record stands and the record, or the DataError that says why it cannot be read."""


def is_named_like_records(file: Path) -> bool:
    """Whether a name ends in one of SUFFIXES, with .gz behind it or not, in any case."""
    return file.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def each_record(file: Path) -> Iterator[Found]:
    """Every record of a file, in order; of JSON lines, tables and Parquet one after another, as they are read.

    Gzip and Parquet are known by their first bytes, csv and tsv by their suffix. All else is JSON: one object a line, an array,
    or an object around an array. A table's empty cell is null, and a cell that is a JSON list is a list.
    """
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(_PARQUET_MAGIC))
        if magic == _PARQUET_MAGIC:
            yield from _parquet_rows(file)
            return
        opened = gzip.open(file) if magic.startswith(_GZIP_MAGIC) else file.open("rb")
        with cast(BinaryIO, opened) as stream:
            delimiter = _DELIMITERS.get(Path(file.name.lower().removesuffix(".gz")).suffix)
            yield from _json_records(file, stream) if delimiter is None else _table_rows(file, stream, delimiter)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield str(file), DataError(f"the gzip archive is broken or cut short ({first_line(error)}); copy the file again")
    except (OSError, pa.ArrowException) as error:
        yield str(file), DataError(f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})")


def _decoded(raw: bytes, line: int) -> str:
    """A line as text. Raises DataError."""
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8") from None


# ---------------------------------------------------------------- JSON


def _with_single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises DataError when a key stands in it twice: json would keep the last alone."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"has the key {twice!r} twice in one object; give its values as a list")
    return found


_parse = json.JSONDecoder(object_pairs_hook=_with_single_keys).decode


def _json_records(file: Path, stream: Iterator[bytes]) -> Iterator[Found]:
    """An array, an object, or lines: what the first line that is not blank begins, and whether it ends it, tells which."""
    head: list[bytes] = []
    for raw in stream:
        head.append(raw)
        if raw.removeprefix(_BOM).strip():
            break
    first = head[-1].removeprefix(_BOM).lstrip() if head else b""
    lines: Iterable[bytes] = chain(head, stream)
    if first.startswith(b"["):
        yield from _document(file, b"".join(lines))
    elif first.startswith(b"{") and not _is_json(first):
        whole = b"".join(lines)
        yield from _document(file, whole) if _is_json(whole) else _json_lines(file, io.BytesIO(whole))
    else:
        yield from _json_lines(file, lines)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def _document(file: Path, whole: bytes) -> Iterator[Found]:
    """The records of a file that is one JSON value: an array, or an object."""
    try:
        value = _parse(whole.decode("utf-8-sig"))
    except DataError as error:
        yield str(file), error
        return
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        yield f"{file}:{line}", DataError(f"is not UTF-8 (byte {byte:#04x}); save the file as UTF-8")
        return
    except (ValueError, RecursionError) as error:
        yield str(file), DataError(f"is not valid JSON ({error})")
        return
    records = value if isinstance(value, list) else _wrapped(value) or [value]
    for number, record in enumerate(records, start=1):
        yield f"{file}: record {number}", record


def _json_lines(file: Path, lines: Iterable[bytes]) -> Iterator[Found]:
    # Bytes, because they split on \n alone: U+2028 and U+0085 are legal inside a JSON text.
    name, is_first = str(file), True
    for number, raw in enumerate(lines, start=1):
        where = f"{name}:{number}"
        try:
            text = _decoded(raw, number)
            if not text or text.isspace():
                continue
            record = _parse(text)
        except DataError as error:
            yield where, error
        except (ValueError, RecursionError) as error:
            yield where, DataError(f"is not valid JSON ({error}); write one object a line, or one array a file")
        else:
            if is_first and (records := _wrapped(record)):
                yield from ((f"{file}: record {place}", one) for place, one in enumerate(records, start=1))
            else:
                yield where, record
        is_first = False


def _wrapped(value: object) -> list[Any] | None:
    """The records that an object stands around: a list of objects under "data", or under its only key."""
    if not isinstance(value, dict) or not TEXT_KEYS.isdisjoint(value):
        return None
    lists = [key for key, one in value.items() if isinstance(one, list) and any(isinstance(record, dict) for record in one)]
    return value[lists[0]] if len(lists) == 1 and ("data" in lists or len(value) == 1) else None


# ---------------------------------------------------------------- tables


class _Lines:
    """Lines of text, and the number of the last. A generator would be over after the first line that is not UTF-8."""

    def __init__(self, stream: Iterator[bytes]) -> None:
        self.number = 0
        self._stream = stream

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = next(self._stream)
        self.number += 1
        return _decoded(raw, self.number)


def _table_rows(file: Path, stream: Iterator[bytes], delimiter: str) -> Iterator[Found]:
    """The rows below the header as objects, the columns' names being the keys."""
    rows = _rows(file, stream, delimiter)
    where, header = next(rows, (str(file), None))
    if header is None:
        return
    if isinstance(header, DataError):
        yield where, header
        return
    names = [name.strip() for name in header]
    try:
        _check_columns(names)
    except DataError as error:
        hint = "; the line has one column only: is the delimiter right?" if len(names) == 1 else ""
        yield where, DataError(f"{error}{hint}")
        return
    for where, row in rows:
        if isinstance(row, DataError):
            yield where, row
        elif len(row) != len(names):
            yield (
                where,
                DataError(f"has {len(row)} cells, and the header {len(names)}; put a cell with {delimiter!r} in quotes"),
            )
        else:
            yield where, {name: _cell_value(name, cell) for name, cell in zip(names, row, strict=True)}


def _check_columns(names: Sequence[str]) -> None:
    """Raise DataError for columns that no record can come from: better told once than once a row."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"column {twice[0]!r} occurs twice; rename one")
    if not any(map(is_text_key, names)):
        layout_of(dict.fromkeys(names, ""))


def _rows(file: Path, stream: Iterator[bytes], delimiter: str) -> Iterator[tuple[str, list[str] | DataError]]:
    """The rows of a table with standard quoting (RFC 4180), blank lines left out; a row is placed where it begins."""
    lines = _Lines(stream)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    with _cells_of_any_length():
        while True:
            begin = lines.number + 1
            try:
                row = next(rows, None)
            except DataError as error:
                yield f"{file}:{lines.number}", error
                continue
            except csv.Error as error:
                yield f"{file}:{begin}", DataError(f'is no row of a table ({error}); is a quote (") left open or not doubled?')
                continue
            if row is None:
                return
            if row:
                yield f"{file}:{begin}", row


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _cell_value(name: str, cell: str) -> Any:  # noqa: ANN401
    """A cell is text; but none is null, a JSON list is a list, and the cells of scores and labels are numbers."""
    if not cell:
        return None
    if name not in SCORE_KEYS and not cell.startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if name in SCORE_KEYS:
        return value
    # "[3]" may be a text, a footnote's mark.
    is_text = not isinstance(value, list) or (is_text_key(name) and any(isinstance(one, (int, float)) for one in value))
    return cell if is_text else value


# ---------------------------------------------------------------- Parquet


def _parquet_rows(file: Path) -> Iterator[Found]:
    number = 0
    with pq.ParquetFile(file) as table:
        try:
            _check_columns(table.schema_arrow.names)
        except DataError as error:
            yield str(file), error
            return
        for batch in table.iter_batches(_BATCH_ROWS):
            for row in _python_rows(_with_texts(batch)):
                number += 1
                yield f"{file}: row {number}", row


def _with_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with text where a writer forgot to say that its bytes are text."""
    return pa.RecordBatch.from_arrays([_as_text(column) for column in batch.columns], names=batch.schema.names)


def _as_text(column: pa.Array) -> pa.Array:
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        return column
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return column


def _python_rows(batch: pa.RecordBatch) -> Iterator[object]:
    """Each row as an object. Parquet's text is whatever its writer called so: it need not be UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            yield DataError("holds text that is not UTF-8; write the file anew in UTF-8")
            return
        for place in range(len(batch)):
            yield from _python_rows(batch.slice(place, 1))
