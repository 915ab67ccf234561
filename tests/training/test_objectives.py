"""Objectives over a batch's vectors, by hand, and what is asked of the data before."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from ebr.data.training.examples import Example
from ebr.data.training.text_table import TextTable
from ebr.errors import DataError
from ebr.training.loss.objectives import Bounds, Distillation, InfoNCE, Matryoshka, Targets, check_data, masked_info_nce


def vectors(rows, dim, seed):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets(n_queries, owners, scores=None, hidden=()):
    """hidden: (query, place) pairs."""
    mask = torch.ones(n_queries, len(owners), dtype=torch.bool)
    for cell in hidden:
        mask[cell] = False
    return Targets(mask, torch.tensor(owners), torch.tensor(scores or [math.nan] * len(owners)))


OWNERS = [0, 1, 2, 0, 0, 2, -1]
"""Three queries: the first has two negatives, the last one; the last candidate is another process's."""


def case():
    queries, candidates = vectors(3, 6, 1), vectors(7, 6, 2)
    return queries, candidates, targets(3, OWNERS, hidden=[(0, 1), (2, 6)])


# ---------------------------------------------------------------- in-batch


def test_info_nce_is_the_masked_loss_of_normalised_vectors():
    queries, candidates, wanted = case()
    plain = masked_info_nce(
        normalize(queries, dim=1), normalize(candidates, dim=1), wanted.mask, temperature=0.1, label_smoothing=0.2
    )
    found = InfoNCE(0.1, 0.2)(queries * 3, candidates * 7, wanted)
    assert list(found) == ["contrastive_loss"]
    assert found["contrastive_loss"].item() == pytest.approx(plain.item(), rel=1e-12)


def test_both_directions_by_hand():
    # Cosines at temperature 1: query 0 sees 1 and 0, query 1 (at 45°) sees s and s; the positives see 1 and s, 0 and s.
    s = math.sqrt(0.5)
    queries, candidates = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    there = (math.log(math.e + 1) - 1 + math.log(2)) / 2
    back = (math.log(math.e + math.exp(s)) - 1 + math.log(1 + math.exp(s)) - s) / 2
    wanted = targets(2, [0, 1])
    assert InfoNCE(1.0)(queries, candidates, wanted)["contrastive_loss"].item() == pytest.approx(there)
    both = InfoNCE(1.0, bidirectional=True)(queries, candidates, wanted)["contrastive_loss"]
    assert both.item() == pytest.approx((there + back) / 2)


def test_both_directions_are_the_same_whichever_side_is_called_the_queries():
    queries, positives = vectors(4, 6, 1), vectors(4, 6, 2)
    wanted = targets(4, [0, 1, 2, 3], hidden=[(0, 2), (3, 1)])
    turned = Targets(wanted.mask.T, wanted.owners, wanted.scores)
    objective = InfoNCE(0.1, 0.1, bidirectional=True)
    there = objective(queries, positives, wanted)["contrastive_loss"].item()
    assert objective(positives, queries, turned)["contrastive_loss"].item() == pytest.approx(there, rel=1e-12)


def test_negatives_take_no_part_in_picking_the_query():
    queries, candidates, wanted = case()
    one_way, both = (
        InfoNCE(0.1, bidirectional=flag)(queries, candidates, wanted)["contrastive_loss"] for flag in (False, True)
    )
    back = InfoNCE(0.1)(candidates[:3], queries, targets(3, [0, 1, 2], hidden=[(1, 0)]))["contrastive_loss"]
    assert both.item() == pytest.approx((one_way + back).item() / 2, rel=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_info_nce_stands_torchs_gradient_check(bidirectional):
    queries, candidates, wanted = case()
    objective = InfoNCE(0.3, 0.1, bidirectional)
    leaves = queries.requires_grad_(), candidates.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, c: objective(q, c, wanted)["contrastive_loss"], leaves)


# ---------------------------------------------------------------- what a loss is measured against


def entropy(*shares):
    return -sum(share * math.log(share) for share in shares)


