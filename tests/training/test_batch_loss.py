"""A batch's loss: the objective is told the truth, other processes' candidates repel, and the penalty is for training alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from ebr.config import FinetuneConfig
from ebr.data.training.examples import Example
from ebr.data.training.text_table import TextTable
from ebr.training.batches.collator import Batch
from ebr.training.loop.engine import build_engine
from ebr.training.loss import batch_loss
from ebr.training.loss.batch_loss import BatchLoss
from ebr.training.loss.objectives import InfoNCE
from ebr.training.resources.processes import ALONE


class Table(torch.nn.Module):
    """A 'model' that is a table of vectors."""

    def __init__(self):
        super().__init__()
        self.vectors = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, -2.0]]))


class Lookup:
    """An embedder for which a 'text' is the number of its row in the table."""

    def __init__(self, model):
        self.model = model

    def embed(self, groups):
        return self.model.vectors[list(groups)]


class Mask:
    """Stands in for Collator: remembers what it was asked, and hides one candidate of the first query if told so."""

    def __init__(self, hidden=None):
        self.hidden, self.asked = hidden, []

    def false_negative_mask(self, rows, candidates):
        assert candidates.dtype == np.int64
        self.asked.append((rows, candidates.tolist()))
        mask = torch.ones(len(rows), len(candidates), dtype=torch.bool)
        if self.hidden is not None:
            mask[0, self.hidden] = False
        return mask


class Noting:
    """InfoNCE that remembers what it was told."""

    bounds = InfoNCE(0.5).bounds

    def __init__(self):
        self.told = []

    def __call__(self, queries, candidates, targets):
        self.told.append((queries, candidates, targets))
        return InfoNCE(0.5)(queries, candidates, targets)


# Keys that a float would round; two queries with a positive each, the second scored.
KEYS = [2**62 + 1, -(2**62) - 1]
BATCH = Batch([5, 9], (0, 1, 0, 1), np.array(KEYS), np.array([0, 1]), np.array([np.nan, 0.75], dtype=np.float32))
ROWS = torch.tensor([5, 9])
PLAIN = math.log(1 + math.exp(-2))
"""The cost of two orthogonal pairs at temperature 0.5."""


def loss_of(model=None, mask=None, objective=None, *, l1=0.0, gather_from=None):
    embedder = Lookup(model or Table())
    return BatchLoss(embedder, mask or Mask(), objective or InfoNCE(0.5), l1=l1, gather_from=gather_from)


def test_the_l1_penalty_is_a_part_of_its_own_and_only_while_training():
    loss = loss_of(l1=0.1)
    parts = loss.train()([BATCH], ROWS)
    assert parts["l1_penalty"].item() == pytest.approx(0.1 * 3)
    assert parts["contrastive_loss"].item() == pytest.approx(PLAIN)
    loss.model.eval()  # the trainer switches the model, not the loss
    assert set(loss([BATCH], ROWS)) == {"contrastive_loss"}


def test_frozen_weights_are_not_penalised():
    model = Table()
    model.other = torch.nn.Parameter(torch.tensor([[-4.0]]), requires_grad=False)
    assert loss_of(model, l1=0.1).train()([BATCH], ROWS)["l1_penalty"].item() == pytest.approx(0.1 * 3)


def test_the_penalty_pulls_every_weight_by_its_share_towards_zero():
    loss = loss_of(l1=0.1).train()
    loss([BATCH], ROWS)["l1_penalty"].backward()
    assert loss.model.vectors.grad.tolist() == [pytest.approx([0.1, 0]), pytest.approx([0, -0.1])]


def test_without_a_share_there_is_no_penalty():
    assert set(loss_of().train()([BATCH], ROWS)) == {"contrastive_loss"}


def test_the_mask_is_asked_for_by_the_rows_and_keys_of_the_batch_and_obeyed():
    mask = Mask(hidden=1)
    parts = loss_of(mask=mask)([BATCH], ROWS)
    assert mask.asked == [([5, 9], KEYS)]
    # The first query has nothing to lose.
    assert parts["contrastive_loss"].item() == pytest.approx(PLAIN / 2)


def test_the_objective_is_given_the_models_own_vectors_and_whose_and_how_good_each_candidate_is():
    objective = Noting()
    loss_of(objective=objective)([BATCH], ROWS)
    ((queries, candidates, targets),) = objective.told
    assert queries.tolist() == candidates.tolist() == [[1, 0], [0, -2]]
    assert targets.owners.tolist() == [0, 1]
    assert targets.scores.dtype == torch.float32
    assert (math.isnan(targets.scores[0]), targets.scores[1]) == (True, 0.75)


def test_the_objective_is_computed_as_exactly_under_mixed_precision():
    vectors = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    model = Table()
    model.vectors = torch.nn.Parameter(vectors)
    loss = loss_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss([BATCH], ROWS)["contrastive_loss"]
    assert mixed.item() == loss([BATCH], ROWS)["contrastive_loss"].item()


# ---------------------------------------------------------------- the options


PAIRS = [Example("buy a red shoe", ("the red shoe",)), Example("buy a blue cup", ("the blue cup",))]


@pytest.fixture(scope="module")
def model(tiny_model):
    return SentenceTransformer(tiny_model, device="cpu")


@pytest.mark.parametrize("temperature", [0.25, 0.05])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_temperature_and_smoothing_reach_the_loss_of_the_engine(model, temperature, smoothing):
    config = FinetuneConfig(temperature=temperature, label_smoothing=smoothing)
    engine = build_engine(model, PAIRS, [], config, ids=TextTable.of(PAIRS).ids, processes=ALONE, mixture=None, say=print)
    model.eval()
    given = engine.batches([{"row": 0}, {"row": 1}])
    cost = engine.loss([given["batch"]], given["label"])["contrastive_loss"].item()
    queries, positives = (
        model.encode(texts, normalize_embeddings=True).astype(float)
        for texts in ([pair.query for pair in PAIRS], [pair.positives[0] for pair in PAIRS])
    )
    logits = queries @ positives.T / temperature
    log_sums = np.log(np.exp(logits).sum(axis=1))
    by_hand = (1 - smoothing) * (log_sums - logits.diagonal()) + smoothing * (log_sums - logits.mean(axis=1))
    assert cost == pytest.approx(by_hand.mean(), rel=1e-4)


# ---------------------------------------------------------------- candidates of other processes


class Meeting:
    """Three processes of which this is one; what the others would bring is given."""

    def __init__(self, rank, groups):
        self.rank, self.count, self.groups = rank, len(groups), groups

    def gather(self, value):
        keys = [keys for keys, _ in self.groups]
        assert value == keys[self.rank]
        return keys[self.rank :] + keys[: self.rank]

    def all_gather(self, padded):
        """Every process's candidates by rank, padded with rows of nan: none of these may be used."""
        parts = [torch.full_like(padded, torch.nan) for _ in self.groups]
        for part, (_, vectors) in zip(parts, self.groups, strict=True):
            part[: len(vectors)] = vectors
        n_own = len(self.groups[self.rank][1])
        assert padded.shape[0] == max(len(vectors) for _, vectors in self.groups)
        assert padded[n_own:].abs().sum() == 0
        torch.testing.assert_close(padded[:n_own], self.groups[self.rank][1])
        return parts


