"""A base whose weights are held in 4 or 8 bits (Dettmers et al. 2022, 2023), through bitsandbytes, on CPU and GPU alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import BitsAndBytesConfig

from ebr.data.files.write import read_manifest
from ebr.errors import MissingPackageError, ModelError, how_to_install
from ebr.model.files.kind import read_settings
from ebr.model.files.peft_import import import_bitsandbytes

log = logging.getLogger(__name__)

_KEPT = ["pooler"]
"""In float: files may lack it, no embedding reads it, and one that was made up could not be computed in 4 or 8 bits."""


def quantization_config(bits: int, *, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """How transformers loads a base: nf4 with doubly quantised scales for 4 bits, int8 with outliers kept apart for 8.

    compute_dtype: the precision of the matrix products, for 4 bits. Raises MissingPackageError without bitsandbytes.
    """
    check_bitsandbytes()
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_KEPT)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=_KEPT,
    )


def check_saved_bits(location: str, where: str, asked: BitsAndBytesConfig | None) -> None:
    """Say that a model's own files hold its weights in 4 or 8 bits (bitsandbytes), and refuse to hold them in others.

    location: a folder or a hub id. where: the model, for messages. Raises ModelError; MissingPackageError without bitsandbytes.
    """
    config = read_settings(location, "config.json")
    saved = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(saved, dict) or saved.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return
    check_bitsandbytes()
    bits = 4 if saved.get("load_in_4bit") else 8
    if asked is not None and asked.load_in_4bit != (bits == 4):
        raise ModelError(f"{where}: was saved in {bits} bits; give quantization_bits {bits}, or the unquantised model")
    log.info("%s: its weights are held in %d bits, as they were saved", where, bits)


def is_quantized(model: SentenceTransformer) -> bool:
    """Whether the model's base computes in fewer bits: only as it was loaded, and only an adapter on it can be tuned."""
    return bool(getattr(getattr(model[0], "model", None), "is_quantized", False))


def recorded(folder: Path | None) -> tuple[int, torch.dtype]:
    """The bits of the base that an adapter of ours was tuned on, and of its products; (0, float32) for any other model."""
    config: dict[str, Any] = (read_manifest(folder) or {}).get("config", {}) if folder is not None else {}
    bits = config.get("quantization_bits", 0) if config.get("finetune_type") == "qlora" else 0
    # Other than True: a folder that does not say what `auto` came to.
    products = torch.bfloat16 if config.get("bf16") is True else torch.float16 if config.get("fp16") else torch.float32
    return int(bits), products


def check_bitsandbytes(what: str = "quantised weights") -> None:
    """Raises MissingPackageError when bitsandbytes is absent. what: that which needs it, for the message."""
    try:
        import_bitsandbytes()
    except ImportError as error:
        raise MissingPackageError(f"{what}: bitsandbytes is missing ({error}); {how_to_install('qlora')}") from None
    # It says at every layer of every step that products of 8 bits are of float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def keep_trainable(model: torch.nn.Module) -> None:
    """Forbid the inference-only packing of 4-bit weights on CPUs with AVX512-BF16: after it, gradients are silently zero.

    The first forward pass packs, so nothing may pass before this: watch_loading calls it on whatever transformers loaded.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
