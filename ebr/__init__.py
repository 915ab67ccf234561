"""EBR: embedding-based retrieval, tuned on your own data.

Public names load on first use, so that `import ebr` costs nothing and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebr.config import (
        EvaluationConfig,
        FinetuneConfig,
        IndexConfig,
        InferenceConfig,
        MergeConfig,
        MiningConfig,
        SampleConfig,
        SearchConfig,
        TrainConfig,
        VisualizationConfig,
    )
    from ebr.config.overrides import notebook_configs
    from ebr.workflow import (
        build_index,
        build_sample_corpus,
        check_training,
        compare_models,
        evaluate_retrieval,
        merge_adapter,
        mine_hard_negatives,
        open_index,
        plan_merge,
        rank_texts,
        run_batch_inference,
        search_index,
        train_sentence_transformer,
        visualize_embeddings,
    )

__version__ = "0.1.0"

__all__ = [
    "EvaluationConfig",
    "FinetuneConfig",
    "IndexConfig",
    "InferenceConfig",
    "MergeConfig",
    "MiningConfig",
    "SampleConfig",
    "SearchConfig",
    "TrainConfig",
    "VisualizationConfig",
    "build_index",
    "build_sample_corpus",
    "check_training",
    "compare_models",
    "evaluate_retrieval",
    "merge_adapter",
    "mine_hard_negatives",
    "notebook_configs",
    "open_index",
    "plan_merge",
    "rank_texts",
    "run_batch_inference",
    "search_index",
    "train_sentence_transformer",
    "visualize_embeddings",
]

_HOMES = {
    "ebr.config": {
        "EvaluationConfig",
        "FinetuneConfig",
        "IndexConfig",
        "InferenceConfig",
        "MergeConfig",
        "MiningConfig",
        "SampleConfig",
        "SearchConfig",
        "TrainConfig",
        "VisualizationConfig",
    },
    "ebr.config.overrides": {"notebook_configs"},
    "ebr.workflow": {
        "build_index",
        "build_sample_corpus",
        "check_training",
        "compare_models",
        "evaluate_retrieval",
        "merge_adapter",
        "mine_hard_negatives",
        "open_index",
        "plan_merge",
        "rank_texts",
        "run_batch_inference",
        "search_index",
        "train_sentence_transformer",
        "visualize_embeddings",
    },
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'ebr' has no attribute {name!r}")
