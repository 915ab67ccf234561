"""Documents and queries as records, whichever tool wrote them: where each has its id, its title and its text.

BEIR writes _id, title and text, Pyserini id and contents, MS MARCO docid or pid and body, passage or segment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ebr.data.faults import Faults
from ebr.data.files.contents import PACKED_SUFFIXES, suffix_within
from ebr.data.records.files import SUFFIXES, each_record
from ebr.errors import DataError

_HALF = re.compile("[\ud800-\udfff]")
_KEYS_SHOWN = 12

RECORD_SUFFIXES = (".jsonl", ".ndjson", *(suffix for suffix in SUFFIXES if suffix != ".jsonl"))
"""How names of files of texts end, before that of a packing; where there are several, the first counts."""


def plain_key(key: str) -> str:
    """A key without case and without what parts its words: 'docid' for 'doc_id', 'Doc-ID' and 'docid'."""
    return re.sub(r"[\W_]", "", key).casefold()


@dataclass(frozen=True, eq=False)
class Keys:
    """Where records have their id, their title and their text; None where they have none."""

    id: str | None
    title: str | None
    text: str | None

    def unusual(self) -> set[str]:
        """Those that BEIR calls otherwise."""
        return {key for key in (self.id, self.title, self.text) if key is not None} - {"_id", "title", "text"}


@dataclass(frozen=True, eq=False)
class Spelling:
    """Under which keys records of one kind have what is read; of several that are there, the first listed counts.

    All in the form of plain_key.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]

    def id_of(self, record: Mapping[str, object]) -> str:
        """The id of a record: a text or a whole number; '' where it has none."""
        key = _keys_of(self, tuple(record)).id
        return "" if key is None else as_id(record[key])


DOCUMENTS = Spelling(
    ids=("id", "docid", "documentid", "docno", "corpusid", "passageid", "pid"),
    titles=("title",),
    texts=("text", "contents", "content", "passage", "document", "doc", "body", "segment"),
)
QUERIES = Spelling(
    ids=("id", "queryid", "qid", "questionid", "topicid"),
    titles=(),
    texts=("text", "query", "question", "contents", "content"),
)


@lru_cache(maxsize=1024)
def places_of(keys: tuple[str, ...], wanted: tuple[tuple[str, ...], ...]) -> tuple[int | None, ...]:
    """Of each list of names, where among the keys the first stands that is there; None where none is.

    wanted: in the form of plain_key. Kept, for a file of millions has few sets of keys.
    """
    found: dict[str, int] = {}
    # Sorted, '_id' stands before 'id'.
    for place in sorted(range(len(keys)), key=keys.__getitem__):
        found.setdefault(plain_key(keys[place]), place)
    return tuple(next((found[name] for name in names if name in found), None) for names in wanted)


@lru_cache(maxsize=1024)
def _keys_of(spelling: Spelling, keys: tuple[str, ...]) -> Keys:
    """Where records with certain keys have each."""
    places = places_of(keys, (spelling.ids, spelling.titles, spelling.texts))
    return Keys(*(None if place is None else keys[place] for place in places))


def as_id(value: object) -> str:
    """A text or a whole number as an id; '' for anything else."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def is_unusable(text: str) -> bool:
    """Whether a text holds a NUL, which ends an id in trec_eval, or half a surrogate pair, which ends the process."""
    return "\0" in text or holds_half(text)


def holds_half(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which no file can hold."""
    return not text.isascii() and _HALF.search(text) is not None


class TextRecord(NamedTuple):
    """A record as it was read. where: its file and place, for messages. id, title: '' where there is none."""

    where: str
    keys: Keys
    id: str
    title: str
    text: str


def read_text_records(file: Path, spelling: Spelling, faults: Faults, *, with_ids: bool) -> Iterator[TextRecord]:
    """The records of a file with a text, in order; what is wrong with the others goes to faults.

    with_ids: those without an id, or with one that a record before had, are wrong.
    """
    place_of: dict[str, str] = {}
    for where, record in each_record(file, of_training=False):
        try:
            found = _text_record(where, record, spelling, with_ids)
            if with_ids and place_of.setdefault(found.id, where) != where:
                before = place_of[found.id].removeprefix(str(file)).lstrip(": ")
                place = f"on line {before}" if before.isdecimal() else f"by {before}"
                raise DataError(f"the id {found.id!r} was used {place}; every id must be unique")
        except DataError as error:
            faults.add(file, where, str(error))
        else:
            yield found


def _text_record(where: str, record: object, spelling: Spelling, with_id: bool) -> TextRecord:
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, dict):
        raise DataError(f"is {type(record).__name__}, not an object with {'an id and ' * with_id}a text")
    keys = _keys_of(spelling, tuple(record))
    record_id = "" if keys.id is None else as_id(record[keys.id])
    if with_id and not record_id:
        if keys.id is None:
            raise DataError(f"has no id: its keys are {listed(record)}; expected '_id', or {_or(spelling.ids)}")
        raise DataError(f"{keys.id!r} must be a text that is not empty, or a whole number")
    if keys.text is None:
        raise DataError(f"has no text: its keys are {listed(record)}; expected {_or(spelling.texts)}")
    # BEIR's own sets hold documents with an empty text or a null title; a missing text is a slip.
    title, text = (record[keys.title] or "") if keys.title else "", record[keys.text]
    if not isinstance(title, str) or not isinstance(text, str):
        also = f", and {keys.title!r} too where it is given" if keys.title else ""
        raise DataError(f"{keys.text!r} must be a string{also}")
    for key, value in ((keys.id, record_id), (keys.title, title), (keys.text, text)):
        if (is_unusable if with_id else holds_half)(value):
            what = "a NUL or half a character" if with_id else "half a character"
            raise DataError(f"{key!r} holds {what} (a lone \\ud800–\\udfff escape); repair it")
    return TextRecord(where, keys, record_id, title, text)


def is_named_like_texts(file: Path) -> bool:
    """Whether a name ends in one of RECORD_SUFFIXES, packed or not, in any case."""
    return suffix_within(file) in RECORD_SUFFIXES


def find_records(folder: Path, name: str) -> Path | None:
    """The file of records called name in a folder: name.jsonl or with another of RECORD_SUFFIXES, packed or not; or None."""
    names = [f"{name}{suffix}{packed}" for packed in ("", *PACKED_SUFFIXES) for suffix in RECORD_SUFFIXES]
    return next((folder / one for one in names if (folder / one).is_file()), None)


def listed(keys: Collection[str]) -> str:
    """Keys as a message names them, the first of many."""
    shown = ", ".join(repr(str(key)[:40]) for key in list(keys)[:_KEYS_SHOWN])
    return (shown or "none") + (" and more" if len(keys) > _KEYS_SHOWN else "")


def _or(names: tuple[str, ...]) -> str:
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]])
