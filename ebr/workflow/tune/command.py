"""Tune: records and minutes in; recipes tried, the best model out, with the proof of what it is worth."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig, TuneConfig
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.data.files.write import FOLDER_MANIFEST, write_json
from ebr.data.speech import Say, silence, speak
from ebr.data.text.counted import counted
from ebr.errors import DataError, Interrupted, ModelError
from ebr.workflow.tune.budget import DIAL, LAST, MINING, Budget, Costs, Spend
from ebr.workflow.tune.choice import Choice, choose
from ebr.workflow.tune.climb import Climb
from ebr.workflow.tune.final import (
    LOADED_BESIDE,
    FinalModel,
    make_final,
    make_final_again,
    make_final_of,
    recipes_of,
    stir,
    with_further_seeds,
)
from ebr.workflow.tune.parts import write_parts
from ebr.workflow.tune.plan import MODEL, RECIPE, State, TunePlan, command_again, members_of, plan_tune, recipe_record
from ebr.workflow.tune.recipes import DataFacts, Recipe, stock_recipe, suggested
from ebr.workflow.tune.result import TuneResult, ladder_of, over_stock, prove, results_of, why, with_words
from ebr.workflow.tune.trials import METRIC, Figures, Soup, Trial, Workshop

if TYPE_CHECKING:
    from ebr.retrieval.report.write import Report

_STOCK_NAME, _CHOSEN_NAME = "stock recipe", "ebr tune"
_TASTES = "soups"
_OF_ONE_RUN = {"few-steps"}
"""Findings that are of a run's own options, which the ladder decides."""


def tune_model(config: TuneConfig, *, say: Say = speak) -> TuneResult:
    """Try recipes for so many minutes, choose one on records apart, and prove on others what it is worth.

    The folder gets the model, whole; the report with base, stock recipe and choice on the test part and every trial; and
    recipe.json, by which `ebr tune --config` makes the same model again. Where nothing is better than the base beyond chance,
    no model is written, and the base is the answer. What is interrupted goes on when the same is asked for again; a finished
    trial is never run twice. Raises EBRError subclasses that say what to mend; Interrupted after Ctrl-C.
    """
    from ebr.visualization.library_caches import settle_matplotlib_cache

    settle_matplotlib_cache()
    plan = plan_tune(config)
    for line in plan.lines():
        say(line)
    state, goes_on = State.begin_or_go_on(plan.config, plan.inputs)
    if goes_on:
        say(f"going on with the work in {state.folder}")
    try:
        return _Tuning(plan, state, say).run()
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"stopped; the same command goes on with the work in {state.folder}") from None


