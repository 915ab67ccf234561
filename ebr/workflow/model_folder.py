"""The finished folder of a tuned model, and the report beside the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig
from ebr.data.evaluation.comparison import EVALUATION_JSON
from ebr.data.files.write import FOLDER_MANIFEST, write_folder_aside, write_json
from ebr.errors import MissingPackageError, require_extra
from ebr.model.card import CARD, TRAINING_CONFIG, read_report, write_card
from ebr.training.manifest import rerun_config

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.retrieval.report.write import Report
    from ebr.training.loop.fit import TrainingRecord

log = logging.getLogger(__name__)

REPORT = "report.html"
LOSS_CURVE = "loss_curve.png"


def save_model(
    model: SentenceTransformer,
    config: FinetuneConfig,
    folder: Path,
    record: TrainingRecord,
    report: Report | None,
    manifest: Mapping[str, Any],
) -> Exception | None:
    """Write the finished folder whole, then swap it with the one before; returns what kept a page or picture from being made.

    Raises OSError when the model itself cannot be written.
    """
    from ebr.model.encoder.encoder import save_encoder
    from ebr.model.origin import public_name
    from ebr.retrieval.report.write import write_report
    from ebr.training.loop.layouts import HISTORY

    failure = None
    with write_folder_aside(folder) as aside:
        save_encoder(model, aside)
        write_json(aside / HISTORY, record.history)
        write_json(aside / TRAINING_CONFIG, rerun_config(config).model_dump(mode="json", by_alias=True))
        try:
            if report:
                write_json(aside / EVALUATION_JSON, report.main.evaluation_json())
                write_report(aside, report, "en")
            write_card(aside, public_name(folder), manifest, manifest, read_report(aside))
            _draw_curve(record, aside / LOSS_CURVE)
        except Exception as error:  # hours of training are not lost to a page about them
            failure = error
            for name in (REPORT, CARD, LOSS_CURVE):  # which the disk may have had room for half of
                (aside / name).unlink(missing_ok=True)
        write_json(aside / FOLDER_MANIFEST, manifest)
    return failure


def _draw_curve(record: TrainingRecord, path: Path) -> None:
    try:
        require_extra("report", f"{path.name}, which is left out,")
    except MissingPackageError as error:
        log.warning("%s", error)
        return
    from ebr.visualization.loss_plot import draw_loss_curve

    draw_loss_curve(_plain_history(record.history), path)


def _plain_history(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key.replace("eval_ndcg@10", "ndcg_at_10"): value for key, value in entry.items()} for entry in history]
