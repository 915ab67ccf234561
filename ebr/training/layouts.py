"""Where a front end puts what training makes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ebr.training.checkpoints import step_of, whole_checkpoints

FINISHED = "finished"


@dataclass(frozen=True)
class Layout:
    """`final` is the finished model; `work` holds checkpoints and TensorBoard logs while, and after, it is made."""

    final: Path
    work: Path

    def begin(self) -> str | None:
        """Make room for a new run. An interrupted run is set aside, never deleted: returns one line that says so."""
        notice = None
        if self.work.exists() and not (self.work / FINISHED).exists() and whole_checkpoints(self.work):
            names = (self.work.with_name(f"{self.work.name}.interrupted-{number}") for number in count(1))
            aside = next(name for name in names if not name.exists())
            self.work.replace(aside)
            notice = f"an interrupted run was set aside in {aside}; to go on with one, use resume_from_checkpoint"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        return notice

    def go_on(self, checkpoint: Path) -> Path:
        """Take up the run that a checkpoint belongs to, and return where the checkpoint is then.

        A run that was set aside moves back; what is in its place is set aside in turn. Later checkpoints go: the run writes
        them again, and until then they would pass for its newest.
        """
        if checkpoint.resolve().parent != self.work.resolve():
            self.begin()
            self.work.rmdir()
            checkpoint.parent.replace(self.work)
        for later in self.work.glob("checkpoint-*"):
            if step_of(later) > step_of(checkpoint):
                shutil.rmtree(later)
        (self.work / FINISHED).unlink(missing_ok=True)
        return self.work / checkpoint.name

    def end(self) -> None:
        """Mark the run finished: its checkpoints are no longer work that could be lost."""
        (self.work / FINISHED).touch()


def pair_layout(output_dir: Path, model_short_name: str, finetune_type: str) -> Layout:
    """Where `ebr finetune` writes: <output_dir>/<model>-peft-lora, and beside it the same name with .run."""
    name = f"{model_short_name}-peft-{finetune_type}"
    return Layout(final=output_dir / name, work=output_dir / f"{name}.run")
