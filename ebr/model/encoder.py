"""Load one text encoder, whoever made it: asked what it lacks, and with the prompts and lengths that it was saved with."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from sentence_transformers.util import is_sentence_transformer_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ebr.data.files import read_manifest
from ebr.errors import EBRError, ModelError, first_line
from ebr.model import quantization
from ebr.model.adapted import AdaptedEncoder, attach, base_source, has_base_inside, other_base_note
from ebr.model.adapter_files import LoraAdapter, find_adapter
from ebr.model.kind import TRUST_HINT, check_trust, refuse_other_families, warn_of_unused_code
from ebr.model.lengths import keep_within_positions, set_lengths
from ebr.model.loading import check_weights, watch_loading
from ebr.model.origin import ADAPTER_CONFIG, ModelSource, adapter_folder, resolve_model
from ebr.model.plain import plain_encoder
from ebr.model.tokenizer import PUT_TOKENIZER, check_tokenizer, ensure_padding
from ebr.model.weight_files import check_files

log = logging.getLogger(__name__)

COSINE, DOT = "cosine", "dot"
_ADVICE = {
    "trust_remote_code": f"comes with Python code of its own, which runs only with {TRUST_HINT}",
    "Unrecognized processing class": f"holds no tokenizer; {PUT_TOKENIZER}",
}
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""What sentence-transformers calls the prompt of a document, the first of them that is there."""


class Role(str, Enum):
    """What a text is to retrieval: it decides prompt and length."""

    QUERY = "query"
    DOCUMENT = "document"


def require_transformer(model: SentenceTransformer, option: str, name: str) -> None:
    """Raises ModelError for a model that does not begin with a transformer, the only place for an adapter."""
    if not isinstance(getattr(model[0], "model", None), PreTrainedModel):
        raise ModelError(f"{option} {name}: does not begin with a transformer, which is what can be tuned")


