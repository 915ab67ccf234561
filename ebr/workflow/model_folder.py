"""The finished folder of a tuned model, and the report beside the run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig
from ebr.data.files.write import FOLDER_MANIFEST, write_folder_aside, write_json
from ebr.data.training.languages import writing_of
from ebr.errors import MissingPackageError, require_extra
from ebr.model.card import CARD, TRAINING_CONFIG, read_report, write_card
from ebr.training.plan import FinetunePlan

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.data.evaluation.comparison import Comparison
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.retrieval.report.write import Report
    from ebr.training.loop.fit import TrainingRecord

log = logging.getLogger(__name__)

REPORT = "report.html"
LOSS_CURVE = "loss_curve.png"


def start_facts(start: LoadedModel, config: FinetuneConfig) -> dict[str, Any]:
    """What a model is before it is tuned, for the manifest of what it becomes."""
    from ebr.model.adapters.adapted import base_of
    from ebr.model.base_card import base_card
    from ebr.model.origin import resolve_model, weight_files_digest

    base = base_of(start.model)  # under an adapter that is tuned further
    source = base.source if base else start.source or resolve_model(config.model_name)
    quantised = config.finetune_type == "qlora"
    return {
        "base_model": source.name,
        "base_card": base_card(source),
        "base_sha256": base.sha256 if base else start.sha256,
        **({"base_files_sha256": weight_files_digest(source)} if quantised else {}),
        **({"start_model": config.model_name, "start_sha256": start.sha256} if base else {}),
    }


def model_manifest(
    model: SentenceTransformer,
    config: FinetuneConfig,
    plan: FinetunePlan,
    start: Mapping[str, Any],
    data_sha256: str,
    record: TrainingRecord,
) -> dict[str, Any]:
    """Where a tuned model comes from, and what whoever uses it must know. start: see start_facts."""
    from ebr.model.encoder.loaded import LoadedModel

    return {
        "kind": "model",
        "config": _rerun(config).to_json(),
        **start,
        "data_sha256": data_sha256,
        "n_train": len(plan.train),
        "n_validation": len(plan.validation),
        "data": _data(plan),
        **dataclasses.asdict(writing_of(plan.records())),
        "n_steps": record.n_steps,
        "weights_step": record.weights_step,
        "trainable_parameters": record.trainable_parameters,
        "total_parameters": record.all_parameters,
        **LoadedModel.of(model).facts(),
    }


def _data(plan: FinetunePlan) -> list[dict[str, Any]]:
    """The sources of a run, or its files, by names that say nothing of where they lie."""
    if not plan.sources:
        return [{"name": file.name} for file in plan.files]
    return [
        {"name": Path(source.name).name, "n_records": len(source.examples), "weight": source.weight} for source in plan.sources
    ]


def _rerun(config: FinetuneConfig) -> FinetuneConfig:
    """A record reruns the whole run, also when this one was resumed."""
    return config.model_copy(update={"resume_from_checkpoint": None})


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
        write_json(aside / TRAINING_CONFIG, _rerun(config).model_dump(mode="json", by_alias=True))
        try:
            if report:
                write_json(aside / "evaluation.json", report.main.contrasts[0].comparison.to_json())
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


def write_summary(
    plan: FinetunePlan, config: FinetuneConfig, folder: Path, record: TrainingRecord, comparison: Comparison | None
) -> None:
    """One JSON that says what a finished run did; folder: where its model is."""
    from ebr.training.loop.layouts import SUMMARY

    write_json(
        plan.layout.work / SUMMARY,
        {
            "model_path": str(folder),
            "base_model": config.model_name,
            "finetune_type": config.finetune_type,
            "n_train": len(plan.train),
            "n_validation": len(plan.validation),
            "total_steps": record.n_steps,
            "weights_step": record.weights_step,
            "stopped_early": record.stopped_early,
            "duration_s": round(record.duration_s, 1),
            "total_parameters": record.all_parameters,
            "trainable_parameters": record.trainable_parameters,
            "epochs": record.epochs,
            "final_loss": record.epochs[-1]["average_loss"] if record.epochs else None,
            "best_epoch_loss": min((epoch["average_loss"] for epoch in record.epochs), default=None),
            "warnings": [warning.to_json() for warning in record.warnings],
            "recoveries": list(record.recoveries),
            "evaluation": comparison.to_json() if comparison else None,
        },
    )
