"""The files of a model's folder, looked at before a loader: what stands for a file and is none, and what was cut."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebr.errors import ModelError

_LFS = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
_SUFFIXES = {".safetensors", ".json", ".txt", ".model"}
_PICKLED = "pytorch_model"
# Folders that no loader of ours reads.
_ELSEWHERE = ("checkpoint-", "onnx", "openvino", "runs", ".")
_HEADER_BYTES = 8
_LARGEST_HEADER = 100_000_000
# A block of a file system: no trained matrix ends in so many.
_MANY_ZEROS, _LOOKED_AT = 4096, 1_048_576
_TABLES = ("embed", "shared", "wte", "wpe")
_WHOLE_NUMBERS, _EIGHT_BITS = re.compile(r"[IU]\d+"), re.compile(r"F8_\w+")
_COPY_AGAIN = "the copy broke off; copy the file again"


def check_files(folder: Path) -> None:
    """Refuse a folder whose files are git-lfs pointers, or whose safetensors are cut or not to be read as they are.

    Raises ModelError naming the file.
    """
    for file in _files(folder):
        if file.stat().st_size < _POINTER_BYTES and file.read_bytes().startswith(_LFS):
            raise ModelError(f"{file}: is a git-lfs pointer, not the file itself; run git lfs pull in that folder")
        if file.suffix == ".safetensors":
            _check_whole(file)


def _files(folder: Path) -> Iterator[Path]:
    """Files that a loader reads, of the folder and of its modules'."""
    paths = sorted(folder.iterdir())
    has_safetensors = any(path.suffix == ".safetensors" for path in paths)
    for path in paths:
        if path.is_dir() and not path.name.startswith(_ELSEWHERE):
            yield from _files(path)
        elif path.is_file() and (
            path.suffix in _SUFFIXES or (path.suffix == ".bin" and path.name.startswith(_PICKLED) and not has_safetensors)
        ):
            yield path


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
    if name := _cut_off(header, n_zeros := _zeros_at_the_end(file, size)):
        raise ModelError(f"{file}: ends in {n_zeros:,} zeros, in {name}, as from a copy that broke off; copy the file again")
    if name := _unscaled(file, header):
        raise ModelError(
            f"{file}: holds quantised weights ({name}, {header[name]['dtype']}), and config.json beside it has no "
            "quantization_config that says how to read them; give the unquantised model"
        )


def _unscaled(file: Path, header: dict[str, Any]) -> str:
    """A weight that was scaled to fewer bits, where nothing tells the loader, which takes its numbers for the weight's own."""
    config = file.with_name("config.json")
    if not config.is_file() or "quantization_config" in config.read_text(encoding="utf-8", errors="replace"):
        return ""
    tensors = {
        name: str(entry["dtype"]) for name, entry in header.items() if name != "__metadata__" and len(entry["shape"]) > 1
    }
    has_scales = any("scale" in name for name in header)
    for name, dtype in tensors.items():
        if "weight" in name and (_WHOLE_NUMBERS.fullmatch(dtype) or (has_scales and _EIGHT_BITS.fullmatch(dtype))):
            return name
    return ""


def _zeros_at_the_end(file: Path, size: int) -> int:
    """How many of the last bytes are zeros, as far as one looks."""
    with file.open("rb") as stream:
        stream.seek(max(0, size - _LOOKED_AT))
        tail = stream.read()
    return len(tail) - len(tail.rstrip(b"\0"))


def _cut_off(header: dict[str, Any], n_zeros: int) -> str:
    """A matrix that the zeros at the end of a file reach into; '' where they are what they may be.

    Biases may be zeros; so may the last rows of a table of embeddings, which are padding, and an adapter that learned nothing.
    """
    tensors = [(entry["data_offsets"], name, entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
    for (start, end), name, shape in sorted(tensors, reverse=True):
        n_covered = min(end - start, n_zeros)
        is_whole = n_covered == end - start
        may_end_in_zeros = any(word in name for word in _TABLES) and not is_whole
        if n_covered >= _MANY_ZEROS and len(shape) > 1 and "lora_" not in name and not may_end_in_zeros:
            return name
        n_zeros -= n_covered
        if not is_whole:
            break
    return ""
