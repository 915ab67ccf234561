"""Which part of a tuning is best on an evaluation set: the weights of a dial tried one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebr.config import FinetuneConfig
from ebr.data.evaluation.comparison import EVALUATION_JSON
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.files.write import write_json
from ebr.data.speech import Say
from ebr.model.compute.local_engine import RetrievalEncoder
from ebr.model.encoder.dial import WeightChoice, WeightDial
from ebr.model.encoder.encoder import similarity_of
from ebr.retrieval.evaluation.command import report_facts
from ebr.retrieval.evaluation.evidence import report_on
from ebr.retrieval.evaluation.leak_check import WEIGHT_CHOSEN_HERE, Provenance, check_leaks
from ebr.retrieval.measures.measurement import Evaluation, evaluate_encoder
from ebr.retrieval.measures.thresholds import calibrate
from ebr.retrieval.report.write import Measured, Report, write_report

WEIGHTS = tuple(tenths / 10 for tenths in range(11))
_METRIC = "ndcg@10"
_DIGITS = 4
_K = 100
_HOW_IT_EMBEDS = (
    "model_sha256", "similarity", "pooling", "prompts", "max_seq_length", "query_max_len", "passage_max_len", "dim",
)  # fmt: skip


class WeightSearch:
    """Measures every one of WEIGHTS on each set, and takes the one with the best mean nDCG@10 on the first.

    Of equals, to the four digits that are shown, the smallest is taken: it changes least of what the base could. Further sets
    choose nothing. The figure of the weight that is taken is the best of several, and so a little too good.

    sets: the set to choose on, and after it that of forgetting, where there is one; each with where it is from, see
    dataset_origin. tuned: the models that are merged, whose training records are looked for among the queries.
    """

    def __init__(
        self,
        sets: Sequence[tuple[EvaluationSet, Mapping[str, Any]]],
        tuned: Sequence[str],
        config: Mapping[str, Any],
        say: Say,
    ) -> None:
        self.sets = sets
        self.tuned = tuned
        self.config = config
        self.say = say

    def __call__(self, dial: WeightDial) -> WeightChoice:
        """The best weight; the dial is left at the last one that was tried."""
        found = {weight: self._measure(dial, weight) for weight in WEIGHTS}
        best = best_weight({weight: evaluations[0].mean(_METRIC) for weight, evaluations in found.items()})
        self.say(f"weight {best:g} is taken: the best on {self.sets[0][0].name}, of equals the smallest")
        report = self._report(found[0.0], found[best], best, similarity_of(dial.encoder))
        names = [dataset.name for dataset, _ in self.sets]
        tried = [
            {"weight": weight, _METRIC: [round(evaluation.mean(_METRIC), 6) for evaluation in evaluations]}
            for weight, evaluations in found.items()
        ]
        comparison = report.main.contrasts[0].comparison
        forgetting = report.forgetting.contrasts[0].comparison if report.forgetting else None

        def write(folder: Path, manifest: Mapping[str, Any]) -> None:
            report.main.measured[1].facts.update({name: manifest[name] for name in _HOW_IT_EMBEDS})
            write_json(folder / EVALUATION_JSON, report.main.evaluation_json())
            write_report(folder, report, "en")

        return WeightChoice(best, {"datasets": names, "tried": tried}, comparison, forgetting, write)

    def _measure(self, dial: WeightDial, weight: float) -> list[Evaluation]:
        """On every set, with the dial at one weight."""
        dial.turn(weight)
        found = [evaluate_encoder(RetrievalEncoder(dial.encoder), dataset, k=_K) for dataset, _ in self.sets]
        self.say(f"weight {weight:g}: nDCG@10 " + ", ".join(f"{one.mean(_METRIC):.4f} on {one.dataset}" for one in found))
        return found

    def _report(self, base: Sequence[Evaluation], chosen: Sequence[Evaluation], weight: float, similarity: str) -> Report:
        """The base against the weight that is taken."""
        seed = FinetuneConfig.model_fields["seed"].default
        names = (str(self.config["base_model_path"]), f"weight {weight:g}")
        main, *forgetting = [
            report_on(
                dataset,
                [
                    Measured(name, one, None, [], {}, calibrate(one, dataset, similarity))
                    for name, one in zip(names, pair, strict=True)
                ],
                k=_K,
                seed=seed,
                baselines=True,
                facts=origin,
            )
            for (dataset, origin), pair in zip(self.sets, zip(base, chosen, strict=True), strict=True)
        ]
        leaks, notes = check_leaks(Provenance.of(self.tuned), self.sets[0][0])
        facts = report_facts(self.config)
        return Report(main, next(iter(forgetting), None), leaks, notes.and_more(WEIGHT_CHOSEN_HERE).text(), facts)


def best_weight(means: Mapping[float, float]) -> float:
    """The weight of the best mean, by weight; of those that are equal to four digits the smallest."""
    rounded = {weight: np.round(mean, _DIGITS) for weight, mean in means.items()}
    return min(rounded, key=lambda weight: (-rounded[weight], weight))
