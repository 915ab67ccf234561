"""The models of an evaluation: their names in the report, how each is read, and what is recorded of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ebr.config import EvaluationConfig
from ebr.errors import ConfigError

if TYPE_CHECKING:
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.model.origin import ModelOrigin


def distinct_names(paths: Sequence[str]) -> dict[str, str]:
    """What to load, by its name in the report: the path itself, numbered where it is given twice."""
    seen: Counter[str] = Counter()
    names = {}
    for path in paths:
        seen[path] += 1
        names[path if seen[path] == 1 else f"{path} ({seen[path]})"] = path
    return names


def check_base(base_model_path: str | None, models: Sequence[ModelOrigin]) -> None:
    """Refuse a base for models that are no adapters, or are adapters of several bases.

    Raises ConfigError; ModelError for an adapter that cannot be read.
    """
    if base_model_path is None:
        return
    from ebr.model.adapters.adapted import named_base
    from ebr.model.adapters.files import find_adapter
    from ebr.model.origin import adapter_folder

    folders = {model.name: adapter_folder(model) for model in models}
    adapters = {name: find_adapter(folder, option="model") for name, folder in folders.items() if folder is not None}
    named = {name: named_base(adapter) for name, adapter in adapters.items()}
    if not named:
        raise ConfigError(f"base_model_path {base_model_path}: none of the models is an adapter; leave it out")
    if len(set(named.values())) > 1:
        said = "; ".join(f"{name} names {base}" for name, base in named.items())
        raise ConfigError(f"base_model_path {base_model_path}: the adapters are of several bases ({said}); evaluate them apart")


def load_for_evaluation(config: EvaluationConfig, path: str) -> LoadedModel:
    """A model with the prompts and lengths of the config, or those that it was saved with."""
    from ebr.model.encoder.encoder import load_encoder
    from ebr.model.encoder.lengths import kept_length, set_lengths
    from ebr.model.encoder.loaded import LoadedModel
    from ebr.model.encoder.prompts import set_prompts
    from ebr.model.origin import is_adapter, resolve_model

    source, base = resolve_model(path), config.base_model_path
    model = load_encoder(
        path,
        trust_remote_code=config.trust_remote_code,
        pooling=config.pooling,
        base_model_path=base if base is not None and is_adapter(source) else None,
    )
    if config.prompt is not None or config.query_prompt is not None or config.passage_prompt is not None:
        set_prompts(model, prompt=config.prompt, query_prompt=config.query_prompt, passage_prompt=config.passage_prompt)
    lengths = (config.max_seq_length, config.query_max_len, config.passage_max_len)
    if any(length is not None for length in lengths):
        # What is not given stays as it was saved, unless max_seq_length is: that one is for every text.
        own = (None, None) if config.max_seq_length else (kept_length(model, "query"), kept_length(model, "document"))
        query, passage = config.query_max_len or own[0], config.passage_max_len or own[1]
        set_lengths(model, config.max_seq_length or kept_length(model), query=query, passage=passage)
    return LoadedModel.of(model, source)


def facts_of(loaded: LoadedModel) -> dict[str, Any]:
    """What a report says of a model: the facts that a person reads."""
    facts = loaded.facts()
    for name in ("versions", "architecture", "spelling_sha256"):
        facts.pop(name)
    return facts
