"""The rows of tokens that a model was extended by learn at a rate of their own, whatever else is tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from ebr.model.adapters.attach import adapter_settings, token_rows
from ebr.model.files.tokenizer import table_of
from ebr.model.vocabulary.new_tokens import new_tokens_of


@dataclass(frozen=True)
class NewRows:
    """Rows of a trained table. rate: what the learning rate of all else is multiplied by for them.

    They are never decayed, nor penalised by their size: a row whose token is in no batch stays as it is.
    """

    table: torch.Tensor
    rows: slice
    rate: float

    def learn_at_own_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Have each step of the optimizer move the rows `rate` times as far.

        A step of AdamW without decay is proportional to its learning rate, whose schedule all share, so this is a learning rate
        of their own. A group of parameters would do for rows that are a parameter by themselves, which those of a table that
        is tuned whole are not. Nothing has to be saved to go on from a checkpoint.
        """
        before: list[torch.Tensor] = []

        def keep(*_: Any) -> None:  # noqa: ANN401
            before[:] = [self.table.data[self.rows].clone()]

        def stretch(*_: Any) -> None:  # noqa: ANN401
            now = self.table.data[self.rows]
            now.copy_(torch.lerp(before.pop(), now, self.rate))

        optimizer.register_step_pre_hook(keep)
        optimizer.register_step_post_hook(stretch)


def new_rows_of(model: SentenceTransformer, *, learning_rate: float, new_token_learning_rate: float) -> NewRows | None:
    """Those of a prepared model that are trained; None where there are none."""
    rate, new = new_token_learning_rate / learning_rate, new_tokens_of(model[0].model, "model")
    if adapter_settings(model) is not None:
        # Rows that somebody else's adapter trains were never new: they learn as the rest of it does.
        rows = token_rows(model) if new is not None else None
        return NewRows(rows, slice(None), rate) if rows is not None and rows.requires_grad else None
    table = table_of(model[0].model)
    if new is None or not isinstance(table, torch.nn.Embedding) or not table.weight.requires_grad:
        return None
    return NewRows(table.weight, slice(new.first, new.first + new.count), rate)
