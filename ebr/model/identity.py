"""What a model is: the same identity gives the same vectors, wherever its files lie and whatever they are called.

Two digests: of the weights, and of everything else that a vector depends on.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from ebr.model.peft_import import LoraLayer

# Of a configuration: where it lies, how it is computed or trained, what is made beside a vector.
_NEITHER_HERE_NOR_THERE = {
    "_name_or_path", "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id", "dtype",
    "eos_token_id", "finetuning_task", "id2label", "initializer_factor", "initializer_range", "label2id", "num_labels",
    "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "quantization_config", "return_dict",
    "sep_token_id", "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_cache",
}  # fmt: skip
_TRAINING_ONLY = ("dropout", "_pdrop")
# Of a module of sentence-transformers: lengths and prompts are facts of their own.
_FACTS_ELSEWHERE = {"max_seq_length", "query_length", "document_length", "unpad_inputs"}


def fingerprint(model: SentenceTransformer) -> str:
    """sha256 over every weight."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def architecture(model: SentenceTransformer) -> dict[str, Any]:
    """How the weights are computed with, as plain JSON: classes, configuration, the scale of each adapter.

    lora_alpha, is_causal, and code of the model's own (trust_remote_code) change vectors and no weight.
    """
    record: dict[str, Any] = {}
    scales: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            record[name] = {**_class_of(module), **_configuration(module.config.to_diff_dict())}
        elif isinstance(module, LoraLayer):
            active = [module.scaling.get(adapter) for adapter in module.active_adapters]
            scales[name] = active[0] if len(active) == 1 else active
        elif name and callable(getattr(module, "get_config_dict", None)):
            record[name] = {"class": type(module).__name__, **_settings(module.get_config_dict())}
    if scales:
        # One number where all layers have the same, as is usual; else a digest of them all.
        same = next(iter(scales.values())) if len({str(scale) for scale in scales.values()}) == 1 else _digest(scales)
        record["lora"] = {"scale": same, "layers": len(scales)}
    plain: dict[str, Any] = json.loads(json.dumps(record, sort_keys=True, default=str))
    return plain


def tokenizer_digest(model: SentenceTransformer) -> str:
    """sha256 over every tokenizer of the model; where it cuts and pads is left out, which is set anew for every call."""
    found = []
    for module in model.modules():
        tokenizer = getattr(module, "tokenizer", None)
        backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
        if isinstance(backend, Tokenizer):
            state = json.loads(backend.to_str())
            found.append({name: value for name, value in state.items() if name not in ("truncation", "padding")})
    return _digest(found) if found else ""


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two architectures, in words."""
    flat = [{f"{part} {key}": value for part, values in one.items() for key, value in values.items()} for one in (before, now)]
    return [
        f"{key} was {flat[0].get(key)!r}, is {flat[1].get(key)!r}"
        for key in sorted({*flat[0], *flat[1]})
        if flat[0].get(key) != flat[1].get(key)
    ]


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Of a module of sentence-transformers, what changes a vector of a text."""
    kept = {key: value for key, value in values.items() if key not in _FACTS_ELSEWHERE}
    if "modality_config" in kept:
        kept["modality_config"] = sorted({"text", "message"} & set(kept["modality_config"]))
    return kept


def _configuration(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _configuration(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _NEITHER_HERE_NOR_THERE and not key.startswith("_") and not any(part in key for part in _TRAINING_ONLY)
    }


def _class_of(model: PreTrainedModel) -> dict[str, str]:
    """The class, and for one that came with the model the digest of its code, whose address says where it lies."""
    kind = type(model)
    if not model.is_custom_code():
        return {"class": kind.__name__}
    file = inspect.getsourcefile(kind)
    return {
        "class": kind.__name__,
        "code_sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else kind.__module__,
    }


def _digest(record: object) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()
