"""The climb: recipes tried rung by rung, and what is tried beside them, as far as the budget goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ebr.data.speech import Say
from ebr.data.text.counted import counted
from ebr.errors import ConfigError, DataError, EBRError, ModelError, SaveError, first_line
from ebr.workflow.tune.budget import CAREFUL, LAST, Budget, Costs, Pace, Speed, Spend, share_to_look_at
from ebr.workflow.tune.choice import MOST_FURTHER, Choice, left_below
from ebr.workflow.tune.final import MOST_SEEDS, MOST_TASTED, WEIGHTS
from ebr.workflow.tune.ladder import LEAST_STEPS, NO_FIGURE, Rung, climb, n_trials, plan_ladder, total_of
from ebr.workflow.tune.parts import Split, thinned
from ebr.workflow.tune.plan import State, TunePlan, spend_of
from ebr.workflow.tune.recipes import Recipe
from ebr.workflow.tune.trials import Figures, Trial, Workshop


class Climb:
    """Tries recipes within the minutes or steps of a tuning, says what each took and gained, and keeps the account.

    shop: where they are trained and measured; on a slow machine it measures on a share of the part to choose on.
    """

    def __init__(self, plan: TunePlan, state: State, shop: Workshop, say: Say) -> None:
        self.plan, self.config, self.state, self.shop, self.say = plan, plan.config, state, shop, say
        # Where steps alone count, nobody asks what they take.
        self.costs, self.budget = Costs(plan.split.growth), Budget(self.config.steps or 0)
        self._failed: dict[str, EBRError] = {}
        """The last error of a recipe, by its name."""

    # ---------------------------------------------------------------- before it

    def ladder(self, recipes: list[Recipe], stock: Recipe) -> list[Rung]:
        """The rungs, and what they may spend; with minutes, as many steps as were found to fit in the first run."""
        growth, total = self.costs.growth, self.config.steps
        if total:
            rungs = plan_ladder(len(recipes), self._epoch_steps, lambda rungs: total_of(rungs, growth) <= total)
        else:
            rungs = self._reckoned(recipes, stock)
        words = ", ".join(f"{counted(rung.n_recipes, 'recipe')} × {rung.steps:,}" for rung in rungs)
        top = rungs[-1].steps
        self.say(
            f"ladder  {total_of(rungs, growth):,} steps: {words}; then what is chosen and the stock recipe, on all records × "
            f"{self.costs.grown(top):,}"
        )
        self.budget.later = self.costs.of_the_end(recipes, stock, top)
        return rungs

    def _reckoned(self, recipes: list[Recipe], stock: Recipe) -> list[Rung]:
        """The rungs that fit into the minutes, by what a few steps take here. Raises ConfigError where they are too few."""
        known, train = self.state.known, self.plan.split.train
        pace = self.costs.pace
        speed = Speed(**self.state.once("speed", lambda: vars(Speed.measured(self.shop, pace, recipes, train))))
        self.costs = costs = replace(self.costs, speed=speed)
        ends_at = self.state.began + 60 * self.config.minutes
        seconds = CAREFUL * (ends_at - time.monotonic())

        def fits(rungs: list[Rung]) -> bool:
            end = costs.of_the_end(recipes, stock, rungs[-1].steps)
            return Spend.sum([costs.of_ladder(rungs, recipes), *end.values()]).seconds <= seconds

        if "rungs" not in known:
            rungs = plan_ladder(len(recipes), self._epoch_steps, fits)
            if rungs[0].steps < LEAST_STEPS:
                raise ConfigError(
                    f"minutes {self.config.minutes:g}: leave a recipe less than {LEAST_STEPS} training steps on this machine, "
                    "beside the same on all records and the stock one; with more minutes the same command goes on"
                )
            known |= {"rungs": [list(vars(rung).values()) for rung in rungs], "total_steps": total_of(rungs, costs.growth)}
            self.state.save()
        self.budget = Budget(known["total_steps"], ends_at)
        return [Rung(*one) for one in known["rungs"]]

    def look_at_a_share(self, n_recipes: int) -> None:
        """Let trials be measured on as much of the part to choose on as this machine can embed so often."""
        known, whole = self.state.known, self.shop.choose
        pace = Pace(**self.state.once("pace", lambda: vars(Pace.measured(self.shop, self.plan.split.train))))
        self.costs = replace(self.costs, pace=pace)
        if "rungs" not in known:  # until the ladder stands, other minutes are reckoned with anew
            n_evaluations = 1 + n_trials(n_recipes) + len(WEIGHTS) + MOST_TASTED
            known["share"] = share_to_look_at(pace.evaluation_s(whole), n_evaluations, 60 * self.config.minutes)
            known.pop("speed", None)
        part = thinned(whole, known.get("share", 1.0), self.config.seed)
        if part.doc_ids != whole.doc_ids:
            self.shop = replace(self.shop, choose=part)
            self.say(
                f"choose  {self.shop.on()}, not all there are: this machine would take too long to embed them for every trial"
            )

    @property
    def _epoch_steps(self) -> int:
        """Of one pass over the pairs."""
        return -(-self.plan.split.n_pairs // self.config.train_batch_size)

    def trials(self, rungs: list[Rung], recipes: list[Recipe]) -> list[Trial]:
        """Every trial of the ladder that there is time for. Raises DataError, or what the last one failed by, without any."""
        trials: list[Trial] = []

        def attempt(recipe: Recipe, steps: int) -> float | None:
            if not self.has_budget(self.shop, recipe, steps, is_planned=True):
                self.say(f"trial   {recipe.name} is left out: {self.budget.left()}")
                return None
            trial = self.tried(self.shop, recipe, steps)
            trials.extend([trial] if trial else [])
            return trial.mean if trial else NO_FIGURE

        climb(rungs, recipes, attempt)
        last = next(reversed(self._failed.values()), None)
        if not trials and isinstance(last, ModelError):
            raise last
        if not trials:
            raise DataError(f"{self.config.data_path}: no recipe could be tried within {spend_of(self.config)}; see above why")
        return trials

    def try_more(self, trials: Sequence[Trial], recipes: Sequence[Recipe]) -> list[Trial]:
        """What the ladder left out, as far as the budget goes: further seeds of what is best come first, they help more surely.

        The recipes that were passed over get as many steps as the longest trial, those that had no place as many as the best.
        """
        top, more = max(trial.steps for trial in trials), list[Trial]()
        tried = {trial.recipe.name for trial in trials} | self._failed.keys()
        wanted = [(recipe, top) for recipe in left_below(top, trials)]
        steps_of_best = max(trials, key=lambda trial: trial.mean).steps
        wanted += [(recipe, steps_of_best) for recipe in recipes if recipe.name not in tried]
        for recipe, steps in wanted:
            best = max([*trials, *more], key=lambda trial: trial.mean)
            seeds = self.costs.of_last(best.recipe, best.steps).times(MOST_SEEDS)
            self.budget.later[LAST] = Spend.most([seeds, self.costs.of_last(recipe, steps)])
            if self.has_budget(self.shop, recipe, steps) and (trial := self.tried(self.shop, recipe, steps, is_needed=False)):
                more.append(trial)
        return more

    # ---------------------------------------------------------------- one trial, and one choice

    def has_budget(
        self, shop: Workshop, recipe: Recipe, steps: int, *, is_planned: bool = False, beside_s: float = 0.0
    ) -> bool:
        """Whether there is something left for a training, and for mining before it; one that is kept costs nothing."""
        if shop.has_tried(recipe, steps):
            return True
        spend = self.costs.of_training(recipe, steps) if shop.on_all else self.costs.of_trial(recipe, steps)
        is_to_mine = recipe.is_mined and not shop.has_mined(recipe)
        mining = [self.costs.of_mining(on_all=shop.on_all)] if is_to_mine else []
        return self.budget.allows(Spend.sum([spend, Spend(0, beside_s), *mining]), is_planned=is_planned)

    def tried(self, shop: Workshop, recipe: Recipe, steps: int, *, is_needed: bool = True) -> Trial | None:
        """The trial, said; None where the records do not give what the recipe needs, or its training diverges.

        is_needed: False = a full disk, too, only leaves it out.
        """
        try:
            trial, is_new = shop.run(recipe, steps, measure=not shop.on_all)
        except (ConfigError, DataError, ModelError, SaveError) as error:
            if is_needed and isinstance(error, ConfigError | SaveError):
                raise
            self._failed[recipe.name] = error
            self.say(f"{shop.label:<6}  {recipe.name} is left out: {first_line(error)}")
            return None
        self.budget.used += steps
        self.state.save()
        kept = f"{trial.took_s:,.0f} s" if is_new else "kept from before"
        found = f": nDCG@10 {trial.mean:.4f}" if trial.figures else ""
        self.say(f"{shop.label:<6}  {recipe.name}, {steps:,} steps{found} ({kept}; {self.budget.left()})")
        return trial

    def judged_on_further_parts(self, choice: Choice) -> Choice:
        """An open choice by other queries: its best is trained anew for one further part after the other, until it is settled.

        As far as there is budget, and records that were not chosen on yet.
        """
        best, split, found = choice.best, self.plan.split, list[tuple[Figures, Figures]]()
        for number in range(1, MOST_FURTHER + 1):
            further = split.with_others_to_choose_on(self.config.seed)
            if further is None:
                self.say("choice  is open, and too few records are left to judge it on")
                break
            split = further
            if (figures := self._look(split, number, best)) is None:
                break
            found.append(figures)
            choice = choice.judged_on(found, seed=self.config.seed)
            self.say(f"choice  {best.told} gains {choice.gain.told()} on {choice.gain.n_queries:,} further queries")
            if not choice.gain.is_open:
                break
        return choice

    def _look(self, split: Split, number: int, trial: Trial) -> tuple[Figures, Figures] | None:
        """Base and recipe of a trial on a further part; None where there is no budget for it, or it fails."""
        try:
            shop = self.shop.on_further_part(split, number, self.state.known.get("share", 1.0))
            if not self.has_budget(shop, trial.recipe, trial.steps, beside_s=self.costs.speed.evaluation_s):
                self.say(f"choice  is open, and nothing is left to judge it on further records: {self.budget.left()}")
                return None
            again = self.tried(shop, trial.recipe, trial.steps, is_needed=False)
            return (shop.figures_of_base(), again.measured) if again else None
        except (DataError, ModelError, SaveError) as error:
            self.say(f"choice  is open, and further records cannot be looked at: {first_line(error)}")
            return None
