"""Losses of sentence-transformers by name: what they are fed with, that each learns, and which options each reads."""

import math

import pytest
import torch
from sentence_transformers import SentenceTransformer

from ebr.config.options import option
from ebr.config.shared.objective import LOSSES, Need, ObjectiveOptions, check_objective
from ebr.errors import ConfigError
from ebr.training.loss.named_losses import ARRANGEMENTS, NamedLoss, objective_from
from ebr.training.loss.objectives import Distillation, InfoNCE, Matryoshka
from tests.training.test_objectives import OWNERS, SCORES, targets, vectors


class Options(ObjectiveOptions):
    """What check_objective reads besides, as FinetuneConfig has it."""

    temperature: float = option(0.05, "", "", gt=0)
    label_smoothing: float = option(0.0, "", "")
    gather_negatives: bool = option(False, "", "")
    neg_nums: int = option(2, "", "")


class OtherOptions(Options):
    """Another front end's default."""

    temperature: float = option(0.02, "", "", gt=0)


class Model(torch.nn.Module):
    """All that is asked of a model here."""

    def get_embedding_dimension(self):
        return 6


def made(loss, temperature=0.1, **options):
    return objective_from(loss=loss, temperature=temperature, model=Model(), **options)


def cosine(a, b):
    return torch.cosine_similarity(a, b, dim=0).item()


# ---------------------------------------------------------------- each by name


@pytest.mark.parametrize("matryoshka", [None, [6, 3]])
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_gives_every_own_candidate_a_finite_gradient(loss, matryoshka):
    queries, candidates = vectors(3, 6, 1).float().requires_grad_(), vectors(7, 6, 2).float().requires_grad_()
    parts = made(loss, matryoshka_dims=matryoshka)(queries, candidates, targets(3, OWNERS, SCORES))
    total = sum(parts.values())
    total.backward()
    assert total.dtype == torch.float32
    assert total.item() > 0
    assert torch.isfinite(queries.grad).all() and torch.isfinite(candidates.grad).all()
    assert queries.grad[0].abs().max() > 0
    takes_others = "gather_negatives" in LOSSES[loss].options
    assert (candidates.grad[6].abs().max() > 0) == takes_others


@pytest.mark.parametrize("loss", ARRANGEMENTS)
def test_a_named_loss_goes_by_its_name_in_the_log(loss):
    assert list(made(loss)(vectors(3, 6, 1), vectors(7, 6, 2), targets(3, OWNERS, SCORES))) == [loss]


@pytest.mark.parametrize("loss", [name for name, traits in LOSSES.items() if traits.negatives is Need.ALWAYS])
def test_a_batch_with_no_negative_is_no_number_that_is_none(loss):
    queries, positives = vectors(2, 6, 1).requires_grad_(), vectors(2, 6, 2).requires_grad_()
    cost = sum(made(loss)(queries, positives, targets(2, [0, 1], [0.9, 0.8])).values())
    cost.backward()
    assert math.isfinite(cost.item())
    assert torch.isfinite(queries.grad).all() and torch.isfinite(positives.grad).all()


def test_half_precision_is_reckoned_with_in_float32():
    queries, candidates = vectors(3, 6, 1).bfloat16(), vectors(7, 6, 2).bfloat16()
    wanted = targets(3, OWNERS, SCORES)
    for loss in ARRANGEMENTS:
        short = made(loss)(queries, candidates, wanted)[loss]
        assert short.dtype == torch.float32
        assert short.item() == pytest.approx(made(loss)(queries.float(), candidates.float(), wanted)[loss].item())


@pytest.mark.parametrize("loss", LOSSES)
def test_mixed_precision_changes_no_type(loss):
    for dtype in (torch.float32, torch.bfloat16):
        queries, candidates = vectors(3, 6, 1).to(dtype).requires_grad_(), vectors(7, 6, 2).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            total = sum(made(loss, matryoshka_dims=[6, 3])(queries, candidates, targets(3, OWNERS, SCORES)).values())
        total.backward()
        assert total.dtype == torch.float32
        assert torch.isfinite(queries.grad).all()


