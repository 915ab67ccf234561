"""Training examples: what a query belongs with, and what it does not."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ebr.data.fields import read_scores, read_text, read_texts, refuse_misspelt
from ebr.data.likeness import normal_form
from ebr.data.near_duplicates import Groups
from ebr.errors import DataError

Parsed = TypeVar("Parsed")

SUFFIXES = (".json", ".jsonl")
# A manifest lies beside the training file that it describes; see ebr.data.files.manifest_path.
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
    """The .json and .jsonl files of a file, a glob, or a folder (not its subfolders), without manifests and hidden files.

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
        and file.suffix.lower() in SUFFIXES
        and not file.name.endswith(_MANIFEST_SUFFIX)
        and not file.name.startswith(".")
    )
    if not files:
        what = (
            "holds no .json or .jsonl file"
            if path.is_dir()
            else "is no file, folder or glob that matches a .json or .jsonl file"
        )
        raise DataError(f"{option} {data_path}: {what}")
    return files


def read_pairs(files: Sequence[Path]) -> list[Example]:
    """Read anchor / positive / negative records: parse_pair says what a record is.

    A file is a JSON array or JSON lines. Raises one DataError that lists every wrong record: nothing is trained on a
    half-read set.
    """
    return read_objects(files, parse_pair)


def read_triplets(files: Sequence[Path]) -> list[Example]:
    """Read query / pos / neg records: parse_triplet says what a record is. Files and errors as in read_pairs."""
    return read_objects(files, parse_triplet)


def read_objects(files: Sequence[Path], parse: Callable[[dict[str, Any]], Parsed]) -> list[Parsed]:
    """What parse makes of every record of the files, in order. Files and errors as in read_pairs; parse raises DataError."""
    examples: list[Parsed] = []
    problems: list[str] = []
    for file in files:
        for where, record in _records(file, problems):
            _collect(where, record, parse, examples, problems)
    if problems:
        raise DataError(_report(problems))
    if not examples:
        raise DataError(f"{', '.join(map(str, files))}: no records")
    return examples


# ---------------------------------------------------------------- one record


def parse_pair(record: dict[str, Any]) -> Example:
    """One record with anchor, positive and an optional negative (a text or a list), each with scores or without.

    Raises DataError; positive_score, negative_scores: what a teacher says of each, as `ebr mine` writes it.
    """
    if "query" in record and "pos" in record and "anchor" not in record:
        raise DataError(
            "has 'query' and 'pos', which `ebr train` (train.py) reads; "
            "this reader wants 'anchor', 'positive' and optionally 'negative'"
        )
    refuse_misspelt(record, {"negatives": "negative", "neg": "negative", "positives": "positive", "pos": "positive"})
    query, positive = (read_text(f"'{key}'", record.get(key)) for key in ("anchor", "positive"))
    negatives = read_texts("'negative'", record.get("negative"), empty="leave it out or give a text")
    positive_scores = read_scores("'positive_score'", record.get("positive_score"), 1)
    return Example(
        query,
        (positive,),
        negatives,
        positive_scores,
        read_scores("'negative_scores'", record.get("negative_scores"), len(negatives)),
    )


def parse_triplet(record: dict[str, Any]) -> Example:
    """One record with query, pos (a text or a list, one at least) and an optional neg (likewise, none will do).

    pos_scores, neg_scores: what a teacher says of each, as `ebr mine` and FlagEmbedding write it; none will do. Other keys
    (prompt, type, id, …) are passed over. Raises DataError; a list's element is named by its place, 'pos'[0] being the first.
    """
    if "anchor" in record and "positive" in record and "query" not in record:
        raise DataError(
            "has 'anchor' and 'positive', which `ebr finetune` (ebr_finetune.py) reads; "
            "this reader wants 'query', 'pos' and optionally 'neg'"
        )
    refuse_misspelt(record, {"negatives": "neg", "negative": "neg", "positives": "pos", "positive": "pos"})
    query = read_text("'query'", record.get("query"))
    needed = "every record needs at least one positive text"
    positives = read_texts("'pos'", record.get("pos"), empty=needed)
    if not positives:
        raise DataError(f"'pos' is {'missing' if record.get('pos') is None else 'empty'}; {needed}")
    negatives = read_texts("'neg'", record.get("neg"), empty="leave it out or give a text")
    positive_scores = read_scores("'pos_scores'", record.get("pos_scores"), len(positives))
    negative_scores = read_scores("'neg_scores'", record.get("neg_scores"), len(negatives))
    return Example(query, positives, negatives, positive_scores, negative_scores)


# ---------------------------------------------------------------- files


def _collect(
    where: str, record: object, parse: Callable[[dict[str, Any]], Parsed], examples: list[Parsed], problems: list[str]
) -> None:
    if not isinstance(record, dict):
        problems.append(f"{where}: is {type(record).__name__}, not an object like {{…}}")
        return
    try:
        examples.append(parse(record))
    except DataError as error:
        problems.append(f"{where}: {error}")


def _records(file: Path, problems: list[str]) -> Iterator[tuple[str, object]]:
    """Every record with its place; what cannot be read goes to problems."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problems.append(f"{file}:{line}: is not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8")
        return
    except OSError as error:
        problems.append(f"{file}: cannot be read ({error.strerror})")
        return
    if text.lstrip().startswith("["):
        yield from _array(file, text, problems)
    else:
        yield from _lines(file, text, problems)


def _array(file: Path, text: str, problems: list[str]) -> Iterator[tuple[str, object]]:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"{file}: is not valid JSON ({error})")
        return
    for index, record in enumerate(records, start=1):
        yield f"{file}: record {index}", record


def _lines(file: Path, text: str, problems: list[str]) -> Iterator[tuple[str, object]]:
    # Not str.splitlines(): U+2028 and U+0085 are legal inside a JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{file}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{file}:{number}: is not valid JSON ({error}); write one object a line, or one array a file")


def _report(problems: Sequence[str]) -> str:
    head = f"{len(problems)} wrong record{'s' if len(problems) > 1 else ''}; nothing was read:"
    more = [f"… and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
    return "\n  ".join([head, *problems[:_MOST_PROBLEMS], *more])


# ---------------------------------------------------------------- right answers


def right_answers(examples: Iterable[Example]) -> dict[str, set[str]]:
    """By query, the query itself and the positives of every record with it: right in whatever batch they meet it.

    All in their normal form, as BatchMaker compares texts.
    """
    right: dict[str, set[str]] = {}
    for example in examples:
        query = normal_form(example.query)
        right.setdefault(query, {query}).update(map(normal_form, example.positives))
    return right


def is_taught_by_negatives(example: Example, right: Mapping[str, set[str]]) -> bool:
    """Whether one of its negatives is no right answer; right: see right_answers."""
    return not {normal_form(text) for text in example.negatives} <= right[normal_form(example.query)]


def lonely_rows(examples: Sequence[Example], batch_size: int, neg_nums: int) -> list[int]:
    """Indices of the examples that teach nothing: alone in their batch, with no negative to tell the positive from.

    neg_nums: negatives drawn a record. A negative that is, by its text, a positive of any record with the same query does
    not count: BatchMaker masks it. In a batch of two or more the others' positives are negatives, and no row is lonely.
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
