"""The engine under both front ends: examples in, a tuned model and the story of its training out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from datasets import Dataset
from ebr.config import FinetuneConfig
from ebr.data.training.examples import Example
from ebr.errors import ConfigError, Interrupted, how_to_install
from ebr.model.adapters.attach import (
    adapter_settings,
    attach_lora,
    check_finite,
    continue_lora,
    token_rows,
    train_every_weight,
    trainable_share,
)
from ebr.model.compute.dropout import set_dropout
from ebr.model.encoder.encoder import COSINE
from ebr.model.encoder.loaded import LoadedModel
from ebr.model.encoder.prompts import set_prompts
from ebr.model.files.identity import architecture
from ebr.model.files.quantization import check_bitsandbytes
from ebr.model.vocabulary.new_tokens import new_tokens_of
from ebr.training.batches.collator import Collator
from ebr.training.batches.sampling import EpochBatches, is_needed
from ebr.training.loop import checkpoints
from ebr.training.loop.arguments import steps_per_epoch, training_arguments
from ebr.training.loop.engine import Engine, Mixture, Say, build_engine, made_fast, probe
from ebr.training.loop.journal import EpochClock, EpochSaver, GracefulStop, LogFile, ProgressBar, StepJournal, Tracker
from ebr.training.loop.layouts import HISTORY, TRACKING, WATCH
from ebr.training.loop.new_rows import new_rows_of
from ebr.training.loop.recovery import Recovery
from ebr.training.loop.trainer import EmbeddingTrainer, Evaluate, RetrievalEvaluator, evaluation_folder
from ebr.training.loop.watch import TrainingWatch, Warned
from ebr.training.loss.named_losses import check_dims
from ebr.training.resources.memory import HostWatch
from ebr.training.resources.processes import ALONE, Processes

log = logging.getLogger(__name__)


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
    warnings: tuple[Warned, ...] = ()
    """What was seen to go wrong on the way."""
    recoveries: tuple[str, ...] = ()
    """Where memory ran short, and what was done."""


def prepare_model(model: SentenceTransformer, config: FinetuneConfig) -> None:
    """Seed, settle the prompts, the similarity and what is trained, so that the same seed starts from the same weights.

    Raises ConfigError for dimensions that the model does not have, ModelError for layers that it does not have.
    """
    set_seed(config.seed)
    set_prompts(model, prompt=config.prompt, query_prompt=config.query_prompt, passage_prompt=config.passage_prompt)
    if model.similarity_fn_name != COSINE:
        log.warning(
            "%s was made for similarity by %s; it is tuned for the cosine, and saved so",
            config.model_name,
            model.similarity_fn_name,
        )
        model.similarity_fn_name = COSINE
    check_dims(config.matryoshka_dims, model.get_embedding_dimension())
    if config.model_dropout is not None:
        set_dropout(model, config.model_dropout)
    new = new_tokens_of(model[0].model, f"model {config.model_name!r}")
    if config.finetune_type == "full":
        train_every_weight(model)
    elif adapter_settings(model) is not None:
        _refuse_another_adapter(model, config)
        continue_lora(model, dropout=config.lora_dropout)
        if (rows := token_rows(model)) is not None:
            rows.requires_grad_(config.new_token_learning_rate > 0)
        elif new and config.new_token_learning_rate:
            log.warning(
                "%s: the adapter holds no rows for the new tokens of its base, which stay as they are", config.model_name
            )
    else:
        attach_lora(
            model,
            r=config.lora_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target_modules=config.target_modules,
            token_ids=new.ids() if new and config.new_token_learning_rate else (),
        )
    _refuse_idle_rate(config, has_rows=new is not None or token_rows(model) is not None)


def _refuse_idle_rate(config: FinetuneConfig, *, has_rows: bool) -> None:
    """A rate for rows that there are not was meant to do something. Raises ConfigError."""
    name = "new_token_learning_rate"
    if not has_rows and config[name] != type(config).model_fields[name].default:
        raise ConfigError(f"{name}: {config.model_name} has no new tokens; extend it first (ebr extend), or leave this out")


def _refuse_another_adapter(model: SentenceTransformer, config: FinetuneConfig) -> None:
    """An adapter that is tuned further keeps its form: options that ask for another would be ignored. Raises ConfigError."""
    settings = adapter_settings(model)
    assert settings is not None
    has = {"lora_r": settings.r, "lora_alpha": settings.lora_alpha, "target_modules": None}
    for name, value in has.items():
        if config[name] not in (type(config).model_fields[name].default, value):
            what = f"has {value}" if value is not None else "has its own layers"
            raise ConfigError(
                f"{config.spelling(name)} {config[name]}: the adapter {config.model_name} {what}; leave it out, or merge the "
                "adapter and tune the merged model"
            )
    log.info("tuning goes on with the adapter of %s: rank %d, alpha %s", config.model_name, settings.r, settings.lora_alpha)


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
        check_bitsandbytes("finetune_type qlora (lora does without)")


def fine_tune(
    model: SentenceTransformer,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: FinetuneConfig,
    *,
    ids: Mapping[str, int],
    work: Path,
    record: Mapping[str, Any],
    resume_from: Path | None = None,
    evaluate: Evaluate | None = None,
    processes: Processes = ALONE,
    mixture: Mixture | None = None,
    say: Say = log.info,
) -> TrainingRecord:
    """Train a prepared model in place, with checkpoints and logs in `work`.

    ids: the number of each text, see TextTable. record: see run_record. resume_from: a whole checkpoint of the same run, in
    `work`. evaluate: judged beside the validation loss, every eval_steps and at the end; it decides early stopping where given.
    mixture: where rows come from, None = one source. say: hears what goes wrong on the way, and what is done about it.
    Raises Interrupted after Ctrl-C, once a whole checkpoint is written; ModelError when the weights diverged to nan, or a text
    does not fit in memory even alone.
    """
    started = time.monotonic()
    engine = build_engine(model, train, validation, config, ids=ids, processes=processes, mixture=mixture, say=say)
    watch = _watch(model, config, work, say)
    trainer = _build(engine, len(validation), config, work, record, evaluate, processes, mixture, watch, say)
    with trainer.graceful_stop.listening(), made_fast(model, config), evaluation_folder(work) if evaluate else nullcontext():
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    state = trainer.state
    if trainer.graceful_stop.asked and state.global_step < state.max_steps:
        raise Interrupted(_stopped(work, state.global_step))
    best = config.early_stopping_patience and state.best_global_step
    if best and not trainer.load_best():
        best = None
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
        warnings=tuple(watch.findings),
        recoveries=tuple(trainer.recovery.events),
    )


def _stopped(work: Path, step: int) -> str:
    """What there is to go on from after a graceful stop."""
    whole = checkpoints.whole_checkpoints(work)
    go_on = "go on with --resume_from_checkpoint true"
    if not whole:
        return (
            f"stopped after step {step}; its checkpoint could not be written and there is no other: make room, and start again"
        )
    if checkpoints.step_of(whole[-1]) == step:
        return f"stopped after step {step}; saved in {whole[-1]}\n{go_on}"
    return (
        f"stopped after step {step}, whose checkpoint could not be written; the newest is {whole[-1]}\nmake room, and {go_on}"
    )


def _watch(model: SentenceTransformer, config: FinetuneConfig, work: Path, say: Say) -> TrainingWatch:
    return TrainingWatch(
        say,
        config.spelling,
        finetune_type=config.finetune_type,
        loss=config.loss,
        embed_probe=lambda: probe(model),
        path=work / WATCH,
    )


def run_record(start: LoadedModel, config: FinetuneConfig, data_sha256: str, processes: Processes = ALONE) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed: the options, the data, the model, how many share a batch.

    start: what the model was before it was prepared; it is prepared by now. Where a new adapter begins does not count: the
    checkpoint holds what became of it.
    """
    return {
        "config": config.to_json(),
        "data_sha256": data_sha256,
        "base_sha256": start.sha256,
        "architecture": architecture(start.model),
        "spelling_sha256": start.spelling_sha256,
        "processes": processes.count,
    }


