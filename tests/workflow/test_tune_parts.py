"""Recipes, ladder, choice and split of a tuning, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ebr.config import FinetuneConfig, TuneConfig
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.data.training.examples import Example, read_examples
from ebr.data.training.text_table import TextTable
from ebr.errors import ConfigError, DataError
from ebr.workflow.tune import final as final_module
from ebr.workflow.tune import parts as parts_module
from ebr.workflow.tune.budget import DIAL, LAST, MINING, PROOF, Budget, Costs, Pace, Speed, Spend, share_to_look_at
from ebr.workflow.tune.choice import choose, is_as_good, left_below
from ebr.workflow.tune.climb import Climb
from ebr.workflow.tune.final import stir, with_further_seeds
from ebr.workflow.tune.ladder import (
    LEAST_STEPS,
    MOST_EPOCHS,
    NO_FIGURE,
    Rung,
    climb,
    least_in_all,
    n_trials,
    plan_ladder,
    total_of,
)
from ebr.workflow.tune.parts import ENOUGH_QUERIES, _drawn, judgements, split_records, thinned, write_parts
from ebr.workflow.tune.recipes import DataFacts, Ingredient, Recipe, stock_recipe, suggested
from ebr.workflow.tune.result import why
from ebr.workflow.tune.trials import METRIC, Figures, Soup, Trial

FACTS = DataFacts(unknown=0.0, same_answer="text", every_record_has_negatives=False, has_corpus=False)


def recipes(*names):
    return [Recipe(name) for name in names]


# ---------------------------------------------------------------- the ladder


def ladder(n_recipes, total, epoch_steps, growth=1.0):
    return plan_ladder(n_recipes, epoch_steps, lambda rungs: total_of(rungs, growth) <= total)


def test_a_ladder_by_hand():
    # 5 × 10 + 2 × 30 + 1 × 90, and 90 of what is chosen and of the stock recipe, on all records: 380.
    assert ladder(5, 380, 1000) == [Rung(5, 10), Rung(2, 30), Rung(1, 90)]
    assert total_of(ladder(5, 380, 1000)) == 380
    # What is trained in the end has half as many records more, and passes over them as often: 200 + 2 × 135.
    assert ladder(5, 470, 1000, 1.5) == [Rung(5, 10), Rung(2, 30), Rung(1, 90)]
    assert total_of(ladder(5, 470, 1000, 1.5), 1.5) == 470
    assert ladder(5, 379, 1000) == [Rung(5, 9), Rung(2, 27), Rung(1, 81)]
    assert n_trials(5) == 5 + 2 + 1
    assert least_in_all(1.5) == 8 + 2 * 12 and ladder(3, 32, 1000, 1.5) == [Rung(1, 8)]


def test_no_trial_passes_over_the_records_more_often_than_allowed():
    assert ladder(5, 10**6, 90)[-1].steps == MOST_EPOCHS * 90


@given(st.integers(1, 12), st.integers(24, 10_000), st.integers(1, 500), st.floats(1.0, 2.0))
def test_a_ladder_keeps_to_its_steps(n_recipes, total, epoch_steps, growth):
    assume(total >= least_in_all(growth))
    rungs = ladder(n_recipes, total, epoch_steps, growth)
    assert total_of(rungs, growth) <= total
    assert rungs[0].steps >= LEAST_STEPS
    assert rungs[-1].n_recipes == 1 or len(rungs) == 3
    assert [rung.steps for rung in rungs] == sorted(rung.steps for rung in rungs)
    longer = [Rung(rung.n_recipes, rung.steps // rungs[0].steps * (rungs[0].steps + 1)) for rung in rungs]
    is_capped = longer[-1].steps > max(LEAST_STEPS, MOST_EPOCHS * epoch_steps)
    assert is_capped or total_of(longer, growth) > total, "no step is left over"


def test_the_best_of_each_rung_go_on():
    worth, tried = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.4}, []

    def attempt(recipe, steps):
        tried.append((recipe.name, steps))
        return worth[recipe.name]

    climb([Rung(4, 10), Rung(2, 30), Rung(1, 90)], recipes(*"abcde"), attempt)
    assert tried == [("a", 10), ("b", 10), ("c", 10), ("d", 10), ("b", 30), ("d", 30), ("b", 90)], "of equals the first"


def test_a_climb_ends_with_the_time():
    tried = []
    climb([Rung(3, 1)], recipes(*"abc"), lambda recipe, steps: tried.append(recipe.name) or (None if len(tried) == 2 else 1.0))
    assert tried == ["a", "b"]


def test_what_cannot_be_tried_goes_no_further():
    tried = []
    climb(
        [Rung(3, 1), Rung(2, 3)],
        recipes(*"abc"),
        lambda recipe, steps: tried.append(recipe.name) or {"a": NO_FIGURE}.get(recipe.name, 1.0),
    )
    assert tried == ["a", "b", "c", "b", "c"]


def test_what_trainings_take_by_hand():
    speed = Speed(step_s=2.0, around_s=4.0, evaluation_s=6.0, mining_s=50.0, dial_s=24.0, proof_s=76.0)
    costs = Costs(1.5, Pace(passage_share=0.5, dropout_cost=1.8), speed)
    still = {"model_dropout": 0.0}
    plain, mined = Recipe("plain", (), still), Recipe("mined", (Ingredient.MINED,), {**still, "neg_nums": 1})
    stock = stock_recipe(FACTS, "lora")
    assert costs.of_trial(plain, 10) == (10, 10 * 2 + 4 + 6)
    assert costs.of_trial(mined, 10) == (10, pytest.approx(10 * 2 * 1.5 + 4 + 6)), "a negative is half a record more"
    dropped = replace(mined, options={"neg_nums": 1})
    assert costs.of_trial(dropped, 10) == (10, pytest.approx(10 * 2 * 1.5 * 1.8 + 4 + 6)), "the model's own dropout costs too"
    assert costs.of_last(mined, 11) == (16, pytest.approx(16 * 2 * 1.5 + 4)), "measured by nobody but the proof"
    # Both with 10 steps, the dearer one with 30, and mining.
    assert costs.of_ladder([Rung(2, 10), Rung(1, 30)], [plain, mined]).seconds == pytest.approx(30 + 40 + 100 + 50)
    end = costs.of_the_end([plain, mined], stock, 30)
    assert {name: spend.steps for name, spend in end.items()} == {DIAL: 0, MINING: 0, LAST: 45, "stock": 45, PROOF: 0}
    seconds = [24, 75, 45 * 2 * 1.5 + 4, 45 * 2 * 1.8 + 4, 76]
    assert [spend.seconds for spend in end.values()] == pytest.approx(seconds)


def test_a_slow_machine_looks_at_a_share():
    # A quarter of 1,000 s for 20 evaluations: with 12.5 s each all can be looked at; twice as slow, half.
    assert share_to_look_at(12.5, 20, 1000) == 1.0
    assert share_to_look_at(25.0, 20, 1000) == pytest.approx(0.5)
    assert share_to_look_at(0.0, 20, 1000) == 1.0


def test_a_share_of_a_part_keeps_its_answers(tmp_path):
    config = config_for(tmp_path, records_of(3000))
    split = split_records(config)
    whole = read_evaluation_set(write_parts(split, config, tmp_path / "parts").choose)
    part = thinned(whole, 0.4, seed=3)
    assert len(part.queries) == round(0.4 * len(whole.queries))
    assert len(part.documents) == round(0.4 * len(whole.documents))
    assert part.qrels == {query: whole.qrels[query] for query in part.query_ids}
    assert {one for right in part.qrels.values() for one in right} <= set(part.doc_ids)
    places = {one: place for place, one in enumerate(whole.doc_ids)}
    assert [whole.documents[places[one]] for one in part.doc_ids] == part.documents
    assert [places[one] for one in part.doc_ids] == sorted(places[one] for one in part.doc_ids)
    assert part == thinned(whole, 0.4, seed=3) != thinned(whole, 0.4, seed=4)
    assert len(thinned(whole, 0.001, seed=3).queries) == ENOUGH_QUERIES
    assert thinned(whole, 1.0, seed=3) == whole


def test_a_budget_of_time_keeps_what_the_proof_needs(monkeypatch):
    monkeypatch.setattr("ebr.workflow.tune.budget.time.monotonic", lambda: 1000.0)
    budget = Budget(100, ends_at=1100.0, later={"proof": Spend(0, 30.0), "stock": Spend(30, 20.0)})
    assert budget.allows(Spend(1000, 50)), "minutes may have more in them than was reckoned"
    assert not budget.allows(Spend(0, 51), is_planned=True)
    del budget.later["stock"]
    assert budget.allows(Spend(0, 70)) and not budget.allows(Spend(0, 71))
    of_steps = Budget(100, used=30, later={"proof": Spend(0, 30.0), "stock": Spend(30, 20.0)})
    assert of_steps.allows(Spend(10**9, 10**9), is_planned=True), "steps were shared out before"
    assert of_steps.allows(Spend(40, 10**9)) and not of_steps.allows(Spend(41, 0))
    assert Spend.sum([Spend(1, 2.0), Spend(3, 4.0).times(2)]) == (7, 10.0)
    assert Spend.most([Spend(1, 5.0), Spend(3, 4.0)]) == (3, 5.0)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("unknown", [0.0, 0.5])
@pytest.mark.parametrize("has_corpus", [False, True])
def test_every_suggestion_is_a_run_that_is_allowed(kind, unknown, has_corpus):
    facts = DataFacts(unknown, "chain", True, has_corpus)
    found = [*suggested(facts, kind), stock_recipe(facts, kind)]
    assert len({recipe.name for recipe in found}) == len(found)
    for recipe in found:
        FinetuneConfig(**{"finetune_type": kind, **recipe.options}).check()
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
        for one in recipe.ingredients:
            left = recipe.without(one)
            FinetuneConfig(**{"finetune_type": kind, **left.options}).check()
            assert one not in left.ingredients


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_one_recipe_alone_keeps_the_dropout_that_costs_time(kind):
    assert [one.name for one in suggested(FACTS, kind) if one.has_dropout] == ["plain_low"]
    assert stock_recipe(FACTS, kind).has_dropout


def test_a_script_that_the_base_cannot_spell_is_taught_first():
    assert Ingredient.EXTENDED in suggested(DataFacts(0.3, "text", False, False), "lora")[0].ingredients
    assert not any(Ingredient.EXTENDED in one.ingredients for one in suggested(FACTS, "lora"))


def test_pairs_of_texts_are_tried_where_there_are_texts():
    assert any(Ingredient.PAIRS in one.ingredients for one in suggested(DataFacts(0.0, "text", False, True), "lora"))
    assert not any(Ingredient.PAIRS in one.ingredients for one in suggested(FACTS, "lora"))


def test_a_recipe_of_somebody_else_is_refused():
    with pytest.raises(ConfigError, match="recipe: is none that ebr tune wrote"):
        Recipe.from_json({"name": "a", "ingredients": ["salt"], "options": {}})


# ---------------------------------------------------------------- the choice


def figures(ndcg, likelihood=None):
    """Of a model; the answers as likely as anybody's unless it is told."""
    ndcg = np.asarray(ndcg, np.float64)
    return Figures(ndcg, np.zeros(len(ndcg)) if likelihood is None else np.asarray(likelihood, np.float64))


