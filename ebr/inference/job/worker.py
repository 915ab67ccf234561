"""One shard → one part. A part depends on its shard, the recipe and the compute settings, and on nothing else: redone after a
kill, it comes out the same to the byte.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ebr.data.files.write import hash_file, write_aside, write_files_aside
from ebr.data.tables.cells import BadRow
from ebr.data.tables.shard_rows import ShardRows, parse_shard
from ebr.data.vectors.batch import Vectors
from ebr.data.vectors.formats import unfit_rows, write_vectors
from ebr.errors import DataError, Interrupted
from ebr.inference.job.dedup import Dedup, DistinctEncoder, EncodedRows, RowDigests
from ebr.inference.job.parts import MEND_THE_ROW, PartOptions, PartRecord, ShardTask
from ebr.inference.job.store import VectorStore
from ebr.model.compute.engine import NO_DIRECTION, Engine, OnBatch
from ebr.model.encoder.batching import Bools

OVERLAP = 3
"""Shards at a time: one is read, parsed and tokenised, one computes, one is formatted and written."""

_FIRST_REJECTS = 5


class ShardWorker:
    """Turns shards into parts, several at a time in threads, of which one computes."""

    def __init__(self, engine: Engine, options: PartOptions) -> None:
        self.engine = engine
        self.options = options
        self._store = VectorStore(options.store_path) if options.store_path else None
        self._pool = ThreadPoolExecutor(OVERLAP, thread_name_prefix="shard")
        self._compute = _InOneThread(engine)
        self._encoder = DistinctEncoder(self._compute, options.dedup, self._store, incremental=options.incremental)
        self._turns = _Turns()
        self._stopped = threading.Event()

    def run(self, tasks: Iterator[ShardTask], on_batch: Callable[[ShardTask, int], None]) -> Iterator[PartRecord]:
        """The part of every task, in order. on_batch is told of texts done, in another thread; what it raises ends the work."""
        pending: list[Future[PartRecord]] = []
        try:
            for task in tasks:
                pending.append(self.start(task, partial(on_batch, task)))
                if len(pending) == OVERLAP:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        except BaseException:
            self._stop()
            raise

    def start(self, task: ShardTask, on_batch: OnBatch) -> Future[PartRecord]:
        """Have a shard embedded, after those started before it."""
        return self._pool.submit(self.embed, task, on_batch, self._turns.take())

    def embed(self, task: ShardTask, on_batch: OnBatch, turn: int = 0) -> PartRecord:
        """Parse, encode and write one shard. turn: its place in the order of this worker's shards, from 0; of dedup global."""

        def step(n_texts: int) -> None:
            if self._stopped.is_set():
                raise Interrupted("stopped, because another shard was")
            on_batch(n_texts)

        with self._turns.over_at_the_end(turn):
            rows = parse_shard(task.shard, self.options.schema)
            unfit = unfit_rows(rows.columns, self.options.format, self.options.schema.delimiter)
            rows, _ = _reject(rows, unfit)
            self._refuse(task.shard.in_order(rows.bad))
            digests = RowDigests.of(rows.texts, rows.keys) if self._store or rows.keys is not None else None
            # Other shards' vectors are asked for in the order of the shards, or a run would depend on who was first.
            with self._turns.mine(turn) if self.options.dedup is Dedup.GLOBAL else nullcontext():
                encoded = self._encoder.encode(rows.texts, digests, step, task.key)
            zeros = dict.fromkeys(np.flatnonzero(~encoded.vectors.any(axis=1)).tolist(), NO_DIRECTION)
            kept, keep = _reject(rows, zeros | encoded.unfit)
            self._refuse(task.shard.in_order(kept.bad))
            if rows.keys is not None and digests is not None:
                _save_digests(self.options, task.key, digests.table(encoded.cut)[keep])
            return self._write(task, kept, encoded, keep)

    def close(self) -> None:
        """End at the next batch what is still under way, and let go of everything."""
        self._stop()
        if self._store:
            self._store.close()

    def _stop(self) -> None:
        # Who is told that a run has ended may start the next one: no thread of this one may write any more.
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        self._compute.close()

    def _refuse(self, bad: Sequence[BadRow]) -> None:
        if bad and self.options.fail_on_bad_row:
            raise DataError(f"{bad[0].file}:{bad[0].line}: {bad[0].reason}; {MEND_THE_ROW}")

    def _write(self, task: ShardTask, rows: ShardRows, encoded: EncodedRows, keep: npt.NDArray[np.int64]) -> PartRecord:
        options = self.options
        hashes, n_bytes = write_part(options, task.name, rows.columns, encoded.vectors[keep])
        bad = task.shard.in_order(rows.bad)
        if bad:
            with write_aside(options.rejects_path(task.key)) as aside_file:
                aside_file.write_text("".join(map(_reject_line, bad)), encoding="utf-8")
        return PartRecord(
            index=task.index,
            key=task.key,
            n_rows=len(rows.texts),
            n_rejected=len(bad),
            n_encoded=encoded.n_encoded,
            n_reused=encoded.n_reused,
            n_changed=encoded.n_changed,
            dim=self.engine.dim,
            token_budget=self.engine.token_budget,
            files=hashes,
            n_bytes=n_bytes,
            first_rejects=[f"{row.file}:{row.line}: {row.reason}" for row in bad[:_FIRST_REJECTS]],
            n_cut=int(encoded.cut[keep].sum()),
            n_overruled=len(rows.overruled),
            first_overruled=next(iter(rows.overruled), ""),
        )


