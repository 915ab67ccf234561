"""A LoRA adapter from anywhere: what its files must hold, and which weight goes to which layer of a base."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ebr.data.files import read_json
from ebr.errors import EBRError, ModelError, first_line
from ebr.model.adapters import ADAPTER_WEIGHTS
from ebr.model.encoder import ADAPTER_CONFIG

_PART_OF_LORA = re.compile(r"lora_(A|B|embedding_A|embedding_B|magnitude_vector)")


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
        return (self.folder / "modules.json").is_file()


def find_adapter(path: Path) -> LoraAdapter:
    """A folder with an adapter, or its .safetensors file. Raises ModelError that says what is missing."""
    path = path.expanduser()
    if not path.exists():
        raise ModelError(f"lora_adapter_path {path}: no such folder or file")
    weights = _weights_in(path) if path.is_dir() else path
    if weights.suffix != ".safetensors":
        raise ModelError(f"lora_adapter_path {path}: is no .safetensors file; give the adapter's folder or that file")
    file = weights.parent / ADAPTER_CONFIG
    if not file.is_file():
        raise ModelError(f"{weights.parent}: holds no {ADAPTER_CONFIG}, which says rank, alpha and layers; put it there")
    try:
        config = read_json(file)
        with safe_open(weights, framework="pt") as header:
            n_tensors = len(header.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"lora_adapter_path {path}: cannot be read ({error}); copy the adapter again") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(f"{file}: peft_type is {kind!r}; only LORA adapters can be merged")
    if not n_tensors:
        raise ModelError(f"{weights}: holds no weights; copy the adapter again")
    # The folder only: in the hub's cache the file itself is a link to where no settings lie.
    return LoraAdapter(weights.parent.resolve() / weights.name, config)


def _weights_in(folder: Path) -> Path:
    if (folder / ADAPTER_WEIGHTS).is_file():
        return folder / ADAPTER_WEIGHTS
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        found = f"{len(files)} .safetensors files" if files else "no .safetensors file"
        raise ModelError(f"lora_adapter_path {folder}: holds {found}, none of them {ADAPTER_WEIGHTS}; give the adapter's file")
    return files[0]


def attach_adapter(transformer: PreTrainedModel, adapter: LoraAdapter) -> LoraModel:
    """Put an adapter's weights, under whatever prefix they were saved, into the layers that they were trained for.

    Raises ModelError, with the first keys, when a weight finds no place or a place finds no weight.
    """
    weights = _read_weights(adapter)
    prefix, layers = _place(transformer, weights, adapter)
    try:
        config = _named_as_in_base(_lora_config(adapter), prefix, transformer, layers)
        tuner = LoraModel(transformer, config, "default")
        places = get_peft_model_state_dict(transformer, save_embedding_layers=True)
        _check_places(weights, places, get_peft_model_state_dict(transformer, save_embedding_layers=False), prefix, adapter)
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
        set_peft_model_state_dict(transformer, weights)
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, EBRError):
            raise
        raise _misfit(adapter, [first_line(error)]) from error
    # What was loaded is read back: libraries log a weight that they leave out, and go on.
    loaded = get_peft_model_state_dict(transformer, save_embedding_layers=True)
    if left_out := [key for key, tensor in weights.items() if not torch.equal(loaded[key], tensor.to(loaded[key]))]:
        raise _misfit(adapter, [f"not taken up: {_first(left_out)}"])
    return tuner


def _read_weights(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(adapter.weights).items():
        plain = plain_key(key)
        if plain in weights:
            raise ModelError(f"{adapter.weights}: holds {plain} twice, of two adapters; keep one of them")
        if not tensor.isfinite().all():
            raise ModelError(f"{adapter.weights}: {key} holds nan or inf; the training diverged, take an earlier checkpoint")
        weights[plain] = tensor
    return weights


def plain_key(key: str) -> str:
    """A weight's name as peft saves it: without the adapter's own name, `x.lora_A.default.weight` → `x.lora_A.weight`."""
    parts = key.split(".")
    for index, part in enumerate(parts):
        if part == "modules_to_save":
            rest = parts[index + 1 :]
            return ".".join([*parts[:index], *(rest[1:] if rest[:1] == ["default"] else rest)])
        if part == "lora_magnitude_vector" or part.startswith("lora_embedding_"):
            return ".".join(parts[: index + 1])
        if _PART_OF_LORA.fullmatch(part):
            return ".".join([*parts[: index + 1], parts[-1]])
    return key


def _lora_config(adapter: LoraAdapter) -> LoraConfig:
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    # peft would warn and leave them out: then what is merged is not what was trained.
    if lost := sorted(key for key, value in adapter.config.items() if key not in known and value):
        raise ModelError(f"{adapter.folder / ADAPTER_CONFIG}: this peft does not know {', '.join(lost)}; pip install -U peft")
    return LoraConfig(**{key: value for key, value in adapter.config.items() if key in known - {"runtime_config"}})


def _place(transformer: PreTrainedModel, weights: Iterable[str], adapter: LoraAdapter) -> tuple[str, set[str]]:
    """The prefix that the weights' names have before the base's own, and the layers, by their names in the base."""
    names = dict(transformer.named_modules())
    paths = {parts[0].replace(".base_layer", "") for key in weights if len(parts := re.split(r"\.lora_", key)) > 1}
    found: Counter[str] = Counter()
    for path in paths:
        tails = [path[start:] for start in _starts(path)]
        if tail := next((tail for tail in tails if tail in names), ""):
            found[path.removesuffix(tail)] += 1
    if not found:
        raise _misfit(adapter, [f"{len(paths)} layers that it lacks: {_first(sorted(paths))}"])
    prefix = found.most_common(1)[0][0]
    return prefix, {path.removeprefix(prefix) for path in paths}


def _starts(path: str) -> list[int]:
    """Where the parts of a dotted name begin, the longest tail first."""
    return [0, *(match.end() for match in re.finditer(r"\.", path))]


def _named_as_in_base(config: LoraConfig, prefix: str, transformer: PreTrainedModel, layers: set[str]) -> LoraConfig:
    """The adapter's settings, with the layers that they choose, under the names of training, by their names in the base.

    The names of training are those in the base behind some tail of the prefix: the one under which settings and weights agree.
    """
    names = [name for name, _ in transformer.named_modules() if name]
    tails = [prefix[start:] for start in _starts(prefix)]  # the last is ''
    targets = config.target_modules
    if targets and targets != "all-linear" and not config.target_parameters:
        if not isinstance(targets, str):
            config.target_modules = {_known(entry, prefix, names) for entry in targets}
        for tail in tails:
            chosen = {name for name in names if check_target_module_exists(config, tail + name)}
            if chosen == layers:
                break
        config.target_modules = chosen
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.rank_pattern = _patterns(config.rank_pattern, tails, layers)
    config.alpha_pattern = _patterns(config.alpha_pattern, tails, layers)
    return config


def _known(entry: str, prefix: str, names: Iterable[str]) -> str:
    """An entry of target_modules; where no layer is called so, its longest tail that is a layer's name."""
    trained = [prefix + name for name in names]
    if any(name == entry or name.endswith(f".{entry}") for name in trained):
        return entry
    return next((entry[start:] for start in _starts(entry) if entry[start:] in names), entry)


