"""One run at a time writes an output: a lock beside it, and a note of who holds it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ebr.data.files.locks import has_no_locks, lock
from ebr.data.files.write import read_json, write_json
from ebr.errors import DataError

log = logging.getLogger(__name__)


@contextmanager
def only_writer(output_path: Path, work_dir: Path) -> Iterator[None]:
    """Be the only run that writes an output within the block; where the file system has no locks, as far as can be told.

    Raises DataError, naming the process, when another run writes it.
    """
    file, holder = work_dir / "lock", work_dir / "running.json"
    file.touch()
    handle = None
    try:
        handle = lock(file)
    except BlockingIOError:
        raise _refusal(output_path, holder, file) from None
    except OSError as error:
        if not has_no_locks(error):
            raise
        if _is_alive(holder):
            raise _refusal(output_path, holder, holder) from None
        log.warning(
            "%s: its file system has no locks (%s); see to it that no other run%s writes %s meanwhile",
            *(file, error.strerror, _who(holder), output_path),
        )
    try:
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        write_json(holder, record)
        yield
    finally:
        holder.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _refusal(output_path: Path, holder: Path, kept: Path) -> DataError:
    return DataError(
        f"output_path {output_path}: another run is writing it{_who(holder)}; wait for it, or give another output_path; "
        f"if it is over, as after its machine was lost, delete {kept}"
    )


def _who(holder: Path) -> str:
    try:
        return " (process {pid} on {host}, since {since})".format(**read_json(holder))
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_alive(holder: Path) -> bool:
    """Whether the process that a note names is another one of this machine, and still runs."""
    try:
        record = read_json(holder)
        pid = int(record["pid"])
        if record["host"] != socket.gethostname() or pid == os.getpid():
            return False
        os.kill(pid, 0)
    except PermissionError:  # somebody else's
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
