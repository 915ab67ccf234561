"""What a model's own files say that it is: an embedding model or something else, with code of its own or without."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers.util import load_file_path
from transformers import PreTrainedModel

from ebr.data.files.write import read_manifest
from ebr.errors import ModelError

log = logging.getLogger(__name__)

TRUST_HINT = "--trust_remote_code (only for sources you trust)"
_EMBEDDING_MODEL = "SentenceTransformer"
_FAMILIES = {
    "CrossEncoder": "a cross-encoder: it scores pairs of texts and has no vectors",
    "SparseEncoder": "a sparse encoder (SPLADE): its vectors are weights of words",
    "MultiVectorEncoder": "a multi-vector model (ColBERT): it has a vector for each token",
}
# Modules that only such a family has; older folders do not name their family.
_MODULES = {
    "SpladePooling": "SparseEncoder",
    "MLMTransformer": "SparseEncoder",
    "SparseAutoEncoder": "SparseEncoder",
    "SparseStaticEmbedding": "SparseEncoder",
    "CSRSparsity": "SparseEncoder",
    "IDF": "SparseEncoder",
    "LogitScore": "CrossEncoder",
    "MultiVectorMask": "MultiVectorEncoder",
}
_CLASSIFIER = "ForSequenceClassification"


def refuse_other_families(location: str, where: str, *, says_pooling: bool) -> None:
    """Refuse what has no vector for a text, and would be given one by averaging. Raises ModelError.

    location: a folder or a hub id. says_pooling: somebody says how to pool, and so means the encoder inside a classifier.
    """
    settings = read_settings(location, "config_sentence_transformers.json")
    modules = read_settings(location, "modules.json")
    family = settings.get("model_type", _EMBEDDING_MODEL) if isinstance(settings, dict) else _EMBEDDING_MODEL
    for entry in modules if isinstance(modules, list) else []:
        kind = str(entry.get("type", ""))
        family = _MODULES.get(kind.rsplit(".", 1)[-1], "MultiVectorEncoder" if kind.startswith("pylate.") else family)
    architectures = _architectures(location)
    if modules is None and any("colbert" in name.lower() for name in architectures):
        family = "MultiVectorEncoder"
    if family != _EMBEDDING_MODEL:
        what = _FAMILIES.get(family, f"a {family} of sentence-transformers")
        raise ModelError(f"{where}: is {what}, where an embedding model is needed; give one")
    if modules is None and not says_pooling and any(name.endswith(_CLASSIFIER) for name in architectures):
        raise ModelError(
            f"{where}: config.json says {architectures[0]}, a classifier or re-ranker, which gives no vectors; give an "
            "embedding model, or --pooling mean (or cls, …) to embed with the encoder inside it all the same"
        )


def _architectures(location: str) -> list[str]:
    config = read_settings(location, "config.json")
    named = config.get("architectures") if isinstance(config, dict) else None
    return [str(name) for name in named or []]


def read_settings(location: str, file: str) -> Any:  # noqa: ANN401
    """A JSON file of a model's folder or of the hub; None where there is none. Raises ModelError when it cannot be read."""
    path = load_file_path(location, file)
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy the file again") from None


def check_trust(folder: Path, models: Sequence[PreTrainedModel], where: str) -> None:
    """Refuse to compute without its own code what was made with it, as our manifest says. Raises ModelError."""
    options = (read_manifest(folder) or {}).get("config")
    trusted = isinstance(options, dict) and options.get("trust_remote_code") is True
    if trusted and any(unused_code(model) for model in models):
        raise ModelError(
            f"{where}: was made with the Python code that comes with the model, as its manifest says, and embeds otherwise "
            f"without it; give {TRUST_HINT}"
        )


def unused_code(model: PreTrainedModel) -> str:
    """Which code of its own a model names (auto_map) and is not computed by; '' for any other model."""
    named = getattr(model.config, "auto_map", None)
    if not isinstance(named, dict) or not named or model.is_custom_code():
        return ""
    return str(named.get("AutoModel") or next(iter(named.values())))


def warn_of_unused_code(model: PreTrainedModel, where: str) -> None:
    """Say when a model brings code of its own, but is computed by that of transformers, which knows its type too."""
    if code := unused_code(model):
        log.warning(
            "%s: config.json (auto_map) names code of its own, %s, which is not run; %s of transformers computes it, whose "
            "vectors may be others: %s runs it",
            where,
            code,
            type(model).__name__,
            TRUST_HINT,
        )
