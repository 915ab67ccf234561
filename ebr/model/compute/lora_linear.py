"""A linear layer with a LoRA adapter as one step of autograd: fewer and larger products, nothing saved twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ebr.model.compute.dropout import keep_mask, masked
from ebr.model.files.peft_import import LoraLinear


class _Adapted(torch.autograd.Function):
    """y = x Wᵀ + b + s · (m ∘ x) Aᵀ Bᵀ with frozen W and b, and a dropout mask m (Hu et al. 2021, eq. 3).

    Of the input only itself and the mask are saved: the layers that share an input share it, where plain autograd keeps a
    dropped-out copy for each.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        p: float,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        mask, keep_scale = keep_mask(flat.shape, p, x.device) if p else (None, 1.0)
        ctx.scale = scaling * keep_scale
        ctx.adapter_dtype = a.dtype
        a, b = a.to(x.dtype), b.to(x.dtype)
        # (r, T): of the ways to write these thin products the ones that a CPU does not crawl through; a GPU has no preference.
        inner = a @ (flat if mask is None else masked(flat, mask)).T
        y = linear(flat, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        y.addmm_(inner.T, b.T, alpha=ctx.scale)
        ctx.save_for_backward(flat, mask, weight, a, b, inner)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        flat, mask, weight, a, b, inner = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        through = (b.T.contiguous() @ g.T).mul_(ctx.scale)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = g @ weight.to(g.dtype)  # cast again: a cast that is kept would take as much memory as the weight
            if mask is None:
                to_x.addmm_(through.T, a)
            else:
                to_x += masked(through.T @ a, mask)
            to_x = to_x.view(*gradient.shape[:-1], -1)
        to_a = through @ (flat if mask is None else masked(flat, mask))
        to_b = (inner @ g).T * ctx.scale
        return to_x, None, None, to_a.to(ctx.adapter_dtype), to_b.to(ctx.adapter_dtype), None, None


def _forward(layer: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    """What peft's layer gives, where it is the plain case; else what it gives itself."""
    # In training also without a graph: the second pass of a gradient cache must find the values and masks of the first.
    is_used = layer.training or torch.is_grad_enabled()
    if args or kwargs or layer.disable_adapters or layer.merged or not is_used:
        plain: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return plain
    (name,) = layer.active_adapters
    base = layer.base_layer
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    p = float(getattr(layer.lora_dropout[name], "p", 0.0)) if layer.training else 0.0
    adapted: Tensor = _Adapted.apply(
        x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]), p
    )
    return adapted


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is peft's LoRA on torch's own linear layer, frozen, with one adapter of the original kind."""
    if not isinstance(layer, LoraLinear) or type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear:
        return False
    names: list[str] = layer.active_adapters
    if len(names) != 1 or names[0] not in layer.lora_A or names[0] in layer.lora_variant:
        return False
    frozen = not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
    return frozen and all(getattr(low[names[0]], "bias", None) is None for low in (layer.lora_A, layer.lora_B))


@contextmanager
def fused_lora(model: nn.Module) -> Iterator[None]:
    """The model's plain LoRA layers compute as one step each, until the block ends; other layers stay as they are."""
    layers = [layer for layer in model.modules() if _is_plain(layer)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
