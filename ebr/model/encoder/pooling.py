"""How the vectors of tokens become one of the text."""

from __future__ import annotations

import logging

from sentence_transformers import SentenceTransformer

from ebr.errors import ModelError

log = logging.getLogger(__name__)


def pooling_name(model: SentenceTransformer) -> str:
    """How token vectors become one: mean, cls, lasttoken, …; '' when the model has no pooling layer."""
    for module in model:
        mode = getattr(module, "pooling_mode", None)
        if mode is not None:
            return mode if isinstance(mode, str) else "+".join(mode)
    return ""


def pool_by(model: SentenceTransformer, pooling: str | None, name: str) -> None:
    """Pool as asked, and say so where the model was saved otherwise."""
    saved = pooling_name(model)
    if pooling is None or pooling == saved:
        return
    _set_pooling(model, pooling)
    log.warning("%s: pooled by %s, as asked for; it was saved for %s", name, pooling, saved)


def _set_pooling(model: SentenceTransformer, mode: str) -> None:
    for module in model:
        if isinstance(getattr(module, "pooling_mode", None), str):
            module.pooling_mode = mode
            return
    raise ModelError(f"pooling {mode}: this model has no pooling layer with one mode that could be changed")
