"""Training examples: what a query belongs with, and what it does not."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebr.data.near_duplicates import Groups
from ebr.errors import DataError

SUFFIXES = (".json", ".jsonl")
_MOST_PROBLEMS = 30


@dataclass(frozen=True)
class Example:
    """A query with the texts that belong to it, and texts that are known not to."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()

    def texts(self) -> Iterator[str]:
        """Every text of the example."""
        yield self.query
        yield from self.positives
        yield from self.negatives


def find_training_files(data_path: str) -> list[Path]:
    """The .json and .jsonl files of a file, a glob, or a folder (not its subfolders). Raises DataError when there are none."""
    path = Path(data_path)
    if path.is_file():
        return [path]
    found = list(path.iterdir()) if path.is_dir() else [Path(name) for name in glob.glob(data_path)]  # noqa: PTH207
    files = sorted(file for file in found if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not files:
        what = (
            "holds no .json or .jsonl file"
            if path.is_dir()
            else "is no file, folder or glob that matches a .json or .jsonl file"
        )
        raise DataError(f"data_path {data_path}: {what}")
    return files


def read_pairs(files: Sequence[Path]) -> list[Example]:
    """Read anchor / positive / negative records.

    A file is a JSON array or JSON lines. Raises one DataError that lists every wrong record: nothing is trained on a
    half-read set.
    """
    examples: list[Example] = []
    problems: list[str] = []
    for file in files:
        for where, record in _records(file, problems):
            _collect(where, record, parse_pair, examples, problems)
    if problems:
        raise DataError(_report(problems))
    if not examples:
        raise DataError(f"{', '.join(map(str, files))}: no records")
    return examples


def parse_pair(record: dict[str, Any]) -> Example:
    """One record with anchor, positive and an optional negative (a text or a list). Raises DataError."""
    if "query" in record and "pos" in record and "anchor" not in record:
        raise DataError("has 'query' and 'pos'; this reader wants 'anchor', 'positive' and optionally 'negative'")
    for wrong, right in (("negatives", "negative"), ("neg", "negative"), ("positives", "positive"), ("pos", "positive")):
        if wrong in record:
            raise DataError(f"has {wrong!r}; the field is {right!r}")
    negative = record.get("negative")
    negatives = negative if isinstance(negative, list) else [] if negative is None else [negative]
    return Example(
        query=_text("anchor", record.get("anchor")),
        positives=(_text("positive", record.get("positive")),),
        negatives=tuple(_text("negative", text) for text in negatives),
    )


def _text(name: str, value: object) -> str:
    if value is None:
        raise DataError(f"'{name}' is missing; give a text")
    if not isinstance(value, str):
        raise DataError(f"'{name}' is {type(value).__name__}, not a text; put it in quotes")
    if not value.strip():
        hint = "leave it out or give a text" if name == "negative" else "give a text or remove the record"
        raise DataError(f"'{name}' is empty; {hint}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"'{name}' holds half a character (a lone \\ud800–\\udfff escape); repair the text") from None
    return value


def _collect(
    where: str, record: object, parse: Callable[[dict[str, Any]], Example], examples: list[Example], problems: list[str]
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


# ---------------------------------------------------------------- validation split


def split_validation(
    examples: Sequence[Example], share: float, rng: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """Split into training and validation examples; examples that share any text stay on one side.

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
                f"validation_split {share}: the {len(examples)} records hang together by shared texts, so none can be held "
                "out; set validation_split to 0 or add unrelated records"
            )
    held = set(held_out)
    return (
        [example for index, example in enumerate(examples) if index not in held],
        [examples[index] for index in sorted(held)],
    )


def connected_groups(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of examples, grouped so that two examples with a text in common are in one group."""
    together = Groups(len(examples))
    first_with: dict[str, int] = {}
    for index, example in enumerate(examples):
        for text in example.texts():
            together.join(first_with.setdefault(text.strip(), index), index)
    groups: dict[int, list[int]] = {}
    for index in range(len(examples)):
        groups.setdefault(together.root(index), []).append(index)
    return list(groups.values())
