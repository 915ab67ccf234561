"""What a tuned model's manifest says of its training, and the summary of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig
from ebr.data.files.write import write_json
from ebr.data.training.languages import writing_of
from ebr.training.plan import FinetunePlan

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.data.evaluation.comparison import Comparison
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.training.loop.fit import TrainingRecord


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
        "config": rerun_config(config).to_json(),
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


def rerun_config(config: FinetuneConfig) -> FinetuneConfig:
    """A record reruns the whole run, also when this one was resumed."""
    return config.model_copy(update={"resume_from_checkpoint": None})


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
