"""Workers of a Ray cluster: the same parts as on one machine, whatever is lost on the way."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import shlex
import socket
import sys
import textwrap
import time
import types
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ebr.config.options import add_arguments, flag_to_name
from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import ConfigError, DataError, EBRError, MissingPackageError
from ebr.inference.job.ledger import open_ledger
from ebr.inference.job.parts import ShardTask
from ebr.inference.job.pipeline import embed_source
from ebr.inference.job.worker import OVERLAP
from ebr.inference.workers import ray as ray_workers
from ebr.inference.workers.ray import RayWorkers, worker_shape
from ebr.workflow.verbs import VERBS
from tests.embedding_runs import Run, write_table
from tests.shard_engines import Builder, FakeEngine, vectors_of
from tests.test_architecture import imported

N_ROWS, SHARD_ROWS = 120, 4
TEXTS = [f"text {number % 37} of many" for number in range(N_ROWS)]


@pytest.fixture
def folder(tmp_path):
    """Two tables of 60 rows, one of which has no text: 30 shards of 4 lines, 119 good rows."""
    rows = [f"{number}|{text}|A" for number, text in enumerate(TEXTS)]
    write_table(tmp_path / "in" / "a.csv", *rows[:60])
    write_table(tmp_path / "in" / "b.csv", *rows[60:-1], f"{N_ROWS - 1}||A")
    return tmp_path / "in"


def run_of(folder, name, **options):
    return Run(folder, folder.parent / name, shard_rows=SHARD_ROWS, **options)


def embed_by_ray(run, build, *, within=lambda workers: workers, **options):
    """Run.go with Ray. within: what stands between the workers and the run."""
    source = run.source()
    output = run.output(source)
    with open_ledger(run.out, run.recipe()) as ledger, closing(RayWorkers(output.options, **options)) as workers:
        ledger.begin({"token_budget": 64})
        workers.with_engine(build)
        return embed_source(source, output, ledger, within(workers), run.shard_rows, {})


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- how many, and where


@pytest.mark.parametrize(
    ("num_workers", "nodes", "count", "resources"),
    [
        (None, [{"CPU": 2}], 1, {"num_cpus": 2}),
        (None, [{"CPU": 8}], 1, {"num_cpus": 8}),
        (None, [{"CPU": 64}, {"CPU": 16}], 10, {"num_cpus": 8}),
        # Eight cores in all, but no node has them together.
        (None, [{"CPU": 4}, {"CPU": 4}], 2, {"num_cpus": 4}),
        (1, [{"CPU": 4}, {"CPU": 4}], 1, {"num_cpus": 4}),
        (3, [{"CPU": 4}, {"CPU": 4}], 3, {"num_cpus": 2}),
        (5, [{"CPU": 2}], 5, {"num_cpus": 1}),
        (None, [{"memory": 1.0}], 1, {"num_cpus": 1}),
        (None, [{"CPU": 16, "GPU": 4}, {"CPU": 64}, {"GPU": 1, "CPU": 2}], 5, {"num_cpus": 1, "num_gpus": 1}),
        (2, [{"CPU": 16, "GPU": 4}], 2, {"num_cpus": 1, "num_gpus": 1}),
    ],
)
def test_workers_are_one_a_gpu_or_one_for_eight_cores_of_a_node(num_workers, nodes, count, resources):
    shape = worker_shape(num_workers, nodes)
    assert (shape.count, shape.resources) == (count, resources)


@pytest.mark.parametrize("absent", [None, types.ModuleType("ray")], ids=["not installed", "a folder of that name"])
def test_missing_ray_is_one_line_with_the_command_that_installs_it(monkeypatch, folder, absent):
    monkeypatch.setitem(sys.modules, "ray", absent)
    monkeypatch.delitem(sys.modules, "ray.exceptions", raising=False)
    run = run_of(folder, "out")
    with pytest.raises(MissingPackageError) as caught:
        RayWorkers(run.output(run.source()).options)
    assert str(caught.value) == "engine ray: needs the package ray; pip install 'ebr-retrieval[ray]'"


def test_ray_is_imported_when_it_is_asked_for_and_not_before():
    assert "ray.exceptions" in imported("ebr.inference.workers.ray")
    assert "ray.exceptions" not in imported("ebr.inference.workers.ray", lazy=False)


# ---------------------------------------------------------------- what the driver does, with a Ray of one thread


class Lost(Exception):
    """As RayError: a process is gone."""


class Raised(Lost):
    """As RayTaskError, which is a RayError too: the code raised."""

    def __init__(self, cause):
        super().__init__(f"Traceback of the worker\n{cause!r}")
        self.cause = cause


class OneThreadRay:
    """As much of Ray as the driver uses: a call is done when its result is fetched.

    fate: called with (number of the actor, method, argument) before each; what it raises comes out. stuck: actors that find no
    room, so that what they are called for never gets done.
    """

    exceptions = SimpleNamespace(RayError=Lost, RayTaskError=Raised)

    def __init__(self, n_nodes, fate=lambda actor, method, argument: None, stuck=()):
        self.n_nodes, self.fate, self.stuck = n_nodes, fate, set(stuck)
        self.options, self.killed, self.fetched = [], [], []
        self.most_under_way = self.n_waits = 0

    def is_initialized(self):
        return True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 1}}] * self.n_nodes + [{"Alive": False, "Resources": {"CPU": 99}}]

    def remote(self, **options):
        def start(kind):
            def actor(*arguments):
                self.options.append(options)
                number, real = len(self.options) - 1, kind(*arguments)
                methods = {
                    name: SimpleNamespace(remote=lambda argument, name=name: Call(number, name, argument, getattr(real, name)))
                    for name in ("start", "embed")
                }
                return SimpleNamespace(number=number, **methods)

            return SimpleNamespace(remote=actor)

        return start

    def wait(self, calls, num_returns, timeout):
        by_actor = [call.actor for call in calls if call.method == "embed"]
        self.most_under_way = max([self.most_under_way, *map(by_actor.count, by_actor)])
        done = [call for call in calls if call.actor not in self.stuck][:num_returns]
        self.n_waits += 1
        assert done, "waits for what never comes"
        assert self.n_waits < 1000, "goes on for ever"
        return done, calls

    def get(self, call):
        self.fate(call.actor, call.method, call.argument)
        self.fetched.append(call)
        try:
            return call.function(call.argument)
        except Exception as error:
            raise Raised(error) from None

    def kill(self, handle):
        self.killed.append(handle.number)


@dataclass(eq=False)
class Call:
    actor: int
    method: str
    argument: object
    function: object


def run_on(monkeypatch, ray, folder):
    """The run's result by the one-thread Ray: (embedded, ids in the order of the output)."""
    monkeypatch.setattr(ray_workers, "_import_ray", lambda: ray)
    run = run_of(folder, "out.txt")
    done = embed_by_ray(run, Builder())
    return done, read_embeddings(run.out, "|").columns["id"]


