"""The model as it will be served, while it trains: an evaluation on the way must see what a user will load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sentence_transformers import SentenceTransformer

from ebr.model.compute.bf16_base import as_loaded
from ebr.model.compute.unpadded import padded_again


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
