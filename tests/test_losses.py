"""The in-batch contrastive loss, against numbers worked out by hand and a reference written in plain loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from ebr.training import losses
from ebr.training.losses import ContrastiveLoss, masked_info_nce


def all_allowed(n_queries, n_candidates):
    return torch.ones(n_queries, n_candidates, dtype=torch.bool)


def unit(rows, dim, seed):
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def logits_of(queries, candidates, temperature):
    """Cosines / temperature, in loops: a list of rows."""
    return [
        [sum(a * b for a, b in zip(query, candidate, strict=True)) / temperature for candidate in candidates.tolist()]
        for query in queries.tolist()
    ]


def cost_of(logits, allowed, smoothing):
    """Loops and logarithms, no tensor algebra."""
    total = 0.0
    for i, row in enumerate(logits):
        visible = [j for j in range(len(row)) if allowed[i, j]]
        log_sum = math.log(sum(math.exp(row[j]) for j in visible))
        costs = {j: log_sum - row[j] for j in visible}
        total += (1 - smoothing) * costs[i] + smoothing * sum(costs.values()) / len(costs)
    return total / len(logits)


def reference(queries, candidates, allowed, temperature, smoothing):
    """The loss."""
    return cost_of(logits_of(queries, candidates, temperature), allowed, smoothing)


def reference_gradients(queries, candidates, allowed, temperature, smoothing):
    """(dL/dqueries, dL/dcandidates) as lists of rows, by hand: dL/dlogit = (softmax − target) / B, dlogit/dq_i = c_j / T."""
    logits, queries, candidates = logits_of(queries, candidates, temperature), queries.tolist(), candidates.tolist()
    of_queries = [[0.0] * len(row) for row in queries]
    of_candidates = [[0.0] * len(row) for row in candidates]
    for i, row in enumerate(logits):
        visible = [j for j in range(len(row)) if allowed[i, j]]
        whole = sum(math.exp(row[j]) for j in visible)
        for j in visible:
            target = (1 - smoothing) * (i == j) + smoothing / len(visible)
            slope = (math.exp(row[j]) / whole - target) / len(logits) / temperature
            for k in range(len(queries[i])):
                of_queries[i][k] += slope * candidates[j][k]
                of_candidates[j][k] += slope * queries[i][k]
    return of_queries, of_candidates


def test_loss_is_log_of_candidate_count_when_all_tie():
    same = normalize(torch.ones(3, 4), dim=1)
    assert masked_info_nce(same, same, all_allowed(3, 3), temperature=0.02).item() == pytest.approx(math.log(3))


def test_hiding_every_other_candidate_leaves_nothing_to_lose():
    same = normalize(torch.ones(3, 4), dim=1)
    assert masked_info_nce(same, same, torch.eye(3, dtype=torch.bool), temperature=0.02).item() == 0.0


def test_two_orthogonal_pairs_cost_log_one_plus_exp_of_minus_the_inverse_temperature():
    axes = torch.eye(2)
    loss = masked_info_nce(axes, axes, all_allowed(2, 2), temperature=0.5).item()
    assert loss == pytest.approx(math.log(1 + math.exp(-2)))


def small_case():
    """Four queries, seven candidates in six dimensions; seven cells hidden, five of them in one row."""
    allowed = all_allowed(4, 7)
    allowed[0, 1] = allowed[2, 6] = False
    allowed[3] = torch.tensor([0, 0, 0, 1, 0, 1, 0], dtype=torch.bool)
    return unit(4, 6, 1), unit(7, 6, 2), allowed


CASES = [(temperature, smoothing) for temperature in (0.05, 0.2, 1.0) for smoothing in (0.0, 0.1, 0.5)]


@pytest.mark.parametrize(("temperature", "smoothing"), CASES)
def test_loss_equals_the_plain_reference_in_float64(temperature, smoothing):
    queries, candidates, allowed = small_case()
    loss = masked_info_nce(queries, candidates, allowed, temperature=temperature, label_smoothing=smoothing)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(reference(queries, candidates, allowed, temperature, smoothing), rel=1e-12)


@pytest.mark.parametrize(("temperature", "smoothing"), CASES)
def test_gradient_equals_softmax_minus_target_chained_by_hand(temperature, smoothing):
    queries, candidates, allowed = small_case()
    leaves = queries.clone().requires_grad_(), candidates.clone().requires_grad_()
    masked_info_nce(*leaves, allowed, temperature=temperature, label_smoothing=smoothing).backward()
    by_hand = reference_gradients(queries, candidates, allowed, temperature, smoothing)
    for leaf, wanted in zip(leaves, by_hand, strict=True):
        torch.testing.assert_close(leaf.grad, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_equals_the_central_differences_of_the_plain_reference(smoothing):
    queries, candidates, allowed = small_case()
    leaves = queries.clone().requires_grad_(), candidates.clone().requires_grad_()
    masked_info_nce(*leaves, allowed, temperature=0.2, label_smoothing=smoothing).backward()
    step = 1e-5
    for which, leaf in enumerate(leaves):
        for cell in range(leaf.numel()):
            costs = []
            for sign in (1, -1):
                moved = [queries.clone(), candidates.clone()]
                moved[which].view(-1)[cell] += sign * step
                costs.append(reference(*moved, allowed, 0.2, smoothing))
            # Wrong by step² times the third derivative, here at most about 1 / 0.2³ = 125.
            assert leaf.grad.view(-1)[cell].item() == pytest.approx((costs[0] - costs[1]) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_torchs_own_gradient_check_agrees(smoothing):
    queries, candidates, allowed = small_case()

    def loss(q, c):
        return masked_info_nce(q, c, allowed, temperature=0.2, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, (queries.requires_grad_(), candidates.requires_grad_()), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_less_exact_than_float32_is_summed_up_in_float32(dtype):
    queries, candidates, allowed = small_case()
    queries, candidates = queries.to(dtype), candidates.to(dtype)
    loss = masked_info_nce(queries, candidates, allowed, temperature=0.05)
    assert loss.dtype == torch.float32
    # The product rounds to its type; what comes after must not round to it again.
    logits = [[cosine / 0.05 for cosine in row] for row in (queries @ candidates.T).tolist()]
    assert loss.item() == pytest.approx(cost_of(logits, allowed, 0.0), rel=1e-5)


def test_smoothing_costs_the_share_of_the_mean_distance_to_the_others():
    # Logits 2 and 0, log-sum log(e² + 1): the right one costs log_sum − 2, the other log_sum; even is their mean.
    axes = torch.eye(2, dtype=torch.float64)
    loss = masked_info_nce(axes, axes, all_allowed(2, 2), temperature=0.5, label_smoothing=0.3).item()
    log_sum = math.log(math.exp(2) + 1)
    assert loss == pytest.approx(0.7 * (log_sum - 2) + 0.3 * (log_sum - 1), rel=1e-12)


def test_a_hidden_candidate_gets_no_gradient():
    queries, candidates = unit(2, 3, 1), unit(3, 3, 2).requires_grad_()
    allowed = all_allowed(2, 3)
    allowed[:, 2] = False
    masked_info_nce(queries, candidates, allowed, temperature=0.1, label_smoothing=0.1).backward()
    assert candidates.grad[2].abs().max() == 0
    assert candidates.grad[0].abs().max() > 0


def test_shapes_that_disagree_and_a_hidden_positive_are_refused():
    rows = unit(3, 4, 1)
    with pytest.raises(ValueError, match="shapes disagree"):
        masked_info_nce(rows, rows, all_allowed(3, 2), temperature=0.1)
    with pytest.raises(ValueError, match="own positive"):
        masked_info_nce(rows, rows, ~torch.eye(3, dtype=torch.bool), temperature=0.1)


class Lookup(torch.nn.Module):
    """A 'model' whose embedding of text i is row i of a table."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, -2.0]]))

    def forward(self, features):
        return {"sentence_embedding": self.table[features["rows"]]}