ALL_IDS = [str(number) for number in range(N_ROWS - 1)]


def test_shards_are_dealt_out_three_at_a_time_to_each_actor(monkeypatch, folder):
    ray = OneThreadRay(2)
    done, ids = run_on(monkeypatch, ray, folder)
    assert (done.n_shards, done.n_rows, done.n_rejected, ids) == (30, 119, 1, ALL_IDS)
    assert ray.options == [{"num_cpus": 1, "max_concurrency": OVERLAP}] * 2
    assert ray.most_under_way == OVERLAP == 3
    assert {call.actor for call in ray.fetched} == {0, 1}


def test_lost_actor_is_replaced_and_its_shards_are_done_once_by_the_others(monkeypatch, folder, caplog):
    embedded = []

    def fate(actor, method, argument):
        if method == "embed":
            embedded.append(argument.index)
            if actor == 0 and len(embedded) == 5:
                raise Lost("its node has died")

    ray = OneThreadRay(2, fate)
    done, ids = run_on(monkeypatch, ray, folder)
    assert (done.n_shards, ids) == (30, ALL_IDS)
    assert sorted(call.argument.index for call in ray.fetched if call.method == "embed") == list(range(30))
    assert len(ray.options) == 3
    assert (ray.killed[0], sorted(ray.killed)) == (0, [0, 1, 2])  # the lost one at once, the others at the end
    assert "and the 3 shards it had; they are done again (its node has died)" in caplog.text


def test_actor_for_which_there_is_no_room_holds_nobody_up(monkeypatch, folder):
    ray = OneThreadRay(3, stuck=[0, 2])
    _, ids = run_on(monkeypatch, ray, folder)
    assert ids == ALL_IDS
    assert {call.actor for call in ray.fetched} == {1}