def _patterns(patterns: Mapping[str, int], tails: list[str], layers: Iterable[str]) -> dict[str, int]:
    """Ranks or alphas of single layers, by the layers' names in the base."""
    found = {}
    for layer in layers:
        keys = [get_pattern_key(list(patterns), tail + layer) for tail in tails]
        found.update({f"^{re.escape(layer)}": patterns[key] for key in keys if key in patterns})
    return found


def _check_places(
    weights: Mapping[str, torch.Tensor],
    places: Mapping[str, torch.Tensor],
    required: Iterable[str],
    prefix: str,
    adapter: LoraAdapter,
) -> None:
    local = {key: key.removeprefix(prefix) if key.startswith(prefix) else "" for key in weights}
    lost = sorted(key for key, name in local.items() if name not in places)
    bent = [
        f"{key} {tuple(tensor.shape)} where the base takes {tuple(places[local[key]].shape)}"
        for key, tensor in sorted(weights.items())
        if local[key] in places and tensor.shape != places[local[key]].shape
    ]
    missing = sorted(set(required) - set(local.values()))
    problems = [
        f"{len(keys)} {what}: {_first(keys)}"
        for what, keys in (("weights without a place", lost), ("of another shape", bent), ("places without weights", missing))
        if keys
    ]
    if problems:
        raise _misfit(adapter, problems)


def _misfit(adapter: LoraAdapter, problems: Iterable[str]) -> ModelError:
    return ModelError(
        f"{adapter.weights}: does not fit this base ({'; '.join(problems)}); "
        "base_model_path must be the model that the adapter was trained on"
    )


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")
