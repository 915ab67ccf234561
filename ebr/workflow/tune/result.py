"""What a tuning has found: the proof, once, on records that nothing was chosen on, and the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import TuneConfig
from ebr.data.evaluation.comparison import Interval
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.evaluation.leaks import find_leaks, leak_line
from ebr.data.result_tables import DataFrame, Fact, Part, Shown, Table, fact_lines
from ebr.data.speech import Say
from ebr.data.training.text_table import TextTable
from ebr.data.versions import library_versions
from ebr.workflow.tune.choice import Choice
from ebr.workflow.tune.parts import Split
from ebr.workflow.tune.plan import KIND, MODEL
from ebr.workflow.tune.trials import DEPTH, METRIC, Soup, Trial, Workshop

if TYPE_CHECKING:
    from ebr.data.evaluation.comparison import Comparison
    from ebr.retrieval.measures.measurement import Evaluation
    from ebr.retrieval.report.parts import Attempt, Ladder
    from ebr.retrieval.report.write import Measured, Report

_HEAD = "{:<28} {:>6}  {:>7}  {:>8}  {:<18}  {:>6}"


@dataclass(frozen=True)
class TuneResult(Shown):
    """A finished tuning. model_path: the folder of the chosen model; None where the base is the answer.

    comparison: the base against the chosen on the test part, forgetting likewise on the second set, over_stock the difference
    in nDCG@10 to the stock recipe; None without a choice, and for a model that was made again. proof: nDCG@10 on the test
    part by name. command: makes the same model again.
    """

    base: str
    model_path: Path | None
    why: str
    seconds: float
    comparison: Comparison | None = None
    forgetting: Comparison | None = None
    over_stock: Interval | None = None
    proof: dict[str, float] = field(default_factory=dict)
    ladder: Ladder | None = None
    report: Path | None = None
    command: str = ""

    def manifest(self, config: TuneConfig, inputs: Mapping[str, str], found: Mapping[str, Any]) -> dict[str, Any]:
        """What the folder's manifest holds. found: what was found out once, on the way."""
        return {
            "kind": KIND,
            "config": config.to_json(),
            "base_model": self.base,
            "model": MODEL if self.model_path else None,
            "why": self.why,
            "proof": self.proof,
            "inputs": dict(inputs),
            "found": dict(found),
            "seconds": round(self.seconds, 1),
            "versions": library_versions(),
        }

    def summary(self) -> str:
        """What was tried, what is taken and why, what it is worth, and how to make it again."""
        found = [self._attempts_as_text()] if self.ladder else []
        if self.comparison:
            found += [f"proof: {self.base} → the chosen model, on {self.comparison.dataset}", self.comparison.table(), ""]
        if self.forgetting:
            found += [f"forgetting: the same on {self.forgetting.dataset}", self.forgetting.table(), ""]
        return "\n".join([*found, *fact_lines(self._facts(), 8)])

    def parts(self) -> list[Part]:
        """The same, as tables."""
        compared = [part for one in (self.comparison, self.forgetting) if one for part in one.parts()]
        return [*([self._attempts()] if self.ladder else []), *compared, self._facts()]

    def to_frame(self) -> DataFrame:
        """A row for each trial, and the soup: recipe, steps, ndcg, gain, low, high, seconds, chosen."""
        return self._attempts().to_frame()

    def _attempts(self) -> Table:
        attempts = self.ladder.attempts if self.ladder else ()
        rows = [
            {
                "recipe": one.recipe,
                "steps": one.steps,
                "nDCG@10": one.ndcg,
                "gain": one.gain.difference,
                "low": one.gain.low,
                "high": one.gain.high,
                "seconds": one.seconds,
                "chosen": "★" if one.is_chosen else "",
            }
            for one in attempts
        ]
        digits = dict.fromkeys(("gain", "low", "high"), "+.4f")
        return Table.of(rows, **{"nDCG@10": ".4f", "seconds": ".0f", **digits})

    def _attempts_as_text(self) -> str:
        assert self.ladder is not None
        lines = [_HEAD.format("recipe", "steps", "nDCG@10", "− base", "95 % interval", "s")]
        for one in self.ladder.attempts:
            name = f"{one.recipe}{' ★' if one.is_chosen else ''}"
            bounds = f"{one.gain.low:+.4f} … {one.gain.high:+.4f}"
            figures = (f"{one.steps:,}", f"{one.ndcg:.4f}", f"{one.gain.difference:+.4f}", bounds, f"{one.seconds:,.0f}")
            lines.append(_HEAD.format(name, *figures))
        return "\n".join([*lines, ""])

    def _facts(self) -> list[Fact]:
        # Fusions stand in the report.
        proof = ", ".join(f"{name} {value:.4f}" for name, value in self.proof.items() if " + " not in name)
        over = self.over_stock
        stock = f"{over.difference:+.4f} [{over.low:+.4f}, {over.high:+.4f}] nDCG@10 on the test part" if over else ""
        facts = [
            ("chosen", self.why),
            ("proof", f"nDCG@10: {proof}" if proof else ""),
            ("", f"over the stock recipe {stock}" if stock else ""),
            ("model", str(self.model_path) if self.model_path else f"{self.base}, the base: nothing was better beyond chance"),
            ("report", str(self.report) if self.report else ""),
            ("again", self.command),
            ("took", f"{self.seconds / 60:,.1f} min"),
        ]
        return [(name, text) for name, text in facts if text]


# ---------------------------------------------------------------- the proof


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

        gain = paired_bootstrap(base.scores[METRIC], soup.ndcg, seed=workshop.config.seed)
        took_s = soup.took_s or soup.members[0].took_s
        is_chosen = choice.soup is not None and soup.members == choice.soup.members
        return Attempt(soup.name, soup.steps, soup.mean, gain, took_s, is_chosen, left_out)

    stirred = [choice.soup] if choice.soup and len(choice.soup.members) > 1 else []
    attempts = [attempt(soup) for soup in [*map(Soup.of, trials), *stirred]]
    tried = {(one.recipe, one.steps) for one in attempts}
    # What lacks an ingredient of the chosen one may be one of the recipes that were tried: it stands once.
    attempts += [attempt(Soup.of(one), what) for what, one in without.items() if (one.recipe.name, one.steps) not in tried]
    dataset = workshop.choose
    return Ladder(
        len(dataset.queries),
        len(dataset.documents),
        dict(baselines),
        tuple(attempts),
        choice.gain.ndcg.interval,
        choice.gain.likelihood.interval,
        choice.n_further,
        n_in_the_end,
    )


def why(choice: Choice, base_mean: float) -> str:
    """The choice in one sentence."""
    best, bounds = choice.best, choice.gain.told()
    chosen = choice.chosen or best
    soup = choice.soup or Soup.of(chosen)
    taken = chosen.told
    judges = f" on {choice.gain.n_queries:,} queries that had no say in what came first" if choice.n_further else ""
    if choice.chosen is None:
        over = judges or f" over its {base_mean:.4f}"
        return f"nothing is better than the base beyond chance: {taken} gains {bounds}{over}"
    if judges:
        return f"{taken} is better than the base{judges}: {bounds}"
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
