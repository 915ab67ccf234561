"""Which texts are right answers to which queries, and which records have nothing to tell their positive from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ebr.data.training.examples import Example
from ebr.data.training.text_table import RecordIds, TextTable


def right_answers(records: Iterable[RecordIds]) -> dict[int, set[int]]:
    """By query, the positives of every record with it: right in whatever batch they meet it."""
    right: dict[int, set[int]] = {}
    for one in records:
        right.setdefault(one.query, set()).update(one.positives)
    return right


def is_taught_by_negatives(record: RecordIds, right: Mapping[int, set[int]]) -> bool:
    """Whether one of its negatives is wrong: no right answer, nor the query itself; right: see right_answers."""
    answers = right[record.query]
    return any(text not in answers and text != record.query for text in record.negatives)


def rows_without_negatives(examples: Sequence[Example], texts: TextTable, batch_size: int, neg_nums: int) -> list[int]:
    """Indices of the examples that teach nothing: alone in their batch, with no negative to tell the positive from.

    neg_nums: negatives drawn a record. A negative that is, by its text, a positive of any record with the same query does
    not count: Collator masks it. In a batch of two or more the others' positives are negatives, and no row is lonely.
    """
    if batch_size > 1:
        return []
    records = texts.records(examples)
    right = right_answers(records)
    return [row for row, one in enumerate(records) if neg_nums == 0 or not is_taught_by_negatives(one, right)]
