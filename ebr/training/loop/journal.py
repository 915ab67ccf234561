"""What is seen of a training run while it runs: the bar, the log, the graceful stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from ebr.data.files.write import read_json, reason_of, write_json
from ebr.data.progress import progress_bar
from ebr.training.batches.collator import Collator
from ebr.training.batches.sampling import EpochBatches
from ebr.training.loop.layouts import EPOCHS, STEPS
from ebr.training.resources.processes import Processes

_ROUND = 1e-6
"""An epoch is a float in the trainer's state."""

Failed = Callable[[OSError], None]
"""Hears of a log that could not be written: a full disk costs the log, not the run."""


def _raise(error: OSError) -> None:
    raise error


def _write(path: Path, record: object, failed: Failed) -> None:
    try:
        write_json(path, record)
    except OSError as error:
        failed(error)


class EpochClock(TrainerCallback):
    """Tells the batch maker, and the sampler if it is ours, which epoch it is: draws and noise depend on it."""

    def __init__(self, batches: Collator, sampler: EpochBatches | None = None) -> None:
        self.batches = batches
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """The epoch is a fraction after a resume."""
        self.batches.epoch = int((state.epoch or 0) + _ROUND)
        if self.sampler is not None:
            self.sampler.set_epoch(self.batches.epoch)


class ProgressBar(TrainerCallback):
    """One bar over the optimiser steps, with the latest figures behind it."""

    SHOWN: ClassVar = {"loss": "loss", "eval_loss": "eval", "eval_ndcg@10": "nDCG@10", "learning_rate": "lr"}

    def __init__(self) -> None:
        self.figures: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Start at the resumed step, so that the rate counts only what is done now."""
        self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="fine-tune", unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """One step on."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: object
    ) -> None:
        """Show the latest figures."""
        self.figures.update({short: f"{logs[key]:.3g}" for key, short in self.SHOWN.items() if key in logs})
        self.bar.set_postfix(self.figures)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


class LogFile(TrainerCallback):
    """Keeps the whole history on disk, so that a crash leaves it readable."""

    def __init__(self, path: Path, failed: Failed = _raise) -> None:
        self.path = path
        self.failed = failed

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Rewrite the file: a history is small, and a half-written one would be useless."""
        _write(self.path, state.log_history, self.failed)


class Tracker(TensorBoardCallback):
    """TensorBoard's files, as far as they can be written."""

    tb_writer: Any

    def __init__(self, folder: Path, failed: Failed) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.failed = failed
        self._folder = folder
        super().__init__()
        self._SummaryWriter = None  # or the stock one would begin another where ours was given up
        with self._as_far_as_it_goes():
            self.tb_writer = SummaryWriter(log_dir=str(folder))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """The options."""
        with self._as_far_as_it_goes():
            super().on_train_begin(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """The figures."""
        with self._as_far_as_it_goes():
            super().on_log(args, state, control, logs=logs, **kwargs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """The end of the file."""
        with self._as_far_as_it_goes():
            super().on_train_end(args, state, control, **kwargs)

    @contextmanager
    def _as_far_as_it_goes(self) -> Iterator[None]:
        """Its writer has a thread of its own, which is dead after the first failure."""
        try:
            yield
        except OSError as error:
            self.tb_writer = None
            self.failed(OSError(error.errno, reason_of(error), str(self._folder)))


class StepJournal(TrainerCallback):
    """A record of every optimiser step, and the average loss of every epoch, as JSON in the run's folder.

    The loss of a step is the mean over its examples, in all processes. Files are rewritten at checkpoints, at the ends of
    epochs, and every hundredth of the run: between two writes only the records of a crash are lost, which a resume makes anew.
    """

    def __init__(
        self,
        folder: Path,
        model_info: Mapping[str, Any],
        steps_per_epoch: int,
        n_steps: int,
        processes: Processes,
        failed: Failed = _raise,
    ) -> None:
        self.folder = folder
        self.failed = failed
        self.model_info = model_info
        self.steps_per_epoch = steps_per_epoch
        self.interval = max(50, n_steps // 100)
        self.processes = processes
        self.records: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []  # of steps whose figures still wait on the device
        self._parts: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        """One batch's share of the step's loss."""
        self._parts.append(loss.detach())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Take up the records of the steps before a resume."""
        path = self.folder / STEPS
        if self.processes.is_main and path.is_file():
            self.records = [record for record in read_json(path)["steps"] if record["global_step"] <= state.global_step]
        self._since = time.monotonic()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: torch.optim.Optimizer,
        **kwargs: object,
    ) -> None:
        """The learning rate of the step in hand, before the scheduler moves it."""
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Note the step."""
        now, done = time.monotonic(), state.global_step - 1
        self.records.append(
            {
                "epoch": done // self.steps_per_epoch + 1,
                "step": done % self.steps_per_epoch + 1,
                "global_step": state.global_step,
                "loss": None,
                "learning_rate": self._learning_rate,
                "step_duration": round(now - self._since, 4),
                "timestamp": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            }
        )
        self._losses.append(torch.stack(self._parts).sum())
        self._parts.clear()
        self._since = now
        if state.global_step % self.interval == 0:
            self.write()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """An epoch's average is known."""
        self.write()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """What an evaluation takes is not the next step's time."""
        self._since = time.monotonic()

    def write(self) -> None:
        """Bring the figures from the device, and the files up to date."""
        if self._losses:
            means = self.processes.mean(torch.stack(self._losses).double()).tolist()
            for record, loss in zip(self.records[-len(means) :], means, strict=True):
                record["loss"] = loss
            self._losses.clear()
        if self.processes.is_main:
            _write(self.folder / STEPS, {"model_info": self.model_info, "steps": self.records}, self.failed)
            _write(self.folder / EPOCHS, self.epochs(), self.failed)

    def epochs(self) -> list[dict[str, Any]]:
        """Average loss and number of steps of each epoch."""
        by_epoch = groupby(self.records, key=lambda record: record["epoch"])
        losses = {epoch: [record["loss"] for record in records] for epoch, records in by_epoch}
        return [
            {"epoch": epoch, "average_loss": sum(values) / len(values), "steps": len(values)}
            for epoch, values in losses.items()
        ]


class EpochSaver(TrainerCallback):
    """Asks for a checkpoint at the end of every N-th epoch, by a name of its own."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.due: int | None = None
        """The epoch that the next checkpoint closes; None = it is one of the step series."""

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Only a whole epoch counts: max_steps and a graceful stop may end one early."""
        epoch = round(state.epoch or 0)
        if self.every and epoch % self.every == 0 and abs((state.epoch or 0) - epoch) < _ROUND:
            self.due = epoch
            control.should_save = True


class GracefulStop(TrainerCallback):
    """Ctrl-C (or SIGTERM) ends the run after the step in hand, with a whole checkpoint; a second Ctrl-C ends it at once."""

    def __init__(self, processes: Processes) -> None:
        self.asked = False
        self.processes = processes

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for the signals; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Save, and stop: all processes at the same step, whichever heard the signal."""
        self.asked = self.processes.any(self.asked)
        if self.asked:
            control.should_save = True
            control.should_training_stop = True
