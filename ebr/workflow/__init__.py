"""The verbs. Each takes a config, calls the rooms in order and returns a frozen result.

Heavy rooms are imported inside the verbs: what is only planned, refused or asked for help should answer at once.
"""

from ebr.workflow.check import check_training
from ebr.workflow.evaluation import compare_models, evaluate_retrieval, plan_evaluation
from ebr.workflow.finetuning import relaunch_on_every_gpu, train_sentence_transformer
from ebr.workflow.finishing import FinetuneResult
from ebr.workflow.indexing import build_index, plan_index
from ebr.workflow.inference import InferenceResult, plan_inference, run_batch_inference
from ebr.workflow.merging import MergeResult, merge_adapter, plan_merge
from ebr.workflow.mining import mine_hard_negatives, plan_mining
from ebr.workflow.planning import plan_finetune
from ebr.workflow.ranking import Ranking, rank_texts
from ebr.workflow.sampling import build_sample_corpus, plan_sample
from ebr.workflow.searching import open_index, plan_search, search_index
from ebr.workflow.visualization import VisualizationResult, plan_visualization, visualize_embeddings

__all__ = [
    "FinetuneResult",
    "InferenceResult",
    "MergeResult",
    "Ranking",
    "VisualizationResult",
    "build_index",
    "build_sample_corpus",
    "check_training",
    "compare_models",
    "evaluate_retrieval",
    "merge_adapter",
    "mine_hard_negatives",
    "open_index",
    "plan_evaluation",
    "plan_finetune",
    "plan_index",
    "plan_inference",
    "plan_merge",
    "plan_mining",
    "plan_sample",
    "plan_search",
    "plan_visualization",
    "rank_texts",
    "relaunch_on_every_gpu",
    "run_batch_inference",
    "search_index",
    "train_sentence_transformer",
    "visualize_embeddings",
]
