"""Who this process is among how many, and how one command becomes one process a GPU."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from ebr.training import processes
from ebr.training.processes import ALONE, Processes, join_processes, relaunch_command, run_launcher

ARGUMENTS = ["train", "--output_dir", "out dir"]


@pytest.mark.parametrize("n_gpus", [0, 1])
def test_without_several_gpus_the_run_stays_in_its_process(n_gpus):
    assert relaunch_command("ebr", ARGUMENTS, n_gpus, {}) is None


@pytest.mark.parametrize("world_size", ["1", "4"])
def test_under_a_launcher_nothing_is_started_again(world_size):
    assert relaunch_command("ebr", ARGUMENTS, 4, {"WORLD_SIZE": world_size}) is None


def test_four_gpus_are_four_processes_of_the_same_command():
    wanted = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4",
        "--module", "ebr", "train", "--output_dir", "out dir",
    ]  # fmt: skip
    assert relaunch_command("ebr", ARGUMENTS, 4, {"PATH": "/bin"}) == wanted


def test_launcher_takes_the_command_as_we_write_it():
    """The launcher's own parser: our options are the module's, not the launcher's, also where the names are the same."""
    from torch.distributed.run import get_args_parser

    command = relaunch_command("ebr", ["train", "--module", "--nnodes=9", "--log_with", "none"], 2, {})
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    parsed = get_args_parser().parse_args(command[3:])
    assert (parsed.standalone, parsed.nproc_per_node, parsed.nnodes, parsed.module) == (True, "2", "1:1", True)
    assert parsed.training_script == "ebr"
    assert parsed.training_script_args == ["train", "--module", "--nnodes=9", "--log_with", "none"]


# ---------------------------------------------------------------- alone


def test_alone_is_the_first_of_one():
    assert (ALONE.rank, ALONE.count, ALONE.is_main) == (0, 1, True)
    assert [Processes(rank, 3).is_main for rank in range(3)] == [True, False, False]


def test_alone_needs_no_group(monkeypatch):
    # Any call to torch.distributed would fail: none was set up.
    assert not torch.distributed.is_initialized()
    values = torch.tensor([1.0, 2.5], dtype=torch.float64)
    assert ALONE.wait() is None
    assert [ALONE.any(True), ALONE.any(False)] == [True, False]
    assert ALONE.mean(values) is values
    assert ALONE.leave() is None


def test_several_processes_reach_for_their_group(monkeypatch):
    called = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda: called.append("barrier"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: called.append("destroy"))
    Processes(1, 2).wait()
    Processes(1, 2).leave()
    # Nobody leaves while another may still wait for it.
    assert called == ["barrier", "barrier", "destroy"]


def test_mean_is_the_sum_over_the_number_and_a_flag_is_set_where_one_is(monkeypatch):
    monkeypatch.setattr(processes, "_device", lambda: torch.device("cpu"))
    seen = []

    def all_reduce(tensor, op=torch.distributed.ReduceOp.SUM):
        """As if the three others had 10, or a flag that is not set."""
        seen.append(op)
        tensor.add_(30) if op == torch.distributed.ReduceOp.SUM else tensor.clamp_(min=0)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    four = Processes(2, 4)
    assert four.mean(torch.tensor([2.0, 10.0])).tolist() == [8.0, 10.0]
    assert [four.any(True), four.any(False)] == [True, False]
    assert seen == [torch.distributed.ReduceOp.SUM, *[torch.distributed.ReduceOp.MAX] * 2]


@pytest.mark.parametrize(("rank", "order"), [(0, "abc"), (1, "bca"), (2, "cab")])
def test_gathered_values_are_this_ones_first_then_by_rank(monkeypatch, rank, order):
    def all_gather_object(values, value):
        assert value == "abc"[rank]
        values[:] = "abc"

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    assert "".join(Processes(rank, 3).gather("abc"[rank])) == order


# ---------------------------------------------------------------- meeting the others


@pytest.mark.parametrize("world_size", [None, "1"])
def test_without_a_launcher_or_with_one_process_nobody_is_met(monkeypatch, world_size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    monkeypatch.setattr(processes, "PartialState", None)  # to call it would fail
    assert join_processes() is ALONE


def test_with_a_launcher_the_place_is_taken_that_it_gave(monkeypatch):
    seen = {}

    class State:
        process_index, num_processes = 1, 2

        def __init__(self, **options):
            seen.update(options)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "PartialState", State)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert join_processes() == Processes(1, 2)
    # The others wait while the first evaluates: the usual ten or thirty minutes would be a fault of the data's size.
    assert (seen["cpu"], seen["timeout"].total_seconds()) == (True, 24 * 3600)


# ---------------------------------------------------------------- the launcher


@pytest.mark.parametrize("code", [0, 1, 130])
def test_launchers_exit_code_is_ours(code):
    assert run_launcher([sys.executable, "-c", f"raise SystemExit({code})"]) == code


def test_ctrl_c_waits_until_the_children_have_finished_their_step(monkeypatch):
    class Launcher:
        """Interrupted twice while it is waited for, then done."""

        def __init__(self, command):
            self.command, self.waits = command, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            seen.append((self.command, self.waits))

        def wait(self):
            self.waits += 1
            if self.waits < 3:
                raise KeyboardInterrupt
            return 130

    seen = []
    monkeypatch.setattr(subprocess, "Popen", Launcher)
    assert run_launcher(["run", "this"]) == 130
    assert seen == [(["run", "this"], 3)]


def test_ctrl_c_while_a_real_child_works_loses_neither_its_work_nor_its_code(tmp_path):
    done = tmp_path / "done"
    child = f"import time, pathlib; time.sleep(1); pathlib.Path({str(done)!r}).touch(); raise SystemExit(7)"
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # To this process alone, so that only its own waiting is tested.
        threading.Timer(0.4, os.kill, [os.getpid(), signal.SIGINT]).start()
        started = time.monotonic()
        assert run_launcher([sys.executable, "-c", child]) == 7
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - started > 0.9
    assert done.exists()