# Two queries; five candidates, of which the first query may pick from three and the second from five.
ALLOWED = torch.tensor([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)


def test_bounds_are_the_entropy_of_the_targets_and_of_guessing_by_the_candidates_of_each_query():
    # 0.3 spread over 3 is 0.1 each, over 5 it is 0.06 each; the right one keeps 0.7 beside its share.
    floor = (entropy(0.8, 0.1, 0.1) + entropy(0.76, *[0.06] * 4)) / 2
    found = InfoNCE(0.05, 0.3).bounds(ALLOWED)
    assert (found.floor, found.chance) == (pytest.approx(floor), pytest.approx((math.log(3) + math.log(5)) / 2))
    assert InfoNCE(0.05).bounds(ALLOWED).floor == 0


def test_bounds_of_both_directions_are_the_mean_of_those_of_each():
    # Back, the first positive picks from two queries and the second from one.
    found = InfoNCE(0.05, 0.3, bidirectional=True).bounds(ALLOWED)
    back = (entropy(0.85, 0.15) + 0) / 2, (math.log(2) + math.log(1)) / 2
    there = InfoNCE(0.05, 0.3).bounds(ALLOWED)
    assert found.floor == pytest.approx((there.floor + back[0]) / 2)
    assert found.chance == pytest.approx((there.chance + back[1]) / 2)


def test_no_loss_gets_below_its_floor_and_the_best_logits_reach_it():
    # Cosines of 1 and of −0.5: ln((0.7 + 0.1) / 0.1) = ln 8 apart at this temperature.
    angles = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3], dtype=torch.float64)
    star = torch.stack([angles.cos(), angles.sin()], dim=1)
    objective = InfoNCE(1.5 / math.log(8), 0.3)
    wanted = targets(3, [0, 1, 2])
    floor = objective.bounds(wanted.mask).floor
    assert objective(star, star, wanted)["contrastive_loss"].item() == pytest.approx(floor, rel=1e-12)
    for seed in range(5):
        assert objective(vectors(3, 2, seed), vectors(3, 2, seed + 9), wanted)["contrastive_loss"].item() > floor


def test_shorter_vectors_pick_from_the_same_candidates():
    objective = InfoNCE(0.05, 0.1)
    assert Matryoshka(objective, (6, 3)).bounds(ALLOWED) == objective.bounds(ALLOWED)


def test_objective_of_two_targets_or_of_another_formula_has_no_bounds():
    assert Distillation(InfoNCE(0.05), 1.0, 1.0).bounds(ALLOWED) is None
    assert Matryoshka(Distillation(InfoNCE(0.05), 1.0, 1.0), (6, 3)).bounds(ALLOWED) is None
    assert isinstance(InfoNCE(0.05).bounds(ALLOWED), Bounds)


# ---------------------------------------------------------------- Matryoshka


@pytest.mark.parametrize(
    "objective", [InfoNCE(0.1, 0.1, True), Distillation(InfoNCE(0.1), 2.0, 0.5)], ids=["info_nce", "distillation"]
)
def test_matryoshka_of_the_whole_vector_is_the_objective_itself(objective):
    queries, candidates = vectors(3, 6, 1), vectors(7, 6, 2)
    wanted = targets(3, OWNERS, [0.9, 0.8, 0.7, 0.1, 0.2, 0.3, math.nan])
    plain, nested = (one(queries, candidates, wanted) for one in (objective, Matryoshka(objective, (6,))))
    assert plain.keys() == nested.keys()
    for name in plain:
        assert nested[name].item() == pytest.approx(plain[name].item(), rel=1e-12)


def test_matryoshka_is_the_mean_over_the_shortened_vectors_normalised_again():
    # The first dimension alone: 1 and −1, cosines ±1; both dimensions: orthogonal, cosines 1 and 0.
    axes = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    found = Matryoshka(InfoNCE(1.0), (2, 1))(axes, axes, targets(2, [0, 1]))["contrastive_loss"]
    assert found.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2)


