"""Training examples: what a query belongs with, and what it does not."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ebr.data.records.files import SUFFIXES, each_record, is_named_like_records
from ebr.data.records.layouts import layout_of
from ebr.data.text.near_duplicates import Groups
from ebr.data.text.normal_form import normal_form
from ebr.errors import DataError

Parsed = TypeVar("Parsed")

# A manifest lies beside the training file that it describes; see ebr.data.files.write.manifest_path.
_MANIFEST_SUFFIX = ".manifest.json"
_MOST_PROBLEMS = 30


@dataclass(frozen=True)
class Example:
    """A query with the texts that belong to it, and texts that are known not to."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] = ()
    """A teacher's score of each positive, or none."""
    negative_scores: tuple[float, ...] = ()
    """A teacher's score of each negative, or none."""

    def texts(self) -> Iterator[str]:
        """Every text of the example."""
        yield self.query
        yield from self.positives
        yield from self.negatives


def find_training_files(data_path: str, *, option: str = "data_path") -> list[Path]:
    """The files of records of a file, a glob, or a folder (not its subfolders), without manifests and hidden files.

    A file that is named itself is taken whatever its name, of others those that is_named_like_records.
    option: what the user calls data_path. Raises DataError when there are none.
    """
    path = Path(data_path)
    if path.is_file():
        return [path]
    found = list(path.iterdir()) if path.is_dir() else [Path(name) for name in glob.glob(data_path)]  # noqa: PTH207
    files = sorted(
        file
        for file in found
        # Hidden: what another program is still writing.
        if file.is_file()
        and is_named_like_records(file)
        and not file.name.endswith(_MANIFEST_SUFFIX)
        and not file.name.startswith(".")
    )
    if not files:
        one = " or ".join([", ".join(SUFFIXES[:-1]), SUFFIXES[-1]])
        what = f"holds no {one} file" if path.is_dir() else f"is no file, folder or glob that matches a {one} file"
        raise DataError(f"{option} {data_path}: {what}")
    return files


# ---------------------------------------------------------------- reading


def read_examples(files: Sequence[Path]) -> list[Example]:
    """Every record of the files as an example: ebr.data.records.files says what a file is, parse_record what a record is.

    Raises one DataError that lists every wrong record: nothing is trained on a half-read set.
    """
    return read_objects(files, parse_record)


def read_objects(files: Sequence[Path], parse: Callable[[dict[str, Any]], Parsed]) -> list[Parsed]:
    """What parse makes of every record of the files, in order. Files and errors as in read_examples; parse raises DataError."""
    parsed: list[Parsed] = []
    problems = _Problems()
    for file in files:
        for where, record in each_record(file):
            try:
                parsed.append(parse(_object(record)))
            except DataError as error:
                problems.add(where, error)
    problems.raise_if_any()
    if not parsed:
        raise DataError(f"{', '.join(map(str, files))}: no records")
    return parsed


def parse_record(record: dict[str, Any], *, with_scores: bool = True) -> Example:
    """One record in a layout that ebr.data.records.layouts knows: anchor / positive / negative, query / pos / neg, or another.

    Positives and negatives are a text or a list; one positive is needed. with_scores: read what a teacher says of them too.
    Keys that mean nothing to training (prompt, type, id, …) are passed over. Raises DataError; a list's element is named by its
    place, 'pos'[0] being the first.
    """
    layout = layout_of(record)
    layout.check(record)
    query, positives = layout.read_query(record), layout.read_positives(record)
    negatives = layout.read_negatives(record)
    scores = layout.read_scores(record, len(positives), len(negatives)) if with_scores else ((), ())
    return Example(query, positives, negatives, *scores)


def _object(record: object) -> dict[str, Any]:
    if isinstance(record, dict):
        return record
    raise record if isinstance(record, DataError) else DataError(f"is {type(record).__name__}, not an object like {{…}}")