GROUPS = [
    (KEYS, torch.tensor([[1.0, 0.0], [0.0, -2.0]])),
    ([2, 2**61 + 1, -4], torch.tensor([[0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])),
    ([-5, 6], torch.tensor([[-0.6, 0.8], [0.8, 0.6]])),
]


@pytest.mark.parametrize("rank", range(3))
def test_gathered_candidates_come_own_first_then_by_rank_from_there_on_with_their_keys(rank, monkeypatch):
    meeting = Meeting(rank, GROUPS)
    monkeypatch.setattr(batch_loss, "all_gather", meeting.all_gather)
    keys, candidates = GROUPS[rank]
    whole, all_keys = batch_loss._gathered(candidates, torch.tensor(keys), meeting)
    order = [rank, (rank + 1) % 3, (rank + 2) % 3]
    assert whole.tolist() == [row for index in order for row in GROUPS[index][1].tolist()]
    assert all_keys.dtype == torch.int64
    assert all_keys.tolist() == [key for index in order for key in GROUPS[index][0]]


def test_gathered_candidates_repel_while_the_model_trains_and_not_while_it_is_evaluated(monkeypatch):
    meeting, mask = Meeting(0, GROUPS), Mask()
    monkeypatch.setattr(batch_loss, "all_gather", meeting.all_gather)
    loss = loss_of(mask=mask, gather_from=meeting)
    cost = loss.train()([BATCH], ROWS)["contrastive_loss"].item()
    assert mask.asked == [([5, 9], [*KEYS, 2, 2**61 + 1, -4, -5, 6])]
    # Cosines of (1, 0): 1 0 | 0 −1 0.6 | −0.6 0.8; of (0, −1): 0 1 | −1 0 −0.8 | −0.8 −0.6.
    rows = ([1, 0, 0, -1, 0.6, -0.6, 0.8], [1, 0, -1, 0, -0.8, -0.8, -0.6])
    by_hand = sum(math.log(sum(math.exp(2 * cosine) for cosine in row)) - 2 for row in rows) / 2
    assert cost == pytest.approx(by_hand)
    loss.model.eval()
    assert loss([BATCH], ROWS)["contrastive_loss"].item() == pytest.approx(PLAIN)
    assert mask.asked[1] == ([5, 9], KEYS)


def test_bounds_count_the_candidates_that_each_query_picks_from_and_only_while_training(monkeypatch):
    meeting = Meeting(0, GROUPS)
    monkeypatch.setattr(batch_loss, "all_gather", meeting.all_gather)
    loss = loss_of(mask=Mask(hidden=1), gather_from=meeting).train()
    loss([BATCH], ROWS)
    # Seven candidates of three processes, of which one is hidden from the first query.
    assert loss.bounds.chance == pytest.approx((math.log(6) + math.log(7)) / 2)
    assert loss.bounds.floor == 0
    loss.model.eval()
    loss.bounds = None
    loss([BATCH], ROWS)
    assert loss.bounds is None


def test_other_processes_candidates_are_nobodys_here_and_have_no_score(monkeypatch):
    meeting, objective = Meeting(0, GROUPS), Noting()
    monkeypatch.setattr(batch_loss, "all_gather", meeting.all_gather)
    loss_of(objective=objective, gather_from=meeting).train()([BATCH], ROWS)
    targets = objective.told[0][2]
    assert targets.owners.tolist() == [0, 1, -1, -1, -1, -1, -1]
    assert targets.owners.dtype == torch.int64
    assert targets.scores.isnan().tolist() == [True, False, True, True, True, True, True]
    assert (targets.scores[1], targets.scores.dtype) == (0.75, torch.float32)
    assert targets.mask.shape == (2, 7)


def test_the_gradient_of_a_gathered_loss_reaches_the_own_vectors_through_queries_and_candidates(monkeypatch):
    meeting = Meeting(0, GROUPS)
    monkeypatch.setattr(batch_loss, "all_gather", lambda padded: [padded, *meeting.all_gather(padded)[1:]])
    loss = loss_of(gather_from=meeting).train()
    loss([BATCH], ROWS)["contrastive_loss"].backward()
    # The same with the others' vectors as further candidates of one process.
    table = torch.tensor([[1.0, 0.0], [0.0, -2.0]], requires_grad=True)
    unit = torch.nn.functional.normalize(torch.cat([table, GROUPS[1][1], GROUPS[2][1]]), dim=1)
    torch.nn.functional.cross_entropy(unit[:2] @ unit.T / 0.5, torch.arange(2)).backward()
    torch.testing.assert_close(loss.model.vectors.grad, table.grad)
