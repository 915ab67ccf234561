"""What a run multiplies in: as its options say, or as the machine at hand is fast."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch
from torch.nn import functional as F

from ebr.config import FinetuneConfig
from ebr.model.compute.attention import this_machine

MixedPrecision = Literal["bf16", "fp16", "no"]
_ROUNDS = 24


def mixed_precision(config: FinetuneConfig) -> MixedPrecision:
    """The options fp16 and bf16 in one word; bf16 auto = where the GPU, or without one the processor, is fast with bfloat16."""
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
    machine = this_machine("cpu")
    # AMX wins by far. AVX512-BF16 alone does on some processors; on others it takes twice the time of float32.
    return "amx_bf16" in machine.flags or (machine.has_bfloat16 and _wins_a_race())


@cache
def _wins_a_race() -> bool:
    """Whether a small model's product takes less time in bfloat16 than in float32: the best of some rounds in turns.

    By processor time: on a busy machine the clock says who was interrupted less.
    """
    best: dict[torch.dtype, float] = {}
    for _ in range(_ROUNDS):
        for dtype in (torch.float32, torch.bfloat16):
            rows, weight = torch.ones(512, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
            started = time.process_time()
            F.linear(rows, weight)
            best[dtype] = min(best.get(dtype, float("inf")), time.process_time() - started)
    return best[torch.bfloat16] < best[torch.float32]
