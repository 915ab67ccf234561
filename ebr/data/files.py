"""Write aside, rename, manifest last: a file that exists is a file that is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebr.errors import DataError

FOLDER_MANIFEST = "ebr_manifest.json"
_CHUNK = 1 << 20
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""In what safetensors and tokenizers say of a file that cannot be written: the system's number; their errors are no OSError."""
_TORCH_ERRORS = ("inline_container.cc", "iostream error", "iostream_category error")
"""In the plain RuntimeErrors of torch.save, when a file does not take all that is written."""


def _partial() -> str:
    # Two machines of a cluster may write one file at once, with one process number.
    return f"partial-{os.getpid()}-{secrets.token_hex(4)}"


def as_os_error(error: BaseException) -> OSError | None:
    """The failed write that a library's error stands for; None for an error of any other kind.

    A full disk is an OSError to Python alone: safetensors, tokenizers and torch have errors of their own.
    """
    if isinstance(error, OSError):
        return error
    if found := _RUST_ERROR.search(str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if isinstance(error, RuntimeError) and any(part in str(error) for part in _TORCH_ERRORS):
        return OSError(errno.EIO, "the disk did not take all of it")
    return None


def reason_of(error: OSError) -> str:
    """Why a file could not be written, without the file: `No space left on device`."""
    return error.strerror or str(error) or type(error).__name__


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A write that fails is an OSError that says where, whichever library wrote."""
    try:
        yield
    except Exception as error:
        failure = as_os_error(error)
        if failure is None or failure.errno is None or failure.filename is not None:
            raise
        raise OSError(failure.errno, failure.strerror, str(path)) from error


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix, renamed to it when the block ends well and removed when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{_partial()}{path.suffix}")
    try:
        with _naming(path):
            yield aside
            flush(aside)
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def write_files_aside(folder: Path) -> Iterator[Path]:
    """A new empty folder inside `folder`; the files in it move up when the block ends well, and are removed when not."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{_partial()}"
    aside.mkdir()
    try:
        with _naming(folder):
            yield aside
            for file in sorted(aside.iterdir()):
                flush(file)
                file.replace(folder / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def write_folder_aside(folder: Path) -> Iterator[Path]:
    """A new empty folder beside `folder`, swapped with it when the block ends well; until then the old one is untouched."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        with _naming(folder):
            yield aside
            for file in aside.rglob("*"):
                flush(file)
            if folder.exists():
                folder.replace(old)
            aside.replace(folder)
    finally:
        if old.exists() and not folder.exists():
            old.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file's content on the disk before a rename that promises it."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def free_bytes(folder: Path) -> int | None:
    """Bytes that may still be written where a folder lies or will lie; None where the file system does not say."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return None
    return usage.free if usage.total else None  # some network file systems say 0 of 0


def cache_home() -> Path:
    """Where EBR keeps what it can make again: $EBR_CACHE_DIR, or ~/.cache/ebr."""
    return Path(os.environ.get("EBR_CACHE_DIR") or Path.home() / ".cache" / "ebr")


def write_json(path: Path, record: object) -> None:
    """Write one JSON document whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read one JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))


def manifest_path(artefact: Path) -> Path:
    """Where the manifest of a file or folder lies."""
    return artefact / FOLDER_MANIFEST if artefact.is_dir() else artefact.with_name(artefact.name + ".manifest.json")


def read_manifest(artefact: Path) -> dict[str, Any] | None:
    """The manifest of a finished artefact; None for one that was made elsewhere, or was never finished."""
    path = manifest_path(artefact)
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); delete it to load {artefact.name} as a file from elsewhere"
        ) from None
    return record if isinstance(record, dict) else None


def hash_files(paths: Sequence[Path]) -> str:
    """sha256 over the names and contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        digest.update(hash_file(path).encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