def _build(
    engine: Engine,
    n_validation: int,
    config: FinetuneConfig,
    work: Path,
    record: Mapping[str, Any],
    evaluate: Evaluate | None,
    processes: Processes,
    mixture: Mixture | None,
    watch: TrainingWatch,
    say: Say,
) -> EmbeddingTrainer:
    model, batches = engine.embedder.model, engine.batches
    n_train = len(batches.train)
    per_epoch = steps_per_epoch(n_train, config, processes.count, of_each=mixture.of_each(n_train) if mixture else ())
    n_steps = config.max_steps or per_epoch * config.num_epochs
    sampler = _sampler(engine, config, processes, mixture)
    trainer = EmbeddingTrainer(
        run_record=record,
        checkpoints_kept=config.save_total_limit,
        journal=StepJournal(work, model_info(model, config), per_epoch, n_steps, processes, watch.log_unwritten),
        epoch_saver=EpochSaver(config.save_on_epoch_end),
        graceful_stop=GracefulStop(processes),
        processes=processes,
        recovery=Recovery(
            engine.embedder,
            HostWatch(),
            query_of=lambda row: batches.train[row].query,
            spelling=config.spelling,
            say=say,
            meets=engine.loss.gather_from is not None,
        ),
        watch=watch,
        sampler=sampler,
        new_rows=new_rows_of(model, learning_rate=config.learning_rate, new_token_learning_rate=config.new_token_learning_rate),
        callbacks=_callbacks(config, work, batches, sampler, processes, watch),
        model=model,
        args=training_arguments(
            config, work, n_steps, device=model.device, validates=n_validation > 0, retrieves=evaluate is not None
        ),
        train_dataset=Dataset.from_dict({"row": range(n_train)}),
        eval_dataset=Dataset.from_dict({"row": range(n_train, n_train + n_validation)}) if n_validation else None,
        loss=engine.loss,
        evaluator=RetrievalEvaluator(evaluate) if evaluate else None,
        data_collator=batches,
    )
    trainer.remove_callback(PrinterCallback)  # our bar shows the figures, and the log file keeps them
    return trainer