def trial(name, scores, ingredients=(), steps=10, likelihood=None):
    return Trial(Recipe(name, tuple(ingredients)), steps, f"/{name}-{steps}", figures(scores, likelihood), 1.0, 2.0)


def test_the_simplest_of_equals_is_taken():
    rng = np.random.default_rng(0)
    base = rng.random(200) * 0.5
    noise = rng.normal(0, 0.1, 200)
    plain, mined = base + 0.2, base + 0.201 + noise - noise.mean()
    choice = choose(figures(base), [trial("plain", plain), trial("mined", mined, [Ingredient.MINED])], seed=0)
    assert choice.chosen is not None
    assert (choice.best.recipe.name, choice.chosen.recipe.name) == ("mined", "plain")
    better = choose(figures(base), [trial("plain", plain), trial("mined", base + 0.25 + noise, [Ingredient.MINED])], seed=0)
    assert better.chosen.recipe.name == "mined", "more than a standard error better"


def test_what_is_clear_is_not_given_up_for_what_is_simple():
    """The simplest of equals is not clear over the base, and the best is: the best is taken, not the base."""
    base = np.full(300, 0.5)
    steady = np.where(np.arange(300) % 3 == 0, 0.56, 0.5)  # +0.02, on every third query
    shaky = base + np.where(np.arange(300) % 2 == 0, 0.32, -0.285)  # +0.0175, up and down
    choice = choose(figures(base), [trial("plain", shaky), trial("mined", steady, [Ingredient.MINED])], seed=0)
    assert is_as_good(shaky, steady)
    assert choice.chosen is not None and choice.chosen.recipe.name == "mined"


