"""What a fine-tuning run would train on and where it would write, checked before anything is loaded or made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ebr.config import FinetuneConfig, TrainConfig
from ebr.config.shared.objective import reads_same_answer
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.speech import Say
from ebr.data.text.counted import counted
from ebr.data.training.answers import rows_without_negatives
from ebr.data.training.examples import Example, find_training_files, read_examples
from ebr.data.training.sources import TrainingSource, after_split, all_examples, all_files, prompts_of, read_sources, source_of
from ebr.data.training.split import split_validation
from ebr.data.training.text_table import TextTable
from ebr.errors import DataError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.model.encoder.loaded import LoadedModel
    from ebr.training.loop.disk import DiskNeeds
    from ebr.training.loop.engine import Mixture
    from ebr.training.loop.layouts import Layout
    from ebr.training.resources.processes import Processes

_MOST_NAMED = 5
_QUERY_SHOWN = 30


@dataclass(frozen=True)
class FinetunePlan:
    """What a run would train on, and where it would write."""

    files: list[Path]
    train: list[Example]
    validation: list[Example]
    texts: TextTable
    """Which texts of the records are the same."""
    dataset: EvaluationSet | None
    forgetting: EvaluationSet | None
    layout: Layout
    n_steps: int
    checkpoint: Path | None
    """Where to resume from; None = from the start."""
    warnings: tuple[str, ...] = ()
    sources: tuple[TrainingSource, ...] = ()
    """Where the records come from when that is more than one place."""
    source_of: tuple[int, ...] = ()
    """The source of each row, training rows first."""

    def records(self) -> list[Example]:
        """Every training record, those held out for the validation loss among them: early stopping sees them too."""
        return [*self.train, *self.validation]

    def lines(self) -> list[str]:
        """The plan, for people. The first line is looked for by its exact words."""
        lines = [f"训练集大小: {len(self.train)}", f"验证集大小: {len(self.validation)}", f"optimiser steps: {self.n_steps:,}"]
        for role, dataset in (("evaluation", self.dataset), ("forgetting", self.forgetting)):
            if dataset:
                queries, documents = len(dataset.queries), len(dataset.documents)
                lines.append(f"{role}: {counted(queries, 'query', 'queries')}, {counted(documents, 'document')}")
                lines += [f"note: {dataset.name}: {text}" for text in dataset.notes()]
        return [*lines, *(f"warning: {text}" for text in self.warnings), f"result goes to {self.layout.final}"]


def plan_finetune(config: FinetuneConfig, n_processes: int = 1) -> FinetunePlan:
    """Read and check everything that a run needs, and train nothing.

    The class of the config says which front end it is: TrainConfig writes to output_dir itself, FinetuneConfig to a folder
    named after the model. Both read the same records.
    """
    from ebr.training.loop.arguments import count_steps
    from ebr.training.loop.checkpoints import find_checkpoint
    from ebr.training.loop.fit import check_machine
    from ebr.training.loss.objectives import check_data

    config.check()
    files, examples, sources = read_records(config)
    texts = TextTable.of(examples)
    train, validation = split_validation(examples, config.validation_split, np.random.default_rng(config.seed), texts)
    sides = after_split(examples, source_of(sources), validation, texts) if sources else ([], [])
    of_each = rows_of_each(sources, sides[0])
    check_data(
        train, validation, texts, loss=config.loss, neg_nums=config.neg_nums, contrastive_weight=config.contrastive_weight
    )
    if n_processes == 1 or not config.gather_negatives:
        _refuse_batches_without_negatives(examples, texts, config)
        _refuse_what_the_split_left_alone(train, texts, config)
    dataset, forgetting = (
        read_evaluation_set(folder) if folder else None for folder in (config.eval_dataset, config.forgetting_dataset)
    )
    check_machine(config)
    layout = layout_of(config)
    layout.check()
    wanted = config.resume_from_checkpoint
    checkpoint = find_checkpoint(wanted, layout.work) if wanted else None
    n_steps = count_steps(len(train), config, n_processes, of_each=of_each)
    warnings = plan_warnings(examples, train, validation, texts, config, n_processes, sources, of_each)
    return FinetunePlan(
        files,
        train,
        validation,
        texts,
        dataset,
        forgetting,
        layout,
        n_steps,
        checkpoint,
        warnings,
        tuple(sources),
        (*sides[0], *sides[1]),
    )


def read_records(config: FinetuneConfig) -> tuple[list[Path], list[Example], list[TrainingSource]]:
    """The files that a run depends on, every example of them, and the sources where there are several."""
    if config.sources is not None:
        sources = read_sources(config.sources)
        return all_files(config.sources, sources), all_examples(sources), sources
    files = find_training_files(config.data_path, option=config.spelling("data_path"))
    return files, read_examples(files), []


def rows_of_each(sources: Sequence[TrainingSource], of_train: Sequence[int]) -> list[tuple[int, float]]:
    """For each source, how many training rows it has and its weight. of_train: the source of each training row."""
    return [(of_train.count(place), source.weight) for place, source in enumerate(sources)]


def layout_of(config: FinetuneConfig) -> Layout:
    """Where the front end that the config belongs to writes."""
    from ebr.model.origin import resolve_model
    from ebr.training.loop.layouts import pair_layout, triplet_layout

    if isinstance(config, TrainConfig):
        return triplet_layout(config.output_dir)
    return pair_layout(config.output_dir, resolve_model(config.model_name).short_name, config.finetune_type)


def _count_negatives(examples: list[Example]) -> int:
    return sum(len(example.negatives) for example in examples)


def plan_warnings(
    examples: list[Example],
    train: list[Example],
    validation: list[Example],
    texts: TextTable,
    config: FinetuneConfig,
    n_processes: int,
    sources: Sequence[TrainingSource],
    of_each: Sequence[tuple[int, float]],
) -> tuple[str, ...]:
    """What a run would do with its records that whoever gave them may not expect, a line each."""
    from ebr.training.batches.sampling import is_needed

    ours = is_needed([weight for _, weight in of_each] or [1.0], group_by_length=config.group_by_length)
    # Our own batches leave no record alone.
    lonely_rest = n_processes == 1 and not ours and len(train) % config.train_batch_size == 1
    n_left_out = _count_negatives(examples) - _count_negatives(validation) - _count_negatives(train)
    unused = ", ".join(source.name for source, (rows, _) in zip(sources, of_each, strict=True) if not rows)
    found = {
        "the last batch of each epoch is one record; without a negative of its own it teaches nothing": (
            lonely_rest and bool(rows_without_negatives(train, texts, 1, config.neg_nums))
        ),
        f"{counted(n_left_out, 'negative')} left out: their texts stand on the other side of the validation split": n_left_out
        > 0,
        "gather_negatives: this is one process, with none to gather from": config.gather_negatives and n_processes == 1,
        f"validation_split took every record of {unused}: nothing of it is trained on": bool(unused),
    }
    return tuple(text for text, holds in found.items() if holds)


def _refuse_batches_without_negatives(examples: list[Example], texts: TextTable, config: FinetuneConfig) -> None:
    """A batch of one record has only that record's negatives; without any its loss is zero, and it teaches nothing."""
    rows = rows_without_negatives(examples, texts, config.train_batch_size, config.neg_nums)
    if not rows:
        return
    shown = ", ".join(f"{row + 1} ({examples[row].query[:_QUERY_SHOWN]!r})" for row in rows[:_MOST_NAMED])
    more = f" and {len(rows) - _MOST_NAMED:,} more" if len(rows) > _MOST_NAMED else ""
    size = config.spelling("train_batch_size")
    raise DataError(
        f"{size} 1: a batch of one record has no other record's texts as negatives, and these have none to draw of their own, "
        f"so their loss would be zero: records {shown}{more}; raise {size}, give them negatives, or leave them out"
    )


