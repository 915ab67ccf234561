"""Options of retrieval evaluation."""

from __future__ import annotations

from pathlib import Path

from ebr.config.options import Config, Language, Names, option
from ebr.config.shared.encoder import PoolingMode, base_model_option, encoding_batch_option, pooling_option, trust_option


class _Main(Config):
    """What matters first."""

    models: Names = option(
        ...,
        "models to measure, the base first: folders (adapters too), the embedded model by its name, or hub ids",
        "要评测的模型，第一个为基础模型：本地目录（含适配器）、内置模型名或 hub id",
        min_length=1,
    )
    eval_dataset: Path = option(
        ...,
        "evaluation folder: corpus.jsonl, queries.jsonl, and qrels of BEIR or TREC",
        "评测目录：corpus.jsonl、queries.jsonl 以及 BEIR 或 TREC 格式的 qrels",
    )
    forgetting_dataset: Path | None = option(
        None,
        "a second evaluation folder, of something else: what tuning made worse there",
        "另一领域的评测目录：检查微调在那里造成的退步（遗忘）",
    )
    output_dir: Path = option(
        Path("./evaluation"), "report.html and report.json go there", "report.html 与 report.json 写入此目录"
    )
    query_prompt: str | None = option(None, "put before queries instead of prompt", "加在查询之前的提示，优先于 prompt")
    passage_prompt: str | None = option(None, "put before documents instead of prompt", "加在文档之前的提示，优先于 prompt")
    max_seq_length: int | None = option(
        None,
        "tokens kept of a text; not set = as each model was saved",
        "每条文本保留的 token 数；未设置时按各模型保存值",
        ge=4,
    )
    language: Language = option("en", "of the report: en or zh", "报告语言：en 或 zh")


class _Models(Config):
    """Models and texts."""

    trust_remote_code: bool = trust_option("the models")
    pooling: PoolingMode | None = pooling_option()
    base_model_path: str | None = base_model_option("one of the models", "其中有模型")
    prompt: str | None = option(
        None,
        "put before every text, query and document; not set = as each model was saved; '' = none",
        "加在所有文本（查询与文档）之前的提示；未设置时用各模型保存的提示；'' 表示不加",
    )
    query_max_len: int | None = option(
        None, "tokens kept of a query; not set = max_seq_length", "查询保留的 token 数；未设置时取 max_seq_length", ge=4
    )
    passage_max_len: int | None = option(
        None, "tokens kept of a document; not set = max_seq_length", "文档保留的 token 数；未设置时取 max_seq_length", ge=4
    )
    batch_size: int | None = encoding_batch_option()


class _Measuring(Config):
    """Measuring."""

    k: int = option(
        100,
        "documents ranked a query; metrics that look deeper are left out",
        "每个查询取回的文档数；超出此深度的指标不计算",
        ge=10,
    )
    baselines: bool = option(
        True,
        "also rank by BM25, and by BM25 and each model together (reciprocal rank fusion)",
        "同时评测 BM25，以及 BM25 与各模型的混合排序（倒数排名融合）",
    )
    train_data: str | None = option(
        None,
        "training records to look for among the evaluation texts; not set = those that the models' manifests name",
        "用于泄漏检查的训练数据；未设置时取模型清单中记录的训练数据",
    )
    save_runs: bool = option(False, "also write every ranking as a TREC run file", "同时把每个排序结果写为 TREC run 文件")
    seed: int = option(42, "the same seed gives the same intervals", "相同种子得到相同的置信区间", ge=0, le=2**32 - 1)


# Fields come in the order of the classes from the last to the first.
class EvaluationConfig(_Measuring, _Models, _Main):
    """Measure models on an evaluation folder, the first against the others, and write a report."""
