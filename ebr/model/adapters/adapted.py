"""A base and its adapter as one encoder: how to embed is the adapter's word where it says so, else the base's."""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedModel

from ebr.data.files.write import read_manifest
from ebr.errors import ModelError
from ebr.model.adapters.files import LoraAdapter
from ebr.model.adapters.foreign import attach_adapter
from ebr.model.files.identity import fingerprint
from ebr.model.files.peft_import import LoraModel
from ebr.model.files.tokenizer import end_with_eos, spelling_of
from ebr.model.origin import (
    ADAPTER_CONFIG,
    ModelOrigin,
    is_adapter,
    is_embedded,
    is_whole,
    looks_like_hub_id,
    resolve_model,
    weight_files_digest,
)

log = logging.getLogger(__name__)

_BASE_HINT = "--base_model_path (base_model_path)"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class BaseRecord:
    """The base under the adapter of a loaded model. sha256: its fingerprint, None if not asked for."""

    source: ModelOrigin
    sha256: str | None


_BASE = "_ebr_base"


def base_of(encoder: SentenceTransformer) -> BaseRecord | None:
    """The base under the adapter that a loaded model carries; None for a model that was loaded whole."""
    record: BaseRecord | None = encoder.__dict__.get(_BASE)
    return record


@dataclass(frozen=True)
class AdaptedEncoder:
    """A base with an adapter in its layers, added to no weight yet; tuner merges it."""

    encoder: SentenceTransformer
    tuner: LoraModel
    base: ModelOrigin
    base_sha256: str | None
    """The fingerprint of the base alone; None where it was not asked for."""
    base_weights: dict[str, torch.Tensor] | None = None
    """A copy of the base's own, by their names in the encoder; None where it was not asked for."""


def base_source(adapter: LoraAdapter, base_model_path: str | None) -> ModelOrigin:
    """The model that an adapter was trained on: the one given, else the one that its files name, or that lies beside it.

    A path that is not here is looked up again by the name in our manifest. Raises ModelError that says what names it, and how
    to give another.
    """
    if base_model_path is not None:
        return _no_adapter(resolve_model(base_model_path), "base_model_path")
    record = read_manifest(adapter.folder) or {}
    named = adapter.config.get("base_model_name_or_path")
    if is_whole(adapter.folder):
        return _base_beside(adapter)
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


def named_base(adapter: LoraAdapter) -> str:
    """What the files of an adapter call its base; '' where they do not."""
    named = adapter.config.get("base_model_name_or_path")
    return str((read_manifest(adapter.folder) or {}).get("base_model") or named or "")


def _base_beside(adapter: LoraAdapter) -> ModelOrigin:
    """The whole model in the adapter's own folder: transformers lets a base lie there, and so do people a merged model.

    Raises ModelError where the adapter names another base, so that it may be either.
    """
    folder, named = adapter.folder, named_base(adapter)
    there = Path(named).expanduser()
    names_another = bool(named) and there.resolve() != folder
    if names_another and (there.is_dir() or is_embedded(named) or looks_like_hub_id(named)):
        raise ModelError(
            f"{folder}: holds an adapter and a whole model, which may be its base, or base and adapter merged already; the "
            f"adapter names the base {named}: give that one with --base_model_path {named}, or the one in the folder with "
            f"--base_model_path {folder}; if that is merged, move {ADAPTER_CONFIG} away"
        )
    if names_another:
        log.warning("%s: the base %s, which the adapter names, is not here; the model beside the adapter is taken for it, and "
                    "is wrong if the adapter is merged into it already", folder, named)  # fmt: skip
    else:
        log.info("%s: the model that lies beside the adapter is taken for its base", folder)
    return resolve_model(str(folder))


def _no_adapter(source: ModelOrigin, who: str) -> ModelOrigin:
    if is_adapter(source) and (source.folder is None or not is_whole(source.folder)):
        raise ModelError(f"{who}: {source.name} is an adapter itself; give the model under it")
    return source


