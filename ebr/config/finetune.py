"""Options of fine-tuning."""

from __future__ import annotations

from ebr.config.shared.compute import EngineOptions
from ebr.config.shared.objective import ObjectiveOptions, check_objective
from ebr.config.shared.sources import SourceOptions
from ebr.config.shared.tuning import (
    AdapterOptions,
    JudgingOptions,
    ModelOptions,
    NoiseOptions,
    OptimiserOptions,
    SavingOptions,
    TuningOptions,
)
from ebr.errors import ConfigError


# Fields come in the order of the classes from the last to the first.
class FinetuneConfig(
    NoiseOptions,
    SavingOptions,
    JudgingOptions,
    EngineOptions,
    OptimiserOptions,
    ObjectiveOptions,
    AdapterOptions,
    ModelOptions,
    SourceOptions,
    TuningOptions,
):
    """Fine-tune an embedding model from pairs of texts that belong together."""

    def check(self) -> None:
        """Refuse options that contradict each other. Raises ConfigError."""
        if self.early_stopping_patience and not self.validation_split and not self.eval_dataset:
            raise ConfigError(
                "early_stopping_patience: needs something to judge by; set validation_split above 0 or give an eval_dataset"
            )
        if self.forgetting_dataset and not self.eval_dataset:
            raise ConfigError("forgetting_dataset: stands in the report on an eval_dataset; give one, or this as eval_dataset")
        length = self.max_seq_length != type(self).model_fields["max_seq_length"].default
        if length and self.query_max_len and self.passage_max_len:
            raise ConfigError(
                "max_seq_length: query_max_len and passage_max_len leave no text to it; set them, or one of them to none"
            )
        self._refuse_idle_options()
        self.check_sources()
        check_objective(self)
        if self.fp16 and self.bf16 is True:
            raise ConfigError("fp16, bf16: choose one of the two")
        wrong = sorted(set(self.noise_apply_to_fields) - {"anchor", "positive", "negative"})
        if wrong:
            raise ConfigError(f"noise_apply_to_fields: {', '.join(wrong)} unknown; use anchor, positive, negative")

    def _refuse_idle_options(self) -> None:
        """An option that the way of tuning never reads was meant to do something."""
        idle = {"quantization_bits"} if self.finetune_type != "qlora" else set()
        if self.finetune_type == "full":
            idle |= {"lora_r", "lora_alpha", "lora_dropout", "target_modules"}
        for name in sorted(idle):
            if self[name] != type(self).model_fields[name].default:
                raise ConfigError(f"{name}: has no meaning with finetune_type {self.finetune_type}; leave one of the two out")
