"""What a run is about to do, judged before it starts: every figure counted or measured once, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ebr.config import FinetuneConfig
from ebr.config.shared.objective import reads_same_answer
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.evaluation.leaks import find_leaks
from ebr.data.files.write import write_aside, write_json
from ebr.data.speech import Say
from ebr.data.text.counted import counted
from ebr.data.training.answers import ChainFigures, count_chains
from ebr.data.training.duplicates import find_faults, find_near_duplicates, share_without_negatives
from ebr.data.training.examples import Example
from ebr.data.training.text_table import TextTable
from ebr.errors import first_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ebr.data.evaluation.leaks import LeakCheck
    from ebr.training.doctor.data_checks import RecordFigures
    from ebr.training.doctor.report import CheckReport, Fact
    from ebr.training.doctor.run_checks import RunFigures
    from ebr.training.doctor.text_figures import Lengths, TextFigures
    from ebr.training.loop.disk import DiskNeeds
    from ebr.training.resources.cost import Cost

# The check draws for itself: what the run draws does not depend on it.
_STREAM = 6


class Material(Protocol):
    """What a run would train on: a FinetunePlan, or what stands for one."""

    @property
    def train(self) -> Sequence[Example]:
        """The records of the training split."""
        ...

    @property
    def validation(self) -> Sequence[Example]:
        """The records held out."""
        ...

    @property
    def texts(self) -> TextTable:
        """Which texts of the records are the same."""
        ...

    @property
    def dataset(self) -> EvaluationSet | None:
        """The evaluation set, where there is one."""
        ...

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the run."""
        ...


def diagnose(
    plan: Material,
    model: SentenceTransformer,
    config: FinetuneConfig,
    n_processes: int = 1,
    *,
    leaks: LeakCheck | None = None,
    room: int | None = None,
    disk: DiskNeeds | None = None,
) -> CheckReport:
    """Check what a run is about to do. model: prepared, as it will be trained; it and every random state stay as they are.

    leaks: of the plan's records and evaluation set where they are counted already. room: free bytes of memory; None = as the
    system says. disk: what the run will write; None = nothing is said of it.
    """
    from ebr.training.doctor.data_checks import judge_records
    from ebr.training.doctor.report import CheckReport
    from ebr.training.doctor.run_checks import RunFigures, judge_cost, judge_disk, judge_options, judge_texts
    from ebr.training.doctor.text_figures import measure_texts, sample_records
    from ebr.training.loop.engine import made_fast
    from ebr.training.resources.cost import estimate_cost, token_budget_of

    if leaks is None and plan.dataset is not None:
        leaks = find_leaks([*plan.train, *plan.validation], plan.dataset, plan.texts)
    counted = _count(plan, config, n_processes, leaks)
    run = RunFigures.of(len(plan.train), plan.n_steps, config, n_processes)
    findings = [*judge_records(counted, plan.train, config), *judge_options(run, config)]
    facts = _plan_facts(plan, run, leaks)
    if reads_same_answer(config):
        facts.append(_chains_fact(counted.chains, config))
    if disk is not None:
        findings += judge_disk(disk, config)
    sample = sample_records(plan.train, config.neg_nums, _rng(config))
    texts = measure_texts(model, sample, batch_size=config.train_batch_size, token_budget=token_budget_of(model, config))
    if texts is not None:
        with made_fast(model, config):  # as the run computes
            cost = estimate_cost(model, sample.passages, run.workload(texts, config), config, room=room)
        findings += [*judge_texts(texts, config), *judge_cost(cost, model, config)]
        facts += [*_text_facts(texts), *(_cost_facts(cost, run, config) if cost else [])]
    if disk is not None:
        facts.append(_disk_fact(disk))
    return CheckReport.of(findings, facts)


def said_check(
    plan: Material,
    model: SentenceTransformer,
    config: FinetuneConfig,
    n_processes: int,
    *,
    leaks: LeakCheck | None,
    disk: DiskNeeds,
    say: Say,
) -> CheckReport | None:
    """diagnose, said before a run; None where it cannot be made, which ends no run."""
    try:
        check = diagnose(plan, model, config, n_processes, leaks=leaks, disk=disk)
    except Exception as error:  # a model of another make, whatever it raises
        say(f"training check: could not be made ({first_line(error)}); the run goes on")
        return None
    for line in check.lines():
        say(line)
    return check


def save_check(report: CheckReport, folder: Path) -> Path:
    """Write training_check.json and training_check.txt; returns the path of the text."""
    from ebr.training.loop.layouts import CHECK, CHECK_PAGE

    write_json(folder / CHECK, report.to_json())
    text = folder / CHECK_PAGE
    with write_aside(text) as aside:
        aside.write_text("\n".join(report.lines()) + "\n", encoding="utf-8")
    return text


def _rng(config: FinetuneConfig) -> np.random.Generator:
    return np.random.default_rng([config.seed, _STREAM])


def _count(plan: Material, config: FinetuneConfig, n_processes: int, leaks: LeakCheck | None) -> RecordFigures:
    from ebr.training.doctor.data_checks import RecordFigures

    train, rng = plan.texts.records(plan.train), _rng(config)
    in_sight = config.train_batch_size * (n_processes if config.gather_negatives else 1)
    # Of all records, as the run's collator knows them.
    chains = count_chains([*train, *plan.texts.records(plan.validation)], in_sight)
    return RecordFigures(
        faults=find_faults(train),
        near=find_near_duplicates(train, plan.texts, rng),
        chains=chains,
        idle=share_without_negatives(train, in_sight, config.neg_nums, rng, chains.answer(config.same_answer)),
        leaks=leaks,
    )


