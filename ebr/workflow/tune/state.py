"""The state of a tuning that is under way: what it was asked for, so that only the same one goes on with its work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebr.config import TuneConfig
from ebr.data.files.write import read_json, read_manifest, write_json
from ebr.errors import ConfigError

KIND = "tuning"
WORK, MODEL, RECIPE = "work", "model", "recipe.json"
_STATE = "state.json"
_FREE = {"output_dir", "trust_remote_code", "language", "minutes"}
"""Options that may change between the runs of one tuning: they move no weight, and what is left of the time is asked anew."""


@dataclass
class State:
    """What a killed tuning needs to go on. known: what was found out once, like the steps that fit into the minutes."""

    folder: Path
    asked: dict[str, Any]
    seconds: float = 0.0
    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin_or_go_on(cls, config: TuneConfig, inputs: Mapping[str, str]) -> tuple[State, bool]:
        """The state of this tuning, and whether it goes on with one. inputs: hashes of what it reads. See check_place_of."""
        work = config.output_dir / WORK
        options = {name: value for name, value in config.to_json().items() if name not in _FREE}
        asked = {"options": options, "inputs": dict(inputs)}
        if (work / _STATE).is_file():
            kept = read_json(work / _STATE)
            differ = [*_differing(kept["asked"]["options"], options), *_differing(kept["asked"]["inputs"], asked["inputs"])]
            if differ:
                raise ConfigError(
                    f"output_dir {config.output_dir}: holds an unfinished tuning that differs in {', '.join(differ)}; go on "
                    "with the same, or give another folder"
                )
            return cls(work, asked, kept["seconds"], kept["known"]), True
        work.mkdir(parents=True, exist_ok=True)
        state = cls(work, asked)
        state.save()
        return state, False

    def save(self) -> None:
        """Write it, whole or not at all."""
        write_json(self.folder / _STATE, {"asked": self.asked, "seconds": round(self.seconds, 1), "known": self.known})

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
