"""How a model computes: precision, attention, compilation, tokens a pass; settled once, and applied wherever it computes."""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from ebr.data.text.counted import counted
from ebr.errors import DataError, ModelError, first_line
from ebr.model.compute.attention import (
    FLASH,
    PADDED,
    CompiledForward,
    attention_of,
    compiled_forward,
    set_attention,
    unpadded_attention,
)
from ebr.model.compute.packed_weights import pack_weights, packed_forward, unpack_weights, why_not_packed
from ebr.model.encoder.batching import default_token_budget, packed_token_budget
from ebr.model.files.quantization import is_quantized

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ComputeSettings:
    """How a model computes; fixed before the first shard and saved in the run's record.

    precision: float32, bfloat16 or float16. compiled: through torch.compile. attention: padded, varlen or flash_attention_2.
    token_budget: tokens a forward pass. n_threads: of the CPU. device: cpu or cuda. packed_weights: see packed_weights.py; they
    are never compiled too.
    """

    precision: str
    compiled: bool
    attention: str
    token_budget: int
    n_threads: int
    device: str
    packed_weights: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def describe(self) -> str:
        """In words, for a summary."""
        compiled = ", compiled" if self.compiled else ", packed weights" if self.packed_weights else ""
        threads = f", {counted(self.n_threads, 'thread')}" if self.device == "cpu" else ""
        attention = {"padded": "padded", "varlen": "unpadded", "flash_attention_2": "unpadded by flash-attn"}[self.attention]
        return f"{self.precision} on {self.device}, {attention}{compiled}, {self.token_budget:,} tokens a pass{threads}"

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ComputeSettings:
        """Read what to_json wrote. Raises DataError for anything else."""
        types = {field.name: field.type for field in fields(cls)}
        if isinstance(record, dict):  # of a run begun before there were packed weights
            record = {"packed_weights": False, **record}
        fits = isinstance(record, dict) and {name: type(value).__name__ for name, value in record.items()} == types
        if not fits or record["precision"] not in DTYPES:
            raise DataError(f"compute settings {record}: want {', '.join(types)}; start the run anew")
        return cls(**record)


def settings_of(model: SentenceTransformer) -> ComputeSettings:
    """How a model computes as it stands, with the budget of default_token_budget."""
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
    packed = packed_forward(model) is not None
    return ComputeSettings(
        precision=str(dtype).removeprefix("torch."),
        compiled=compiled_forward(model) is not None,
        attention=attention_of(model),
        token_budget=packed_token_budget(model, dtype) if packed else default_token_budget(model, dtype),
        n_threads=torch.get_num_threads(),
        device=model.device.type,
        packed_weights=packed,
    )


def apply_settings(model: SentenceTransformer, settings: ComputeSettings) -> ComputeSettings:
    """Have the model compute so, in place: its weights, attention, compilation; the settings as they are in the end.

    Settings made on another kind of device become exact and padded ones; without flash-attn, its texts are laid end to end by
    torch, or padded; weights that cannot be packed stay plain. Raises ModelError for other attention that this model cannot do.
    """
    if settings.device != model.device.type:
        settings = _on_this_device(model, settings)
    unpack_weights(model)  # what was packed is of the weights as they were
    if not is_quantized(model):
        # Parameters only: rotary and other tables are buffers, and in half precision they would blur positions.
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.data = weight.data.to(DTYPES[settings.precision])
    settings = replace(settings, attention=_set_attention(model, settings.attention))
    present = compiled_forward(model)
    if settings.compiled and present is None and hasattr(model[0], "model"):
        model[0].model.forward = CompiledForward(model[0].model)
    elif not settings.compiled and present is not None:
        present.undo()
    return replace(settings, packed_weights=settings.packed_weights and _pack(model, settings))


def _on_this_device(model: SentenceTransformer, settings: ComputeSettings) -> ComputeSettings:
    """What is safe on a device that nothing was tried on; float32 is near enough whatever was asked for."""
    device, precision = model.device.type, settings.precision if is_quantized(model) else "float32"
    budget = min(settings.token_budget, default_token_budget(model, DTYPES[precision]))
    log.warning(
        "settings were made on %s and the model is on %s: %s, padded, %d tokens a pass",
        settings.device,
        device,
        precision,
        budget,
    )
    return replace(settings, precision=precision, attention=PADDED, token_budget=budget, device=device, packed_weights=False)


def _pack(model: SentenceTransformer, settings: ComputeSettings) -> bool:
    """Pack the model's weights; whether that could be done, in a warning if not: the settings may be of another machine."""
    reason = why_not_packed(model, DTYPES[settings.precision])
    if reason is None:
        pack_weights(model)
    else:
        log.warning("packed weights: %s; the model computes as it was loaded", reason)
    return reason is None


def _set_attention(model: SentenceTransformer, attention: str) -> str:
    """Have the model attend so, or without flash-attn where that is not at hand; the attention that it has then."""
    try:
        set_attention(model, attention)
    except ModelError as error:
        if attention != FLASH:
            raise
        unpadded = unpadded_attention(model)
        attention = PADDED if unpadded is None or unpadded == FLASH else unpadded
        log.warning("%s; %s from here on", first_line(error), attention)
        set_attention(model, attention)
    return attention


def copy_in(model: SentenceTransformer, dtype: torch.dtype) -> SentenceTransformer:
    """The model with its weights in another precision; those that have it already, and the tokenizer, are shared."""
    memo: dict[int, Any] = {id(model.tokenizer): model.tokenizer}
    for weight in model.parameters():
        converted = weight.is_floating_point() and weight.dtype != dtype
        memo[id(weight)] = torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False) if converted else weight
    return copy.deepcopy(model, memo)
