"""Checkpoints that are whole or do not count.

A checkpoint is written aside. A mark, written last, lists its files and sizes, its step and what was trained; without a mark
that fits, a checkpoint is never resumed from.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ebr.config import FinetuneConfig
from ebr.config.shared.objective import INFO_NCE, reads_same_answer
from ebr.data.files.asides import put_folder
from ebr.data.files.write import read_json, write_json
from ebr.errors import ConfigError
from ebr.model.files.identity import differences

MARK = "ebr_checkpoint.json"
NAME = re.compile(r"checkpoint-(epoch-)?\d+")
# Options that may change between the runs: they move no weight but by rounding and by where dropout falls, or the record
# compares what they point to. A run that died for want of memory goes on with smaller micro-batches.
_FREE = {
    "activation_memory_gb", "base_model_path", "data_path", "dataloader_num_workers", "dataloader_pin_memory",
    "eval_dataset", "forgetting_dataset", "micro_batch_tokens", "model_name", "output_dir", "report_to",
    "resume_from_checkpoint", "save_on_epoch_end", "save_steps", "save_total_limit", "token_cache", "trust_remote_code",
}  # fmt: skip


def step_name(step: int) -> str:
    """The folder of a checkpoint that is one of a series, of which the oldest go."""
    return f"checkpoint-{step}"


def epoch_name(epoch: int) -> str:
    """The folder of a checkpoint that was asked for at the end of an epoch, and stays."""
    return f"checkpoint-epoch-{epoch}"


def put_in_place(aside: Path, checkpoint: Path, record: Mapping[str, Any], step: int) -> None:
    """Mark a checkpoint that was written aside as whole, and give it its name."""
    write_json(aside / MARK, {"files": _sizes(aside), "step": step, **record})
    put_folder(aside, checkpoint, old=aside.with_name(f"{aside.name}.old"))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that the mark lists is there with its size."""
    try:
        return bool(read_json(checkpoint / MARK)["files"] == _sizes(checkpoint))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARK)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written; -1 when it does not say."""
    try:
        return int(read_json(checkpoint / MARK)["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def whole_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest step first."""
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and is_whole(path)]
    return sorted(found, key=lambda path: (step_of(path), path))


def checkpoint_at(folder: Path, step: int) -> Path | None:
    """The whole checkpoint of a folder that was written after this step."""
    return next((path for path in whole_checkpoints(folder) if step_of(path) == step), None)


def keep_newest(folder: Path, limit: int, best_step: int | None) -> None:
    """Delete step checkpoints beyond the `limit` newest whole ones; the best one stays, and so do those of epochs."""
    series = [path for path in folder.glob("checkpoint-*") if (name := NAME.fullmatch(path.name)) and not name[1]]
    whole = [path for path in whole_checkpoints(folder) if path in series]
    for path in series:
        if path not in whole[-limit:] and (best_step is None or step_of(path) != best_step):
            shutil.rmtree(path, ignore_errors=True)


def options_of(checkpoint: Path) -> dict[str, Any]:
    """The options of the run that wrote a whole checkpoint; one that came later had no effect then."""
    return _options(read_json(checkpoint / MARK))


def _options(mark: Mapping[str, Any]) -> dict[str, Any]:
    saved = {"loss": INFO_NCE, "contrastive_weight": 1.0} | dict(mark.get("config", {}))
    then = {"same_answer": "text"} if reads_same_answer(SimpleNamespace(**saved)) else {}
    return FinetuneConfig().to_json() | then | saved


def find_checkpoint(wanted: bool | Path, folder: Path) -> Path:
    """The checkpoint to resume from: the newest whole one of the folder, or the one named. Raises ConfigError."""
    if isinstance(wanted, Path):
        if not is_whole(wanted.expanduser()):
            raise ConfigError(
                f"resume_from_checkpoint {wanted}: is no whole checkpoint of ours ({MARK} is absent or does not fit)"
            )
        return wanted.expanduser().resolve()
    whole = whole_checkpoints(folder)
    if not whole:
        raise ConfigError(f"resume_from_checkpoint: no whole checkpoint in {folder}; start without it")
    return whole[-1]


def check_same_run(checkpoint: Path, record: Mapping[str, Any], *, prepared_sha256: Callable[[], str] | None = None) -> None:
    """Refuse to resume with other data, another base or other options: the result would be neither run. Raises ConfigError.

    prepared_sha256: hashes the base with its new adapter, which is what the marks of earlier versions hold of it.
    """
    saved = read_json(checkpoint / MARK)
    what = {"data_sha256": "the training data", "base_sha256": "the base model's weights"}
    differ = [key for key in what if saved.get(key) != record[key]]
    if "base_sha256" in differ and prepared_sha256 is not None and saved.get("base_sha256") == prepared_sha256():
        differ.remove("base_sha256")
    changed = [f"{what[key]} changed" for key in differ]
    if saved.get("processes", 1) != record.get("processes", 1):
        changed.append(f"there were {saved.get('processes', 1)} processes, are {record.get('processes', 1)}")
    if "architecture" in saved and saved["architecture"] != record["architecture"]:
        changed += differences(saved["architecture"], record["architecture"])
    if "spelling_sha256" in saved and saved["spelling_sha256"] != record["spelling_sha256"]:
        changed.append("the base model's tokenizer changed")
    before, now = _options(saved), record["config"]
    # Under early stopping the evaluation set picks the weights.
    free = _FREE - {"eval_dataset"} if now.get("early_stopping_patience") else _FREE
    changed += [
        f"{name} was {before.get(name)!r}, is {now[name]!r}"
        for name in now
        if name not in free and before.get(name) != now[name]
    ]
    if changed:
        raise ConfigError(
            f"resume_from_checkpoint {checkpoint}: " + "; ".join(changed) + "; set them back, or start without it"
        )
