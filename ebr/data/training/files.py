"""Training records as they stand in files of either format: read, turned from one into the other, written with scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebr.data.records.layouts import Layout, RecordFormat, layout_of
from ebr.data.text.normal_form import normal_form
from ebr.data.training.examples import parse_record, read_objects
from ebr.errors import DataError

_DIGITS = 6


# Lists under such keys run beside the texts: FlagEmbedding's pos_id and neg_id.
_BESIDE_POSITIVES, _BESIDE_NEGATIVES = ("pos_", "positive_"), ("neg_", "negative_")


@dataclass(frozen=True)
class Record:
    """One training record, and what else stood in it."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    rest: Mapping[str, Any]
    """Every other key with its value, like id and type; no list of scores, nor one that runs beside texts of before."""


@dataclass(frozen=True)
class Negative:
    """A text that does not belong to a query; rank: among the candidates, from 1; None when it is not among the first."""

    text: str
    score: float
    rank: int | None


def read_training_records(files: Sequence[Path]) -> tuple[RecordFormat, list[Record]]:
    """Every record of the files in their order, and the format of ours that all have, or that theirs is nearest to.

    The first record's keys say which; pairs of which one has several positives are triplets, for a pair has room for one.
    Raises one DataError that lists every wrong record; a second format is named once, where it begins.
    """
    reader = _Reader()
    records = read_objects(files, reader.parse)
    has_lists = any(len(record.positives) > 1 for record in records)
    return RecordFormat.TRIPLETS if has_lists else reader.format, records


class _Reader:
    """Parses records of the format that the first one has."""

    def __init__(self) -> None:
        self._first: Layout | None = None
        self._is_mixed = False

    @property
    def format(self) -> RecordFormat:
        return RecordFormat.PAIRS if self._first is None else self._first.format

    def parse(self, record: dict[str, Any]) -> Record:
        layout = layout_of(record)
        self._first = self._first or layout
        if layout.format is not self.format and not self._is_mixed:
            self._is_mixed = True
            raise DataError(
                f"has {_named(layout)}, but the records before have {_named(self._first)}; give files of one format"
            )
        # Scores are of the lists as they were; what is read here gets new ones.
        example = parse_record(record, with_scores=False)
        return Record(example.query, example.positives, example.negatives, {key: record[key] for key in layout.rest})


def _named(layout: Layout) -> str:
    return f"{layout.query.key!r} and {layout.positives.key!r}"


def as_format(records: Sequence[Record], was: RecordFormat, wanted: RecordFormat) -> list[Record]:
    """The records in another format; the same list in the same.

    Triplets become one pair for each positive. Pairs become one triplet for each query, by its normal form: where it first
    stands, with the positives and negatives of all its pairs, each text once, and the other keys of the first pair alone.
    A list that ran beside texts which changed (pos_id, neg_id) is left out.
    """
    if was is wanted:
        return list(records)
    if wanted is RecordFormat.PAIRS:
        return [_with_texts(one, (text,), one.negatives) for one in records for text in one.positives]
    of_query: dict[str, list[Record]] = {}
    for one in records:
        of_query.setdefault(normal_form(one.query), []).append(one)
    return [_joined(group) for group in of_query.values()]


def _joined(group: Sequence[Record]) -> Record:
    return _with_texts(
        group[0],
        _once(text for one in group for text in one.positives),
        _once(text for one in group for text in one.negatives),
    )


def _with_texts(record: Record, positives: tuple[str, ...], negatives: tuple[str, ...]) -> Record:
    """The record with other texts, without the lists that ran beside those it had."""
    gone = (_BESIDE_POSITIVES if positives != record.positives else ()) + (
        _BESIDE_NEGATIVES if negatives != record.negatives else ()
    )
    rest = {key: value for key, value in record.rest.items() if not (isinstance(value, list) and key.startswith(gone))}
    return Record(record.query, positives, negatives, rest)


def _once(texts: Iterator[str]) -> tuple[str, ...]:
    """Each text where it first stands; white space around it makes no other text."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(text.strip(), text)
    return tuple(first.values())


def to_object(
    record: Record, form: RecordFormat, positive_scores: Sequence[float], negatives: Sequence[Negative]
) -> dict[str, Any]:
    """The JSON object of a record with other negatives: its texts, their scores, and whatever else stood in it and still fits.

    positive_scores: one for each positive. Scores are rounded to 6 digits. A pair has one positive, hence one score.
    """
    query, positive, negative = form.keys
    positive_score, negative_scores, negative_ranks = form.score_keys
    scores = [round(score, _DIGITS) for score in positive_scores]
    is_pair = form is RecordFormat.PAIRS
    return {
        query: record.query,
        positive: record.positives[0] if is_pair else list(record.positives),
        negative: [one.text for one in negatives],
        positive_score: scores[0] if is_pair else scores,
        negative_scores: [round(one.score, _DIGITS) for one in negatives],
        negative_ranks: [one.rank for one in negatives],
        **_with_texts(record, record.positives, tuple(one.text for one in negatives)).rest,
    }


@contextmanager
def training_file(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends a record to a new file at `path`, which is complete once the block has ended.

    .json becomes an array with one record a line, any other suffix one object a line.
    """
    is_array = path.suffix.lower() == ".json"
    opening, between, closing = ("[\n", ",\n", "\n]\n") if is_array else ("", "\n", "\n")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        lead = opening

        def append(record: dict[str, Any]) -> None:
            nonlocal lead
            file.write(lead + _json(record))
            lead = between

        yield append
        file.write(closing if lead == between else opening + closing.lstrip("\n"))


def _json(record: dict[str, Any]) -> str:
    # A table's dates and decimals have no form in JSON: they are written as text.
    text = json.dumps(record, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character in a key that nobody checked
        return json.dumps(record, default=str)
    return text
