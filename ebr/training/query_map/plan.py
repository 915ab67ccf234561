"""What a map of queries would be learned from and where the model would go, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ebr.config import AdaptConfig
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.files.places import check_place
from ebr.data.text.counted import counted
from ebr.data.training.answers import SameAnswer, count_chains
from ebr.data.training.examples import Example, find_training_files, read_examples
from ebr.data.training.split import split_validation
from ebr.data.training.text_table import TextTable
from ebr.errors import DataError, ModelError
from ebr.model.output import check_output

if TYPE_CHECKING:
    from ebr.model.origin import ModelOrigin

_FEW_HELD_OUT = 30


@dataclass(frozen=True)
class AdaptPlan:
    """The base, the records that its queries would learn from, those that choose among maps, and where the model would go."""

    config: AdaptConfig
    base: ModelOrigin
    files: tuple[Path, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    texts: TextTable
    """Which texts of the records are the same."""
    same_answer: SameAnswer
    output: Path
    dataset: EvaluationSet | None = None

    @property
    def records(self) -> tuple[Example, ...]:
        """All of them, those that are trained on first."""
        return (*self.train, *self.held_out)

    def lines(self) -> list[str]:
        """The plan, for people."""
        lines = [
            f"base    {self.config.model_name}",
            f"records {len(self.train):,} to learn from, {len(self.held_out):,} held out; same answer: {self.same_answer}",
        ]
        if len(self.held_out) < _FEW_HELD_OUT:
            lines.append(f"warning: {counted(len(self.held_out), 'record')} held out can hardly tell a good map from luck")
        if self.dataset:
            queries, documents = len(self.dataset.queries), len(self.dataset.documents)
            sizes = f"{counted(queries, 'query', 'queries')}, {counted(documents, 'document')}"
            lines.append(f"measure {self.dataset.name}: {sizes}")
            lines += [f"note: {self.dataset.name}: {text}" for text in self.dataset.notes()]
        return [*lines, f"output  {self.output}"]


def plan_adapt(config: AdaptConfig) -> AdaptPlan:
    """Read and split the records, find the base, and load nothing. Raises EBRError subclasses that say what to mend."""
    from ebr.model.origin import is_adapter, resolve_model

    config.check()
    base = resolve_model(config.model_name)
    if is_adapter(base):
        raise ModelError(
            f"model_name {config.model_name}: is an adapter; merge it first (ebr merge), and give the merged model"
        )
    output = check_place(config.output_path.expanduser(), is_folder=True).resolve()
    check_output(output, [("model_name", base.folder)] if base.folder else [], mark="query_map", work="adaptation")
    files = find_training_files(config.data_path)
    examples = read_examples(files)
    if len(examples) < 2:
        raise DataError(f"data_path {config.data_path}: one record teaches nothing; give more")
    texts = TextTable.of(examples)
    train, held_out = split_validation(examples, config.validation_split, np.random.default_rng(config.seed), texts)
    same_answer = count_chains(texts.records(examples), config.train_batch_size).answer(config.same_answer)
    dataset = read_evaluation_set(config.eval_dataset) if config.eval_dataset else None
    return AdaptPlan(config, base, tuple(files), tuple(train), tuple(held_out), texts, same_answer, output, dataset)
