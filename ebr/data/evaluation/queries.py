"""Files of queries, whichever tool wrote them: lines, JSON, JSON lines, csv, tsv and Parquet, packed or not; or what comes in.

What a file is, its suffix says, and where that says nothing, its content; what is no list of queries is refused.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ebr.data.files.contents import TableKind, contents_of, suffix_within
from ebr.data.records.files import each_record, json_records
from ebr.data.records.lines import lines_of
from ebr.data.records.tables import quoted_rows
from ebr.data.records.texts import QUERIES, is_unusable, listed, places_of
from ebr.data.text.blank import is_blank
from ebr.errors import DataError

STANDARD_INPUT = Path("-")

_READABLE = "give .txt (one query a line), .json, .jsonl, .csv, .tsv or .parquet, each also as .gz, or - for the standard input"
# As plain_key has them.
_IDS = (*QUERIES.ids, "number", "编号", "序号")
_TEXTS = (
    *QUERIES.texts, "querytext", "utterance", "sentence", "keyword", "keywords", "title",
    "查询", "问题", "文本", "内容", "关键词",
)  # fmt: skip
_NAMES = (_IDS, _TEXTS)
_BOM = b"\xef\xbb\xbf"


class _Form(Enum):
    LINES = "lines of text"
    JSON = "JSON; name it .json or .jsonl"
    TSV = "a table of ids and texts; name it .tsv, or take the tabs out"
    CSV = "a table; name it .csv"
    MARKUP = f"XML or HTML, which is not read; {_READABLE}"
    OTHER = "no list of queries"


_OF_SUFFIX = {
    ".txt": _Form.LINES, ".json": _Form.JSON, ".jsonl": _Form.JSON, ".ndjson": _Form.JSON, ".tsv": _Form.TSV, ".csv": _Form.CSV,
    # What people keep queries in that is not read: its lines would pass for queries.
    **dict.fromkeys((".xml", ".html", ".htm", ".yaml", ".yml", ".psv", ".md", ".parquet"), _Form.OTHER),
}  # fmt: skip


@dataclass(frozen=True)
class Query:
    """A text to search for; id: its own, or the number of its line or record, from 1."""

    id: str
    text: str


@dataclass(frozen=True)
class _Found:
    """What may be a query: where it stands, and what the file has there for its id and its text."""

    where: str
    id: object
    text: object

    @property
    def number(self) -> str:
        """Of its line, or of its record."""
        return str(re.findall(r"\d+$", self.where)[0])


def read_queries(path: Path) -> list[Query]:
    """The queries of a file, or (-) of the standard input, in their order; empty lines are left out.

    Lines are texts. A csv, tsv or Parquet has a column of texts and one of ids, known by their names, or without names (id,
    text) in this order. JSON has objects with `text` and maybe `_id`, or names like them; or texts; or one object {id: text}.
    Raises DataError naming the line that cannot be used.
    """
    if path != STANDARD_INPUT:
        return _read(path)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "standard input"
        file.write_bytes(sys.stdin.buffer.read())
        try:
            return _read(file)
        except DataError as error:
            raise DataError(str(error).replace(str(file), file.name)) from None


def _read(file: Path) -> list[Query]:
    queries: list[Query] = []
    first: dict[str, str] = {}
    for found in _each(file):
        query = _query(found)
        if first.setdefault(query.id, found.where) != found.where:
            raise DataError(
                f"{found.where}: the id {query.id!r} comes twice, first at {first[query.id]}; hits of two queries could not be "
                "told apart"
            )
        queries.append(query)
    if not queries:
        raise DataError(f"queries_path {file}: holds no queries; {_READABLE}")
    return queries


def one_query(text: str) -> Query:
    """The query that a person typed. Raises DataError when there is nothing in it to search for."""
    return _query(_Found("query 1", None, text))


def _query(found: _Found) -> Query:
    own, text = found.id, found.text
    if not isinstance(text, str) or is_blank(text):
        said = "is empty" if isinstance(text, str) or text is None else f"is {type(text).__name__}, not a text"
        raise DataError(f"{found.where}: the text to search for {said}; give one, or remove the query")
    if is_unusable(text):
        raise DataError(f"{found.where}: holds a NUL or half a character (a lone \\ud800–\\udfff escape); repair the text")
    if isinstance(own, float) and own.is_integer():
        own = int(own)  # a column of numbers with gaps comes as 7.0
    if isinstance(own, bool | float | list | dict):
        raise DataError(f"{found.where}: the id {own!r} is {type(own).__name__}; give a text or a whole number")
    return Query(found.number if own is None or own == "" else str(own), text.strip())


def _each(file: Path) -> Iterator[_Found]:
    """What may be queries, by the suffix of the file, else by its content. Raises DataError for what is none of the forms."""
    contents, suffix = contents_of(file), suffix_within(file)
    if contents.kind is not TableKind.TEXT:
        return _of_records(each_record(file, of_training=False))
    with contents.open(file) as stream:
        data = stream.read()
    named, seen = _OF_SUFFIX.get(suffix), _looks_like(data)
    if named is _Form.OTHER:
        raise DataError(f"queries_path {file}: {suffix} is no form of queries, or holds something else; {_READABLE}")
    if seen is _Form.MARKUP or (named is _Form.LINES and seen is not _Form.LINES):
        raise DataError(f"queries_path {file}: looks like {seen.value}")
    form = named or seen
    if form is _Form.JSON:
        return _of_records(json_records(file, io.BytesIO(data)), is_json=True)
    return _of_lines(file, data) if form is _Form.LINES else _of_table(file, data, is_csv=form is _Form.CSV)


def _looks_like(data: bytes) -> _Form:
    """What a text is by its first character, and by the tabs that nobody types into a query."""
    lines = [line for line in data.removeprefix(_BOM).split(b"\n") if line.strip()]
    head = lines[0].strip() if lines else b""
    if head.startswith((b"{", b'["', b"[{")) or head == b"[":
        return _Form.JSON
    if head.startswith(b"<") and head.endswith(b">"):
        return _Form.MARKUP
    n_tabbed = sum(b"\t" in line for line in lines)
    return _Form.TSV if 2 * n_tabbed > len(lines) else _Form.LINES


# ---------------------------------------------------------------- lines and records


def _lines(file: Path, data: bytes) -> Iterator[tuple[str, str]]:
    """Where each line that is not blank stands, and the line."""
    for where, line in lines_of(file, io.BytesIO(data)):
        if isinstance(line, DataError):
            raise DataError(f"{where}: {line}")
        if not is_blank(line):
            yield where, line


def _of_lines(file: Path, data: bytes) -> Iterator[_Found]:
    return (_Found(where, None, line) for where, line in _lines(file, data))


def _of_records(records: Iterable[tuple[str, object]], *, is_json: bool = False) -> Iterator[_Found]:
    """is_json: a record may be a text, or an object {id: text}; else a row of a table."""
    for where, record in records:
        if isinstance(record, DataError):
            raise DataError(f"{where}: {record}")
        if isinstance(record, str):
            yield _Found(where, None, record)
            continue
        if not isinstance(record, dict):
            raise DataError(f"{where}: is {type(record).__name__}; give an object with 'text'")
        keys = list(record)
        if is_json and record and not _is_known(keys) and all(isinstance(value, str) for value in record.values()):
            yield from (_Found(f"{where}, key {place}", key, record[key]) for place, key in enumerate(keys, start=1))
        elif (places := _columns(keys)) is not None:
            yield _Found(where, None if places[0] is None else record[keys[places[0]]], record[keys[places[1]]])
        else:
            raise DataError(f"{where}: names no text to search for, only {listed(keys)}; name it 'text'")


def _is_known(names: Sequence[str]) -> bool:
    return places_of(tuple(names), _NAMES) != (None, None)


def _columns(names: Sequence[str]) -> tuple[int | None, int] | None:
    """Where the ids and the texts stand; of two columns, one is what the other is not. None where no name tells."""
    own, text = places_of(tuple(names), _NAMES)
    if len(names) == 2:
        text = 1 - own if text is None and own is not None else text
        own = 0 if own is None and text == 1 else own
    return None if text is None else (own, text)


# ---------------------------------------------------------------- tables


def _of_table(file: Path, data: bytes, *, is_csv: bool) -> Iterator[_Found]:
    rows = list(_csv_rows(file, data) if is_csv else _tsv_rows(file, data))
    if not rows:
        return
    where, header = rows[0]
    # A first row that names columns has names that we know, and no number.
    is_header = _is_known(header) and not any(cell.strip().isdigit() for cell in header)
    columns = _columns(header) if is_header else None
    if columns is None and len(header) != 2:
        raise DataError(
            f"{where}: names no column with the texts, only {listed(header)}; name it 'text' (and that of the ids '_id'), or "
            "give two columns, id and text"
        )
    if columns is None and len(rows) > 2 and not header[0].strip().isdigit():
        if all(row[0].strip().isdigit() for _, row in rows[1:]):
            raise DataError(f"{where}: is {header[0]!r} the name of a column? name those of ids and texts '_id' and 'text'")
    id_place, text_place = columns or (0, 1)
    for where, row in rows[1:] if columns else rows:
        if len(row) != len(header):
            raise DataError(f"{where}: has {len(row)} cells, and the first row {len(header)}")
        yield _Found(where, None if id_place is None else row[id_place].strip(), row[text_place])


def _csv_rows(file: Path, data: bytes) -> Iterator[tuple[str, list[str]]]:
    """The rows of a table with standard quoting, under the comma, or what spreadsheets put in its place."""
    head = data.split(b"\n", 1)[0]
    delimiter = next((one for one in ",;\t" if one.encode() in head), ",")
    for where, row in quoted_rows(file, io.BytesIO(data), delimiter):
        if isinstance(row, DataError):
            raise DataError(f"{where}: {row}")
        if not all(map(is_blank, row)):
            yield where, row


def _tsv_rows(file: Path, data: bytes) -> Iterator[tuple[str, list[str]]]:
    for where, line in _lines(file, data):
        yield where, [_unquoted(cell) for cell in line.split("\t")]


def _unquoted(cell: str) -> str:
    """A cell without the quotes that a spreadsheet put around it; a quote that stands alone is a character like any other."""
    inner = cell[1:-1]
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else cell
