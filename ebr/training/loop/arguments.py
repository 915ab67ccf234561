"""Our options in the trainer's words, and how many steps they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments

from ebr.config import FinetuneConfig
from ebr.training.batches.sampling import batches_per_epoch, is_needed
from ebr.training.resources.mixed_precision import mixed_precision

RETRIEVAL_METRIC = "ndcg@10"


def steps_per_epoch(
    n_examples: int, config: FinetuneConfig, n_processes: int = 1, *, of_each: Sequence[tuple[int, float]] = ()
) -> int:
    """Optimiser steps of an epoch: batches are dealt to the processes, and accumulated.

    of_each: rows and weight of each source, where there are several.
    """
    rows, weights = [rows for rows, _ in of_each] or [n_examples], [weight for _, weight in of_each] or [1.0]
    if is_needed(weights, group_by_length=config.group_by_length):
        batches = batches_per_epoch(rows, weights, config.train_batch_size, n_processes) // n_processes
    else:
        batches = math.ceil(n_examples / (config.train_batch_size * n_processes))
    return math.ceil(batches / config.gradient_accumulation_steps)


def count_steps(
    n_examples: int, config: FinetuneConfig, n_processes: int = 1, *, of_each: Sequence[tuple[int, float]] = ()
) -> int:
    """Optimiser steps of a whole run."""
    return config.max_steps or steps_per_epoch(n_examples, config, n_processes, of_each=of_each) * config.num_epochs


def training_arguments(
    config: FinetuneConfig, work: Path, n_steps: int, *, device: torch.device, validates: bool, retrieves: bool
) -> SentenceTransformerTrainingArguments:
    """Our options in the trainer's words."""
    precision = mixed_precision(config)
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
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        dataloader_num_workers=config.dataloader_num_workers,
        dataloader_pin_memory=config.dataloader_pin_memory and device.type == "cuda",
        use_cpu=device.type == "cpu",
        dataloader_drop_last=True,  # or, with several processes, a warning that it is set; taken back below
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        seed=config.seed,
        **_evaluation_arguments(config, validates=validates, retrieves=retrieves),
        restore_callback_states_from_checkpoint=True,
        logging_steps=_logging_steps(n_steps),
        # Gradients are averaged once a step by the trainer: DDP's own hooks stay idle.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        report_to=[name for name in config.report_to if name not in ("tensorboard", "none")] or "none",
        logging_nan_inf_filter=False,  # or a NaN would be logged as a loss of zero
        disable_tqdm=True,
    )
    arguments.dataloader_drop_last = False  # every record counts; see EmbeddingTrainer.get_train_dataloader
    # A launcher's own setting would win over what our options, and every record of them, say.
    arguments.mixed_precision = precision
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
