"""What training and evaluation share: where the training records are, and what is to be said of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebr.config.options import Language
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.files.write import hash_files, read_manifest
from ebr.data.training.examples import Example, find_training_files, read_examples
from ebr.data.training.sources import all_examples, all_files, read_sources
from ebr.errors import DataError

if TYPE_CHECKING:
    from ebr.data.evaluation.leaks import LeakCheck


_NOTES: dict[str, dict[Language, str]] = {
    "unknown": {"en": "what {models} learned from is not recorded", "zh": "没有记录 {models} 的训练数据"},
    "unread": {"en": "{problem}; give train_data", "zh": "{problem}；请用 train_data 给出"},
    "changed": {"en": "{data_path} changed since a model was tuned on it", "zh": "{data_path} 在模型微调之后有改动"},
    "chosen": {
        "en": "the weights were chosen on this set, by early stopping: its figures are optimistic, evaluate on another one",
        "zh": "权重是用这份评测集通过早停选出的，因此数值偏乐观，请在另一份评测集上评测",
    },
    "weight": {
        "en": "the weight of the merge was chosen on this set: its figures are optimistic, evaluate on another one",
        "zh": "合并比例是在这份评测集上选出的，因此数值偏乐观，请在另一份评测集上评测",
    },
}
_BETWEEN: dict[Language, str] = {"en": "; ", "zh": "；"}


@dataclass(frozen=True)
class RecordedSource:
    """Where training records are; sha256: of the files as a model's manifest recorded them, None where none did.

    sources: the option of that name as it was recorded, as JSON; '' = there was one data_path.
    """

    data_path: str
    sha256: str | None = None
    sources: str = ""

    def read(self) -> tuple[list[Path], list[Example]]:
        """The files, and every example of them. Raises DataError."""
        if self.sources:
            given = json.loads(self.sources)
            given = Path(given) if isinstance(given, str) else given
            sources = read_sources(given)
            return all_files(given, sources), all_examples(sources)
        files = find_training_files(self.data_path, option="train_data")
        return files, read_examples(files)


@dataclass(frozen=True)
class Provenance:
    """Where the training records of some models are, and which models do not say."""

    sources: tuple[RecordedSource, ...]
    unknown: tuple[str, ...] = ()

    @classmethod
    def of(cls, models: Sequence[str]) -> Provenance:
        """What the manifests of the models say, and those of the models that they were tuned from."""
        sources: dict[RecordedSource, None] = {}
        unknown: dict[str, None] = {}
        for model in models:
            chain = list(_recorded(Path(model)))
            sources |= dict.fromkeys(chain)
            if not chain:
                unknown[model] = None
        return cls(tuple(sources), tuple(unknown))


def _recorded(model: Path, above: frozenset[Path] = frozenset()) -> Iterator[RecordedSource]:
    """The training records of a model, of the adapter that was merged into it, and of the base that it was tuned from.

    above: models that lead here; a folder that was written over since may name one of them.
    """
    manifest = read_manifest(model) if model.is_dir() else None
    recorded = (manifest or {}).get("config", {})
    # An extension of a vocabulary reads texts too, but learns from none.
    if manifest is not None and "data_path" in recorded and "new_tokens" not in manifest:
        sources = recorded.get("sources")
        listed = json.dumps(sources) if sources is not None else ""
        yield RecordedSource(str(recorded["data_path"]), manifest.get("data_sha256"), listed)
    names = [recorded.get(name) for name in ("lora_adapter_path", "base_model_path", "model_name")]
    for below in [*(recorded.get("adapters") or []), *names]:
        if below and Path(below).resolve() not in (seen := above | {model.resolve()}):
            yield from _recorded(Path(below), seen)


@dataclass(frozen=True)
class Notes:
    """What is to be said beside the counts of a leak check: keys of _NOTES, and what their gaps are filled with."""

    said: tuple[tuple[str, dict[str, str]], ...] = ()

    def and_more(self, other: Notes) -> Notes:
        """These, and those of another."""
        return Notes(self.said + other.said)

    def text(self, language: Language = "en") -> str:
        """All of it, in one line."""
        return _BETWEEN[language].join(_NOTES[key][language].format(**gaps) for key, gaps in self.said)


CHOSEN_HERE = Notes((("chosen", {}),))
WEIGHT_CHOSEN_HERE = Notes((("weight", {}),))


def check_leaks(known: Provenance, dataset: EvaluationSet) -> tuple[LeakCheck | None, Notes]:
    """What the training records share with the evaluation set, and what else is to be said.

    None when there are no records to look at. Raises DataError when the user named some that cannot be read.
    """
    from ebr.data.evaluation.leaks import find_leaks
    from ebr.data.training.text_table import TextTable

    examples: list[Example] = []
    said: list[tuple[str, dict[str, str]]] = []
    for source in known.sources:
        try:
            files, found = source.read()
        except DataError as error:
            if source.sha256 is None:
                raise
            said.append(("unread", {"problem": str(error).splitlines()[0]}))
            continue
        examples += found
        if source.sha256 not in (None, hash_files(files)):
            said.append(("changed", {"data_path": source.data_path}))
    if known.unknown:
        said.append(("unknown", {"models": ", ".join(known.unknown)}))
    found_leaks = find_leaks(examples, dataset, TextTable.of(examples)) if examples else None
    return found_leaks, Notes(tuple(said))