def _refuse_what_the_split_left_alone(train: list[Example], texts: TextTable, config: FinetuneConfig) -> None:
    """The same for records whose negatives all stand on the other side of the validation split."""
    if n_lonely := len(rows_without_negatives(train, texts, config.train_batch_size, config.neg_nums)):
        size = config.spelling("train_batch_size")
        raise DataError(
            f"{size} 1: the negatives of {counted(n_lonely, 'record')} stand on the other side of the validation split, so the "
            f"loss would be zero; raise {size}, or set validation_split to 0"
        )


def load_for_training(config: FinetuneConfig) -> LoadedModel:
    """The base model, quantised for qlora, with the pooling and at the lengths that it is tuned with."""
    from ebr.model.encoder.encoder import load_encoder, require_transformer
    from ebr.model.encoder.lengths import set_lengths
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.model.origin import resolve_model
    from ebr.training.resources.mixed_precision import products_dtype

    model = load_encoder(
        config.model_name,
        trust_remote_code=config.trust_remote_code,
        pooling=config.pooling,
        base_model_path=config.base_model_path,
        quantization_bits=config.quantization_bits if config.finetune_type == "qlora" else 0,
        compute_dtype=products_dtype(config),
        attn_implementation=config.attn_implementation,
        hash_base=True,
    )
    require_transformer(model, config.spelling("model_name"), config.model_name)
    set_lengths(model, config.max_seq_length, query=config.query_max_len, passage=config.passage_max_len)
    return LoadedModel.of(model, resolve_model(config.model_name))


