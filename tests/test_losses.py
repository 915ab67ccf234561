"""The in-batch contrastive loss, against numbers worked out by hand and a reference written in plain loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from ebr.training.losses import ContrastiveLoss, masked_info_nce


def all_allowed(n_queries, n_candidates):
    return torch.ones(n_queries, n_candidates, dtype=torch.bool)


def unit(rows, dim, seed):
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def reference(queries, candidates, allowed, temperature, smoothing):
    """Loops and logarithms, no tensor algebra."""
    total = 0.0
    for i, query in enumerate(queries.tolist()):
        logits = {
            j: sum(a * b for a, b in zip(query, candidate, strict=True)) / temperature
            for j, candidate in enumerate(candidates.tolist())
            if allowed[i, j]
        }
        log_sum = math.log(sum(math.exp(logit) for logit in logits.values()))
        costs = {j: log_sum - logit for j, logit in logits.items()}
        total += (1 - smoothing) * costs[i] + smoothing * sum(costs.values()) / len(costs)
    return total / len(queries)


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


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_and_gradient_equal_the_plain_reference_in_float64(smoothing):
    queries, candidates = unit(4, 6, 1).requires_grad_(), unit(7, 6, 2).requires_grad_()
    allowed = all_allowed(4, 7)
    allowed[0, 1] = allowed[2, 6] = allowed[3, 4] = False

    def loss(q, c):
        return masked_info_nce(q, c, allowed, temperature=0.2, label_smoothing=smoothing)

    # The loss works in float32 from the logits on.
    expected = reference(queries.detach(), candidates.detach(), allowed, 0.2, smoothing)
    assert loss(queries, candidates).item() == pytest.approx(expected, rel=1e-6)
    loss(queries, candidates).backward()
    step = 1e-6
    for tensor in (queries, candidates):
        bumped = tensor.detach().clone()
        bumped[1, 2] += step
        moved = (bumped, candidates.detach()) if tensor is queries else (queries.detach(), bumped)
        numeric = (reference(*moved, allowed, 0.2, smoothing) - expected) / step
        assert tensor.grad[1, 2].item() == pytest.approx(numeric, abs=1e-4)


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


def test_the_l1_penalty_is_a_part_of_its_own_and_only_while_training():
    loss = ContrastiveLoss(Lookup(), temperature=0.5, label_smoothing=0.0, l1=0.1)
    columns = [{"rows": torch.tensor([0, 1])}, {"rows": torch.tensor([0, 1])}]
    parts = loss.train()(columns, all_allowed(2, 2))
    assert parts["l1_penalty"].item() == pytest.approx(0.1 * 3)
    assert parts["contrastive_loss"].item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert set(loss.eval()(columns, all_allowed(2, 2))) == {"contrastive_loss"}
