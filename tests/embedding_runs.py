"""A run over tables without a model: what workflow/inference.py does around the engine. Also in a process that gets killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ebr.data.files.dialects import Dialect
from ebr.data.tables.shards import open_source
from ebr.data.vectors.formats import format_of
from ebr.inference.job.dedup import Dedup
from ebr.inference.job.incremental import fill_store
from ebr.inference.job.ledger import open_ledger, work_folder
from ebr.inference.job.output import Output
from ebr.inference.job.parts import PARTS, PartOptions
from ebr.inference.job.pipeline import embed_source
from ebr.inference.job.worker import ShardWorker
from ebr.inference.workers.processes import ProcessWorkers
from tests.shard_engines import FakeEngine


def write_table(path, *rows, header="id|text|label"):
    """A table of lines, text or bytes; header None = none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else row.encode() for row in ([] if header is None else [header]) + list(rows)]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def everything(folder):
    """Every file in a folder that nobody hid: its bytes by its name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(name): path.read_bytes() for path in files if not str(name := path.relative_to(folder)).startswith(".")}


def leftovers(folder):
    """What was hidden in a folder and is no part of the state that a finished run keeps."""
    kept = {"run.json", "parts.jsonl", "lock"}
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    hidden = [path for path in files if any(part.startswith(".") for part in path.parts)]
    return [str(path) for path in hidden if path.name not in kept and path.parent.name not in {"rejects", "digests"}]


@dataclass
class Run:
    """The options of a run; go() runs it."""

    folder: Path
    out: Path
    shard_rows: int = 4
    columns: list[str] | None = None
    output_format: str | None = None
    dtype: str = "float32"
    dedup: str = "shard"
    fail_on_bad_row: bool = False
    key: str | None = None
    model: str = "fake"
    facts: dict = field(default_factory=dict)

    def source(self):
        return open_source(self.folder, "*", Dialect.of("|"), "text", self.columns, key_column=self.key)

    def output(self, source):
        work_dir, is_file = work_folder(self.out), bool(self.out.suffix)
        options = PartOptions(
            schema=source.schema,
            format=format_of(self.out, self.output_format),
            vector_dtype=self.dtype,
            fail_on_bad_row=self.fail_on_bad_row,
            dedup=Dedup(self.dedup),
            parts_dir=work_dir / PARTS if is_file else self.out,
            work_dir=work_dir,
            incremental=self.key is not None,
        )
        return Output(self.out, is_file, options)

    def recipe(self):
        layout = {"dedup": self.dedup, "shard_rows": self.shard_rows, "format": self.output_format, "columns": self.columns}
        return {
            "vectors": {"model": self.model, "incremental_key": self.key},
            "layout": {**layout, "vector_dtype": self.dtype},
        }

    def ledger(self):
        """Its state, locked for the block."""
        return open_ledger(self.out, self.recipe())

    def go(self, engine=None, build=None, places=(), start_method="spawn"):
        source = self.source()
        output = self.output(source)
        with self.ledger() as ledger:
            output.sweep()
            if build is None:
                workers = ShardWorker(engine or FakeEngine(), output.options)
            else:
                workers = ProcessWorkers(build, output.options, places, start_method=start_method)
            with closing(workers):
                ledger.begin(ledger.settings or {"token_budget": 64})
                if self.key and ledger.brought_up_to_date:
                    fill_store(self.out, ledger.brought_up_to_date, output.options, output.digests)
                return embed_source(source, output, ledger, workers, self.shard_rows, self.facts)


# ---------------------------------------------------------------- in another process


def forked(target, *args):
    """A process that runs target(*args) and has everything imported already; started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.embedding_runs"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def go_slowly(run, seconds):
    """A run that spends so many seconds on a batch."""
    run.go(FakeEngine(seconds=seconds))


def go_until(run, n_steps):
    """A run whose process is killed right before its n-th step (from 1) that changes the disk for good."""
    steps = itertools.count(1)

    def deadly(change):
        def killed_or_done(*args, **options):
            if next(steps) == n_steps:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **options)

        return killed_or_done

    for owner, name in [(Path, "replace"), (Path, "unlink"), (shutil, "rmtree")]:
        setattr(owner, name, deadly(getattr(owner, name)))
    run.go()


def n_steps_survived(run, n_steps):
    """Whether a run got through before its n-th step; its process is gone either way."""
    process = forked(go_until, run, n_steps)
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode == 0
