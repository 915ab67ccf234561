"""The engine under both front ends: examples in, a tuned model and the story of its training out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from datasets import Dataset
from ebr.config import FinetuneConfig
from ebr.data.examples import Example
from ebr.errors import ConfigError, Interrupted
from ebr.model.adapters import attach_lora, check_finite, load_adapter_weights, trainable_share
from ebr.model.encoder import fingerprint, quiet_files, set_prompts
from ebr.training import checkpoints
from ebr.training.batches import BatchMaker, Noise
from ebr.training.journal import Brake, EpochClock, LogFile, ProgressBar
from ebr.training.losses import ContrastiveLoss

Evaluate = Callable[[SentenceTransformer, int], dict[str, float]]
"""(model, optimiser step) → metrics by name; 'ndcg@10' among them."""

RETRIEVAL_METRIC = "ndcg@10"
LOG_FILE = "training_log.json"


@dataclass(frozen=True)
class TrainingRecord:
    """What a finished run did."""

    history: list[dict[str, Any]]
    n_steps: int
    weights_step: int
    """The step whose weights the model has now: the best one under early stopping, else the last."""
    stopped_early: bool
    trainable_parameters: int
    all_parameters: int
    duration_s: float


def prepare_model(model: SentenceTransformer, config: FinetuneConfig) -> None:
    """Seed, settle the prompts, freeze the base and attach the adapter, so that the same seed starts from the same weights."""
    set_seed(config.seed)
    set_prompts(model, prompt=config.prompt, query_prompt=config.query_prompt, passage_prompt=config.passage_prompt)
    attach_lora(
        model,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=config.target_modules,
    )


def check_machine(config: FinetuneConfig) -> None:
    """Refuse what this machine cannot do: float16 without a GPU, a tracker that is not installed. Raises ConfigError."""
    if config.fp16 and not torch.cuda.is_available():
        # accelerate would skip it in silence
        raise ConfigError("fp16: needs a GPU and there is none; use bf16, or neither")
    installed = {"tensorboard", "none", *get_available_reporting_integrations()}
    missing = [name for name in config.report_to if name not in installed]
    if missing:
        raise ConfigError(f"report_to: {', '.join(missing)} is not installed here; there is {', '.join(sorted(installed))}")


def fine_tune(
    model: SentenceTransformer,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: FinetuneConfig,
    *,
    work: Path,
    data_sha256: str,
    resume_from: Path | None = None,
    evaluate: Evaluate | None = None,
) -> TrainingRecord:
    """Train a prepared model in place, with checkpoints and logs in `work`.

    resume_from: a whole checkpoint of the same run, in `work`. evaluate: judged beside the validation loss, every eval_steps
    and at the end; it decides early stopping where given.
    Raises Interrupted after Ctrl-C, once a whole checkpoint is written; ModelError when the weights diverged to nan.
    """
    started = time.monotonic()
    brake = Brake()
    trainer = _build(model, train, validation, config, work, data_sha256, evaluate, brake)
    with brake.armed():
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if brake.pulled and trainer.state.global_step < trainer.state.max_steps:
        newest = checkpoints.whole_checkpoints(work)[-1]
        raise Interrupted(
            f"stopped after step {trainer.state.global_step}; saved in {newest}\ngo on with --resume_from_checkpoint true"
        )
    check_finite(model)
    trainable, total = trainable_share(model)
    state = trainer.state
    best = config.early_stopping_patience and state.best_model_checkpoint
    return TrainingRecord(
        history=state.log_history,
        n_steps=state.global_step,
        weights_step=checkpoints.step_of(Path(state.best_model_checkpoint)) if best else state.global_step,
        stopped_early=state.global_step < state.max_steps,
        trainable_parameters=trainable,
        all_parameters=total,
        duration_s=time.monotonic() - started,
    )


def run_record(model: SentenceTransformer, config: FinetuneConfig, data_sha256: str) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed: the options, the data, and the prepared model before its first step."""
    return {"config": config.to_json(), "data_sha256": data_sha256, "base_sha256": fingerprint(model)}


def count_steps(n_examples: int, config: FinetuneConfig) -> int:
    """Optimiser steps of a whole run."""
    batches = math.ceil(n_examples / config.train_batch_size)
    return config.max_steps or math.ceil(batches / config.gradient_accumulation_steps) * config.num_epochs


