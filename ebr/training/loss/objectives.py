"""Objectives: what is asked of a batch's vectors, and of the data before any is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ebr.config.shared.objective import DISTILLATION, LOSSES, Need
from ebr.data.training.answers import is_taught_by_negatives, right_answers
from ebr.data.training.examples import Example
from ebr.data.training.text_table import TextTable
from ebr.errors import DataError


def masked_info_nce(
    queries: Tensor,
    candidates: Tensor,
    mask: Tensor,
    *,
    temperature: float,
    label_smoothing: float = 0.0,
    positives: Tensor | None = None,
) -> Tensor:
    """Mean cost, in nats, of picking each query's positives among the visible candidates.

    queries: (B, D) unit rows. candidates: (C, D) unit rows, C >= B; row i of the first B is query i's positive.
    mask: (B, C) bool; False hides a candidate that is a positive in disguise.
    temperature > 0: logits are cosine / temperature.
    label_smoothing: share of the target that is spread evenly over the visible candidates (Szegedy et al. 2016).
    positives: (B, C) bool, candidates beside the query's own that are to be picked as much, and are visible whatever the mask
    says: the mean of -log p over all of them is the loss L_out of Khosla et al. 2020, eq. 2. None = only the own ones.
    Raises ValueError when the shapes disagree or a query's own positive is hidden. van den Oord et al. 2018, eq. 4.
    """
    n_queries, n_candidates = len(queries), len(candidates)
    if n_candidates < n_queries or mask.shape != (n_queries, n_candidates):
        raise ValueError(f"{n_queries} queries, {n_candidates} candidates, mask {tuple(mask.shape)}: shapes disagree")
    if not mask.diagonal().all():
        raise ValueError("a query's own positive is hidden by the mask")
    logits = queries @ candidates.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    mask = mask if positives is None else mask | positives
    log_odds = logits.masked_fill(~mask, -torch.inf).log_softmax(dim=1)
    cost = -log_odds.diagonal()
    if positives is not None:
        cost = (cost - log_odds.masked_fill(~positives, 0.0).sum(dim=1)) / (1 + positives.sum(dim=1))
    if label_smoothing:
        even = -log_odds.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)
        cost = (1 - label_smoothing) * cost + label_smoothing * even
    return cost.mean()


def smoothed_floor(label_smoothing: float, n_candidates: Tensor, n_positives: Tensor | int = 1) -> Tensor:
    """The lowest cost, in nats, over so many candidates: the entropy of the targets, which label smoothing spreads.

    n_candidates, and the n_positives among them: of any shape, 1 or more each; the result has the same shape. It is 0 for one
    positive without smoothing.
    """
    other = label_smoothing / n_candidates
    own = (1 - label_smoothing) / n_positives + other
    entropy: Tensor = n_positives * torch.special.entr(own) + (n_candidates - n_positives) * torch.special.entr(other)
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


@dataclass(frozen=True)
class Targets:
    """What an objective is told of B queries and C candidates: their positives, their negatives, then other processes' own.

    mask: (B, C) bool; False hides a candidate that is right for the query although it stands in another place.
    owners: (C,) int64, the query that a candidate was drawn for: owners[:B] is 0..B-1, query i's positive being candidate i;
    -1 = another process's. scores: (C,) float32, the teacher's score of a candidate for its owner; nan = none given.
    positives: (B, C) bool, which of the hidden ones are to be picked as the query's own positive is; None = they stay hidden.
    """

    mask: Tensor
    owners: Tensor
    scores: Tensor
    positives: Tensor | None = None


@dataclass(frozen=True)
class Bounds:
    """What a batch's mean loss is measured against, in nats.

    floor: the lowest value there can be, above 0 with label smoothing. chance: that of holding every candidate equally likely.
    """

    floor: float
    chance: float


class Objective(Protocol):
    """Named parts whose sum is minimised."""

    def __call__(self, queries: Tensor, candidates: Tensor, targets: Targets) -> dict[str, Tensor]:
        """queries: (B, D), candidates: (C, D), as the model gives them: not normalised."""
        ...

    def bounds(self, mask: Tensor, positives: Tensor | None = None) -> Bounds | None:
        """The loss's bounds for Targets of these, (B, C) on the CPU; None where it is not measured in such nats."""
        ...