class _Tuning:
    """One tuning from its split records to its result."""

    def __init__(self, plan: TunePlan, state: State, say: Say) -> None:
        self.plan, self.config, self.state, self.say = plan, plan.config, state, say
        parts = write_parts(plan.split, plan.config, state.folder / "parts")
        bf16 = state.once("bf16", self._is_fast_in_bfloat16)
        choose_on = read_evaluation_set(parts.choose)
        shop = Workshop(plan.config, parts, choose_on, plan.split.same_answer, bf16, state.folder)
        self.climb = Climb(plan, state, shop, say)

    @property
    def shop(self) -> Workshop:
        """Where recipes are trained and measured."""
        return self.climb.shop

    @property
    def budget(self) -> Budget:
        """What is left, and for what."""
        return self.climb.budget

    @property
    def costs(self) -> Costs:
        """What trainings take."""
        return self.climb.costs

    def run(self) -> TuneResult:
        """All of it, or what was given to be made again."""
        if self.config.recipe is not None:
            return self._follow(self.config.recipe)
        self._check()
        facts = self._facts()
        recipes, stock = suggested(facts, self.config.finetune_type), stock_recipe(facts, self.config.finetune_type)
        climb = self.climb
        if not self.config.steps:
            climb.look_at_a_share(len(recipes))
        base = self.shop.evaluate(self.config.model_name)
        of_base, baselines = Figures.of(base), with_words(self.shop, base)
        self.say("measure " + ", ".join(f"{name} {value:.4f}" for name, value in baselines.items()) + f" on {self.shop.on()}")
        trials = climb.trials(climb.ladder(recipes, stock), recipes)
        choice = self._choose(of_base, trials)
        if more := climb.try_more(trials, recipes):
            trials += more
            choice = self._choose(of_base, trials, before=choice)
        choice = self._stirred(choice, of_base, trials)
        reason = why(choice, base.mean(METRIC))
        self.say(f"choice  {reason}")
        final = make_final(self.shop, choice.soup, of_base, self.say) if choice.soup else None
        del self.budget.later[DIAL]
        again, of_stock = self._train_on_all(final, stock, top=max(trial.steps for trial in trials))
        if final and again:
            final = make_final_again(self._on_all, Soup(tuple(again)), final)
        reason += self._how_it_ends(final) if final else ""
        n_in_the_end = len(self.plan.split.rest) if again else 0
        ladder = ladder_of(self.shop, base, baselines, trials, self._without(choice, trials), choice, n_in_the_end)
        models = {self.config.model_name: self.config.model_name}
        models |= {_CHOSEN_NAME: str(final.folder)} if final else {}
        models |= {_STOCK_NAME: of_stock.model} if of_stock else {}
        report = prove(self.shop, self.plan.split, models, ladder, self.say)
        return self._finish(final, report, reason)

    # ---------------------------------------------------------------- looking and measuring

    def _is_fast_in_bfloat16(self) -> bool:
        from ebr.training.resources.mixed_precision import mixed_precision

        return mixed_precision(FinetuneConfig()) == "bf16"

    def _check(self) -> None:
        """What the check finds in the training part, said once."""
        from ebr.training.doctor.command import check_training

        def findings() -> list[str]:
            config = self.shop.finetuning(Recipe("check", (), {"neg_nums": 1}), 0, self.state.folder / "check")
            report = check_training(config, say=silence)
            found = [finding for finding in report.findings if finding.name not in _OF_ONE_RUN]
            return [line for finding in found for line in finding.lines()[:1]] or ["nothing to mend"]

        for line in self.state.once("check", findings):
            self.say(f"check   {line}")

    def _facts(self) -> DataFacts:
        split = self.plan.split
        return DataFacts(
            unknown=self.state.once("unknown", self._unknown),
            same_answer=split.same_answer,
            every_record_has_negatives=all(one.negatives for one in split.rest),
            has_corpus=bool(self.config.corpus),
        )

    def _unknown(self) -> float:
        """Share of the characters that the base cannot spell and could be taught."""
        from ebr.model.vocabulary.command import plan_extend

        try:
            return float(plan_extend(self.shop.extending(self.state.folder / "extended")).missing.before.share)
        except (ModelError, DataError):  # it spells everything, or cannot be extended
            return 0.0

    @property
    def _on_all(self) -> Workshop:
        return self.shop.with_what_was_chosen_on()

    # ---------------------------------------------------------------- the choice, and the end

    def _choose(self, base: Figures, trials: Sequence[Trial], before: Choice | None = None) -> Choice:
        """What is taken. before: what was, when fewer had been tried; it stays where they leave it open."""
        choice = choose(base, trials, seed=self.config.seed)
        if before and choice.best is before.best:  # what is the best was judged on further parts already, if it was open
            return before if not choice.chosen else choice
        if choice.gain.is_open:
            choice = self.climb.judged_on_further_parts(choice)
        return before if before and before.chosen and not choice.chosen else choice

    def _stirred(self, choice: Choice, base: Figures, trials: Sequence[Trial]) -> Choice:
        """The same, with the other trials that make it better."""
        if choice.chosen is None:
            return choice
        if choice.n_further:  # this part alone cannot tell it from the base, and so no soup of it
            return replace(choice, soup=Soup.of(choice.chosen))
        self.budget.later[LAST] = self.costs.of_last(choice.chosen.recipe, choice.chosen.steps)

        def allows(members: Sequence[Trial]) -> bool:
            """To taste them, and to train those beyond the first on all records. What is loaded, the merge loads again."""
            pace, speed = self.costs.pace, self.costs.speed
            tasting_s = 2 * (len(members) + LOADED_BESIDE) * pace.load_s + speed.evaluation_s
            further = [self.costs.of_last(one.recipe, one.steps) for one in members[1:]]
            return self.budget.allows(Spend.sum([Spend(0, tasting_s), *further]))

        tastes = self.state.known.setdefault(_TASTES, {})
        soup = stir(self.shop, choice.chosen, trials, allows, tastes, self.state.save, self.say)
        return choice.with_soup(soup, base, seed=self.config.seed)

    def _train_on_all(self, final: FinalModel | None, stock: Recipe, top: int) -> tuple[list[Trial], Trial | None]:
        """What was chosen once more, and the stock recipe with as many steps as the longest trial; as far as there is time.

        Both learn from the records that were chosen on too, as nobody who takes the stock recipe needs some to choose on; or
        neither does. Of a soup its first members are trained, as each makes it better than those before alone.
        """
        soup = final.soup if final else None
        del self.budget.later[LAST], self.budget.later[MINING]
        # The model comes first, and what it is compared with before its further parts.
        for_stock = self.budget.later.pop(stock.name)
        again: list[Trial] = []
        for one in soup.members if soup else ():
            trial = self._end(self._on_all, one.recipe, one.steps)
            if trial is None:
                break
            again.append(trial)
            self.budget.later[stock.name] = for_stock
        self.budget.later.pop(stock.name, None)
        of_stock = self._end(self.shop if soup and not again else self._on_all, stock, top)
        if soup and again:
            seeded = [self._end(self._on_all, recipe, soup.steps) for recipe in with_further_seeds(soup, self.config.seed)]
            again += [trial for trial in seeded if trial]
        return again, of_stock

    def _end(self, shop: Workshop, recipe: Recipe, steps: int) -> Trial | None:
        """One of the last trainings; None where there is no time for it, or it fails."""
        steps = self.costs.grown(steps) if shop.on_all else steps
        if self.climb.has_budget(shop, recipe, steps):
            return self.climb.tried(shop, recipe, steps, is_needed=False)
        self.say(f"{shop.label:<6}  {recipe.name} is left out: {self.budget.left()}")
        return None

    def _how_it_ends(self, final: FinalModel) -> str:
        """What the model was made of in the end, in words."""
        if not final.on_all:
            return "; not trained on the records that it was chosen on"
        records = counted(len(self.plan.split.rest), "record")
        but = "" if self.config.eval_dataset else " but those of the test part"
        return f"; in the end trained on all{but}, {records}: {final.soup.told}"

    def _without(self, choice: Choice, trials: Sequence[Trial]) -> dict[str, Trial]:
        """The chosen recipe with each of its ingredients left out, as far as the budget goes: what each gives."""
        found: dict[str, Trial] = {}
        chosen = choice.chosen
        for ingredient in chosen.recipe.ingredients if chosen else ():
            assert chosen is not None
            recipe = chosen.recipe.without(ingredient)
            trial = next((one for one in trials if one.steps == chosen.steps and one.recipe.is_like(recipe)), None)
            if trial is None and self.climb.has_budget(self.shop, recipe, chosen.steps):
                trial = self.climb.tried(self.shop, recipe, chosen.steps, is_needed=False)
            if trial:
                found[ingredient.value] = trial
                self.say(f"helped  {ingredient.value}: {chosen.mean - trial.mean:+.4f}")
        return found

    # ---------------------------------------------------------------- the end

    def _finish(self, final: FinalModel | None, report: Report, reason: str) -> TuneResult:
        """Write what the folder holds in the end: the model, unless the proof speaks against it; the report, the recipe."""
        output, proof = self.config.output_dir, results_of(report)
        if final and proof[_CHOSEN_NAME] <= proof[self.config.model_name]:
            taken, base = proof[_CHOSEN_NAME], proof[self.config.model_name]
            reason += f"; but on the test part it is no better than the base ({taken:.4f} against {base:.4f})"
            final = None
        if final:
            trained, bf16 = recipes_of(final.soup), self.shop.bf16
            record = recipe_record(self.config, self.plan.inputs, trained, final.on_all, final.weight, bf16)
            final.describe(self.config, self.plan.inputs, self.plan.split, report)
            final.move_to(output / MODEL)
            write_json(output / RECIPE, record)
        else:  # what an end that was killed had put there
            shutil.rmtree(output / MODEL, ignore_errors=True)
            (output / RECIPE).unlink(missing_ok=True)
        from ebr.retrieval.report.write import write_report

        page, _ = write_report(output, report, self.config.language)
        self.state.save()
        comparison, forgetting = (
            one.contrasts[0].comparison if final and one else None for one in (report.main, report.forgetting)
        )
        result = TuneResult(
            self.config.model_name,
            output / MODEL if final else None,
            reason,
            self.state.seconds,
            comparison,
            forgetting,
            over_stock=over_stock(report, _CHOSEN_NAME, _STOCK_NAME, self.config.seed) if final else None,
            proof=proof,
            ladder=report.ladder,
            report=page,
            command=command_again(self.config) if final else "",
        )
        self._keep(result)
        return result

    def _follow(self, recorded: Mapping[str, Any]) -> TuneResult:
        """Train the recipes that were found before, each with its own steps, and merge as much of them as was then."""
        shop = replace(self.shop, bf16=bool(recorded["bf16"]))
        shop = shop.with_what_was_chosen_on() if recorded["on_all"] else shop
        trials = []
        for recipe, steps in members_of(recorded):
            trial, _ = shop.run(recipe, steps, measure=False)
            self.say(f"train   {recipe.name}, {steps:,} steps ({trial.took_s:,.0f} s)")
            trials.append(trial)
        final = make_final_of(shop, Soup(tuple(trials)), float(recorded["weight"]))
        final.describe(self.config, self.plan.inputs, self.plan.split, None)
        output = self.config.output_dir
        final.move_to(output / MODEL)
        self.state.save()
        result = TuneResult(self.config.model_name, output / MODEL, f"{final.soup.told}, as given", self.state.seconds)
        self._keep(result)
        return result

    def _keep(self, result: TuneResult) -> None:
        """Write the manifest, after which there is no work."""
        found = {name: value for name, value in self.state.known.items() if name != _TASTES}
        write_json(self.config.output_dir / FOLDER_MANIFEST, result.manifest(self.config, self.plan.inputs, found))
        self.state.end()
