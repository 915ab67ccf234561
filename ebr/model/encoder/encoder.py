"""Load one text encoder, whoever made it: asked what it lacks, and with the prompts and lengths that it was saved with."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding, Transformer
from sentence_transformers.util import is_sentence_transformer_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ebr.data.files.write import read_manifest
from ebr.errors import EBRError, ModelError, first_line
from ebr.model.adapters.adapted import AdaptedEncoder, attach, base_source, other_base_note
from ebr.model.adapters.files import ADAPTER_WEIGHTS, LoraAdapter, find_adapter
from ebr.model.encoder.lengths import keep_within_positions, set_lengths
from ebr.model.encoder.pooling import plain_encoder, pool_by
from ebr.model.encoder.routes import refuse_routes
from ebr.model.files import quantization
from ebr.model.files.identity import differences_from
from ebr.model.files.kind import TRUST_HINT, check_trust, refuse_other_families, warn_of_unused_code
from ebr.model.files.loading import check_weights, watch_loading
from ebr.model.files.modules import check_loaded, check_modules, lay_out_code, refuse_lost_modules
from ebr.model.files.tokenizer import PUT_TOKENIZER, check_tokenizer, ensure_padding, table_of
from ebr.model.files.weights import check_files
from ebr.model.origin import ADAPTER_CONFIG, ModelOrigin, Origin, adapter_folder, resolve_model

log = logging.getLogger(__name__)

COSINE, DOT = "cosine", "dot"
_ADVICE = {
    "trust_remote_code": f"comes with Python code of its own, which runs only with {TRUST_HINT}",
    "Unrecognized processing class": f"holds no tokenizer; {PUT_TOKENIZER}",
}


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
    hash_base: bool = False,
    compare: bool = True,
) -> SentenceTransformer:
    """Load an encoder in float32, its base quantised where asked.

    Whatever the libraries would leave out or make up is refused, or said in one line: weights that are random, an adapter that
    finds no place, a tokenizer that is none, code that is not run, pooling that nobody named.

    max_seq_length: tokens kept of a text, lowered with one warning to what the model's positions allow; None = as saved.
    device: None = the GPU where there is one. pooling, attn_implementation: None = the model's own, see plain_encoder.
    base_model_path: where the base of an adapter lies now; None = where its files say.
    quantization_bits: 4 or 8; 0 = none; None = as an adapter of ours was tuned, none for any other model.
    compute_dtype: of a 4-bit base's matrix products; None = as the adapter was tuned, else float32.
    hash_base: let base_of tell the digest of an adapter's base. compare: say what differs from what the model's manifest
    records; one that was loaded before need not be compared again.
    Raises ModelError when the model cannot be found or loaded as asked; MissingPackageError without bitsandbytes.
    """
    source = resolve_model(name)
    with _readable(source):
        folder = adapter_folder(source)
        recorded_bits, recorded_dtype = quantization.recorded(folder)
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
            adapted = load.adapted(adapter, base_model_path, pooling, hash_base=hash_base, compare=compare)
            base_sha256 = None if bits else adapted.base_sha256
            if compare and (note := other_base_note(adapter.folder, adapted.base, base_sha256)):
                log.warning("%s: %s; its vectors are those of no model that was ever trained", name, note)
            model = adapted.encoder
    _settle(model)
    if compare:
        _compare(model, folder or source.folder, name)
    pool_by(model, pooling, name)
    if max_seq_length is not None:
        set_lengths(model, max_seq_length)
    return model


def load_adapted(
    adapter: LoraAdapter,
    base_model_path: str,
    *,
    trust_remote_code: bool,
    device: str | None = None,
    bits: int = 0,
    hash_base: bool = False,
    keep_base: bool = False,
) -> AdaptedEncoder:
    """A base and an adapter on it, not merged, as load_encoder loads the adapter's folder. Errors as there."""
    with _readable(resolve_model(base_model_path)):
        kwargs = _model_kwargs(base_model_path, bits, torch.float32, None)
        loader = _Loader(trust_remote_code=trust_remote_code, device=device, model_kwargs=kwargs)
        adapted = loader.adapted(adapter, base_model_path, None, hash_base=hash_base, compare=False, keep_base=keep_base)
    _settle(adapted.encoder)
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
def _readable(source: ModelOrigin) -> Iterator[None]:
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
        raise ModelError(f"{source.where}: {what}") from error


