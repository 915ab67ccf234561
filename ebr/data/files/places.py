"""Where an output lies, looked at once and at the start: through links, and whether anything may be written there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

from ebr.data.files.asides import recover
from ebr.errors import ConfigError, why_not_utf8

_MOST_LINKS = 40  # as Linux follows them


def place_of(path: Path, option: str = "output") -> Path:
    """Where an output lies: what a link leads to, or the path as it is. Raises ConfigError for a link that leads nowhere."""
    if not path.is_symlink():
        return path
    try:
        place = path.resolve()
    except (OSError, RuntimeError):
        raise ConfigError(f"{option} {path}: is a link that leads back to itself; mend it, or write elsewhere") from None
    if not place.parent.is_dir():
        raise ConfigError(f"{option} {path}: is a link to {place}, whose folder is not there; make it, or mend the link")
    _check_name(path, place, option)
    return place


def check_place(path: Path, option: str = "output_path", *, is_folder: bool = False) -> Path:
    """place_of an output that is replaced as a whole, once it is known that it can be. Raises ConfigError.

    is_folder: of a whole folder, which must not be a file system of its own, and is back if a killed run had moved it away.
    """
    if is_stream(path):
        raise ConfigError(f"{option} {path}: is no file but a device or a pipe, and other files go beside it; name a file")
    place = place_of(path, option)
    _check_name(path, place, option)
    if not is_folder and place.suffix != path.suffix:  # which decides what is written
        raise ConfigError(f"{option} {path}: is a link to {place}, of another suffix; give that name itself, or mend the link")
    if is_folder and place.absolute().is_mount():
        raise ConfigError(f"{option} {path}: is a mounted file system, which cannot be replaced; give a folder in it")
    parent = next(folder for folder in place.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{option} {path}: {parent} is no folder that can be written to")
    if is_folder:
        recover(place, is_folder=True)
    return place


def _check_name(path: Path, place: Path, option: str) -> None:
    if reason := why_not_utf8(str(place)):
        raise ConfigError(f"{option} {path}: {str(place)!r} {reason}")


def is_stream(path: Path) -> bool:
    """Whether a path is written into, never replaced: a device, a pipe, a socket, or an open file of this process."""
    if not path.exists():
        return False
    return not (path.is_file() or path.is_dir()) or _descriptor(path) is not None


def open_stream(path: Path) -> BinaryIO:
    """Open what is_stream to write into; an open file of this process where its other writers are."""
    if (number := _descriptor(path)) is None:
        return path.open("wb")
    sys.stdout.flush()
    return os.fdopen(os.dup(number), "wb")


def _descriptor(path: Path) -> int | None:
    """The number of an open file of this process, where a path names one: /dev/stdout, /dev/fd/1, /proc/self/fd/1."""
    for _ in range(_MOST_LINKS):
        if path.name.isdigit() and path.parent.resolve() in map(Path.resolve, map(Path, ("/dev/fd", "/proc/self/fd"))):
            return int(path.name)
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return None