def attach(
    encoder: SentenceTransformer,
    adapter: LoraAdapter,
    base: ModelOrigin,
    *,
    trust_remote_code: bool,
    hash_base: bool,
    keep_base: bool = False,
) -> AdaptedEncoder:
    """Put an adapter into a base that was loaded as an encoder. Raises ModelError when the two do not fit.

    The base is changed in place, and not to be used any more. keep_base: copy its weights before that.
    """
    base_sha256 = fingerprint(encoder) if hash_base else None
    # Before anything is attached: some ways of beginning an adapter (pissa, olora) move the base's weights.
    base_weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()} if keep_base else None
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
    encoder.__dict__[_BASE] = BaseRecord(base, base_sha256)
    return AdaptedEncoder(encoder, tuner, base, base_sha256, base_weights)


def other_base_note(folder: Path, base: ModelOrigin, base_sha256: str | None) -> str:
    """What is to be said of a base that is not the one that a model of ours was tuned from; '' of any other.

    folder: of the tuned model, or adapter. base_sha256: the base's fingerprint; None where it is held quantised, or not known.
    """
    record = read_manifest(folder) or {}
    options = record.get("config")
    if isinstance(options, dict) and options.get("finetune_type") == "qlora":
        # What a quantised base's weights come to differs between devices; its files do not.
        name = "base_files_sha256"
        found = weight_files_digest(base) if name in record else None
    else:
        name, found = "base_sha256", base_sha256
    if record.get(name) is None or found is None or record[name] == found:
        return ""
    return f"{base.name} is not the base that the adapter was trained on: its weights differ"


# ---------------------------------------------------------------- how to embed


def _with_modules_of(adapter: LoraAdapter, base: SentenceTransformer, *, trust_remote_code: bool) -> SentenceTransformer:
    """The encoder that the adapter's folder describes, around the transformer of the base."""
    first = str(adapter.modules()[0]["type"])
    if not _is_stock_transformer(first):
        raise ModelError(f"{adapter.folder / 'modules.json'}: begins with {first}, where an adapter needs a Transformer")
    around: Callable[..., SentenceTransformer] = SentenceTransformer._load_with_module_classes
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = adapter.folder if _has_tokenizer(adapter.folder) else None
        if tokenizer is None:
            # Where the base's lies need not be a place that a tokenizer can be read from.
            base[0].processor.save_pretrained(scratch)
        encoder = around(
            str(adapter.folder),
            {first: _around(base[0], str(tokenizer or scratch))},
            trust_remote_code=trust_remote_code,
            device=str(base.device),
        )
    encoder[0].__class__ = Transformer  # it is saved under its class's name
    if tokenizer is None:
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


def _around(base: Transformer, tokenizer: str) -> type[Transformer]:
    """sentence-transformers' Transformer, but with a model that is loaded already, and a tokenizer from where it lies."""

    class Around(Transformer):
        def __init__(self, model_name_or_path: str, **options: Any) -> None:  # noqa: ANN401
            # An adapter's file does not say it: sentence-transformers forgets it when it saves.
            options["do_lower_case"] = options.get("do_lower_case") or base.do_lower_case
            super().__init__(tokenizer, **options)

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
    if spelling_of(getattr(own, "tokenizer", own)) == spelling_of(first.tokenizer):
        return
    eos = first.tokenizer.eos_token_id
    closes_with_eos = eos is not None and _last_token(first.tokenizer) == eos
    first.processor, first.do_lower_case = own, False
    encoder.max_seq_length = length
    if closes_with_eos:
        end_with_eos(first.tokenizer)  # its own, which may be another token
    log.info("%s: its own tokenizer is used, which is not the base's", adapter.folder)


def _last_token(tokenizer: Any) -> int | None:  # noqa: ANN401
    """Of a text of one letter."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[-1] if ids else None
