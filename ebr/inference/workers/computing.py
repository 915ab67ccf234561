"""Who computes the vectors of an inference run, and with which settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from ebr.config import InferenceConfig
from ebr.data.files.write import read_manifest
from ebr.data.tables.shard_rows import parse_shard
from ebr.data.tables.shards import TableSource, read_shards
from ebr.inference.job.ledger import Ledger
from ebr.inference.job.parts import PartOptions
from ebr.inference.job.pipeline import Workers
from ebr.inference.job.worker import ShardWorker
from ebr.inference.workers.processes import ProcessWorkers, placements
from ebr.inference.workers.ray import RayWorkers
from ebr.inference.workers.spec import EngineSpec
from ebr.model.compute.precision import choose_settings
from ebr.model.compute.settings import ComputeSettings
from ebr.model.encoder.encoder import DOT
from ebr.model.encoder.lengths import kept_length, own_length
from ebr.model.encoder.loaded import LoadedModel
from ebr.model.encoder.pooling import pooling_name
from ebr.model.encoder.prompts import Role, prompt_for
from ebr.model.encoder.routes import document_side, is_routed
from ebr.model.origin import absolute_name, resolve_model

Say = Callable[[str], None]

_CALIBRATION_ROWS = 4096
"""Rows of the first shards among which the texts to try are chosen."""


@dataclass(frozen=True)
class ReadyModel:
    """A model that is ready to embed, whole as every worker loads it, and everything about it that its vectors depend on."""

    loaded: LoadedModel
    spec: EngineSpec
    facts: dict[str, Any]


def load_for_inference(config: InferenceConfig, say: Say) -> ReadyModel:
    """Load the model as it will embed documents. Raises ModelError when it cannot be found or loaded."""
    spec = EngineSpec(
        absolute_name(config.model_path),
        max_seq_length=config.max_seq_length,
        trust_remote_code=config.trust_remote_code,
        pooling=config.pooling,
        base_model_path=config.base_model_path and absolute_name(config.base_model_path),
        batch_size=config.batch_size,
        normalize_embeddings=config.normalize_embeddings,
        truncate_dim=config.truncate_dim,
    )
    model = spec.load()
    loaded = LoadedModel.of(model, resolve_model(spec.model_path))
    # Its queries may go through modules of their own, which the vectors of documents do not depend on.
    documents = LoadedModel.of(document_side(model)) if is_routed(model) else loaded
    if read_manifest(Path(config.model_path)) is None:
        say(f"{config.model_path} was not made by ebr: its pooling ({pooling_name(model)}) and prompts are taken as they are")
    if config.normalize_embeddings and loaded.similarity == DOT:
        say(
            f"{config.model_path} was made for inner products: unit vectors make cosines of them; --no_normalize_embeddings, "
            "and ebr index --metric inner_product, keep its own"
        )
    if is_routed(model):
        say(f"{config.model_path} has modules of its own for queries, which are not used: all texts are taken for documents")
    spec = replace(spec, prompt=prompt_for(model, Role.DOCUMENT) if config.prompt is None else config.prompt)
    facts = {
        "model": spec.model_path,
        "base_model_path": spec.base_model_path,
        "model_sha256": documents.sha256,
        "architecture": documents.architecture,
        "spelling_sha256": documents.spelling_sha256,
        "pooling": pooling_name(model),
        "prompt": spec.prompt,
        "query_prompt": prompt_for(model, Role.QUERY),
        "max_seq_length": kept_length(model),
        "query_max_len": own_length(model, Role.QUERY.value),
        "passage_max_len": own_length(model, Role.DOCUMENT.value),
        "normalized": config.normalize_embeddings,
    }
    if documents.sha256 != loaded.sha256:
        # What is said of queries is this model's alone, and not that of every model with its document side.
        facts["whole_model_sha256"] = loaded.sha256
    return ReadyModel(loaded, spec, facts)


def make_recipe(config: InferenceConfig, facts: dict[str, Any], options: PartOptions) -> dict[str, dict[str, Any]]:
    """Everything that a part depends on beside its shard.

    Who computes, and how much at a time, is not in it: a run may be finished by another engine, or with a lower token_budget.
    """
    # A model is its weights and how they are computed with, wherever they lie; queries do not touch the vectors of documents.
    elsewhere = ("model", "base_model_path", "whole_model_sha256", "query_prompt", "query_max_len")
    vectors = {name: value for name, value in facts.items() if name not in elsewhere}
    if vectors["passage_max_len"] is None:
        del vectors["passage_max_len"]  # that of all texts; earlier outputs do not name it, and must stay what they are
    vectors |= {name: config[name] for name in ("precision", "min_cosine", "truncate_dim", "incremental_key")}
    layout = {name: config[name] for name in ("dedup", "shard_rows", "vector_dtype")}
    # What is as it always was stays out: outputs of before there was a choice are of the same recipe.
    layout |= {"output_format": options.format.value, "columns": list(options.schema.columns), **options.schema.dialect.facts()}
    return {
        "vectors": vectors,
        "layout": {**layout, "delimiter": options.schema.delimiter, "text_column": options.schema.text_column},
    }


@contextmanager
def computing(
    config: InferenceConfig, ready: ReadyModel, options: PartOptions, source: TableSource, ledger: Ledger, say: Say
) -> Iterator[tuple[Workers, ComputeSettings]]:
    """Workers that are ready, with settings that hold for the whole output: those of before, or chosen now on its texts."""
    settings = _settled(ledger, config)
    same_engine = ledger.asked.get("engine") == [config.engine, config.num_workers]
    if config.engine == "ray":
        with closing(RayWorkers(options, num_workers=config.num_workers, address=config.ray_address)) as ray:
            if settings is None:
                settings, lines = ray.on_worker(_choose_there, ready.spec, _Choice.of(config, source, ready.loaded.sha256))
                for line in lines:
                    say(line)
            yield ray.with_engine(replace(ready.spec, settings=settings).build), settings
        return
    places = placements(config.num_workers, torch.cuda.device_count(), _cores()) if config.engine == "processes" else []
    n_threads = len(places[0].cores or ()) if places else 0
    if settings is None:
        settings = _choose(ready.loaded.model, ready.spec, _Choice.of(config, source, ready.loaded.sha256), n_threads, say)
    elif not same_engine:
        settings = replace(settings, n_threads=n_threads or torch.get_num_threads())
    spec = replace(ready.spec, settings=settings)
    workers = ProcessWorkers(spec.build, options, places) if places else ShardWorker(spec.on(ready.loaded.model), options)
    with closing(workers):
        yield workers, settings


def _settled(ledger: Ledger, config: InferenceConfig) -> ComputeSettings | None:
    """The settings of the run that is resumed, or of the output that is brought up to date."""
    before = ledger.settings
    if before is None and ledger.brought_up_to_date:
        before = ledger.brought_up_to_date.settings
    if before is None:
        return None
    settings = ComputeSettings.from_json(before)
    # Asked for again, a budget that was halved since stays halved.
    if config.token_budget is None or config.token_budget == ledger.asked.get("token_budget"):
        return settings
    return replace(settings, token_budget=config.token_budget)


def asked_for(config: InferenceConfig) -> dict[str, Any]:
    """What may change between two runs of one output, as the ledger keeps it."""
    return {"engine": [config.engine, config.num_workers], "token_budget": config.token_budget}


@dataclass(frozen=True)
class _Choice:
    """What the choice of settings depends on beside the model; picklable."""

    texts: list[str]
    n_texts_expected: int
    precision: str
    min_cosine: float
    torch_compile: str
    token_budget: int | None
    model_sha256: str

    @classmethod
    def of(cls, config: InferenceConfig, source: TableSource, model_sha256: str) -> _Choice:
        """Some texts of the source, spread over its first rows, and how many there may be in all."""
        texts: list[str] = []
        n_expected = 0
        for shard in read_shards(source, _CALIBRATION_ROWS):
            texts += parse_shard(shard, source.schema).texts
            n_expected = round(shard.n_lines / shard.read_share) if not n_expected else n_expected
            if len(texts) >= _CALIBRATION_ROWS:
                break
        return cls(
            texts=texts,
            n_texts_expected=n_expected,
            precision=config.precision,
            min_cosine=config.min_cosine,
            torch_compile=config.torch_compile,
            token_budget=config.token_budget,
            model_sha256=model_sha256,
        )


def _choose(model: SentenceTransformer, spec: EngineSpec, choice: _Choice, n_threads: int, say: Say) -> ComputeSettings:
    """n_threads: as many as each worker will have; 0 = as torch has it."""
    if n_threads:
        torch.set_num_threads(n_threads)
    return choose_settings(
        model,
        Role.DOCUMENT,
        choice.texts,
        prompt=spec.prompt,
        precision=choice.precision,
        min_cosine=choice.min_cosine,
        torch_compile=choice.torch_compile,
        token_budget=choice.token_budget,
        batch_size=spec.batch_size,
        n_texts_expected=choice.n_texts_expected,
        say=say,
        model_sha256=choice.model_sha256,
    )


def _choose_there(spec: EngineSpec, choice: _Choice) -> tuple[ComputeSettings, list[str]]:
    """The same on a worker of a cluster, which may have what this machine has not; with what there is to say."""
    said: list[str] = []
    return _choose(spec.load(), spec, choice, 0, said.append), said


def _cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
