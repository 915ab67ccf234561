"""Memory while training: how much there is, how much is left, what a forward pass keeps, and what to do when it is too much."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
_SHARE = 0.9
"""Of its limit; above it the kernel may end a process before an allocation fails."""


@dataclass(frozen=True)
class Room:
    """A bounded memory, of the machine or of a container: bytes that fit, and bytes that are taken and cannot be taken back."""

    limit: int
    used: int


def machine_room() -> Room:
    """The whole machine; what the system would take back from its caches counts as free."""
    memory = psutil.virtual_memory()
    return Room(int(memory.total), int(memory.total - memory.available))


def container_rooms(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> list[Room]:
    """Each control group with a limit around this process, version 1 or 2; none where there are no such groups."""
    return [room for folder in _folders(cgroups, own) if (room := _room(folder)) is not None]


def resident_bytes() -> int:
    """Bytes of memory that this process has."""
    return int(psutil.Process().memory_info().rss)


def available_bytes(device: torch.device, cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Bytes that are free for activations: on a GPU what the driver has left and what torch holds unused, else the host's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return max(0, min(room.limit - room.used for room in (machine_room(), *container_rooms(cgroups, own))))


def _folders(cgroups: Path, own: Path) -> Iterator[Path]:
    """Where this process's memory is counted: its group, and every one around it, of either version."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = cgroups / "memory" if controllers else cgroups
        inner = Path(group.lstrip("/"))
        # A container may see its own group as the top one, yet know it by the host's path: what is absent has no limit to read.
        yield from (top / part for part in (inner, *inner.parents))


def _room(folder: Path) -> Room | None:
    """The limit of one group, and its use without the file cache; None where there is no limit."""
    for limit_name, used_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        with suppress(OSError, ValueError):  # "max" is no number
            limit = int((folder / limit_name).read_text())
            used = int((folder / used_name).read_text())
            # Version 1 writes "no limit" as the largest number of pages.
            return Room(limit, max(0, used - _file_cache(folder, prefix))) if limit < 1 << 60 else None
    return None


def _file_cache(folder: Path, prefix: str) -> int:
    """Bytes of files that the kernel gives back before it ends a process."""
    with suppress(OSError, ValueError):
        rows = (line.partition(" ") for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(value) for name, _, value in rows if name in (f"{prefix}inactive_file", f"{prefix}active_file"))
    return 0


def fullest_room() -> Room:
    """The memory around this process that is nearest to its end: what this process has counts against each."""
    resident = resident_bytes()
    rooms = [Room(room.limit, max(room.used, resident)) for room in (machine_room(), *container_rooms())]
    return max(rooms, key=lambda room: room.used / room.limit)


def release_unused() -> None:
    """Give back to the system what Python and the C library hold of freed memory."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class HostWatch:
    """Says when the host's memory is nearly full, before an allocation fails or the kernel ends the process.

    Ask `pressure` after every micro-batch or step: it looks at most every `interval_s`. One shortage gives one True: another
    follows once the use has grown by a fiftieth of the limit since, or has been below the share in between. What is merely held
    is given back first. read, release, clock: for tests.
    """

    def __init__(
        self,
        *,
        share: float = _SHARE,
        interval_s: float = 0.25,
        read: Callable[[], Room] = fullest_room,
        release: Callable[[], None] = release_unused,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.share = share
        self.interval_s = interval_s
        self.room: Room | None = None
        """The latest reading."""
        self._read, self._release, self._clock = read, release, clock
        self._next = float("-inf")
        self._said_at: int | None = None

    def pressure(self) -> bool:
        """Whether to take less from here on."""
        started = self._clock()
        if started < self._next:
            return False
        room = self._look()
        if self._is_full(room) and self._is_news(room):
            self._release()
            room = self._look()
        now = self._clock()
        # Giving back can take a while: it must not become what the run spends its time on.
        self._next = now + max(self.interval_s, 10 * (now - started))
        if not self._is_full(room):
            self._said_at = None
            return False
        if not self._is_news(room):
            return False
        self._said_at = room.used
        return True

    def words(self) -> str:
        """The latest reading, as part of a sentence."""
        if self.room is None:
            return "memory not read yet"
        used, limit = self.room.used, self.room.limit
        return f"{used / 2**30:.1f} of {limit / 2**30:.1f} GiB of memory are in use ({used / limit:.0%})"

    def _look(self) -> Room:
        self.room = self._read()
        return self.room

    def _is_full(self, room: Room) -> bool:
        return room.used > self.share * room.limit

    def _is_news(self, room: Room) -> bool:
        return self._said_at is None or room.used > self._said_at + room.limit // 50


class SavedBytes:
    """`with SavedBytes(model.parameters()) as saved:` counts what autograd saves in the block for a backward pass.

    ignored: tensors that exist anyway. Each storage counts once and whole, however many views of it are saved. Keep the graphs
    until the block ends: freed memory that is taken again would count once. Copies of weights that autocast makes do count: the
    bytes a token are the difference of two passes over the difference of their tokens.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        self._ignored = {(tensor.device, tensor.untyped_storage().data_ptr()) for tensor in ignored}
        self._sizes: dict[tuple[torch.device, int], int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    @property
    def total(self) -> int:
        """Bytes saved so far."""
        return sum(self._sizes.values())

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._hooks.__exit__(kind, error, traceback)

    def _note(self, tensor: Tensor) -> Any:  # noqa: ANN401
        storage = tensor.untyped_storage()
        place = (tensor.device, storage.data_ptr())
        if place not in self._ignored:
            self._sizes[place] = storage.nbytes()
        return tensor


def out_of_memory_advice(spelling: Callable[[str], str]) -> str:
    """The options that help when a single text does not fit, in the order to try them. spelling: see Config.spelling."""
    lengths = ", ".join(spelling(name) for name in ("max_seq_length", "query_max_len", "passage_max_len"))
    return "\n".join(
        [
            "what helps, in the order to try:",
            f"  1. {spelling('train_batch_size')}: lower it; fewer vectors are held at once",
            f"  2. {spelling('gradient_accumulation_steps')}: raise it by as much, and a step still sees as many records",
            f"  3. {spelling('gradient_checkpointing')} true: activations are computed again instead of kept",
            f"  4. {lengths}: lower what applies; a shorter text takes less",
        ]
    )
