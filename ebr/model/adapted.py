"""A base and its adapter as one encoder: how to embed is the adapter's word where it says so, else the base's."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel

from ebr.data.files import read_manifest
from ebr.errors import ModelError
from ebr.model.adapter_files import LoraAdapter
from ebr.model.foreign_adapters import attach_adapter
from ebr.model.identity import fingerprint
from ebr.model.origin import ADAPTER_CONFIG, ModelSource, is_embedded, looks_like_hub_id, resolve_model, weight_files_digest
from ebr.model.peft_import import LoraModel
from ebr.model.tokenizer import end_with_eos

log = logging.getLogger(__name__)

_BASE_HINT = "--base_model_path (base_model_path)"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model", "sentencepiece.bpe.model")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class BaseRecord:
    """The base under the adapter of a loaded model. name: as it was found; sha256: its fingerprint."""

    name: str
    sha256: str


_BASE = "_ebr_base"


def base_of(encoder: SentenceTransformer) -> BaseRecord | None:
    """The base under the adapter that a loaded model carries; None for a model that was loaded whole."""
    record: BaseRecord | None = encoder.__dict__.get(_BASE)
    return record


@dataclass(frozen=True)
class AdaptedEncoder:
    """A base with an adapter in its layers, that of a file added to no weight yet; tuner merges it."""

    encoder: SentenceTransformer
    tuner: LoraModel
    base: ModelSource
    base_sha256: str
    """The fingerprint of the base alone; see other_base_note."""


def base_source(adapter: LoraAdapter, base_model_path: str | None) -> ModelSource:
    """The model that an adapter was trained on: the one given, else the one that its files name.

    A path that is not here is looked up again by the name in our manifest. Raises ModelError that says what names it, and how
    to give another.
    """
    if base_model_path is not None:
        return _no_adapter(resolve_model(base_model_path), "base_model_path")
    named, record = adapter.config.get("base_model_name_or_path"), read_manifest(adapter.folder) or {}
    candidates = [str(one) for one in (named, record.get("base_model")) if one]
    # Absolute, of where it was trained; relative, to where that was, or to the adapter.
    candidates[1:1] = [str(adapter.folder / named)] if named and not Path(named).is_absolute() else []
    if is_embedded(str(record.get("base_model"))):
        return resolve_model(str(record["base_model"]))  # its digest is checked whoever asks for it
    found = next((one for one in candidates if Path(one).expanduser().is_dir()), None)
    found = found or next((one for one in candidates if looks_like_hub_id(one)), None)
    file = adapter.folder / ADAPTER_CONFIG
    if found is None:
        what = f"names the base {named!r}, which is not here" if named else "names no base (base_model_name_or_path is empty)"
        raise ModelError(f"{file}: {what}; give it with {_BASE_HINT}")
    try:
        return _no_adapter(resolve_model(found), str(file))
    except ModelError as error:
        raise ModelError(f"{file}: its base cannot be found: {error}; give it with {_BASE_HINT}") from None


def _no_adapter(source: ModelSource, who: str) -> ModelSource:
    folder = source.folder
    if folder is not None and (folder / ADAPTER_CONFIG).is_file() and not any((folder / file).is_file() for file in _WEIGHTS):
        raise ModelError(f"{who}: {source.name} is an adapter itself; give the model under it")
    return source


def has_base_inside(folder: Path) -> bool:
    """Whether an adapter's folder holds the whole base too, as transformers allows."""
    return (folder / "config.json").is_file() and any((folder / file).is_file() for file in _WEIGHTS)


def attach(encoder: SentenceTransformer, adapter: LoraAdapter, base: ModelSource, *, trust_remote_code: bool) -> AdaptedEncoder:
    """Put an adapter into a base that was loaded as an encoder. Raises ModelError when the two do not fit.

    The base is changed in place, and not to be used any more.
    """
    base_sha256 = fingerprint(encoder)
    transformer: PreTrainedModel = encoder[0].model
    tuner = attach_adapter(transformer, adapter)
    # What transformers' own loader sets, and asks for when the adapter is saved or merged.
    transformer._hf_peft_config_loaded = True
    transformer.peft_config["default"].base_model_name_or_path = base.location
    transformer.requires_grad_(False).eval()
    if adapter.is_encoder:
        encoder = _with_modules_of(adapter, encoder, trust_remote_code=trust_remote_code)
    else:
        log.info("%s holds no modules.json: pooling, prompts and lengths are taken from the base", adapter.folder)
        _take_tokenizer(adapter, encoder, trust_remote_code=trust_remote_code)
    encoder.__dict__[_BASE] = BaseRecord(base.name, base_sha256)
    return AdaptedEncoder(encoder, tuner, base, base_sha256)