@dataclass(frozen=True)
class _Loader:
    """How the parts of one encoder are loaded."""

    trust_remote_code: bool
    device: str | None
    model_kwargs: dict[str, Any]

    def whole(self, source: ModelOrigin, pooling: str | None, *, says_pooling: bool = False) -> SentenceTransformer:
        """A model that is no adapter, with nothing made up in it.

        says_pooling: it is the base of an adapter that says how to embed, so that it need not say so itself.
        """
        with _without_adapter(source) as location:
            self._check_before(source, location, pooling, says_pooling=says_pooling)
            with watch_loading(source.where) as loaded:
                model = self._load(location, pooling)
        if source.origin is Origin.HUB and source.files is not None:
            check_files(source.files)  # what was fetched only now
        _check_tokenizers(model, source.where)
        check_weights(model, loaded, source.where)
        check_loaded(model, source.location, source.where)
        if source.folder is not None:
            check_trust(source.folder, [one.model for one in loaded], source.where)
        for one in loaded:
            warn_of_unused_code(one.model, source.where)
        if (named := model.similarity_fn_name) != COSINE:
            log.warning("%s: was made for similarity by %s, and is judged by %s", source.where, named, similarity_of(model))
        return model

    def _check_before(self, source: ModelOrigin, location: str, pooling: str | None, *, says_pooling: bool) -> None:
        if source.files is not None:
            check_files(source.files)
        refuse_other_families(location, source.where, says_pooling=says_pooling or pooling is not None)
        quantization.check_saved_bits(location, source.where, self.model_kwargs.get("quantization_config"))
        if is_sentence_transformer_model(location):
            if source.folder is not None:
                check_modules(source.folder, source.where)
        elif not says_pooling:
            refuse_lost_modules(source, source.where, pooling=pooling)

    def _load(self, location: str, pooling: str | None) -> SentenceTransformer:
        options: dict[str, Any] = {
            "trust_remote_code": self.trust_remote_code,
            "device": self.device,
            "model_kwargs": self.model_kwargs,
        }
        if is_sentence_transformer_model(location):
            return SentenceTransformer(location, **options)
        return plain_encoder(location, pooling=pooling, **options)

    def adapted(
        self,
        adapter: LoraAdapter,
        base_model_path: str | None,
        pooling: str | None,
        *,
        hash_base: bool,
        compare: bool,
        keep_base: bool = False,
    ) -> AdaptedEncoder:
        """A base with an adapter in its layers, pooled and prompted as the adapter says. Arguments as of load_encoder."""
        folder, where = adapter.folder, f"model {str(adapter.folder)!r}"
        if adapter.is_encoder:
            check_modules(folder, where)
        else:
            refuse_lost_modules(ModelOrigin(str(folder), Origin.FOLDER, str(folder)), where, pooling=pooling)
        base = base_source(adapter, base_model_path)
        encoder = self.whole(base, None if adapter.is_encoder else pooling, says_pooling=adapter.is_encoder)
        require_transformer(encoder, "base_model_path", base.name)
        recorded = (read_manifest(folder) or {}).get("base_sha256") if compare else None
        adapted = attach(
            encoder,
            adapter,
            base,
            trust_remote_code=self.trust_remote_code,
            hash_base=hash_base or recorded is not None,
            keep_base=keep_base,
        )
        check_trust(folder, [encoder[0].model], where)
        if adapter.is_encoder:
            check_loaded(adapted.encoder, str(folder), where)
        _check_tokenizers(adapted.encoder, where)
        return adapted


@contextmanager
def _without_adapter(source: ModelOrigin) -> Iterator[str]:
    """Where a model lies alone: no library loads a base by itself from a folder that holds an adapter too."""
    folder = source.folder
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        yield source.location
        return
    with tempfile.TemporaryDirectory() as scratch:
        for path in folder.iterdir():
            if path.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                (Path(scratch) / path.name).symlink_to(path)
        yield scratch


