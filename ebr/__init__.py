"""EBR: embedding-based retrieval, tuned on your own data.

Public names load on first use, so that `import ebr` costs nothing and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebr.config import FinetuneConfig, InferenceConfig, MergeConfig, SampleConfig, TrainConfig, VisualizationConfig
    from ebr.config.overrides import notebook_configs
    from ebr.workflow import (
        build_sample_corpus,
        compare_models,
        merge_adapter,
        plan_merge,
        rank_texts,
        run_batch_inference,
        train_sentence_transformer,
        visualize_embeddings,
    )

__version__ = "0.1.0"

__all__ = [
    "FinetuneConfig",
    "InferenceConfig",
    "MergeConfig",
    "SampleConfig",
    "TrainConfig",
    "VisualizationConfig",
    "build_sample_corpus",
    "compare_models",
    "merge_adapter",
    "notebook_configs",
    "plan_merge",
    "rank_texts",
    "run_batch_inference",
    "train_sentence_transformer",
    "visualize_embeddings",
]

_HOMES = {
    "ebr.config": {"FinetuneConfig", "InferenceConfig", "MergeConfig", "SampleConfig", "TrainConfig", "VisualizationConfig"},
    "ebr.config.overrides": {"notebook_configs"},
    "ebr.workflow": {
        "build_sample_corpus",
        "compare_models",
        "merge_adapter",
        "plan_merge",
        "rank_texts",
        "run_batch_inference",
        "train_sentence_transformer",
        "visualize_embeddings",
    },
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'ebr' has no attribute {name!r}")
