"""Objectives by name: ours, and losses of sentence-transformers, which are fed with the vectors that we made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

from ebr.config.shared.objective import DISTILLATION, INFO_NCE, LOSSES
from ebr.errors import ConfigError
from ebr.training.loss.objectives import Distillation, InfoNCE, Matryoshka, Objective, Targets, own_places


@dataclass(frozen=True)
class Columns:
    """What a loss of sentence-transformers takes: N rows of vectors in each column, and the labels that it wants beside them.

    share: of the whole batch's loss that these rows have.
    """

    vectors: list[Tensor]
    labels: Tensor
    share: float = 1.0


Arrange = Callable[[Tensor, Tensor, Targets], Sequence[Columns]]


@dataclass(frozen=True)
class NamedLoss:
    """A loss of sentence-transformers behind the interface of Objective: its own formula, on the columns that it is made for.

    Of the vectors it sees what the model gives, in float32 at least. A batch with nothing to learn from costs 0.
    """

    name: str
    loss: Any
    """The loss itself; sentence-transformers is untyped."""
    arrange: Arrange

    def __call__(self, queries: Tensor, candidates: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See Objective."""
        dtype = torch.promote_types(queries.dtype, torch.float32)
        queries, candidates = queries.to(dtype), candidates.to(dtype)
        total = (queries.sum() + candidates.sum()) * 0.0  # every vector has a gradient, whatever the columns leave out
        for columns in self.arrange(queries, candidates, targets):
            total = total + columns.share * self.loss.compute_loss_from_embeddings(columns.vectors, columns.labels)
        return {self.name: total}

    def bounds(self, mask: Tensor, positives: Tensor | None = None) -> None:
        """See Objective: its formula is another's, and so is what it is measured in."""


# ---------------------------------------------------------------- columns


def in_batch(queries: Tensor, candidates: Tensor, targets: Targets) -> list[Columns]:
    """Queries, positives, then every other candidate, be it a negative or another process's.

    These losses know no mask: what the mask hides from info_nce stands among their negatives.
    """
    n_queries = len(queries)
    rest = [candidates[n_queries:]] if len(candidates) > n_queries else []
    return [Columns([queries, candidates[:n_queries], *rest], targets.owners)]


def triplets(queries: Tensor, candidates: Tensor, targets: Targets) -> list[Columns]:
    """One row for each negative of a query: the query, its positive, the negative. Right answers in disguise are left out."""
    owners, places = _negatives(targets)
    is_negative = targets.mask[owners, places]
    return _triplets(queries, candidates, owners[is_negative], places[is_negative], targets.owners)


def margins(queries: Tensor, candidates: Tensor, targets: Targets) -> list[Columns]:
    """Triplets, labelled with how much more the teacher gives the positive than the negative."""
    owners, places = _negatives(targets)
    scores = _known(targets.scores, owners, places)
    return _triplets(queries, candidates, owners, places, scores[owners] - scores[places])


def labelled_pairs(queries: Tensor, candidates: Tensor, targets: Targets) -> list[Columns]:
    """A query with each of its own candidates: 1 for the positive, 0 for a negative. Right answers in disguise are left out."""
    places = own_places(targets)
    places = places[targets.mask[targets.owners[places], places]]
    labels = (places < len(queries)).to(torch.float32)
    return [Columns([queries[targets.owners[places]], candidates[places]], labels)]


def scored_pairs(queries: Tensor, candidates: Tensor, targets: Targets) -> list[Columns]:
    """A query with each of its own candidates and the teacher's score of it; labelled_pairs where there are no scores."""
    places = own_places(targets)
    scores = targets.scores[places]
    if scores.isnan().all():
        return labelled_pairs(queries, candidates, targets)
    return [Columns([queries[targets.owners[places]], candidates[places]], _known(scores))]


def scored_lists(queries: Tensor, candidates: Tensor, targets: Targets) -> list[Columns]:
    """Queries, positives, first negatives, second ones, …, with the scores of all (N, 1 + K): a block for each K that is there.

    Each block has its share of the queries, so that the sum is their mean. A query without negatives has nothing to tell.
    """
    owners, places = _negatives(targets)
    scores = _known(targets.scores, owners, places)
    counts = torch.bincount(owners, minlength=len(queries))
    places = places[owners.argsort(stable=True)]
    starts = counts.cumsum(0) - counts
    blocks = []
    for count in counts[counts > 0].unique().tolist():
        rows = torch.nonzero(counts == count).squeeze(1)
        own = places[starts[rows, None] + torch.arange(count, device=rows.device)]
        lists = torch.cat([rows[:, None], own], dim=1)  # a positive stands where its query does
        columns = [queries[rows], *(candidates[column] for column in lists.T)]
        blocks.append(Columns(columns, scores[lists], len(rows) / len(queries)))
    return blocks


