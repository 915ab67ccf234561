"""How to build an engine somewhere else: in another process, on another machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer

from ebr.model.compute.local_engine import LocalEngine
from ebr.model.compute.settings import ComputeSettings
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role


@dataclass(frozen=True)
class Placement:
    """Where a worker computes: a device, and the cores it keeps to (None = any)."""

    device: str | None = None
    cores: tuple[int, ...] | None = None

    def apply(self) -> None:
        """Keep this process to its cores and its GPU."""
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)
        if self.device and self.device.startswith("cuda:"):
            torch.cuda.set_device(self.device)


@contextmanager
def _said_before() -> Iterator[None]:
    """What there is to say of a model was said where it was loaded first; every worker would say it again."""
    logger = logging.getLogger("ebr.model")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class EngineSpec:
    """Everything that an engine is built from. settings None = float32 as it comes."""

    model_path: str
    max_seq_length: int | None = None
    trust_remote_code: bool = False
    pooling: str | None = None
    base_model_path: str | None = None
    prompt: str | None = None
    batch_size: int | None = None
    normalize_embeddings: bool = True
    truncate_dim: int | None = None
    settings: ComputeSettings | None = None

    def build(self, place: Placement = Placement()) -> LocalEngine:
        """Load the model and stand an engine on it. Raises ModelError when it cannot be loaded there."""
        place.apply()
        with _said_before():
            return self.on(self.load(place.device, compare=False))

    def load(self, device: str | None = None, *, compare: bool = True) -> SentenceTransformer:
        """The model alone. device: None = the GPU where there is one. compare: see load_encoder."""
        return load_encoder(
            self.model_path,
            max_seq_length=self.max_seq_length,
            trust_remote_code=self.trust_remote_code,
            device=device,
            pooling=self.pooling,
            base_model_path=self.base_model_path,
            compare=compare,
        )

    def on(self, model: SentenceTransformer) -> LocalEngine:
        """An engine on a model that is loaded already, with the options of this one."""
        return LocalEngine(
            model,
            Role.DOCUMENT,
            prompt=self.prompt,
            batch_size=self.batch_size,
            normalize_embeddings=self.normalize_embeddings,
            truncate_dim=self.truncate_dim,
            settings=self.settings,
        )
