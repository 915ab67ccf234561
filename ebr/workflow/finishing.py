"""The end of a fine-tuning: the model saved with its evidence, the run's folder marked finished, and what there is to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig
from ebr.data.files.write import reason_of
from ebr.data.speech import Ask, Say
from ebr.training.manifest import write_summary
from ebr.training.plan import FinetunePlan
from ebr.training.rescue import FinishedModel
from ebr.training.result import FinetuneResult
from ebr.workflow.model_folder import LOSS_CURVE, REPORT, save_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.data.evaluation.comparison import Comparison
    from ebr.retrieval.report.write import Report
    from ebr.training.loop.fit import TrainingRecord


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
        thresholds = tuple(report.main.thresholds_by_role().items()) if report else ()
        result = FinetuneResult(folder, self.record, comparison, curve, page, forgetting, thresholds)
        return result, next(iter(failures), None)

    def _end_run(self, folder: Path, comparison: Comparison | None, say: Say) -> None:
        """The last files of the run's folder; the model is whole without them."""
        try:
            write_summary(self.plan, self.config, folder, self.record, comparison)
            self.plan.layout.end()
        except OSError as error:
            place = error.filename or self.plan.layout.work
            say(f"warning: the model is saved, but {place} could not be written ({reason_of(error)})")
