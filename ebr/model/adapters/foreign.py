"""A LoRA adapter from anywhere: what its files must hold, and which weight goes to which layer of a base."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ebr.errors import EBRError, ModelError, first_line
from ebr.model.adapters.files import LoraAdapter
from ebr.model.files.loading import first_names
from ebr.model.files.peft_import import (
    LoraConfig,
    LoraModel,
    bitsandbytes_hidden,
    check_target_module_exists,
    get_pattern_key,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from ebr.model.files.tokenizer import table_of
from ebr.model.origin import ADAPTER_CONFIG

log = logging.getLogger(__name__)

_WITHOUT_WEIGHTS = "places without weights"
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PART_OF_LORA = re.compile(r"lora_(A|B|embedding_A|embedding_B|magnitude_vector)")


def attach_adapter(transformer: PreTrainedModel, adapter: LoraAdapter) -> LoraModel:
    """Put an adapter's weights, under whatever prefix they were saved, into the layers that they were trained for.

    Weights of a language model's or a classifier's head, which no embedding reads, are left out, and said. A table of
    embeddings that grew with the adapter's tokenizer grows here too.
    Raises ModelError, with the first keys, when a weight finds no place or a place finds no weight.
    """
    weights = _read_weights(adapter)
    prefix = _prefix_of(transformer, weights, adapter)
    weights = _without_heads(weights, prefix, transformer, adapter)
    _grow_table(transformer, weights, prefix, adapter)
    layers = {path.removeprefix(prefix) for path in _layer_paths(weights)}
    settings = _lora_config(adapter)
    try:
        config = _named_as_in_base(settings, prefix, transformer, layers)
        with bitsandbytes_hidden():
            tuner = LoraModel(transformer, config, "default")
        places = get_peft_model_state_dict(transformer, save_embedding_layers=True)
        _check_places(weights, places, get_peft_model_state_dict(transformer, save_embedding_layers=False), prefix, adapter)
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
        set_peft_model_state_dict(transformer, weights)
    except (AttributeError, ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, EBRError):
            raise
        raise ModelError(f"{adapter.weights}: peft cannot put it into this base ({first_line(error)})") from error
    # What was loaded is read back: libraries log a weight that they leave out, and go on.
    loaded = get_peft_model_state_dict(transformer, save_embedding_layers=True)
    if left_out := [key for key, tensor in weights.items() if not torch.equal(loaded[key], tensor.to(loaded[key]))]:
        raise _misfit(adapter, [f"not taken up: {first_names(left_out)}"])
    return tuner


def _read_weights(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(adapter.weights).items():
        plain = plain_key(key)
        if ".original_module." in key:
            continue  # peft's copy of what the base has
        if "lora_" not in key and plain in weights and torch.equal(weights[plain], tensor):
            continue  # a layer that was trained whole, by both of its names
        if plain in weights:
            raise ModelError(f"{adapter.weights}: holds {plain} twice, of two adapters; keep one of them")
        if not tensor.isfinite().all():
            raise ModelError(f"{adapter.weights}: {key} holds nan or inf; the training diverged, take an earlier checkpoint")
        weights[plain] = tensor
    return weights


def plain_key(key: str) -> str:
    """A weight's name as peft saves it: without the adapter's own name, `x.lora_A.default.weight` → `x.lora_A.weight`.

    Also without what compiling, sharding and checkpointing put into the names of what they wrap.
    """
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    key = ".".join(parts)
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
    try:
        return LoraConfig(**{key: value for key, value in adapter.config.items() if key in known - {"runtime_config"}})
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{adapter.folder / ADAPTER_CONFIG}: cannot be used ({first_line(error)})") from error


def _layer_paths(weights: Iterable[str]) -> set[str]:
    """Names of the layers that have LoRA weights, as they were when it was trained."""
    return {parts[0].replace(".base_layer", "") for key in weights if len(parts := re.split(r"\.lora_", key)) > 1}


def _prefix_of(transformer: PreTrainedModel, weights: Iterable[str], adapter: LoraAdapter) -> str:
    """What the weights' names have before the base's own, like `base_model.model.bert.`."""
    names = dict(transformer.named_modules())
    paths = _layer_paths(weights)
    found: Counter[str] = Counter()
    for path in paths:
        tails = [path[start:] for start in _starts(path)]
        if tail := next((tail for tail in tails if tail in names), ""):
            found[path.removesuffix(tail)] += 1
    if not found:
        raise _misfit(adapter, [f"{len(paths)} layers that it lacks: {first_names(sorted(paths))}"])
    return found.most_common(1)[0][0]


def _without_heads(
    weights: Mapping[str, torch.Tensor], prefix: str, transformer: PreTrainedModel, adapter: LoraAdapter
) -> dict[str, torch.Tensor]:
    """The weights without those of layers that stood beside the model, in whatever it was trained within: lm_head, score.

    Also without those of a decoder, where the base is the encoder alone.
    """
    beside = prefix[: prefix.rstrip(".").rfind(".") + 1]
    own = {name for name, _ in transformer.named_children()}

    def is_head(key: str) -> bool:
        if key.startswith(prefix):
            return "decoder" not in own and key.startswith(f"{prefix}decoder.")
        return bool(prefix) and key.startswith(beside) and key.removeprefix(beside).split(".")[0] not in own

    heads = sorted(filter(is_head, weights))
    if heads:
        log.warning(
            "%s: %d weights of layers that an embedding does not read are left out (%s)",
            adapter.weights,
            len(heads),
            first_names(heads),
        )
    return {key: tensor for key, tensor in weights.items() if key not in set(heads)}


def _grow_table(transformer: PreTrainedModel, weights: Mapping[str, torch.Tensor], prefix: str, adapter: LoraAdapter) -> None:
    """Give the table of embeddings as many rows as the adapter's. Raises ModelError when that does not hold the new ones."""
    table = table_of(transformer)
    if not isinstance(table, torch.nn.Embedding):
        return
    name = prefix + next(name for name, module in transformer.named_modules() if module is table)
    n_rows = table.num_embeddings
    whole = weights.get(f"{name}.weight")
    if whole is not None:
        n_rows = len(whole)
    elif (low := weights.get(f"{name}.lora_embedding_A")) is not None and low.shape[1] != n_rows:
        raise ModelError(
            f"{adapter.weights}: was trained on a table of {low.shape[1]:,} tokens, where the base has {n_rows:,}, and holds "
            "no rows for the others; give the base with the grown table, or save the adapter with save_embedding_layers=True"
        )
    else:
        trained = _trained_tokens(adapter)
        if set(range(n_rows, max(trained, default=-1) + 1)) <= trained:
            n_rows = max(n_rows, max(trained, default=-1) + 1)
    if n_rows != table.num_embeddings:
        transformer.resize_token_embeddings(n_rows, mean_resizing=False)