@dataclass(frozen=True)
class InfoNCE:
    """In-batch InfoNCE over cosines, false negatives hidden; see masked_info_nce.

    bidirectional: the mean of it and of picking the query for each positive, from which the same pairs are hidden and in which
    negatives and other processes' candidates take no part (Radford et al. 2021, fig. 3). Where targets.positives are given,
    each query picks all of them.
    """

    temperature: float
    label_smoothing: float = 0.0
    bidirectional: bool = False

    def __call__(self, queries: Tensor, candidates: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See Objective."""
        queries, candidates = normalize(queries, dim=1), normalize(candidates, dim=1)
        cost = self._cost(queries, candidates, targets.mask, targets.positives)
        if self.bidirectional:
            positives = None if targets.positives is None else _turned(targets.positives)
            cost = (cost + self._cost(candidates[: len(queries)], queries, _turned(targets.mask), positives)) / 2
        return {"contrastive_loss": cost}

    def bounds(self, mask: Tensor, positives: Tensor | None = None) -> Bounds:
        """See Objective."""
        n_candidates = self._in_rows(mask if positives is None else mask | positives)
        n_wanted = 1 if positives is None else 1 + self._in_rows(positives)
        floor = smoothed_floor(self.label_smoothing, n_candidates, n_wanted)
        return Bounds(floor.mean().item(), n_candidates.log().mean().item())

    def _in_rows(self, cells: Tensor) -> Tensor:
        """(B,) float64, or (2B,) with the other direction: how many are True in each row."""
        sides = [cells, _turned(cells)] if self.bidirectional else [cells]
        # NumPy sums a wide mask ten times as fast as torch does.
        return torch.cat([torch.from_numpy(side.numpy().sum(axis=1)) for side in sides]).double()

    def _cost(self, rows: Tensor, columns: Tensor, mask: Tensor, positives: Tensor | None) -> Tensor:
        return masked_info_nce(
            rows,
            columns,
            mask,
            temperature=self.temperature,
            label_smoothing=self.label_smoothing,
            positives=positives,
        )


def _turned(cells: Tensor) -> Tensor:
    """(B, C) of queries and candidates -> (B, B) of their positives and the queries."""
    return cells[:, : len(cells)].T


@dataclass(frozen=True)
class Distillation:
    """Agree with the teacher on a query's own candidates: its positive and the negatives drawn for it.

    KL(softmax(score / teacher_temperature) ‖ softmax(cosine / temperature)), mean over the queries: the listwise distillation
    of Ren et al. 2021 (RocketQAv2) with a fixed teacher, FlagEmbedding's kl_div. A query without negatives costs nothing here.
    Nothing is hidden: a right answer has its score. Plus contrastive_weight × `contrastive`.
    """

    contrastive: InfoNCE
    teacher_temperature: float
    contrastive_weight: float

    def __call__(self, queries: Tensor, candidates: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See Objective. Raises ValueError when an own candidate has no score."""
        places = own_places(targets)
        owners, scores = targets.owners[places], targets.scores[places]
        if scores.isnan().any():
            raise ValueError("a candidate has no teacher score; check_data tells before training")
        cosines = torch.cosine_similarity(queries[owners], candidates[places], dim=1)
        cosines = cosines.to(torch.promote_types(cosines.dtype, torch.float32))
        parts = {
            "distillation_loss": grouped_divergence(
                cosines / self.contrastive.temperature, scores / self.teacher_temperature, owners, len(queries)
            )
        }
        if self.contrastive_weight:
            for name, part in self.contrastive(queries, candidates, targets).items():
                parts[name] = self.contrastive_weight * part
        return parts

    def bounds(self, mask: Tensor, positives: Tensor | None = None) -> None:
        """See Objective: one softmax cannot agree with two targets, so how low their sum gets is not known."""


@dataclass(frozen=True)
class Matryoshka:
    """The mean of an objective over the first d dimensions of every vector, for each d of dims (Kusupati et al. 2022, eq. 1).

    Equal weights; each shortened vector is normalised again, as it will be when it is used.
    """

    objective: Objective
    dims: tuple[int, ...]

    def __call__(self, queries: Tensor, candidates: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See Objective."""
        parts: dict[str, Tensor] = {}
        for dim in self.dims:
            short_queries, short_candidates = (normalize(vectors[:, :dim], dim=1) for vectors in (queries, candidates))
            for name, part in self.objective(short_queries, short_candidates, targets).items():
                parts[name] = parts[name] + part / len(self.dims) if name in parts else part / len(self.dims)
        return parts

    def bounds(self, mask: Tensor, positives: Tensor | None = None) -> Bounds | None:
        """See Objective: each length of the vectors picks among the same candidates."""
        return self.objective.bounds(mask, positives)


def own_places(targets: Targets) -> Tensor:
    """(N,) int64: where the candidates stand that were drawn for a query of this batch."""
    return torch.nonzero(targets.owners >= 0).squeeze(1)


# ---------------------------------------------------------------- what the data must have


def check_data(
    train: Sequence[Example],
    validation: Sequence[Example],
    texts: TextTable,
    *,
    loss: str,
    neg_nums: int,
    contrastive_weight: float = 1.0,
) -> None:
    """Refuse examples that cannot teach what a loss asks. loss: a name of LOSSES; neg_nums: negatives drawn a record.

    contrastive_weight: distillation's. Raises DataError that names the first records at fault and what to do.
    """
    traits = LOSSES[loss]
    everyone = (*train, *validation)
    is_scored = traits.scores is not Need.NEVER and any(one.positive_scores or one.negative_scores for one in everyone)
    if traits.scores is Need.ALWAYS or is_scored:
        _check_scores(everyone, loss, is_needed=traits.scores is Need.ALWAYS)
    if loss == "CosineSimilarityLoss" and is_scored:
        _check_cosines(everyone)
    # Without scores to tell better from worse, only a negative does.
    learns_from_negatives = traits.negatives is Need.ALWAYS or (traits.scores is Need.WHERE_GIVEN and not is_scored)
    if learns_from_negatives or loss == DISTILLATION:
        # What the teacher has scored need not be wrong, only another text.
        useful = _with_negatives(everyone, texts, neg_nums, any_will_do=traits.scores is Need.ALWAYS)
        _check_train_negatives(train, useful, loss, neg_nums)
        if loss != DISTILLATION or contrastive_weight == 0:
            _check_validation_negatives(validation, useful, loss)


def _check_scores(examples: Sequence[Example], loss: str, *, is_needed: bool) -> None:
    lacking = [one for one in examples if len(one.positive_scores) < len(one.positives) or _lacks_negative_scores(one)]
    if not lacking:
        return
    keys = "pos_scores and neg_scores (pairs: positive_score and negative_scores)"
    if is_needed:
        raise DataError(
            f"loss {loss}: {_some(lacking, examples)} without teacher scores: {_named(lacking)}; "
            f"give each record {keys}, as `ebr mine` writes them, or choose another loss"
        )
    raise DataError(
        f"loss {loss}: {_some(lacking, examples)} without teacher scores while others have them: {_named(lacking)}; "
        f"a score and a plain yes or no do not mix: give each record {keys}, or none"
    )


def _lacks_negative_scores(example: Example) -> bool:
    return len(example.negative_scores) < len(example.negatives)


def _check_cosines(examples: Sequence[Example]) -> None:
    beyond = [one for one in examples if any(abs(score) > 1 for score in (*one.positive_scores, *one.negative_scores))]
    if beyond:
        raise DataError(
            f"loss CosineSimilarityLoss: {_some(beyond, examples)} with a score beyond -1 to 1, where no cosine gets: "
            f"{_named(beyond)}; rescale the scores, or use CoSENTLoss, which reads only their order"
        )


def _with_negatives(examples: Sequence[Example], texts: TextTable, neg_nums: int, *, any_will_do: bool) -> set[int]:
    """The ids of the examples that have a negative to draw; any_will_do: even one that is right by another record."""
    if neg_nums == 0:
        return set()
    if any_will_do:
        return {id(one) for one in examples if one.negatives}
    records = texts.records(examples)
    right = right_answers(records)
    return {id(one) for one, record in zip(examples, records, strict=True) if is_taught_by_negatives(record, right)}


def _check_train_negatives(train: Sequence[Example], useful: set[int], loss: str, neg_nums: int) -> None:
    lacking = [one for one in train if id(one) not in useful]
    # Distillation goes without them here and there; another loss would pass such a record over in silence.
    if lacking and (loss != DISTILLATION or len(lacking) == len(train)):
        drawn = " (neg_nums is 0: none is drawn)" if neg_nums == 0 else ""
        raise DataError(
            f"loss {loss}: {_some(lacking, train)} without a negative of its own{drawn}: {_named(lacking)}; "
            "mine some with `ebr mine`, remove these records, or choose loss info_nce, which needs none"
        )


def _check_validation_negatives(validation: Sequence[Example], useful: set[int], loss: str) -> None:
    if validation and not any(id(one) in useful for one in validation):
        raise DataError(
            f"validation_split: none of the {len(validation)} records held out keeps a negative of its own (negatives that are "
            f"texts of the training split are left out), so loss {loss} would be 0 on all; set validation_split to 0, and give "
            "an eval_dataset to judge by"
        )


def _some(wrong: Sequence[Example], examples: Sequence[Example]) -> str:
    return f"{len(wrong)} of {len(examples)} records {'are' if len(wrong) > 1 else 'is'}"


def _named(examples: Sequence[Example], most: int = 3) -> str:
    """The first queries."""
    names = [one.query if len(one.query) <= 60 else f"{one.query[:59]}…" for one in examples[:most]]
    return ", ".join(map(repr, names)) + (", …" if len(examples) > most else "")
