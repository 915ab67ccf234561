"""The engine under both front ends: examples in, a tuned model and the story of its training out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from datasets import Dataset
from ebr.config import FinetuneConfig
from ebr.data.examples import Example
from ebr.errors import ConfigError, Interrupted
from ebr.model.adapters import attach_lora, check_finite, train_every_weight, trainable_share
from ebr.model.encoder import fingerprint, set_prompts
from ebr.model.quantization import check_bitsandbytes
from ebr.training import checkpoints
from ebr.training.arguments import count_steps, steps_per_epoch, training_arguments
from ebr.training.batches import BatchMaker, Noise
from ebr.training.journal import Brake, EpochClock, EpochSaver, LogFile, ProgressBar, StepJournal
from ebr.training.layouts import HISTORY, TRACKING
from ebr.training.losses import ContrastiveLoss
from ebr.training.processes import ALONE, Processes
from ebr.training.trainer import EmbeddingTrainer, Evaluate, RetrievalEvaluator


@dataclass(frozen=True)
class TrainingRecord:
    """What a finished run did."""

    history: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    """Average loss of each epoch."""
    n_steps: int
    weights_step: int
    """The step whose weights the model has now: the best one under early stopping, else the last."""
    stopped_early: bool
    trainable_parameters: int
    all_parameters: int
    duration_s: float


def prepare_model(model: SentenceTransformer, config: FinetuneConfig) -> None:
    """Seed, settle the prompts and what is trained, so that the same seed starts from the same weights."""
    set_seed(config.seed)
    set_prompts(model, prompt=config.prompt, query_prompt=config.query_prompt, passage_prompt=config.passage_prompt)
    if config.finetune_type == "full":
        train_every_weight(model)
        return
    attach_lora(
        model,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=config.target_modules,
    )


def check_machine(config: FinetuneConfig) -> None:
    """Refuse what this machine cannot do: float16 without a GPU, a tracker or bitsandbytes that is not installed.

    Raises ConfigError or MissingPackageError.
    """
    if config.fp16 and not torch.cuda.is_available():
        # accelerate would skip it in silence
        raise ConfigError("fp16: needs a GPU and there is none; use bf16, or neither")
    installed = {"tensorboard", "none", *get_available_reporting_integrations()}
    missing = [name for name in config.report_to if name not in installed]
    if missing:
        there = ", ".join(sorted(installed))
        raise ConfigError(f"{config.spelling('report_to')}: {', '.join(missing)} is not installed here; there is {there}")
    if config.finetune_type == "qlora":
        check_bitsandbytes()


def fine_tune(
    model: SentenceTransformer,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: FinetuneConfig,
    *,
    work: Path,
    record: Mapping[str, Any],
    resume_from: Path | None = None,
    evaluate: Evaluate | None = None,
    processes: Processes = ALONE,
) -> TrainingRecord:
    """Train a prepared model in place, with checkpoints and logs in `work`.

    record: see run_record. resume_from: a whole checkpoint of the same run, in `work`. evaluate: judged beside the validation
    loss, every eval_steps and at the end; it decides early stopping where given.
    Raises Interrupted after Ctrl-C, once a whole checkpoint is written; ModelError when the weights diverged to nan.
    """
    started = time.monotonic()
    trainer = _build(model, train, validation, config, work, record, evaluate, processes)
    with trainer.brake.armed():
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if trainer.brake.pulled and trainer.state.global_step < trainer.state.max_steps:
        newest = checkpoints.whole_checkpoints(work)[-1]
        raise Interrupted(
            f"stopped after step {trainer.state.global_step}; saved in {newest}\ngo on with --resume_from_checkpoint true"
        )
    state = trainer.state
    best = config.early_stopping_patience and state.best_global_step
    if best:
        trainer.load_best()
    check_finite(model)
    trainable, total = trainable_share(model)
    return TrainingRecord(
        history=state.log_history,
        epochs=trainer.journal.epochs(),
        n_steps=state.global_step,
        weights_step=best or state.global_step,
        stopped_early=state.global_step < state.max_steps,
        trainable_parameters=trainable,
        all_parameters=total,
        duration_s=time.monotonic() - started,
    )


def run_record(
    model: SentenceTransformer, config: FinetuneConfig, data_sha256: str, processes: Processes = ALONE
) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed: the options, the data, the prepared model, how many share a batch."""
    return {
        "config": config.to_json(),
        "data_sha256": data_sha256,
        "base_sha256": fingerprint(model),
        "processes": processes.count,
    }


def _build(
    model: SentenceTransformer,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: FinetuneConfig,
    work: Path,
    record: Mapping[str, Any],
    evaluate: Evaluate | None,
    processes: Processes,
) -> EmbeddingTrainer:
    batches = BatchMaker(train, validation, model.preprocess, model.prompts, config.neg_nums, config.seed, _noise(config))
    n_train, n_all = len(train), len(train) + len(validation)
    n_steps = count_steps(n_train, config, processes.count)
    trainer = EmbeddingTrainer(
        run_record=record,
        checkpoints_kept=config.save_total_limit,
        journal=StepJournal(
            work, model_info(model, config), steps_per_epoch(n_train, config, processes.count), n_steps, processes
        ),
        epoch_saver=EpochSaver(config.save_on_epoch_end),
        brake=Brake(processes),
        processes=processes,
        callbacks=_callbacks(config, work, batches, processes),
        model=model,
        args=training_arguments(
            config, work, n_steps, device=model.device, validates=n_all > n_train, retrieves=evaluate is not None
        ),
        train_dataset=Dataset.from_dict({"row": range(n_train)}),
        eval_dataset=Dataset.from_dict({"row": range(n_train, n_all)}) if validation else None,
        loss=ContrastiveLoss(
            model,
            batches.allowed,
            temperature=config.temperature,
            label_smoothing=config.label_smoothing,
            l1=config.l1_regularization,
            gather_from=processes if config.gather_negatives and processes.count > 1 else None,
        ),
        evaluator=RetrievalEvaluator(evaluate) if evaluate else None,
        data_collator=batches,
    )
    trainer.remove_callback(PrinterCallback)  # our bar shows the figures, and the log file keeps them
    return trainer


def model_info(model: SentenceTransformer, config: FinetuneConfig) -> dict[str, Any]:
    """What is trained, for the logs."""
    trainable, total = trainable_share(model)
    return {
        "base_model": config.model_name,
        "finetune_type": config.finetune_type,
        "total_parameters": total,
        "trainable_parameters": trainable,
    }


def _noise(config: FinetuneConfig) -> Noise | None:
    if not config.noise_enabled or config.noise_type == "none":
        return None
    return Noise(config.noise_type, config.noise_prob, frozenset(config.noise_apply_to_fields))


def _callbacks(config: FinetuneConfig, work: Path, batches: BatchMaker, processes: Processes) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [EpochClock(batches)]
    if processes.is_main:
        callbacks += [ProgressBar(), LogFile(work / HISTORY)]
    if processes.is_main and "tensorboard" in config.report_to:
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(log_dir=str(work / TRACKING))))
    if config.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience, config.early_stopping_threshold))
    return callbacks