class Mask:
    """Stands in for BatchMaker.allowed: remembers what it was asked, and hides one candidate of the first query if told so."""

    def __init__(self, n_candidates=2, hidden=None):
        self.n_candidates, self.hidden, self.asked = n_candidates, hidden, []

    def __call__(self, rows, others):
        self.asked.append((rows, others))
        allowed = all_allowed(len(rows), self.n_candidates)
        if self.hidden is not None:
            allowed[0, self.hidden] = False
        return allowed


ROWS = torch.tensor([5, 9])


def columns():
    return [{"rows": torch.tensor([0, 1])}, {"rows": torch.tensor([0, 1])}]


def test_the_l1_penalty_is_a_part_of_its_own_and_only_while_training():
    loss = ContrastiveLoss(Lookup(), Mask(), temperature=0.5, label_smoothing=0.0, l1=0.1)
    parts = loss.train()(columns(), ROWS)
    assert parts["l1_penalty"].item() == pytest.approx(0.1 * 3)
    assert parts["contrastive_loss"].item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert set(loss.eval()(columns(), ROWS)) == {"contrastive_loss"}


def test_frozen_weights_are_not_penalised():
    model = Lookup()
    model.other = torch.nn.Parameter(torch.tensor([[-4.0]]), requires_grad=False)
    parts = ContrastiveLoss(model, Mask(), temperature=0.5, label_smoothing=0.0, l1=0.1).train()(columns(), ROWS)
    assert parts["l1_penalty"].item() == pytest.approx(0.1 * 3)


