"""How many tokens are kept of a text."""

from __future__ import annotations

import logging

import torch
from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)


def set_lengths(
    model: SentenceTransformer, max_seq_length: int, *, query: int | None = None, passage: int | None = None
) -> None:
    """Settle how many tokens are kept of a text, of a query and of a passage; saved with the model.

    None = max_seq_length. What exceeds the model's positions is lowered, with one warning.
    """
    wanted = {"query_max_len": query or max_seq_length, "passage_max_len": passage or max_seq_length}
    most = position_limit(model)
    if most is not None and max(wanted.values()) > most:
        too_long = ", ".join(f"{name} {length}" for name, length in wanted.items() if length > most)
        same = f"max_seq_length {max_seq_length}" if query is passage is None else too_long
        log.warning("%s lowered to %d: the model has no more positions", same, most)
        wanted = {name: min(length, most) for name, length in wanted.items()}
    model.max_seq_length = max(wanted.values())
    # Without lengths of their own, both follow max_seq_length, also when a user changes it later.
    model[0].query_length = wanted["query_max_len"] if query or passage else None
    model[0].document_length = wanted["passage_max_len"] if query or passage else None


def position_limit(model: SentenceTransformer) -> int | None:
    """How many tokens the model has positions for; None where its configuration does not say."""
    positions = getattr(model[0].model.config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    # RoBERTa and its kin number positions from padding_idx + 1, which costs that many rows of the table.
    for module in model[0].model.modules():
        table, padding_idx = getattr(module, "position_embeddings", None), getattr(module, "padding_idx", None)
        if isinstance(table, torch.nn.Embedding) and isinstance(padding_idx, int):
            return positions - padding_idx - 1
    return positions
