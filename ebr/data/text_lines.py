"""Lines of text files, packed or not, with their places."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from ebr.errors import DataError, first_line

UNREADABLE = (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException)
"""What reading a file may raise that is no fault of ours."""
PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
"""How packed files are called; what they are, their first bytes say."""
_OPENERS: dict[bytes, Callable[[Path], object]] = {
    b"\x1f\x8b": gzip.open,
    b"\x28\xb5\x2f\xfd": lambda file: io.BufferedReader(pa.CompressedInputStream(str(file), "zstd")),
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


def unpacked_name(file: Path) -> str:
    """The name of a file in small letters, without the suffix of its packing."""
    name = file.name.lower()
    return name.removesuffix(next(filter(name.endswith, PACKED_SUFFIXES), ""))


def each_line(file: Path) -> Iterator[tuple[str, str | DataError]]:
    r"""Every line of a text file that is not blank, unpacked, with its place, without its end; DataError for what is no UTF-8.

    Only \n ends a line: U+2028 and its kin occur inside texts.
    """
    try:
        with opened(file) as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    text = decoded(raw, number)
                except DataError as error:
                    yield f"{file}:{number}", error
                    continue
                if text and not text.isspace():
                    yield f"{file}:{number}", text.rstrip("\r\n")
    except UNREADABLE as error:
        yield str(file), unreadable(error)


def opened(file: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its first ones say that it is packed."""
    with file.open("rb") as stream:
        head = stream.read(max(map(len, _OPENERS)))
    unpacked = next((unpack for magic, unpack in _OPENERS.items() if head.startswith(magic)), None)
    return cast(BinaryIO, file.open("rb") if unpacked is None else unpacked(file))


def unreadable(error: Exception) -> DataError:
    """One of UNREADABLE in words for whoever gave the file."""
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile | lzma.LZMAError):
        return DataError(f"the archive is broken or cut short ({first_line(error)}); copy the file again")
    return DataError(f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})")


def decoded(raw: bytes, line: int) -> str:
    """A line as text; line: its number, from 1. Raises DataError."""
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8") from None
