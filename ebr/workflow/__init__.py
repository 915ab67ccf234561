"""The verbs. Each takes a config, calls the rooms in order and returns a frozen result.

Heavy rooms are imported inside the verbs: what is only planned, refused or asked for help should answer at once.
"""

from ebr.workflow.evaluation import Ranking, compare_models, rank_texts
from ebr.workflow.finetuning import FinetuneResult, relaunch_on_every_gpu, train_sentence_transformer
from ebr.workflow.inference import InferenceResult, plan_inference, run_batch_inference
from ebr.workflow.merging import MergeResult, merge_adapter, plan_merge
from ebr.workflow.planning import plan_finetune
from ebr.workflow.sampling import build_sample_corpus, plan_sample
from ebr.workflow.visualization import VisualizationResult, plan_visualization, visualize_embeddings

__all__ = [
    "FinetuneResult",
    "InferenceResult",
    "MergeResult",
    "Ranking",
    "VisualizationResult",
    "build_sample_corpus",
    "compare_models",
    "merge_adapter",
    "plan_finetune",
    "plan_inference",
    "plan_merge",
    "plan_sample",
    "plan_visualization",
    "rank_texts",
    "relaunch_on_every_gpu",
    "run_batch_inference",
    "train_sentence_transformer",
    "visualize_embeddings",
]
