"""Options of merging."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ebr.config.options import Config, option
from ebr.config.shared.encoder import trust_option


class MergeConfig(Config):
    """Merge a LoRA or QLoRA adapter into its base: one model that needs no peft."""

    base_model_path: str = option(
        ...,
        "the base that the adapter was trained on: a local folder, the embedded model by its name, or a hub id",
        "训练适配器所用的基础模型：本地目录、内置模型名或 hub id",
    )
    lora_adapter_path: Path = option(
        ..., "the adapter: its folder, or its .safetensors file", "适配器：目录，或其中的 .safetensors 文件"
    )
    output_path: Path = option(..., "folder of the merged model", "合并后模型的目录")
    training_precision: Literal["float32", "bfloat16"] | None = option(
        None,
        "precision of the merged weights; not set = the one that the adapter was trained in, else float32",
        "合并后权重的精度；未设置时取适配器训练时的精度，否则 float32",
    )
    trust_remote_code: bool = trust_option()
