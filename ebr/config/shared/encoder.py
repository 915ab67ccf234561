"""Options that every command that loads a model has, each defined once."""

from __future__ import annotations

from typing import Any, Literal

from ebr.config.options import option

PoolingMode = Literal["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]


def trust_option(models: str = "the model") -> Any:  # noqa: ANN401
    """trust_remote_code, as every command that loads a model has it."""
    return option(
        False,
        f"run Python code that comes with {models}; only for sources you trust",
        "运行模型自带的 Python 代码；仅用于可信来源",
    )


def pooling_option() -> Any:  # noqa: ANN401
    """pooling, as every command that loads a model has it."""
    return option(
        None,
        "how token vectors become one; not set = the model's own, else lasttoken for decoders and mean for encoders",
        "词元向量的池化方式；未设置时沿用模型自带的，否则解码器用 lasttoken、编码器用 mean",
    )


def base_model_option(what: str = "the model", zh: str = "模型") -> Any:  # noqa: ANN401
    """base_model_path, as every command that loads a model has it."""
    return option(
        None,
        f"where the base lies now, if {what} is an adapter; not set = where the adapter's files say",
        f"{zh}为适配器时，其基础模型现在的位置；未设置时按适配器文件所记",
    )


def encoding_batch_option() -> Any:  # noqa: ANN401
    """batch_size, as every command that encodes for itself has it."""
    return option(
        None,
        "at most so many texts a forward pass; not set = by the processor's cache or the GPU's memory",
        "每次前向计算最多的文本数；未设置时按处理器缓存或显存决定",
        ge=1,
    )
