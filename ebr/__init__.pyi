# Made by ebr.pages from the list of verbs.

from ebr.config.evaluation import EvaluationConfig as EvaluationConfig
from ebr.config.finetune import FinetuneConfig as FinetuneConfig
from ebr.config.index import IndexConfig as IndexConfig
from ebr.config.index import SearchConfig as SearchConfig
from ebr.config.inference import InferenceConfig as InferenceConfig
from ebr.config.mining import MiningConfig as MiningConfig
from ebr.config.models.adapt import AdaptConfig as AdaptConfig
from ebr.config.models.extend import ExtendConfig as ExtendConfig
from ebr.config.models.merge import MergeConfig as MergeConfig
from ebr.config.models.tune import TuneConfig as TuneConfig
from ebr.config.pairs import PairsConfig as PairsConfig
from ebr.config.sample import SampleConfig as SampleConfig
from ebr.config.train import TrainConfig as TrainConfig
from ebr.config.visualization import VisualizationConfig as VisualizationConfig
from ebr.data.pairs.command import make_pairs as make_pairs
from ebr.data.sample.command import build_sample_corpus as build_sample_corpus
from ebr.inference.command import run_batch_inference as run_batch_inference
from ebr.model.merge_plan import plan_merge as plan_merge
from ebr.model.vocabulary.command import extend_vocabulary as extend_vocabulary
from ebr.notebook import notebook_configs as notebook_configs
from ebr.retrieval.evaluation.command import compare_models as compare_models
from ebr.retrieval.evaluation.command import evaluate_retrieval as evaluate_retrieval
from ebr.retrieval.index.command import build_index as build_index
from ebr.retrieval.index.search import search_index as search_index
from ebr.retrieval.index.text_index import open_index as open_index
from ebr.retrieval.mining.command import mine_hard_negatives as mine_hard_negatives
from ebr.retrieval.ranking import rank_texts as rank_texts
from ebr.training.doctor.command import check_training as check_training
from ebr.visualization.command import visualize_embeddings as visualize_embeddings
from ebr.workflow.adapting import adapt_queries as adapt_queries
from ebr.workflow.finetuning import train_sentence_transformer as train_sentence_transformer
from ebr.workflow.merging import merge_adapter as merge_adapter
from ebr.workflow.tune.command import tune_model as tune_model

__version__: str
