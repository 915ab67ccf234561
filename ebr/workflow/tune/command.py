"""Tune: records and minutes in; recipes tried, the best model out, with the proof of what it is worth."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig, TuneConfig
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.data.files.write import FOLDER_MANIFEST, write_json
from ebr.data.speech import Say, silence, speak
from ebr.data.text.counted import counted
from ebr.errors import ConfigError, DataError, EBRError, Interrupted, ModelError, SaveError, first_line
from ebr.workflow.tune.budget import CAREFUL, DIAL, LAST, MINING, Budget, Costs, Pace, Speed, Spend, share_to_look_at
from ebr.workflow.tune.choice import Choice, choose, left_below
from ebr.workflow.tune.final import (
    LOADED_BESIDE,
    MOST_SEEDS,
    MOST_TASTED,
    WEIGHTS,
    FinalModel,
    make_final,
    make_final_again,
    make_final_of,
    recipes_of,
    stir,
    with_further_seeds,
)
from ebr.workflow.tune.ladder import LEAST_STEPS, NO_FIGURE, Rung, climb, n_trials, plan_ladder, total_of
from ebr.workflow.tune.parts import thinned, write_parts
from ebr.workflow.tune.plan import MODEL, RECIPE, State, TunePlan, command_again, members_of, plan_tune, recipe_record, spend_of
from ebr.workflow.tune.proof import ladder_of, over_stock, prove, results_of, why, with_words
from ebr.workflow.tune.recipes import DataFacts, Recipe, stock_recipe, suggested
from ebr.workflow.tune.result import TuneResult
from ebr.workflow.tune.trials import METRIC, Soup, Trial, Workshop

if TYPE_CHECKING:
    from ebr.retrieval.measures.measurement import Evaluation
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
        self._began = time.monotonic() - state.seconds
        self._failed: EBRError | None = None
        # Where steps alone count, nobody asks what they take.
        self.costs, self.budget = Costs(plan.split.growth), Budget(self.config.steps or 0)
        parts = write_parts(plan.split, plan.config, state.folder / "parts")
        bf16 = self._known("bf16", self._is_fast_in_bfloat16)
        choose_on = read_evaluation_set(parts.choose)
        self.shop = Workshop(plan.config, parts, choose_on, plan.split.same_answer, bf16, state.folder)

    def run(self) -> TuneResult:
        """All of it, or what was given to be made again."""
        if self.config.recipe is not None:
            return self._follow(self.config.recipe)
        self._check()
        facts = self._facts()
        recipes, stock = suggested(facts, self.config.finetune_type), stock_recipe(facts, self.config.finetune_type)
        if not self.config.steps:
            self._look_at_a_share(len(recipes))
        base = self._base()
        baselines = with_words(self.shop, base)
        self.say("measure " + ", ".join(f"{name} {value:.4f}" for name, value in baselines.items()) + f" on {self._on()}")
        trials = self._climb(self._ladder(recipes, stock), recipes)
        choice = self._choose(base, trials)
        reason = why(choice, base.mean(METRIC))
        self.say(f"choice  {reason}")
        final = make_final(self.shop, choice.soup, base.mean(METRIC), self.say) if choice.soup else None
        del self.budget.later[DIAL]
        again, of_stock = self._train_on_all(final, stock, top=max(trial.steps for trial in trials))
        if final and again:
            final = make_final_again(self._on_all, Soup(tuple(again), ()), final)
        reason += self._how_it_ends(final) if final else ""
        n_in_the_end = len(self.plan.split.rest) if again else 0
        ladder = ladder_of(self.shop, base, baselines, trials, self._without(choice, trials), choice, n_in_the_end)
        models = {self.config.model_name: self.config.model_name}
        models |= {_CHOSEN_NAME: str(final.folder)} if final else {}
        models |= {_STOCK_NAME: of_stock.model} if of_stock else {}
        report = prove(self.shop, self.plan.split, models, ladder, self.say)
        return self._finish(final, report, reason)

    # ---------------------------------------------------------------- looking and measuring

    def _known(self, name: str, find: Any) -> Any:  # noqa: ANN401
        """A figure that is found out once for a tuning, however often it is interrupted."""
        if name not in self.state.known:
            self.state.known[name] = find()
            self._save()
        return self.state.known[name]

    def _save(self) -> None:
        self.state.seconds = time.monotonic() - self._began
        self.state.save()

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

        for line in self._known("check", findings):
            self.say(f"check   {line}")

    def _on(self) -> str:
        dataset = self.shop.choose
        queries, documents = counted(len(dataset.queries), "query", "queries"), counted(len(dataset.documents), "document")
        return f"{queries} and {documents} to choose on"

    def _base(self) -> Evaluation:
        return self.shop.evaluate(self.config.model_name)

    def _facts(self) -> DataFacts:
        split = self.plan.split
        return DataFacts(
            unknown=self._known("unknown", self._unknown),
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

    # ---------------------------------------------------------------- the ladder

    def _ladder(self, recipes: list[Recipe], stock: Recipe) -> list[Rung]:
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
        speed = Speed(**self._known("speed", lambda: vars(Speed.measured(self.shop, pace, recipes, train))))
        self.costs = costs = replace(self.costs, speed=speed)
        ends_at = self._began + 60 * self.config.minutes
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
            self._save()
        self.budget = Budget(known["total_steps"], ends_at)
        return [Rung(*one) for one in known["rungs"]]

    def _look_at_a_share(self, n_recipes: int) -> None:
        """Let trials be measured on as much of the part to choose on as this machine can embed so often."""
        known, whole = self.state.known, self.shop.choose
        pace = Pace(**self._known("pace", lambda: vars(Pace.measured(self.shop, self.plan.split.train))))
        self.costs = replace(self.costs, pace=pace)
        if "rungs" not in known:  # until the ladder stands, other minutes are reckoned with anew
            n_evaluations = 1 + n_trials(n_recipes) + len(WEIGHTS) + MOST_TASTED
            known["share"] = share_to_look_at(pace.evaluation_s(whole), n_evaluations, 60 * self.config.minutes)
            known.pop("speed", None)
        part = thinned(whole, known.get("share", 1.0), self.config.seed)
        if part.doc_ids != whole.doc_ids:
            self.shop = replace(self.shop, choose=part)
            self.say(f"choose  {self._on()}, not all there are: this machine would take too long to embed them for every trial")

    @property
    def _epoch_steps(self) -> int:
        """Of one pass over the pairs."""
        return -(-self.plan.split.n_pairs // self.config.train_batch_size)

    def _climb(self, rungs: list[Rung], recipes: list[Recipe]) -> list[Trial]:
        """Every trial of the ladder, and what there is time for then. Raises ConfigError without one."""
        trials: list[Trial] = []

        def attempt(recipe: Recipe, steps: int) -> float | None:
            if not self._has_budget(self.shop, recipe, steps, is_planned=True):
                self.say(f"trial   {recipe.name} is left out: {self.budget.left()}")
                return None
            trial = self._tried(self.shop, recipe, steps)
            trials.extend([trial] if trial else [])
            return trial.mean if trial else NO_FIGURE

        climb(rungs, recipes, attempt)
        if not trials and isinstance(self._failed, ModelError):
            raise self._failed
        if not trials:
            raise DataError(f"{self.config.data_path}: no recipe could be tried within {spend_of(self.config)}; see above why")
        self._try_more(trials)
        return trials

    def _try_more(self, trials: list[Trial]) -> None:
        """The recipes that were passed over, with as many steps as the longest trial, as far as the budget goes.

        Further seeds of what is best so far come first: they help more surely.
        """
        top = max(trial.steps for trial in trials)
        for recipe in left_below(top, trials):
            best = max(trials, key=lambda trial: trial.mean)
            seeds = self.costs.of_last(best.recipe, best.steps).times(MOST_SEEDS)
            self.budget.later[LAST] = Spend.most([seeds, self.costs.of_last(recipe, top)])
            if self._has_budget(self.shop, recipe, top) and (trial := self._tried(self.shop, recipe, top, is_needed=False)):
                trials.append(trial)

    @property
    def _on_all(self) -> Workshop:
        return self.shop.with_what_was_chosen_on()

    def _has_budget(self, shop: Workshop, recipe: Recipe, steps: int, *, is_planned: bool = False) -> bool:
        """Whether there is something left for a training, and for mining before it; one that is kept costs nothing."""
        if shop.has_tried(recipe, steps):
            return True
        spend = self.costs.of_training(recipe, steps) if shop.on_all else self.costs.of_trial(recipe, steps)
        is_to_mine = recipe.is_mined and not shop.has_mined(recipe)
        mining = [self.costs.of_mining(on_all=shop.on_all)] if is_to_mine else []
        return self.budget.allows(Spend.sum([spend, *mining]), is_planned=is_planned)

    # ---------------------------------------------------------------- the choice, and the end

    def _choose(self, base: Evaluation, trials: Sequence[Trial]) -> Choice:
        """What is taken, with the other trials that make it better."""
        choice = choose(base.scores[METRIC], trials, seed=self.config.seed)
        if choice.chosen is None:
            return choice
        self.budget.later[LAST] = self.costs.of_last(choice.chosen.recipe, choice.chosen.steps)

        def allows(members: Sequence[Trial]) -> bool:
            """To taste them, and to train those beyond the first on all records. What is loaded, the merge loads again."""
            pace, speed = self.costs.pace, self.costs.speed
            tasting_s = 2 * (len(members) + LOADED_BESIDE) * pace.load_s + speed.evaluation_s
            further = [self.costs.of_last(one.recipe, one.steps) for one in members[1:]]
            return self.budget.allows(Spend.sum([Spend(0, tasting_s), *further]))

        tastes = self.state.known.setdefault(_TASTES, {})
        soup = stir(self.shop, choice.chosen, trials, allows, tastes, self._save, self.say)
        return choice.with_soup(soup, base.scores[METRIC], seed=self.config.seed)

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
        if self._has_budget(shop, recipe, steps):
            return self._tried(shop, recipe, steps, is_needed=False)
        self.say(f"{_verb(shop)}  {recipe.name} is left out: {self.budget.left()}")
        return None

    def _how_it_ends(self, final: FinalModel) -> str:
        """What the model was made of in the end, in words."""
        if not final.on_all:
            return "; not trained on the records that it was chosen on"
        records = counted(len(self.plan.split.rest), "record")
        but = "" if self.config.eval_dataset else " but those of the test part"
        return f"; in the end trained on all{but}, {records}: {final.soup.told}"

    def _tried(self, shop: Workshop, recipe: Recipe, steps: int, *, is_needed: bool = True) -> Trial | None:
        """The trial, said; None where the records do not give what the recipe needs, or its training diverges.

        is_needed: False = a full disk, too, only leaves it out.
        """
        try:
            trial, is_new = shop.run(recipe, steps, measure=not shop.on_all)
        except (ConfigError, DataError, ModelError, SaveError) as error:
            if is_needed and isinstance(error, ConfigError | SaveError):
                raise
            self._failed = error
            self.say(f"{_verb(shop)}  {recipe.name} is left out: {first_line(error)}")
            return None
        self.budget.used += steps
        self._save()
        kept = f"{trial.took_s:,.0f} s" if is_new else "kept from before"
        found = f": nDCG@10 {trial.mean:.4f}" if trial.scores else ""
        self.say(f"{_verb(shop)}  {recipe.name}, {steps:,} steps{found} ({kept}; {self.budget.left()})")
        return trial

    def _without(self, choice: Choice, trials: Sequence[Trial]) -> dict[str, Trial]:
        """The chosen recipe with each of its ingredients left out, as far as the budget goes: what each gives."""
        found: dict[str, Trial] = {}
        chosen = choice.chosen
        for ingredient in chosen.recipe.ingredients if chosen else ():
            assert chosen is not None
            recipe = chosen.recipe.without(ingredient)
            trial = next((one for one in trials if one.steps == chosen.steps and one.recipe.is_like(recipe)), None)
            if trial is None and self._has_budget(self.shop, recipe, chosen.steps):
                trial = self._tried(self.shop, recipe, chosen.steps, is_needed=False)
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
        self._save()
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
        final = make_final_of(shop, Soup(tuple(trials), ()), float(recorded["weight"]))
        final.describe(self.config, self.plan.inputs, self.plan.split, None)
        output = self.config.output_dir
        final.move_to(output / MODEL)
        self._save()
        result = TuneResult(self.config.model_name, output / MODEL, f"{final.soup.told}, as given", self.state.seconds)
        self._keep(result)
        return result

    def _keep(self, result: TuneResult) -> None:
        """Write the manifest, after which there is no work."""
        found = {name: value for name, value in self.state.known.items() if name != _TASTES}
        write_json(self.config.output_dir / FOLDER_MANIFEST, result.manifest(self.config, self.plan.inputs, found))
        self.state.end()


def _verb(shop: Workshop) -> str:
    return "on all" if shop.on_all else "trial "
