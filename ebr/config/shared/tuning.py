"""Options of fine-tuning: the model, the data, the steps, what is saved. What a front end may spell otherwise stands here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ebr.config.options import Config, Words, option
from ebr.config.shared.encoder import PoolingMode, base_model_option, pooling_option, trust_option

NoiseType = Literal["random_delete", "random_swap", "char_delete", "none"]
Tuning = Literal["lora", "qlora", "full"]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]


def _resume_value(value: object) -> object:
    """`true` and `false` typed on a command line are switches, any other text is a checkpoint folder."""
    words = {"true": True, "false": False, "": None}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


def _number(value: object) -> object:
    """A command line gives text, and a choice among numbers takes none."""
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


class TuningOptions(Config):
    """What matters first."""

    model_name: str = option(
        "all-MiniLM-L6-v2",
        "base model: a local folder, the embedded model by its name, or a hub id",
        "基础模型：本地目录、内置模型名或 hub id",
    )
    data_path: str = option(
        "./train_text",
        "training records (.json, .jsonl, .csv, .tsv, .parquet; .gz): a file, a glob, or a folder (not its subfolders)",
        "训练数据（.json、.jsonl、.csv、.tsv、.parquet，可为 .gz）：文件、通配符或目录（不含子目录）",
    )
    eval_dataset: Path | None = option(
        None,
        "evaluation folder (corpus.jsonl, queries.jsonl, qrels.tsv): nDCG@10 before, during and after",
        "评测目录（corpus.jsonl、queries.jsonl、qrels.tsv）：训练前、中、后的 nDCG@10",
    )
    output_dir: Path = option(
        Path("./saved_model"),
        "the result goes to <output_dir>/<model>-peft-lora, -peft-qlora or -full",
        "结果写入 <output_dir>/<模型>-peft-lora、-peft-qlora 或 -full",
    )
    finetune_type: Tuning = option(
        "lora",
        "lora: a small adapter; qlora: the same on a base held in 4 or 8 bits; full: every weight",
        "lora：小型适配器；qlora：基础模型以 4 或 8 位保存，再加适配器；full：全部权重",
    )
    num_epochs: int = option(1, "passes over the training split", "训练轮数", ge=1)
    train_batch_size: int = option(
        6,
        "pairs a batch; each sees the others' positives as negatives, so more is better",
        "每批样本对数；批内互为负例，越大越好",
        ge=1,
    )
    learning_rate: float = option(2e-4, "peak learning rate", "学习率峰值", gt=0)
    max_seq_length: int = option(
        256,
        "tokens kept of a text; lowered with a warning to what the model allows",
        "每条文本保留的 token 数；超出模型上限时自动降低并提示",
        ge=4,
    )
    query_prompt: str | None = option(
        None, "put before queries (anchors) instead of prompt", "加在查询（anchor）之前的提示，优先于 prompt"
    )
    passage_prompt: str | None = option(
        None,
        "put before passages (positives and negatives) instead of prompt",
        "加在段落（正例与负例）之前的提示，优先于 prompt",
    )
    resume_from_checkpoint: Annotated[bool | Path | None, BeforeValidator(_resume_value)] = option(
        None,
        "true = go on from the newest whole checkpoint; or a checkpoint folder",
        "true 表示从最新的完整检查点继续；也可给出检查点目录",
    )


class ModelOptions(Config):
    """Model and texts."""

    trust_remote_code: bool = trust_option()
    base_model_path: str | None = base_model_option()
    pooling: PoolingMode | None = pooling_option()
    prompt: str | None = option(
        None, "put before every text, query and passage; '' = none", "加在所有文本（查询与段落）之前的提示；'' 表示不加"
    )
    query_max_len: int | None = option(
        None, "tokens kept of a query; not set = max_seq_length", "查询保留的 token 数；未设置时取 max_seq_length", ge=4
    )
    passage_max_len: int | None = option(
        None, "tokens kept of a passage; not set = max_seq_length", "段落保留的 token 数；未设置时取 max_seq_length", ge=4
    )


class AdapterOptions(Config):
    """Adapter."""

    lora_r: int = option(8, "rank of the adapter", "LoRA 秩", ge=1)
    lora_alpha: int = option(
        32, "the adapter's output is scaled by lora_alpha / lora_r", "LoRA 输出按 lora_alpha / lora_r 缩放", ge=1
    )
    lora_dropout: float = option(0.1, "dropout on the adapter's input", "LoRA 输入的 dropout", ge=0, lt=1)
    target_modules: Words | None = option(
        None,
        "layers that get an adapter; not set = every linear layer, found from the architecture",
        "加适配器的层；未设置时按架构取所有线性层",
    )
    quantization_bits: Annotated[Literal[4, 8], BeforeValidator(_number)] = option(
        4, "bits a weight of the base, for qlora: 4 (nf4) or 8", "qlora 下基础模型每个权重的位数：4（nf4）或 8"
    )


class OptimiserOptions(Config):
    """Training."""

    max_steps: int = option(
        0,
        "exactly this many optimiser steps, whatever num_epochs says; 0 = num_epochs decides",
        "优化步数，优先于 num_epochs；0 表示由 num_epochs 决定",
        ge=0,
    )
    gradient_accumulation_steps: int = option(
        1, "batches an optimiser step; saves memory, adds no negatives", "每个优化步累积的批数；省显存，但不增加负例", ge=1
    )
    new_token_learning_rate: float = option(
        2e-3,
        "peak learning rate of the rows that ebr extend gave new tokens, however the rest is tuned; 0 = they stay as drawn",
        "ebr extend 新增词元的向量的学习率峰值，与微调方式无关；0 表示保持抽取时的值",
        ge=0,
    )
    lr_scheduler_type: Scheduler = option("linear", "shape of the learning rate after warm-up", "预热后的学习率曲线")
    warmup_ratio: float = option(
        0.0, "share of the steps in which the learning rate rises", "学习率上升阶段占总步数的比例", ge=0, lt=1
    )
    weight_decay: float = option(0.01, "AdamW weight decay", "AdamW 权重衰减", ge=0)
    model_dropout: float | None = option(
        None,
        "dropout in the model's own layers, beside lora_dropout; not set = as the model's config says; 0 = none, which trains "
        "faster, on a processor up to twice",
        "模型自身各层的 dropout，与 lora_dropout 分开；未设置时按模型配置；0 表示不用，训练更快，CPU 上最多快一倍",
        ge=0,
        lt=1,
    )
    l1_regularization: float = option(
        0.0,
        "L1 penalty on the trainable weights: part of the objective, logged apart",
        "可训练权重的 L1 惩罚：计入目标、单独记录",
        ge=0,
    )
    max_grad_norm: float = option(1.0, "gradient norm is clipped to this; 0 = off", "梯度范数裁剪上限；0 表示关闭", ge=0)
    seed: int = option(42, "the same seed gives the same run", "相同种子得到相同结果", ge=0, le=2**32 - 1)


class JudgingOptions(Config):
    """Evaluation and early stopping."""

    forgetting_dataset: Path | None = option(
        None,
        "a second evaluation folder, of something else, measured before and after: what tuning made worse there",
        "另一领域的评测目录，训练前后各测一次：检查微调在那里造成的退步（遗忘）",
    )
    eval_steps: int = option(
        100, "evaluate every N optimiser steps, and at the end", "每 N 个优化步评估一次，结束时再评一次", ge=1
    )
    eval_batch_size: int = option(
        6,
        "records a batch for the validation loss, and texts a forward pass in retrieval evaluations",
        "验证损失每批的记录数，也是检索评测每次前向的文本数",
        ge=2,
    )
    early_stopping_patience: int = option(
        0,
        "stop after N evaluations without improvement, keep the best; 0 = off; by nDCG@10 where there is an eval_dataset",
        "连续 N 次评估无改善即停止并保留最佳；0 表示关闭；有 eval_dataset 时以 nDCG@10 为准",
        ge=0,
    )
    early_stopping_threshold: float = option(0.0, "smallest change that counts as improvement", "算作改善的最小变化", ge=0)


class SavingOptions(Config):
    """Checkpoints and logs."""

    save_steps: int = option(
        100,
        "a resumable checkpoint every N steps (every eval_steps under early stopping); 0 = none",
        "每 N 步保存可续训的检查点（早停时为每 eval_steps 步）；0 表示不保存",
        ge=0,
    )
    save_on_epoch_end: int = option(
        0,
        "a resumable checkpoint-epoch-<n> every N epochs, all of them kept; 0 = never",
        "每 N 轮保存一个可续训的 checkpoint-epoch-<n>，全部保留；0 表示不保存",
        ge=0,
    )
    save_total_limit: int = option(
        2, "step checkpoints kept; those of save_on_epoch_end are not counted", "保留的按步检查点个数，按轮保存的不计", ge=1
    )
    report_to: Words = option(
        ["tensorboard"], "trackers: tensorboard, wandb, mlflow, … or none", "日志工具：tensorboard、wandb、mlflow 等，或 none"
    )


class NoiseOptions(Config):
    """Noise."""

    noise_enabled: bool = option(
        False, "noise augmentation of the training split, drawn afresh each epoch", "对训练集做噪声增强，每轮重新抽取"
    )
    noise_type: NoiseType = option(
        "random_delete",
        "random_delete drops words, random_swap swaps neighbours, char_delete drops characters",
        "random_delete 删词，random_swap 交换相邻词，char_delete 删字",
    )
    noise_prob: float = option(
        0.1,
        "chance that a record gets noise, and share of its words touched",
        "记录被加噪的概率，也是其中被改动的词的比例",
        ge=0,
        le=1,
    )
    noise_apply_to_fields: Words = option(
        ["anchor", "positive"],
        "which get noise: anchor (the query), positive, negative",
        "加噪的字段：anchor（查询）、positive（正例）、negative（负例）",
    )
