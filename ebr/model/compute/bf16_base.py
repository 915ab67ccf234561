"""A frozen base held in bfloat16 while its float32 adapters train: half a GPU's memory, and no cast of it at every step.

On a CPU the float32 weights stay beside it, unless bfloat16 holds every bit of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Held:
    """A weight in bfloat16; original: float32 on the CPU, None where bfloat16 holds every bit of it."""

    parameter: Tensor
    original: Tensor | None

    def restore(self) -> None:
        """The weight as it was loaded."""
        parameter, original = self.parameter, self.original
        parameter.data = parameter.data.float() if original is None else original.to(parameter.device)

    def halve(self) -> None:
        """The weight in bfloat16."""
        self.parameter.data = self.parameter.data.bfloat16()


class HalfBase:
    """The frozen matrices of a model, float32 as they were loaded or bfloat16 as they are trained on.

    Matrices alone: norms and biases are small, and autocast computes norms in float32.
    """

    def __init__(self, model: nn.Module) -> None:
        # Trainable weights stay float32; a quantised base is not of float32, and stays as it is.
        matrices = [one.weight for one in model.modules() if isinstance(one, nn.Linear | nn.Embedding)]
        frozen = {id(one): one for one in matrices if not one.requires_grad and one.dtype == torch.float32}
        self._held = [_Held(one, _original(one)) for one in frozen.values()]
        self.halve()

    def halve(self) -> None:
        """To bfloat16, for training under autocast."""
        for one in self._held:
            one.halve()

    def restore(self) -> None:
        """To float32, exactly as before."""
        for one in self._held:
            one.restore()


def _original(weight: Tensor) -> Tensor | None:
    rounded = weight.data.bfloat16().float()
    return None if torch.equal(rounded, weight.data) else weight.data.to("cpu", copy=weight.device.type != "cpu")


_HALVES = "_ebr_half_base"


@contextmanager
def frozen_in_bfloat16(model: nn.Module) -> Iterator[None]:
    """The model's frozen matrices in bfloat16 until the block ends; see as_loaded."""
    half = HalfBase(model)
    model.__dict__[_HALVES] = half
    try:
        yield
    finally:
        del model.__dict__[_HALVES]
        half.restore()


@contextmanager
def as_loaded(model: nn.Module) -> Iterator[None]:
    """The frozen matrices as they were loaded, also within frozen_in_bfloat16: for an evaluation on the way."""
    half: HalfBase | None = model.__dict__.get(_HALVES)
    if half is None:
        yield
        return
    half.restore()
    try:
        yield
    finally:
        half.halve()
