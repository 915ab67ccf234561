"""Every option of EBR, defined once."""

from ebr.config.finetune import FinetuneConfig
from ebr.config.inference import InferenceConfig
from ebr.config.merge import MergeConfig
from ebr.config.options import Config
from ebr.config.sample import SampleConfig
from ebr.config.train import TrainConfig
from ebr.config.visualization import VisualizationConfig

__all__ = ["Config", "FinetuneConfig", "InferenceConfig", "MergeConfig", "SampleConfig", "TrainConfig", "VisualizationConfig"]
