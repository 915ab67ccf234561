"""What training and evaluation share: where the training records are, and what is to be said of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebr.config.options import Language
from ebr.data.evaluation_set import EvaluationSet
from ebr.data.files import hash_files, read_manifest
from ebr.errors import DataError

if TYPE_CHECKING:
    from ebr.data.leaks import LeakCheck


_NOTES = {
    "unknown": {
        "en": "no model names its training records; give train_data",
        "zh": "没有模型记录其训练数据；请用 train_data 给出",
    },
    "unread": {"en": "{problem}; give train_data", "zh": "{problem}；请用 train_data 给出"},
    "changed": {
        "en": "{data_path} changed since the model was tuned on it",
        "zh": "{data_path} 在模型微调之后有改动",
    },
}


@dataclass(frozen=True)
class TrainingSource:
    """Where training records are; sha256: of the files as a model's manifest recorded them, None where none did."""

    data_path: str
    sha256: str | None = None


def recorded_source(model: Path) -> TrainingSource | None:
    """What a model's manifest says of its training records, a merged model's by way of its adapter; None where it is silent."""
    manifest = read_manifest(model) if model.is_dir() else None
    recorded = (manifest or {}).get("config", {})
    if "lora_adapter_path" in recorded:  # a merged model: its adapter knows
        return recorded_source(Path(recorded["lora_adapter_path"]))
    if manifest is None or "data_path" not in recorded:
        return None
    return TrainingSource(str(recorded["data_path"]), manifest.get("data_sha256"))


def check_leaks(
    source: TrainingSource | None, dataset: EvaluationSet, language: Language = "en"
) -> tuple[LeakCheck | None, str]:
    """What the training records share with the evaluation set, and what else is to be said, in the language of the report.

    None when there are no records to look at. Raises DataError when the user named some that cannot be read.
    """
    from ebr.data.examples import Example, find_training_files
    from ebr.data.leaks import find_leaks
    from ebr.data.training_files import read_training_records

    if source is None:
        return None, _NOTES["unknown"][language]
    try:
        files = find_training_files(source.data_path, option="train_data")
        _, records = read_training_records(files)
    except DataError as error:
        if source.sha256 is None:
            raise
        return None, _NOTES["unread"][language].format(problem=str(error).splitlines()[0])
    changed = source.sha256 not in (None, hash_files(files))
    note = _NOTES["changed"][language].format(data_path=source.data_path) if changed else ""
    examples = (Example(record.query, record.positives, record.negatives) for record in records)
    return find_leaks(examples, dataset), note


def leak_line(leaks: LeakCheck | None, note: str) -> str:
    """One line on what training and evaluation share; loud where they share what they must not."""
    if leaks is None:
        return f"leak check not made: {note}"
    if not leaks.is_leak:
        return f"leak check: no evaluation query among {leaks.n_train_texts:,} training texts" + (f" ({note})" if note else "")
    return (
        f"LEAK: of {leaks.n_queries:,} evaluation queries {leaks.queries:,} stand in the training records "
        f"({leaks.answered:,} with an answer of theirs), {leaks.near_queries:,} more nearly so: the figures are too good"
    )