class Kitchen:
    """As much of a Workshop as a soup needs: extended recipes tune another base."""

    def base(self, recipe):
        return "extended" if Ingredient.EXTENDED in recipe.ingredients else "base"


def stirred(trials, worth, monkeypatch, n_times=99):
    """The members of the soup around the first trial, and what was tasted; worth: nDCG@10 by the members' names."""
    tasted = []

    def taste(shop, members, base):
        assert {shop.base(one.recipe) for one in members} == {base}
        tasted.append("".join(one.recipe.name for one in members))
        found = worth.get(tasted[-1], 0.0)
        return {"error": found} if isinstance(found, str) else {"figures": figures([found]).to_json(), "took_s": 1.0}

    monkeypatch.setattr(final_module, "_taste", taste)
    soup = stir(Kitchen(), trials[0], trials, lambda members: len(tasted) < n_times, {}, lambda: None, lambda line: None)
    return "".join(one.recipe.name for one in soup.members), tasted


def test_a_soup_takes_in_what_makes_it_better(monkeypatch):
    """The best first; what makes it worse, or no better, stays out, and so does what tunes another base."""
    trials = [trial("a", [0.5]), trial("b", [0.3]), trial("c", [0.4]), trial("x", [0.45], [Ingredient.EXTENDED])]
    assert stirred(trials, {"ac": 0.5, "ab": 0.6}, monkeypatch) == ("ab", ["ac", "ab"])
    assert stirred(trials, {"ac": 0.6, "acb": 0.61}, monkeypatch) == ("acb", ["ac", "acb"])
    assert stirred(trials, {"ac": "cannot be merged", "ab": 0.6}, monkeypatch) == ("ab", ["ac", "ab"])
    better = [trial("a", [0.5]), trial("b", [0.8])]
    assert stirred(better, {"ab": 0.7}, monkeypatch)[0] == "a", "worse than one of its members"
    assert stirred(trials, {}, monkeypatch) == ("a", ["ac", "ab"]), "at worst it is what was chosen, alone"
    assert stirred(trials, {"ac": 0.6, "acb": 0.61}, monkeypatch, n_times=1) == ("ac", ["ac"]), "no time for more"
    many = [trial("a", [0.9]), *(trial(one, [0.5]) for one in "bcdefghi")]
    assert len(stirred(many, {}, monkeypatch)[1]) == final_module.MOST_TASTED


