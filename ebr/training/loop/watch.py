"""The doctor while training: what goes wrong is said once, with its figures and what to do, and kept for the summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ebr.config.shared.objective import INFO_NCE, LOSSES
from ebr.data.files.write import read_json, reason_of, write_json
from ebr.training.loop import anomalies
from ebr.training.loop.anomalies import AnomalyDetector, ExplodingGradient, LossAtZero, NotFinite, Overfitting, ZeroGradient

_LEARNING_RATE, _DROPOUT = "lower {learning_rate}", "raise {lora_dropout}"
_NOISE, _DECAY, _DATA = "turn {noise_enabled} on", "raise {weight_decay}", "add training data"
_CLIPPING = "keep {max_grad_norm} above 0 and at most 1"
ADVICE: Mapping[str, Sequence[str]] = {
    anomalies.LOSS_AT_ZERO: (
        "add harder negatives (ebr mine) and raise {neg_nums}", "raise {train_batch_size}", _DATA, _LEARNING_RATE, _DROPOUT,
        _NOISE, _DECAY, "lower {num_epochs}",
    ),
    anomalies.OVERFITTING: (
        _LEARNING_RATE, _DROPOUT, _NOISE, _DECAY, _DATA, "keep the best weights: {early_stopping_patience} 3",
    ),
    anomalies.NOT_FINITE: (
        "stop the run", _LEARNING_RATE, "raise {warmup_ratio}", "with {fp16}, try {bf16} instead", _CLIPPING,
    ),
    anomalies.EXPLODING: (_LEARNING_RATE, "raise {warmup_ratio}", _CLIPPING, "raise {temperature}"),
    anomalies.DEAD: (
        "stop the run", "raise {learning_rate}", "check {target_modules}", "with {fp16}, try {bf16} instead",
        "with qlora on a CPU, try {quantization_bits} 8",
    ),
    anomalies.SLOW: (
        "look for another program that uses the machine, for swapping, for a hot or throttled processor",
        "lower {dataloader_num_workers} if memory is short",
    ),
    anomalies.NO_CHECKPOINT: (
        "make room on the disk of {output_dir}", "lower {save_total_limit}", "raise {save_on_epoch_end}, or set it to 0",
    ),
    anomalies.NO_LOG: ("make room on the disk of {output_dir}",),
    anomalies.NO_BEST: ("make room on the disk of {output_dir}", "train again, to the step that was best: {max_steps}"),
}  # fmt: skip
"""What to do about each anomaly, in the order to try it; options by their own names, in braces."""
_OF_ADAPTERS, _OF_QLORA = ("{lora_dropout}", "{target_modules}"), "qlora"


@dataclass(frozen=True)
class Warned:
    """One thing that went wrong, and when it was first seen."""

    name: str
    step: int
    what: str
    advice: str

    def line(self) -> str:
        """For people."""
        return f"warning at step {self.step}: {self.what}\n  {self.name}; in the order to try: {self.advice}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; from_json gives the same."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Warned:
        """What to_json gave."""
        return cls(str(record["name"]), int(record["step"]), str(record["what"]), str(record["advice"]))


def advice_on(name: str, spelling: Callable[[str], str], finetune_type: str = "lora", loss: str = INFO_NCE) -> str:
    """What to do about an anomaly, with the options of this way of tuning and this loss, as the front end spells them."""
    parts = [
        part
        for part in ADVICE[name]
        if not (finetune_type == "full" and any(option in part for option in _OF_ADAPTERS))
        and not (finetune_type != "qlora" and _OF_QLORA in part)
        and not ("{temperature}" in part and "temperature" not in LOSSES[loss].options)
    ]
    return "; ".join(parts).format_map(_Spelt(spelling))


class _Spelt(dict[str, str]):
    """Any option's name → how the front end spells it."""

    def __init__(self, spelling: Callable[[str], str]) -> None:
        super().__init__()
        self._spelling = spelling

    def __missing__(self, name: str) -> str:
        return self._spelling(name)