def _check_tokenizers(model: SentenceTransformer, where: str) -> None:
    """Refuse a tokenizer that does not belong to its table; give one something to pad with. Raises ModelError."""
    for module in model.modules():
        if isinstance(module, StaticEmbedding):
            check_tokenizer(module.tokenizer, module.embedding, where)
        elif isinstance(module, Transformer):
            check_tokenizer(module.tokenizer, table_of(module.model), where)
            if isinstance(module.tokenizer, PreTrainedTokenizerBase):
                ensure_padding(module.tokenizer, where)


def _settle(model: SentenceTransformer) -> None:
    """What every encoder must be, however it was saved: padded behind, and no longer than its positions."""
    quantization.keep_trainable(model)
    pads_behind = all(map(_is_stock, _all_modules(model)))
    for module in model.modules():
        # Absolute positions count the padding in front; behind, it is out of every token's way. Code of a model's own may
        # look for the last token at the last place.
        if pads_behind and isinstance(module, Transformer) and isinstance(module.tokenizer, PreTrainedTokenizerBase):
            module.tokenizer.padding_side = "right"
    _keep_lower_case(model)
    keep_within_positions(model)


def _all_modules(model: SentenceTransformer) -> Iterator[torch.nn.Module]:
    """The modules of an encoder, those of routes as well."""
    for module in model:
        yield module
        if isinstance(module, Router):
            yield from (inner for route in module.sub_modules.values() for inner in route)


def _is_stock(module: torch.nn.Module) -> bool:
    """Whether a module is computed by the code of the libraries alone."""
    transformer = getattr(module, "model", None)
    own_code = isinstance(transformer, PreTrainedModel) and transformer.is_custom_code()
    return type(module).__module__.startswith("sentence_transformers.") and not own_code


def _keep_lower_case(model: SentenceTransformer) -> None:
    """Let do_lower_case be saved with the model, which sentence-transformers forgets, to read other words afterwards."""
    for module in model.modules():
        if isinstance(module, Transformer) and module.do_lower_case and "do_lower_case" not in module.config_keys:
            module.config_keys = [*module.config_keys, "do_lower_case"]


def _compare(model: SentenceTransformer, folder: Path | None, name: str) -> None:
    """Say where a model is not computed with as it was when it was saved, by our manifest."""
    record = read_manifest(folder) if folder is not None else None
    if lines := differences_from(record or {}, model):
        log.warning(
            "%s: is not what its manifest says: %s; its vectors may be others than when it was made", name, "; ".join(lines)
        )


def require_transformer(model: SentenceTransformer, option: str, name: str) -> None:
    """Raises ModelError for a model that does not begin with a transformer, the only place for an adapter, or has routes."""
    refuse_routes(model, option, name)
    if not isinstance(getattr(model[0], "model", None), PreTrainedModel):
        raise ModelError(f"{option} {name}: does not begin with a transformer, which is what can be tuned")


def save_encoder(model: SentenceTransformer, folder: Path) -> None:
    """Save an encoder, or the adapter that it carries, with its pooling, prompts and lengths: safetensors and JSON.

    Raises SafetensorError, which is no OSError, when its weights cannot be written: a full disk may come as one.
    """
    _keep_lower_case(model)
    with quiet_files():  # no card: it would be a copy of the base's
        model.save_pretrained(str(folder), create_model_card=False)
    lay_out_code(folder)


def save_whole(model: SentenceTransformer, folder: Path) -> None:
    """save_encoder for whoever has nothing to rescue. Raises ModelError when the weights cannot be written."""
    try:
        save_encoder(model, folder)
    except SafetensorError as error:
        raise ModelError(f"the model cannot be written ({error})") from None


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


def similarity_of(model: SentenceTransformer) -> str:
    """What its vectors are compared by: dot for a model that was made for it, else cosine; distances are not searched by."""
    return DOT if model.similarity_fn_name == DOT else COSINE
