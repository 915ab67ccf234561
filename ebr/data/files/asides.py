"""What is written aside: whom it belongs to, how it takes its place, and what becomes of it when its run was killed."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from ebr.data.files.locks import lock

log = logging.getLogger(__name__)

_QUIET_S = 24 * 3600
_TOKEN = r"[0-9a-f]{8}-[0-9a-f]{8}"
_OLDER = r"\d+(?:-[0-9a-f]{8})?"
"""What versions before named by their process number."""
_NOT_OF_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}
"""What systems say that do not flush folders, or not those that cannot be read."""
_AT_FDCWD, _EXCHANGE, _SWAP = -100, 2, 2  # linux/fs.h: RENAME_EXCHANGE; macOS sys/stdio.h: RENAME_SWAP


@cache
def _kernel() -> str:
    """Eight digits that stand for the running kernel: its processes, in whatever containers, see each other's locks."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        name = platform.node()
    return sha256(name.encode()).hexdigest()[:8]


@contextmanager
def claimed(folder: Path, stem: str, suffix: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new hidden path in `folder`, made by `make` and locked by this run; what is there when the block ends is removed.

    A lock ends with its process, however that ends: what nobody holds any more, recover removes.
    """
    handle = None
    while handle is None:
        aside = folder / f".{stem}{'.' if stem else ''}partial-{_kernel()}-{secrets.token_hex(4)}{suffix}"
        make(aside)
        try:
            handle = lock(aside)
        except (BlockingIOError, FileNotFoundError):
            continue  # another run took it for a leftover before the lock was ours
        except OSError:
            break  # a file system without locks: then nobody else can take it either
        if not aside.exists():
            os.close(handle)
            handle = None
    try:
        yield aside
    finally:
        remove(aside)
        if handle is not None:
            os.close(handle)


def remove(path: Path) -> None:
    """A file or a folder, as far as it can be."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- into place


def flush(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk before something else relies on them."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    elif path.is_dir():
        try:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno not in _NOT_OF_FOLDERS:
                raise


def put_file(aside: Path, path: Path) -> None:
    """Give a whole file its name, at once; what had it before is gone."""
    flush(aside)
    try:
        aside.replace(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(aside, path)  # a file that is mounted by itself, into a container, can only be written into
        flush(path)
    flush(path.parent)


def put_folder(aside: Path, folder: Path, old: Path) -> None:
    """Give a whole folder its name; what had it before is at `aside` then.

    In one step where the system can; else in two, between which the folder before is at `old`: recover knows old_of(aside).
    """
    for path in (*aside.rglob("*"), aside):
        flush(path)
    if not folder.exists():
        aside.replace(folder)
    elif not _exchange(aside, folder):
        folder.replace(old)
        try:
            aside.replace(folder)
        except BaseException:
            with suppress(OSError):
                old.replace(folder)
            raise
        flush(folder.parent)
        old.replace(aside)  # half removed, it must never pass for what can be put back
    flush(folder.parent)


def old_of(aside: Path) -> Path:
    """Where the folder before is while `aside`, of claimed, takes its place in two steps."""
    return _renamed(aside, "partial", "old")


def _renamed(path: Path, before: str, after: str) -> Path:
    head, _, token = path.name.rpartition(f".{before}-")
    return path.with_name(f"{head}.{after}-{token}")


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False, with nothing changed, where system or file system cannot."""
    names = os.fsencode(first), os.fsencode(second)
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(*names, ctypes.c_uint(_SWAP)) == 0)
        return bool(libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_EXCHANGE)) == 0)
    except (AttributeError, OSError, TypeError):  # an older C library, another system
        return False


# ---------------------------------------------------------------- after a kill


def recover(path: Path, *, is_folder: bool = False) -> None:
    """Remove what killed runs left half-written for `path`, and put back a folder that one of them had moved away.

    What a living run writes is locked, and stays. Of a run on another machine the lock may not be seen from here: its leftovers
    go once nothing in them has changed for a day. Nothing is removed where the file system has no locks.
    """
    with suppress(OSError, RuntimeError):
        path = path.resolve() if path.is_symlink() else path
    stem, suffix = (path.name, "") if is_folder else (path.stem, path.suffix)
    name = re.compile(rf"\.{re.escape(stem)}\.(partial|old)-({_TOKEN}|{_OLDER}){re.escape(suffix)}")
    try:
        found = [match for entry in os.listdir(path.parent) if (match := name.fullmatch(entry))]  # noqa: PTH208
    except OSError:
        return
    left: dict[str, list[Path]] = {"partial": [], "old": []}
    for match in found:
        left[match[1]].append(path.with_name(match[0]))
    for aside in left["partial"]:
        _remove_left(aside)
    for old in left["old"] if is_folder else ():
        if not _is_held(_renamed(old, "old", "partial")):
            _put_back(old, path)


def _remove_left(aside: Path) -> None:
    """Remove what nobody writes any more."""
    try:
        handle = lock(aside)
    except OSError:
        return  # a living run's; or gone already; or nobody can tell
    try:
        if f".partial-{_kernel()}-" in aside.name or _is_quiet(aside):
            remove(aside)
        elif aside.is_dir():
            log.warning("%s: of a run that was killed, or that another machine is at; in the first case delete it", aside)
    finally:
        os.close(handle)


def _is_quiet(path: Path) -> bool:
    try:
        newest = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
    except OSError:
        return False  # somebody is at it
    return time.time() - newest > _QUIET_S


def _is_held(aside: Path) -> bool:
    """Whether a living run holds it, as far as that can be told."""
    try:
        os.close(lock(aside))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _put_back(old: Path, folder: Path) -> None:
    with suppress(OSError):  # another run was faster
        if folder.exists():
            remove(old.replace(_renamed(old, "old", "partial")))
            return
        old.replace(folder)
        flush(folder.parent)
        log.warning("%s: put back as it was before a run that was killed while it replaced it", folder)