def test_an_objective_sees_unit_vectors_when_they_are_shortened():
    def lengths(queries, candidates, _targets):
        return {"length": torch.cat([queries, candidates]).norm(dim=1).sum()}

    queries, candidates, wanted = case()
    assert Matryoshka(lengths, (4, 2))(queries, candidates, wanted)["length"].item() == pytest.approx(3 + 7)


def test_every_dimension_up_to_the_longest_learns_and_none_beyond():
    queries, candidates, wanted = case()
    queries.requires_grad_()
    sum(Matryoshka(InfoNCE(0.1), (4, 2))(queries, candidates, wanted).values()).backward()
    assert (queries.grad.abs().sum(dim=0) > 0).tolist() == [True] * 4 + [False] * 2


# ---------------------------------------------------------------- distillation

SCORES = [0.9, 0.8, 0.7, 0.1, 0.2, 0.3, math.nan]


def test_distillation_by_hand():
    # Query 0 has cosines 1 and 0 to its own two, the teacher says they tie: log((e+1)/2) − 1/2. Query 1 has one.
    queries, candidates = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    wanted = targets(2, [0, 1, 0], [5.0, 1.0, 5.0])
    found = Distillation(InfoNCE(1.0), 1.0, 0.0)(queries, candidates, wanted)
    assert list(found) == ["distillation_loss"]
    assert found["distillation_loss"].item() == pytest.approx((math.log((math.e + 1) / 2) - 0.5) / 2)


def test_a_student_that_agrees_with_its_teacher_has_no_gradient_from_it():
    queries, candidates = vectors(3, 6, 1).requires_grad_(), vectors(7, 6, 2).requires_grad_()
    owners = torch.tensor(OWNERS)
    # The teacher's scale is ten times the cosine's, and its zero lies elsewhere: the temperatures and the softmax undo both.
    scores = 10 * torch.cosine_similarity(queries[owners], candidates, dim=1).detach() - 4
    wanted = Targets(torch.ones(3, 7, dtype=torch.bool), owners, scores)
    Distillation(InfoNCE(0.3), 3.0, 0.0)(queries, candidates, wanted)["distillation_loss"].backward()
    assert max(queries.grad.abs().max(), candidates.grad.abs().max()) < 1e-12
    queries.grad = None
    Distillation(InfoNCE(0.3), 1.0, 0.0)(queries, candidates, wanted)["distillation_loss"].backward()
    assert queries.grad.abs().max() > 1e-3


def test_weight_adds_info_nce_as_a_part_of_its_own():
    queries, candidates = vectors(3, 6, 1), vectors(7, 6, 2)
    wanted = targets(3, OWNERS, SCORES)
    alone = Distillation(InfoNCE(0.1), 1.0, 0.0)(queries, candidates, wanted)
    both = Distillation(InfoNCE(0.1), 1.0, 0.25)(queries, candidates, wanted)
    assert both["distillation_loss"] == alone["distillation_loss"]
    assert both["contrastive_loss"] == 0.25 * InfoNCE(0.1)(queries, candidates, wanted)["contrastive_loss"]


def test_another_processs_candidate_is_in_info_nce_but_not_in_the_teachers_list():
    queries, candidates = vectors(3, 6, 1), vectors(7, 6, 2).requires_grad_()
    parts = Distillation(InfoNCE(0.1), 1.0, 1.0)(queries, candidates, targets(3, OWNERS, SCORES))
    (gradient,) = torch.autograd.grad(parts["distillation_loss"], candidates, retain_graph=True)
    assert gradient[6].abs().max() == 0 < gradient[5].abs().max()
    (gradient,) = torch.autograd.grad(parts["contrastive_loss"], candidates)
    assert gradient[6].abs().max() > 0


def test_distillation_stands_torchs_gradient_check():
    wanted = targets(3, OWNERS, SCORES)

    def total(queries, candidates):
        return sum(Distillation(InfoNCE(0.3), 0.5, 0.5)(queries, candidates, wanted).values())

    assert torch.autograd.gradcheck(total, (vectors(3, 6, 1).requires_grad_(), vectors(7, 6, 2).requires_grad_()))


