"""Several processes of one machine: one a GPU, or a group of cores each. One that dies is replaced; its shards are redone."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ebr.errors import EBRError
from ebr.inference.job.parts import PartOptions, PartRecord, ShardTask
from ebr.inference.job.pipeline import OnBatch
from ebr.inference.job.worker import OVERLAP, ShardWorker
from ebr.inference.workers.spec import Placement
from ebr.model.compute.engine import Engine

Build = Callable[[Placement], Engine]

_MOST_DEATHS = 3
CORES_A_WORKER = 8
"""Cores that one worker makes good use of, where there is no GPU."""


def placements(num_workers: int | None, n_gpus: int, cores: list[int]) -> list[Placement]:
    """Where a machine's workers compute: one a GPU; without GPUs one for 8 cores, at least 2, the cores dealt out evenly."""
    if n_gpus:
        count = num_workers or n_gpus
        return [Placement(f"cuda:{index % n_gpus}") for index in range(count)]
    count = num_workers or max(2, len(cores) // CORES_A_WORKER)
    each = max(1, len(cores) // count)
    return [Placement("cpu", tuple(cores[index * each % len(cores) :][:each])) for index in range(count)]


@dataclass(eq=False)
class _Process:
    """One worker process, and what it has been given. suspects: what the process before it had when it died."""

    place: Placement
    process: BaseProcess
    pipe: Connection
    suspects: list[ShardTask] = field(default_factory=list)
    given: dict[int, ShardTask] = field(default_factory=dict)
    told_to_end: bool = False


class ProcessWorkers:
    """Workers in processes of their own. build: makes an engine at a place; it is pickled."""

    def __init__(self, build: Build, options: PartOptions, places: list[Placement], *, start_method: str = "spawn") -> None:
        self._build = build
        self._options = options
        # Not fork: a forked process has torch's locks, but not the threads that hold them.
        self._context: Any = multiprocessing.get_context(start_method)
        self._processes = [self._start(place) for place in places]
        self._deaths: Counter[int] = Counter()

    def run(self, tasks: Iterator[ShardTask], on_batch: OnBatch) -> Iterator[PartRecord]:
        """The part of every task, as they get finished. Raises what a worker raised."""
        while True:
            for worker in self._processes:
                self._feed(worker, tasks)
            busy = [worker for worker in self._processes if worker.given]
            if not busy:
                return
            ready = wait([one for worker in busy for one in (worker.pipe, worker.process.sentinel)])
            for worker in busy:
                if worker.pipe in ready or worker.process.sentinel in ready:
                    yield from self._take(worker, on_batch)

    def _feed(self, worker: _Process, tasks: Iterator[ShardTask]) -> None:
        while not worker.told_to_end and len(worker.given) < self._room(worker):
            task = worker.suspects.pop(0) if worker.suspects else next(tasks, None)
            worker.told_to_end = task is None
            if task is not None:
                worker.given[task.index] = task
            try:
                worker.pipe.send(task)
            except (BrokenPipeError, ConnectionResetError):
                return  # it has died; its sentinel says so

    def _room(self, worker: _Process) -> int:
        # A suspect goes alone, so that it is known which one it was when the process dies again.
        return 1 if worker.suspects or any(self._deaths[index] for index in worker.given) else OVERLAP

    def _take(self, worker: _Process, on_batch: OnBatch) -> Iterator[PartRecord]:
        """Everything a worker has to say by now; when it has died, another takes its place."""
        # Asked first: what it said before it died is still to be heard.
        is_alive = worker.process.is_alive()
        while (message := _received(worker.pipe)) is not None:
            kind, value = message
            if kind == "failed":
                error, told = value
                raise error from _Traceback(told)
            if kind == "batch":
                index, n_texts = value
                on_batch(worker.given[index], n_texts)
            else:
                del worker.given[value.index]
                yield value
        if not is_alive and (worker.given or not worker.told_to_end):
            self._replace(worker)

    def _replace(self, worker: _Process) -> None:
        for index, task in worker.given.items():
            self._deaths[index] += 1
            if self._deaths[index] == _MOST_DEATHS:
                raise EBRError(
                    f"{task.shard} ended its process {_MOST_DEATHS} times "
                    f"(exit code {worker.process.exitcode}); {_reason(worker.process.exitcode)}"
                )
        worker.process.join()
        worker.pipe.close()
        successor = self._start(worker.place, [*worker.given.values(), *worker.suspects])
        self._processes[self._processes.index(worker)] = successor

    def _start(self, place: Placement, suspects: Sequence[ShardTask] = ()) -> _Process:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(there, self._build, self._options, place), daemon=True)
        process.start()
        there.close()
        return _Process(place, process, here, list(suspects))

    def close(self) -> None:
        """End the processes at once: what they have not finished does not count."""
        for worker in self._processes:
            worker.process.kill()
        for worker in self._processes:
            worker.process.join()
            worker.pipe.close()


class _Traceback(Exception):
    """Where an error arose in a worker, as its cause here: an error that is sent loses its traceback."""


def _received(pipe: Connection) -> tuple[str, Any] | None:
    """The next message that is there; None when there is none, or only the half of one from a process that died."""
    try:
        return pipe.recv() if pipe.poll() else None
    except (EOFError, OSError):
        return None


def _reason(exit_code: int | None) -> str:
    if exit_code == 1:  # it did not come as far as its own work, where every error is passed on
        return 'a script has to call it under `if __name__ == "__main__":`, for each process reads the script first'
    return "-9 mostly means that memory was short: set fewer num_workers, or a lower token_budget"


def _work(pipe: Connection, build: Build, options: PartOptions, place: Placement) -> None:
    """A worker process: tasks come through the pipe until None, parts' records go back."""
    # Ctrl-C goes to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = threading.Lock()

    def send(kind: str, value: Any) -> None:  # noqa: ANN401
        with lock:
            pipe.send((kind, value))

    def on_batch(index: int, n_texts: int) -> None:
        send("batch", (index, n_texts))

    def report(future: Future[PartRecord]) -> None:
        error = future.exception()
        with suppress(OSError):  # the parent is gone
            if error is None:
                send("done", future.result())
            else:
                send("failed", (_picklable(error), "".join(traceback.format_exception(error))))

    pending: list[Future[PartRecord]] = []
    try:
        with closing(ShardWorker(build(place), options)) as worker:
            for task in iter(pipe.recv, None):
                # Each part is told of when it is done: the parent may wait for this one before it gives the next.
                future = worker.start(task, partial(on_batch, task.index))
                future.add_done_callback(report)
                pending = [*(one for one in pending if not one.done()), future]
            wait_for_all(pending)
    except (EOFError, ConnectionResetError):
        pass  # the parent is gone
    except BaseException as error:
        send("failed", (_picklable(error), "".join(traceback.format_exception(error))))


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