def other_base_note(adapter: LoraAdapter, base_sha256: str, base: ModelSource) -> str:
    """What is to be said of a base that is not the one that an adapter of ours was trained on; '' of any other."""
    record = read_manifest(adapter.folder) or {}
    options = record.get("config")
    if isinstance(options, dict) and options.get("finetune_type") == "qlora":
        # What a quantised base's weights come to differs between devices; its files do not.
        known, found = record.get("base_files_sha256"), weight_files_digest(base) if "base_files_sha256" in record else None
    else:
        known, found = record.get("base_sha256"), base_sha256
    if known is None or found is None or known == found:
        return ""
    return f"{base.name} is not the base that the adapter was trained on: its weights differ"


# ---------------------------------------------------------------- how to embed


def _with_modules_of(adapter: LoraAdapter, base: SentenceTransformer, *, trust_remote_code: bool) -> SentenceTransformer:
    """The encoder that the adapter's folder describes, around the transformer of the base."""
    first = str(adapter.modules()[0]["type"])
    if not _is_stock_transformer(first):
        raise ModelError(f"{adapter.folder / 'modules.json'}: begins with {first}, where an adapter needs a Transformer")
    around: Callable[..., SentenceTransformer] = SentenceTransformer._load_with_module_classes
    encoder = around(
        str(adapter.folder), {first: _around(base[0])}, trust_remote_code=trust_remote_code, device=str(base.device)
    )
    encoder[0].__class__ = Transformer  # it is saved under its class's name
    if not _has_tokenizer(adapter.folder):
        encoder[0].processor = base[0].processor
    return encoder


def _is_stock_transformer(name: str) -> bool:
    """Whether a type in modules.json is sentence-transformers' own Transformer, by whichever of its addresses."""
    if not name.startswith("sentence_transformers."):
        return False
    module, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last, None) is Transformer
    except ImportError:
        return False


def _around(base: Transformer) -> type[Transformer]:
    """sentence-transformers' Transformer, but with a model that is loaded already."""

    class Around(Transformer):
        def __init__(self, model_name_or_path: str, **options: Any) -> None:  # noqa: ANN401
            # Of the path only the tokenizer is still to come.
            own = _has_tokenizer(Path(model_name_or_path))
            super().__init__(model_name_or_path if own else base.tokenizer.name_or_path, **options)

        def _load_config(self, *args: object, **kwargs: object) -> tuple[PreTrainedConfig, bool]:
            return base.model.config, False

        def _load_model(self, *args: object, **kwargs: object) -> PreTrainedModel:
            return base.model

    return Around


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in _TOKENIZER_FILES)


def _take_tokenizer(adapter: LoraAdapter, encoder: SentenceTransformer, *, trust_remote_code: bool) -> None:
    """The adapter's own tokenizer where it has one that differs, closing texts as the base's does."""
    if not _has_tokenizer(adapter.folder):
        return
    first, length = encoder[0], encoder.max_seq_length
    own = AutoProcessor.from_pretrained(str(adapter.folder), trust_remote_code=trust_remote_code)
    if _state(own) == _state(first.processor):
        return
    closes = _closing(first.tokenizer)
    first.processor = own
    encoder.max_seq_length = length
    if closes is not None and closes == first.tokenizer.eos_token_id:
        end_with_eos(first.tokenizer)
    log.info("%s: its own tokenizer is used, which is not the base's", adapter.folder)


def _state(processor: Any) -> object:  # noqa: ANN401
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is None:
        return None
    state: Mapping[str, Any] = json.loads(backend.to_str())
    return {name: value for name, value in state.items() if name not in ("truncation", "padding")}


def _closing(tokenizer: Any) -> int | None:  # noqa: ANN401
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[-1] if ids else None
