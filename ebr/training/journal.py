"""What is seen of a training run while it runs: the bar, the log, the brake."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ebr.data.files import write_json
from ebr.training.batches import BatchMaker


class EpochClock(TrainerCallback):
    """Tells the batch maker which epoch it is: draws and noise depend on it."""

    def __init__(self, batches: BatchMaker) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """The epoch is a fraction after a resume."""
        self.batches.epoch = int((state.epoch or 0) + 1e-9)


class ProgressBar(TrainerCallback):
    """One bar over the optimiser steps, with the latest figures behind it."""

    SHOWN: ClassVar = {"loss": "loss", "eval_loss": "eval", "eval_ndcg@10": "nDCG@10", "learning_rate": "lr"}

    def __init__(self) -> None:
        self.figures: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Start at the resumed step, so that the rate counts only what is done now."""
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fine-tune", unit="step", dynamic_ncols=True)

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

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Rewrite the file: a history is small, and a half-written one would be useless."""
        write_json(self.path, state.log_history)


class Brake(TrainerCallback):
    """Ctrl-C (or SIGTERM) ends the run after the step in hand, with a whole checkpoint; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.pulled = False

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Listen for the signals; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {number: signal.signal(number, self._pull) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _pull(self, number: int, frame: FrameType | None) -> None:
        if self.pulled:
            raise KeyboardInterrupt
        self.pulled = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Save, and stop."""
        if self.pulled:
            control.should_save = True
            control.should_training_stop = True