def needs_of_disk(
    plan: FinetunePlan, model: SentenceTransformer, config: FinetuneConfig, processes: Processes, mixture: Mixture | None
) -> DiskNeeds:
    """What the run of a plan will write, reckoned on its prepared model."""
    from ebr.training.loop.disk import disk_needs

    n_train = len(plan.train)
    return disk_needs(
        model,
        config,
        plan.layout,
        n_train=n_train,
        n_steps=plan.n_steps,
        n_processes=processes.count,
        of_each=mixture.of_each(n_train) if mixture else (),
        checkpoint=plan.checkpoint,
    )


def mixture_of(plan: FinetunePlan, model: SentenceTransformer) -> Mixture | None:
    """Where rows come from, in the engine's words; None = one source with the model's own prompts."""
    from ebr.training.loop.engine import Mixture

    if not plan.sources:
        return None
    prompts = [prompts_of(source, model.prompts) for source in plan.sources]
    return Mixture(plan.source_of, [source.weight for source in plan.sources], prompts)


def settled(config: FinetuneConfig, plan: FinetunePlan, processes: Processes) -> FinetuneConfig:
    """The config with every `auto` as this run takes it, which is what its records hold: they make the same model elsewhere.

    A run that is taken up goes on as it began: in its own precision, whatever this machine would be faster in, and with what
    counted as the same answer then.
    """
    from ebr.training.loop.checkpoints import options_of
    from ebr.training.loop.engine import same_answer_of
    from ebr.training.resources.mixed_precision import mixed_precision

    before = options_of(plan.checkpoint) if plan.checkpoint else {}
    begun: dict[str, Any] = {
        name: before[name] for name in ("bf16", "same_answer") if name in before and config[name] == "auto"
    }
    config = config.model_copy(update=begun)
    # Each process raced for itself, and two that multiply in different precisions would train neither's model.
    is_slow_in_one = processes.any(mixed_precision(config) != "bf16")
    update: dict[str, Any] = {"bf16": not is_slow_in_one}
    if reads_same_answer(config):
        update["same_answer"] = same_answer_of(config, plan.records(), plan.texts.ids)
    return config.model_copy(update=update)


def begin_or_go_on(
    plan: FinetunePlan, model: SentenceTransformer, record: Mapping[str, Any], processes: Processes, say: Say
) -> Path | None:
    """Make room for a new run, or take up the one that the plan's checkpoint belongs to; returns where to resume from.

    model: as it is prepared for training. record: see run_record.
    """
    from ebr.model.files.identity import fingerprint
    from ebr.training.loop.checkpoints import check_same_run

    if plan.checkpoint:
        check_same_run(plan.checkpoint, record, prepared_sha256=lambda: fingerprint(model))
    processes.wait()  # every process has found its checkpoint before the first moves anything
    if processes.is_main and plan.checkpoint:
        plan.layout.go_on(plan.checkpoint)
    elif processes.is_main and (notice := plan.layout.begin()):
        say(notice)
    processes.wait()
    if plan.checkpoint is None:
        return None
    resume_from = plan.layout.work / plan.checkpoint.name
    say(f"resuming from {resume_from}")
    return resume_from