def test_the_mask_is_asked_for_by_the_rows_of_the_batch_and_obeyed():
    mask = Mask(hidden=1)
    parts = ContrastiveLoss(Lookup(), mask, temperature=0.5, label_smoothing=0.0, l1=0.0)(columns(), ROWS)
    assert mask.asked == [([5, 9], ())]
    # The first query has nothing to lose, the second log(1 + e⁻²).
    assert parts["contrastive_loss"].item() == pytest.approx(math.log(1 + math.exp(-2)) / 2)


def test_temperature_and_smoothing_reach_the_loss():
    def loss(**settings):
        return ContrastiveLoss(Lookup(), Mask(), l1=0.0, **settings)(columns(), ROWS)["contrastive_loss"].item()

    log_sum = math.log(math.exp(4) + 1)
    assert loss(temperature=0.25, label_smoothing=0.0) == pytest.approx(log_sum - 4, rel=1e-5)
    assert loss(temperature=0.25, label_smoothing=0.2) == pytest.approx(0.8 * (log_sum - 4) + 0.2 * (log_sum - 2))


# ---------------------------------------------------------------- candidates of other processes


class Meeting:
    """Three processes of which this is one; what the others would bring is given."""

    def __init__(self, rank, groups):
        self.rank, self.count, self.groups = rank, len(groups), groups

    def gather(self, value):
        values = [(rows, len(vectors)) for rows, vectors in self.groups]
        assert value == values[self.rank]
        return values[self.rank :] + values[: self.rank]

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
    ([5, 9], torch.tensor([[1.0, 0.0], [0.0, -1.0]])),
    ([2], torch.tensor([[0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])),
    ([7, 8], torch.tensor([[-0.6, 0.8], [0.8, 0.6]])),
]


@pytest.mark.parametrize("rank", range(3))
def test_gathered_candidates_come_own_first_then_by_rank_from_there_on_with_their_rows(rank, monkeypatch):
    meeting = Meeting(rank, GROUPS)
    monkeypatch.setattr(losses, "all_gather", meeting.all_gather)
    rows, candidates = GROUPS[rank]
    whole, others = losses._gathered(candidates, rows, meeting)
    order = [rank, (rank + 1) % 3, (rank + 2) % 3]
    assert whole.tolist() == [row for index in order for row in GROUPS[index][1].tolist()]
    assert others == [GROUPS[index][0] for index in order[1:]]


def test_gathered_candidates_repel_while_the_model_trains_and_not_while_it_is_evaluated(monkeypatch):
    meeting, mask = Meeting(0, GROUPS), Mask(n_candidates=7)
    monkeypatch.setattr(losses, "all_gather", meeting.all_gather)
    loss = ContrastiveLoss(Lookup(), mask, temperature=0.5, label_smoothing=0.0, l1=0.0, gather_from=meeting)
    cost = loss.train()(columns(), ROWS)["contrastive_loss"].item()
    assert mask.asked == [([5, 9], [[2], [7, 8]])]
    # Cosines of (1, 0): 1 0 | 0 −1 0.6 | −0.6 0.8; of (0, −1): 0 1 | −1 0 −0.8 | −0.8 −0.6.
    rows = ([1, 0, 0, -1, 0.6, -0.6, 0.8], [1, 0, -1, 0, -0.8, -0.8, -0.6])
    by_hand = sum(math.log(sum(math.exp(2 * cosine) for cosine in row)) - 2 for row in rows) / 2
    assert cost == pytest.approx(by_hand)
    # The trainer switches the model, not the loss.
    loss.model.eval()
    mask.n_candidates = 2
    assert loss(columns(), ROWS)["contrastive_loss"].item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert mask.asked[1] == ([5, 9], ())


class Wrapper(torch.nn.Module):
    """What several processes put around a model; nobody switches the wrapper itself to evaluation."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        return self.module(*arguments)


def test_neither_gathering_nor_the_penalty_is_in_the_evaluation_of_a_wrapped_model(monkeypatch):
    meeting, mask = Meeting(0, GROUPS), Mask(n_candidates=7)
    monkeypatch.setattr(losses, "all_gather", meeting.all_gather)
    model = Lookup()
    model.weight = torch.nn.Parameter(torch.ones(3))
    loss = ContrastiveLoss(Wrapper(model), mask, temperature=0.5, label_smoothing=0.0, l1=1.0, gather_from=meeting)
    assert set(loss.train()(columns(), ROWS)) == {"contrastive_loss", "l1_penalty"}
    model.eval()  # as the trainer does it
    assert loss.model.training
    mask.n_candidates = 2
    parts = loss(columns(), ROWS)
    assert set(parts) == {"contrastive_loss"}
    assert parts["contrastive_loss"].item() == pytest.approx(math.log(1 + math.exp(-2)))