def test_a_soup_is_told_as_what_it_is():
    a, b = trial("a", [0.2, 0.4], steps=30), trial("b", [0.1, 0.3], steps=10)
    assert (Soup.of(a).name, Soup.of(a).steps, Soup.of(a).mean) == ("a", 30, pytest.approx(0.3))
    both = Soup((a, b), figures([0.4, 0.6]), 1.0)
    assert (both.name, both.steps, both.mean) == ("soup of 2", 40, pytest.approx(0.5))
    base, rng = np.full(200, 0.3), np.random.default_rng(0)
    better = trial("a", base + rng.normal(0.05, 0.02, 200))
    choice = choose(figures(base), [better], seed=0)
    found = choice.with_soup(Soup((better, b), figures(better.ndcg + 0.1)), figures(base), seed=0)
    assert found.gain.ndcg.interval.difference == pytest.approx(choice.gain.ndcg.interval.difference + 0.1)
    assert "the mean of a with 10 steps and b with 10 finds more than each" in why(found, 0.3)
    doubtful = choice.with_soup(Soup((better, b), figures(base + rng.normal(0.05, 2.0, 200))), figures(base), seed=0)
    assert doubtful.soup.members == (better,) and doubtful.gain == choice.gain, "what is not beyond chance is not taken"


def test_a_recipe_alone_gets_further_seeds():
    one = Trial(Recipe("plain", (), {"learning_rate": 1e-3}), 10, "/plain", None, 1.0, 2.0)
    seeded = with_further_seeds(Soup.of(one), 2**32 - 1)
    assert [(recipe.name, recipe.options["seed"]) for recipe in seeded] == [("plain_seed_0", 0), ("plain_seed_1", 1)]
    assert all(recipe.options["learning_rate"] == 1e-3 for recipe in seeded)
    assert with_further_seeds(Soup((one, one)), 0) == []


class Dial:
    """As much of a WeightDial as choosing needs: the encoder is the weight that it stands at."""

    encoder, turned = None, ()

    def turn(self, weight):
        self.encoder, self.turned = weight, (*self.turned, weight)


@dataclass(frozen=True)
class DialShop:
    """Measures a weight as it stands in worth."""

    worth: Callable[[float], list[float]]

    def measured(self, weight):
        return SimpleNamespace(scores={METRIC: np.array(self.worth(weight))})


@pytest.mark.parametrize("is_extended", [False, True])
def test_the_dial_measures_what_is_not_known(is_extended):
    """All of a soup was measured with it, and none of it is the base, unless that was extended; of equals the smallest."""
    dial, said = Dial(), []
    known = {weight: np.array([mean]) for weight, mean in ({1.0: 0.4} | ({} if is_extended else {0.0: 0.3})).items()}
    choice = final_module._Dial(DialShop(lambda weight: [0.5]), known, None, said.append)(dial)
    assert dial.turned == ((0.0, 0.4, 0.6, 0.8) if is_extended else (0.4, 0.6, 0.8))
    assert choice.weight == 0.4, "what was settled to be better is not given up for none of it"
    assert [one["weight"] for one in choice.record["tried"]] == [0.0, 0.4, 0.6, 0.8, 1.0] and "0.4: 0.5000" in said[0]