# ---------------------------------------------------------------- figures for people


def _plan_facts(plan: Material, run: RunFigures, leaks: LeakCheck | None) -> list[Fact]:
    from ebr.training.doctor.report import Fact

    n_train, n_held = len(plan.train), len(plan.validation)
    n_texts = sum(1 for example in plan.train for _ in example.texts())
    facts = [
        Fact(
            "records",
            {"train": n_train, "validation": n_held, "texts": n_texts},
            f"{n_train:,} to train on ({counted(n_texts, 'text')}), {n_held:,} held out for the validation loss",
        ),
        Fact(
            "steps",
            {"steps": run.n_steps, "warm_up": run.warm_up, "processes": run.n_processes},
            f"{counted(run.n_steps, 'optimiser step')}, {run.warm_up:,} of them warm-up",
        ),
    ]
    if leaks is not None:
        seen = {"queries": leaks.n_queries, "seen": leaks.queries, "nearly": leaks.near_queries}
        text = f"{leaks.n_queries:,} queries, {leaks.queries:,} of them in the training records, {leaks.near_queries:,} nearly"
        facts.append(Fact("evaluation", seen, text))
    return facts


def _chains_fact(chains: ChainFigures, config: FinetuneConfig) -> Fact:
    from ebr.training.doctor.data_checks import percent
    from ebr.training.doctor.report import Fact

    answer = chains.answer(config.same_answer)
    values = {"count": chains.n_chains, "largest": chains.largest, "meeting": round(chains.meeting, 4), "same_answer": answer}
    text = (
        f"{counted(chains.n_chains, 'chain')} of queries and positives, {counted(chains.largest, 'text')} in the largest; "
        f"{percent(chains.meeting)} of the queries meet another record of theirs in a batch; same answer: by {answer}"
    )
    return Fact("chains", values, text)


def _text_facts(texts: TextFigures) -> list[Fact]:
    from ebr.training.doctor.data_checks import percent
    from ebr.training.doctor.report import Fact

    n_unknown = sum(texts.unknown.values())
    padding = {"stock": round(texts.padding_stock, 4), "ours": round(texts.padding_ours, 4)}
    return [
        _length_fact("queries", texts.queries),
        _length_fact("passages", texts.passages),
        Fact(
            "unknown",
            round(n_unknown / max(1, texts.n_tokens), 5),
            f"{percent(n_unknown / max(1, texts.n_tokens))} of the tokens",
        ),
        Fact(
            "padding",
            padding,
            f"{percent(texts.padding_ours)} of the tokens computed; {percent(texts.padding_stock)} in stock's columns",
        ),
    ]


def _length_fact(name: str, lengths: Lengths) -> Fact:
    from ebr.training.doctor.data_checks import percent
    from ebr.training.doctor.report import Fact

    if not len(lengths.tokens):
        return Fact(name, {}, "none")
    median, most = lengths.cutting(0.5), lengths.cutting(0.0)
    at_1 = lengths.cutting(0.01)
    values = {
        "median": median,
        "cuts_1_percent": at_1,
        "longest": most,
        "limit": lengths.limit,
        "cut": round(lengths.share_cut, 4),
        "sampled": len(lengths.tokens),
    }
    text = f"median {median}, longest {most} tokens; {lengths.limit} cut {percent(lengths.share_cut)}, {at_1} would cut 1 %"
    return Fact(name, values, f"{text} ({len(lengths.tokens):,} looked at)")


def _cost_facts(cost: Cost, run: RunFigures, config: FinetuneConfig) -> list[Fact]:
    from ebr.training.doctor.report import Fact
    from ebr.training.resources.cost import duration_text, size_text

    batch = cost.batch * cost.a_token
    fits = "more than is kept at once, so micro-batches are computed twice" if cost.is_computed_twice else "kept at once"
    memory = {
        "weights": cost.weights,
        "trained": cost.trained,
        "activations_a_token": round(cost.a_token),
        "activations_a_batch": round(batch),
        "least": round(cost.least),
        "free": cost.room,
    }
    return [
        Fact(
            "time",
            {"seconds": round(cost.duration_s, 1), "tokens": cost.tokens},
            f"about {duration_text(cost.duration_s)} on this machine, without evaluations ({cost.tokens:,} tokens)",
        ),
        Fact(
            "memory",
            memory,
            f"weights {size_text(cost.weights)}; beside them {size_text(cost.trained)} for gradients and optimiser, "
            f"{size_text(cost.longest * cost.a_token)} for the longest text; {size_text(cost.room)} free",
        ),
        Fact(
            "batch",
            {"records": config.train_batch_size, "tokens": cost.batch, "computed_twice": cost.is_computed_twice},
            f"{config.train_batch_size:,} records, about {cost.batch:,} tokens: {size_text(batch)} of activations, {fits}",
        ),
    ]


def _disk_fact(disk: DiskNeeds) -> Fact:
    from ebr.training.doctor.report import Fact
    from ebr.training.resources.cost import size_text

    values = {
        "checkpoints": disk.checkpoints.count,
        "checkpoint": disk.checkpoint,
        "finished": disk.finished,
        "most": disk.most,
        "free": disk.free,
    }
    free = "free space not known" if disk.free is None else f"{size_text(disk.free)} free"
    return Fact(
        "disk",
        values,
        f"{counted(disk.checkpoints.count, 'checkpoint')} of {size_text(disk.checkpoint)} each, {size_text(disk.finished)} for "
        f"the finished model; {free}",
    )