def _negatives(targets: Targets) -> tuple[Tensor, Tensor]:
    """(N,) owners and (N,) places of the candidates that are some query's negatives."""
    places = own_places(targets)
    places = places[places >= len(targets.mask)]
    return targets.owners[places], places


def _triplets(queries: Tensor, candidates: Tensor, owners: Tensor, places: Tensor, labels: Tensor) -> list[Columns]:
    if not len(places):
        return []
    return [Columns([queries[owners], candidates[owners], candidates[places]], labels)]


def _known(scores: Tensor, *places: Tensor) -> Tensor:
    """The scores, once it is sure that those at the places (none named: all) are there."""
    for wanted in places or (slice(None),):
        if scores[wanted].isnan().any():
            raise ValueError("a candidate has no teacher score; check_data tells before training")
    return scores


# ---------------------------------------------------------------- by name

ARRANGEMENTS: dict[str, Arrange] = {
    "MultipleNegativesRankingLoss": in_batch,
    "TripletLoss": triplets,
    "ContrastiveLoss": labelled_pairs,
    "OnlineContrastiveLoss": labelled_pairs,
    "CoSENTLoss": scored_pairs,
    "AnglELoss": scored_pairs,
    "CosineSimilarityLoss": scored_pairs,
    "MarginMSELoss": margins,
    "DistillKLDivLoss": scored_lists,
}
"""What each loss of sentence-transformers is fed with; ebr.config.shared.objective.LOSSES says which options it reads."""


def objective_from(
    *,
    loss: str,
    temperature: float,
    label_smoothing: float = 0.0,
    bidirectional: bool = False,
    matryoshka_dims: Sequence[int] | None = None,
    teacher_temperature: float = 1.0,
    contrastive_weight: float = 1.0,
    model: SentenceTransformer,
) -> Objective:
    """The objective of a run; the options are those of ebr.config.shared.objective, checked by check_objective.

    Raises ConfigError when matryoshka_dims asks for more dimensions than the model's vectors have.
    """
    contrastive = InfoNCE(temperature, label_smoothing, bidirectional)
    objective: Objective
    if loss == INFO_NCE:
        objective = contrastive
    elif loss == DISTILLATION:
        objective = Distillation(contrastive, teacher_temperature, contrastive_weight)
    else:
        settings = _settings(loss, temperature, teacher_temperature, bidirectional)
        objective = NamedLoss(loss, getattr(losses, loss)(model, **settings), ARRANGEMENTS[loss])
    if not matryoshka_dims:
        return objective
    check_dims(matryoshka_dims, model.get_embedding_dimension())
    return Matryoshka(objective, tuple(sorted(set(matryoshka_dims), reverse=True)))


def _settings(loss: str, temperature: float, teacher_temperature: float, bidirectional: bool) -> dict[str, Any]:
    """Our options in the loss's words; what we have no option for stays as sentence-transformers has it."""
    reads = LOSSES[loss].options
    if "teacher_temperature" in reads:
        # By the cosine, which is what our temperature divides.
        student = {"similarity_fct": pairwise_cos_sim, "student_temperature": temperature}
        return {**student, "teacher_temperature": teacher_temperature}
    settings: dict[str, Any] = {"scale": 1 / temperature} if "temperature" in reads else {}
    if bidirectional and "bidirectional" in reads:
        # What MultipleNegativesSymmetricRankingLoss was before it was deprecated.
        settings |= {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    return settings


def check_dims(wanted: Sequence[int] | None, n_dims: int | None) -> None:
    """Refuse matryoshka_dims beyond the model's n_dims. Raises ConfigError."""
    most = max(wanted or [0])
    if n_dims is not None and most > n_dims:
        raise ConfigError(f"matryoshka_dims: {most} is more than the model's vectors have, {n_dims}; give {n_dims} or fewer")
