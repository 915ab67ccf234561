"""What would be merged: the base, what was tuned of it, how much of that, and where it would go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import MergeConfig
from ebr.config.models.merge import AUTO
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.files.places import check_place
from ebr.data.files.write import hash_file, read_json, read_manifest
from ebr.data.text.counted import counted
from ebr.errors import DataError
from ebr.model.card import TRAINING_CONFIG
from ebr.model.output import check_output

if TYPE_CHECKING:
    from ebr.model.adapters.files import LoraAdapter
    from ebr.model.origin import ModelOrigin


@dataclass(frozen=True)
class TunedModel:
    """One of the tunings that are merged."""

    folder: Path
    adapter: LoraAdapter | None
    """None for a model whose every weight was tuned."""
    training: Mapping[str, Any]
    """Options of its training run, as far as they are recorded."""
    record: Mapping[str, Any]
    """Its manifest; empty for one that was made elsewhere."""

    @property
    def weights(self) -> Path:
        """The adapter's file, or the model's folder."""
        return self.adapter.weights if self.adapter else self.folder

    def digest(self) -> str | None:
        """sha256 over its files of weights."""
        from ebr.model.origin import resolve_model, weight_files_digest

        return hash_file(self.weights) if self.adapter else weight_files_digest(resolve_model(str(self.folder)))

    def lines(self) -> list[str]:
        """What it is, and what is assumed of it, for people."""
        tuned = f", {self.training['finetune_type']}" if "finetune_type" in self.training else ""
        if self.adapter is None:
            return [f"tuned   {self.folder}: every weight{tuned}"]
        settings = self.adapter.config
        lines = [f"adapter {self.weights}: rank {settings.get('r')}, alpha {settings.get('lora_alpha')}{tuned}"]
        if not self.adapter.is_encoder:
            lines.append(f"{self.folder} holds no modules.json: pooling, prompts and lengths are taken from the base")
        elif not self.record:
            lines.append(f"{self.folder} was not made by ebr: its pooling and prompts are taken as they are")
        return lines


@dataclass(frozen=True)
class MergePlan:
    """What would be merged, in which precision, and where it would go."""

    config: MergeConfig
    tuned: tuple[TunedModel, ...]
    base: ModelOrigin
    output: Path
    precision: str
    datasets: tuple[EvaluationSet, ...] = ()
    """For weight auto: the set that it is chosen on and, where there is one, that of forgetting."""

    @property
    def is_whole_adapter(self) -> bool:
        """Whether all of one adapter is merged: then base + adapter, not merged, is there to compare with."""
        return self.config.weight == 1 and len(self.tuned) == 1 and self.tuned[0].adapter is not None

    @property
    def compared_with(self) -> str:
        """What the merged model's vectors are held against: what is there without merging anything, or its own weights."""
        return "base + adapter" if self.is_whole_adapter else "the weights before they were saved"

    def lines(self) -> list[str]:
        """The plan, for people."""
        lines = [f"base    {self.config.base_model_path}"]
        lines += [line for one in self.tuned for line in one.lines()]
        if self.config.weight == AUTO:
            queries = ", ".join(f"{one.name} ({counted(len(one.queries), 'query', 'queries')})" for one in self.datasets[:1])
            lines.append(f"weight  the best of 0, 0.1, … 1 on {queries}")
            lines += [f"beside  {one.name}: what is forgotten there" for one in self.datasets[1:]]
            lines += [f"note: {one.name}: {text}" for one in self.datasets for text in one.notes()]
        elif not self.is_whole_adapter:
            lines.append(f"weight  {self.config.weight:g}{' of the mean' if len(self.tuned) > 1 else ''}")
        lines.append(f"output  {self.output}: {self.precision}")
        return lines


def plan_merge(config: MergeConfig) -> MergePlan:
    """Check everything that can be checked without loading the base, and merge nothing."""
    from ebr.model.adapters.adapted import base_source
    from ebr.model.origin import resolve_model

    config.check()
    option = "adapters" if config.lora_adapter_path is None else "lora_adapter_path"
    if config.lora_adapter_path is not None:
        tuned: tuple[TunedModel, ...] = (_adapter(config.lora_adapter_path, option),)
    else:
        tuned = tuple(_tuned_model(Path(one).expanduser(), option) for one in config.adapters or ())
    adapter = next((one.adapter for one in tuned if one.adapter), None)
    base = base_source(adapter, config.base_model_path) if adapter else resolve_model(config.base_model_path)
    output = check_place(config.output_path.expanduser(), is_folder=True).resolve()
    folders = [(option, one.folder) for one in tuned]
    folders += [("base_model_path", base.folder)] if base.folder else []
    check_output(output, folders, mark="adapter_sha256", work="merge")
    precision = config.training_precision or "float32"
    sets = tuple(read_evaluation_set(one) for one in (config.eval_dataset, config.forgetting_dataset) if one)
    return MergePlan(config, tuned, base, output, precision, sets)


def _adapter(path: Path, option: str) -> TunedModel:
    from ebr.model.adapters.files import find_adapter

    adapter = find_adapter(path, option=option)
    return _of_folder(adapter.folder, adapter)


def _tuned_model(path: Path, option: str) -> TunedModel:
    """An adapter, or the folder of a whole model that carries none."""
    from ebr.model.origin import ADAPTER_CONFIG, is_whole

    if path.is_dir() and is_whole(path) and not (path / ADAPTER_CONFIG).is_file():
        return _of_folder(path.resolve(), None)
    return _adapter(path, option)


def _of_folder(folder: Path, adapter: LoraAdapter | None) -> TunedModel:
    record = read_manifest(folder) or {}
    return TunedModel(folder, adapter, {**(record.get("config") or {}), **_options_beside(folder)}, record)


def _options_beside(folder: Path) -> dict[str, Any]:
    """Options of the run that made an adapter, as a training_config.json beside it tells them."""
    path = folder / TRAINING_CONFIG
    if not path.is_file():
        return {}
    try:
        options = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); mend or delete it") from None
    if not isinstance(options, dict):
        raise DataError(f"{path}: is not a JSON object of options; mend or delete it")
    return options
