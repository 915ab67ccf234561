"""Ray: one actor a GPU or a group of cores of a cluster. An actor that is lost is replaced; its shards go to the others."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ebr.errors import ConfigError, DataError, EBRError, MissingPackageError, how_to_install
from ebr.inference.job.parts import PartOptions, PartRecord, ShardTask
from ebr.inference.job.pipeline import OnBatch
from ebr.inference.job.worker import OVERLAP, ShardWorker
from ebr.inference.workers.processes import CORES_A_WORKER, Build
from ebr.inference.workers.spec import Placement

log = logging.getLogger(__name__)

_MOST_LOSSES = 3
_PATIENCE_S = 60
_STATISTICS = "RAY_USAGE_STATS_ENABLED"


@dataclass(frozen=True)
class WorkerShape:
    """How many workers a cluster holds, and what each asks of it."""

    count: int
    resources: dict[str, int]
    """As options of a Ray task or actor."""


def worker_shape(num_workers: int | None, nodes: Sequence[Mapping[str, float]]) -> WorkerShape:
    """The workers of a cluster whose nodes have these resources, under Ray's names (CPU, GPU).

    num_workers None: one a GPU; without GPUs one for 8 cores of a node, at least 1 a node. Each gets as many cores, at most 8,
    as leave room for all of them, and never more than a node has: for that it would wait for ever.
    """
    n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if n_gpus:
        return WorkerShape(num_workers or n_gpus, {"num_cpus": 1, "num_gpus": 1})
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    count = num_workers or max(1, sum(max(1, n // CORES_A_WORKER) for n in cores))
    fitting = (each for each in range(CORES_A_WORKER, 1, -1) if sum(n // each for n in cores) >= count)
    return WorkerShape(count, {"num_cpus": next(fitting, 1)})


class RayCluster:
    """A connection to a Ray cluster: to one that runs, or (address None) to one that is started on this machine.

    A connection that this process has already is used as it is, whatever the address, and left open at the end.
    Raises MissingPackageError without the package, ConfigError when the cluster cannot be reached or started.
    """

    def __init__(self, num_workers: int | None = None, address: str | None = None) -> None:
        self.ray = _import_ray()
        self._is_ours = not self.ray.is_initialized()
        if self._is_ours:
            _connect(self.ray, address)
        self.shape = worker_shape(num_workers, [node["Resources"] for node in self.ray.nodes() if node["Alive"]])

    def on_worker(self, function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401
        """What a function returns where a worker would compute. For before the workers start: they take all the room.

        Function and arguments are pickled. Raises what the function raises.
        """
        ref = self.ray.remote(**self.shape.resources)(function).remote(*args)
        self.wait([ref], for_room=True)
        try:
            return self.get(ref)
        except self.ray.exceptions.RayError as error:
            raise EBRError(f"engine ray: a worker was lost again and again ({_reason(error)})") from error

    def wait(self, refs: Sequence[Any], *, for_room: bool) -> Any:  # noqa: ANN401
        """The first of some results to be there. for_room: a long wait is told, because the cluster may be full."""
        while True:
            done, _ = self.ray.wait(list(refs), num_returns=1, timeout=_PATIENCE_S)
            if done:
                return done[0]
            if for_room:
                log.warning("nothing for %d s: does `ray status` show room for %s?", _PATIENCE_S, self.shape.resources)

    def get(self, ref: Any) -> Any:  # noqa: ANN401
        """A result. Raises what the code raised that made it; a RayError when the process that made it was lost."""
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EBRError):
                raise error.cause from None
            raise error.cause from error  # keeps the traceback of the worker

    def close(self) -> None:
        """Let go of the cluster. One that was started here ends."""
        if self._is_ours:
            self.ray.shutdown()


@dataclass(eq=False)
class _Actor:
    """One worker, and what it has been given."""

    handle: Any
    starting: Any
    """The answer that it is ready, as long as that is awaited; None = it is."""
    given: dict[Any, ShardTask] = field(default_factory=dict)
    host: str = "?"

    @property
    def awaited(self) -> list[Any]:
        return list(self.given) if self.starting is None else [self.starting]


class RayWorkers:
    """Workers as actors of a Ray cluster, once with_engine has said what they compute with.

    Every node has to see the output folder under the same path.
    """

    def __init__(self, options: PartOptions, *, num_workers: int | None = None, address: str | None = None) -> None:
        self._cluster = RayCluster(num_workers, address)
        self._build: Build | None = None
        # An actor has a working directory of its own, on another machine.
        self._options = replace(options, parts_dir=options.parts_dir.absolute(), work_dir=options.work_dir.absolute())
        self._actors: list[_Actor] = []
        self._losses: Counter[int] = Counter()
        self._failed_starts = 0

    def on_worker(self, function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401
        """What a picklable function returns where a worker would compute; for before run."""
        return self._cluster.on_worker(function, *args)

    def with_engine(self, build: Build) -> RayWorkers:
        """These workers, with an engine. build: makes one at a place; it is pickled."""
        self._build = build
        return self

    def run(self, tasks: Iterator[ShardTask], on_batch: OnBatch) -> Iterator[PartRecord]:
        """The part of every task, as they get finished. on_batch is not told: progress goes by whole shards.

        Raises what a worker raised; DataError when a node does not see the output folder; EBRError for a shard that lost its
        actor three times.
        """
        queue = _Queue(tasks)
        if queue.is_empty():
            return
        with _left_marker(self._options.work_dir) as marker:
            self._actors = [self._start(marker) for _ in range(self._cluster.shape.count)]
            while self._feed(queue):
                for_room = not any(actor.given for actor in self._actors)
                ref = self._cluster.wait([ref for actor in self._actors for ref in actor.awaited], for_room=for_room)
                actor = next(actor for actor in self._actors if ref in actor.awaited)
                # Of several results that are there, Ray gives the first asked for: everybody's turn comes.
                self._actors.remove(actor)
                self._actors.append(actor)
                try:
                    answer = self._cluster.get(ref)
                except self._cluster.ray.exceptions.RayError as error:
                    self._replace(actor, error, queue, marker)
                    continue
                if ref == actor.starting:
                    self._check(actor, *answer)
                else:
                    del actor.given[ref]
                    yield answer

    def close(self) -> None:
        """End the actors at once: what they have not finished does not count. Let go of the cluster."""
        try:
            for actor in self._actors:
                self._cluster.ray.kill(actor.handle)
        finally:
            self._actors = []
            self._cluster.close()

    def _start(self, marker: Path) -> _Actor:
        assert self._build is not None, "with_engine comes first"
        resources = self._cluster.shape.resources
        # Not restarted by Ray: a restarting actor refuses its calls, and only one who keeps asking learns that it is back.
        remote = self._cluster.ray.remote(**resources, max_concurrency=OVERLAP)(_ShardActor)
        handle = remote.remote(self._build, self._options, Placement("cuda" if "num_gpus" in resources else "cpu"))
        return _Actor(handle, handle.start.remote(marker))

    def _feed(self, queue: _Queue) -> bool:
        """Hand out shards, the next to whoever has least. Whether there is anything to wait for."""
        ready = [actor for actor in self._actors if actor.starting is None]
        while ready and not queue.is_empty():
            actor = min(ready, key=lambda one: len(one.given))
            if len(actor.given) == OVERLAP:
                break
            task = queue.next()
            actor.given[actor.handle.embed.remote(task)] = task
        return any(actor.given for actor in self._actors) or not queue.is_empty()

    def _check(self, actor: _Actor, host: str, sees_output: bool) -> None:
        """An actor has started. Raises DataError when it does not see the output."""
        if not sees_output:
            raise DataError(
                f"output_path {self._options.work_dir.parent}: node {host} does not see it; it must lie on storage that every "
                "node shares, under the same path"
            )
        actor.starting, actor.host, self._failed_starts = None, host, 0
        log.info("a Ray actor on %s is ready", host)

    def _replace(self, actor: _Actor, error: Exception, queue: _Queue, marker: Path) -> None:
        """An actor is lost: its shards go back, another one takes its place where the cluster has room."""
        reason, lost = _reason(error), list(actor.given.values())
        log.warning("lost a Ray actor on %s and the %d shards it had; they are done again (%s)", actor.host, len(lost), reason)
        if actor.starting is not None:
            self._failed_starts += 1
            if self._failed_starts == _MOST_LOSSES:
                raise EBRError(f"engine ray: actors did not start, {_MOST_LOSSES} times in a row ({reason})")
        for task in lost:
            self._losses[task.index] += 1
            if self._losses[task.index] == _MOST_LOSSES:
                raise EBRError(
                    f"{task.shard} lost its Ray actor {_MOST_LOSSES} times "
                    f"({reason}); if memory was short, take fewer num_workers or a lower token_budget"
                )
        queue.give_back(lost)
        # One that only seemed lost must not keep its place.
        self._cluster.ray.kill(actor.handle)
        self._actors[self._actors.index(actor)] = self._start(marker)


class _Queue:
    """Tasks, those given back first."""

    def __init__(self, tasks: Iterator[ShardTask]) -> None:
        self._tasks = tasks
        self._back: list[ShardTask] = []

    def is_empty(self) -> bool:
        """Whether none is left; reads one ahead."""
        if not self._back:
            self._back = list(islice(self._tasks, 1))
        return not self._back

    def next(self) -> ShardTask:
        """The next one, of a queue that is not empty."""
        return self._back.pop(0)

    def give_back(self, tasks: list[ShardTask]) -> None:
        """Those of an actor that is lost."""
        self._back = tasks + self._back


class _ShardActor:
    """What runs on a node: one engine, and as many calls at a time as there are shards under way."""

    def __init__(self, build: Build, options: PartOptions, place: Placement) -> None:
        # The engine is built by a call: what a constructor raises, Ray wraps in its own words.
        self._build, self._options, self._place = build, options, place

    def start(self, marker: Path) -> tuple[str, bool]:
        """Build the engine. The node's name, and whether it sees the output folder; if not, nothing is built."""
        sees_output = marker.is_file()
        if sees_output:
            self._worker = ShardWorker(self._build(self._place), self._options)
        return socket.gethostname(), sees_output

    def embed(self, task: ShardTask) -> PartRecord:
        """Make the part of one shard. Doing it again does no harm: a part is moved into place whole, and always the same."""
        return self._worker.embed(task, lambda n_texts: None)


