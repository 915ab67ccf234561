"""Options of merging."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ebr.config.options import Config, Names, option
from ebr.config.shared.encoder import trust_option
from ebr.errors import ConfigError

AUTO: Literal["auto"] = "auto"


def _weight(value: object) -> object:
    """A command line gives text; whatever is wrong is told in one sentence."""
    if value == AUTO:
        return value
    try:
        weight = float(str(value))
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:  # nan is refused too
        raise ValueError("must be a number from 0 to 1, or auto")
    return weight


class MergeConfig(Config):
    """Merge what was tuned into its base, the whole of it or a part: one model that needs no peft."""

    base_model_path: str = option(
        ...,
        "the base that was tuned: a local folder, the embedded model by its name, or a hub id",
        "微调所用的基础模型：本地目录、内置模型名或 hub id",
    )
    lora_adapter_path: Path | None = option(
        None, "the adapter: its folder, or its .safetensors file", "适配器：目录，或其中的 .safetensors 文件"
    )
    adapters: Names | None = option(
        None,
        "instead of lora_adapter_path: several tunings of one base, of which the mean is merged; adapters, or the folders of "
        "models whose every weight was tuned",
        "代替 lora_adapter_path：同一基础模型的多次微调，合并其平均；可为适配器，也可为全量微调的模型目录",
        min_length=1,
    )
    output_path: Path = option(..., "folder of the merged model", "合并后模型的目录")
    weight: Annotated[float | Literal["auto"], BeforeValidator(_weight)] = option(
        1.0,
        "how much of the tuning is merged: 0 = the base, 1 = all of it; auto = the best of 0, 0.1, … 1 on eval_dataset",
        "合并的比例：0 即基础模型，1 即全部；auto 取 0、0.1、…、1 中在 eval_dataset 上最好的一个",
    )
    eval_dataset: Path | None = option(
        None,
        "for weight auto: evaluation folder (corpus.jsonl, queries.jsonl, qrels.tsv) that the weight is chosen on",
        "用于 weight auto：据以选择比例的评测目录（corpus.jsonl、queries.jsonl、qrels.tsv）",
    )
    forgetting_dataset: Path | None = option(
        None,
        "for weight auto: a second evaluation folder, of something else, whose figures stand beside; it chooses nothing",
        "用于 weight auto：另一领域的评测目录，其指标并列给出，不参与选择",
    )
    training_precision: Literal["float32", "bfloat16"] | None = option(
        None,
        "precision of the merged weights; not set = float32, in which adapters are saved, whatever the training multiplied in",
        "合并后权重的精度；未设置时为 float32，即适配器保存时的精度，与训练时的乘法精度无关",
    )
    trust_remote_code: bool = trust_option()

    def check(self) -> None:
        """Refuse a merge of nothing, of one thing twice, and options that nothing would read. Raises ConfigError."""
        if (self.lora_adapter_path is None) == (self.adapters is None):
            raise ConfigError("lora_adapter_path, adapters: give one of the two")
        folders = [Path(one).expanduser().resolve() for one in self.adapters or ()]
        if twice := next((one for one in folders if folders.count(one) > 1), None):
            raise ConfigError(f"adapters: {twice} is given twice; it would count double in the mean")
        if self.weight == AUTO and self.eval_dataset is None:
            raise ConfigError("weight auto: needs eval_dataset, which the weight is chosen on")
        idle = [name for name in ("eval_dataset", "forgetting_dataset") if getattr(self, name) is not None]
        if self.weight != AUTO and idle:
            raise ConfigError(f"{idle[0]}: is read for weight auto only; leave it out, and evaluate the merged model instead")
