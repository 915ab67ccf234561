"""The evaluator of a training: a model on an evaluation set before, while and after it is tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.speech import Say
from ebr.data.text.cut_texts import cut_facts
from ebr.model.compute.local_engine import RetrievalEncoder
from ebr.model.compute.serving import as_served
from ebr.retrieval.evaluation.command import report_facts
from ebr.retrieval.evaluation.evidence import measure_encoder, report_on
from ebr.retrieval.evaluation.leak_check import CHOSEN_HERE
from ebr.retrieval.measures.measurement import evaluate_encoder
from ebr.retrieval.report.write import Measured, Report

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.data.evaluation.leaks import LeakCheck

_NO_NEWS = {
    "architecture", "base_card", "config", "data", "kind", "languages", "n_steps", "scripts", "spelling_sha256",
    "total_parameters", "trainable_parameters", "versions", "weights_step",
}  # fmt: skip
"""Of a manifest, what a report says elsewhere or not at all."""
_K = 100
"""Documents ranked a query: as deep as Recall@100 looks."""


class RetrievalEvaluator:
    """Evaluates a model on the evaluation set: what it was before, how it is on the way, and what it has become.

    sets: the evaluation set, and after it that of forgetting, where there is one, which is measured before and after only; each
    with where it is from, see dataset_origin.
    """

    def __init__(self, sets: Sequence[tuple[EvaluationSet, Mapping[str, Any]]], config: FinetuneConfig, say: Say) -> None:
        self.sets = sets
        self.dataset = sets[0][0]
        self.config = config
        self.say = say
        self.base: list[Measured] = []

    def __call__(self, model: SentenceTransformer, step: int) -> dict[str, float]:
        """Means by metric on the evaluation set, of the model as it is at a step."""
        evaluation = evaluate_encoder(self._encoder(model), self.dataset)
        self.say(f"step {step}: nDCG@10 {evaluation.mean('ndcg@10'):.4f} on {self.dataset.name}")
        return evaluation.means()

    def begin(self, model: SentenceTransformer, facts: Mapping[str, Any], similarity: str) -> None:
        """Measure the base, with the prompts and lengths of tuning and by the similarity that it was made for."""
        self.base = self._measure(self.config.model_name, model, facts, similarity)
        for measured in self.base:
            self.say(f"base: nDCG@10 {measured.evaluation.mean('ndcg@10'):.4f} on {measured.evaluation.dataset}")

    def report(self, model: SentenceTransformer, name: str, facts: Mapping[str, Any], leaks: LeakCheck | None) -> Report:
        """The base against the model as it is now."""
        known = {key: value for key, value in facts.items() if key not in _NO_NEWS}
        # A model tuned in place has the name of its base.
        tuned = self._measure(f"{name} (tuned)" if name == self.base[0].name else name, model, known)
        main, *forgetting = [
            report_on(dataset, pair, k=_K, seed=self.config.seed, baselines=True, facts=origin)
            for (dataset, origin), pair in zip(self.sets, zip(self.base, tuned, strict=True), strict=True)
        ]
        note = CHOSEN_HERE.text() if self.config.early_stopping_patience else ""
        return Report(main, next(iter(forgetting), None), leaks, note, report_facts(self.config.to_json()))

    def _measure(
        self, name: str, model: SentenceTransformer, facts: Mapping[str, Any], similarity: str | None = None
    ) -> list[Measured]:
        """On every set."""

        def measure(dataset: EvaluationSet) -> Measured:
            encode = self._encoder(model, similarity)  # a new one: it counts the texts that it cut
            measured = measure_encoder(name, encode, dataset, k=_K, seed=self.config.seed, facts=facts)
            return replace(measured, facts={**measured.facts, "cut": cut_facts(encode.cut_texts)})

        with as_served(model):
            return [measure(dataset) for dataset, _ in self.sets]

    def _encoder(self, model: SentenceTransformer, similarity: str | None = None) -> RetrievalEncoder:
        return RetrievalEncoder(model, batch_size=self.config.eval_batch_size, similarity=similarity)