def write_part(options: PartOptions, name: str, columns: pa.Table, vectors: Vectors) -> tuple[dict[str, str], int]:
    """Write a part and move it into place, whole. Its sha256 by file name ("" for a part that is joined), and its size."""
    path = options.part_path(name)
    with write_files_aside(path.parent) as aside:
        written = write_vectors(
            aside / path.name,
            options.format,
            columns,
            vectors,
            delimiter=options.schema.delimiter,
            dtype=options.vector_dtype,
            packed=not options.are_joined,
        )
        # The hash of a part that is joined would never be asked for: the whole file has its own.
        hashes = {file.name: "" if options.are_joined else hash_file(file) for file in written}
        return hashes, sum(file.stat().st_size for file in written)


def _reject(rows: ShardRows, reasons: dict[int, str]) -> tuple[ShardRows, npt.NDArray[np.int64]]:
    """The rows without those that have a reason, which are bad ones from here on; and the places of those kept."""
    keep = np.array([row for row in range(len(rows.texts)) if row not in reasons], dtype=np.int64)
    if not reasons:
        return rows, keep
    bad = [rows.origins.bad(row, reason) for row, reason in reasons.items()]
    return (
        replace(
            rows,
            texts=[rows.texts[row] for row in keep],
            columns=rows.columns.take(keep),
            keys=None if rows.keys is None else [rows.keys[row] for row in keep],
            origins=rows.origins.take(keep.tolist()),
            bad=[*rows.bad, *bad],
        ),
        keep,
    )


def _reject_line(bad: BadRow) -> str:
    # The bytes as base64, for they may not be text.
    raw = base64.b64encode(bad.raw).decode("ascii")
    record = {"file": str(bad.file), "line": bad.line, "reason": bad.reason, "raw_base64": raw}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _save_digests(options: PartOptions, key: str, table: npt.NDArray[np.uint8]) -> None:
    with write_aside(options.digests_path(key)) as aside:
        np.save(aside, table, allow_pickle=False)


class _InOneThread:
    """An engine that computes in one thread, whoever asks: torch keeps a pool of threads for each thread that computes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.dim = engine.dim

    @property
    def token_budget(self) -> int:
        return self._engine.token_budget

    def prepare(self, texts: Sequence[str]) -> Any:  # noqa: ANN401
        return self._engine.prepare(texts)

    def compute(self, prepared: Any, on_batch: OnBatch | None = None) -> npt.NDArray[np.float32]:  # noqa: ANN401
        return self._thread.submit(self._engine.compute, prepared, on_batch).result()

    def cut(self, prepared: Any) -> Bools:  # noqa: ANN401
        return self._engine.cut(prepared)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


class _Turns:
    """Lets threads through one after another in the order of their numbers, whenever they come."""

    def __init__(self) -> None:
        self._n_taken = self._next = 0
        self._over: set[int] = set()
        self._changed = threading.Condition()

    def take(self) -> int:
        """The next number, from 0."""
        self._n_taken += 1
        return self._n_taken - 1

    @contextmanager
    def mine(self, turn: int) -> Iterator[None]:
        """Wait until every smaller number is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == turn)
        try:
            yield
        finally:
            self._end(turn)

    @contextmanager
    def over_at_the_end(self, turn: int) -> Iterator[None]:
        """The number is over when the block ends, if it was not before: who failed keeps nobody waiting."""
        try:
            yield
        finally:
            self._end(turn)

    def _end(self, turn: int) -> None:
        with self._changed:
            if turn >= self._next:
                self._over.add(turn)
            while self._next in self._over:
                self._over.remove(self._next)
                self._next += 1
            self._changed.notify_all()