def test_own_candidate_without_a_score_is_refused():
    with pytest.raises(ValueError, match="no teacher score"):
        Distillation(InfoNCE(0.1), 1.0, 0.0)(vectors(3, 6, 1), vectors(7, 6, 2), targets(3, OWNERS))


# ---------------------------------------------------------------- what the data must have

PAIR = Example("q", ("p",))
TAUGHT = Example("r", ("s",), ("n",))
SCORED = Example("t", ("u",), ("v",), (0.9,), (0.1,))


def check(train, validation, **options):
    check_data(train, validation, TextTable.of([*train, *validation]), **options)


def refusal(train, loss, validation=(), neg_nums=2, **more):
    with pytest.raises(DataError) as caught:
        check(train, validation, loss=loss, neg_nums=neg_nums, **more)
    return str(caught.value)


@pytest.mark.parametrize("loss", ["info_nce", "MultipleNegativesRankingLoss"])
def test_in_batch_losses_take_any_records(loss):
    check([PAIR, TAUGHT, SCORED], [PAIR], loss=loss, neg_nums=0)


@pytest.mark.parametrize("loss", ["distillation", "MarginMSELoss", "DistillKLDivLoss"])
def test_record_without_scores_is_named_where_scores_are_needed(loss):
    said = refusal([SCORED, TAUGHT, SCORED], loss)
    assert said.startswith(f"loss {loss}: 1 of 3 records is without teacher scores: 'r'; give each record pos_scores and neg_s")
    half = Example("half", ("u",), ("v",), (0.9,))
    assert "1 of 2 records is without teacher scores: 'half'" in refusal([SCORED], loss, [half])
    check([SCORED], [SCORED], loss=loss, neg_nums=1)


@pytest.mark.parametrize("loss", ["CoSENTLoss", "AnglELoss", "CosineSimilarityLoss"])
def test_scores_are_in_all_records_or_in_none_where_they_may_be(loss):
    assert "1 of 2 records is without teacher scores while others have them: 'r'" in refusal([SCORED, TAUGHT], loss)
    check([SCORED, Example("q", ("p",), (), (0.3,))], [], loss=loss, neg_nums=0)
    check([TAUGHT], [TAUGHT], loss=loss, neg_nums=1)
    assert f"loss {loss}: 1 of 2 records is without a negative of its own: 'q'" in refusal([TAUGHT, PAIR], loss)


def test_score_that_no_cosine_reaches_is_refused_for_the_loss_that_compares_them():
    high = Example("t", ("u",), ("v",), (8.5,), (0.1,))
    assert "1 of 2 records is with a score beyond -1 to 1" in refusal([SCORED, high], "CosineSimilarityLoss")
    check([SCORED, high], [], loss="CoSENTLoss", neg_nums=1)


@pytest.mark.parametrize("loss", ["TripletLoss", "ContrastiveLoss", "OnlineContrastiveLoss"])
def test_record_without_a_negative_is_named_where_each_needs_one(loss):
    right_elsewhere = [Example("r", ("n2",), ("s ",)), Example("long" * 30, ("p",)), Example("R", ("p",), ("r", "S")), PAIR]
    said = refusal([TAUGHT, *right_elsewhere], loss)
    named = f"'r', '{('long' * 30)[:59]}…', 'R', …"
    assert said.startswith(f"loss {loss}: 4 of 5 records are without a negative of its own: {named}; mine some with `ebr mine`")
    check([TAUGHT], [TAUGHT, PAIR], loss=loss, neg_nums=1)
    assert "(neg_nums is 0: none is drawn)" in refusal([TAUGHT], loss, neg_nums=0)


@pytest.mark.parametrize("loss", ["TripletLoss", "MarginMSELoss"])
def test_validation_split_in_which_nothing_is_left_to_judge_is_refused(loss):
    alone = Example("q", ("p",), (), (0.9,))
    assert refusal([SCORED], loss, [alone, alone]).startswith(
        "validation_split: none of the 2 records held out keeps a negative"
    )


