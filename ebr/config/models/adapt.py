"""Options of adapting a model's queries."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ebr.config.options import Config, option
from ebr.config.shared.encoder import PoolingMode, encoding_batch_option, pooling_option, trust_option
from ebr.errors import ConfigError


class _Main(Config):
    """What matters first."""

    model_name: str = option(
        "all-MiniLM-L6-v2",
        "the model whose vectors of documents are in use: a local folder, the embedded model by its name, or a hub id; no "
        "adapter",
        "文档向量正在使用的模型：本地目录、内置模型名或 hub id；不能是适配器",
    )
    data_path: str = option(
        ...,
        "training records (.json, .jsonl, .csv, .tsv, .parquet; .gz): a file, a glob, or a folder (not its subfolders)",
        "训练数据（.json、.jsonl、.csv、.tsv、.parquet，可为 .gz）：文件、通配符或目录（不含子目录）",
    )
    output_path: Path = option(..., "folder of the adapted model", "适配后模型的目录")
    eval_dataset: Path | None = option(
        None,
        "evaluation folder (corpus.jsonl, queries.jsonl, qrels.tsv): the base against the adapted model",
        "评测目录（corpus.jsonl、queries.jsonl、qrels.tsv）：比较基础模型与适配后的模型",
    )
    query_prompt: str | None = option(
        None,
        "put before queries; not set = as the model was saved",
        "加在查询之前的提示；未设置时用模型保存的提示",
    )
    passage_prompt: str | None = option(
        None,
        "put before documents, as when the vectors in use were made; not set = as the model was saved",
        "加在文档之前的提示，须与正在使用的向量一致；未设置时用模型保存的提示",
    )
    max_seq_length: int | None = option(
        None,
        "tokens kept of a text; not set = as the model was saved",
        "每条文本保留的 token 数；未设置时按模型保存值",
        ge=4,
    )


class _Models(Config):
    """Model and texts."""

    trust_remote_code: bool = trust_option()
    pooling: PoolingMode | None = pooling_option()
    batch_size: int | None = encoding_batch_option()


class _Learning(Config):
    """Learning the map."""

    train_batch_size: int = option(
        256, "records a step; each sees the others' positives as negatives", "每步的记录数；批内互为负例", ge=2
    )
    learning_rate: float = option(3e-4, "learning rate of the map", "映射的学习率", gt=0)
    towards_identity: float = option(
        0.1,
        "what each step adds to the loss: this × the squared distance of the map from the identity, which changes nothing",
        "每步损失附加此系数 × 映射与恒等映射之差的平方；恒等映射不改变任何向量",
        ge=0,
    )
    max_steps: int = option(
        1000,
        "at most so many steps; it ends when the held-out records stop gaining",
        "最多的步数；留出的记录不再变好时提前结束",
        ge=1,
    )
    temperature: float = option(
        0.05,
        "cosines are divided by it: lower = the hardest negatives count more",
        "余弦除以温度；越低，最难的负例权重越大",
        gt=0,
    )
    neg_nums: int = option(
        2,
        "negatives drawn a record and step, where it has any; 0 = only the batch's",
        "每步为每条记录抽取的负例数（若有）；0 表示只用批内负例",
        ge=0,
    )
    same_answer: Literal["auto", "text", "chain"] = option(
        "auto",
        "which texts of a batch are right for a query and no negatives, as for fine-tuning: text, chain, or auto",
        "批内哪些文本也是查询的正确答案、不作负例，与微调相同：text、chain 或 auto",
    )
    validation_split: float = option(
        0.1,
        "share of the records held out, by which the map is chosen; records that share a query or a positive stay together",
        "留出用于选择映射的记录比例；共享查询或正例的记录不会被拆开",
        gt=0,
        lt=1,
    )
    seed: int = option(42, "the same seed gives the same map", "相同种子得到相同的映射", ge=0, le=2**32 - 1)


# Fields come in the order of the classes from the last to the first.
class AdaptConfig(_Learning, _Models, _Main):
    """Adapt a model's queries to records by a linear map, with the vectors of documents left as they are."""

    def check(self) -> None:
        """Refuse options that contradict each other. Raises ConfigError."""
        if not self.data_path.strip():
            raise ConfigError("data_path: is empty; name the training records")