# ---------------------------------------------------------------- against numbers and ours


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_ranking_loss_with_nothing_hidden_equals_ours(bidirectional, temperature):
    queries, candidates, wanted = vectors(3, 6, 1), vectors(7, 6, 2), targets(3, OWNERS)
    ours = InfoNCE(temperature, bidirectional=bidirectional)(queries, candidates, wanted)["contrastive_loss"].item()
    theirs = made("MultipleNegativesRankingLoss", temperature, bidirectional=bidirectional)
    assert sum(theirs(queries, candidates, wanted).values()).item() == pytest.approx(ours, rel=1e-9)
    # It knows no mask.
    hidden = targets(3, OWNERS, hidden=[(0, 1), (2, 0)])
    assert sum(theirs(queries, candidates, hidden).values()).item() == pytest.approx(ours, rel=1e-9)


def test_ranking_loss_takes_pairs_alone():
    queries, positives, wanted = vectors(3, 6, 1), vectors(3, 6, 2), targets(3, [0, 1, 2])
    ours = InfoNCE(0.1)(queries, positives, wanted)["contrastive_loss"].item()
    name = "MultipleNegativesRankingLoss"
    assert made(name)(queries, positives, wanted)[name].item() == pytest.approx(ours, rel=1e-9)


def test_triplets_are_the_queries_with_each_of_their_own_negatives_less_those_that_are_right():
    # Distances of 3 to its positive, 4 to one negative, 10 to another; margin 5: 3 − 4 + 5 and nothing.
    queries, positives = torch.zeros(2, 2), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    negatives = torch.tensor([[0.0, 4.0], [10.0, 0.0], [0.0, 0.1]])
    candidates = torch.cat([positives, negatives])
    found = made("TripletLoss")(queries, candidates, targets(2, [0, 1, 0, 0, 0], hidden=[(0, 4)]))["TripletLoss"]
    assert found.item() == pytest.approx((4 + 0) / 2, abs=1e-4)


def test_pairs_are_one_for_the_positive_and_zero_for_a_negative():
    queries, candidates = vectors(3, 6, 1), vectors(7, 6, 2)
    wanted = targets(3, OWNERS, hidden=[(2, 5), (0, 1)])
    costs = [(1 - cosine(queries[i], candidates[i])) ** 2 / 2 for i in range(3)]
    costs += [max(0.5 - (1 - cosine(queries[0], candidates[place])), 0) ** 2 / 2 for place in (3, 4)]
    found = made("ContrastiveLoss")(queries, candidates, wanted)["ContrastiveLoss"]
    assert found.item() == pytest.approx(sum(costs) / 5, rel=1e-6)
    squares = [(cosine(queries[i], candidates[i]) - 1) ** 2 for i in range(3)]
    squares += [cosine(queries[0], candidates[place]) ** 2 for place in (3, 4)]
    found = made("CosineSimilarityLoss")(queries, candidates, wanted)["CosineSimilarityLoss"]
    assert found.item() == pytest.approx(sum(squares) / 5, rel=1e-6)


def test_pairs_have_the_teachers_scores_where_there_are_any_and_then_none_is_hidden():
    queries, candidates = vectors(3, 6, 1), vectors(7, 6, 2)
    pairs = list(zip(OWNERS[:6], range(6), SCORES, strict=False))
    squares = [(cosine(queries[owner], candidates[place]) - score) ** 2 for owner, place, score in pairs]
    found = made("CosineSimilarityLoss")(queries, candidates, targets(3, OWNERS, SCORES, hidden=[(2, 5)]))
    assert found["CosineSimilarityLoss"].item() == pytest.approx(sum(squares) / 6, rel=1e-6)


