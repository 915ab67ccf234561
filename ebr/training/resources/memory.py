"""Memory while training: how much there is, how much is left, what a forward pass keeps, and what to do when it is too much."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ebr.data.host_memory import Room, container_rooms, free_host_bytes, machine_room, resident_bytes

_SHARE = 0.9
"""Of its limit; above it the kernel may end a process before an allocation fails."""


def available_bytes(device: torch.device) -> int:
    """Bytes that are free for activations: on a GPU what the driver has left and what torch holds unused, else the host's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return free_host_bytes()


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
