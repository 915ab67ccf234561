"""Fine-tune: records in, a saved model and the evidence that it is better out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ebr.config import FinetuneConfig
from ebr.data.evaluation.leaks import find_leaks, leak_line
from ebr.data.files.write import hash_files
from ebr.data.speech import Ask, Say, silence, speak, terminal
from ebr.retrieval.evaluation.command import dataset_origin
from ebr.training.doctor.diagnosis import said_check, save_check
from ebr.training.manifest import model_manifest, start_facts
from ebr.training.plan import FinetunePlan, begin_or_go_on, load_for_training, mixture_of, needs_of_disk, plan_finetune, settled
from ebr.training.result import FinetuneResult
from ebr.workflow.finishing import TrainedModel

if TYPE_CHECKING:
    from ebr.data.evaluation.leaks import LeakCheck
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.retrieval.evaluation.evaluator import RetrievalEvaluator
    from ebr.training.doctor.report import CheckReport
    from ebr.training.loop.disk import DiskNeeds
    from ebr.training.loop.engine import Mixture
    from ebr.training.resources.processes import Processes


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
        say = silence
    plan, config = _planned(config, processes, say)
    prepared = _prepared(plan, config, processes, say)
    start, model = prepared.start, prepared.start.model
    plan.texts.drop_forms()
    data_sha256 = hash_files(plan.files)
    run = run_record(start, config, data_sha256, processes)
    resume_from = begin_or_go_on(plan, model, run, processes, say)
    if prepared.check:
        save_check(prepared.check, plan.layout.work)
    evaluator = _evaluator(plan, config, say)
    if evaluator and processes.is_main:
        evaluator.begin(model, {"model_sha256": start.sha256}, start.similarity)
    record = fine_tune(
        model,
        plan.train,
        plan.validation,
        config,
        ids=plan.texts.ids,
        work=plan.layout.work,
        record=run,
        resume_from=resume_from,
        evaluate=evaluator,
        processes=processes,
        mixture=prepared.mixture,
        say=say,
    )
    result, failure = FinetuneResult(plan.layout.final, record, None, None), None
    try:
        if processes.is_main:
            manifest = model_manifest(model, config, plan, prepared.facts, data_sha256, record)
            trained = TrainedModel(model, config, plan, record, manifest, prepared.disk.finished)
            name, leaks = str(plan.layout.final), prepared.leaks
            make_report = partial(evaluator.report, model, name, manifest, leaks) if evaluator else None
            result, failure = trained.finish(make_report, ask or terminal(), say)
    finally:
        processes.leave()
    if failure:
        say(f"the model is saved in {result.model_path}, but its report could not be made; ebr evaluate makes one")
        raise failure
    return result


def _planned(config: FinetuneConfig, processes: Processes, say: Say) -> tuple[FinetunePlan, FinetuneConfig]:
    """The plan, said, and the config with every `auto` as the run takes it."""
    plan = plan_finetune(config, processes.count)
    for line in plan.lines():
        say(line)
    return plan, settled(config, plan, processes)


@dataclass(frozen=True)
class _Prepared:
    """A model that is ready to be trained, and what was found out on the way.

    start: what it was before; its model is the one that is trained. facts: see start_facts; empty in the processes that do not
    save the model. check, leaks: None where they were not made.
    """

    start: LoadedModel
    facts: Mapping[str, Any]
    mixture: Mixture | None
    disk: DiskNeeds
    leaks: LeakCheck | None
    check: CheckReport | None


def _prepared(plan: FinetunePlan, config: FinetuneConfig, processes: Processes, say: Say) -> _Prepared:
    """Load the model and make it trainable; check records, options and machine in the first process.

    Raises ConfigError where the result of another would be replaced, and where the disk has no room.
    """
    leaks = find_leaks(plan.records(), plan.dataset, plan.texts) if plan.dataset and processes.is_main else None
    if leaks is not None:
        say(leak_line(leaks, ""))
    start, facts = _made_trainable(plan, config, processes, say)
    mixture = mixture_of(plan, start.model)
    disk = needs_of_disk(plan, start.model, config, processes, mixture)
    check = None
    if processes.is_main:
        check = said_check(plan, start.model, config, processes.count, leaks=leaks, disk=disk, say=say)
        disk.check()
    return _Prepared(start, facts, mixture, disk, leaks, check)


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


def _evaluator(plan: FinetunePlan, config: FinetuneConfig, say: Say) -> RetrievalEvaluator | None:
    """Of the evaluation set, and of the set of forgetting; None where there is nothing to evaluate on."""
    from ebr.retrieval.evaluation.evaluator import RetrievalEvaluator

    given = [(plan.dataset, config.eval_dataset), (plan.forgetting, config.forgetting_dataset)]
    sets = [(dataset, dataset_origin(folder)) for dataset, folder in given if dataset and folder]
    return RetrievalEvaluator(sets, config, say) if plan.dataset else None
