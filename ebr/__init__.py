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

__version__ = "0.2.0"

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


def _home(name: str) -> str:
    """The module that a public name comes from."""
    if name.endswith("Config"):
        return "ebr.config"
    return "ebr.config.overrides" if name == "notebook_configs" else "ebr.workflow"


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in __all__:
        return getattr(importlib.import_module(_home(name)), name)
    raise AttributeError(f"module 'ebr' has no attribute {name!r}")
