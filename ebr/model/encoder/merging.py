"""A base and its adapter become one model: added up, written whole, loaded again, compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from transformers import AutoProcessor, PreTrainedModel

from ebr.data.files.write import read_json, write_json
from ebr.errors import ModelError
from ebr.model.adapters.adapted import AdaptedEncoder
from ebr.model.adapters.files import LoraAdapter
from ebr.model.encoder.encoder import load_adapted, load_encoder, quiet_files, save_encoder
from ebr.model.encoder.routes import refuse_routes
from ebr.model.files.peft_import import LoraModel
from ebr.model.files.quantization import is_quantized

# Whatever else lies in an adapter's folder is about its training.
_SETTINGS = ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "*.py")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
SAMPLES = (
    "red shoe",
    "What is the capital of France?",
    "Paris has been the capital of France since the tenth century, but for a few interruptions.",
    "红色的鞋",
    "如何在家里种植番茄？",
    "番茄喜欢充足的阳光和排水良好的土壤，每周浇水两到三次，夏天可以适当增加。",
    "A small blue cup of porcelain, made for tea, holds about two decilitres and may be washed in a machine. " * 12,
    "这本书讲述了一个小城的百年历史，从第一批移民到来，到铁路通车，再到今天的大学与工厂。" * 12,
)


def unmerged(
    base: str,
    adapter: LoraAdapter,
    *,
    trust_remote_code: bool,
    bits: int = 0,
    hash_base: bool = False,
    keep_base: bool = False,
) -> AdaptedEncoder:
    """Base and adapter in float32, or on a base in 4 or 8 bits. Raises ModelError when the base is quantised as it is."""
    # On a CPU float32 is float32; a GPU may multiply in less.
    device = None if bits else "cpu"
    adapted = load_adapted(
        adapter,
        base,
        trust_remote_code=trust_remote_code,
        device=device,
        bits=bits,
        hash_base=hash_base,
        keep_base=keep_base,
    )
    if not bits:
        _refuse_quantised(adapted.encoder, f"base_model_path {base}")
    return adapted


def load_whole(name: str, option: str, *, trust_remote_code: bool) -> SentenceTransformer:
    """A model that is no adapter, in float32 on the CPU. option: what messages call it. Raises ModelError as load_encoder."""
    encoder = load_encoder(name, trust_remote_code=trust_remote_code, device="cpu")
    refuse_routes(encoder, option, name)
    _refuse_quantised(encoder, f"{option} {name}")
    return encoder


def _refuse_quantised(encoder: SentenceTransformer, who: str) -> None:
    if is_quantized(encoder):
        raise ModelError(f"{who}: its weights are quantised; give the unquantised model")


def merge_layers(tuner: LoraModel) -> PreTrainedModel:
    """The base with the adapter added into its weights, in their precision. Raises ModelError when peft cannot merge."""
    try:
        merged: PreTrainedModel = tuner.merge_and_unload(safe_merge=True)
        merged._hf_peft_config_loaded = False  # else only the adapter would be saved
        return merged
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"the adapter cannot be merged ({error})") from error


def save_merged(encoder: SentenceTransformer, adapter: LoraAdapter | None, folder: Path, *, trust_remote_code: bool) -> None:
    """Write a whole encoder: the weights of `encoder`, and how to embed from the adapter's folder where that says it.

    adapter: None = `encoder` was loaded whole, and says itself how to embed.
    """
    try:
        if adapter is None or not adapter.is_encoder:
            save_encoder(encoder, folder)
            return
        with quiet_files():
            encoder[0].model.save_pretrained(str(folder))
            source = adapter.folder if (adapter.folder / "tokenizer_config.json").is_file() else None
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code) if source else None
            (processor or encoder[0].processor).save_pretrained(str(folder))
    except SafetensorError as error:
        raise ModelError(f"the merged model cannot be written ({error})") from None
    for pattern in _SETTINGS:
        for file in adapter.folder.glob(pattern):
            shutil.copy(file, folder)
    for module in adapter.modules():
        if path := module.get("path", ""):
            shutil.copytree(adapter.folder / path, folder / path)
    _write_lower_case(encoder, folder)


def _write_lower_case(encoder: SentenceTransformer, folder: Path) -> None:
    """What the files of an adapter may lack, see save_encoder."""
    if not encoder[0].do_lower_case:
        return
    file = folder / encoder[0].config_file_name
    write_json(file, {**(read_json(file) if file.is_file() else {}), "do_lower_case": True})


def load_saved(folder: Path, *, trust_remote_code: bool) -> SentenceTransformer:
    """A finished folder, loaded as its users will load it. Raises ModelError when it does not load."""
    try:
        with quiet_files():
            return SentenceTransformer(str(folder), device="cpu", trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"the model that was written cannot be loaded ({error})") from error


def pickles_in(folder: Path) -> list[Path]:
    """Files that run code when they are loaded."""
    return sorted(path for path in folder.rglob("*") if path.suffix in _PICKLES)


def sample_vectors(encoder: SentenceTransformer) -> NDArray[np.float32]:
    """Built-in texts, short and long, English and Chinese, as queries and as documents: (16, D)."""
    encodes: list[Callable[..., NDArray[np.float32]]] = [encoder.encode_query, encoder.encode_document]
    device = encoder[0].model.device
    return np.concatenate([encode(list(SAMPLES), device=device, show_progress_bar=False) for encode in encodes])


def smallest_cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Of row i of the one with row i of the other; nan where a vector has nan or no length."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())
