"""What a model is: the same identity gives the same vectors, wherever its files lie and whatever they are called.

Three parts: the digest of the weights, how they are computed with, and how texts become tokens.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from ebr.model.files.peft_import import LoraLayer
from ebr.model.files.tokenizer import spelling_of

# Of a configuration: where it lies, how it is computed or was trained, what is made beside a vector. All else counts.
_NEITHER_HERE_NOR_THERE = {
    "architectures", "auto_map", "chunk_size_feed_forward", "dtype", "finetuning_task", "id2label", "initializer_factor",
    "initializer_range", "label2id", "num_labels", "output_attentions", "problem_type", "quantization_config", "return_dict",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_cache",
}  # fmt: skip
# Of a module of sentence-transformers: lengths and prompts are facts of their own.
_FACTS_ELSEWHERE = {"max_seq_length", "query_length", "document_length", "unpad_inputs"}
_LIBRARIES = {"accelerate", "bitsandbytes", "ebr", "peft", "sentence_transformers", "tokenizers", "torch", "transformers"}


def fingerprint(model: SentenceTransformer) -> str:
    """sha256 over every weight."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def architecture(model: SentenceTransformer) -> dict[str, Any]:
    """How the weights are computed with, as plain JSON: classes, configuration, code of its own, the scale of each adapter.

    lora_alpha, is_causal, and code of the model's own (trust_remote_code) change vectors and no weight.
    """
    record: dict[str, Any] = {}
    scales: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            record[name] = {"class": type(module).__name__, **_configuration(module.config.to_diff_dict())}
        elif isinstance(module, LoraLayer):
            active = [module.scaling.get(adapter) for adapter in module.active_adapters]
            scales[name] = active[0] if len(active) == 1 else active
        elif name and callable(getattr(module, "get_config_dict", None)):
            record[name] = {"class": type(module).__name__, **_settings(module.get_config_dict())}
    if scales:
        # One number where all layers have the same, as is usual; else a digest of them all.
        same = next(iter(scales.values())) if len({str(scale) for scale in scales.values()}) == 1 else _digest(scales)
        record["lora"] = {"scale": same, "layers": len(scales)}
    if code := _own_code(model):
        record["code"] = {"sha256": code}
    plain: dict[str, Any] = json.loads(json.dumps(record, sort_keys=True, default=str))
    return plain


def spelling_digest(model: SentenceTransformer) -> str:
    """sha256 over every tokenizer of the model: how its texts become tokens."""
    tokenizers = [getattr(module, "tokenizer", None) for module in model.modules()]
    found = [spelling_of(tokenizer) for tokenizer in tokenizers if tokenizer is not None]
    return _digest(found) if found else ""


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two architectures, in words."""
    flat = [{f"{part} {key}": value for part, values in one.items() for key, value in values.items()} for one in (before, now)]
    return [
        f"{key} was {flat[0].get(key)!r}, is {flat[1].get(key)!r}"
        for key in sorted({*flat[0], *flat[1]})
        if flat[0].get(key) != flat[1].get(key)
    ]


def differences_from(record: dict[str, Any], model: SentenceTransformer) -> list[str]:
    """What differs from what a manifest records of a model, beside its weights, in words; none where it records nothing."""
    lines = differences(record["architecture"], architecture(model)) if record.get("architecture") else []
    if record.get("spelling_sha256") and record["spelling_sha256"] != spelling_digest(model):
        lines.append("its tokenizer makes other tokens of a text")
    return lines


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Of a module of sentence-transformers, what changes a vector of a text."""
    kept = {key: value for key, value in values.items() if key not in _FACTS_ELSEWHERE}
    if "modality_config" in kept:
        kept["modality_config"] = sorted({"text", "message"} & set(kept["modality_config"]))
    if kept.get("route_mappings"):  # of a Router: by pairs, which are no keys in JSON
        kept["route_mappings"] = {str(pair): route for pair, route in kept["route_mappings"].items()}
    return kept


def _configuration(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _configuration(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _NEITHER_HERE_NOR_THERE and not key.startswith("_") and not _is_chance(key, value)
    }


def _is_chance(key: str, value: object) -> bool:
    """Whether this is a chance of dropping out, which matters in training alone."""
    return "drop" in key and isinstance(value, float)


def _own_code(model: SentenceTransformer) -> str:
    """sha256 over the code of classes that are of no library; '' without any."""
    classes = {type(module) for module in model.modules() if type(module).__module__.split(".")[0] not in _LIBRARIES}
    sources: set[tuple[str, str]] = set()
    for kind in classes:
        file = Path(inspect.getsourcefile(kind) or kind.__module__)
        # What came with a model was copied to a folder of its own, with every file that it imports.
        came_along = kind.__module__.startswith("transformers_modules.")
        for path in file.parent.glob("*.py") if came_along else [file]:
            sources.add((path.name, path.read_text(encoding="utf-8") if path.is_file() else ""))
    return _digest(sorted(sources)) if classes else ""


def _digest(record: object) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()
