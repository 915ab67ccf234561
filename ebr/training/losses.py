"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from ebr.training.processes import Processes, all_gather


def masked_info_nce(
    queries: Tensor, candidates: Tensor, allowed: Tensor, *, temperature: float, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cost, in nats, of picking each query's own positive among the allowed candidates.

    queries: (B, D) unit rows. candidates: (C, D) unit rows, C >= B; row i of the first B is query i's positive.
    allowed: (B, C) bool; False hides a candidate that is a positive in disguise.
    temperature > 0: logits are cosine / temperature.
    label_smoothing: share of the target that is spread evenly over the allowed candidates (Szegedy et al. 2016).
    Raises ValueError when the shapes disagree or a query's own positive is hidden. van den Oord et al. 2018, eq. 4.
    """
    n_queries, n_candidates = len(queries), len(candidates)
    if n_candidates < n_queries or allowed.shape != (n_queries, n_candidates):
        raise ValueError(f"{n_queries} queries, {n_candidates} candidates, mask {tuple(allowed.shape)}: shapes disagree")
    if not allowed.diagonal().all():
        raise ValueError("a query's own positive is hidden by the mask")
    logits = queries @ candidates.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_odds = logits.masked_fill(~allowed, -torch.inf).log_softmax(dim=1)
    cost = -log_odds.diagonal()
    if label_smoothing:
        even = -log_odds.masked_fill(~allowed, 0.0).sum(dim=1) / allowed.sum(dim=1)
        cost = (1 - label_smoothing) * cost + label_smoothing * even
    return cost.mean()


class ContrastiveLoss(nn.Module):
    """In-batch contrastive loss over two token columns, queries and candidates, plus an L1 penalty while training.

    allowed: rows of this batch, rows of each other one → the mask of masked_info_nce. gather_from: the processes whose
    candidates every query sees while training; None = only its own batch's.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        allowed: Callable[[Sequence[int], Sequence[Sequence[int]]], Tensor],
        *,
        temperature: float,
        label_smoothing: float,
        l1: float,
        gather_from: Processes | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.allowed = allowed
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.l1 = l1
        self.gather_from = gather_from

    def forward(self, features: Sequence[dict[str, Any]], rows: Tensor) -> dict[str, Tensor]:
        """Named parts of the objective; their sum is minimised, and each is logged by its name.

        features: token columns of the queries, (B, …), and of the candidates, (C, …). rows: (B,), see BatchMaker.
        """
        queries, candidates = (normalize(self.model(dict(column))["sentence_embedding"], dim=1) for column in features)
        others: Sequence[Sequence[int]] = ()
        if self.gather_from and self._is_training():
            candidates, others = _gathered(candidates, rows.tolist(), self.gather_from)
        allowed = self.allowed(rows.tolist(), others).to(queries.device)
        parts = {
            "contrastive_loss": masked_info_nce(
                queries, candidates, allowed, temperature=self.temperature, label_smoothing=self.label_smoothing
            )
        }
        if self.l1 and self._is_training():
            weights = [parameter.abs().sum() for parameter in self.model.parameters() if parameter.requires_grad]
            parts["l1_penalty"] = self.l1 * torch.stack(weights).sum()
        return parts

    def _is_training(self) -> bool:
        """The trainer switches the model between training and evaluation: not this loss, nor what wraps several processes."""
        model = getattr(self.model, "module", self.model)
        return bool(model.training)


def _gathered(candidates: Tensor, rows: list[int], processes: Processes) -> tuple[Tensor, list[list[int]]]:
    """The candidates of every process, this one's first, and the rows that the others' belong to.

    Gradients flow back to the process that a candidate came from; averaged over the processes, they are those of one process
    with the whole batch.
    """
    everyone = processes.gather((rows, len(candidates)))
    most = max(count for _, count in everyone)
    padded = pad(candidates, (0, 0, 0, most - len(candidates)))
    by_rank = list(all_gather(padded))
    own_first = by_rank[processes.rank :] + by_rank[: processes.rank]
    whole = torch.cat([part[:count] for part, (_, count) in zip(own_first, everyone, strict=True)])
    return whole, [group for group, _ in everyone[1:]]
