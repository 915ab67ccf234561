"""Several training sources: files with a weight and prompts of their own, read into one list of examples."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebr.data.training.examples import Example, find_training_files, read_examples
from ebr.data.training.text_table import TextTable
from ebr.errors import DataError

Given = Path | Sequence[Mapping[str, Any]]
"""A JSON file that lists the sources, or the list itself."""

MOST_WEIGHT = 1000.0
_KEYS = ("data_path", "weight", "query_prompt", "passage_prompt", "name")
_MOST_PROBLEMS = 30


@dataclass(frozen=True)
class TrainingSource:
    """Records that are trained on in batches of their own.

    weight: how often a record is drawn an epoch: 0.5 = half of the records each, 2 = each record twice. A prompt that is None
    is the run's.
    """

    name: str
    files: tuple[Path, ...]
    examples: tuple[Example, ...]
    weight: float = 1.0
    query_prompt: str | None = None
    passage_prompt: str | None = None


@dataclass(frozen=True)
class _Entry:
    """A source before its files are read."""

    name: str
    files: tuple[Path, ...]
    weight: float
    query_prompt: str | None
    passage_prompt: str | None


def read_sources(given: Given) -> list[TrainingSource]:
    """Read every source of a JSON list of {"data_path", "weight", "query_prompt", "passage_prompt", "name"}.

    given: the list, or the file that holds it; a relative data_path is relative to that file's folder. Only data_path, as
    find_training_files takes it, is needed; a source without a name is called by its data_path.
    Raises one DataError that lists every wrong entry, or that of read_examples.
    """
    where, folder, entries = _entries(given)
    found: list[_Entry] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, start=1):
        try:
            found.append(_parse(entry, folder))
            _refuse_taken_name(found)
        except DataError as error:
            problems.append(f"{where}: entry {number}: {error}")
    if problems:
        more = [f"… and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        head = f"{len(problems)} wrong source{'s' if len(problems) > 1 else ''}; nothing was read:"
        raise DataError("\n  ".join([head, *problems[:_MOST_PROBLEMS], *more]))
    return [
        TrainingSource(
            entry.name, entry.files, tuple(read_examples(entry.files)), entry.weight, entry.query_prompt, entry.passage_prompt
        )
        for entry in found
    ]


def _entries(given: Given) -> tuple[str, Path, list[Any]]:
    """What to call the list in an error, the folder that its paths are relative to, and its entries."""
    if not isinstance(given, Path):
        return "sources", Path(), list(given)
    try:
        entries = json.loads(given.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"sources {given}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"sources {given}: is not valid JSON ({error}); write a list of {{…}} in UTF-8") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f'sources {given}: must be a list of entries like {{"data_path": "faq.jsonl", "weight": 0.5}}')
    return str(given), given.parent, entries


def _parse(entry: object, folder: Path) -> _Entry:
    """One entry, its files found. Raises DataError without the place."""
    if not isinstance(entry, Mapping):
        raise DataError(f"is {type(entry).__name__}, not an object like {{…}}")
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"an entry has {', '.join(_KEYS)}"
            raise DataError(f"{key!r} is unknown; {hint}")
    data_path = _optional_text(entry, "data_path")
    if data_path is None or not data_path.strip():
        raise DataError("'data_path' is missing; give a file, a folder or a glob")
    name = _optional_text(entry, "name")
    if name is not None and not name.strip():
        raise DataError("'name' is empty; leave it out or give one")
    weight = _weight(entry.get("weight", 1.0))
    files = tuple(find_training_files(str(folder / data_path)))
    return _Entry(
        name or data_path, files, weight, _optional_text(entry, "query_prompt"), _optional_text(entry, "passage_prompt")
    )


def _optional_text(entry: Mapping[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{key!r} is {type(value).__name__}, not a text; put it in quotes")


def _weight(value: object) -> float:
    # True is an int to Python, and NaN is JSON to its reader.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"'weight' is {value!r}, not a number")
    if not 0 < value <= MOST_WEIGHT:
        raise DataError(
            f"'weight' is {value:g}; it must be above 0 and at most {MOST_WEIGHT:g} (to train without a source, leave it out)"
        )
    return float(value)


def _refuse_taken_name(found: Sequence[_Entry]) -> None:
    """By its name a source is told from the others."""
    for number, entry in enumerate(found[:-1], start=1):
        if entry.name == found[-1].name:
            raise DataError(f"{entry.name!r} is the name of source {number} too; give it another 'name'")


# ---------------------------------------------------------------- one list of examples


def all_examples(sources: Sequence[TrainingSource]) -> list[Example]:
    """The examples of every source, in order."""
    return [example for source in sources for example in source.examples]


def source_of(sources: Sequence[TrainingSource]) -> list[int]:
    """Which source each row of all_examples comes from."""
    return [index for index, source in enumerate(sources) for _ in source.examples]


def all_files(given: Given, sources: Sequence[TrainingSource]) -> list[Path]:
    """Every file that a run depends on: those of the sources, after the one that lists them. A file may come twice."""
    return [*([given] if isinstance(given, Path) else []), *(file for source in sources for file in source.files)]


def after_split(
    examples: Sequence[Example], sources: Sequence[int], validation: Sequence[Example], texts: TextTable
) -> tuple[list[int], list[int]]:
    """The source of each training row, and of each validation row, after split_validation(examples).

    sources: the source of each example. The split keeps the order, and all examples that share a query on one side.
    """
    held_out = {texts.ids[example.query] for example in validation}
    sides: tuple[list[int], list[int]] = ([], [])
    for example, source in zip(examples, sources, strict=True):
        sides[texts.ids[example.query] in held_out].append(source)
    return sides


def prompts_of(source: TrainingSource, default_prompts: Mapping[str, str]) -> dict[str, str]:
    """{"query": …, "document": …}: the source's own prompts, the run's where it has none; '' = none at all."""
    own = {"query": source.query_prompt, "document": source.passage_prompt}
    return {role: default_prompts[role] if prompt is None else prompt for role, prompt in own.items()}
