"""The model that a tuning ends with: what was chosen, with what makes it better, merged into its base as far as is best.

In the end it is trained once more, on the records that it was chosen on too.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import MergeConfig, TuneConfig
from ebr.config.models.merge import AUTO
from ebr.data.evaluation.comparison import EVALUATION_JSON
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.files.write import FOLDER_MANIFEST, read_manifest, write_json
from ebr.data.speech import Say, silence
from ebr.errors import ModelError, first_line
from ebr.workflow.tune.choice import is_as_good
from ebr.workflow.tune.parts import Split
from ebr.workflow.tune.plan import MODEL
from ebr.workflow.tune.recipes import Recipe
from ebr.workflow.tune.trials import DEPTH, METRIC, Figures, Scores, Soup, Trial, Workshop

if TYPE_CHECKING:
    from ebr.model.command import Choose
    from ebr.model.encoder.dial import WeightChoice, WeightDial
    from ebr.retrieval.report.write import Report

WEIGHTS = (0.4, 0.6, 0.8)
"""How much of a tuning is tried, beside all of it and none."""
LOADED_BESIDE = 3
"""Models that tasting a soup loads beside its members: the base, what was saved, and that again to be measured."""
_CHOSEN_ON = "records that it was not trained on"
_CHOSEN_BEFORE = "records held out of the training before the last"
MOST_SEEDS = 3
MOST_TASTED = 6
"""Trials that are tried as members of a soup, the best ones: each takes an evaluation."""


@dataclass(frozen=True)
class FinalModel:
    """A whole model on its way to its place.

    weight: how much of the soup was merged; choice: how that was chosen, None where it was told. on_all: see Workshop.
    """

    folder: Path
    soup: Soup
    weight: float
    choice: WeightChoice | None
    on_all: bool

    def describe(self, config: TuneConfig, inputs: Mapping[str, str], split: Split, report: Report | None) -> None:
        """Say what the model was made of, and put the proof beside it: report, thresholds, card.

        Its base and records are those of the tuning: the folders that it was made in are gone afterwards. report: with the
        model first after the base; None = none was made.
        """
        from ebr.model.base_card import base_card
        from ebr.model.card import read_report, write_card
        from ebr.model.origin import resolve_model
        from ebr.retrieval.report.write import write_report

        of_tuning = {"base_model": config.model_name, "base_card": base_card(resolve_model(config.model_name))}
        manifest = (read_manifest(self.folder) or {}) | of_tuning
        trained = _in_common([read_manifest(Path(one.model)) or {} for one in self.soup.members]) | of_tuning
        # Each was trained on what was made of some of the records, under names of our own.
        trained |= {"n_train": len(split.rest if self.on_all else split.train), "data_sha256": inputs["data_path"]}
        trained |= {"data": [{"name": file.name} for file in split.files]}
        manifest |= {"config": config.to_json(), "data_sha256": inputs["data_path"], "recipes": recipes_of(self.soup)}
        manifest.pop("adapter", None)
        if report:
            write_json(self.folder / EVALUATION_JSON, report.main.evaluation_json())
            write_report(self.folder, report, config.language)
        write_card(self.folder, MODEL, manifest, trained, read_report(self.folder))
        write_json(self.folder / FOLDER_MANIFEST, manifest)

    def move_to(self, place: Path) -> None:
        """Give it its place."""
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed between this and its manifest
        self.folder.rename(place)


def _in_common(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is true of every training of a soup, of its options too; of one training all of it."""
    first, *others = records
    same = {name: value for name, value in first.items() if all(one.get(name) == value for one in others)}
    options = dict(first.get("config") or {})
    for one in others:
        options = {name: value for name, value in options.items() if (one.get("config") or {}).get(name) == value}
    options.pop("num_epochs", None)  # each made its own steps instead
    return same | {"config": options}


def recipes_of(soup: Soup) -> list[dict[str, Any]]:
    """What was trained for it, as plain JSON values: Recipe.to_json and steps of each member."""
    return [{"recipe": one.recipe.to_json(), "steps": one.steps} for one in soup.members]


