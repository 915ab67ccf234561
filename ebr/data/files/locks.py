"""Locks of files and folders. One ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

_WITHOUT = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What file systems say that have none: NFS without its daemon, Lustre without flock, buckets that are mounted."""


def lock(path: Path) -> int:
    """A descriptor that holds the lock of a file or folder; closing it lets go.

    Raises BlockingIOError when another holds it, OSError when there are no locks (has_no_locks tells), or no such path.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOSYS, "no locks on this system", str(path)) from None
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise OSError(error.errno, error.strerror, str(path)) from None
    return handle


def has_no_locks(error: OSError) -> bool:
    """Whether an error of lock means that the file system, or the whole system, has no locks."""
    return error.errno in _WITHOUT


def why_no_record_locks(folder: Path) -> str | None:
    """Why files in a folder cannot be locked the way SQLite does, which would wait for long in vain; None where they can."""
    try:
        import fcntl
    except ImportError:
        return None
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror
    return None
