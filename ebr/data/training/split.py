"""The validation split: examples held out that share no text with those trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ebr.data.training.answers import chain_of_each
from ebr.data.training.examples import Example
from ebr.data.training.text_table import RecordIds, TextTable
from ebr.errors import DataError


def split_validation(
    examples: Sequence[Example],
    share: float,
    rng: np.random.Generator,
    texts: TextTable,
    *,
    seen: Collection[str] = (),
) -> tuple[list[Example], list[Example]]:
    """Split into training and validation examples that have no text in common; texts: the table that says which are the same.

    Examples that share a query or a positive stay on one side. A negative may be anyone's text, a mined one is always another
    example's positive: one whose text stands on the other side is left out of its example, and the example stays.
    share: wanted part of the examples in the validation split, 0 to 1; the groups decide how near it can be met. seen: queries
    that are not held out, like those of a split before. Raises DataError when one connected group is so large that no split is
    left, or when all were seen.
    """
    if share == 0:
        return list(examples), []
    every = connected_groups(texts.records(examples))
    groups = [group for group in every if not any(examples[index].query in seen for index in group)] if seen else every
    wanted = min(max(1, round(share * len(examples))), len(examples) - 1)
    held_out: list[int] = []
    for index in rng.permutation(len(groups)):
        if len(held_out) + len(groups[index]) <= wanted:
            held_out.extend(groups[index])
    if not held_out:
        held_out = list(min(groups, key=len, default=()))
        if not held_out or len(held_out) > len(examples) / 2:
            raise DataError(
                f"validation_split {share}: the {len(examples)} records hang together by shared queries and positives, so none "
                "can be held out; set validation_split to 0 or add unrelated records"
            )
    held = set(held_out)
    train = [example for index, example in enumerate(examples) if index not in held]
    validation = [examples[index] for index in sorted(held)]
    # Training keeps every negative that is nobody's answer on the other side: validation has only a loss to tell.
    train = _without_negatives(train, {text for one in texts.records(validation) for text in one.core()}, texts.ids)
    validation = _without_negatives(validation, {texts.ids[text] for one in train for text in one.texts()}, texts.ids)
    return train, validation


def _without_negatives(examples: Sequence[Example], taken: Collection[int], ids: Mapping[str, int]) -> list[Example]:
    """The examples, less those of their negatives that are taken, and the scores of these."""
    without = []
    for example in examples:
        kept = [place for place, text in enumerate(example.negatives) if ids[text] not in taken]
        negatives, scores = example.negatives, example.negative_scores
        without.append(
            replace(
                example,
                negatives=tuple(negatives[place] for place in kept),
                negative_scores=tuple(scores[place] for place in kept) if scores else (),
            )
        )
    return without


def connected_groups(records: Sequence[RecordIds]) -> list[list[int]]:
    """Indices of records, grouped so that two records with a query or a positive in common are in one group."""
    chain_of = chain_of_each(records)
    groups: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(chain_of[record.query], []).append(index)
    return list(groups.values())
