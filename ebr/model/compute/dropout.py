"""Dropout whose random numbers cost little on a CPU, where torch's own take longer than a layer of the model.

Masks come from SFC64, 16 bits a number, seeded by one draw from torch's generator: whoever restores that generator gets the
same masks again. The chance of a zero is exact to 1/65,536, and kept values are scaled so that the mean is kept exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

_LEVELS = 1 << 16
_NUMBERS_A_DRAW = 4
_NUMPY = {dtype: dtype for dtype in (torch.float32, torch.float64)} | dict.fromkeys(
    (torch.bfloat16, torch.float16), torch.int16
)
# transformers takes every name with "flash" or "sdpa" in it for one of its own.
_REGISTERED = "ebr_light_dropout"
_CHOSEN = "_ebr_chosen"


def keep_mask(shape: torch.Size, p: float, device: torch.device) -> tuple[Tensor, float]:
    """(bool mask, scale): False with chance p, and what kept values are multiplied by."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - p), 1 / (1 - p)
    n_dropped = round(p * _LEVELS)
    seed = int(torch.randint(2**62, ()))
    n = shape.numel()
    numbers = np.random.SFC64(seed).random_raw(-(-n // _NUMBERS_A_DRAW)).view(np.uint16)[:n]
    mask = torch.from_numpy(numbers >= n_dropped).view(shape)
    return mask, _LEVELS / max(1, _LEVELS - n_dropped)


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Values where the mask is True, zero elsewhere; a new tensor."""
    return _times(values, mask, None)


def masked_(values: Tensor, mask: Tensor) -> Tensor:
    """The same in place, for values that nobody else has."""
    return _times(values, mask, values)


def _times(values: Tensor, mask: Tensor, out: Tensor | None) -> Tensor:
    if values.device.type != "cpu" or values.dtype not in _NUMPY:
        return torch.mul(values, mask, out=out)
    # numpy's product with bools is about twice as fast as torch's. It knows no bfloat16, but its bits times 0 or 1.
    numbers = values.detach().view(_NUMPY[values.dtype]).numpy()
    product = np.multiply(numbers, mask.numpy(), out=None if out is None else numbers)
    return torch.from_numpy(product).view(values.dtype) if out is None else out


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:  # noqa: ANN401
        mask, ctx.scale = keep_mask(values.shape, p, values.device)
        ctx.save_for_backward(mask)
        return masked(values, mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (mask,) = ctx.saved_tensors
        return masked(gradient, mask).mul_(ctx.scale), None


def dropout(values: Tensor, p: float) -> Tensor:
    """Each value zero with chance p, the others scaled by 1 / (1 - p)."""
    dropped: Tensor = _Dropped.apply(values, p)
    return dropped


class LightDropout(nn.Dropout):
    """torch.nn.Dropout with the masks of this module."""

    def forward(self, input: Tensor) -> Tensor:
        """The input while evaluated, dropped out while trained."""
        return dropout(input, self.p) if self.training and 0 < self.p < 1 else super().forward(input)


def set_dropout(model: nn.Module, p: float) -> None:
    """Have every layer of a model drop out with chance p: modules of dropout, and chances that layers keep as numbers.

    What its config says stays, see chosen_dropout.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        for name in [name for name, value in vars(module).items() if "dropout" in name and type(value) in (int, float)]:
            setattr(module, name, p)
    vars(model)[_CHOSEN] = p


def chosen_dropout(model: nn.Module) -> float | None:
    """The chance that set_dropout gave a model, or the one that it is wrapped around; None = its config's."""
    chosen: list[float] = [vars(module)[_CHOSEN] for module in model.modules() if _CHOSEN in vars(module)]
    return chosen[0] if chosen else None


class _DroppedAttention(torch.autograd.Function):
    """softmax(q kᵀ s + bias), dropped out, times v; q, k, v (B, H, L, D) → (B, L, H, D).

    Of what is L² a head, two are saved: the shares, in the dtype of q, and the mask. Scales go to what is thin.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scaling: float,
        p: float,
    ) -> Tensor:
        scores = (query * scaling) @ key.transpose(2, 3)
        shares = (scores if bias is None else scores.add_(bias)).softmax(dim=-1)  # computed in float32 also for bfloat16
        mask, ctx.keep_scale = keep_mask(shares.shape, p, query.device)
        ctx.scaling = scaling
        ctx.save_for_backward(query, key, value, shares, mask)
        attended: Tensor = masked(shares, mask) @ (value * ctx.keep_scale)
        return attended.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        query, key, value, shares, mask = ctx.saved_tensors
        g = gradient.transpose(1, 2) * ctx.keep_scale
        to_value = masked(shares, mask).transpose(2, 3) @ g
        to_shares = masked_(g @ value.transpose(2, 3), mask)
        to_scores = torch._softmax_backward_data(to_shares, shares, -1, shares.dtype)
        to_query, to_key = to_scores @ (key * ctx.scaling), to_scores.transpose(2, 3) @ (query * ctx.scaling)
        return to_query, to_key, to_value, None, None, None


def light_dropout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout_p: float = 0.0,
    **extras: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """An attention function of transformers: sdpa, and where it drops out, the same written in plain products.

    query (B, H, L, D), key and value (B, Hkv, L, D) → (B, L, H, D). torch's own would draw L² numbers a head the slow way.
    """
    p = float(extras.pop("dropout", dropout_p))
    causal, bias = extras.get("is_causal"), extras.get("position_bias")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    learned = attention_mask is not None and attention_mask.requires_grad
    masks = bias is None and not learned and not (causal and attention_mask is None)
    if not 0 < p < 1 or not masks or query.device.type != "cpu":
        attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=p, **extras)
        return attended
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (one.to(torch.get_autocast_dtype("cpu")) for one in (query, key, value))
    n_groups = query.shape[1] // key.shape[1]
    if n_groups > 1:
        key, value = key.repeat_interleave(n_groups, dim=1), value.repeat_interleave(n_groups, dim=1)
    scaling = extras.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        hidden = torch.zeros(attention_mask.shape, dtype=query.dtype)
        attention_mask = hidden.masked_fill_(~attention_mask, torch.finfo(query.dtype).min)
    with torch.autocast("cpu", enabled=False):  # backward knows nothing of it: both compute in what they are given
        found: Tensor = _DroppedAttention.apply(query, key, value, attention_mask, scaling, p)
    return found, None


@contextmanager
def light_dropout(model: nn.Module) -> Iterator[None]:
    """The model drops out by the masks of this module, until the block ends; a model on a GPU stays as it is."""
    if next(model.parameters()).device.type != "cpu":
        yield
        return
    plain = [one for one in model.modules() if type(one) is nn.Dropout]
    transformers = [one for one in model.modules() if isinstance(one, PreTrainedModel) and _attends_by_sdpa(one)]
    try:
        for one in plain:
            one.__class__ = LightDropout
        for one in transformers:
            _set_attention(one, _REGISTERED)
        yield
    finally:
        for one in plain:
            one.__class__ = nn.Dropout
        for one in transformers:
            _set_attention(one, "sdpa")


def _attends_by_sdpa(model: PreTrainedModel) -> bool:
    return bool(model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation())


def _set_attention(model: PreTrainedModel, name: str) -> None:
    if name == _REGISTERED:
        AttentionInterface.register(name, light_dropout_attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(name)
