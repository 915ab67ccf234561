"""Lines of text files, gzipped or not, with their places."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from ebr.errors import DataError, first_line

UNREADABLE = (EOFError, zlib.error, OSError, pa.ArrowException)
"""What reading a file may raise that is no fault of ours."""
_GZIP_MAGIC = b"\x1f\x8b"


def each_line(file: Path) -> Iterator[tuple[str, str | DataError]]:
    r"""Every line of a text file that is not blank, gunzipped, with its place, without its end; DataError for what is no UTF-8.

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
    """The bytes of a file, gunzipped where its own say that it is gzip."""
    with file.open("rb") as stream:
        is_gzip = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return cast(BinaryIO, gzip.open(file) if is_gzip else file.open("rb"))


def unreadable(error: Exception) -> DataError:
    """One of UNREADABLE in words for whoever gave the file."""
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return DataError(f"the gzip archive is broken or cut short ({first_line(error)}); copy the file again")
    return DataError(f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})")


def decoded(raw: bytes, line: int) -> str:
    """A line as text; line: its number, from 1. Raises DataError."""
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8") from None
