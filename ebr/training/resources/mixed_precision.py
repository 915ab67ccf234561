"""What a run multiplies in: as its options say, or as the machine at hand is fast."""

from __future__ import annotations

from typing import Literal

import torch

from ebr.config import FinetuneConfig
from ebr.model.compute.attention import this_machine

MixedPrecision = Literal["bf16", "fp16", "no"]


def mixed_precision(config: FinetuneConfig) -> MixedPrecision:
    """The options fp16 and bf16 in one word; bf16 auto = where the GPU, or without one the processor, multiplies bfloat16."""
    if config.fp16:
        return "fp16"
    wanted = _multiplies_bfloat16() if config.bf16 == "auto" else config.bf16
    return "bf16" if wanted else "no"


def products_dtype(config: FinetuneConfig) -> torch.dtype:
    """The dtype of matrix products under mixed precision, or without."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[mixed_precision(config)]


def _multiplies_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return this_machine("cpu").has_bfloat16
