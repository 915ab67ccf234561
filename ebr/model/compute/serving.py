"""A model while it trains: without padding, a frozen base in bfloat16; and as it will be served, where it is judged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from ebr.errors import first_line
from ebr.model.compute.attention import PADDED, Kernel, attention_of, set_attention, torch_varlen, unpadded_attention
from ebr.model.compute.dropout import chosen_dropout
from ebr.model.encoder.text_reader import TextReader

log = logging.getLogger(__name__)

_TRIAL = ["a short text", "a text with a few more words than the one before it", "one"]
_ALIKE = 0.99


@contextmanager
def unpadded(model: SentenceTransformer, *, name: str | None = None, kernel: Kernel = torch_varlen) -> Iterator[None]:
    """The model attends without padding until the block ends, where it can.

    name: how, see attention.py; None = the best of this device, if any. A model that drops out attention stays padded,
    for these kernels cannot; so does one whose trial fails.
    """
    name = name or unpadded_attention(model)
    before = attention_of(model)
    if name is None or _drops_attention(model) or before != PADDED:
        yield
        return
    was = model[0].model.config._attn_implementation
    try:
        if _gives_the_same(model, name, kernel):
            set_attention(model, name, kernel=kernel)
        yield
    finally:
        if attention_of(model) != PADDED:
            model[0].model.set_attn_implementation(was)


@contextmanager
def padded_again(model: SentenceTransformer) -> Iterator[None]:
    """The model attends with padding, also within `unpadded`: what evaluates in float32 needs it, for these kernels are of half
    precision.
    """
    name = attention_of(model)
    if name == PADDED:
        yield
        return
    registered = model[0].model.config._attn_implementation
    set_attention(model, PADDED)
    try:
        yield
    finally:
        model[0].model.set_attn_implementation(registered)


def _drops_attention(model: SentenceTransformer) -> bool:
    if (chosen := chosen_dropout(model[0].model)) is not None:
        return chosen > 0
    config = model[0].model.config
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    return any(float(getattr(config, name, 0.0) or 0.0) > 0 for name in names)


def _gives_the_same(model: SentenceTransformer, name: str, kernel: Kernel) -> bool:
    """Whether a few texts have the same vectors without padding, and gradients come back; if not, one line says why."""
    reader = TextReader(model, "document", "")
    was_training = model.training
    model.eval()
    try:
        padded = _vectors(model, reader, packed=False).detach()
        set_attention(model, name, kernel=kernel)
        packed = _vectors(model, reader, packed=True)
        cosine = torch.nn.functional.cosine_similarity(padded, packed).min().item()
        packed.sum().backward()
        if cosine >= _ALIKE:
            return True
        log.warning("attention %s: vectors differ from those with padding (cosine %.3f); padding stays", name, cosine)
    except Exception as error:  # whatever a kernel and its tool chain raise
        log.warning("attention %s: %s; padding stays", name, first_line(error))
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        set_attention(model, PADDED)
    return False


def _vectors(model: SentenceTransformer, reader: TextReader, *, packed: bool) -> Tensor:
    prepared = reader.prepare(_TRIAL)
    if prepared.tokens is None:
        raise ValueError("this model reads more than tokens")
    features = reader.features(prepared, np.arange(len(_TRIAL)), packed=packed)
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        rows: Tensor = model(features)["sentence_embedding"]
    return rows.float()


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


@contextmanager
def as_served(model: SentenceTransformer) -> Iterator[None]:
    """Float32 weights, no autocast, padded attention, no dropout; as it trained again when the block ends."""
    was_training = model.training
    model.eval()
    try:
        with _without_autocast(model), as_loaded(model), padded_again(model):
            yield
    finally:
        model.train(was_training)


@contextmanager
def _without_autocast(model: SentenceTransformer) -> Iterator[None]:
    """Mixed-precision training wraps the model's forward pass in autocast, in place."""
    wrapped, plain = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if wrapped is None or plain is None:
        yield
        return
    model.forward = plain
    try:
        yield
    finally:
        model.forward = wrapped
