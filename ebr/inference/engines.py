"""Engines: texts → (n, D) float32, whatever stands behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from tqdm import tqdm

from ebr.inference.batching import length_sorted_batches
from ebr.model.encoder import Role, prompt_for

Vectors = npt.NDArray[np.float32]


class Engine(Protocol):
    """Turns texts into vectors, one row a text, in their order."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """N texts → (N, D) float32."""
        ...


class LocalEngine:
    """One model on this machine's processor or GPU.

    prompt: None = the one saved with the model for this role. truncate_dim: keep the first dimensions; a shortened vector is
    normalised after the cut. show_progress: a bar over the texts, with their rate.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        role: Role,
        *,
        prompt: str | None = None,
        batch_size: int = 32,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        show_progress: bool = False,
    ) -> None:
        self.model = model
        self.role = role
        self.prompt = prompt_for(model, role) if prompt is None else prompt
        self.batch_size = batch_size
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = truncate_dim
        self.show_progress = show_progress

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        full = int(self.model.get_embedding_dimension())
        return min(full, self.truncate_dim or full)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """N texts → (N, D) float32, in their order."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        self.model.eval()
        with tqdm(total=len(texts), desc="encode", unit="text", disable=not self.show_progress, dynamic_ncols=True) as bar:
            for batch in length_sorted_batches(self._token_counts(texts), self.batch_size):
                vectors[batch] = self._forward([texts[index] for index in batch])
                bar.update(len(batch))
        return vectors

    def _token_counts(self, texts: Sequence[str]) -> list[int]:
        if not texts or self.model.tokenizer is None:
            return [len(text) for text in texts]
        return [len(ids) for ids in self.model.tokenizer(list(texts), truncation=True)["input_ids"]]

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> Vectors:
        features = self.model.preprocess(texts, prompt=self.prompt or None, task=self.role.value)
        device = self.model.device
        features = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in features.items()}
        embedded = self.model(features)["sentence_embedding"][:, : self.dim].float()
        if self.normalize_embeddings:
            embedded = normalize(embedded, dim=1)
        vectors: Vectors = embedded.cpu().numpy()
        return vectors


class RetrievalEncoder:
    """Queries and documents of one model, each with its own prompt and length, as unit vectors."""

    def __init__(self, model: SentenceTransformer, *, batch_size: int = 32, show_progress: bool = True) -> None:
        self.queries = LocalEngine(model, Role.QUERY, batch_size=batch_size)
        self.documents = LocalEngine(model, Role.DOCUMENT, batch_size=batch_size, show_progress=show_progress)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """N queries → (N, D) float32 unit rows."""
        return self.queries.encode(texts)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """N documents → (N, D) float32 unit rows."""
        return self.documents.encode(texts)