def load_encoder(
    name: str,
    *,
    max_seq_length: int | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    pooling: str | None = None,
    base_model_path: str | None = None,
    quantization_bits: int | None = None,
    compute_dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> SentenceTransformer:
    """Load an encoder in float32, its base quantised where asked.

    Whatever the libraries would leave out or make up is refused, or said in one line: weights that are random, an adapter that
    finds no place, a tokenizer that is none, code that is not run, pooling that nobody named.

    max_seq_length: tokens kept of a text, lowered with one warning to what the model's positions allow; None = as saved.
    device: None = the GPU where there is one. pooling, attn_implementation: None = the model's own, see plain_encoder.
    base_model_path: where the base of an adapter lies now; None = where its files say.
    quantization_bits: 4 or 8; 0 = none; None = as an adapter of ours was tuned, none for any other model.
    compute_dtype: of a 4-bit base's matrix products; None = as the adapter was tuned, else float32.
    Raises ModelError when the model cannot be found or loaded as asked; MissingPackageError without bitsandbytes.
    """
    source = resolve_model(name)
    with _readable(source):
        folder = adapter_folder(source)
        recorded_bits, recorded_dtype = _recorded_quantization(folder)
        bits = recorded_bits if quantization_bits is None else quantization_bits
        load = _Loader(
            trust_remote_code=trust_remote_code,
            device=device,
            model_kwargs=_model_kwargs(name, bits, compute_dtype or recorded_dtype, attn_implementation),
        )
        if folder is None:
            if base_model_path is not None:
                raise ModelError(f"base_model_path {base_model_path}: {name} is no adapter, but whole; leave it out")
            model = load.whole(source, pooling)
        else:
            adapter = find_adapter(folder, option="model")
            adapted = load.adapted(adapter, base_model_path)
            if note := other_base_note(adapter, adapted.base_sha256, adapted.base):
                log.warning("%s: %s; its vectors are those of no model that was ever trained", name, note)
            model = adapted.encoder
            _pool_by(model, pooling, name)
    _settle(model, name)
    if max_seq_length is not None:
        set_lengths(model, max_seq_length)
    return model


def load_adapted(
    adapter: LoraAdapter, base_model_path: str, *, trust_remote_code: bool, device: str | None = None, bits: int = 0
) -> AdaptedEncoder:
    """A base and an adapter on it, not merged, as load_encoder loads the adapter's folder. Errors as there."""
    with _readable(resolve_model(base_model_path)):
        kwargs = _model_kwargs(base_model_path, bits, torch.float32, None)
        loader = _Loader(trust_remote_code=trust_remote_code, device=device, model_kwargs=kwargs)
        adapted = loader.adapted(adapter, base_model_path)
    _settle(adapted.encoder, base_model_path)
    return adapted


def _model_kwargs(name: str, bits: int, compute_dtype: torch.dtype, attn_implementation: str | None) -> dict[str, Any]:
    # Checkpoints in bfloat16 would otherwise train in bfloat16, adapters included.
    kwargs: dict[str, Any] = {"dtype": torch.float32}
    if bits:
        kwargs["quantization_config"] = quantization.quantization_config(bits, compute_dtype=compute_dtype)
        log.info("%s: the base is held in %d bits", name, bits)
    if attn_implementation:
        kwargs["attn_implementation"] = attn_implementation
    return kwargs


@contextmanager
def _readable(source: ModelSource) -> Iterator[None]:
    """What any library raises at a model that it cannot read becomes one line that names the model."""
    try:
        with quiet_files():
            yield
    except (EBRError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        log.debug("%s", source.location, exc_info=True)
        # What libraries advise stands at the end of what they say, and names their own options.
        advice = next((ours for theirs, ours in _ADVICE.items() if theirs in str(error)), None)
        what = advice or f"{source.location} cannot be loaded ({type(error).__name__}: {first_line(error)})"
        raise ModelError(f"model {source.name!r}: {what}") from error


@dataclass(frozen=True)
class _Loader:
    """How the parts of one encoder are loaded."""

    trust_remote_code: bool
    device: str | None
    model_kwargs: dict[str, Any]

    def whole(self, source: ModelSource, pooling: str | None) -> SentenceTransformer:
        """A model that is no adapter, with nothing made up in it."""
        where, location = f"model {source.name!r}", source.location
        if source.folder is not None:
            check_files(source.folder)
            check_trust(source.folder, where, trust_remote_code=self.trust_remote_code)
        refuse_other_families(location, where, pooling=pooling)
        options: dict[str, Any] = {
            "trust_remote_code": self.trust_remote_code,
            "device": self.device,
            "model_kwargs": self.model_kwargs,
        }
        with watch_loading() as loaded:
            if is_sentence_transformer_model(location):
                model = SentenceTransformer(location, **options)
                _pool_by(model, pooling, source.name)
            else:
                model = plain_encoder(location, pooling=pooling, **options)
        for transformer in _transformers_of(model):
            check_tokenizer(transformer, where)
        check_weights(model, loaded, where)
        for one in loaded:
            warn_of_unused_code(one.model, where, trust_remote_code=self.trust_remote_code)
        if (named := model.similarity_fn_name) != COSINE:
            log.warning("%s: was made for similarity by %s, and is judged by %s", where, named, similarity_of(model))
        return model

    def adapted(self, adapter: LoraAdapter, base_model_path: str | None) -> AdaptedEncoder:
        """A base with an adapter in its layers, pooled and prompted as the adapter says."""
        check_trust(adapter.folder, f"model {str(adapter.folder)!r}", trust_remote_code=self.trust_remote_code)
        if base_model_path is None and has_base_inside(adapter.folder):
            base, encoder = _inner_base(adapter, self)
        else:
            base = base_source(adapter, base_model_path)
            encoder = self.whole(base, None)
        require_transformer(encoder, "base_model_path", base.name)
        adapted = attach(encoder, adapter, base, trust_remote_code=self.trust_remote_code)
        check_tokenizer(adapted.encoder[0], f"model {str(adapter.folder)!r}")
        return adapted


def _inner_base(adapter: LoraAdapter, loader: _Loader) -> tuple[ModelSource, SentenceTransformer]:
    """The base that lies in the adapter's own folder. No library loads it alone there; from a folder of links without the
    adapter it does.
    """
    source = resolve_model(str(adapter.folder))
    with tempfile.TemporaryDirectory() as scratch:
        for path in adapter.folder.iterdir():
            if path.name != ADAPTER_CONFIG and path != adapter.weights:
                (Path(scratch) / path.name).symlink_to(path)
        encoder = loader.whole(ModelSource(source.name, source.origin, scratch), None)
    return source, encoder


def _transformers_of(model: SentenceTransformer) -> list[Transformer]:
    return [module for module in model.modules() if isinstance(module, Transformer)]


def _settle(model: SentenceTransformer, name: str) -> None:
    """What every encoder must be, however it was saved: padded behind, by some token, and no longer than its positions."""
    quantization.keep_trainable(model)
    for transformer in _transformers_of(model):
        tokenizer = transformer.tokenizer
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            # Absolute positions count the padding in front; behind, it is out of every token's way.
            tokenizer.padding_side = "right"
            ensure_padding(tokenizer, f"model {name!r}")
    keep_within_positions(model)


def _pool_by(model: SentenceTransformer, pooling: str | None, name: str) -> None:
    """Pool as asked, and say so where the model was saved otherwise."""
    saved = pooling_name(model)
    if pooling is None or pooling == saved:
        return
    _set_pooling(model, pooling)
    log.warning("%s: pooled by %s, as asked for; it was saved for %s", name, pooling, saved)


def _set_pooling(model: SentenceTransformer, mode: str) -> None:
    for module in model:
        if isinstance(getattr(module, "pooling_mode", None), str):
            module.pooling_mode = mode
            return
    raise ModelError(f"pooling {mode}: this model has no pooling layer with one mode that could be changed")


def _recorded_quantization(folder: Path | None) -> tuple[int, torch.dtype]:
    """The bits of the base that an adapter of ours was tuned on, and of its products; (0, float32) for any other model."""
    config: dict[str, Any] = (read_manifest(folder) or {}).get("config", {}) if folder is not None else {}
    bits = config.get("quantization_bits", 0) if config.get("finetune_type") == "qlora" else 0
    return int(bits), quantization.compute_dtype(bf16=config.get("bf16", False), fp16=config.get("fp16", False))


def save_encoder(model: SentenceTransformer, folder: Path) -> None:
    """Save an encoder, or the adapter that it carries, with its pooling, prompts and lengths: safetensors and JSON."""
    with quiet_files():
        model.save_pretrained(str(folder))


@contextmanager
def quiet_files() -> Iterator[None]:
    """No progress bar for one weights file: it flashes by and buries what matters."""
    was_on = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers.utils.logging.enable_progress_bar()


def prompt_for(model: SentenceTransformer, role: Role) -> str:
    """The prompt that the model was saved with for texts of this role; '' when it has none."""
    names = ("query",) if role is Role.QUERY else _DOCUMENT_PROMPTS
    there = [model.prompts[name] or "" for name in names if name in model.prompts]
    if not there and model.default_prompt_name is not None:
        return model.prompts.get(model.default_prompt_name) or ""
    # sentence-transformers puts an empty document prompt beside a passage prompt that was saved, and then takes that.
    return next(filter(None, there), "")


def set_prompts(
    model: SentenceTransformer, *, prompt: str | None, query_prompt: str | None, passage_prompt: str | None
) -> None:
    """Settle the model's query and document prompts; they are saved with it. None = fall back, at last to the model's own.

    Its prompts for other tasks (STS, Clustering, …) stay.
    """
    query = _first(query_prompt, prompt, prompt_for(model, Role.QUERY))
    document = _first(passage_prompt, prompt, prompt_for(model, Role.DOCUMENT))
    also = {name: document for name in _DOCUMENT_PROMPTS if name in model.prompts}
    model.prompts = {**model.prompts, **also, "query": query, "document": document}
    # A default prompt would also go before texts whose role nobody named, unlike in training.
    model.default_prompt_name = None


def _first(*choices: str | None) -> str:
    return next(choice for choice in choices if choice is not None)


def similarity_of(model: SentenceTransformer) -> str:
    """What its vectors are compared by: dot for a model that was made for it, else cosine; distances are not searched by."""
    return DOT if model.similarity_fn_name == DOT else COSINE


def pooling_name(model: SentenceTransformer) -> str:
    """How token vectors become one: mean, cls, lasttoken, …; '' when the model has no pooling layer."""
    for module in model:
        mode = getattr(module, "pooling_mode", None)
        if mode is not None:
            return mode if isinstance(mode, str) else "+".join(mode)
    return ""
