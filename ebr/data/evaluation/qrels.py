"""Judgements on disk, whichever tool wrote them: which document answers which query, and how well.

Columns (BEIR: three behind tabs; TREC: four at white space; or commas) under whatever header or none, and JSON: an object a
line (MTEB), or one of query → document → grade (pytrec_eval).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

from ebr.data.faults import Faults
from ebr.data.files.contents import PACKED_SUFFIXES, suffix_within
from ebr.data.records.files import each_record
from ebr.data.records.lines import each_line
from ebr.data.records.texts import as_id, is_unusable, listed, places_of
from ebr.errors import DataError

Qrels = dict[str, dict[str, int]]
"""Query id → document id → grade."""
_Judgement = tuple[object, ...]
"""A query's id, a document's, and a grade, as they stand in the file."""
_Found = tuple[str, _Judgement | DataError]
"""The file and place of a judgement, and what was read there."""

QRELS_FILES = ("qrels.tsv", "qrels/test.tsv", "qrels.trec", "qrels.txt")
"""Where BEIR and TREC have them; find_qrels looks further."""
_SPLITS = ("qrels", "qrels/test", "qrels/dev", "qrels/validation", "qrels/valid", "qrels/val", "qrels/train")
_SUFFIXES = (".tsv", ".trec", ".txt", ".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".qrels", ".qrel")
_RECORD_SUFFIXES = {".jsonl", ".ndjson", ".json", ".parquet"}

# In the form of plain_key.
_QUERY_NAMES = ("queryid", "qid", "query", "topicid", "topic", "questionid")
_DOCUMENT_NAMES = ("corpusid", "docid", "documentid", "docno", "passageid", "pid", "doc", "document", "passage")
_GRADE_NAMES = ("score", "relevance", "rel", "label", "grade", "relevancescore", "relevancelabel", "judgment", "judgement")
_NAMES = (_QUERY_NAMES, _DOCUMENT_NAMES, _GRADE_NAMES)
_EXPECTED = "query-id, corpus-id and score"

_GRADE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
_HIGHEST_GRADE = 1000
_LONGEST_GRADE = 20


def find_qrels(folder: Path) -> Path | None:
    """The judgements of an evaluation folder: the first of QRELS_FILES, or qrels, or a split of qrels/, in another format.

    Of splits test counts before dev, dev before train; where none of them is there, the one file that qrels/ holds. None
    where there are no judgements, or nothing says which of several files is meant.
    """
    names = [f"{split}{suffix}{packed}" for packed in ("", *PACKED_SUFFIXES) for split in _SPLITS for suffix in _SUFFIXES]
    known = (folder / name for name in (*QRELS_FILES, *names))
    if found := next((path for path in known if path.is_file()), None):
        return found
    inside = folder / "qrels"
    others = [path for path in inside.iterdir() if path.is_file() and path.name[0] not in "._"] if inside.is_dir() else []
    return others[0] if len(others) == 1 else None


def read_qrels(file: Path, query_ids: Collection[str], faults: Faults) -> Qrels:
    """Every judgement of a file; what is wrong goes to faults.

    query_ids: of the queries that have a text; they tell a judgement from a header, and from a comment behind #. A grade is a
    whole number, 1.0 too. The same judgement twice is one; two grades of one pair are wrong.
    """
    qrels: Qrels = {}
    for where, found in _judgements(file, query_ids):
        try:
            if isinstance(found, DataError):
                raise found
            query_id, doc_id, grade = _id("query", found[0]), _id("document", found[1]), _grade(found[2])
            before = qrels.setdefault(query_id, {}).setdefault(doc_id, grade)
            if before != grade:
                raise DataError(f"query '{query_id}' and document '{doc_id}' are judged twice, as {before} and as {grade}")
        except DataError as error:
            faults.add(file, where, str(error))
    return qrels


def _id(what: str, value: object) -> str:
    found = as_id(value)
    if not found or is_unusable(found):
        raise DataError(f"the {what}'s id is {value!r}; expected a text or a whole number")
    return found


def _grade(value: object) -> int:
    return _whole_number(str(int(value)) if isinstance(value, bool) else str(value))


@lru_cache(maxsize=64)
def _whole_number(written: str) -> int:
    if not (whole := _GRADE.fullmatch(written)):
        raise DataError(f"the grade '{written}' is not a whole number; trec_eval takes no other")
    if len(whole[1]) > _LONGEST_GRADE or abs(int(whole[1])) > _HIGHEST_GRADE:
        raise DataError(f"the grade {written} lies beyond ±{_HIGHEST_GRADE}; trec_eval counts wrong with such")
    return int(whole[1])


def _judgements(file: Path, query_ids: Collection[str]) -> Iterator[_Found]:
    """(file and place, judgement) of each."""
    if suffix_within(file) in _RECORD_SUFFIXES:
        yield from _of_records(file)
        return
    lines = ((where, line) for where, line in each_line(file) if not _is_comment(line, query_ids))
    first = next(lines, None)
    if first is None:
        return
    if isinstance(first[1], str) and first[1].startswith("{"):
        yield from ((where, _of_line(line)) for where, line in chain([first], lines))
    else:
        yield from _of_columns(first, lines, query_ids)


# ---------------------------------------------------------------- columns


def _tabs(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t")]


def _tabs_or_words(line: str) -> list[str]:
    """Four cells, as trec_eval finds them at any white space; behind tabs alone an id may hold a space."""
    return cells if len(cells := _tabs(line)) == 4 else line.split()


def _commas(line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error:  # no id is as long as what csv refuses
        return [line]


def _splitter(line: str) -> Callable[[str], list[str]]:
    """What parts the columns of a file that begins with this line: tabs, white space, or commas."""
    tabs, words = _tabs(line), line.split()
    if len(tabs) > 2:
        return _tabs_or_words if len(tabs) == 4 else _tabs
    are_words = len(words) in (3, 4) and not any(word.endswith(",") for word in words)
    return str.split if are_words or len(_commas(line)) < 3 else _commas


@dataclass(frozen=True)
class _Columns:
    """How the lines of a file are read. places: of a query's id, a document's, and the grade, among `width` cells."""

    split: Callable[[str], list[str]]
    width: int
    places: tuple[int, ...]

    def judgement(self, line: str) -> _Judgement:
        cells = self.split(line)
        if len(cells) == self.width:
            judgement = tuple([cells[place] for place in self.places])
            if all(judgement):
                return judgement
        raise DataError(f"expected {_number(self.width)} columns like the lines before ({_EXPECTED}), none of them empty")


def _of_columns(
    first: tuple[str, str | DataError], lines: Iterable[tuple[str, str | DataError]], query_ids: Collection[str]
) -> Iterator[_Found]:
    """The judgements of the first line, where it is no header, and of the others."""
    where, head = first
    try:
        columns, is_header = _columns_of(head, query_ids)
    except DataError as error:  # once: no line of the file can be read
        yield where, error
        return
    for where, line in lines if is_header else chain([first], lines):
        try:
            yield where, columns.judgement(_text(line))
        except DataError as error:
            yield where, error


def _columns_of(line: str | DataError, query_ids: Collection[str]) -> tuple[_Columns, bool]:
    """The columns of a file by its first line, and whether that is a header. Raises DataError."""
    split = _splitter(_text(line))
    cells = split(_text(line))
    usual = {3: (0, 1, 2), 4: (0, 2, 3)}.get(len(cells))
    named = places_of(tuple(cells), _NAMES)
    is_header = cells[0] not in query_ids and (None not in named or usual is None or not _is_number(cells[usual[2]]))
    if not is_header and usual:
        return _Columns(split, len(cells), usual), False
    both = zip(named, usual or named, strict=True)
    places = [place for name, there in both if (place := there if name is None else name) is not None]
    if len(set(places)) < len(_NAMES):
        count = "one column" if len(cells) == 1 else f"{_number(len(cells))} columns"
        raise DataError(f"has {count}, {listed(cells)}; expected {_EXPECTED}, or TREC's four without a header")
    return _Columns(split, len(cells), tuple(places)), True


def _is_comment(line: str | DataError, query_ids: Collection[str]) -> bool:
    # An id may begin with a # too.
    return isinstance(line, str) and line.startswith("#") and _splitter(line)(line)[0] not in query_ids


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(count: int) -> str:
    return {1: "one", 2: "two", 3: "three", 4: "four"}.get(count, str(count))


def _text(line: str | DataError) -> str:
    if isinstance(line, DataError):
        raise line
    return line


# ---------------------------------------------------------------- records


def _of_records(file: Path) -> Iterator[_Found]:
    for where, record in each_record(file, of_training=False):
        if isinstance(record, dict) and record and all(isinstance(grades, dict) for grades in record.values()):
            for query_id, grades in record.items():
                yield from ((where, (query_id, doc_id, grade)) for doc_id, grade in grades.items())
        else:
            yield where, _of_record(record)


def _of_line(line: str | DataError) -> _Judgement | DataError:
    try:
        return _of_record(json.loads(_text(line)))
    except DataError as error:
        return error
    except (ValueError, RecursionError) as error:
        return DataError(f"is not valid JSON ({error}); write one object a line")


def _of_record(record: object) -> _Judgement | DataError:
    if isinstance(record, DataError):
        return record
    if not isinstance(record, dict):
        return DataError(f"is {type(record).__name__}, not an object with {_EXPECTED}")
    keys = tuple(record)
    query, document, grade = places_of(keys, _NAMES)
    if query is None or document is None or grade is None:
        return DataError(f"is no judgement: its keys are {listed(keys)}; expected {_EXPECTED}")
    return record[keys[query]], record[keys[document]], record[keys[grade]]
