"""Where a front end puts what training makes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ebr.data.files import FOLDER_MANIFEST
from ebr.errors import ConfigError
from ebr.training.checkpoints import step_of, whole_checkpoints

HISTORY = "training_log.json"
STEPS = "detailed_training_logs.json"
EPOCHS = "training_losses.json"
SUMMARY = "training_summary_report.json"
TRACKING = "runs"
PARTIAL = ".partial"
"""A checkpoint while it is written."""
FINISHED = "finished"
_OWN = {HISTORY, STEPS, EPOCHS, SUMMARY, TRACKING, PARTIAL, FINISHED, "eval"}


@dataclass(frozen=True)
class Layout:
    """`final` is the finished model; `work` holds checkpoints and logs while, and after, it is made.

    `work` may hold other things too, `final` among them: only what a run makes is ever moved or deleted.
    """

    final: Path
    work: Path

    def check(self) -> None:
        """Refuse to replace a folder that is not a result of ours. Raises ConfigError."""
        if self.final.is_dir() and any(self.final.iterdir()) and not (self.final / FOLDER_MANIFEST).is_file():
            raise ConfigError(
                f"output_dir: {self.final} holds something that is not a model of ours; move it, or choose another"
            )

    def begin(self) -> str | None:
        """Make room for a new run. An interrupted run is set aside, never deleted: returns one line that says so."""
        notice = None
        if not (self.work / FINISHED).exists() and whole_checkpoints(self.work):
            names = (self.work.with_name(f"{self.work.name}.interrupted-{number}") for number in count(1))
            aside = next(name for name in names if not name.exists())
            _move(self.work, aside)
            notice = f"an interrupted run was set aside in {aside}; to go on with one, use resume_from_checkpoint"
        for path in _products(self.work):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.work.mkdir(parents=True, exist_ok=True)
        return notice

    def go_on(self, checkpoint: Path) -> Path:
        """Take up the run that a checkpoint belongs to, and return where the checkpoint is then.

        A run that was set aside moves back; what is in its place is set aside in turn. Later checkpoints go: the run writes
        them again, and until then they would pass for its newest.
        """
        step = step_of(checkpoint)
        if checkpoint.resolve().parent != self.work.resolve():
            self.begin()
            _move(checkpoint.parent, self.work)
        for later in self.work.glob("checkpoint-*"):
            if step_of(later) > step:
                shutil.rmtree(later)
        (self.work / FINISHED).unlink(missing_ok=True)
        return self.work / checkpoint.name

    def end(self) -> None:
        """Mark the run finished: its checkpoints are no longer work that could be lost."""
        (self.work / FINISHED).touch()


def _products(folder: Path) -> Iterator[Path]:
    """What a run made in a folder."""
    if folder.is_dir():
        yield from [path for path in folder.iterdir() if path.name in _OWN or path.name.startswith("checkpoint-")]


def _move(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in _products(source):
        path.replace(target / path.name)
    if not any(source.iterdir()):
        source.rmdir()


def pair_layout(output_dir: Path, model_short_name: str, finetune_type: str) -> Layout:
    """Where `ebr finetune` writes: <output_dir>/<model>-peft-lora (-peft-qlora, -full), and beside it the same with .run."""
    name = f"{model_short_name}-full" if finetune_type == "full" else f"{model_short_name}-peft-{finetune_type}"
    return Layout(final=output_dir / name, work=output_dir / f"{name}.run")


def triplet_layout(output_dir: Path) -> Layout:
    """Where `ebr train` writes: <output_dir>/final, and checkpoints and logs beside it."""
    return Layout(final=output_dir / "final", work=output_dir)
