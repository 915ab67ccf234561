"""Files of queries: one a line, or JSON lines as BEIR has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ebr.data.blank import is_blank
from ebr.errors import DataError


@dataclass(frozen=True)
class Query:
    """A text to search for; id: its own, or the number of its line, from 1."""

    id: str
    text: str


def read_queries(path: Path) -> list[Query]:
    """The queries of a .jsonl file (text, optionally _id or id), or of a text file, one a line; empty lines are left out.

    Raises DataError naming the line that cannot be used.
    """
    try:
        # Only \n ends a line: U+2028 may stand inside a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"queries_path {path}: cannot be read ({error}); give a file of texts in UTF-8") from None
    read = _json_query if path.suffix.lower() in {".jsonl", ".ndjson"} else _plain_query
    queries = [read(path, number, line) for number, line in enumerate(lines, start=1) if not is_blank(line)]
    first: dict[str, int] = {}
    for place, query in enumerate(queries, start=1):
        if first.setdefault(query.id, place) != place:
            raise DataError(
                f"queries_path {path}: the id {query.id!r} comes twice; hits of two queries could not be told apart"
            )
    if not queries:
        raise DataError(f"queries_path {path}: holds no queries; write one a line")
    return queries


def _plain_query(path: Path, number: int, line: str) -> Query:
    return Query(str(number), line.strip())


def _json_query(path: Path, number: int, line: str) -> Query:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: is not JSON ({error})") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str) or is_blank(text):
        raise DataError(f"{path}:{number}: needs 'text', the words to search for, in a JSON object")
    named = next((record[key] for key in ("_id", "id") if record.get(key) is not None), number)
    return Query(str(named), text)
