"""What becomes of the parts: one file that holds them all, or a folder of them; the manifest last."""

from __future__ import annotations

import glob
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ebr.data.files.asides import put_file, remove
from ebr.data.files.write import Digests, hash_file, manifest_path, naming, read_manifest, write_aside, write_files_aside
from ebr.data.vectors.batch import Vectors
from ebr.data.vectors.embeddings import iterate_embeddings, write_embeddings_manifest
from ebr.data.vectors.formats import files_of, join_parts
from ebr.inference.job.ledger import Finished, Ledger
from ebr.inference.job.parts import PartOptions, PartRecord, inputs_digest, remove_parts
from ebr.inference.job.worker import write_part

log = logging.getLogger(__name__)

_JOINED = "joined"
"""Where one file of all parts is made, in the folder of an output's state."""


@dataclass(frozen=True)
class Output:
    """One output: `path` is a file, or a folder of parts."""

    path: Path
    is_file: bool
    options: PartOptions

    @property
    def rejects_path(self) -> Path:
        """The rows that could not be used, of all parts."""
        return self.path.with_name(self.path.name + ".rejects.jsonl")

    def sweep(self) -> None:
        """Remove what a killed run left half-written. Only for who holds the lock."""
        # Beside the output lie other runs' outputs: there only what carries its name.
        own = glob.escape(self.path.name)
        left = [*self.path.parent.glob(f".{own}.manifest.partial-*"), *self.path.parent.glob(f".{own}.rejects.partial-*")]
        left += [*self.options.work_dir.rglob(".*partial-*"), self.options.work_dir / _JOINED]
        left += [] if self.is_file else [*self.path.glob(".partial-*-*"), *self.path.glob(".ebr_manifest.partial-*")]
        for path in left:
            remove(path)

    def has(self, record: PartRecord, ledger: Ledger) -> bool:
        """Whether a part is there, whole: as files of its own, or in the finished file; with its rejects."""
        if record.n_rejected and not self.options.rejects_path(record.key).is_file():
            return False
        if self._has_files(record):
            return True
        finished = ledger.finished if self.is_file and ledger.was_finished(record.key) else None
        return finished is not None and self._holds(finished.inputs_sha256)

    def _has_files(self, record: PartRecord) -> bool:
        files = [self.options.parts_dir / name for name in record.files]
        return all(file.is_file() for file in files) and sum(file.stat().st_size for file in files) == record.n_bytes

    def _holds(self, inputs_sha256: str) -> bool:
        """Whether what lies at `path` is a finished output of these inputs."""
        return self._manifest.get("inputs_sha256") == inputs_sha256 and (not self.is_file or self._is_as_finished)

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        """Of the output that was there when the run began; empty when none was finished."""
        return read_manifest(self.path) or {}

    @cached_property
    def digests(self) -> Digests:
        """Of the output that was there when the run began: what is taken from it is checked each time, and hashed once."""
        return Digests()

    @cached_property
    def _is_as_finished(self) -> bool:
        """Whether the file is the one that its manifest describes, by its hashes."""
        for file in files_of(self.path, self.options.format):
            if not file.is_file() or self.digests.of(file) != self._manifest.get("files", {}).get(file.name):
                log.warning("%s: is not as it was finished; what only it held is done again", file)
                return False
        return True

    def assemble(self, records: Sequence[PartRecord], ledger: Ledger, facts: dict[str, Any]) -> None:
        """Make the output of these parts, in this order, write its manifest, and drop what is not part of it any more."""
        records = self._in_their_places(records, ledger)
        files = _hashes(records)
        is_there = self._holds(inputs_digest(record.key for record in records))
        is_there = is_there and (self.is_file or self._manifest.get("files") == files)
        if self.is_file and not is_there:
            files = self._join(records, ledger.finished)
        self._join_rejects(records)
        if not is_there:
            write_embeddings_manifest(
                self.path,
                self.options.format,
                files=files,
                delimiter=self.options.schema.delimiter,
                dtype=self.options.vector_dtype,
                dim=records[0].dim,
                n_rows=sum(record.n_rows for record in records),
                columns=list(self.options.schema.columns),
                facts=facts,
            )
        ledger.finish(records)
        self._remove_stale(records)
        ledger.drop_store()

    def _in_their_places(self, records: Sequence[PartRecord], ledger: Ledger) -> list[PartRecord]:
        """Parts whose shard has moved, because a table before it grew, take the name of their new place."""
        moved = [record.moved(index) for index, record in enumerate(records)]
        for old, new in zip(records, moved, strict=True):
            if old.index != new.index and self._has_files(old):
                for before, after in zip(old.files, new.files, strict=True):
                    # A second name: under the first, the manifest of before still finds it.
                    _link(self.options.parts_dir / before, self.options.parts_dir / after)
                ledger.add(new)
        return moved

    def _join(self, records: Sequence[PartRecord], finished: Finished | None) -> dict[str, str]:
        missing = {record.key: record for record in records if not self._has_files(record)}
        if missing and finished:
            self._cut_out(missing, finished)
        parts = [self.options.part_path(record.name) for record in records]
        joined = self.options.work_dir / _JOINED
        with write_files_aside(joined) as aside:
            join_parts(parts, aside / self.path.name, self.options.format)
        files = files_of(joined / self.path.name, self.options.format)
        hashes = {file.name: hash_file(file) for file in files}
        # A manifest never stands beside a file that it does not describe, not even between two renames.
        manifest_path(self.path).unlink(missing_ok=True)
        # Nor new vectors beside old rows: of npy the old rows go before the new vectors come.
        for file in files[1:]:
            self.path.with_name(file.name).unlink(missing_ok=True)
        for file in files:
            with naming(self.path):
                put_file(file, self.path.with_name(file.name))
        joined.rmdir()
        return hashes

    def _cut_out(self, wanted: dict[str, PartRecord], finished: Finished) -> None:
        """Parts that are only in the finished file any more become files of their own again."""
        rows = _Rows(self.path, self.options.schema.delimiter, self.digests)
        for key, n_rows in zip(finished.keys, finished.n_rows, strict=True):
            columns, vectors = rows.take(n_rows)
            if key in wanted:
                write_part(self.options, wanted[key].name, columns, vectors)

    def _join_rejects(self, records: Sequence[PartRecord]) -> None:
        if not any(record.n_rejected for record in records):
            self.rejects_path.unlink(missing_ok=True)
            return
        with write_aside(self.rejects_path) as aside, aside.open("wb") as joined:
            for record in records:
                if record.n_rejected:
                    with self.options.rejects_path(record.key).open("rb") as part:
                        shutil.copyfileobj(part, joined)

    def _remove_stale(self, records: Sequence[PartRecord]) -> None:
        if self.is_file:
            shutil.rmtree(self.options.parts_dir, ignore_errors=True)
        else:
            remove_parts(self.path, keep={record.name for record in records})


