"""What a fine-tuning has made: the model, its log, and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.data.result_tables import DataFrame, Fact, Part, Shown, Table, fact_lines

if TYPE_CHECKING:
    from ebr.data.evaluation.calibration import Calibration
    from ebr.data.evaluation.comparison import Comparison
    from ebr.training.loop.fit import TrainingRecord

_METRIC_MEANINGS = (
    "nDCG@10: quality of the first ten, 1 = the best possible order; MRR@10: 1 / rank of the first right document;",
    "Recall@k: share of the right documents that are among the first k. All 0..1, higher is better.",
)


@dataclass(frozen=True)
class FinetuneResult(Shown):
    """A finished fine-tuning run."""

    model_path: Path
    record: TrainingRecord
    comparison: Comparison | None
    loss_curve: Path | None
    report: Path | None = None
    """The evidence, as a page: base against tuned."""
    forgetting: Comparison | None = None
    """The same on the set of something else."""
    thresholds: tuple[tuple[str, Calibration], ...] = ()
    """Of base and tuned on the evaluation set, by what they are called."""

    def summary(self) -> str:
        """What was made, where, and whether it is better."""
        lines = fact_lines(self._facts(), 12)
        if self.comparison:
            lines += ["", self.comparison.table()]
        if self.forgetting:
            lines += ["", f"forgetting, on {self.forgetting.dataset}:", self.forgetting.table()]
        return "\n".join([*lines, "", *_METRIC_MEANINGS] if self.comparison else lines)

    def parts(self) -> list[Part]:
        """The loss curve; what was made and where; base against tuned."""
        curve: list[Part] = [self.loss_curve] if self.loss_curve else []
        parts = [*curve, self._facts(), *(self.comparison.parts() if self.comparison else [])]
        if self.forgetting:
            parts += [f"forgetting, on {self.forgetting.dataset}:", *self.forgetting.parts()]
        return [*parts, "\n".join(_METRIC_MEANINGS)] if self.comparison else parts

    @property
    def log(self) -> Table:
        """The training log, a row for each step with figures: step, epoch, loss, learning_rate, and what else was logged."""
        by_step: dict[int, dict[str, Any]] = {}
        for entry in self.record.history:
            if "train_runtime" not in entry:  # the last one sums the run up
                by_step.setdefault(entry["step"], {}).update(entry)
        return Table.of(by_step.values(), ("step", "epoch", "loss", "learning_rate"))

    def to_frame(self) -> DataFrame:
        """The training log; comparison.to_frame() is base against tuned."""
        return self.log.to_frame()

    def _facts(self) -> list[Fact]:
        record = self.record
        share = record.trainable_parameters / record.all_parameters
        how = f"best: step {record.weights_step}, " if record.weights_step != record.n_steps else ""
        return [
            ("model", str(self.model_path)),
            ("steps", f"{record.n_steps} in {record.duration_s:.0f} s ({how}{share:.2%} of the weights trained)"),
            *(("warning", warning.line()) for warning in record.warnings),
            *(("memory", line) for line in record.recoveries),
            *(("threshold", f"{name}: {calibration.line()}") for name, calibration in self.thresholds),
            *([("loss curve", str(self.loss_curve))] if self.loss_curve else []),
            *([("report", str(self.report))] if self.report else []),
        ]
