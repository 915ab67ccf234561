"""Fine-tune: records in, a saved model and the evidence that it is better out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ebr.config import FinetuneConfig
from ebr.data.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.examples import Example, find_training_files, read_pairs, split_validation
from ebr.data.files import FOLDER_MANIFEST, hash_files, write_folder_aside, write_json
from ebr.workflow.speech import Say, library_versions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.retrieval.evaluation import Comparison, Evaluation
    from ebr.training.layouts import Layout
    from ebr.training.trainer import TrainingRecord

_SMALL_SET = 100
_METRIC_MEANINGS = (
    "nDCG@10: quality of the first ten, 1 = the best possible order; MRR@10: 1 / rank of the first right document;",
    "Recall@k: share of the right documents that are among the first k. All 0..1, higher is better.",
)


@dataclass(frozen=True)
class FinetunePlan:
    """What a run would train on, and where it would write."""

    files: list[Path]
    train: list[Example]
    validation: list[Example]
    dataset: EvaluationSet | None
    layout: Layout
    n_steps: int
    checkpoint: Path | None
    """Where to resume from; None = from the start."""

    def lines(self) -> list[str]:
        """The plan, for people. The first line is looked for by its exact words."""
        lines = [f"训练集大小: {len(self.train)}", f"验证集大小: {len(self.validation)}", f"optimiser steps: {self.n_steps:,}"]
        if self.dataset:
            lines.append(f"evaluation: {len(self.dataset.queries):,} queries, {len(self.dataset.documents):,} documents")
        if len(self.train) < _SMALL_SET:
            lines.append(f"warning: fewer than {_SMALL_SET} training records; expect little, and noise in every figure")
        return [*lines, f"result goes to {self.layout.final}"]


@dataclass(frozen=True)
class FinetuneResult:
    """A finished fine-tuning run."""

    model_path: Path
    record: TrainingRecord
    comparison: Comparison | None
    loss_curve: Path | None

    def summary(self) -> str:
        """What was made, where, and whether it is better."""
        record = self.record
        share = record.trainable_parameters / record.all_parameters
        how = f"best: step {record.weights_step}, " if record.stopped_early else ""
        lines = [
            f"model       {self.model_path}",
            f"steps       {record.n_steps} in {record.duration_s:.0f} s ({how}{share:.2%} of the weights trained)",
            *([f"loss curve  {self.loss_curve}"] if self.loss_curve else []),
        ]
        return "\n".join([*lines, "", self.comparison.table(), "", *_METRIC_MEANINGS] if self.comparison else lines)


def plan_finetune(config: FinetuneConfig) -> FinetunePlan:
    """Read and check everything that a run needs, and train nothing."""
    from ebr.model.encoder import resolve_model
    from ebr.training.checkpoints import find_checkpoint
    from ebr.training.layouts import pair_layout
    from ebr.training.trainer import check_machine, count_steps

    config.check()
    files = find_training_files(config.data_path)
    train, validation = split_validation(read_pairs(files), config.validation_split, np.random.default_rng(config.seed))
    dataset = read_evaluation_set(config.eval_dataset) if config.eval_dataset else None
    check_machine(config)
    layout = pair_layout(config.output_dir, resolve_model(config.model_name).short_name, config.finetune_type)
    wanted = config.resume_from_checkpoint
    checkpoint = find_checkpoint(wanted, layout.work) if wanted else None
    return FinetunePlan(files, train, validation, dataset, layout, count_steps(len(train), config), checkpoint)


def train_sentence_transformer(config: FinetuneConfig, *, say: Say = print) -> FinetuneResult:
    """Fine-tune a model, evaluate it before and after where there is an evaluation set, and save it.

    The finished folder, <output_dir>/<model>-peft-lora, loads with plain SentenceTransformer(folder).
    Raises EBRError subclasses that say what to mend; Interrupted after Ctrl-C, with a whole checkpoint left behind.
    """
    from ebr.model.adapters import trainable_share
    from ebr.model.encoder import fingerprint
    from ebr.training.trainer import fine_tune, prepare_model, run_record

    plan = plan_finetune(config)
    for line in plan.lines():
        say(line)
    model = load_for_training(config)
    base_sha256 = fingerprint(model)
    prepare_model(model, config)
    trainable, total = trainable_share(model)
    say(f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})")
    data_sha256 = hash_files(plan.files)
    resume_from = _begin_or_go_on(plan, run_record(model, config, data_sha256), say)
    judge = _Judge(plan.dataset, config.eval_batch_size, say) if plan.dataset else None
    if judge:
        judge(model, 0)
    record = fine_tune(
        model,
        plan.train,
        plan.validation,
        config,
        work=plan.layout.work,
        data_sha256=data_sha256,
        resume_from=resume_from,
        evaluate=judge,
    )
    comparison = judge.compare(model, record.weights_step, seed=config.seed) if judge else None
    manifest = _model_manifest(model, config, plan, base_sha256, data_sha256)
    curve = _save_model(model, plan.layout.final, record, comparison, manifest)
    plan.layout.end()
    return FinetuneResult(plan.layout.final, record, comparison, curve)


def _begin_or_go_on(plan: FinetunePlan, record: Mapping[str, Any], say: Say) -> Path | None:
    """Make room for a new run, or take up the one that the plan's checkpoint belongs to; returns where to resume from."""
    from ebr.training.checkpoints import check_same_run

    if plan.checkpoint is None:
        if notice := plan.layout.begin():
            say(notice)
        return None
    check_same_run(plan.checkpoint, record)
    resume_from = plan.layout.go_on(plan.checkpoint)
    say(f"resuming from {resume_from}")
    return resume_from


