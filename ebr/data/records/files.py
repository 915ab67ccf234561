"""Files of records, whichever tool wrote them: JSON, JSON lines, csv and tsv, packed or not, Parquet, ORC and Feather."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ebr.data.files.contents import TableKind, contents_of, suffix_within
from ebr.data.files.dialects import DELIMITER_OF_SUFFIX
from ebr.data.records.layouts import TEXT_KEYS
from ebr.data.records.lines import decoded, not_utf8, of_whole_file
from ebr.data.records.tables import Found, columnar_rows, table_rows
from ebr.errors import DataError

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")

_BOM = b"\xef\xbb\xbf"


def is_named_like_records(file: Path) -> bool:
    """Whether a name ends in one of SUFFIXES, packed or not, in any case."""
    return suffix_within(file) in SUFFIXES


def each_record(file: Path, *, of_training: bool = True) -> Iterator[Found]:
    """Every record of a file, in order; of JSON lines, tables and Parquet one after another, as they are read.

    What has columns and what is packed is known by its first bytes, csv and tsv by their suffix. All else is JSON: one object
    a line, an array, or an object around an array. A table's empty cell is null, and a cell that is a JSON list is a list.
    of_training: refuse a table without a column of training texts. Otherwise any columns will do, and a cell is what it says.
    """
    try:
        contents = contents_of(file)
        if contents.kind is not TableKind.TEXT:
            yield from columnar_rows(file, contents.kind, of_training)
            return
        with contents.open(file) as stream:
            delimiter = DELIMITER_OF_SUFFIX.get(suffix_within(file))
            if delimiter is None:
                yield from json_records(file, stream)
            else:
                yield from table_rows(file, stream, delimiter, of_training)
    except DataError as error:
        yield of_whole_file(file, error)


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


def json_records(file: Path, stream: Iterator[bytes]) -> Iterator[Found]:
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
        yield f"{file}:{line}", DataError(not_utf8(error))
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
            text = decoded(raw, number)
            if not text or text.isspace() or text.startswith("#"):
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
