"""Options of mining hard negatives."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ebr.config.options import Config, option
from ebr.config.shared.encoder import PoolingMode, base_model_option, encoding_batch_option, pooling_option, trust_option
from ebr.errors import ConfigError

HYBRID = "hybrid"
"""The teacher that is no model."""

_SUFFIXES = (".jsonl", ".json")


class _Main(Config):
    """What matters first."""

    model_path: str = option(
        "all-MiniLM-L6-v2",
        "the model that looks for negatives: base or tuned; a local folder, the embedded model by its name, or a hub id",
        "用于挖掘的模型（基础或微调后的）：本地目录、内置模型名或 hub id",
    )
    data_path: str = option(
        "./train_text",
        "training records as finetune and train read them: a file, a glob, or a folder (not its subfolders)",
        "训练数据，与 finetune、train 相同：文件、通配符或目录（不含子目录）",
    )
    corpus: Path | None = option(
        None,
        "texts to choose from: corpus.jsonl or the folder that holds it, or a text file, one a line; not set = the positives",
        "候选文本：corpus.jsonl 或其所在目录，或每行一条的文本文件；未设置时取所有正例",
    )
    output_path: Path = option(..., "the new training file: .jsonl or .json", "新的训练文件：.jsonl 或 .json")
    num_negatives: int = option(4, "negatives mined a record, at most", "每条记录最多挖掘的负例数", ge=1)
    max_relative_score: float = option(
        0.95,
        "a candidate above this share of the positive's score is taken for a positive and left out",
        "得分超过正例得分此比例的候选视为潜在正例而排除",
        gt=0,
        le=1,
    )
    teacher: str | None = option(
        None,
        "who gives the scores that are written, for loss distillation: hybrid = rank fusion of BM25 and the model; or another "
        "model, its cosines; not set = the cosines of model_path",
        "写入的分数（供 distillation）由谁给出：hybrid 为 BM25 与本模型的排名融合；或另一模型的余弦；未设置时取本模型的余弦",
    )
    top_k: int = option(100, "candidates looked at a query, best first", "每个查询考察的候选数，由高到低", ge=1)


class _Choice(Config):
    """Choice and output."""

    skip_top: int = option(0, "pass over the first N candidates", "跳过得分最高的前 N 个候选", ge=0)
    near_duplicate: float = option(
        0.9,
        "a candidate sharing this much of its words (Jaccard) with a positive or the query is left out; 1 = equal words only",
        "与正例或查询的词重合度（Jaccard，中文按相邻两字计）达到此值的候选视为近似重复而排除；1 表示仅排除用词完全相同者",
        gt=0,
        le=1,
    )
    same_answer: Literal["auto", "text", "chain"] = option(
        "auto",
        "which candidates are right for a query and no negatives, as for fine-tuning: text, chain, or auto",
        "哪些候选也是查询的正确答案、不作负例，与微调相同：text、chain 或 auto",
    )
    keep_negatives: bool = option(True, "keep the negatives that the records have already", "保留记录中已有的负例")
    output_format: Literal["pairs", "triplets"] | None = option(
        None,
        "pairs = anchor, positive, negative; triplets = query, pos, neg; not set = as the records came",
        "pairs 为 anchor、positive、negative；triplets 为 query、pos、neg；未设置时与输入相同",
    )
    seed: int = option(42, "chooses the examples that are shown", "决定展示哪些示例", ge=0, le=2**32 - 1)


class _Model(Config):
    """Model and texts."""

    trust_remote_code: bool = trust_option()
    pooling: PoolingMode | None = pooling_option()
    base_model_path: str | None = base_model_option()
    max_seq_length: int | None = option(
        None, "tokens kept of a text; not set = as the model was saved", "每条文本保留的 token 数；未设置时按模型保存值", ge=4
    )
    prompt: str | None = option(
        None,
        "put before every text, query and passage; not set = as the model was saved; '' = none",
        "加在所有文本之前的提示；未设置时用模型保存的提示；'' 表示不加",
    )
    query_prompt: str | None = option(None, "put before queries instead of prompt", "加在查询之前的提示，优先于 prompt")
    passage_prompt: str | None = option(None, "put before passages instead of prompt", "加在段落之前的提示，优先于 prompt")
    batch_size: int | None = encoding_batch_option()


# Fields come in the order of the classes from the last to the first.
class MiningConfig(_Model, _Choice, _Main):
    """Mine hard negatives: what a model takes for an answer and is none, as a new training file."""

    def check(self) -> None:
        """Refuse options that contradict each other. Raises ConfigError."""
        if self.output_path.suffix.lower() not in _SUFFIXES:
            raise ConfigError(f"output_path {self.output_path}: must end in {' or '.join(_SUFFIXES)}")
        if self.skip_top >= self.top_k:
            raise ConfigError(f"skip_top {self.skip_top}: passes over all top_k {self.top_k} candidates; raise top_k")
