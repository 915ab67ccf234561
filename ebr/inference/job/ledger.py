"""The state of one output, in a hidden folder beside it: who is writing it, what was settled before the first shard, and which
parts are finished. It outlives the run: over a finished output, only what changed is done again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ebr.data.files.write import naming, read_json, read_manifest, write_aside, write_json
from ebr.errors import DataError
from ebr.inference.job.one_writer import only_writer
from ebr.inference.job.parts import PARTS, STORE, PartRecord, inputs_digest, remove_parts

_RUN = "run.json"

Recipe = Mapping[str, Mapping[str, Any]]
"""What makes a part what it is beside its shard: `vectors` (model, prompt, lengths, …) and `layout` (columns, format, …)."""


@dataclass(frozen=True)
class Finished:
    """An output that was finished before: its parts in their order, and what its vectors depend on."""

    keys: list[str]
    n_rows: list[int]
    vectors: dict[str, Any]
    settings: dict[str, Any]

    @cached_property
    def inputs_sha256(self) -> str:
        """What its manifest says of its inputs, as long as it is this very output."""
        return inputs_digest(self.keys)


def work_folder(output_path: Path) -> Path:
    """Where the state of an output lies: beside what its name leads to, or two names would take two locks."""
    real = output_path.resolve()
    place = output_path if real == output_path.absolute() else real
    return place.with_name(f".{place.name}.ebr")


def was_begun(output_path: Path) -> bool:
    """Whether a run of ours has written at this output, or was about to."""
    return (work_folder(output_path) / _RUN).is_file()


class Ledger:
    """Which parts of an output are finished, by the digest of what they hold. Open it with open_ledger, which locks it."""

    def __init__(self, output_path: Path, recipe: Recipe) -> None:
        self.output_path = output_path
        self.work_dir = work_folder(output_path)
        # As it will be read back, or a tuple would differ from the list of the run before.
        self.recipe: Recipe = json.loads(json.dumps(recipe))
        self.recipe_digest = sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        record = self._read_run()
        self.asked: dict[str, Any] = record.get("asked") or {}
        """What the run before was asked for that a part does not depend on: who computes, and how much at a time."""
        self.finished = self._read_finished(record)
        self._finished_keys = frozenset(self.finished.keys if self.finished else ())
        self.settings: dict[str, Any] | None = None
        """What an unfinished or finished run of this very recipe settled; None = nothing yet."""
        self.changed = _differences(record.get("recipe"), self.recipe)
        """Options by which an earlier run of this output differs: what it made does not count."""
        self.shared_shards = True
        """Whether small files share shards: not in an output of an earlier version, whose parts would all be other ones."""
        self._records: dict[str, PartRecord] = {}
        if "recipe" in record and not self.changed:
            self.settings = record.get("settings")
            self.shared_shards = record.get("shared_shards", False)
            self._records = {one.key: one for one in self._read_journal()}

    def begin(self, settings: dict[str, Any], asked: dict[str, Any] | None = None) -> None:
        """Settle what every part has in common, before the first shard; or change it, when memory did not suffice.

        asked: what the user wants of who computes; None = as before.
        """
        self.asked = self.asked if asked is None else asked
        if self.settings is None:
            # Another model's vectors, or parts of another form, must not come in again.
            self._journal.unlink(missing_ok=True)
            shutil.rmtree(self.work_dir / PARTS, ignore_errors=True)
            if self.output_path.is_dir():
                files = (read_manifest(self.output_path) or {}).get("files", ())
                remove_parts(self.output_path, keep={name.split(".")[0] for name in files})
            self.drop_store()
        self.settings = settings
        self._write_run()

    def remember_budget(self, token_budget: int) -> None:
        """A budget that was halved, because memory did not suffice, holds from here on."""
        if self.settings is not None and token_budget < self.settings.get("token_budget", 0):
            self.begin({**self.settings, "token_budget": token_budget})

    def key_of(self, shard_digest: str) -> str:
        """What stands for the part of a shard: the shard's content and the recipe."""
        return sha256(f"{self.recipe_digest} {shard_digest}".encode()).hexdigest()

    def record_of(self, key: str) -> PartRecord | None:
        """The part that was finished for this key, if any."""
        return self._records.get(key)

    @property
    def brought_up_to_date(self) -> Finished | None:
        """The finished output whose vectors this run may take over: made by the same model, in the same way."""
        return self.finished if self.finished and self.finished.vectors == self.recipe["vectors"] else None

    def was_finished(self, key: str) -> bool:
        """Whether a part is in the output that was finished last."""
        return key in self._finished_keys

    def drop_store(self) -> None:
        """Forget the vectors that shards left to each other."""
        # The database goes first: SQLite drops the log of one that is gone, but not the other way round.
        for file in sorted(self.work_dir.glob(f"{STORE}*")):
            file.unlink()

    def add(self, record: PartRecord) -> None:
        """Write down a finished part; its files are in place."""
        self._records[record.key] = record
        with naming(self._journal), self._journal.open("a+b") as file:
            if file.tell() and not _ends_in_newline(file):
                file.write(b"\n")  # what a kill left half-written stays a line of its own, and is not read
            file.write(json.dumps(record.to_json(), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self, records: Sequence[PartRecord]) -> None:
        """The output stands: from here on these are its parts, in this order."""
        keys = [record.key for record in records]
        n_rows = [record.n_rows for record in records]
        self.finished = Finished(keys, n_rows, dict(self.recipe["vectors"]), dict(self.settings or {}))
        self._finished_keys = frozenset(keys)
        self._write_run()
        lines = [json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in records]
        with write_aside(self._journal) as aside:
            aside.write_text("".join(lines), encoding="utf-8")
        for folder in ("rejects", "digests"):
            for file in sorted((self.work_dir / folder).glob("*")):
                if not self.was_finished(file.stem):
                    file.unlink()

    @property
    def _journal(self) -> Path:
        return self.work_dir / "parts.jsonl"

    def _read_run(self) -> dict[str, Any]:
        path = self.work_dir / _RUN
        if not path.is_file():
            return {}
        try:
            record = read_json(path)
        except ValueError as error:
            raise DataError(f"{path}: cannot be read ({error}); delete {self.work_dir} to embed everything again") from None
        return record if isinstance(record, dict) else {}

    def _read_finished(self, record: dict[str, Any]) -> Finished | None:
        before = record.get("finished")
        try:
            return Finished(**before) if before else None
        except TypeError:
            raise DataError(
                f"{self.work_dir / _RUN}: is of another version of ebr; delete {self.work_dir} to embed everything again"
            ) from None

    def _write_run(self) -> None:
        finished = self.finished and asdict(self.finished)
        record = {
            "recipe": self.recipe,
            "settings": self.settings,
            "asked": self.asked,
            "shared_shards": self.shared_shards,
            "finished": finished,
        }
        write_json(self.work_dir / _RUN, record)

    def _read_journal(self) -> Iterator[PartRecord]:
        if not self._journal.is_file():
            return
        for line in self._journal.read_bytes().split(b"\n"):
            try:
                yield PartRecord(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the last line of a run that was killed


def _ends_in_newline(file: Any) -> bool:  # noqa: ANN401
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _differences(before: Recipe | None, now: Recipe) -> list[str]:
    """Names of what differs between two recipes, for people."""
    if before is None:
        return []
    flat = [{name: value for part in recipe.values() for name, value in part.items()} for recipe in (before, now)]
    # An option that one of them does not have differs from one that is None.
    return sorted(name for name in {**flat[0], **flat[1]} if [flat[0].get(name, ...)] != [flat[1].get(name, ...)])


@contextmanager
def open_ledger(output_path: Path, recipe: Recipe) -> Iterator[Ledger]:
    """The state of an output, locked for this run. Raises DataError, naming the process, when another run writes it."""
    work_dir = work_folder(output_path)
    work_dir.mkdir(parents=True, exist_ok=True)
    with only_writer(output_path, work_dir):
        yield Ledger(output_path, recipe)
