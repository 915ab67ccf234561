"""What a run will write, and whether its disk has room: reckoned on the prepared model before a step is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer

from ebr.config import FinetuneConfig
from ebr.data.files.write import free_bytes
from ebr.errors import ConfigError
from ebr.model.adapters.attach import TOKEN_ROWS
from ebr.training.loop.arguments import steps_per_epoch
from ebr.training.loop.layouts import Layout
from ebr.training.resources.cost import ADAM_BYTES, size_text


@dataclass(frozen=True)
class Checkpoints:
    """How many stand at once: of those of steps, while another is written before the oldest goes, and of those of epochs."""

    of_steps: int
    one_more: bool
    of_epochs: int

    @classmethod
    def of(cls, config: FinetuneConfig, n_steps: int, steps_an_epoch: int) -> Checkpoints:
        """Those of a run of so many steps."""
        every = config.eval_steps if config.early_stopping_patience else config.save_steps
        written = math.ceil(n_steps / every) if every else 0
        kept = config.save_total_limit + (config.early_stopping_patience > 0)  # the best one may be older than the newest
        epochs = n_steps // steps_an_epoch // config.save_on_epoch_end if config.save_on_epoch_end else 0
        return cls(min(written, kept), written > kept, epochs)

    @property
    def count(self) -> int:
        """Of both kinds, at the end."""
        return self.of_steps + self.of_epochs


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes that a run writes, and that are free for it.

    folder: where. finished: of the finished model, which is whole before the former one goes. checkpoint: of one. free: of the
    folder's file system, with what the run deletes at its beginning or has written already; None where it does not say.
    """

    folder: Path
    finished: int
    checkpoint: int
    checkpoints: Checkpoints
    free: int | None

    @property
    def most(self) -> int:
        """Bytes at the fullest moment: while one checkpoint more is written, or the finished model."""
        one_more = self.checkpoint if self.checkpoints.one_more else 0
        return self.checkpoint * self.checkpoints.count + max(one_more, self.finished)

    @property
    def holds_the_model(self) -> bool:
        """Whether there is room for the finished model, whatever becomes of the checkpoints."""
        return self.free is None or self.finished <= self.free

    @property
    def holds_all(self) -> bool:
        """Whether there is room for everything."""
        return self.free is None or self.most <= self.free

    def check(self) -> None:
        """Refuse a run whose model would have nowhere to go. Raises ConfigError."""
        if not self.holds_the_model and self.free is not None:
            raise ConfigError(
                f"output_dir: the finished model takes about {size_text(self.finished)}, and {self.folder} has "
                f"{size_text(self.free)} free; make room, or give an output_dir on another disk"
            )


def disk_needs(
    model: SentenceTransformer,
    config: FinetuneConfig,
    layout: Layout,
    *,
    n_train: int,
    n_steps: int,
    n_processes: int = 1,
    of_each: Sequence[tuple[int, float]] = (),
    checkpoint: Path | None = None,
) -> DiskNeeds:
    """What a run of a prepared model needs. of_each: see steps_per_epoch. checkpoint: the one that is resumed from."""
    finished = _saved_bytes(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    per_epoch = steps_per_epoch(n_train, config, n_processes, of_each=of_each)
    free = free_bytes(layout.final.parent)
    return DiskNeeds(
        layout.final.parent,
        finished,
        finished + ADAM_BYTES * trained,
        Checkpoints.of(config, n_steps, per_epoch),
        None if free is None else free + layout.own_bytes(checkpoint),
    )


def _saved_bytes(model: SentenceTransformer) -> int:
    """Bytes of a saved model, or of an adapter and what stands behind its transformer: weights and tokenizer."""
    adapter = [weight for name, weight in model.named_parameters() if "lora_" in name or TOKEN_ROWS in name]
    base = set(map(id, model[0].parameters())) if adapter else set()
    weights = [*adapter, *(weight for weight in model.parameters() if id(weight) not in base)]
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    spelling = len(backend.to_str(pretty=True).encode()) if backend is not None else 0
    return int(sum(weight.nbytes for weight in weights)) + spelling