def test_cosent_costs_the_pairs_that_stand_the_wrong_way_round_over_the_whole_batch():
    queries, candidates = vectors(3, 6, 1), vectors(7, 6, 2)
    pairs = [(cosine(queries[owner], candidates[place]), SCORES[place]) for place, owner in enumerate(OWNERS[:6])]
    wrong = sum(math.exp((low - high) / 0.1) for high, more in pairs for low, less in pairs if more > less)
    found = made("CoSENTLoss")(queries, candidates, targets(3, OWNERS, SCORES))["CoSENTLoss"]
    assert found.item() == pytest.approx(math.log(1 + wrong), rel=1e-6)


def test_margins_are_told_by_the_teacher():
    queries, candidates = vectors(3, 6, 1), vectors(7, 6, 2)
    squares = [
        ((queries[owner] @ (candidates[owner] - candidates[place])).item() - (SCORES[owner] - SCORES[place])) ** 2
        for owner, place in ((0, 3), (0, 4), (2, 5))
    ]
    found = made("MarginMSELoss")(queries, candidates, targets(3, OWNERS, SCORES))["MarginMSELoss"]
    assert found.item() == pytest.approx(sum(squares) / 3, rel=1e-6)


@pytest.mark.parametrize("order", [range(7), [0, 1, 2, 5, 6, 4, 3]])
def test_kl_of_lists_of_any_length_is_our_distillation_times_the_temperature_squared(order):
    # sentence-transformers multiplies by it to keep the size of gradients (Hinton et al. 2015).
    queries, candidates = vectors(3, 6, 1), vectors(7, 6, 2)[list(order)]
    wanted = targets(3, [OWNERS[place] for place in order], [SCORES[place] for place in order])
    ours = Distillation(InfoNCE(0.3), 0.5, 0.0)(queries, candidates, wanted)["distillation_loss"].item()
    found = made("DistillKLDivLoss", 0.3, teacher_temperature=0.5)(queries, candidates, wanted)["DistillKLDivLoss"]
    assert found.item() == pytest.approx(0.09 * ours, rel=1e-5)


@pytest.mark.parametrize("loss", ["MarginMSELoss", "DistillKLDivLoss", "CoSENTLoss"])
def test_a_score_that_is_missing_among_others_is_refused(loss):
    with pytest.raises(ValueError, match="no teacher score"):
        made(loss)(vectors(3, 6, 1), vectors(7, 6, 2), targets(3, OWNERS, [*SCORES[:3], math.nan, *SCORES[4:]]))


# ---------------------------------------------------------------- options


def test_the_table_of_options_and_the_losses_that_are_fed_are_the_same():
    assert set(LOSSES) == {"info_nce", "distillation", *ARRANGEMENTS}


OTHERS = {
    "temperature": 0.3,
    "label_smoothing": 0.1,
    "bidirectional": True,
    "contrastive_weight": 0.5,
    "teacher_temperature": 2.0,
}
OF_THE_BATCH = {"gather_negatives": True, "same_answer": "chain", "several_positives": True}
"""They decide which candidates there are, and which of them are right: what an objective is told, not what it is."""


@pytest.mark.parametrize("loss", LOSSES)
def test_an_option_changes_a_loss_if_and_only_if_the_table_says_that_it_reads_it(loss):
    queries, candidates, wanted = vectors(3, 6, 1), vectors(7, 6, 2), targets(3, OWNERS, SCORES)

    def cost(**options):
        return sum(made(loss, **options)(queries, candidates, wanted).values()).item()

    plain = cost()
    read = {name for name, value in OTHERS.items() if cost(**{name: value}) != pytest.approx(plain, rel=1e-9)}
    assert read == LOSSES[loss].options - set(OF_THE_BATCH)