def _trained_tokens(adapter: LoraAdapter) -> set[int]:
    """Ids of the tokens whose rows were trained one by one (trainable_token_indices)."""
    indices = adapter.config.get("trainable_token_indices") or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    return {int(index) for some in lists for index in some}


def _starts(path: str) -> list[int]:
    """Where the parts of a dotted name begin, the longest tail first."""
    return [0, *(match.end() for match in re.finditer(r"\.", path))]


def _named_as_in_base(config: LoraConfig, prefix: str, transformer: PreTrainedModel, layers: set[str]) -> LoraConfig:
    """The adapter's settings, with the layers that they choose, under the names of training, by their names in the base.

    The names of training are those in the base behind some tail of the prefix: the one under which settings and weights agree.
    """
    if config.target_parameters:
        return config  # of parameters, which have no modules of their own; ends of names choose them
    names = [name for name, _ in transformer.named_modules() if name]
    tails = [prefix[start:] for start in _starts(prefix)]  # the last is ''
    targets = config.target_modules
    if targets and targets != "all-linear":
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
    # A pooler that was not there in training has an adapter of zeros here, and no embedding reads it.
    missing = sorted(name for name in set(required) - set(local.values()) if "pooler" not in name.split("."))
    problems = [
        f"{len(keys)} {what}: {first_names(keys)}"
        for what, keys in (("weights without a place", lost), ("of another shape", bent), (_WITHOUT_WEIGHTS, missing))
        if keys
    ]
    if problems:
        raise _misfit(adapter, problems)


def _misfit(adapter: LoraAdapter, problems: Sequence[str]) -> ModelError:
    # Where everything that it holds has a place, the base is not to blame.
    is_cut = all(_WITHOUT_WEIGHTS in problem for problem in problems)
    mend = (
        "its file is not whole: copy it again"
        if is_cut
        else "base_model_path must be the model that the adapter was trained on"
    )
    return ModelError(f"{adapter.weights}: does not fit this base ({'; '.join(problems)}); {mend}")
