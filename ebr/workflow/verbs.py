"""Every verb, once: the command line, the notebook, the documentation and the face of the package read this list."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ebr.config import (
    AdaptConfig,
    Config,
    EvaluationConfig,
    ExtendConfig,
    FinetuneConfig,
    IndexConfig,
    InferenceConfig,
    MergeConfig,
    MiningConfig,
    PairsConfig,
    SampleConfig,
    SearchConfig,
    TrainConfig,
    TuneConfig,
    VisualizationConfig,
)

Function = Callable[..., Any]


@dataclass(frozen=True)
class Verb:
    """One command: its options, the function that runs it, and the one that only plans it.

    Functions are named by where they stand, 'ebr.room.module.function', and loaded when they are called: what is only asked for
    help should answer at once.
    """

    name: str
    config: type[Config]
    run: str
    plan: str
    check: str | None = None
    """The function that only looks at what would be run; None = there is none."""
    in_notebook: str | None = None
    """What the notebook calls its config; None = it has no cell."""
    about: str | None = None
    """What it does, in one line; None = as its options say."""
    positional: str | None = None
    """The option that is also understood without its flag."""
    on_every_gpu: str | None = None
    """The function that starts it anew with one process a GPU where there are several; None = one process is all it takes."""
    ends_with_reader: bool = False
    """Whether what it says is its result, so that it ends when nobody reads that any more; others finish their work."""

    def summary(self) -> str:
        """What it does, in one line."""
        return self.about or (self.config.__doc__ or "").split("\n", 1)[0]


_FINETUNE = "ebr.workflow.finetuning.train_sentence_transformer"
_PLAN_FINETUNE = "ebr.training.plan.plan_finetune"
_RELAUNCH = "ebr.training.resources.processes.relaunch_on_every_gpu"
_CHECK = "ebr.training.doctor.command.check_training"
_LOOK = "Look at training data, options and machine before a fine-tuning, and train nothing; options are those of finetune."

_VERBS = (
    Verb("sample", SampleConfig, "ebr.data.sample.command.build_sample_corpus", "ebr.data.sample.command.plan_sample"),
    Verb("pairs", PairsConfig, "ebr.data.pairs.command.make_pairs", "ebr.data.pairs.command.plan_pairs"),
    Verb(
        "extend",
        ExtendConfig,
        "ebr.model.vocabulary.command.extend_vocabulary",
        "ebr.model.vocabulary.command.plan_extend",
    ),
    Verb("check", FinetuneConfig, _CHECK, _PLAN_FINETUNE, about=_LOOK),
    Verb("finetune", FinetuneConfig, _FINETUNE, _PLAN_FINETUNE, _CHECK, "FINETUNE_CONFIG", on_every_gpu=_RELAUNCH),
    Verb("train", TrainConfig, _FINETUNE, _PLAN_FINETUNE, _CHECK, on_every_gpu=_RELAUNCH),
    Verb("merge", MergeConfig, "ebr.workflow.merging.merge_adapter", "ebr.model.merge_plan.plan_merge"),
    Verb(
        "tune",
        TuneConfig,
        "ebr.workflow.tune.command.tune_model",
        "ebr.workflow.tune.plan.plan_tune",
        in_notebook="TUNE_CONFIG",
    ),
    Verb("adapt", AdaptConfig, "ebr.workflow.adapting.adapt_queries", "ebr.training.query_map.plan.plan_adapt"),
    Verb(
        "infer",
        InferenceConfig,
        "ebr.inference.command.run_batch_inference",
        "ebr.inference.command.plan_inference",
        in_notebook="INFERENCE_CONFIG",
    ),
    Verb(
        "visualize",
        VisualizationConfig,
        "ebr.visualization.command.visualize_embeddings",
        "ebr.visualization.command.plan_visualization",
        in_notebook="VIS_CONFIG",
    ),
    Verb(
        "evaluate",
        EvaluationConfig,
        "ebr.retrieval.evaluation.command.evaluate_retrieval",
        "ebr.retrieval.evaluation.command.plan_evaluation",
        in_notebook="EVAL_CONFIG",
    ),
    Verb(
        "index",
        IndexConfig,
        "ebr.retrieval.index.command.build_index",
        "ebr.retrieval.index.command.plan_index",
        in_notebook="INDEX_CONFIG",
    ),
    Verb(
        "search",
        SearchConfig,
        "ebr.retrieval.index.search.search_index",
        "ebr.retrieval.index.search.plan_search",
        in_notebook="SEARCH_CONFIG",
        positional="query",
        ends_with_reader=True,
    ),
    Verb(
        "mine",
        MiningConfig,
        "ebr.retrieval.mining.command.mine_hard_negatives",
        "ebr.retrieval.mining.command.plan_mining",
        in_notebook="MINING_CONFIG",
    ),
)

VERBS = {verb.name: verb for verb in _VERBS}
"""By the name of the command, in the order of `ebr --help`."""

MORE_FUNCTIONS = (
    "ebr.model.merge_plan.plan_merge",
    "ebr.retrieval.evaluation.command.compare_models",
    "ebr.retrieval.index.text_index.open_index",
    "ebr.retrieval.ranking.rank_texts",
    "ebr.notebook.notebook_configs",
)
"""What is public beside the verbs."""


def public_functions() -> dict[str, str]:
    """Where each public function stands, by its name, in alphabetical order."""
    paths = {*(verb.run for verb in _VERBS), *MORE_FUNCTIONS}
    return {path.rpartition(".")[2]: path for path in sorted(paths, key=lambda path: path.rpartition(".")[2])}


def public_configs() -> dict[str, str]:
    """The same of the configs."""
    classes = {verb.config.__name__: verb.config for verb in _VERBS}
    return {name: f"{classes[name].__module__}.{name}" for name in sorted(classes)}


def load(path: str) -> Any:  # noqa: ANN401
    """What stands at 'ebr.room.module.name'."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
