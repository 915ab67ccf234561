"""The in-batch loss and the divergence from a teacher, against numbers by hand and a reference in plain loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from ebr.training.loss.objectives import grouped_divergence, masked_info_nce


def all_visible(n_queries, n_candidates):
    return torch.ones(n_queries, n_candidates, dtype=torch.bool)


def unit(rows, dim, seed):
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def logits_of(queries, candidates, temperature):
    """Cosines / temperature, in loops: a list of rows."""
    return [
        [sum(a * b for a, b in zip(query, candidate, strict=True)) / temperature for candidate in candidates.tolist()]
        for query in queries.tolist()
    ]


def cost_of(logits, mask, smoothing):
    """Loops and logarithms, no tensor algebra."""
    total = 0.0
    for i, row in enumerate(logits):
        visible = [j for j in range(len(row)) if mask[i, j]]
        log_sum = math.log(sum(math.exp(row[j]) for j in visible))
        costs = {j: log_sum - row[j] for j in visible}
        total += (1 - smoothing) * costs[i] + smoothing * sum(costs.values()) / len(costs)
    return total / len(logits)


def reference(queries, candidates, mask, temperature, smoothing):
    """The loss."""
    return cost_of(logits_of(queries, candidates, temperature), mask, smoothing)


def reference_gradients(queries, candidates, mask, temperature, smoothing):
    """(dL/dqueries, dL/dcandidates) as lists of rows, by hand: dL/dlogit = (softmax − target) / B, dlogit/dq_i = c_j / T."""
    logits, queries, candidates = logits_of(queries, candidates, temperature), queries.tolist(), candidates.tolist()
    of_queries = [[0.0] * len(row) for row in queries]
    of_candidates = [[0.0] * len(row) for row in candidates]
    for i, row in enumerate(logits):
        visible = [j for j in range(len(row)) if mask[i, j]]
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
    assert masked_info_nce(same, same, all_visible(3, 3), temperature=0.02).item() == pytest.approx(math.log(3))


def test_hiding_every_other_candidate_leaves_nothing_to_lose():
    same = normalize(torch.ones(3, 4), dim=1)
    assert masked_info_nce(same, same, torch.eye(3, dtype=torch.bool), temperature=0.02).item() == 0.0


def test_two_orthogonal_pairs_cost_log_one_plus_exp_of_minus_the_inverse_temperature():
    axes = torch.eye(2)
    loss = masked_info_nce(axes, axes, all_visible(2, 2), temperature=0.5).item()
    assert loss == pytest.approx(math.log(1 + math.exp(-2)))


def small_case():
    """Four queries, seven candidates in six dimensions; seven cells hidden, five of them in one row."""
    mask = all_visible(4, 7)
    mask[0, 1] = mask[2, 6] = False
    mask[3] = torch.tensor([0, 0, 0, 1, 0, 1, 0], dtype=torch.bool)
    return unit(4, 6, 1), unit(7, 6, 2), mask


CASES = [(temperature, smoothing) for temperature in (0.05, 0.2, 1.0) for smoothing in (0.0, 0.1, 0.5)]


@pytest.mark.parametrize(("temperature", "smoothing"), CASES)
def test_loss_equals_the_plain_reference_in_float64(temperature, smoothing):
    queries, candidates, mask = small_case()
    loss = masked_info_nce(queries, candidates, mask, temperature=temperature, label_smoothing=smoothing)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(reference(queries, candidates, mask, temperature, smoothing), rel=1e-12)


@pytest.mark.parametrize(("temperature", "smoothing"), CASES)
def test_gradient_equals_softmax_minus_target_chained_by_hand(temperature, smoothing):
    queries, candidates, mask = small_case()
    leaves = queries.clone().requires_grad_(), candidates.clone().requires_grad_()
    masked_info_nce(*leaves, mask, temperature=temperature, label_smoothing=smoothing).backward()
    by_hand = reference_gradients(queries, candidates, mask, temperature, smoothing)
    for leaf, wanted in zip(leaves, by_hand, strict=True):
        torch.testing.assert_close(leaf.grad, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_equals_the_central_differences_of_the_plain_reference(smoothing):
    queries, candidates, mask = small_case()
    leaves = queries.clone().requires_grad_(), candidates.clone().requires_grad_()
    masked_info_nce(*leaves, mask, temperature=0.2, label_smoothing=smoothing).backward()
    step = 1e-5
    for which, leaf in enumerate(leaves):
        for cell in range(leaf.numel()):
            costs = []
            for sign in (1, -1):
                moved = [queries.clone(), candidates.clone()]
                moved[which].view(-1)[cell] += sign * step
                costs.append(reference(*moved, mask, 0.2, smoothing))
            # Wrong by step² times the third derivative, here at most about 1 / 0.2³ = 125.
            assert leaf.grad.view(-1)[cell].item() == pytest.approx((costs[0] - costs[1]) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_torchs_own_gradient_check_agrees(smoothing):
    queries, candidates, mask = small_case()

    def loss(q, c):
        return masked_info_nce(q, c, mask, temperature=0.2, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, (queries.requires_grad_(), candidates.requires_grad_()), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_less_exact_than_float32_is_summed_up_in_float32(dtype):
    queries, candidates, mask = small_case()
    queries, candidates = queries.to(dtype), candidates.to(dtype)
    loss = masked_info_nce(queries, candidates, mask, temperature=0.05)
    assert loss.dtype == torch.float32
    # The product rounds to its type; what comes after must not round to it again.
    logits = [[cosine / 0.05 for cosine in row] for row in (queries @ candidates.T).tolist()]
    assert loss.item() == pytest.approx(cost_of(logits, mask, 0.0), rel=1e-5)


def test_smoothing_costs_the_share_of_the_mean_distance_to_the_others():
    # Logits 2 and 0, log-sum log(e² + 1): the right one costs log_sum − 2, the other log_sum; even is their mean.
    axes = torch.eye(2, dtype=torch.float64)
    loss = masked_info_nce(axes, axes, all_visible(2, 2), temperature=0.5, label_smoothing=0.3).item()
    log_sum = math.log(math.exp(2) + 1)
    assert loss == pytest.approx(0.7 * (log_sum - 2) + 0.3 * (log_sum - 1), rel=1e-12)


def test_a_hidden_candidate_gets_no_gradient():
    queries, candidates = unit(2, 3, 1), unit(3, 3, 2).requires_grad_()
    mask = all_visible(2, 3)
    mask[:, 2] = False
    masked_info_nce(queries, candidates, mask, temperature=0.1, label_smoothing=0.1).backward()
    assert candidates.grad[2].abs().max() == 0
    assert candidates.grad[0].abs().max() > 0


def test_shapes_that_disagree_and_a_hidden_positive_are_refused():
    rows = unit(3, 4, 1)
    with pytest.raises(ValueError, match="shapes disagree"):
        masked_info_nce(rows, rows, all_visible(3, 2), temperature=0.1)
    with pytest.raises(ValueError, match="own positive"):
        masked_info_nce(rows, rows, ~torch.eye(3, dtype=torch.bool), temperature=0.1)


# ---------------------------------------------------------------- agreement with a teacher


def divergence(student, teacher):
    """KL(softmax(teacher) ‖ softmax(student)) of two lists, with logarithms and no tensor."""
    wanted, found = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (teacher, student))
    return sum(p * math.log(p / q) for p, q in zip(wanted, found, strict=True))


GROUPS = torch.tensor([0, 2, 0, 2, 3, 0])
"""Members 0, 2, 5 of group 0, none of 1, 1 and 3 of 2, 4 alone in 3."""


def test_divergence_is_the_mean_over_groups_of_each_ones_own_softmax():
    student, teacher = [1.0, 0.5, -2.0, 3.0, 7.0, 0.0], [0.0, 2.0, 1.0, -1.0, -90.0, 0.5]
    cost = grouped_divergence(torch.tensor(student).double(), torch.tensor(teacher).double(), GROUPS, 4)
    first = divergence([1.0, -2.0, 0.0], [0.0, 1.0, 0.5])
    third = divergence([0.5, 3.0], [2.0, -1.0])
    assert cost.item() == pytest.approx((first + third) / 4, rel=1e-12)


def test_divergence_of_even_from_three_to_one_by_hand():
    # Teacher 3/4 and 1/4, student 1/2 and 1/2: 3/4 log(3/2) + 1/4 log(1/2).
    cost = grouped_divergence(torch.zeros(2), torch.tensor([math.log(3), 0.0]), torch.tensor([0, 0]), 1)
    assert cost.item() == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2))


def test_divergence_and_its_gradient_are_zero_where_the_student_agrees_whatever_both_are_shifted_by():
    student = torch.tensor([1.0, 0.5, -2.0, 3.0, 7.0, 0.0], dtype=torch.float64, requires_grad=True)
    cost = grouped_divergence(student, student.detach() + 100, GROUPS, 4)
    cost.backward()
    assert cost.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_divergence_stands_torchs_gradient_check_and_logits_of_hundreds():
    student = unit(1, 6, 3)[0].requires_grad_()
    teacher = unit(1, 6, 4)[0] * 5
    assert torch.autograd.gradcheck(lambda x: grouped_divergence(x, teacher, GROUPS, 4), (student,))
    far = torch.tensor([800.0, -800.0], requires_grad=True)
    cost = grouped_divergence(far, torch.tensor([-800.0, 800.0]), torch.tensor([0, 0]), 1)
    cost.backward()
    assert cost.item() == pytest.approx(1600)
    assert far.grad.tolist() == [1.0, -1.0]