@contextmanager
def _left_marker(work_dir: Path) -> Iterator[Path]:
    """A file beside the output, which a node sees if the two share a storage."""
    work_dir.mkdir(parents=True, exist_ok=True)
    marker = work_dir / f"seen-{secrets.token_hex(8)}"
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


def _import_ray() -> Any:  # noqa: ANN401
    try:
        # A submodule, because a folder of that name would pass for an empty package.
        import ray.exceptions
    except ImportError:
        raise MissingPackageError(f"engine ray: needs the package ray; {how_to_install('ray')}") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:  # noqa: ANN401
    """Connect to a cluster; None: start one here. Neither it nor we report to anybody."""
    where = f"ray_address {address}: no cluster can be used there" if address else "engine ray: none could be started here"
    local = {"include_dashboard": False} if address is None else {}
    before = os.environ.get(_STATISTICS)
    os.environ[_STATISTICS] = "0"
    host, _, port = (address or "").rpartition(":")
    try:
        if port.isdigit() and "://" not in host:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself goes on asking for minutes
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **local)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(f"{where} ({_reason(error)}); start one by: ray start --head (docs/scale.md says more)") from error
    finally:
        if before is None:
            del os.environ[_STATISTICS]
        else:
            os.environ[_STATISTICS] = before


def _reason(error: BaseException) -> str:
    """What happened, in a line: Ray begins with that something did, and ends with why."""
    text = re.sub(r"\x1b\[\d+m", "", str(error))  # it colours names
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return " … ".join(line[:300] for line in dict.fromkeys([lines[0], lines[-1]]))