# ---------------------------------------------------------------- a soup


def stir(
    shop: Workshop,
    chosen: Trial,
    trials: Sequence[Trial],
    allows: Callable[[Sequence[Trial]], bool],
    tastes: dict[str, dict[str, Any]],
    keep: Callable[[], None],
    say: Say,
) -> Soup:
    """The chosen trial, and those that make it better on the part to choose on when the mean of all is taken.

    Greedy, as Wortsman et al. 2022 stir it: the other trials of the same base are tried as further members, the best first,
    and kept where the mean finds more than the soup before and than the new member alone. At worst it is the chosen trial.

    allows: whether there is time to taste a soup of these, and to train them in the end. tastes: what was tasted before an
    interruption, by its members; keep: writes down what is new in it.
    """
    base = shop.base(chosen.recipe)
    soup = Soup.of(chosen)
    others = [one for one in trials if one != chosen and shop.base(one.recipe) == base]
    for one in sorted(others, key=lambda trial: -trial.mean)[:MOST_TASTED]:
        members = (*soup.members, one)
        name = " + ".join(f"{member.recipe.name}-{member.steps}" for member in members)
        if name not in tastes:
            if not allows(members):
                break
            tastes[name] = _taste(shop, members, base)
            keep()
        found = tastes[name]
        if "error" in found:
            say(f"soup    with {one.recipe.name} is left out: {found['error']}")
            continue
        tasted = Soup(members, Figures.from_json(found["figures"]), found["took_s"])
        say(f"soup    with {one.recipe.name}, {one.steps:,} steps: nDCG@10 {tasted.mean:.4f}")
        if tasted.mean > max(soup.mean, one.mean):
            soup = tasted
    return soup


def _taste(shop: Workshop, members: tuple[Trial, ...], base: str) -> dict[str, Any]:
    """Figures and seconds of these trials as one model, as plain JSON; error: why they make none."""
    from ebr.workflow.merging import merge_adapter

    started = time.perf_counter()
    folder = shop.work / "soup"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        merge_adapter(_merging(shop, members, base, folder, 1.0), say=silence)
    except ModelError as error:
        return {"error": first_line(error)}
    figures = Figures.of(shop.evaluate(str(folder)))
    shutil.rmtree(folder, ignore_errors=True)
    return {"figures": figures.to_json(), "took_s": round(time.perf_counter() - started, 1)}


# ---------------------------------------------------------------- the last training


def with_further_seeds(soup: Soup, seed: int) -> list[Recipe]:
    """A single recipe with other seeds than the tuning's; a soup needs none.

    The mean of models that differ in their seed finds about what the luckiest of them finds: docs/measurements.md.
    """
    if len(soup.members) > 1:
        return []
    return [soup.members[0].recipe.seeded((seed + place) % 2**32) for place in range(1, MOST_SEEDS)]


# ---------------------------------------------------------------- the dial, and the merge


