"""A model that is loaded and what it is, asked once: whoever needs it is handed this, and hashes no weight again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router

from ebr.data.versions import library_versions
from ebr.model.encoder.encoder import similarity_of
from ebr.model.encoder.lengths import kept_length, own_length
from ebr.model.encoder.pooling import pooling_name
from ebr.model.encoder.prompts import Role
from ebr.model.files.identity import architecture, fingerprint, spelling_digest
from ebr.model.origin import ModelOrigin


@dataclass(frozen=True)
class LoadedModel:
    """A model, and what it was when it was asked: training changes the weights in place, and makes another of it.

    source: where it was found; None = it was handed in. sha256: over every weight. Lengths are in tokens, None = as long as
    max_seq_length, which is None where nothing is cut.
    """

    model: SentenceTransformer
    source: ModelOrigin | None
    sha256: str
    architecture: dict[str, Any]
    spelling_sha256: str
    similarity: str
    pooling: str
    prompts: dict[str, str]
    max_seq_length: int | None
    query_max_len: int | None
    passage_max_len: int | None

    @classmethod
    def of(cls, model: SentenceTransformer, source: ModelOrigin | None = None) -> LoadedModel:
        """What a model is now; its prompts and lengths are to be settled before."""
        return cls(
            model=model,
            source=source,
            sha256=fingerprint(model),
            architecture=architecture(model),
            spelling_sha256=spelling_digest(model),
            similarity=similarity_of(model),
            pooling=pooling_name(model),
            prompts=dict(model.prompts),
            max_seq_length=kept_length(model),
            query_max_len=_length(model, Role.QUERY),
            passage_max_len=_length(model, Role.DOCUMENT),
        )

    def facts(self) -> dict[str, Any]:
        """What every manifest of a model says of it: its weights' hash, and how it embeds."""
        return {
            "model_sha256": self.sha256,
            "architecture": self.architecture,
            "spelling_sha256": self.spelling_sha256,
            "similarity": self.similarity,
            "pooling": self.pooling,
            "prompts": self.prompts,
            "max_seq_length": self.max_seq_length,
            "query_max_len": self.query_max_len,
            "passage_max_len": self.passage_max_len,
            "dim": self.model.get_embedding_dimension(),
            "versions": library_versions(),
        }


def _length(model: SentenceTransformer, role: Role) -> int | None:
    """Of texts of this role, as the model was saved; where they have a route of their own, as that reads them."""
    if isinstance(model[0], Router):
        return own_length(model, role.value)
    length: int | None = getattr(model[0], f"{role.value}_length", None)
    return length
