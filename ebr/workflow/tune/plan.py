"""What a tuning is asked for: its plan, before anything is trained; and the state of one that is under way.

Only the same is asked of a state that goes on, and of a recipe that is followed.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebr.config import TuneConfig
from ebr.data.evaluation.corpus import find_corpus
from ebr.data.evaluation.evaluation_set import evaluation_files, read_evaluation_set
from ebr.data.files.write import hash_files, read_json, read_manifest, write_json
from ebr.errors import ConfigError, ModelError
from ebr.workflow.tune.ladder import least_in_all
from ebr.workflow.tune.parts import Split, split_records
from ebr.workflow.tune.recipes import Recipe

KIND = "tuning"
WORK, MODEL, RECIPE = "work", "model", "recipe.json"
_STATE = "state.json"
_FORMAT = 3
_FREE = {"output_dir", "trust_remote_code", "language", "minutes"}
"""Options that may change between the runs of one tuning: they move no weight, and what is left of the time is asked anew."""

_MOVE_NOTHING = {
    "corpus", "data_path", "eval_dataset", "forgetting_dataset", "language", "minutes", "output_dir", "recipe", "steps",
    "trust_remote_code",
}  # fmt: skip
"""Options that move no weight of a given recipe, or that name files, which are compared by their content."""


def spend_of(config: TuneConfig) -> str:
    """What may be spent, in words."""
    return f"{config.steps:,} training steps" if config.steps else f"{config.minutes:g} minutes"


@dataclass(frozen=True)
class TunePlan:
    """What a tuning would split and where it would write."""

    config: TuneConfig
    split: Split
    inputs: dict[str, str]
    """Hashes of what is read."""

    def lines(self) -> list[str]:
        """The plan, for people."""
        config = self.config
        spend = "the recipes of recipe.json, as they stand" if config.recipe else spend_of(config)
        test = [f"test    {config.eval_dataset}"] if config.eval_dataset else []
        return [f"base    {config.model_name}", *self.split.lines(), *test, f"spend   {spend}", f"output  {config.output_dir}"]


def plan_tune(config: TuneConfig) -> TunePlan:
    """Read and split the records, check everything that can be, and train nothing. Raises EBRError subclasses."""
    from ebr.model.origin import is_adapter, resolve_model, weight_files_digest

    config.check()
    config = config.model_copy(update={"output_dir": config.output_dir.expanduser().resolve()})
    check_place_of(config.output_dir)
    base = resolve_model(config.model_name)
    if is_adapter(base):
        raise ModelError(f"model_name {config.model_name}: is an adapter; merge it first (ebr merge)")
    corpora = [find_corpus(Path(name).expanduser()) for name in config.corpus or ()]
    folders = [folder for folder in (config.eval_dataset, config.forgetting_dataset) if folder]
    for folder in folders:
        read_evaluation_set(folder)
    split = split_records(config)
    inputs = {"data_path": hash_files(split.files)} | ({"corpus": hash_files(corpora)} if corpora else {})
    inputs |= {"evaluation": hash_files([file for folder in folders for file in evaluation_files(folder)])} if folders else {}
    if digest := weight_files_digest(base):
        inputs["model_name"] = digest
    if config.recipe is not None:
        _check_recipe(config, inputs)
    elif config.steps and config.steps < least_in_all(split.growth):
        raise ConfigError(
            f"steps {config.steps}: a recipe, the same on all records, and the stock one take {least_in_all(split.growth)} at "
            "least; give as many"
        )
    return TunePlan(config, split, inputs)


def _check_recipe(config: TuneConfig, inputs: Mapping[str, str]) -> None:
    """Refuse a recipe whose model these options, records and base would not make again. Raises ConfigError."""
    recorded = config.recipe or {}
    try:
        then, files = dict(recorded["made_with"]), dict(recorded["inputs"])
        members = members_of(recorded)
        float(recorded["weight"]), bool(recorded["bf16"]), bool(recorded["on_all"])
    except (KeyError, TypeError, ValueError):
        members = []
    if not members:
        raise ConfigError("recipe: is none that ebr tune wrote; give the recipe.json of a finished tuning")
    now = made_with(config)
    differ = [name for name in now if then.get(name) != now[name]]
    differ += [f"{name} (its content)" for name in ("data_path", "corpus", "model_name") if files.get(name) != inputs.get(name)]
    if differ:
        raise ConfigError(
            f"recipe: was found with other {', '.join(differ)}, and would make another model; --config recipe.json gives "
            "all of its options"
        )


def members_of(recorded: Mapping[str, Any]) -> list[tuple[Recipe, int]]:
    """The recipes of a model, each with its steps. Raises ConfigError, KeyError, TypeError or ValueError for anything else."""
    return [(Recipe.from_json(one["recipe"]), int(one["steps"])) for one in recorded["recipes"]]


def recipe_record(
    config: TuneConfig, inputs: Mapping[str, str], recipes: Sequence[Mapping[str, Any]], on_all: bool, weight: float, bf16: bool
) -> dict[str, Any]:
    """What makes a model again: every option, what was trained with its steps, on what, and how much of the mean."""
    recipe = {
        "recipes": recipes,
        "on_all": on_all,
        "weight": weight,
        "bf16": bf16,
        "inputs": inputs,
        "made_with": made_with(config),
    }
    idle = {name: TuneConfig.model_fields[name].default for name in ("minutes", "steps", "forgetting_dataset")}
    return {"kind": "recipe", "config": {**config.to_json(), **idle, "recipe": recipe}}


def command_again(config: TuneConfig) -> str:
    """The one command that makes the same model again."""
    output = config.output_dir
    trust = " --trust_remote_code" if config.trust_remote_code else ""  # no record switches it on
    return f"ebr tune --config {shlex.quote(str(output / RECIPE))} --output_dir {shlex.quote(f'{output}-again')}{trust}"


def made_with(config: TuneConfig) -> dict[str, Any]:
    """The options that decide which model a recipe makes, files by their content apart."""
    options = {name: value for name, value in config.to_json().items() if name not in _MOVE_NOTHING}
    return options | {"eval_dataset": config.eval_dataset is not None}


@dataclass
class State:
    """What a killed tuning needs to go on, and its clock.

    known: what was found out once, like the steps that fit into the minutes. began: of time.monotonic(), as if it had never
    been interrupted.
    """

    folder: Path
    asked: dict[str, Any]
    known: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def begin_or_go_on(cls, config: TuneConfig, inputs: Mapping[str, str]) -> tuple[State, bool]:
        """The state of this tuning, and whether it goes on with one. inputs: hashes of what it reads. See check_place_of."""
        work = config.output_dir / WORK
        options = {name: value for name, value in config.to_json().items() if name not in _FREE}
        asked = {"options": options, "inputs": dict(inputs)}
        if (work / _STATE).is_file():
            kept = read_json(work / _STATE)
            if kept.get("format") != _FORMAT:
                raise ConfigError(
                    f"output_dir {config.output_dir}: holds an unfinished tuning of another version of EBR; give another folder"
                )
            differ = [*_differing(kept["asked"]["options"], options), *_differing(kept["asked"]["inputs"], asked["inputs"])]
            if differ:
                raise ConfigError(
                    f"output_dir {config.output_dir}: holds an unfinished tuning that differs in {', '.join(differ)}; go on "
                    "with the same, or give another folder"
                )
            return cls(work, asked, kept["known"], time.monotonic() - kept["seconds"]), True
        work.mkdir(parents=True, exist_ok=True)
        state = cls(work, asked)
        state.save()
        return state, False

    @property
    def seconds(self) -> float:
        """That the tuning has taken, interruptions apart."""
        return time.monotonic() - self.began

    def once(self, name: str, find: Callable[[], Any]) -> Any:  # noqa: ANN401
        """A figure that is found out once for a tuning, however often it is interrupted."""
        if name not in self.known:
            self.known[name] = find()
            self.save()
        return self.known[name]

    def save(self) -> None:
        """Write it, whole or not at all."""
        seconds = round(self.seconds, 1)
        write_json(self.folder / _STATE, {"format": _FORMAT, "asked": self.asked, "seconds": seconds, "known": self.known})

    def end(self) -> None:
        """The work is done: its files go, first what says that there is work."""
        (self.folder / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def check_place_of(output: Path) -> None:
    """Refuse a folder that holds a finished tuning, or something else than an unfinished one. Raises ConfigError."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output_dir {output}: is a file; name a folder")
    if not output.is_dir() or not any(output.iterdir()) or (output / WORK / _STATE).is_file():
        return
    if (read_manifest(output) or {}).get("kind") == KIND:
        raise ConfigError(f"output_dir {output}: holds a finished tuning; move it, or give another folder")
    raise ConfigError(f"output_dir {output}: holds something that is no tuning of ours; give another folder")


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in now if json.dumps(before.get(name)) != json.dumps(now[name])]
