"""Training records that repeat or contradict each other, counted by the texts alone.

Texts are compared by their ids (ebr.data.training.text_table), as the loss compares them when it hides right answers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ebr.data.text.near_duplicates import rarest
from ebr.data.text.normal_form import each_shingle, is_near
from ebr.data.training.answers import Answers, SameAnswer, find_answers, right_answers
from ebr.data.training.text_table import RecordIds, TextTable

_NEAR = 0.9
_MOST_COMPARED = 5_000
# A query that a thousand records share would make half a million pairs; its last few tell as much.
_MOST_NEIGHBOURS = 50
_MOST_BATCHES = 50
_MOST_CHARACTERS = 2_000
"""Of a text, what is compared with others for being nearly like them: its beginning tells as much as a whole book."""


@dataclass(frozen=True)
class Fault:
    """How many records (or negatives) have one fault, and the row of the first record that has it; None = none has."""

    count: int = 0
    first: int | None = None

    def plus(self, row: int, count: int = 1) -> Fault:
        """The fault with `count` more, found in this row; rows come in order."""
        return Fault(self.count + count, row if self.first is None else self.first) if count else self


@dataclass(frozen=True)
class RecordFaults:
    """What is wrong with N records by their texts alone; find_faults says what is counted."""

    n_records: int
    n_negatives: int
    distinct_records: int
    distinct_positives: int
    repeated: Fault
    to_join: Fault
    query_is_positive: Fault
    query_is_negative: Fault
    contradicting: Fault
    answers_elsewhere: Fault


def find_faults(records: Sequence[RecordIds]) -> RecordFaults:
    """Count what no training needs, over every record.

    repeated: records of whose query-positive pairs all stand in earlier records, and that bring no new negative for their query
    (a right answer is none). to_join: those that do bring one, as where each record has one negative. query_is_positive,
    query_is_negative: records whose query is one of their own texts. contradicting: records that give one text as positive and
    as negative. answers_elsewhere: negatives that another record of the same query gives as a positive (not those of
    `contradicting`).
    """
    right = right_answers(records)
    repeated = to_join = asked = refused = contradicting = elsewhere = Fault()
    pairs: set[tuple[int, int]] = set()
    refusals: set[tuple[int, int]] = set()
    n_distinct = 0
    for row, one in enumerate(records):
        answers, own = right[one.query], set(one.positives)
        new = {(one.query, positive) for positive in own} - pairs
        more = {(one.query, negative) for negative in one.negatives if negative not in answers} - refusals
        pairs |= new
        refusals |= more
        n_distinct += bool(new)
        repeated = repeated.plus(row, not new and not more)
        to_join = to_join.plus(row, not new and bool(more))
        asked = asked.plus(row, one.query in one.positives)
        refused = refused.plus(row, one.query in one.negatives)
        contradicting = contradicting.plus(row, not own.isdisjoint(one.negatives))
        elsewhere = elsewhere.plus(row, sum(text in answers and text not in own for text in one.negatives))
    n_negatives = sum(len(one.negatives) for one in records)
    n_positives = len({positive for _, positive in pairs})
    return RecordFaults(
        n_records=len(records),
        n_negatives=n_negatives,
        distinct_records=n_distinct,
        distinct_positives=n_positives,
        repeated=repeated,
        to_join=to_join,
        query_is_positive=asked,
        query_is_negative=refused,
        contradicting=contradicting,
        answers_elsewhere=elsewhere,
    )


@dataclass(frozen=True)
class NearDuplicates:
    """Of n_compared records, how many nearly repeat an earlier one; first: rows of the first such record and its like."""

    n_compared: int
    count: int
    first: tuple[int, int] | None


def find_near_duplicates(
    records: Sequence[RecordIds],
    texts: TextTable,
    rng: np.random.Generator,
    *,
    threshold: float = _NEAR,
    most: int = _MOST_COMPARED,
) -> NearDuplicates:
    """Records that are not equal, but whose query and first positive have a Jaccard similarity >= threshold with another's.

    Compared are the words, of Chinese the character bigrams, so records that differ in punctuation or the order of words are
    near; of a long text its first 2,000 characters. texts: the table that numbered the records. most: of more records that many
    are drawn, and only the likes among them are found: the share is then too low.
    """
    rows = _distinct_rows(records)
    if len(rows) > most:
        rows = sorted(rng.choice(rows, size=most, replace=False).tolist())
    forms = list(texts.forms)
    queries = [_shingles(forms[records[row].query]) for row in rows]
    positives = [_shingles(forms[records[row].positives[0]]) for row in rows]
    count, first = 0, None
    for place, others in enumerate(_neighbours(queries, threshold)):
        alike = (
            other
            for other in sorted(others)
            if is_near(queries[place], queries[other], threshold) and is_near(positives[place], positives[other], threshold)
        )
        if (other := next(alike, None)) is not None:
            count += 1
            first = first or (rows[place], rows[other])
    return NearDuplicates(len(rows), count, first)


def _shingles(form: str) -> frozenset[str]:
    return frozenset(each_shingle(form[:_MOST_CHARACTERS]))


def _distinct_rows(records: Sequence[RecordIds]) -> list[int]:
    """The first row of each query with its first positive: equal records are counted elsewhere."""
    first: dict[tuple[int, int], int] = {}
    for row, one in enumerate(records):
        first.setdefault((one.query, one.positives[0]), row)
    return list(first.values())


def _neighbours(features: Sequence[frozenset[str]], threshold: float) -> Iterator[set[int]]:
    """For each set the earlier ones that can reach the threshold with it, as near_duplicates finds them; a bounded number."""
    frequency = Counter(feature for one in features for feature in one)
    places_of: defaultdict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(features):
        rare = rarest(one, frequency, threshold)
        yield {other for feature in rare for other in places_of[feature][-_MOST_NEIGHBOURS:]}
        for feature in rare:
            places_of[feature].append(place)


def share_without_negatives(
    records: Sequence[RecordIds],
    batch_size: int,
    neg_nums: int,
    rng: np.random.Generator,
    same_answer: SameAnswer = "text",
) -> tuple[float, int]:
    """The share of records whose loss is zero from the start, in random batches, and the row of the first (-1 = none).

    Such a record has no wrong candidate in its batch: it is alone there, or every candidate is a right answer to its query, or
    the query itself, and hidden by the loss. Up to 50 batches of an epoch are looked at; neg_nums: negatives drawn a record.
    """
    right = find_answers(records, same_answer)
    order = rng.permutation(len(records))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)][:_MOST_BATCHES]
    idle = [row for batch in batches for row in _rows_without_negatives(batch.tolist(), records, right, neg_nums)]
    n_seen = sum(len(batch) for batch in batches)
    return (len(idle) / n_seen if n_seen else 0.0), min(idle, default=-1)


def _rows_without_negatives(rows: Sequence[int], records: Sequence[RecordIds], right: Answers, neg_nums: int) -> Iterator[int]:
    candidates: set[int] = {records[row].positives[0] for row in rows}
    for row in rows:
        candidates.update(list(dict.fromkeys(records[row].negatives))[:neg_nums])
    for row in rows:
        # Most rows meet a wrong candidate at once; a set of a query's many answers is not made for each of its records.
        if all(right.has(records[row].query, candidate) for candidate in candidates):
            yield row
