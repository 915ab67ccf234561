"""A batch's loss: its texts embedded, candidates of other processes gathered, right answers hidden, the objective asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import pad

from ebr.model.adapters.attach import TOKEN_ROWS
from ebr.model.files.tokenizer import table_of
from ebr.model.vocabulary.new_tokens import new_tokens_of
from ebr.training.batches.collator import Batch, Collator
from ebr.training.batches.gradient_cache import GradientCache
from ebr.training.loss.objectives import Bounds, Objective, Targets
from ebr.training.resources.processes import Processes, all_gather

_ANOTHERS = -1


class BatchLoss(nn.Module):
    """An objective over the queries and candidates of a batch, plus an L1 penalty while training.

    gather_from: the processes whose candidates every query sees while training; None = only its own batch's.
    several_positives: whether right answers in other places are to be picked too, rather than hidden.
    """

    def __init__(
        self,
        embedder: GradientCache,
        batches: Collator,
        objective: Objective,
        *,
        l1: float,
        gather_from: Processes | None = None,
        several_positives: bool = False,
    ) -> None:
        super().__init__()
        self.model = embedder.model
        self.embedder = embedder
        self.batches = batches
        self.objective = objective
        self.l1 = l1
        self.gather_from = gather_from
        self.several_positives = several_positives
        self.bounds: Bounds | None = None
        """Of the latest batch's objective while training; None where it has none."""

    def forward(self, features: Sequence[Batch], rows: Tensor) -> dict[str, Tensor]:
        """Named parts of the objective; their sum is minimised, and each is logged by its name.

        features: one batch. rows: (B,), its rows, which it also has itself.
        """
        (batch,) = features
        is_training = self.model.training
        vectors = self.embedder.embed(batch.groups)
        n_queries = len(batch.rows)
        queries, candidates = vectors[:n_queries], vectors[n_queries:]
        keys, owners, scores = (torch.from_numpy(one) for one in (batch.candidates, batch.owners, batch.scores))
        if self.gather_from and is_training:
            candidates, keys = _gathered(candidates, keys, self.gather_from)
            owners, scores = _padded(owners, len(keys), _ANOTHERS), _padded(scores, len(keys), torch.nan)
        device = queries.device
        mask = self.batches.false_negative_mask(batch.rows, keys.numpy())
        positives = self.batches.further_positives(batch.rows, keys.numpy(), mask) if self.several_positives else None
        if is_training:
            self.bounds = self.objective.bounds(mask, positives)  # before they move: no wait for the device
        moved = None if positives is None else positives.to(device)
        targets = Targets(mask.to(device), owners.to(device), scores.to(device), moved)
        with torch.autocast(device.type, enabled=False):  # or cosines would be rounded before they are divided by a temperature
            parts = self.objective(queries, candidates, targets)
        if self.l1 and is_training:
            parts["l1_penalty"] = self.l1 * torch.stack([weight.abs().sum() for weight in self._penalised()]).sum()
        return parts

    def _penalised(self) -> Iterator[Tensor]:
        """The trained weights but for the rows of new tokens: embeddings, no changes of any, that would fade unused.

        With an adapter they are a parameter of their own; tuned whole, rows of the table.
        """
        new = new_tokens_of(self.model[0].model, "model") if isinstance(self.model, SentenceTransformer) else None
        table: Any = getattr(table_of(self.model[0].model), "weight", None) if new else None
        for name, weight in self.model.named_parameters():
            if not weight.requires_grad or TOKEN_ROWS in name:
                continue
            if new is not None and weight is table:
                yield from (table[: new.first], table[new.first + new.count :])
            else:
                yield weight


def _padded(values: Tensor, length: int, filling: float) -> Tensor:
    return torch.cat([values, torch.full((length - len(values),), filling, dtype=values.dtype)])


def _gathered(candidates: Tensor, keys: Tensor, processes: Processes) -> tuple[Tensor, Tensor]:
    """The candidates of every process, this one's first, and the keys of their texts.

    Gradients flow back to the process that a candidate came from; averaged over the processes, they are those of one process
    with the whole batch.
    """
    everyone: list[list[int]] = processes.gather(keys.tolist())
    counts = [len(own) for own in everyone]
    by_rank = list(all_gather(pad(candidates, (0, 0, 0, max(counts) - len(candidates)))))
    own_first = by_rank[processes.rank :] + by_rank[: processes.rank]
    whole = torch.cat([part[:count] for part, count in zip(own_first, counts, strict=True)])
    return whole, torch.tensor([key for own in everyone for key in own], dtype=torch.int64)