def load_for_training(config: FinetuneConfig) -> SentenceTransformer:
    """The base model, at the length that it is tuned with."""
    from ebr.model.encoder import load_encoder

    return load_encoder(config.model_name, max_seq_length=config.max_seq_length, trust_remote_code=config.trust_remote_code)


class _Judge:
    """Evaluates a model on the evaluation set, and remembers what it found after which step."""

    def __init__(self, dataset: EvaluationSet, batch_size: int, say: Say) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.say = say
        self.evaluations: dict[int, Evaluation] = {}

    def __call__(self, model: SentenceTransformer, step: int) -> dict[str, float]:
        from ebr.inference.engines import RetrievalEncoder
        from ebr.model.encoder import own_precision
        from ebr.retrieval.evaluation import evaluate_encoder

        with own_precision(model):
            evaluation = evaluate_encoder(RetrievalEncoder(model, batch_size=self.batch_size), self.dataset)
        self.evaluations[step] = evaluation
        name = "base" if step == 0 else f"step {step}"
        self.say(f"{name}: nDCG@10 {evaluation.mean('ndcg@10'):.4f} on {self.dataset.name}")
        return evaluation.means()

    def compare(self, model: SentenceTransformer, step: int, *, seed: int) -> Comparison:
        """The base against the model as it is after this step."""
        from ebr.retrieval.evaluation import compare

        if step not in self.evaluations:
            self(model, step)
        return compare(self.evaluations[0], self.evaluations[step], seed=seed)


def _model_manifest(
    model: SentenceTransformer, config: FinetuneConfig, plan: FinetunePlan, base_sha256: str, data_sha256: str
) -> dict[str, Any]:
    from ebr.model.encoder import fingerprint, pooling_name

    return {
        "kind": "model",
        # A record reruns the whole run, also when this one was resumed.
        "config": {**config.to_json(), "resume_from_checkpoint": None},
        "base_model": config.model_name,
        "base_sha256": base_sha256,
        "model_sha256": fingerprint(model),
        "data_sha256": data_sha256,
        "n_train": len(plan.train),
        "n_validation": len(plan.validation),
        "pooling": pooling_name(model),
        "prompts": model.prompts,
        "max_seq_length": model.max_seq_length,
        "dim": model.get_embedding_dimension(),
        "versions": library_versions(),
    }


def _save_model(
    model: SentenceTransformer, folder: Path, record: TrainingRecord, comparison: Comparison | None, manifest: Mapping[str, Any]
) -> Path | None:
    """Write the finished folder whole, then swap it with the one before; returns where the loss curve is."""
    from ebr.model.encoder import save_encoder
    from ebr.training.trainer import LOG_FILE
    from ebr.visualization.plot import draw_loss_curve

    with write_folder_aside(folder) as aside:
        save_encoder(model, aside)
        write_json(aside / LOG_FILE, record.history)
        if comparison:
            write_json(aside / "evaluation.json", comparison.to_json())
        drawn = draw_loss_curve(_plain_history(record.history), aside / "loss_curve.png")
        write_json(aside / FOLDER_MANIFEST, manifest)
    return folder / "loss_curve.png" if drawn else None


def _plain_history(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key.replace("eval_ndcg@10", "ndcg_at_10"): value for key, value in entry.items()} for entry in history]
