"""Lines of text files, packed or not, with their places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ebr.data.files.contents import open_text, save_as_utf8
from ebr.errors import DataError


def each_line(file: Path) -> Iterator[tuple[str, str | DataError]]:
    """Every line of a text file, unpacked, as lines_of gives them; DataError for a file that cannot be read."""
    try:
        with open_text(file) as stream:
            yield from lines_of(file, stream)
    except DataError as error:
        yield of_whole_file(file, error)


def lines_of(file: Path, stream: Iterable[bytes]) -> Iterator[tuple[str, str | DataError]]:
    r"""The lines of a stream that are not blank, each with its place, without its end; DataError for one that is no UTF-8.

    Only \n ends a line: U+2028 and its kin occur inside texts.
    """
    for number, raw in enumerate(stream, start=1):
        try:
            text = decoded(raw, number)
        except DataError as error:
            yield f"{file}:{number}", error
            continue
        if text and not text.isspace():
            yield f"{file}:{number}", text.rstrip("\r\n")


def of_whole_file(file: Path, error: DataError) -> tuple[str, DataError]:
    """An error that names the file, as the place and what is wrong there."""
    return str(file), DataError(str(error).removeprefix(f"{file}: "))


def decoded(raw: bytes, line: int) -> str:
    """A line as text; line: its number, from 1. Raises DataError."""
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(not_utf8(error)) from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are no UTF-8, and how to mend it."""
    return f"is not UTF-8 (byte {error.object[error.start]:#04x}); {save_as_utf8(error.object)}"