class EmbeddingTrainer(SentenceTransformerTrainer):
    """sentence-transformers' trainer, with checkpoints that are whole or do not count, and adapters that reload exactly."""

    def __init__(self, *, run_record: Mapping[str, Any], checkpoints_kept: int, **kwargs: Any) -> None:  # noqa: ANN401
        self.run_record = run_record
        self.checkpoints_kept = checkpoints_kept
        super().__init__(**kwargs)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: making one encodes rows before training begins."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        checkpoints.unmark(checkpoint)  # the mark of an earlier write must not vouch for this one
        with quiet_files():
            super()._save_checkpoint(model, trial)
        checkpoints.mark_whole(checkpoint, self.run_record)
        checkpoints.keep_newest(folder, self.checkpoints_kept, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        # The stock way loads the base again, unquantised, and copies what fits.
        load_adapter_weights(self.model, Path(checkpoint_path))

    def _load_best_model(self) -> None:
        # The stock way logs a failure and goes on with the last weights.
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class _RetrievalEvaluator(SentenceEvaluator):
    """Hands the trainer's evaluations to a plain function."""

    def __init__(self, evaluate: Evaluate) -> None:
        super().__init__()
        self.evaluate = evaluate

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        return self.evaluate(model, steps)


def _build(
    model: SentenceTransformer,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: FinetuneConfig,
    work: Path,
    data_sha256: str,
    evaluate: Evaluate | None,
    brake: Brake,
) -> EmbeddingTrainer:
    batches = BatchMaker(train, validation, model.preprocess, model.prompts, config.neg_nums, config.seed, _noise(config))
    n_train, n_all = len(train), len(train) + len(validation)
    trainer = EmbeddingTrainer(
        run_record=run_record(model, config, data_sha256),
        checkpoints_kept=config.save_total_limit,
        model=model,
        args=_arguments(config, work, n_train, device=model.device, validates=n_all > n_train, retrieves=evaluate is not None),
        train_dataset=Dataset.from_dict({"row": range(n_train)}),
        eval_dataset=Dataset.from_dict({"row": range(n_train, n_all)}) if validation else None,
        loss=ContrastiveLoss(
            model, temperature=config.temperature, label_smoothing=config.label_smoothing, l1=config.l1_regularization
        ),
        evaluator=_RetrievalEvaluator(evaluate) if evaluate else None,
        data_collator=batches,
        callbacks=_callbacks(config, work, batches, brake),
    )
    trainer.remove_callback(PrinterCallback)  # our bar shows the figures, and the log file keeps them
    return trainer


def _noise(config: FinetuneConfig) -> Noise | None:
    if not config.noise_enabled or config.noise_type == "none":
        return None
    return Noise(config.noise_type, config.noise_prob, frozenset(config.noise_apply_to_fields))


def _arguments(
    config: FinetuneConfig, work: Path, n_train: int, *, device: torch.device, validates: bool, retrieves: bool
) -> SentenceTransformerTrainingArguments:
    """Our options in the trainer's words."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.num_epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.train_batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio,  # below 1 the trainer reads it as a share
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        # transformers 5.20 knows no other name, 5.23 calls it deprecated when it is not None.
        gradient_checkpointing=config.gradient_checkpointing or None,
        dataloader_num_workers=config.dataloader_num_workers,
        dataloader_pin_memory=config.dataloader_pin_memory and device.type == "cuda",
        use_cpu=device.type == "cpu",
        fp16=config.fp16,
        bf16=config.bf16,
        seed=config.seed,
        **_evaluation_arguments(config, validates=validates, retrieves=retrieves),
        restore_callback_states_from_checkpoint=True,
        logging_steps=_logging_steps(count_steps(n_train, config)),
        report_to=[name for name in config.report_to if name not in ("tensorboard", "none")] or "none",
        logging_nan_inf_filter=False,  # or a NaN would be logged as a loss of zero
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several GPUs in one process would mean DataParallel, which splits each batch's negatives
    return arguments


def _evaluation_arguments(config: FinetuneConfig, *, validates: bool, retrieves: bool) -> dict[str, Any]:
    """When to evaluate and to save, and what early stopping goes by."""
    stops_early = config.early_stopping_patience > 0
    save_steps = config.eval_steps if stops_early else config.save_steps
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{RETRIEVAL_METRIC}" if retrieves else "eval_loss",
        "greater_is_better": retrieves,
    }
    return {
        "eval_strategy": "steps" if validates or retrieves else "no",
        "eval_steps": config.eval_steps,
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 1,
        **(best if stops_early else {}),
    }


def _logging_steps(n_steps: int) -> int:
    """About a hundred records a run, at least one every ten steps; at most about two thousand: each rewrites the log."""
    return max(1, min(10, n_steps // 100), n_steps // 2000)


def _callbacks(config: FinetuneConfig, work: Path, batches: BatchMaker, brake: Brake) -> list[TrainerCallback]:
    callbacks = [EpochClock(batches), ProgressBar(), LogFile(work / LOG_FILE), brake]
    if "tensorboard" in config.report_to:
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(log_dir=str(work / "runs"))))
    if config.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience, config.early_stopping_threshold))
    return callbacks