def test_shard_that_loses_its_actor_three_times_ends_the_run_by_name(monkeypatch, folder):
    def fate(actor, method, argument):
        if isinstance(argument, ShardTask) and argument.index == 16:
            raise Lost("killed\nwant of memory")

    with pytest.raises(EBRError) as caught:
        run_on(monkeypatch, OneThreadRay(2, fate), folder)
    assert str(caught.value).startswith(
        "b.csv: the shard from line 6 lost its Ray actor 3 times (killed … want of memory); "
        "if memory was short, take fewer num_workers or a lower token_budget\n"
    )
    assert "are finished and kept" in str(caught.value)


def test_actors_that_do_not_start_end_the_run(monkeypatch, folder):
    def fate(actor, method, argument):
        if method == "start":
            raise Lost("The actor died in its creation task\n  File x\nModuleNotFoundError: No module named 'ebr'")

    with pytest.raises(EBRError, match=r"did not start, 3 times in a row \(The actor died .* … ModuleNotFoundError: No module"):
        run_on(monkeypatch, OneThreadRay(2, fate), folder)


def test_error_inside_an_actor_comes_out_as_itself_and_says_what_is_kept(monkeypatch, folder):
    run = run_of(folder, "out", fail_on_bad_row=True)
    monkeypatch.setattr(ray_workers, "_import_ray", lambda: OneThreadRay(2))
    with pytest.raises(DataError) as caught:
        embed_by_ray(run, Builder())
    assert type(caught.value) is DataError
    message, kept = str(caught.value).split("\n")
    assert message == "b.csv:61: text is empty; mend the row, or set on_bad_row reject to list such rows and go on"
    assert kept.endswith("finished and kept; run the same command again to go on")


def test_node_that_does_not_see_the_output_folder_is_named_before_it_gets_a_shard(monkeypatch, folder):
    @contextmanager
    def marker_on_another_disk(work_dir):
        yield work_dir / "not here"

    monkeypatch.setattr(ray_workers, "_left_marker", marker_on_another_disk)
    ray = OneThreadRay(2)
    with pytest.raises(DataError) as caught:
        run_on(monkeypatch, ray, folder)
    assert str(caught.value) == (
        f"output_path {folder.parent}: node {socket.gethostname()} does not see it; "
        "it must lie on storage that every node shares, under the same path"
    )
    assert [call.method for call in ray.fetched] == ["start"]


def test_finished_output_needs_no_actor(monkeypatch, folder):
    run_on(monkeypatch, OneThreadRay(1), folder)
    ray = OneThreadRay(1)
    done, ids = run_on(monkeypatch, ray, folder)
    assert (done.n_kept, ids, ray.options) == (30, ALL_IDS, [])


def test_marker_of_the_output_folder_is_gone_in_the_end(monkeypatch, folder):
    run_on(monkeypatch, OneThreadRay(1), folder)
    assert not list((folder.parent / ".out.txt.ebr").glob("seen-*"))


# ---------------------------------------------------------------- a real Ray


def ask_first(workers):
    """on_worker comes before the workers: what it returns, and what it raises. Closures, for they need no import of torch."""

    def number_of_threads():
        return os.environ["OMP_NUM_THREADS"]

    def fails(error):
        raise error

    assert workers.on_worker(number_of_threads) == os.environ["OMP_NUM_THREADS"]
    for error in (DataError("b.csv:61: text is empty"), OSError(28, "No space left on device", "/shared/part")):
        with pytest.raises(type(error)) as caught:
            workers.on_worker(fails, error)
        assert (type(caught.value), str(caught.value)) == (type(error), str(error))
    assert isinstance(caught.value.__cause__, Exception)  # with the traceback of the worker
    return workers


@pytest.mark.long
def test_local_ray_makes_the_same_files_as_the_local_engine_and_ends_with_the_run(folder, monkeypatch):
    ray = pytest.importorskip("ray", reason="the optional package ray is not installed")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    alone, cluster = run_of(folder, "alone"), run_of(folder, "cluster")
    wanted = alone.go()
    done = embed_by_ray(cluster, Builder(), within=ask_first, num_workers=1)
    assert (done.n_rows, done.n_rejected, done.n_encoded) == (wanted.n_rows, wanted.n_rejected, wanted.n_encoded)
    assert files_in(cluster.out).keys() == files_in(alone.out).keys()
    assert len(files_in(cluster.out)) == 31
    assert files_in(cluster.out) == files_in(alone.out)
    assert done.rejects_path.read_bytes() == wanted.rejects_path.read_bytes()
    assert not ray.is_initialized()
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


