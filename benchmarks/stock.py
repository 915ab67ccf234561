"""The stock arm of the benchmarks: pairs, and sentence-transformers' own trainer on them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from transformers import set_seed

from datasets import Dataset
from ebr import FinetuneConfig
from ebr.data.training.examples import read_examples
from ebr.model.adapters.attach import attach_lora
from ebr.model.encoder.encoder import load_encoder


@dataclass(frozen=True)
class Pairs:
    """The pairs that every arm trains on, with the negatives that the data has for their queries."""

    anchors: list[str]
    positives: list[str]
    negatives: list[tuple[str, ...]]

    def write(self, path: Path, *, with_negatives: bool = False) -> None:
        """As records of ebr finetune."""
        records: list[dict[str, Any]] = [
            {"anchor": anchor, "positive": positive} | ({"negative": list(negatives)} if with_negatives and negatives else {})
            for anchor, positive, negatives in zip(self.anchors, self.positives, self.negatives, strict=True)
        ]
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")

    def passages(self) -> list[str]:
        """Distinct positives and negatives."""
        return list(dict.fromkeys([*self.positives, *itertools.chain.from_iterable(self.negatives)]))


def read_pairs(folder: Path) -> Pairs:
    """Each query of train.jsonl with each of its positives; the same query may stand in many pairs."""
    pairs = [
        (example.query, positive, example.negatives)
        for example in read_examples([folder / "train.jsonl"])
        for positive in example.positives
    ]
    anchors, positives, negatives = zip(*pairs, strict=True)
    return Pairs(list(anchors), list(positives), list(negatives))


def stock_model(config: FinetuneConfig, *, attention: str | None = None) -> SentenceTransformer:
    """The base with the adapter that ours begins with, and nothing of ours in it."""
    model = load_encoder(config.model_name, max_seq_length=config.max_seq_length, attn_implementation=attention)
    set_seed(config.seed)
    attach_lora(model, r=config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout)
    ours = {type(module).__name__ for module in model.modules() if type(module).__module__.startswith("ebr.")}
    if ours:
        raise SystemExit(f"the stock arm's model holds our {', '.join(sorted(ours))}: what is measured would not be stock")
    return model


def stock_trainer(
    model: SentenceTransformer, pairs: Pairs, config: FinetuneConfig, sampler: BatchSamplers = BatchSamplers.BATCH_SAMPLER
) -> SentenceTransformerTrainer:
    """Stock sentence-transformers, told what our config says."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(config.output_dir / "run"),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.train_batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.lr_scheduler_type,
        batch_sampler=sampler,
        bf16=config.bf16,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"anchor": pairs.anchors, "positive": pairs.positives}),
        loss=MultipleNegativesRankingLoss(model, scale=1 / config.temperature),
    )
