"""Fine-tune: records in, a saved model and the evidence that it is better out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.evaluation.leaks import find_leaks, leak_line
from ebr.data.files.write import hash_files
from ebr.data.speech import Ask, Say, speak, terminal
from ebr.data.text.cut_texts import cut_facts
from ebr.errors import first_line
from ebr.retrieval.evaluation.command import dataset_origin, report_facts
from ebr.retrieval.evaluation.leak_check import CHOSEN_HERE
from ebr.training.doctor.diagnosis import diagnose, save_check
from ebr.training.plan import FinetunePlan, load_for_training, mixture_of, needs_of_disk, plan_finetune
from ebr.workflow.finishing import FinetuneResult, TrainedModel
from ebr.workflow.model_folder import model_manifest, start_facts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.data.evaluation.leaks import LeakCheck
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.retrieval.report.write import Measured, Report
    from ebr.training.doctor.report import CheckReport
    from ebr.training.loop.disk import DiskNeeds
    from ebr.training.resources.processes import Processes

_NO_NEWS = {
    "architecture", "base_card", "config", "data", "kind", "languages", "n_steps", "scripts", "spelling_sha256",
    "total_parameters", "trainable_parameters", "versions", "weights_step",
}  # fmt: skip
"""Of a manifest, what a report says elsewhere or not at all."""
_K = 100
"""Documents ranked a query: as deep as Recall@100 looks."""


def train_sentence_transformer(config: FinetuneConfig, *, say: Say = speak, ask: Ask | None = None) -> FinetuneResult:
    """Fine-tune a model, evaluate it before and after where there is an evaluation set, and save it.

    A FinetuneConfig trains on pairs, a TrainConfig on queries with lists of passages: see plan_finetune. The finished folder
    loads with plain SentenceTransformer(folder), an adapter while its base lies where it lay. Started by torchrun or
    accelerate, the processes share the work; the first one speaks, evaluates and writes. ask: where else to save a finished
    model that cannot be written; None = whoever sits at the terminal, if anybody does.
    Raises EBRError subclasses that say what to mend; Interrupted after Ctrl-C, with a whole checkpoint left behind; SaveError
    when the finished model cannot be written where it belongs, with where it lies instead.
    """
    from ebr.training.loop.fit import fine_tune, run_record
    from ebr.training.resources.processes import join_processes
    from ebr.visualization.library_caches import settle_matplotlib_cache

    settle_matplotlib_cache()

    processes = join_processes()
    if not processes.is_main:
        say = _silence
    plan = plan_finetune(config, processes.count)
    for line in plan.lines():
        say(line)
    leaks = find_leaks(plan.records(), plan.dataset, plan.texts) if plan.dataset and processes.is_main else None
    if leaks is not None:
        say(leak_line(leaks, ""))
    start, facts = _made_trainable(plan, config, processes, say)
    model = start.model
    mixture = mixture_of(plan, model)
    disk = needs_of_disk(plan, model, config, processes, mixture)
    check = None
    if processes.is_main:
        check = _checked(plan, model, config, processes, leaks, disk, say)
        disk.check()
    plan.texts.drop_forms()
    data_sha256 = hash_files(plan.files)
    run = run_record(start, config, data_sha256, processes)
    resume_from = _begin_or_go_on(plan, model, run, processes, say)
    if check:
        save_check(check, plan.layout.work)
    judge = _Judge(plan, config, say) if plan.dataset else None
    if judge and processes.is_main:
        judge.begin(model, {"model_sha256": start.sha256}, start.similarity)
    record = fine_tune(
        model,
        plan.train,
        plan.validation,
        config,
        ids=plan.texts.ids,
        work=plan.layout.work,
        record=run,
        resume_from=resume_from,
        evaluate=judge,
        processes=processes,
        mixture=mixture,
        say=say,
    )
    result, failure = FinetuneResult(plan.layout.final, record, None, None), None
    try:
        if processes.is_main:
            manifest = model_manifest(model, config, plan, facts, data_sha256, record)
            trained = TrainedModel(model, config, plan, record, manifest, disk.finished)
            make_report = partial(judge.report, model, str(plan.layout.final), manifest, leaks) if judge else None
            result, failure = trained.finish(make_report, ask or terminal(), say)
    finally:
        processes.leave()
    if failure:
        say(f"the model is saved in {result.model_path}, but its report could not be made; ebr evaluate makes one")
        raise failure
    return result


def _made_trainable(
    plan: FinetunePlan, config: FinetuneConfig, processes: Processes, say: Say
) -> tuple[LoadedModel, dict[str, Any]]:
    """The base made trainable, as what it was before, and its start_facts, in the process that saves the model.

    Raises ConfigError where the result of another would be replaced.
    """
    from ebr.training.loop.fit import model_info, prepare_model

    start = load_for_training(config)
    plan.layout.check_base(config.model_name, start.sha256, is_adapter=config.finetune_type != "full")
    # At once, for its files may have been moved by the end.
    facts = start_facts(start, config) if processes.is_main else {}
    prepare_model(start.model, config)
    info = model_info(start.model, config)
    trainable, total = info["trainable_parameters"], info["total_parameters"]
    say(f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})")
    return start, facts


def _checked(
    plan: FinetunePlan,
    model: SentenceTransformer,
    config: FinetuneConfig,
    processes: Processes,
    leaks: LeakCheck | None,
    disk: DiskNeeds,
    say: Say,
) -> CheckReport | None:
    """The check before training, said; None where it cannot be made, which ends no run."""
    try:
        check = diagnose(plan, model, config, processes.count, leaks=leaks, disk=disk)
    except Exception as error:  # a model of another make, whatever it raises
        say(f"training check: could not be made ({first_line(error)}); the run goes on")
        return None
    for line in check.lines():
        say(line)
    return check


def relaunch_on_every_gpu(command: str, arguments: Sequence[str], check: Callable[[int], object]) -> int | None:
    """Run `ebr command arguments` again with one process a visible GPU, and return its exit code; None = go on in this one.

    check: called first with the number of GPUs, so that a mistake is told once and not by every process.
    """
    from ebr.training.resources.processes import relaunch_command, run_launcher, visible_gpus

    n_gpus = visible_gpus()
    launcher = relaunch_command("ebr", [command, *arguments], n_gpus, os.environ)
    if launcher is None:
        return None
    check(n_gpus)
    return run_launcher(launcher)


def _silence(line: str) -> None:
    """What the processes other than the first have to say."""


def _begin_or_go_on(
    plan: FinetunePlan, model: SentenceTransformer, record: Mapping[str, Any], processes: Processes, say: Say
) -> Path | None:
    """Make room for a new run, or take up the one that the plan's checkpoint belongs to; returns where to resume from.

    model: as it is prepared for training.
    """
    from ebr.model.files.identity import fingerprint
    from ebr.training.loop.checkpoints import check_same_run

    if plan.checkpoint:
        check_same_run(plan.checkpoint, record, prepared_sha256=lambda: fingerprint(model))
    processes.wait()  # every process has found its checkpoint before the first moves anything
    if processes.is_main and plan.checkpoint:
        plan.layout.go_on(plan.checkpoint)
    elif processes.is_main and (notice := plan.layout.begin()):
        say(notice)
    processes.wait()
    if plan.checkpoint is None:
        return None
    resume_from = plan.layout.work / plan.checkpoint.name
    say(f"resuming from {resume_from}")
    return resume_from


class _Judge:
    """Evaluates a model on the evaluation set: what it was before, how it is on the way, and what it has become.

    On the set of forgetting, where there is one, before and after only.
    """

    def __init__(self, plan: FinetunePlan, config: FinetuneConfig, say: Say) -> None:
        given = [(plan.dataset, config.eval_dataset), (plan.forgetting, config.forgetting_dataset)]
        self.sets = [(dataset, dataset_origin(folder)) for dataset, folder in given if dataset and folder]
        self.dataset = self.sets[0][0]
        self.config = config
        self.say = say
        self.base: list[Measured] = []

    def __call__(self, model: SentenceTransformer, step: int) -> dict[str, float]:
        from ebr.retrieval.measures.measurement import evaluate_encoder

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
        from ebr.retrieval.evaluation.evidence import report_on
        from ebr.retrieval.report.write import Report

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
        from ebr.model.compute.serving import as_served
        from ebr.retrieval.evaluation.evidence import measure_encoder

        def measure(dataset: EvaluationSet) -> Measured:
            encode = self._encoder(model, similarity)  # a new one: it counts the texts that it cut
            measured = measure_encoder(name, encode, dataset, k=_K, seed=self.config.seed, facts=facts)
            return replace(measured, facts={**measured.facts, "cut": cut_facts(encode.cut_texts)})

        with as_served(model):
            return [measure(dataset) for dataset, _ in self.sets]

    def _encoder(self, model: SentenceTransformer, similarity: str | None = None) -> RetrievalEncoder:
        from ebr.model.compute.local_engine import RetrievalEncoder

        return RetrievalEncoder(model, batch_size=self.config.eval_batch_size, similarity=similarity)
