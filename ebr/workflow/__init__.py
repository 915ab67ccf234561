"""The verbs. Each takes a config, calls the rooms in order and returns a frozen result.

Heavy rooms are imported inside the verbs: what is only planned, refused or asked for help should answer at once.
"""

from ebr.workflow.finetuning import FinetuneResult, plan_finetune, train_sentence_transformer
from ebr.workflow.inference import InferenceResult, plan_inference, run_batch_inference
from ebr.workflow.sampling import build_sample_corpus, plan_sample
from ebr.workflow.visualization import VisualizationResult, plan_visualization, visualize_embeddings

__all__ = [
    "FinetuneResult",
    "InferenceResult",
    "VisualizationResult",
    "build_sample_corpus",
    "plan_finetune",
    "plan_inference",
    "plan_sample",
    "plan_visualization",
    "run_batch_inference",
    "train_sentence_transformer",
    "visualize_embeddings",
]
