"""Options of the training engine: how a batch is computed, never what it teaches."""

from __future__ import annotations

from typing import Literal

from ebr.config.options import Config, option


class EngineOptions(Config):
    """Memory and speed."""

    micro_batch_tokens: int | None = option(
        None,
        "tokens a forward pass, padding included; not set = what suits the device; it shrinks when memory runs out",
        "每次前向的 token 数（含填充）；未设置时按设备选取，内存不足时自动减小",
        ge=1,
    )
    activation_memory_gb: float | None = option(
        None,
        "GiB of activations kept for the backward pass; what goes beyond is computed twice (gradient cache); "
        "not set = half of the free memory",
        "为反向传播保留的激活值上限（GiB）；超出部分重算一遍（梯度缓存）；未设置时取空闲内存的一半",
        ge=0,
    )
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, slower", "重算激活值：省显存但更慢")
    fp16: bool = option(False, "mixed precision float16; needs a GPU", "float16 混合精度；需要 GPU")
    bf16: bool | Literal["auto"] = option(
        "auto",
        "mixed precision bfloat16; auto = where the processor or the GPU is fast with it",
        "bfloat16 混合精度；auto 在处理器或 GPU 上 bfloat16 更快时启用",
    )
    attn_implementation: Literal["eager", "sdpa"] | None = option(
        None,
        "how attention is computed; not set = the library's choice, without padding in half precision on a GPU",
        "注意力的计算方式；未设置时由库决定，GPU 半精度时不填充",
    )
    dataloader_num_workers: int = option(
        0, "processes that prepare batches; 0 = the main one", "准备数据的进程数；0 表示主进程", ge=0
    )
    dataloader_pin_memory: bool = option(True, "pinned host memory (used with a GPU)", "锁页内存（有 GPU 时生效）")
    token_cache: bool = option(
        True,
        "keep tokens on disk ($EBR_CACHE_DIR or ~/.cache/ebr), keyed by data, tokenizer and lengths",
        "把分词结果缓存到磁盘（$EBR_CACHE_DIR 或 ~/.cache/ebr），按数据、分词器与长度区分",
    )
