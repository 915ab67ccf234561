"""How many tokens are kept of a text."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding, Transformer

from ebr.errors import ModelError

log = logging.getLogger(__name__)

_TABLES = {"position_embeddings", "embed_positions", "wpe"}


def set_lengths(
    model: SentenceTransformer, max_seq_length: int, *, query: int | None = None, passage: int | None = None
) -> None:
    """Settle how many tokens are kept of a text, of a query and of a passage; saved with the model.

    None = max_seq_length. What exceeds the model's positions is lowered, with one warning. Raises ModelError for a model that
    cuts no text.
    """
    wanted = {"query_max_len": query or max_seq_length, "passage_max_len": passage or max_seq_length}
    most = position_limit(model)
    if most is not None and max(wanted.values()) > most:
        too_long = ", ".join(f"{name} {length}" for name, length in wanted.items() if length > most)
        same = f"max_seq_length {max_seq_length}" if query is passage is None else too_long
        log.warning("%s lowered to %d: the model has no more positions", same, most)
        wanted = {name: min(length, most) for name, length in wanted.items()}
    for module in _first_modules(model):
        _set_length(module, max(wanted.values()))
        if isinstance(module, Transformer):
            # Without lengths of their own, both follow max_seq_length, also when a user changes it later.
            module.query_length = wanted["query_max_len"] if query or passage else None
            module.document_length = wanted["passage_max_len"] if query or passage else None


def _first_modules(model: SentenceTransformer) -> Iterator[Any]:
    """The modules that texts go into: one, or that of each route."""
    if isinstance(model[0], Router):
        yield from (modules[0] for modules in model[0].sub_modules.values())
    else:
        yield model[0]


def _set_length(module: Any, length: int) -> None:  # noqa: ANN401
    if isinstance(module, StaticEmbedding):
        module.tokenizer.enable_truncation(length)
        return
    if not hasattr(module, "max_seq_length"):
        raise ModelError(f"max_seq_length {length}: {type(module).__name__} reads whole texts; leave it out")
    module.max_seq_length = length


def kept_length(model: SentenceTransformer, task: str | None = None) -> int | None:
    """Tokens kept of a text, or of one of this task, query or document; None where every token is read."""
    module = model[0]
    if isinstance(module, Router):
        routes = dict(module.sub_modules.items())
        route = routes.get(str(task), routes.get(str(module.default_route), next(iter(routes.values()))))
        module = route[0] if task is not None else max((one[0] for one in routes.values()), key=_length_of)
    own = getattr(module, f"{task}_length", None) if task is not None else None
    length = own or _length_of(module)
    return int(length) if math.isfinite(length) else None


def _length_of(module: Any) -> float:  # noqa: ANN401
    if isinstance(module, StaticEmbedding):
        truncation = module.tokenizer.truncation
        return float(truncation["max_length"]) if truncation else math.inf
    length = getattr(module, "max_seq_length", None)
    return math.inf if length is None else float(length)


def keep_within_positions(model: SentenceTransformer) -> None:
    """Lower what a model was saved with, or without, to the rows of its table of positions: a longer text would end the run.

    Models whose positions are rotations or distances have no such table; they keep the length that they were saved with.
    """
    for module in _first_modules(model):
        most = _positions(module) if isinstance(module, Transformer) and _has_table(module.model) else None
        if most is None:
            continue
        for name in ("max_seq_length", "query_length", "document_length"):
            length = getattr(module, name, None)
            if length is None and name != "max_seq_length":
                continue  # follows max_seq_length
            if length is None or length > most:
                setattr(module, name, most)


def position_limit(model: SentenceTransformer) -> int | None:
    """How many tokens the model has positions for, in every route; None where its configuration does not say."""
    limits = [_positions(module) for module in _first_modules(model) if getattr(module, "model", None) is not None]
    return min((limit for limit in limits if limit is not None), default=None)


def _has_table(transformer: torch.nn.Module) -> bool:
    """Whether it looks positions up in a table."""
    return any(
        isinstance(module, torch.nn.Embedding) and name.rsplit(".", 1)[-1] in _TABLES
        for name, module in transformer.named_modules()
    )


def _positions(module: Any) -> int | None:  # noqa: ANN401
    positions = getattr(module.model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:  # XLNet says -1: its positions are distances
        return None
    # RoBERTa and its kin number positions from padding_idx + 1, which costs that many rows of the table.
    for inner in module.model.modules():
        table, padding_idx = getattr(inner, "position_embeddings", None), getattr(inner, "padding_idx", None)
        if isinstance(table, torch.nn.Embedding) and isinstance(padding_idx, int):
            return positions - padding_idx - 1
    return positions
