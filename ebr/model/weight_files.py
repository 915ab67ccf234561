"""The files of a model's folder, looked at before a loader: what stands for a file and is none, and what was cut."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from ebr.errors import ModelError

_LFS = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
_SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model", ".pt"}
_HEADER_BYTES = 8
_LARGEST_HEADER = 100_000_000
_COPY_AGAIN = "the copy broke off; copy the file again"


def check_files(folder: Path) -> None:
    """Refuse a folder whose files are git-lfs pointers, or whose safetensors are cut. Raises ModelError naming the file."""
    for file in _files(folder):
        if file.stat().st_size < _POINTER_BYTES and file.read_bytes().startswith(_LFS):
            raise ModelError(f"{file}: is a git-lfs pointer, not the file itself; run git lfs pull in that folder")
        if file.suffix == ".safetensors":
            _check_whole(file)


def _files(folder: Path) -> Iterator[Path]:
    """Files of the folder and of its modules', which lie one folder deeper."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _SUFFIXES:
            yield path
        elif path.is_dir() and path.name[:1].isdigit():  # 1_Pooling, 2_Dense
            yield from (file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in _SUFFIXES)


def _check_whole(file: Path) -> None:
    """A safetensors file: 8 bytes with the length of a JSON header, which says where the last tensor ends."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
        length = struct.unpack("<Q", head)[0] if len(head) == _HEADER_BYTES else 0
        if not 0 < length <= min(_LARGEST_HEADER, size - _HEADER_BYTES):
            raise ModelError(f"{file}: is no whole safetensors file ({size:,} bytes); {_COPY_AGAIN}")
        try:
            header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{file}: its header cannot be read; {_COPY_AGAIN}") from None
    if size < (wanted := _HEADER_BYTES + length + end):
        raise ModelError(f"{file}: has {size:,} of {wanted:,} bytes; {_COPY_AGAIN}")