@pytest.mark.parametrize(("at_08", "taken"), [([0.7, 0.2, 0.4], 0.6), ([0.7, 0.7, 0.7], 0.8)])
def test_of_weights_that_gain_alike_the_dial_takes_what_forgets_least(at_08, taken, monkeypatch):
    """By hand: 0.8 is 0.03 better than 0.6, with an error of 0.09, and the second set is asked; or 0.3, with 0.06."""
    by_weight = {0.0: [0.1, 0.1, 0.1], 0.4: [0.2, 0.2, 0.2], 0.6: [0.5, 0.3, 0.4], 0.8: at_08, 1.0: [0.1, 0.2, 0.1]}
    kept = {0.0: 0.95, 0.4: 0.9, 0.6: 0.8, 0.8: 0.7, 1.0: 0.6}
    dial, said = Dial(), []
    monkeypatch.setattr(final_module._Dial, "_kept_at", staticmethod(lambda dial, weight, dataset: kept[weight]))
    choice = final_module._Dial(DialShop(by_weight.get), {}, SimpleNamespace(name="news"), said.append)(dial)
    assert choice.weight == taken, "0.4 forgets less, and gains less than is chance"
    second = [one[METRIC][1:] for one in choice.record["tried"]]
    asked = taken == 0.6
    assert (second, choice.record["second_chooses"]) == ([[None], [None], [0.8], [0.7], [None]] if asked else [[]] * 5, asked)
    assert ("; on news 0.6: 0.8000, 0.8: 0.7000)" in said[0]) == asked


def test_recipes_that_train_alike_are_known_by_what_they_do():
    found = {one.name: one for one in suggested(FACTS, "lora")}
    assert found["mined"].without(Ingredient.MINED).is_like(found["plain"])
    assert found["hybrid"].without(Ingredient.HYBRID).is_like(found["plain"])
    assert not found["mined"].is_like(found["plain"])


def test_what_is_left_goes_to_those_that_were_best():
    trials = [trial("a", [0.1], steps=8), trial("b", [0.3], steps=8), trial("c", [0.2], steps=8), trial("b", [0.1], steps=24)]
    assert [one.name for one in left_below(24, trials)] == ["c", "a"]
    trials += [trial("c", [0.15], steps=16)]
    assert [one.name for one in left_below(24, trials)] == ["a"], "c lost by more steps already"
    assert left_below(8, trials) == []


def test_what_the_ladder_had_no_place_for_is_tried_with_what_is_left(monkeypatch):
    """c lost to b and gets the top rung's steps, d as many as the best; e cannot be trained, and is not tried twice."""
    climb, ran = object.__new__(Climb), []
    climb.shop, climb.costs, climb.budget, climb._failed = None, Costs(1.0), Budget(1000), {"e": DataError("no")}
    monkeypatch.setattr(Climb, "has_budget", lambda *_, **__: True)
    monkeypatch.setattr(Climb, "tried", lambda self, shop, recipe, steps, **_: ran.append((recipe.name, steps)))
    climb.try_more([trial("b", [0.3], steps=8), trial("b", [0.2], steps=24), trial("c", [0.1], steps=8)], recipes(*"bcde"))
    assert ran == [("c", 24), ("d", 8)]


def test_one_standard_error_by_hand():
    best = np.array([1.0, 1.0, 1.0, 1.0])
    # Differences 0, 0, 0, 1: mean 0.25, standard deviation 0.5, error 0.25.
    assert is_as_good(np.array([1.0, 1.0, 1.0, 0.0]), best)
    assert not is_as_good(np.array([1.0, 1.0, 0.4, 0.0]), best)


def test_where_nothing_helps_the_base_is_the_answer():
    """Recipes that change queries at random, as shuffled positives would: in at least nine of ten draws the base stays."""
    stays = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        base = rng.random(300)

        def harmed(number, rng=rng, base=base):
            """Likelihood suffers as rankings do, and is not independent of them."""
            change = rng.normal(0, 0.2, 300)
            likelihood = rng.normal(-0.05, 1.0, 300) + 2 * change
            return trial(f"r{number}", np.clip(base - 0.01 + change, 0, 1), likelihood=likelihood)

        stays += choose(figures(base), [harmed(number) for number in range(8)], seed=seed).chosen is None
    assert stays >= 18


def test_likelihood_tells_where_the_first_ten_do_not():
    """Its gain is taken only where nDCG@10 is higher too; what is decided by it says so."""
    rng = np.random.default_rng(0)
    base = rng.random(150)
    noise = rng.normal(0, 0.15, 150)
    noise -= noise.mean()
    likelier = rng.normal(0.2, 0.4, 150)
    higher, lower = base + 0.01 + noise, base - 0.001 + noise
    assert choose(figures(base), [trial("a", higher)], seed=0).chosen is None, "too few queries to tell"
    choice = choose(figures(base), [trial("a", higher, likelihood=likelier)], seed=0)
    assert choice.chosen is not None and not choice.gain.ndcg.is_sure
    assert "log-likelihood +0.2" in why(choice, 0.5)
    assert choose(figures(base), [trial("a", lower, likelihood=likelier)], seed=0).chosen is None
    assert choose(figures(base), [trial("a", higher, likelihood=-likelier)], seed=0).chosen is None
    hardly = choose(figures(base), [trial("a", higher, likelihood=likelier / 100)], seed=0)
    assert hardly.gain.likelihood.is_sure and hardly.chosen is None, "sure, and next to nothing"
    clear = choose(figures(base), [trial("a", base + 0.1 + noise, likelihood=likelier)], seed=0)
    assert clear.gain.ndcg.is_sure and "likelihood" not in why(clear, 0.5)


