"""The proof: base, stock recipe and what was chosen, once, on records that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ebr.data.evaluation.comparison import Interval
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.evaluation.leaks import find_leaks, leak_line
from ebr.data.speech import Say
from ebr.data.training.text_table import TextTable
from ebr.workflow.tune.choice import Choice
from ebr.workflow.tune.parts import Split
from ebr.workflow.tune.trials import DEPTH, METRIC, Soup, Trial, Workshop

if TYPE_CHECKING:
    from ebr.retrieval.measures.measurement import Evaluation
    from ebr.retrieval.report.parts import Attempt, Ladder
    from ebr.retrieval.report.write import Measured, Report


def prove(workshop: Workshop, split: Split, models: Mapping[str, str], ladder: Ladder, say: Say) -> Report:
    """Measure models on the test part, and on the set of forgetting. models: path by name, the base first."""
    from ebr.retrieval.evaluation.command import dataset_origin, report_facts
    from ebr.retrieval.evaluation.evidence import report_on
    from ebr.retrieval.report.write import Report

    config = workshop.config
    folders = [workshop.parts.test, *([config.forgetting_dataset] if config.forgetting_dataset else [])]
    sets = [read_evaluation_set(folder) for folder in folders]
    leaks = find_leaks(split.rest, sets[0], TextTable.of(split.rest))
    say(leak_line(leaks, ""))
    measured = [_measured(workshop, name, path, sets, say) for name, path in models.items()]
    main, *forgetting = [
        report_on(dataset, list(found), k=DEPTH, seed=config.seed, baselines=True, facts=dataset_origin(folder))
        for dataset, folder, found in zip(sets, folders, zip(*measured, strict=True), strict=True)
    ]
    return Report(main, next(iter(forgetting), None), leaks, "", report_facts(config.to_json()), ladder)


def _measured(workshop: Workshop, name: str, path: str, sets: Sequence[EvaluationSet], say: Say) -> list[Measured]:
    """One model on every set."""
    from ebr.data.text.cut_texts import cut_facts
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.retrieval.evaluation.evidence import measure_encoder
    from ebr.retrieval.evaluation.models import facts_of

    loaded = workshop.loaded(path)
    found = []
    for dataset in sets:
        encode = RetrievalEncoder(loaded.model)
        facts = {"path": path, **facts_of(loaded)}
        measured = measure_encoder(name, encode, dataset, k=DEPTH, seed=workshop.config.seed, facts=facts)
        found.append(replace(measured, facts={**measured.facts, "cut": cut_facts(encode.cut_texts)}))
        say(f"proof   {name}: nDCG@10 {measured.evaluation.mean(METRIC):.4f} on {dataset.name}")
    return found


# ---------------------------------------------------------------- what was tried


def with_words(workshop: Workshop, base: Evaluation) -> dict[str, float]:
    """nDCG@10 on the part to choose on: of the base, of BM25, and of both together: what there is to gain."""
    from ebr.retrieval.evaluation.evidence import report_on
    from ebr.retrieval.report.write import Measured

    name = workshop.config.model_name
    measured = [Measured(name, base, None, [], {})]
    found = report_on(workshop.choose, measured, k=DEPTH, seed=workshop.config.seed, baselines=True, facts={})
    return {name: base.mean(METRIC)} | {one: means[METRIC] for one, means in found.baselines.items()}


def ladder_of(
    workshop: Workshop,
    base: Evaluation,
    baselines: Mapping[str, float],
    trials: Sequence[Trial],
    without: Mapping[str, Trial],
    choice: Choice,
    n_in_the_end: int,
) -> Ladder:
    """Every trial, and the soup, beside the base.

    without: the chosen recipe without an ingredient, by what it lacks. n_in_the_end: records that the model was trained on
    then, those to choose on among them; 0 = none.
    """
    from ebr.retrieval.report.parts import Attempt, Ladder

    def attempt(soup: Soup, left_out: str | None = None) -> Attempt:
        from ebr.retrieval.measures.significance import paired_bootstrap

        before, after = base.scores[METRIC], soup.by_query()
        gain = paired_bootstrap(before, after, seed=workshop.config.seed)
        took_s = soup.took_s or soup.members[0].took_s
        is_chosen = choice.soup is not None and soup.members == choice.soup.members
        return Attempt(soup.name, soup.steps, soup.mean, gain, took_s, is_chosen, left_out)

    stirred = [choice.soup] if choice.soup and len(choice.soup.members) > 1 else []
    attempts = [attempt(soup) for soup in [*map(Soup.of, trials), *stirred]]
    tried = {(one.recipe, one.steps) for one in attempts}
    # What lacks an ingredient of the chosen one may be one of the recipes that were tried: it stands once.
    attempts += [attempt(Soup.of(one), what) for what, one in without.items() if (one.recipe.name, one.steps) not in tried]
    dataset = workshop.choose
    return Ladder(len(dataset.queries), len(dataset.documents), dict(baselines), tuple(attempts), n_in_the_end)


def why(choice: Choice, base_mean: float) -> str:
    """The choice in one sentence."""
    gain, best = choice.gain, choice.best
    chosen = choice.chosen or best
    soup = choice.soup or Soup.of(chosen)
    bounds = f"{gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], p {choice.p:.4f}"
    taken = chosen.told
    if choice.chosen is None:
        return f"nothing is better than the base beyond chance: {taken} gains {bounds} over its {base_mean:.4f}"
    if len(soup.members) > 1:
        others = ", ".join(f"{one.recipe.name} with {one.steps:,}" for one in soup.members[1:])
        return f"the mean of {taken} and {others} finds more than each of them: {bounds} over the base"
    if chosen == best:
        return f"{taken} is the best of all that was tried: {bounds} over the base"
    return f"{taken} is as good as {best.recipe.name} with {best.steps:,}, and simpler: {bounds} over the base"


def over_stock(report: Report, chosen: str, stock: str, seed: int) -> Interval | None:
    """What the chosen model has over the stock recipe's on the test part, in nDCG@10; None where one of them is absent."""
    from ebr.retrieval.measures.significance import paired_bootstrap

    found = {model.name: model.evaluation.scores[METRIC] for model in report.main.measured}
    return paired_bootstrap(found[stock], found[chosen], seed=seed) if {chosen, stock} <= found.keys() else None


def results_of(report: Report) -> dict[str, float]:
    """nDCG@10 on the test part by name, models and baselines."""
    found = {model.name: model.evaluation.mean(METRIC) for model in report.main.measured}
    return found | {name: means[METRIC] for name, means in report.main.baselines.items()}