@pytest.fixture(scope="module")
def cluster():
    """The head of a Ray cluster with room for one worker."""
    pytest.importorskip("ray", reason="the optional package ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 1, "object_store_memory": 150 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


class WaitsForTheOther(FakeEngine):
    """Computes once two processes want to: then both have shards under way."""

    def __init__(self, folder):
        super().__init__(seconds=0.1)
        self.folder = folder

    def compute(self, texts, on_batch=None):
        (self.folder / str(os.getpid())).touch()
        while len(list(self.folder.iterdir())) < 2:
            time.sleep(0.02)
        return super().compute(texts, on_batch)


@dataclass(frozen=True)
class BuildWaiting:
    folder: Path

    def __call__(self, place):
        return WaitsForTheOther(self.folder)


@dataclass(frozen=True)
class NodeDies:
    """Workers of which one loses its node after their first part."""

    workers: RayWorkers
    kill: object

    def run(self, tasks, on_batch):
        for number, record in enumerate(self.workers.run(tasks, on_batch)):
            if number == 0:
                self.kill()
            yield record


@pytest.mark.long
def test_node_lost_in_the_middle_costs_no_row_and_brings_none_twice(folder, cluster, caplog):
    alone, run = run_of(folder, "alone.txt"), run_of(folder, "out.txt")
    alone.go()
    node = cluster.add_node(num_cpus=1, object_store_memory=150 * 2**20)
    (folder.parent / "pids").mkdir()

    def kill():
        cluster.remove_node(node, allow_graceful=False)

    with caplog.at_level(logging.WARNING, "ebr"):
        embed_by_ray(
            run, BuildWaiting(folder.parent / "pids"), within=lambda workers: NodeDies(workers, kill), address=cluster.address
        )
    lost = [record.args[1] for record in caplog.records if record.msg.startswith("lost a Ray actor")]
    assert len(lost) == 1
    assert lost[0] >= 1, "the node had nothing to do: this shows nothing"
    read = read_embeddings(run.out, "|")
    assert read.columns["id"] == ALL_IDS
    assert read.vectors.tobytes() == vectors_of(TEXTS[:-1]).tobytes()
    assert run.out.read_bytes() == alone.out.read_bytes()


@pytest.mark.parametrize("address", ["no.such.scheme://nowhere", "127.0.0.1:1"])
def test_address_without_a_cluster_is_refused_by_its_option(folder, address):
    pytest.importorskip("ray", reason="the optional package ray is not installed")
    run = run_of(folder, "out")
    with pytest.raises(
        ConfigError,
        match=rf"^ray_address {address}: no cluster can be used there \(.*; start one by: ray start --head \(docs/scale.md ",
    ):
        RayWorkers(run.output(run.source()).options, address=address)


# ---------------------------------------------------------------- docs/scale.md

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page, language):
    text = (DOCS / page).read_text(encoding="utf-8")
    return [textwrap.dedent(block) for block in re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)]


def test_function_of_the_page_for_spark_gives_each_row_with_a_text_its_vector(tiny_model, tmp_path, monkeypatch):
    (code,) = blocks("scale.md", "python")
    (tmp_path / "embed_table.py").write_text(code.replace("/shared/models/tuned", tiny_model), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    table = importlib.import_module("embed_table")
    texts = ["red shoe", None, "blue cup", "red shoe", " "]
    frames = [pd.DataFrame({"id": range(5), "description": texts}), pd.DataFrame({"id": [9], "description": ["green lamp"]})]
    first, second = table.embed(iter(frames))
    assert (first["id"].tolist(), second["id"].tolist()) == ([0, 2, 3], [9])
    wanted = table.engine().encode(["red shoe", "blue cup", "red shoe"])
    assert np.abs(np.stack(first["vector"]) - wanted).max() < 1e-6
    assert np.array_equal(first["vector"][0], first["vector"][3])
    assert table.engine() is table.engine()


@pytest.mark.parametrize("page", ["scale.md", "scale.zh.md"])
def test_commands_of_the_page_are_accepted(page):
    commands = [shlex.split(line) for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("ebr ")]
    assert len(commands) == 2
    for _, name, *words in commands:
        parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
        add_arguments(parser, VERBS[name].config)
        assert parser.parse_known_args([flag_to_name(word) for word in words])[1] == []