def test_an_open_choice_is_settled_by_the_queries_of_further_parts():
    """Three parts of 100 with one gain and one noise: too few alone; the two that had no say in what is the best tell."""
    rng = np.random.default_rng(3)
    bases = [rng.random(100) for _ in range(3)]
    noise = [rng.normal(0, 0.1, 100) for _ in range(3)]
    founds = [base + 0.017 + one - one.mean() for base, one in zip(bases, noise, strict=True)]
    choice = choose(figures(bases[0]), [trial("a", founds[0]), trial("b", founds[0] - 0.1)], seed=0)
    assert choice.gain.is_open and choice.n_further == 0
    parts = [(figures(base), figures(found)) for base, found in zip(bases, founds, strict=True)]
    settled = choice.judged_on(parts[1:], seed=0)
    assert settled.chosen is choice.best and not settled.gain.is_open
    assert (settled.gain.n_queries, settled.n_further) == (200, 2)
    assert settled.gain.ndcg.interval.difference == pytest.approx(0.017)
    assert "a with 10 steps is better than the base on 200 queries that had no say" in why(settled, 0.5)
    worse = choice.judged_on([parts[1], parts[2][::-1]], seed=0)
    assert worse.chosen is None and worse.gain.ndcg.interval.difference == pytest.approx(0.0)
    assert "nothing is better than the base beyond chance: a with 10 steps gains" in why(worse, 0.5)


def test_what_is_surely_worse_is_not_open():
    """Whatever its likelihood: no further queries are spent on it."""
    rng = np.random.default_rng(0)
    base, likelier = rng.random(100), rng.normal(0.2, 0.4, 100)
    worse = choose(figures(base), [trial("a", base - 0.1 + rng.normal(0, 0.1, 100), likelihood=likelier)], seed=0)
    assert worse.chosen is None and worse.gain.likelihood.is_sure and not worse.gain.is_open


# ---------------------------------------------------------------- the split


def config_for(tmp_path, records, **more):
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return TuneConfig(data_path=str(path), output_dir=tmp_path / "tuned", **more)


def records_of(n):
    return [{"query": f"question {row}", "pos": [f"answer {row}"], "neg": [f"answer {(row + 1) % n}"]} for row in range(n)]


def texts_of(examples, *, negatives=False):
    core = {text for one in examples for text in (one.query, *one.positives)}
    return core | {text for one in examples if negatives for text in one.negatives}


@pytest.mark.parametrize(
    ("n_records", "n_choose"), [(3000, 450), (600, 150), (300, 100)], ids=["a usual share", "enough queries", "a third at most"]
)
def test_as_much_is_chosen_on_as_tells_recipes_apart(n_records, n_choose, tmp_path, evaluation_folder):
    config = config_for(tmp_path, records_of(n_records), eval_dataset=evaluation_folder)
    assert len(split_records(config).choose) == n_choose
    config.choose_split = 0.1
    assert len(split_records(config).choose) == n_records // 10, "as it was told"


def test_of_chains_ten_are_chosen_on(tmp_path, evaluation_folder):
    """Sixty chains, and more than enough queries in nine of them, which would gain or lose together."""
    records = [
        {"query": f"wording {row}-{one}", "pos": [f"wording {row}-{(one + 1) % 20}"]} for row in range(60) for one in range(20)
    ]
    split = split_records(config_for(tmp_path, records, eval_dataset=evaluation_folder))
    assert split.same_answer == "chain" and len({one.query.partition("-")[0] for one in split.choose}) == 10


def test_a_group_that_is_most_of_the_records_is_not_all_that_is_learnt(tmp_path, evaluation_folder):
    """Half of what is beside it is chosen on, where there would be room for all."""
    records = [{"query": f"question {row}", "pos": ["the answer" if row < 200 else f"answer {row}"]} for row in range(300)]
    split = split_records(config_for(tmp_path, records, eval_dataset=evaluation_folder))
    assert (len(split.choose), len(split.train)) == (50, 250)


