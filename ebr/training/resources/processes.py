"""Several processes that train one model: one a GPU, gradients averaged, never DataParallel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState

# The others wait while the first evaluates or saves; how long that takes is the user's data, not a fault.
_PATIENCE = timedelta(days=1)
# After Ctrl-C: a long step and a large checkpoint, but not for ever when one process fails meanwhile.
_SHUTDOWN = timedelta(hours=1)
_BUCKET = 4_000_000


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this one speaks, evaluates and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """The work is done in every process."""
        if self.count > 1:
            self.wait()
            torch.distributed.destroy_process_group()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: what decides about going on must be decided by all alike."""
        if self.count == 1:
            return flag
        flags = torch.tensor([int(flag)], device=_device())
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        return bool(flags.item())

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """(n,) float: the mean over the processes."""
        if self.count == 1:
            return values
        values = values.to(_device())
        torch.distributed.all_reduce(values)
        return values / self.count

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give each trainable weight the mean of its gradients over the processes, in place."""
        if self.count == 1:
            return
        for bucket in _buckets([one for one in parameters if one.requires_grad]):
            flat = torch.cat([one.reshape(-1) for one in bucket])
            torch.distributed.all_reduce(flat)
            flat /= self.count
            for one, mean in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                one.copy_(mean.view_as(one))

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401
        """A small picklable value of every process, this one's first."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values[self.rank :] + values[: self.rank]


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.Tensor]]:
    """The gradients, a few megabytes at a time: an adapter has hundreds of small ones, and each message takes its time."""
    bucket: list[torch.Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:  # nothing of this process's batches reached it
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(one.numel() for one in bucket) >= _BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


ALONE = Processes()
"""One process, the usual case."""


def all_gather(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors of every process, of one shape, by rank; gradients flow back to where each came from, and add up there."""
    parts: tuple[torch.Tensor, ...] = _AllGather.apply(tensor)
    return parts


class _AllGather(torch.autograd.Function):
    # torch's own has changed its name from version to version, and warns.
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        whole = torch.stack(gradients)
        torch.distributed.all_reduce(whole)
        return whole[torch.distributed.get_rank()]


def join_processes() -> Processes:
    """Meet the other processes that torchrun or accelerate started; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes)


def relaunch_command(module: str, arguments: Sequence[str], n_gpus: int, environ: Mapping[str, str]) -> list[str] | None:
    """What starts `python -m module arguments` once for each visible GPU; None for one GPU, or where that is done already."""
    # accelerate's launcher for one process sets nothing else.
    if n_gpus < 2 or {"WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"} & set(environ):
        return None
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_gpus}"]
    return [sys.executable, *launcher, "--module", module, *arguments]


def run_launcher(command: Sequence[str]) -> int:
    """Run it to its end and return its exit code; 130 after Ctrl-C.

    The launcher passes Ctrl-C on, and its processes finish their step and save: it must wait for them, and so does this one.
    """
    stopped: list[int] = []
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(_SHUTDOWN.total_seconds())), **os.environ}
    with subprocess.Popen(command, env=environment) as launcher:

        def on_terminate(number: int, frame: FrameType | None) -> None:
            launcher.send_signal(number)

        # Python's own handler would break off the wait, and with it the exit code.
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number)),
            signal.SIGTERM: signal.signal(signal.SIGTERM, on_terminate),
        }
        try:
            code = launcher.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if stopped and code:
        return 130
    return 128 - code if code < 0 else code  # as a shell counts a death by a signal


def visible_gpus() -> int:
    """How many GPUs this process may use."""
    return torch.cuda.device_count()


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def relaunch_on_every_gpu(command: str, arguments: Sequence[str], check: Callable[[int], object]) -> int | None:
    """Run `ebr command arguments` again with one process a visible GPU, and return its exit code; None = go on in this one.

    check: called first with the number of GPUs, so that a mistake is told once and not by every process.
    """
    n_gpus = visible_gpus()
    launcher = relaunch_command("ebr", [command, *arguments], n_gpus, os.environ)
    if launcher is None:
        return None
    check(n_gpus)
    return run_launcher(launcher)
