"""Options of the training engine: how a batch is computed, never what it teaches."""

from __future__ import annotations

from ebr.config.options import Config, option


class EngineOptions(Config):
    """Memory and speed; the gradients are the same whatever is set here."""

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
    token_cache: bool = option(
        True,
        "keep tokens on disk ($EBR_CACHE_DIR or ~/.cache/ebr), keyed by data, tokenizer and lengths",
        "把分词结果缓存到磁盘（$EBR_CACHE_DIR 或 ~/.cache/ebr），按数据、分词器与长度区分",
    )