def test_few_answers_are_few_things_to_choose_on(tmp_path, evaluation_folder):
    """Two thousand questions with twenty answers: a third of these, not the 15 % that have enough questions."""
    records = [{"query": f"question {row}", "pos": [f"answer {row % 20}"]} for row in range(2000)]
    split = split_records(config_for(tmp_path, records, eval_dataset=evaluation_folder))
    assert len({text for one in split.choose for text in one.positives}) == 6


def test_in_the_end_all_records_but_the_test_part_are_trained_on(tmp_path):
    """As they were read: what had to go for the split, a negative that stands on the other side, is there again."""
    config = config_for(tmp_path, records_of(300))
    split = split_records(config)
    parts = write_parts(split, config, tmp_path / "parts").with_what_was_chosen_on()
    rest = read_examples([parts.train])
    assert len(rest) == len(split.train) + len(split.choose) == 300 - len(split.test)
    tested = texts_of(split.test)
    assert not texts_of(rest) & tested
    for one in rest:
        row = int(one.query.split()[1])
        assert one.negatives == (() if f"answer {(row + 1) % 300}" in tested else (f"answer {(row + 1) % 300}",))
    candidates = {json.loads(line)["text"] for line in parts.corpus.read_text(encoding="utf-8").splitlines()}
    assert candidates == {text for one in rest for text in (*one.positives, *one.negatives)}


@pytest.mark.parametrize("seed", range(3))
def test_no_query_and_no_answer_stands_on_two_sides(tmp_path, seed):
    config = config_for(tmp_path, records_of(300), seed=seed, choose_split=0.15)
    split = split_records(config)
    parts = write_parts(split, config, tmp_path / "parts")
    assert (len(split.train), len(split.choose), len(split.test)) == (210, 45, 45)
    train = texts_of(read_examples([parts.train]), negatives=True)
    candidates = {json.loads(line)["text"] for line in parts.corpus.read_text(encoding="utf-8").splitlines()}
    sides = [train | candidates]
    for folder in (parts.choose, parts.test):
        dataset = read_evaluation_set(folder)
        by_id = dict(zip(dataset.doc_ids, dataset.documents, strict=True))
        answers = {by_id[doc] for grades in dataset.qrels.values() for doc in grades}
        assert len(dataset.queries) == 45 and len(by_id) == len(set(by_id.values()))
        assert {text for text in dataset.documents if text in train}, "what was trained on is searched too"
        sides.append({*dataset.queries, *answers})
    for place, one in enumerate(sides):
        for other in sides[place + 1 :]:
            assert not one & other


def test_a_pass_is_one_over_the_pairs(tmp_path, evaluation_folder):
    records = [one | {"pos": [*one["pos"], f"another answer {row}"], "neg": []} for row, one in enumerate(records_of(300))]
    split = split_records(config_for(tmp_path, records, eval_dataset=evaluation_folder))
    assert split.n_pairs == 2 * len(split.train)


def test_with_an_evaluation_folder_there_is_no_test_part(tmp_path, evaluation_folder):
    config = config_for(tmp_path, records_of(300), eval_dataset=evaluation_folder)
    split = split_records(config)
    assert (len(split.train), len(split.choose), split.test) == (200, 100, [])
    assert write_parts(split, config, tmp_path / "parts").test == evaluation_folder


def test_others_to_choose_on_were_never_chosen_on(tmp_path, evaluation_folder):
    """Each part has as many as the first; none comes twice, what is chosen on is not trained on, and then there are no more."""
    config = config_for(tmp_path, records_of(120), eval_dataset=evaluation_folder)
    first = split_records(config)
    assert len(first.choose) == 40
    seen, split, n_parts = set(), first, 0
    while split:
        queries = {one.query for one in split.choose}
        assert not queries & seen and not queries & {one.query for one in split.train}
        assert len(split.train) + len(split.choose) == 120 and split.rest == first.rest
        parts = write_parts(split, config, tmp_path / f"parts-{n_parts}")
        assert parts.train.is_file() and (parts.train.with_name("rest.jsonl").is_file() == (n_parts == 0))
        seen, n_parts, split = seen | queries, n_parts + 1, split.with_others_to_choose_on(42)
    assert (n_parts, len(seen)) == (3, 120)


def test_one_large_group_is_no_further_part(tmp_path, evaluation_folder):
    """What is left hangs together: its queries would rise and fall as one."""
    chain = [{"query": f"query {row}", "pos": ["the answer of all"]} for row in range(60)]
    split = split_records(config_for(tmp_path, [*records_of(64), *chain], eval_dataset=evaluation_folder))
    assert 30 <= len(split.choose) <= 32
    further = split.with_others_to_choose_on(42)
    assert further is None or (len(further.choose) <= 48 and further.with_others_to_choose_on(42) is None)


