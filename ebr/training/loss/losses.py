"""What training minimises, as mathematics: vectors in, nats out."""

from __future__ import annotations

import torch
from torch import Tensor


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


def smoothed_floor(label_smoothing: float, n_candidates: Tensor) -> Tensor:
    """The lowest cost, in nats, that label smoothing leaves over so many candidates: the entropy of its targets.

    n_candidates: of any shape, 1 or more each; the result has the same shape. Without smoothing it is 0.
    """
    other = label_smoothing / n_candidates
    own = 1 - label_smoothing + other
    entropy: Tensor = torch.special.entr(own) + (n_candidates - 1) * torch.special.entr(other)
    return entropy


def grouped_divergence(logits: Tensor, teacher_logits: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Mean over the groups of KL(teacher ‖ student), in nats, each a softmax over the members of a group.

    logits, teacher_logits: (N,), both finite. groups: (N,) int64, the group of each, 0..n_groups-1, in any order. A group of
    one costs nothing, whatever its logit; so does an empty one. Hinton et al. 2015, with the gradient to the student alone.
    """
    wanted = _group_log_softmax(teacher_logits.detach().to(logits.dtype), groups, n_groups)
    return (wanted.exp() * (wanted - _group_log_softmax(logits, groups, n_groups))).sum() / n_groups


def _group_log_softmax(logits: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    # Sums by group rather than a (groups, members) table: groups differ in size, and the table would be mostly empty.
    floor = logits.new_full((n_groups,), -torch.inf)
    highest = floor.scatter_reduce(0, groups, logits.detach(), "amax")
    shifted = logits - highest[groups]
    sums = logits.new_zeros(n_groups).index_add(0, groups, shifted.exp())
    return shifted - sums[groups].log()
