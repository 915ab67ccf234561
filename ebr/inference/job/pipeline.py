"""Tables in, vectors out: shards → workers → parts → one output. A table is never in memory whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ebr.data.files.write import reason_of
from ebr.data.progress import progress_bar
from ebr.data.tables.shards import TableSource, read_shards
from ebr.data.text.counted import are, counted
from ebr.errors import DataError, EBRError, Interrupted
from ebr.inference.job.ledger import Ledger
from ebr.inference.job.output import Output
from ebr.inference.job.parts import MEND_THE_ROW, PartRecord, ShardTask, inputs_digest

OnBatch = Callable[[ShardTask, int], None]
_FIRST_REJECTS = 5


class Workers(Protocol):
    """Whoever turns shards into parts: this process, several, or a cluster."""

    def run(self, tasks: Iterator[ShardTask], on_batch: OnBatch) -> Iterator[PartRecord]:
        """The part of every task, in any order. on_batch may be told of texts done within a shard."""
        ...

    def close(self) -> None:
        """Let everything go."""
        ...


@dataclass(frozen=True)
class EmbeddedTables:
    """What a finished run wrote, and what it could not use."""

    output_path: Path
    rejects_path: Path | None
    n_files: int
    n_shards: int
    n_kept: int
    """Shards that were finished before."""
    n_rows: int
    n_rejected: int
    n_fresh: int
    """Rows of the shards of this run."""
    n_encoded: int
    """Of those, texts that went through the model."""
    n_reused: int
    """Of those, rows whose vector was taken over, for their key had the same text before."""
    n_changed: int
    """Of those, rows whose key had another text before."""
    first_rejects: list[str]
    n_overruled: int
    """Cells of columns that their folders give, which say something else."""
    first_overruled: str
    dim: int
    n_cut: int | None = None
    """Rows whose text is longer than the model reads; None = parts of an earlier version did not count."""


def embed_source(
    source: TableSource, output: Output, ledger: Ledger, workers: Workers, shard_rows: int, facts: dict[str, Any]
) -> EmbeddedTables:
    """Embed every row of a source that is not embedded yet, and make the output of all parts.

    Raises DataError when not one row could be used, and EBRError subclasses for whatever stopped it; what is finished by then
    is kept, and the same run goes on from there.
    """
    records: dict[int, PartRecord] = {}
    kept: set[int] = set()
    with _Progress() as progress:

        def unfinished() -> Iterator[ShardTask]:
            for index, shard in enumerate(read_shards(source, shard_rows, shared=ledger.shared_shards)):
                key = ledger.key_of(shard.digest)
                known = ledger.record_of(key)
                progress.expect(index, shard.n_lines, shard.read_share)
                if known is not None and output.has(known, ledger):
                    if known.n_rejected and output.options.fail_on_bad_row:
                        raise DataError(f"{known.first_rejects[0]}; {MEND_THE_ROW}")
                    kept.add(index)
                    records[index] = known
                    progress.skip(index)
                else:
                    yield ShardTask(index, key, shard)

        with _resumable(records):
            for record in workers.run(unfinished(), progress.on_batch):
                ledger.add(record)
                ledger.remember_budget(record.token_budget)
                records[record.index] = record
                progress.done(record.index)
    ordered = [records[index] for index in range(len(records))]
    done = _summed_up(ordered, source, output, kept)
    if not done.n_rows:
        why = f"the first reason: {done.first_rejects[0]}" if done.first_rejects else "the tables hold no rows"
        raise DataError(f"no row could be embedded; {why}")
    with _resumable(records):
        output.sweep()  # a worker that was lost may have left something half-written
        output.assemble(ordered, ledger, {**facts, **_facts(ordered, done)})
    return done


@contextmanager
def _resumable(records: dict[int, PartRecord]) -> Iterator[None]:
    """Whatever ends the run early, its message says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {_kept(records)}") from None
    except EBRError as error:
        if records:
            error.args = (f"{error}\n{_kept(records)}",)
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise DataError(f"{where}{reason_of(error)}; mend that. {_kept(records)}") from error


def _kept(records: dict[int, PartRecord]) -> str:
    rows = sum(record.n_rows for record in records.values())
    shards = counted(len(records), "shard")
    return f"{shards} ({counted(rows, 'row')}) {are(len(records))} finished and kept; run the same command again to go on"


def _facts(records: Sequence[PartRecord], done: EmbeddedTables) -> dict[str, Any]:
    # Not how many texts were encoded or reused: that is of the runs, and the same rows make the same output however it came.
    inputs = inputs_digest(record.key for record in records)
    return {"inputs_sha256": inputs, "n_shards": len(records), "n_rejected": done.n_rejected, "n_cut": done.n_cut}


def _summed_up(records: Sequence[PartRecord], source: TableSource, output: Output, kept: set[int]) -> EmbeddedTables:
    fresh = [record for index, record in enumerate(records) if index not in kept]
    n_rejected = sum(record.n_rejected for record in records)
    return EmbeddedTables(
        output_path=output.path,
        rejects_path=output.rejects_path if n_rejected else None,
        n_files=len(source.files),
        n_shards=len(records),
        n_kept=len(kept),
        n_rows=sum(record.n_rows for record in records),
        n_rejected=n_rejected,
        n_fresh=sum(record.n_rows for record in fresh),
        n_encoded=sum(record.n_encoded for record in fresh),
        n_reused=sum(record.n_reused for record in fresh),
        n_changed=sum(record.n_changed for record in fresh),
        first_rejects=[line for record in records for line in record.first_rejects][:_FIRST_REJECTS],
        n_overruled=sum(record.n_overruled for record in records),
        first_overruled=next((record.first_overruled for record in records if record.n_overruled), ""),
        dim=records[0].dim if records else 0,
        n_cut=_n_cut(records),
    )


def _n_cut(records: Sequence[PartRecord]) -> int | None:
    counts = [record.n_cut for record in records]
    return None if None in counts else sum(count for count in counts if count is not None)


class _Progress:
    """A bar over rows, with their rate. How many there are is told from the share of the bytes that has been read."""

    def __init__(self) -> None:
        self._bar = progress_bar(total=0, desc="embed", unit="row")
        self._lock = threading.Lock()
        self._n_expected = 0
        self._open: dict[int, int] = {}
        self._within: dict[int, int] = {}
        self._n_done = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def expect(self, index: int, n_rows: int, read_share: float) -> None:
        """A shard has been read."""
        with self._lock:
            self._open[index] = n_rows
            self._n_expected += n_rows
            self._bar.total = round(self._n_expected / read_share)

    def skip(self, index: int) -> None:
        """It was finished before, and counts for no rate."""
        self._bar.initial += self._open[index]
        self.done(index)

    def on_batch(self, task: ShardTask, n_texts: int) -> None:
        """Some of its texts have gone through the model."""
        with self._lock:
            within = self._within.get(task.index, 0) + n_texts
            self._within[task.index] = min(within, task.shard.n_lines)
            self._show()

    def done(self, index: int) -> None:
        """It is finished."""
        with self._lock:
            self._within.pop(index, None)
            self._n_done += self._open.pop(index)
            self._show()

    def _show(self) -> None:
        self._bar.update(self._n_done + sum(self._within.values()) - self._bar.n)
