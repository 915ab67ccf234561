"""Options of tuning by itself: records and minutes in, the best model out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from ebr.config.options import Config, Language, Names, option
from ebr.config.shared.encoder import PoolingMode, pooling_option, trust_option
from ebr.errors import ConfigError


def _recipe(value: object) -> object:
    """A recipe itself, as a notebook and a manifest hold it, or the file that one stands in."""
    if not isinstance(value, str | Path):
        return value
    try:
        record = json.loads(Path(value).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"must be a recipe.json of ebr tune ({error})") from None
    options = record.get("config", record) if isinstance(record, dict) else None
    recipe = options.get("recipe", options) if isinstance(options, dict) else None
    if not isinstance(recipe, dict):
        raise ValueError("must be a recipe.json of ebr tune")
    return recipe


class _Main(Config):
    """What matters first."""

    model_name: str = option(
        "all-MiniLM-L6-v2",
        "base model: a local folder, the embedded model by its name, or a hub id; no adapter",
        "基础模型：本地目录、内置模型名或 hub id；不能是适配器",
    )
    data_path: str = option(
        ...,
        "training records (.json, .jsonl, .csv, .tsv, .parquet; .gz): a file, a glob, or a folder (not its subfolders)",
        "训练数据（.json、.jsonl、.csv、.tsv、.parquet，可为 .gz）：文件、通配符或目录（不含子目录）",
    )
    output_dir: Path = option(..., "folder of the model, the report and the work on the way", "模型、报告与中间结果的目录")
    minutes: float = option(30, "what it may take in all, the proof included", "总时间上限（分钟），包括最后的验证", gt=0)
    steps: int | None = option(
        None,
        "training steps in all, instead of minutes: the same seed and steps make the same choice on the same machine",
        "以训练总步数代替 minutes：同一机器上相同种子与步数得到相同的选择",
        ge=24,
    )
    eval_dataset: Path | None = option(
        None,
        "evaluation folder (corpus.jsonl, queries.jsonl, qrels.tsv) for the proof, which nothing is chosen on; "
        "not set = a part of the records",
        "最后验证所用的评测目录（corpus.jsonl、queries.jsonl、qrels.tsv），不参与选择；未设置时从数据中留出",
    )
    corpus: Names | None = option(
        None,
        "further texts that are searched: corpus.jsonl or the folder that holds it, a table with a column text, or a text "
        "file, one text a line; several with commas. They make the choice harder, and so surer; negatives are looked for "
        "among them, and pairs are made of them",
        "检索时的其他文本：corpus.jsonl 或其所在目录、含 text 列的表，或每行一条的文本文件；多个用逗号分隔。"
        "它们使选择更难也更可靠，并用于挖掘负例和构造样本",
    )
    train_batch_size: int = option(
        32,
        "records a batch; each sees the others' positives as negatives",
        "每批记录数；批内互为负例",
        ge=2,
    )
    max_seq_length: int = option(
        256,
        "tokens kept of a text; lowered with a warning to what the model allows",
        "每条文本保留的 token 数；超出模型上限时自动降低并提示",
        ge=4,
    )
    query_prompt: str | None = option(None, "put before queries", "加在查询之前的提示")
    passage_prompt: str | None = option(
        None, "put before passages (positives and negatives)", "加在段落（正例与负例）之前的提示"
    )


class _Models(Config):
    """Model and texts."""

    finetune_type: Literal["lora", "full"] = option(
        "lora", "lora: a small adapter, merged in the end; full: every weight", "lora：小型适配器，最后合并；full：全部权重"
    )
    trust_remote_code: bool = trust_option()
    pooling: PoolingMode | None = pooling_option()


class _Choice(Config):
    """Choice and proof."""

    forgetting_dataset: Path | None = option(
        None,
        "a second evaluation folder, of something else: what tuning made worse there. Of the weights of the dial that gain "
        "alike, the one that keeps most there is taken; else it chooses nothing",
        "另一领域的评测目录：检查微调在那里造成的退步（遗忘）。"
        "提升相当的合并比例中，取在该评测集上 nDCG@10 最高者；其他选择都不使用它",
    )
    choose_split: float | None = option(
        None,
        "share of the records that recipes are compared on; records that share a query or a positive stay together. Not set = "
        "0.15, more where that is fewer than 150 queries, or than ten groups, at most a third",
        "用于比较各方案的记录比例；共享查询或正例的记录不会被拆开。"
        "未设置时为 0.15，不足 150 条查询或十组时相应提高，至多三分之一",
        gt=0,
        lt=0.5,
    )
    test_split: float = option(
        0.15,
        "share of the records for the proof, where there is no eval_dataset",
        "没有 eval_dataset 时，留作最后验证的记录比例",
        gt=0,
        lt=0.5,
    )
    recipe: Annotated[dict[str, Any] | None, BeforeValidator(_recipe)] = option(
        None,
        "make this model again, and try nothing: a recipe.json of ebr tune",
        "重新得到这个模型，不做尝试：ebr tune 写出的 recipe.json",
    )
    language: Language = option("en", "of the report: en or zh", "报告的语言：en 或 zh")
    seed: int = option(42, "the same seed and steps make the same choice", "相同种子与步数得到相同的选择", ge=0, le=2**32 - 1)


# Fields come in the order of the classes from the last to the first.
class TuneConfig(_Choice, _Models, _Main):
    """Tune by itself: try recipes for so many minutes, keep the best model, and prove what it is worth."""

    def check(self) -> None:
        """Refuse options that contradict each other. Raises ConfigError."""
        if not self.data_path.strip():
            raise ConfigError("data_path: is empty; name the training records")
        field = type(self).model_fields["test_split"]
        if self.eval_dataset and self.test_split != field.default:
            raise ConfigError("test_split: has no meaning with an eval_dataset; leave one of the two out")
        if self.recipe is not None and self.steps:
            raise ConfigError("recipe, steps: a recipe has its own steps; leave one of the two out")
        if self.steps and self.minutes != type(self).model_fields["minutes"].default:
            raise ConfigError("minutes, steps: both say when to end; give one")
