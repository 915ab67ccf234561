"""The end of a fine-tuning: the model saved with its evidence, the run's folder marked finished, and what there is to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig
from ebr.data.files.write import reason_of
from ebr.data.result_tables import DataFrame, Fact, Part, Shown, Table, fact_lines
from ebr.data.speech import Ask, Say
from ebr.training.manifest import write_summary
from ebr.training.plan import FinetunePlan
from ebr.training.rescue import FinishedModel
from ebr.workflow.model_folder import LOSS_CURVE, REPORT, save_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.data.evaluation.comparison import Comparison
    from ebr.retrieval.report.write import Report
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
            *([("loss curve", str(self.loss_curve))] if self.loss_curve else []),
            *([("report", str(self.report))] if self.report else []),
        ]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model in memory, and what its folder says of it. n_bytes: about what the folder takes."""

    model: SentenceTransformer
    config: FinetuneConfig
    plan: FinetunePlan
    record: TrainingRecord
    manifest: Mapping[str, Any]
    n_bytes: int

    def finish(
        self, make_report: Callable[[], Report] | None, ask: Ask | None, say: Say
    ) -> tuple[FinetuneResult, Exception | None]:
        """Save the model with its evidence, and end the run's folder; with what kept a page or picture from being made.

        ask: see FinishedModel. Raises SaveError.
        """
        report, failures = None, list[Exception]()
        try:
            report = make_report() if make_report else None
        except Exception as error:  # hours of training are not lost to a page about them
            failures.append(error)

        def save(folder: Path) -> None:
            if failure := save_model(self.model, self.config, folder, self.record, report, self.manifest):
                failures.append(failure)

        folder = FinishedModel(save, self.plan.layout, self.record, self.n_bytes).saved(ask, say)
        comparison = report.main.contrasts[0].comparison if report else None
        forgetting = report.forgetting.contrasts[0].comparison if report and report.forgetting else None
        self._end_run(folder, comparison, say)
        curve, page = (path if path.is_file() else None for path in (folder / LOSS_CURVE, folder / REPORT))
        return FinetuneResult(folder, self.record, comparison, curve, page, forgetting), next(iter(failures), None)

    def _end_run(self, folder: Path, comparison: Comparison | None, say: Say) -> None:
        """The last files of the run's folder; the model is whole without them."""
        try:
            write_summary(self.plan, self.config, folder, self.record, comparison)
            self.plan.layout.end()
        except OSError as error:
            place = error.filename or self.plan.layout.work
            say(f"warning: the model is saved, but {place} could not be written ({reason_of(error)})")