def test_too_few_records_to_choose_on_are_refused(tmp_path):
    with pytest.raises(DataError, match="choose_split leaves 27 queries, and by fewer than 30"):
        split_records(config_for(tmp_path, records_of(80)))


def test_a_part_is_judged_by_chains_where_the_records_are():
    examples = [Example("a", ("b",)), Example("c", ("b",)), Example("b", ("d",)), Example("x", ("y",))]
    texts = TextTable.of(examples)
    by_text = {query: {texts.ids[one] for one in right} for query, right in {"a": "b", "c": "b", "b": "d", "x": "y"}.items()}
    assert judgements(examples, texts, "text") == {texts.ids[query]: right for query, right in by_text.items()}
    # b and d are the passages of the chain a, b, c, d; b does not answer itself.
    chained = {"a": "bd", "c": "bd", "b": "d", "x": "y"}
    assert judgements(examples, texts, "chain") == {
        texts.ids[query]: {texts.ids[one] for one in right} for query, right in chained.items()
    }


def test_a_text_that_is_query_and_document_has_one_id(tmp_path):
    """As in intents: a query must not find itself."""
    records = [
        {"query": f"wording {row}-{one}", "pos": [f"wording {row}-{other}"]}
        for row in range(80)
        for one, other in ((0, 1), (1, 2), (2, 0))
    ]
    config = config_for(tmp_path, records, seed=1)
    split = split_records(config)
    assert split.same_answer == "chain"
    dataset = read_evaluation_set(write_parts(split, config, tmp_path / "parts").choose)
    assert dataset.n_own_documents == len(dataset.queries)
    assert all(len(grades) == 2 for grades in dataset.qrels.values()), "the other two of each chain"


def test_of_a_long_chain_some_answers_are_searched(tmp_path):
    """Sixty wordings of one intent: with all of them to find, the first ten would be found by anyone."""
    records = [
        {"query": f"wording {row}-{one}", "pos": [f"wording {row}-{(one + 1) % 60}"]} for row in range(12) for one in range(60)
    ]
    config = config_for(tmp_path, records)
    split = split_records(config)
    dataset = read_evaluation_set(write_parts(split, config, tmp_path / "parts").choose)
    n_chains = len({text.partition("-")[0] for text in dataset.queries})
    answers = {doc for grades in dataset.qrels.values() for doc in grades}
    assert len(answers) == parts_module.MOST_ANSWERS * n_chains
    assert {len(grades) for grades in dataset.qrels.values()} <= {parts_module.MOST_ANSWERS, parts_module.MOST_ANSWERS - 1}


def test_texts_of_a_corpus_are_drawn_whatever_their_order(tmp_path):
    texts = [f"text {number % 500}" for number in range(1000)]
    draw = partial(_drawn, key=str)
    drawn = draw(texts, 100, seed=3)
    assert len(set(drawn)) == 100 and set(drawn) <= set(texts)
    assert draw(reversed(texts), 100, seed=3) == drawn
    assert draw(texts, 100, seed=4) != drawn
    assert sorted(draw(texts, 10_000, seed=3)) == sorted(set(texts))


def test_a_corpus_is_searched_and_mined_but_for_what_records_have(tmp_path):
    corpus = tmp_path / "more.txt"
    corpus.write_text("\n".join([*(f"further {row}" for row in range(40)), "Answer 7", "question 3"]), encoding="utf-8")
    config = config_for(tmp_path, records_of(300), corpus=str(corpus))
    parts = write_parts(split_records(config), config, tmp_path / "parts")
    places = [read_evaluation_set(parts.choose).documents, read_evaluation_set(parts.test).documents]
    places.append([json.loads(line)["text"] for line in parts.corpus.read_text(encoding="utf-8").splitlines()])
    assert [sum(text.startswith("further") for text in place) for place in places] == [40, 40, 40]
    assert not any(text in {"Answer 7", "question 3"} for place in places for text in place)


def test_titles_of_a_corpus_stay_titles(tmp_path):
    """Pairs are made of them."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"_id": "d", "title": "Of cats", "text": "They sleep."}) + "\n", encoding="utf-8")
    config = config_for(tmp_path, records_of(300), corpus=str(corpus))
    parts = write_parts(split_records(config), config, tmp_path / "parts")
    last = json.loads(parts.corpus.read_text(encoding="utf-8").splitlines()[-1])
    assert (last["title"], last["text"]) == ("Of cats", "They sleep.")
    assert "Of cats They sleep." in read_evaluation_set(parts.choose).documents


def test_what_is_searched_beside_the_answers_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "MOST_DISTRACTORS", 20)
    config = config_for(tmp_path, records_of(300))
    parts = write_parts(split_records(config), config, tmp_path / "parts")
    assert len(read_evaluation_set(parts.choose).documents) <= 100 + 20 + 100  # with the negatives of its records