class TrainingWatch(TrainerCallback):
    """Looks at what the trainer logs and how long its steps take, and says what is wrong: each thing once, in the main process.

    say, spelling: where lines go, and how options are spelt in them. embed_probe: the (D,) vector of a fixed text as the model
    is now, without dropout; it runs in the main process alone, three times at most. path: a file that keeps the findings over a
    resume.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        spelling: Callable[[str], str],
        *,
        finetune_type: str = "lora",
        loss: str = INFO_NCE,
        embed_probe: Callable[[], np.ndarray] | None = None,
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.say, self.spelling, self.finetune_type, self.loss = say, spelling, finetune_type, loss
        self.embed_probe, self.path, self.clock = embed_probe, path, clock
        self.findings: list[Warned] = []
        self._state: TrainerState | None = None

    def unwritten(self, name: str, what: str) -> None:
        """A file of the run could not be written, and the run goes on without: said once a kind, as all else is."""
        if self._state is None or self._state.is_world_process_zero:
            self._note(name, self._state.global_step if self._state else 0, what, self._warn)

    def log_unwritten(self, error: OSError) -> None:
        """The same of a log, which is tried again whenever there is more to write."""
        place = Path(error.filename).name if error.filename else "a log"
        self.unwritten(anomalies.NO_LOG, f"{place} could not be written ({reason_of(error)}); the run goes on without")

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Look at the figures from before a resume as well; what they show was said then."""
        self._detectors: list[AnomalyDetector] = [
            NotFinite(args.fp16), ExplodingGradient(), Overfitting(), ZeroGradient(), LossAtZero(),
        ]  # fmt: skip
        self._slow = anomalies.SlowSteps()
        self._frozen: anomalies.FrozenVectors | None = None
        self._logged = 0  # the step of the latest training log
        self._since = self.clock()
        self._state = state
        if not state.is_world_process_zero:
            return
        self._take_up(state.global_step)
        for record in state.log_history:
            self._look(int(record["step"]), record, self._keep)
        self._logged = state.global_step
        if self.embed_probe is not None and anomalies.DEAD not in self._found():
            self._frozen = anomalies.FrozenVectors(self.embed_probe(), args.learning_rate)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: object
    ) -> None:
        """The figures come here, a few hundred times a run."""
        if not state.is_world_process_zero:
            return
        n_steps = state.global_step - self._logged
        self._look(state.global_step, logs, self._warn)
        if self._frozen is not None and self.embed_probe is not None and self._frozen.is_due(n_steps, logs):
            self._note(anomalies.DEAD, state.global_step, self._frozen.see(self.embed_probe()), self._warn)
        self._since = self.clock()

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """What is done between epochs is no step's time; nor is what follows."""
        self._since = self.clock()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """See on_epoch_begin."""
        self._since = self.clock()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """See on_epoch_begin."""
        self._since = self.clock()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Take the time. On a GPU a step's own is when it was handed over: over a window it comes to the same."""
        now = self.clock()
        seconds, self._since = now - self._since, now
        if state.is_world_process_zero and anomalies.SLOW not in self._found():
            self._note(anomalies.SLOW, state.global_step, self._slow.see(seconds), self._warn)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """A short run is over before the vectors were judged."""
        if self._frozen is not None and self.embed_probe is not None and self._frozen.is_due_at_end():
            self._note(anomalies.DEAD, state.global_step, self._frozen.see(self.embed_probe(), is_last=True), self._warn)

    def _look(self, step: int, figures: Mapping[str, Any], tell: Callable[[Warned], None]) -> None:
        """Show one log to every detector."""
        if "loss" in figures:
            # The penalty on the weights is part of the loss, and says nothing about the texts.
            figures = {**figures, "loss": figures["loss"] - figures.get("l1_penalty", 0.0)}
        for detector in self._detectors:
            self._note(detector.name, step, detector.see(step, max(1, step - self._logged), figures), tell)
        if "loss" in figures:
            self._logged = step

    def _note(self, name: str, step: int, what: str | None, tell: Callable[[Warned], None]) -> None:
        if what is not None and name not in self._found():
            tell(Warned(name, step, what, advice_on(name, self.spelling, self.finetune_type, self.loss)))

    def _found(self) -> set[str]:
        return {finding.name for finding in self.findings}

    def _keep(self, finding: Warned) -> None:
        self.findings.append(finding)
        self._write()

    def _warn(self, finding: Warned) -> None:
        self._keep(finding)
        self.say(finding.line())

    def _take_up(self, step: int) -> None:
        """The findings of the steps before a resume; those of steps that are done again are found again."""
        if self.path and self.path.is_file():
            before = [Warned.from_json(record) for record in read_json(self.path)]
            kept = [finding for finding in before if finding.step <= step]
            # What could not be written before the first step is known already, and may be in the file.
            self.findings = [*kept, *(finding for finding in self.findings if finding not in kept)]
            self._write()

    def _write(self) -> None:
        if not self.path:
            return
        try:
            write_json(self.path, [kept.to_json() for kept in self.findings])
        except OSError as error:
            self.log_unwritten(error)