def _link(before: Path, after: Path) -> None:
    after.unlink(missing_ok=True)
    try:
        after.hardlink_to(before)
    except OSError:  # a file system without links
        with write_aside(after) as aside:
            shutil.copyfile(before, aside)


class _Rows:
    """The rows of a vector file, taken from the front in pieces of any size."""

    def __init__(self, path: Path, delimiter: str, digests: Digests) -> None:
        self._batches = iterate_embeddings(path, delimiter, digests=digests)
        self._columns: dict[str, list[str | None]] = {}
        self._vectors: list[Vectors] = []

    def take(self, n_rows: int) -> tuple[pa.Table, Vectors]:
        """The next N rows: their columns, and their vectors (N, D)."""
        while sum(map(len, self._vectors)) < n_rows or not self._vectors:
            batch = next(self._batches)
            self._vectors.append(batch.vectors)
            for name, cells in batch.columns.items():
                self._columns.setdefault(name, []).extend(cells)
        vectors = np.concatenate(self._vectors)
        columns = {name: pa.array(cells[:n_rows], pa.string()) for name, cells in self._columns.items()}
        self._columns = {name: cells[n_rows:] for name, cells in self._columns.items()}
        self._vectors = [vectors[n_rows:]]
        return pa.table(columns), vectors[:n_rows]


def _hashes(records: Sequence[PartRecord]) -> dict[str, str]:
    return {name: digest for record in records for name, digest in record.files.items()}