class _Problems:
    """Wrong records, gathered so that files are mended in one go; only the first few are kept as text."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._n_found = 0

    def add(self, where: str, error: DataError) -> None:
        self._n_found += 1
        if len(self._shown) < _MOST_PROBLEMS:
            self._shown.append(f"{where}: {error}")

    def raise_if_any(self) -> None:
        if not self._n_found:
            return
        head = f"{self._n_found} wrong record{'s' if self._n_found > 1 else ''}; nothing was read:"
        n_hidden = self._n_found - len(self._shown)
        raise DataError("\n  ".join([head, *self._shown, *([f"… and {n_hidden} more"] if n_hidden else [])]))


# ---------------------------------------------------------------- right answers


def right_answers(examples: Iterable[Example]) -> dict[str, set[str]]:
    """By query, the query itself and the positives of every record with it: right in whatever batch they meet it.

    All in their normal form, as Collator compares texts.
    """
    right: dict[str, set[str]] = {}
    for example in examples:
        query = normal_form(example.query)
        right.setdefault(query, {query}).update(map(normal_form, example.positives))
    return right


def is_taught_by_negatives(example: Example, right: Mapping[str, set[str]]) -> bool:
    """Whether one of its negatives is no right answer; right: see right_answers."""
    return not {normal_form(text) for text in example.negatives} <= right[normal_form(example.query)]


def rows_without_negatives(examples: Sequence[Example], batch_size: int, neg_nums: int) -> list[int]:
    """Indices of the examples that teach nothing: alone in their batch, with no negative to tell the positive from.

    neg_nums: negatives drawn a record. A negative that is, by its text, a positive of any record with the same query does
    not count: Collator masks it. In a batch of two or more the others' positives are negatives, and no row is lonely.
    """
    if batch_size > 1:
        return []
    right = right_answers(examples)
    return [row for row, one in enumerate(examples) if neg_nums == 0 or not is_taught_by_negatives(one, right)]


# ---------------------------------------------------------------- validation split


def split_validation(
    examples: Sequence[Example], share: float, rng: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """Split into training and validation examples that have no text in common.

    Examples that share a query or a positive stay on one side. A negative may be anyone's text, a mined one is always another
    example's positive: one whose text stands on the other side is left out of its example, and the example stays.
    share: wanted part of the examples in the validation split, 0 to 1; the groups decide how near it can be met.
    Raises DataError when one connected group is so large that no split is left.
    """
    if share == 0:
        return list(examples), []
    groups = connected_groups(examples)
    wanted = min(max(1, round(share * len(examples))), len(examples) - 1)
    held_out: list[int] = []
    for index in rng.permutation(len(groups)):
        if len(held_out) + len(groups[index]) <= wanted:
            held_out.extend(groups[index])
    if not held_out:
        held_out = list(sorted(groups, key=len)[0])
        if len(held_out) > len(examples) / 2:
            raise DataError(
                f"validation_split {share}: the {len(examples)} records hang together by shared queries and positives, so none "
                "can be held out; set validation_split to 0 or add unrelated records"
            )
    held = set(held_out)
    train = [example for index, example in enumerate(examples) if index not in held]
    validation = [examples[index] for index in sorted(held)]
    # Training keeps every negative that is nobody's answer on the other side: validation has only a loss to tell.
    train = _without_negatives(train, {text.strip() for example in validation for text in _core(example)})
    validation = _without_negatives(validation, {text.strip() for example in train for text in example.texts()})
    return train, validation


def _without_negatives(examples: Sequence[Example], texts: set[str]) -> list[Example]:
    """The examples, less those of their negatives that are among the (stripped) texts, and the scores of these."""
    without = []
    for example in examples:
        kept = [place for place, text in enumerate(example.negatives) if text.strip() not in texts]
        negatives, scores = example.negatives, example.negative_scores
        without.append(
            replace(
                example,
                negatives=tuple(negatives[place] for place in kept),
                negative_scores=tuple(scores[place] for place in kept) if scores else (),
            )
        )
    return without


def _core(example: Example) -> Iterator[str]:
    """The texts that make an example what it is: its query and its positives."""
    yield example.query
    yield from example.positives


def connected_groups(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of examples, grouped so that two examples with a query or a positive in common are in one group."""
    together = Groups(len(examples))
    first_with: dict[str, int] = {}
    for index, example in enumerate(examples):
        for text in _core(example):
            together.join(first_with.setdefault(text.strip(), index), index)
    groups: dict[int, list[int]] = {}
    for index in range(len(examples)):
        groups.setdefault(together.root(index), []).append(index)
    return list(groups.values())
