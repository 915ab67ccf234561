"""How many tokens are kept of a text."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding, Transformer

from ebr.errors import ModelError
from ebr.model.encoder.prompts import Role
from ebr.model.encoder.routes import route_of

log = logging.getLogger(__name__)

_MOST_TOKENS = 2**30
_TABLES = {"position_embeddings", "embed_positions", "wpe"}
_OF_ROUTE = {"query": "query_max_len", "document": "passage_max_len"}


def set_lengths(
    model: SentenceTransformer, max_seq_length: int | None, *, query: int | None = None, passage: int | None = None
) -> None:
    """Settle how many tokens are kept of a text, of a query and of a passage; saved with the model.

    None = max_seq_length; None for that as well = every token, as far as the model goes. What exceeds the model's positions is
    lowered, with one warning. Raises ModelError for a model that cuts no text, or queries and passages alike.
    """
    wanted = {"query_max_len": query or max_seq_length, "passage_max_len": passage or max_seq_length}
    most = position_limit(model)
    if most is not None and (beyond := {name: length for name, length in wanted.items() if length and length > most}):
        too_long = ", ".join(f"{name} {length}" for name, length in beyond.items())
        same = f"max_seq_length {max_seq_length}" if query is passage is None else too_long
        log.warning("%s lowered to %d: the model has no more positions", same, most)
        wanted = {name: min(length, most) if length else length for name, length in wanted.items()}
    given = {"query_max_len": query, "passage_max_len": passage, "max_seq_length": max_seq_length}
    for route, module in _first_modules(model):
        if isinstance(module, Transformer):
            _set_both_lengths(module, wanted, follow=query is passage is None)
        else:
            # A route for one kind of text never sees the other.
            own = {name: length for name, length in wanted.items() if name == _OF_ROUTE.get(route, name)}
            _set_length(module, own, ", ".join(f"{name} {length}" for name, length in given.items() if length))


def _first_modules(model: SentenceTransformer) -> Iterator[tuple[str, Any]]:
    """(route, module) for the modules that texts go into: one, or that of each route; '' for one of every text."""
    if not isinstance(model[0], Router):
        yield "", model[0]
        return
    firsts = [(route, modules[0]) for route, modules in model[0].sub_modules.items()]
    for route, module in firsts:
        yield route if sum(module is one for _, one in firsts) == 1 else "", module


def _set_both_lengths(module: Transformer, wanted: Mapping[str, int | None], *, follow: bool) -> None:
    """follow: queries and passages have no lengths of their own, also when a user changes max_seq_length later."""
    longest = [length for length in wanted.values() if length]
    if len(longest) == len(wanted):
        module.max_seq_length = max(longest)
    module.query_length = None if follow else wanted["query_max_len"]
    module.document_length = None if follow else wanted["passage_max_len"]


def _set_length(module: Any, wanted: Mapping[str, int | None], given: str) -> None:  # noqa: ANN401
    kind, length = type(module).__name__, next(iter(wanted.values()))
    if not isinstance(module, StaticEmbedding) and not hasattr(module, "max_seq_length"):
        raise ModelError(f"{given}: {kind} reads whole texts; leave it out")
    if len(set(wanted.values())) > 1:
        raise ModelError(f"{given}: {kind} cuts queries and passages alike; give max_seq_length alone")
    if isinstance(module, StaticEmbedding) and length:
        module.tokenizer.enable_truncation(length)
    elif length:
        module.max_seq_length = length


def first_module(model: SentenceTransformer, task: str) -> Any:  # noqa: ANN401
    """The module that texts of a task, query or document, go into. Raises ModelError where a Router has none for it."""
    first = model[0]
    return route_of(first, Role(task))[0] if isinstance(first, Router) else first


def kept_length(model: SentenceTransformer, task: str | None = None) -> int | None:
    """Tokens kept of a text, or of one of this task, query or document; None where every token is read."""
    module = first_module(model, task) if task is not None else max((one for _, one in _first_modules(model)), key=_length_of)
    own = getattr(module, f"{task}_length", None) if task is not None else None
    length = own or _length_of(module)
    return int(length) if math.isfinite(length) else None


def own_length(model: SentenceTransformer, task: str) -> int | None:
    """Tokens kept of a text of this task, where that is not the length of all texts; None as well where it has no route."""
    try:
        length = kept_length(model, task)
    except ModelError:
        return None
    return None if length == kept_length(model) else length


@contextmanager
def uncut(model: SentenceTransformer, task: str) -> Iterator[None]:
    """Within the block the model's own preprocess keeps every token of a text of this task. Not for a pass: see positions."""
    module = first_module(model, task)
    if isinstance(module, StaticEmbedding):
        truncation = module.tokenizer.truncation
        module.tokenizer.no_truncation()
        try:
            yield
        finally:
            if truncation:
                module.tokenizer.enable_truncation(**truncation)
        return
    names = ("max_seq_length", "query_length", "document_length")
    before = {name: length for name in names if (length := getattr(module, name, None)) is not None}
    try:
        for name in before:
            setattr(module, name, _MOST_TOKENS)
        yield
    finally:
        for name, length in before.items():
            setattr(module, name, length)


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
    for _, module in _first_modules(model):
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
    limits = [_positions(module) for _, module in _first_modules(model) if getattr(module, "model", None) is not None]
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
