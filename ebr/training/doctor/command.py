"""The check before training: the records, the texts, the options and the machine looked at, and nothing trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ebr.config import FinetuneConfig
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.speech import Say, speak
from ebr.data.training.examples import Example
from ebr.data.training.sources import after_split, source_of
from ebr.data.training.split import split_validation
from ebr.data.training.text_table import TextTable
from ebr.errors import DataError
from ebr.training.doctor.diagnosis import diagnose, save_check
from ebr.training.plan import layout_of, load_for_training, plan_warnings, read_records, rows_of_each

if TYPE_CHECKING:
    from ebr.training.doctor.report import CheckReport, Finding


@dataclass(frozen=True)
class _Material:
    """What a run would train on, whatever front end it comes from."""

    train: list[Example]
    validation: list[Example]
    texts: TextTable
    dataset: EvaluationSet | None
    n_steps: int


def check_training(config: FinetuneConfig, *, say: Say = speak) -> CheckReport:
    """Check a run without starting it, and save what was found, one page, in the run's folder: summary() is that page.

    Loads the model, and trains nothing.
    Raises EBRError subclasses for what no run could begin with: files that cannot be read, options that contradict each other.
    """
    from ebr.training.doctor.report import CheckReport
    from ebr.training.loop.arguments import count_steps
    from ebr.training.loop.disk import disk_needs
    from ebr.training.loop.fit import check_machine, prepare_model

    config.check()
    _, examples, sources = read_records(config)
    texts = TextTable.of(examples)
    train, validation, more = _split(examples, texts, config)
    more += _loss_findings(train, validation, texts, config)
    dataset = read_evaluation_set(config.eval_dataset) if config.eval_dataset else None
    if config.forgetting_dataset:
        read_evaluation_set(config.forgetting_dataset)
    check_machine(config)
    layout = layout_of(config)
    layout.check()
    loaded = load_for_training(config)
    model = loaded.model
    layout.check_base(config.model_name, loaded.sha256, is_adapter=config.finetune_type != "full")
    prepare_model(model, config)
    of_train = after_split(examples, source_of(sources), validation, texts)[0] if sources else []
    of_each = rows_of_each(sources, of_train)
    for text in plan_warnings(examples, train, validation, texts, config, 1, sources, of_each):
        say(f"warning: {text}")
    n_steps = count_steps(len(train), config, of_each=of_each)
    material = _Material(train, validation, texts, dataset, n_steps)
    disk = disk_needs(model, config, layout, n_train=len(train), n_steps=n_steps, of_each=of_each)
    report = diagnose(material, model, config, disk=disk)
    report = CheckReport.of([*more, *report.findings], report.facts)
    say(f"saved in {save_check(report, layout.work)}")
    return report


def _split(
    examples: list[Example], texts: TextTable, config: FinetuneConfig
) -> tuple[list[Example], list[Example], list[Finding]]:
    """The split as a run makes it; a set that cannot be split is one more finding here."""
    from ebr.training.doctor.report import Finding, Severity

    try:
        return *split_validation(examples, config.validation_split, np.random.default_rng(config.seed), texts), []
    except DataError as error:
        why = "a run would not begin: the validation loss must not be of texts that are trained on"
        advice = f"{config.spelling('validation_split')} 0, or add unrelated records"
        return examples, [], [Finding("no-validation-split", Severity.CRITICAL, str(error), why, advice)]


def _loss_findings(
    train: Sequence[Example], validation: Sequence[Example], texts: TextTable, config: FinetuneConfig
) -> list[Finding]:
    """Records that cannot teach what the chosen loss asks: a finding here, where a run would end."""
    from ebr.training.doctor.report import Finding, Severity
    from ebr.training.loss.objectives import check_data

    weight = config.contrastive_weight
    try:
        check_data(train, validation, texts, loss=config.loss, neg_nums=config.neg_nums, contrastive_weight=weight)
    except DataError as error:
        why = "a run would not begin: the loss would have nothing to compare"
        advice = f"{config.spelling('loss')} info_nce, which needs neither negatives nor scores"
        return [Finding("loss-lacks-data", Severity.CRITICAL, str(error).splitlines()[0], why, advice)]
    return []
