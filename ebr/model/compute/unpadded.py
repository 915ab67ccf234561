"""Training without padding: where the device has a kernel for texts laid end to end, and a trial shows the same vectors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from ebr.errors import first_line
from ebr.model.compute.attention import PADDED, Kernel, attention_of, set_attention, torch_varlen, unpadded_attention
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
