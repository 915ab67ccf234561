"""Who this process is among how many, and how one command becomes one process a GPU."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from ebr.training.resources import processes
from ebr.training.resources.processes import ALONE, Processes, join_processes, relaunch_command, run_launcher

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
    assert ALONE.gather("a") == ["a"]
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


@pytest.fixture
def handlers():
    """Handlers of ours that no signal may reach while a launcher runs, and that must be back after it."""
    reached = []

    def interrupt(number, frame):
        reached.append(number)

    def terminate(number, frame):
        reached.append(number)

    ours = {signal.SIGINT: interrupt, signal.SIGTERM: terminate}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    try:
        yield ours
    finally:
        now = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert now == ours
    assert reached == []


CHILD = """
import signal, sys, time
from pathlib import Path
folder, code = Path(sys.argv[1]), int(sys.argv[2])
def on_terminate(number, frame):
    (folder / "terminated").touch()
    sys.exit(5)
signal.signal(signal.SIGTERM, on_terminate)
(folder / "ready").touch()
deadline = time.monotonic() + 15
while time.monotonic() < deadline and not (folder / "sent").exists():
    time.sleep(0.01)
time.sleep(0.2)
(folder / "done").touch()
sys.exit(code)
"""


def run_child(folder, *signals, code, handlers):
    """Run a child, and send the signals to this process alone once the child works; returns the launcher's code.

    The child's work is done only after they were sent, and not before long when it is asked to end.
    """

    def send():
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not (
            (folder / "ready").exists() and all(signal.getsignal(number) != handlers[number] for number in signals)
        ):
            time.sleep(0.01)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        if signal.SIGTERM not in signals:
            (folder / "sent").touch()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return run_launcher([sys.executable, "-c", CHILD, str(folder), str(code)])
    finally:
        sender.join()


@pytest.mark.parametrize("code", [0, 1, 7, 130])
def test_launchers_exit_code_is_ours(code, handlers):
    assert run_launcher([sys.executable, "-c", f"raise SystemExit({code})"]) == code


@pytest.mark.parametrize(("code", "wanted"), [(7, 130), (1, 130), (130, 130), (0, 0)])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_until_the_child_has_finished_its_step(tmp_path, handlers, code, wanted, times):
    assert run_child(tmp_path, *[signal.SIGINT] * times, code=code, handlers=handlers) == wanted
    # It was waited for, and it was left alone: the terminal, not we, passes Ctrl-C on.
    assert {path.name for path in tmp_path.iterdir()} == {"ready", "sent", "done"}


def test_request_to_end_is_passed_on_and_waited_for(tmp_path, handlers):
    assert run_child(tmp_path, signal.SIGTERM, code=0, handlers=handlers) == 5
    assert {path.name for path in tmp_path.iterdir()} == {"ready", "terminated"}


def test_launcher_gives_its_processes_an_hour_to_save(tmp_path, monkeypatch, handlers):
    monkeypatch.setenv("EBR_TEST_PASSED_ON", "yes")
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    child = "import json, os, sys; from pathlib import Path; Path(sys.argv[1]).write_text(json.dumps(dict(os.environ)))"
    assert run_launcher([sys.executable, "-c", child, str(tmp_path / "environment")]) == 0
    environment = json.loads((tmp_path / "environment").read_text())
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "3600"
    assert environment["EBR_TEST_PASSED_ON"] == "yes"
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ


def test_launcher_knows_the_variable(monkeypatch):
    from torch.distributed.launcher.api import LaunchConfig

    if "shutdown_timeout" not in LaunchConfig.__dataclass_fields__:
        pytest.skip("this torch does not let one choose")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "86400")
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 86400


def test_handlers_are_back_after_an_exception_too(monkeypatch, handlers):
    class Launcher:
        def __init__(self, command, env):
            seen.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            seen.append("left")

        def wait(self):
            seen.append([signal.getsignal(number) == handler for number, handler in handlers.items()])
            raise OSError("no more")

    seen = []
    monkeypatch.setattr(subprocess, "Popen", Launcher)
    with pytest.raises(OSError, match="no more"):
        run_launcher(["run", "this"])
    assert seen == [["run", "this"], [False, False], "left"]
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_launcher_that_cannot_be_started_leaves_the_handlers(tmp_path, handlers):
    with pytest.raises(FileNotFoundError):
        run_launcher([str(tmp_path / "absent")])
    assert {number: signal.getsignal(number) for number in handlers} == handlers
