"""The memory of this machine, and of the container around this process where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


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


def free_host_bytes(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Bytes that are free, or would be if something asked for them, within every limit around this process."""
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