def _sampler(engine: Engine, config: FinetuneConfig, processes: Processes, mixture: Mixture | None) -> EpochBatches | None:
    """Who shares a batch; None = the stock sampler's random batches."""
    weights = mixture.weights if mixture else [1.0]
    if not is_needed(weights, group_by_length=config.group_by_length):
        return None
    n_train = len(engine.batches.train)
    return EpochBatches(
        batch_size=config.train_batch_size,
        seed=config.seed,
        sources=mixture.source_of[:n_train] if mixture else [0] * n_train,
        weights=weights,
        lengths=engine.lengths() if config.group_by_length else None,
        n_processes=processes.count,
    )


def model_info(model: SentenceTransformer, config: FinetuneConfig) -> dict[str, Any]:
    """What is trained, for the logs."""
    trainable, total = trainable_share(model)
    return {
        "base_model": config.model_name,
        "finetune_type": config.finetune_type,
        "total_parameters": total,
        "trainable_parameters": trainable,
    }


def _callbacks(
    config: FinetuneConfig,
    work: Path,
    batches: Collator,
    sampler: EpochBatches | None,
    processes: Processes,
    watch: TrainingWatch,
) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [EpochClock(batches, sampler)]
    if processes.is_main:
        callbacks += [ProgressBar(), LogFile(work / HISTORY, watch.log_unwritten)]
    if processes.is_main and "tensorboard" in config.report_to:
        if find_spec("tensorboard"):
            callbacks.append(Tracker(work / TRACKING, watch.log_unwritten))
        else:
            log.warning("report_to tensorboard: its package is absent, so none is written: %s", how_to_install("report"))
    if config.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience, config.early_stopping_threshold))
    return callbacks