class _Dial:
    """Finds the best weight of a soup on the part to choose on: of equals the smallest, it changes least of the base.

    Where there is a set to show forgetting, it chooses among the weights that are as good as the best: gain against forgetting.
    Others, and a single one, are not measured there.
    Weight 1 is the soup itself, and 0 the base: neither is measured again where its figures are known. None of it is not taken:
    that the soup is better was settled before, by more than nDCG@10 on this part.

    known: (Q,) nDCG@10 by query, by weight. kept: the set to show forgetting.
    """

    def __init__(self, shop: Workshop, known: Mapping[float, Scores], kept: EvaluationSet | None, say: Say) -> None:
        self.shop, self.known, self.kept, self.say = shop, dict(known), kept, say

    def __call__(self, dial: WeightDial) -> WeightChoice:
        from ebr.model.encoder.dial import WeightChoice
        from ebr.retrieval.evaluation.weight_search import best_weight

        found = {weight: self._ndcg(dial, weight) for weight in (0.0, *WEIGHTS, 1.0)}
        means = {weight: float(ndcg.mean()) for weight, ndcg in found.items()}
        best = best_weight({weight: mean for weight, mean in means.items() if weight})
        figures, datasets = [means], [_CHOSEN_ON]
        as_good = [weight for weight in found if weight and is_as_good(found[weight], found[best])]
        if self.kept and len(as_good) > 1:
            kept = {weight: self._kept_at(dial, weight, self.kept) for weight in as_good}
            best = best_weight(kept)
            figures.append(kept)
            datasets.append(self.kept.name)
        told = f"; on {datasets[-1]} ".join(", ".join(f"{at:g}: {mean:.4f}" for at, mean in one.items()) for one in figures)
        self.say(f"dial    weight {best:g} is taken ({told})")
        tried = [{"weight": weight, METRIC: [one.get(weight) for one in figures]} for weight in found]
        record = {"datasets": datasets, "tried": tried, "second_chooses": len(datasets) > 1}
        return WeightChoice(best, record, None, None, lambda *_: None)

    def _ndcg(self, dial: WeightDial, weight: float) -> Scores:
        if weight in self.known:
            return self.known[weight]
        dial.turn(weight)
        return self.shop.measured(dial.encoder).scores[METRIC]

    @staticmethod
    def _kept_at(dial: WeightDial, weight: float, dataset: EvaluationSet) -> float:
        """The mean nDCG@10 on the second set, whose queries may have answers that are not among its documents."""
        from ebr.model.compute.local_engine import RetrievalEncoder
        from ebr.retrieval.measures.measurement import evaluate_encoder

        dial.turn(weight)
        return evaluate_encoder(RetrievalEncoder(dial.encoder, show_progress=False), dataset, k=DEPTH).mean(METRIC)


def make_final(shop: Workshop, soup: Soup, base: Figures, say: Say) -> FinalModel:
    """Merge as much of a soup into its base as is best on the part to choose on. base: what the untuned model has there."""
    known = {1.0: soup.ndcg}
    if shop.base(soup.members[0].recipe) == shop.config.model_name:  # an extended base is another one
        known[0.0] = base.ndcg
    second = shop.config.forgetting_dataset
    return _final(shop, soup, AUTO, _Dial(shop, known, read_evaluation_set(second) if second else None, say))


def make_final_again(shop: Workshop, soup: Soup, before: FinalModel) -> FinalModel:
    """The same of what was trained again, on what the weight was chosen on too: as much of it as was best before."""
    assert before.choice is not None
    record = before.choice.record
    choice = replace(before.choice, record={**record, "datasets": [_CHOSEN_BEFORE, *record["datasets"][1:]]})
    shutil.rmtree(before.folder, ignore_errors=True)
    return _final(shop, soup, AUTO, lambda _: choice)


def make_final_of(shop: Workshop, soup: Soup, weight: float) -> FinalModel:
    """Merge as much of a soup as is told."""
    return _final(shop, soup, weight, None)


def _final(shop: Workshop, soup: Soup, weight: float | str, choose: Choose | None) -> FinalModel:
    from ebr.model.command import merge_planned
    from ebr.model.merge_plan import plan_merge

    folder, base = shop.work / "final", shop.base(soup.members[0].recipe)
    shutil.rmtree(folder, ignore_errors=True)
    merged = merge_planned(plan_merge(_merging(shop, soup.members, base, folder, weight)), choose, say=silence)
    return FinalModel(folder, soup, merged.weight, merged.choice, shop.on_all)


def _merging(shop: Workshop, members: Sequence[Trial], base: str, folder: Path, weight: float | str) -> MergeConfig:
    models = [one.model for one in members]
    is_one_adapter = len(models) == 1 and shop.config.finetune_type != "full"
    tuned: dict[str, Any] = {"lora_adapter_path": models[0]} if is_one_adapter else {"adapters": models}
    chosen_on = {"eval_dataset": shop.parts.choose} if weight == AUTO else {}
    return MergeConfig(
        base_model_path=base,
        output_path=folder,
        weight=weight,
        trust_remote_code=shop.config.trust_remote_code,
        **tuned,
        **chosen_on,
    )