def test_distillation_goes_without_negatives_here_and_there_but_not_everywhere():
    alone = Example("q", ("p",), (), (0.9,))
    check([SCORED, alone], [alone], loss="distillation", neg_nums=1)
    assert "2 of 2 records are without a negative of its own" in refusal([alone, alone], "distillation")
    assert refusal([SCORED], "distillation", [alone], contrastive_weight=0.0).startswith(
        "validation_split: none of the 1 records"
    )


def test_teachers_list_may_hold_what_is_right_by_another_record():
    check([Example("r", ("s", "t"), ("t",), (0.9, 0.8), (0.8,))], [], loss="MarginMSELoss", neg_nums=1)


# ---------------------------------------------------------------- several positives


def several(hidden, rows=3):
    """case(), its hidden cells to be picked."""
    queries, candidates, wanted = case()
    positives = torch.zeros_like(wanted.mask)
    for cell in hidden:
        positives[cell] = True
    return queries, candidates, Targets(wanted.mask, wanted.owners, wanted.scores, positives)


def test_several_positives_by_hand():
    # Query 0 sees cosines 1, 0, 1 and picks the first and the last: the mean of -log p of both, all three below the line.
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    positives = torch.tensor([[False, False, True], [False, False, False]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    first = math.log(2 * math.e + 1) - 1
    second = math.log(math.e + 2) - 1
    found = InfoNCE(1.0)(queries, candidates, Targets(mask, torch.tensor([0, 1, 0]), torch.zeros(3), positives))
    assert found["contrastive_loss"].item() == pytest.approx((first + second) / 2)


def test_no_further_positive_is_the_loss_of_one():
    queries, candidates, wanted = several([])
    for both in (False, True):
        objective = InfoNCE(0.1, 0.2, bidirectional=both)
        one = objective(queries, candidates, Targets(wanted.mask, wanted.owners, wanted.scores))
        assert objective(queries, candidates, wanted)["contrastive_loss"].item() == pytest.approx(
            one["contrastive_loss"].item(), rel=1e-12
        )


def test_a_further_positive_attracts_where_a_hidden_one_does_nothing():
    queries, candidates, wanted = several([(0, 1)])
    candidates.requires_grad_()
    objective = InfoNCE(0.5)

    def pull(targets):
        """How much a step along the gradient raises the cosine of query 0 and candidate 1."""
        candidates.grad = None
        objective(queries, candidates, targets)["contrastive_loss"].backward()
        return -(candidates.grad[1] @ normalize(queries, dim=1)[0]).item()

    hidden = pull(Targets(wanted.mask, wanted.owners, wanted.scores))
    assert pull(wanted) > hidden


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("both", [False, True])
def test_bounds_of_several_positives_are_met_by_the_best_and_by_chance(smoothing, both):
    _, _, wanted = several([(0, 1), (2, 1)])
    objective = InfoNCE(1.0, smoothing, bidirectional=both)
    bounds = objective.bounds(wanted.mask, wanted.positives)
    nothing = torch.zeros(3, 6), torch.zeros(7, 6)
    assert objective(*nothing, wanted)["contrastive_loss"].item() == pytest.approx(bounds.chance, rel=1e-6)
    # The targets themselves as probabilities cost their entropy.
    entropies = []
    views = [(wanted.mask, wanted.positives)] + ([(wanted.mask[:, :3].T, wanted.positives[:, :3].T)] if both else [])
    for mask, positives in views:
        own = positives | torch.eye(*mask.shape, dtype=torch.bool)
        seen = mask | own
        target = (1 - smoothing) * own / own.sum(1, keepdim=True) + smoothing * seen / seen.sum(1, keepdim=True)
        entropies.append(torch.special.entr(target.double()).sum(1).mean().item())
    assert bounds.floor == pytest.approx(np.mean(entropies), rel=1e-6)
