"""The verbs. Each takes a config, calls the rooms in order and returns a frozen result.

Heavy rooms are imported inside the verbs: what is only planned, refused or asked for help should answer at once.
"""

from ebr.data.sample.command import build_sample_corpus, plan_sample
from ebr.inference.command import InferenceResult, plan_inference, run_batch_inference
from ebr.model.command import MergeResult, merge_adapter, plan_merge
from ebr.retrieval.evaluation.command import compare_models, evaluate_retrieval, plan_evaluation
from ebr.retrieval.index.command import build_index, plan_index
from ebr.retrieval.index.search import open_index, plan_search, search_index
from ebr.retrieval.mining.command import mine_hard_negatives, plan_mining
from ebr.retrieval.ranking import Ranking, rank_texts
from ebr.training.doctor.command import check_training
from ebr.training.plan import plan_finetune
from ebr.visualization.command import VisualizationResult, plan_visualization, visualize_embeddings
from ebr.workflow.finetuning import relaunch_on_every_gpu, train_sentence_transformer
from ebr.workflow.finishing import FinetuneResult

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
