"""A LoRA adapter on disk: its weights, its settings, and what its folder says of how to embed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ebr.data.files.write import read_json
from ebr.errors import ModelError, why_not_utf8
from ebr.model.files.weights import check_files
from ebr.model.origin import ADAPTER_CONFIG

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODULES = "modules.json"


@dataclasses.dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter on disk: its weights, and its folder with adapter_config.json."""

    weights: Path
    config: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where the adapter's settings lie."""
        return self.weights.parent

    @property
    def is_encoder(self) -> bool:
        """Whether the folder says how to embed: pooling, prompts, lengths."""
        return (self.folder / MODULES).is_file()

    def modules(self) -> list[dict[str, Any]]:
        """The modules of an encoder, as its folder lists them. Raises ModelError for one that lies elsewhere on this disk."""
        file = self.folder / MODULES
        listed: list[dict[str, Any]] = read_json(file)
        for module in listed:
            path = str(module.get("path", ""))
            if ".." in Path(path).parts or not (self.folder / path).resolve().is_relative_to(self.folder):
                raise ModelError(f"{file}: path {path!r} leads out of the folder")
        return listed


def find_adapter(path: Path, *, option: str = "lora_adapter_path") -> LoraAdapter:
    """A folder with an adapter, or its .safetensors file. option: what the user calls it.

    Raises ModelError that says what is missing.
    """
    path = path.expanduser()
    if not path.exists():
        raise ModelError(f"{option} {path}: no such folder or file")
    if reason := why_not_utf8(str(path.resolve())):
        raise ModelError(f"{option} {path}: {str(path.resolve())!r} {reason}")
    weights = _weights_in(path, option) if path.is_dir() else path
    if weights.suffix != ".safetensors":
        raise ModelError(f"{option} {path}: is no .safetensors file; give the adapter's folder or that file")
    check_files(weights.parent)
    file = weights.parent / ADAPTER_CONFIG
    if not file.is_file():
        raise ModelError(f"{weights.parent}: holds no {ADAPTER_CONFIG}, which says rank, alpha and layers; put it there")
    try:
        config = read_json(file)
        with safe_open(weights, framework="pt") as header:
            n_tensors = len(header.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{option} {path}: cannot be read ({error}); copy the adapter again") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(f"{file}: peft_type is {kind!r}; only LORA adapters can be loaded and merged")
    _refuse_unreadable(config, file)
    if not n_tensors:
        raise ModelError(f"{weights}: holds no weights; copy the adapter again")
    # The folder only: in the hub's cache the file itself is a link to where no settings lie.
    return LoraAdapter(weights.parent.resolve() / weights.name, config)


def _refuse_unreadable(config: Mapping[str, Any], file: Path) -> None:
    """Refuse what an adapter's file cannot bring back, or what would never be active. Raises ModelError."""
    if config.get("alora_invocation_tokens"):
        raise ModelError(f"{file}: alora_invocation_tokens: acts behind a call in the text alone, which an embedding has not")
    if str(config.get("init_lora_weights")).startswith("pissa_niter"):
        raise ModelError(
            f"{file}: init_lora_weights {config['init_lora_weights']!r} splits the base at random each time it is loaded, so "
            "its vectors cannot come back; convert the adapter to a plain LoRA (path_initial_model_for_weight_conversion)"
        )
    if config.get("layer_replication"):
        raise ModelError(f"{file}: layer_replication: adapters on copies of the base's layers cannot be loaded and merged")
    numbers = {name: config.get(name) for name in ("r", "lora_alpha")}
    if wrong := [f"{name} is {value!r}" for name, value in numbers.items() if isinstance(value, bool | str | None)]:
        raise ModelError(f"{file}: {', '.join(wrong)}, not a number; copy the file again")


def _weights_in(folder: Path, option: str) -> Path:
    if (folder / ADAPTER_WEIGHTS).is_file():
        return folder / ADAPTER_WEIGHTS
    files = sorted(folder.glob("*.safetensors"))
    if not files and (pickle := folder / "adapter_model.bin").is_file():
        raise ModelError(
            f"{pickle}: is a pickle, which can run code when it is read; save the adapter as safetensors where it was made "
            "(save_pretrained of a current peft does)"
        )
    if len(files) != 1:
        found = f"{len(files)} .safetensors files" if files else "no .safetensors file"
        raise ModelError(f"{option} {folder}: holds {found}, none of them {ADAPTER_WEIGHTS}; give the adapter's file")
    return files[0]
