"""What every manifest of a model says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ebr.data.versions import library_versions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TRAINING_CONFIG = "training_config.json"


def encoder_facts(model: SentenceTransformer) -> dict[str, Any]:
    """What every manifest of a model says of it: its weights' hash, and how it embeds."""
    from ebr.model.encoder.encoder import similarity_of
    from ebr.model.encoder.lengths import kept_length
    from ebr.model.encoder.pooling import pooling_name
    from ebr.model.files.identity import architecture, fingerprint, spelling_digest

    return {
        "model_sha256": fingerprint(model),
        "architecture": architecture(model),
        "spelling_sha256": spelling_digest(model),
        "similarity": similarity_of(model),
        "pooling": pooling_name(model),
        "prompts": model.prompts,
        "max_seq_length": kept_length(model),
        "query_max_len": getattr(model[0], "query_length", None),
        "passage_max_len": getattr(model[0], "document_length", None),
        "dim": model.get_embedding_dimension(),
        "versions": library_versions(),
    }
