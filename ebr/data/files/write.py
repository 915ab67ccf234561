"""Write aside, rename, manifest last: a file that exists is a file that is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebr.data.files.asides import claimed, old_of, put_file, put_folder, recover
from ebr.data.files.places import is_stream, open_stream, place_of
from ebr.errors import DataError, EBRError

FOLDER_MANIFEST = "ebr_manifest.json"
_CHUNK = 1 << 20
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
"""In what safetensors, tokenizers and shutil's copies of folders say of a file that cannot be written: the system's number."""
_FAILED_WRITES = (
    *("inline_container.cc", "iostream error", "iostream_category error"),  # torch.save
    *("write error in ", "for writing: "),  # faiss
    " requested and ",  # numpy
)
"""In what libraries say of a file that did not take all that was written, or could not be opened; faiss says why in words."""


def as_os_error(error: BaseException) -> OSError | None:
    """The failed write that a library's error stands for; None for an error of any other kind.

    A full disk is an OSError with its number to Python alone: libraries have errors of their own.
    """
    known = error if isinstance(error, OSError) else None
    if isinstance(error, EBRError) or (known and known.errno is not None):
        return known
    text = str(error)
    if found := _NUMBER.search(text):
        number = int(found[1] or found[2])
    elif isinstance(error, RuntimeError | OSError) and any(part in text for part in _FAILED_WRITES):
        number = next((one for one in errno.errorcode if os.strerror(one) in text), 0)
    else:
        return known
    return OSError(number, os.strerror(number)) if number else OSError(errno.EIO, "the disk did not take all of it")


def reason_of(error: OSError) -> str:
    """Why a file could not be written, without the file: `No space left on device`."""
    return error.strerror or str(error) or type(error).__name__


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A write that fails is an OSError that says where, whichever library wrote."""
    try:
        yield
    except Exception as error:
        failure = as_os_error(error)
        # A copy or rename that fails names what it was made of first.
        if failure is None or failure.errno is None or (failure.filename is not None and failure.filename2 is None):
            raise
        raise OSError(failure.errno, failure.strerror, str(path)) from error


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A temporary path with the same suffix, renamed to `path` when the block ends well and removed when not.

    A link stays one, and what it leads to is replaced. What is no regular file, a device or a pipe, is written into when the
    block ends well.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as scratch, naming(path):
            yield (aside := Path(scratch) / f"stream{path.suffix}")
            with aside.open("rb") as file, open_stream(path) as sink:
                shutil.copyfileobj(file, sink)
        return
    path = place_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    with claimed(path.parent, path.stem, path.suffix, _touch) as aside, naming(path):
        yield aside
        put_file(aside, path)


def _touch(path: Path) -> None:
    path.touch(exist_ok=False)


@contextmanager
def write_files_aside(folder: Path) -> Iterator[Path]:
    """A new empty folder inside `folder`; the files in it move up when the block ends well, and are removed when not."""
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder, "", "", Path.mkdir) as aside, naming(folder):
        yield aside
        for file in sorted(aside.iterdir()):
            put_file(file, folder / file.name)


@contextmanager
def write_folder_aside(folder: Path) -> Iterator[Path]:
    """A new empty folder beside `folder`, swapped with it when the block ends well; until then the old one is untouched.

    Of a link, what it leads to is replaced. What killed runs left of the same folder is removed first.
    """
    folder = place_of(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder, is_folder=True)
    with claimed(folder.parent, folder.name, "", Path.mkdir) as aside, naming(folder):
        yield aside
        put_folder(aside, folder, old_of(aside))


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
    """Where EBR keeps what it can make again: $EBR_CACHE_DIR, or ~/.cache/ebr; without a home, among temporary files."""
    if given := os.environ.get("EBR_CACHE_DIR"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "ebr"
    except RuntimeError:  # a user that the system does not know, as in containers
        return Path(tempfile.gettempdir()) / f"ebr-{os.getuid()}"


def write_json(path: Path, record: object) -> None:
    """Write one JSON document whole or not at all."""
    with write_aside(path) as aside:
        text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
        # Half a character, as in the name of a folder that is not UTF-8, becomes its escape in JSON.
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read one JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))


def manifest_path(artefact: Path) -> Path:
    """Where the manifest of a file or folder lies."""
    return artefact / FOLDER_MANIFEST if artefact.is_dir() else artefact.with_name(artefact.name + ".manifest.json")


def described(artefact: Path) -> Path:
    """The name of an artefact by which its manifest lies: a link's own, or that of what it leads to where only that has one."""
    if not artefact.is_symlink() or not artefact.exists() or manifest_path(artefact).exists():
        return artefact
    place = artefact.resolve()
    return place if manifest_path(place).exists() else artefact


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
        digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
        digest.update(hash_file(path).encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Digests:
    """hash_file of files that several ask for: each is hashed once, and again when it has changed since."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}

    def of(self, path: Path) -> str:
        """sha256 of a file's content."""
        stat = path.stat()
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = self._known.get(path)
        if known is None or known[0] != state:
            self._known[path] = known = (state, hash_file(path))
        return known[1]
