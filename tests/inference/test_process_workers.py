"""Shards in several processes: the same output to the byte, whoever dies meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ebr.errors import DataError, EBRError
from ebr.inference.workers.processes import placements
from ebr.inference.workers.spec import Placement
from tests.embedding_runs import Run, everything, forked, leftovers, write_table
from tests.shard_engines import Builder, FakeEngine

TWO = [Placement("cpu"), Placement("cpu")]
ONE = TWO[:1]


@pytest.fixture
def folder(tmp_path):
    """15 shards of 4 rows, one of them bad."""
    write_table(tmp_path / "in" / "a.csv", *[f"a{i}|text {i % 50}|L" for i in range(59)], "a59||L")
    return tmp_path / "in"


def go(run, builder=Builder(), places=TWO):  # noqa: B008
    # The server has everything imported: a worker starts at once.
    multiprocessing.set_forkserver_preload(["pytest", "tests.embedding_runs"])
    return run.go(build=builder, places=places, start_method="forkserver")


def assert_as_if_local(run):
    local = Run(**{**vars(run), "out": run.out.parent.with_name("local") / run.out.name})
    local.go()
    assert everything(run.out.parent) == everything(local.out.parent)
    assert leftovers(run.out.parent) == []


@pytest.mark.parametrize("name", ["v.txt", "v.parquet", "folder"])
def test_two_processes_write_what_one_writes(folder, tmp_path, name):
    run = Run(folder, tmp_path / "out" / name)
    done = go(run)
    assert (done.n_rows, done.n_rejected, done.n_shards) == (59, 1, 15)
    assert_as_if_local(run)


def test_processes_share_vectors_and_take_over_those_of_the_run_before(folder, tmp_path):
    run = Run(folder, tmp_path / "out" / "v.txt", dedup="global", key="id")
    go(run)
    changed = Run(**{**vars(run), "shard_rows": 5})
    done = go(changed)
    assert (done.n_reused, done.n_encoded) == (59, 0)
    assert_as_if_local(changed)


@pytest.mark.parametrize("places", [ONE, TWO])
def test_a_process_that_dies_is_replaced_and_every_row_comes_once(folder, tmp_path, places):
    run = Run(folder, tmp_path / "out" / "v.txt")
    go(run, Builder(deadly="text 21", mark=tmp_path / "died"), places)
    assert (tmp_path / "died").exists()
    assert_as_if_local(run)


@pytest.mark.parametrize("places", [ONE, TWO])
def test_a_shard_that_always_kills_its_process_is_named_and_the_rest_is_kept(folder, tmp_path, places):
    run = Run(folder, tmp_path / "out" / "v.txt")
    with pytest.raises(
        EBRError, match=r"^a\.csv: the shard from line 22 ended its process 3 times \(exit code -9\);"
    ) as caught:
        go(run, Builder(deadly="text 21"), places)
    assert "finished and kept" in str(caught.value)
    assert run.go().n_kept >= 5
    assert_as_if_local(run)


def test_an_error_of_ours_comes_out_of_a_process_as_itself(folder, tmp_path):
    run = Run(folder, tmp_path / "out" / "v.txt")
    with pytest.raises(DataError, match=r"^the engine cannot do this\n\d+ shards? .* finished and kept"):
        go(run, Builder(wrong="text 30"))
    assert run.go().n_kept >= 1
    assert_as_if_local(run)


def test_a_bad_row_in_a_process_ends_the_run(folder, tmp_path):
    with pytest.raises(DataError, match=r"^a\.csv:61: text is empty; mend the row"):
        go(Run(folder, tmp_path / "out" / "v.txt", fail_on_bad_row=True))


def test_a_programming_error_comes_with_the_traceback_of_its_process(folder, tmp_path):
    with pytest.raises(KeyError, match="absent") as caught:
        go(Run(folder, tmp_path / "out" / "v.txt"), Builder(broken="text 30"))
    told = str(caught.value.__cause__)
    assert "in _stumble" in told
    assert told.endswith("KeyError: 'absent'\n")


def test_an_engine_that_cannot_be_built_says_why(folder, tmp_path):
    with pytest.raises(DataError, match="no such model"):
        go(Run(folder, tmp_path / "out" / "v.txt"), refuse_to_build)


def refuse_to_build(_place):
    raise DataError("no such model")


# ---------------------------------------------------------------- the parent is killed


@dataclass(frozen=True)
class ParentKiller:
    """Builds engines that note their process in a folder, and of which one kills the parent."""

    folder: Path

    def __call__(self, _place):
        (self.folder / f"child-{os.getpid()}").touch()
        engine = FakeEngine()
        engine.at_text["text 30"] = self._kill
        return engine

    def _kill(self):
        os.kill(int((self.folder / "parent").read_text()), signal.SIGKILL)


def go_as_parent(run, folder):
    (folder / "parent").write_text(str(os.getpid()))
    run.go(build=ParentKiller(folder), places=TWO)  # as users' children start: from nothing


@pytest.mark.long
def test_children_of_a_killed_run_end_by_themselves_and_the_run_goes_on(folder, tmp_path):
    run, notes = Run(folder, tmp_path / "out" / "v.txt"), tmp_path / "notes"
    notes.mkdir()
    parent = forked(go_as_parent, run, notes)
    parent.join()
    assert parent.exitcode == -signal.SIGKILL
    children = [int(path.name.split("-")[1]) for path in notes.glob("child-*")]
    assert children  # one of the two may not have been there yet
    for child in children:
        with suppress(ProcessLookupError):
            wait_for_end(child)
    assert run.go().n_kept >= 1
    assert_as_if_local(run)


def wait_for_end(pid):
    """Until a process that is no child of this one is gone; fails after half a minute."""
    descriptor = os.pidfd_open(pid)
    try:
        assert select.select([descriptor], [], [], 30)[0], f"process {pid} still runs"
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- where workers compute


@pytest.mark.parametrize(
    ("num_workers", "n_gpus", "n_cores", "wanted"),
    [
        (None, 2, 16, [("cuda:0", None), ("cuda:1", None)]),
        (3, 2, 16, [("cuda:0", None), ("cuda:1", None), ("cuda:0", None)]),
        (None, 0, 2, [("cpu", (0,)), ("cpu", (1,))]),
        (None, 0, 1, [("cpu", (0,)), ("cpu", (0,))]),
        (None, 0, 32, [("cpu", tuple(range(start, start + 8))) for start in (0, 8, 16, 24)]),
        (2, 0, 7, [("cpu", (0, 1, 2)), ("cpu", (3, 4, 5))]),
        (3, 0, 2, [("cpu", (0,)), ("cpu", (1,)), ("cpu", (0,))]),
    ],
)
def test_places_are_one_a_gpu_or_equal_groups_of_cores(num_workers, n_gpus, n_cores, wanted):
    places = placements(num_workers, n_gpus, list(range(n_cores)))
    assert [(place.device, place.cores) for place in places] == wanted