@pytest.mark.parametrize("config", [Options, OtherOptions])
@pytest.mark.parametrize("loss", LOSSES)
def test_options_that_a_loss_never_reads_are_refused_and_the_defaults_never(loss, config):
    check_objective(config(loss=loss))
    for name, value in {**OTHERS, **OF_THE_BATCH}.items():
        changed = config(loss=loss, **{name: value})
        if name in LOSSES[loss].options:
            check_objective(changed)
        else:
            with pytest.raises(ConfigError, match=rf"^{name}: has no meaning with loss {loss}; leave one of the two out$"):
                check_objective(changed)


@pytest.mark.parametrize("name", ["label_smoothing", "bidirectional", "gather_negatives"])
def test_distillation_alone_reads_no_option_of_info_nce(name):
    with pytest.raises(ConfigError, match=rf"^{name}: has no meaning with loss distillation alone \(contrastive_weight 0\)"):
        check_objective(
            Options(loss="distillation", contrastive_weight=0, **{name: {**OTHERS, "gather_negatives": True}[name]})
        )
    check_objective(Options(loss="distillation", contrastive_weight=0, temperature=0.3, teacher_temperature=2))


def test_loss_that_needs_negatives_must_draw_some():
    wanting = {"distillation"} | {name for name, traits in LOSSES.items() if traits.negatives is Need.ALWAYS}
    for loss in LOSSES:
        if loss not in wanting:
            check_objective(Options(loss=loss, neg_nums=0))
            continue
        with pytest.raises(
            ConfigError, match=f"^neg_nums: loss {loss} learns from a record's own negatives; set it to 1 or more"
        ):
            check_objective(Options(loss=loss, neg_nums=0))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("SoftmaxLoss", r"^loss: SoftmaxLoss is none that learns .* here; there is info_nce, distillation, Multiple.*DivLoss$"),
        ("infonce", r"; did you mean info_nce\?; there is info_nce, "),
        ("cosentloss", r"; did you mean CoSENTLoss\?"),
        ("MultipleNegativesSymmetricRankingLoss", "use MultipleNegativesRankingLoss, or info_nce, with bidirectional$"),
        ("GISTEmbedLoss", "^loss: GISTEmbedLoss is not needed here; use info_nce, which hides false negatives by their text"),
        ("MatryoshkaLoss", "use matryoshka_dims with any loss$"),
    ],
)
def test_loss_that_is_not_there_is_answered_with_those_that_are(loss, said):
    with pytest.raises(ConfigError, match=said) as caught:
        check_objective(Options(loss=loss))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dims", ["384 128", "384,128", ["384", "128"], ["384,128"], [384, 128]])
def test_dimensions_are_numbers_however_they_are_given(dims):
    assert ObjectiveOptions(matryoshka_dims=dims).matryoshka_dims == [384, 128]


@pytest.mark.parametrize("dims", [[0], "12 many", [1.5]])
def test_dimension_that_is_none_is_refused(dims):
    with pytest.raises(ConfigError, match=r"^matryoshka_dims: "):
        ObjectiveOptions(matryoshka_dims=dims)


def test_dimensions_are_sorted_once_each_and_no_more_than_the_model_has(tiny_model):
    model = SentenceTransformer(tiny_model, device="cpu")
    nested = objective_from(loss="info_nce", temperature=0.1, matryoshka_dims=[8, 32, 8, 16], model=model)
    assert nested == Matryoshka(InfoNCE(0.1), (32, 16, 8))
    with pytest.raises(ConfigError, match=r"^matryoshka_dims: 33 is more than the model's vectors have, 32; give 32 or fewer$"):
        objective_from(loss="TripletLoss", temperature=0.1, matryoshka_dims=[8, 33], model=model)


def test_options_reach_ours():
    found = made("distillation", label_smoothing=0.2, bidirectional=True, teacher_temperature=3.0, contrastive_weight=0.5)
    assert found == Distillation(InfoNCE(0.1, 0.2, True), 3.0, 0.5)
    assert isinstance(made("AnglELoss"), NamedLoss)
