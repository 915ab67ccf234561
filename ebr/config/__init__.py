"""Every option of EBR, defined once."""

from ebr.config.evaluation import EvaluationConfig
from ebr.config.finetune import FinetuneConfig
from ebr.config.index import IndexConfig, SearchConfig
from ebr.config.inference import InferenceConfig
from ebr.config.mining import MiningConfig
from ebr.config.models.adapt import AdaptConfig
from ebr.config.models.extend import ExtendConfig
from ebr.config.models.merge import MergeConfig
from ebr.config.models.tune import TuneConfig
from ebr.config.options import Config
from ebr.config.pairs import PairsConfig
from ebr.config.sample import SampleConfig
from ebr.config.train import TrainConfig
from ebr.config.visualization import VisualizationConfig

__all__ = [
    "AdaptConfig",
    "Config",
    "EvaluationConfig",
    "ExtendConfig",
    "FinetuneConfig",
    "IndexConfig",
    "InferenceConfig",
    "MergeConfig",
    "MiningConfig",
    "PairsConfig",
    "SampleConfig",
    "SearchConfig",
    "TrainConfig",
    "TuneConfig",
    "VisualizationConfig",
]
