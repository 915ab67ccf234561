"""What a file holds as one stream: unpacked, and in UTF-8 whatever it was written in."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from ebr.data.files.dialects import UTF8
from ebr.errors import DataError, first_line, why_not_utf8

BUFFER = 1 << 20


class Compression(str, Enum):
    """How a file as a whole is packed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    XZ = "xz"
    LZ4 = "lz4"
    DEFLATE = "deflate"
    """zlib's, Hadoop's default."""


class UnreadableError(DataError):
    """A file cannot be read any further: none of its lines is to blame."""


class TextStream(io.BufferedReader):
    """The content of a file; every failure to read it is a DataError that names the file."""

    def __init__(self, path: Path, compression: Compression, encoding: str) -> None:
        super().__init__(_Content(path, compression, encoding), BUFFER)

    def disk_position(self, offset: int) -> float:
        """About how many bytes of the file on disk hold the first `offset` bytes of its content."""
        raw = cast(_Content, self.raw)
        return offset * raw.disk.tell() / max(1, raw.n_given)


def open_content(path: Path, compression: Compression = Compression.NONE, encoding: str = UTF8) -> TextStream:
    """The content of a file, unpacked; what is no UTF-8 is turned into it.

    A byte that the encoding does not know comes as a lone surrogate, which is no UTF-8: its row is told from the others.
    Raises DataError when the file cannot be read, or when the archive is broken.
    """
    return TextStream(path, compression, encoding)


def bytes_on_disk(content: bytes, encoding: str) -> bytes:
    """What stood in the file for some of its content."""
    if encoding == UTF8:
        return content
    return content.decode(UTF8, "surrogatepass").encode(encoding, _errors(encoding))


def _errors(encoding: str) -> str:
    # Bytes that cannot be read are kept as surrogates; of UTF-16 these are lone surrogates themselves.
    return "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"


class _Content(io.RawIOBase):
    """What TextStream buffers."""

    def __init__(self, path: Path, compression: Compression, encoding: str) -> None:
        self._path = path
        self._compression = compression
        self.n_given = 0
        with readable(path):
            self.disk: BinaryIO = path.open("rb")
        self._content = _unpacked(self.disk, compression)
        if encoding != UTF8:
            self._content = _InUtf8(self._content, encoding)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        try:
            n_bytes = int(self._content.readinto(buffer))
        except UnicodeDecodeError as error:
            raise UnreadableError(f"{self._path}: is not {error.encoding} ({error.reason}); give its encoding") from None
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            if self._compression is Compression.NONE or getattr(error, "strerror", None):
                raise unreadable(self._path, error) from None
            packed = self._compression.value
            raise UnreadableError(
                f"{self._path}: the {packed} archive is broken or cut short ({first_line(error)}); copy the file again"
            ) from None
        self.n_given += n_bytes
        return n_bytes

    def close(self) -> None:
        if not self.closed:
            self.disk.close()
        super().close()


def _unpacked(disk: BinaryIO, compression: Compression) -> Any:  # noqa: ANN401
    if compression is Compression.NONE:
        return disk
    if compression is Compression.GZIP:
        return gzip.GzipFile(fileobj=disk, mode="rb")
    if compression is Compression.BZIP2:
        return _Streams(disk, bz2.BZ2Decompressor)
    if compression is Compression.XZ:
        return _Streams(disk, lzma.LZMADecompressor)
    # Arrow's gzip takes zlib's form too.
    codec = "gzip" if compression is Compression.DEFLATE else compression.value
    return pa.CompressedInputStream(pa.PythonFile(disk, mode="r"), codec)


class _Streams(io.RawIOBase):
    """Streams of bzip2 or xz one behind the other, as parallel packers write them.

    To the readers of the standard library whatever follows a stream and is none ends the file: the rest would be lost.
    """

    def __init__(self, disk: BinaryIO, new: Callable[[], Any]) -> None:
        self._disk = disk
        self._new = new
        self._stream = new()

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        while True:
            packed = b""
            if self._stream.eof:
                packed = self._next_stream()
                if not packed:
                    return 0
            elif self._stream.needs_input:
                packed = self._disk.read(BUFFER)
                if not packed:
                    raise EOFError("the end of the stream is missing")
            if content := self._stream.decompress(packed, len(buffer)):
                buffer[: len(content)] = content
                return len(content)

    def _next_stream(self) -> bytes:
        """What the next stream begins with; nothing where there is none. xz may fill up with zeros between two."""
        packed = self._stream.unused_data.lstrip(b"\0")
        while not packed:
            block = self._disk.read(BUFFER)
            if not block:
                return b""
            packed = block.lstrip(b"\0")
        self._stream = self._new()
        return bytes(packed)


class _InUtf8(io.RawIOBase):
    """A stream of another encoding, in UTF-8."""

    def __init__(self, content: Any, encoding: str) -> None:  # noqa: ANN401
        self._content = content
        self._decoder = codecs.getincrementaldecoder(encoding)(_errors(encoding))
        self._ready = memoryview(b"")

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        while not self._ready:
            block = self._content.read(BUFFER)
            self._ready = memoryview(self._decoder.decode(block, final=not block).encode(UTF8, "surrogatepass"))
            if not block:
                break
        n_bytes = min(len(buffer), len(self._ready))
        buffer[:n_bytes] = self._ready[:n_bytes]
        self._ready = self._ready[n_bytes:]
        return n_bytes


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What keeps a file from being read is a DataError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeEncodeError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> UnreadableError:
    """The error for a file that cannot be read."""
    if isinstance(error, UnicodeEncodeError):  # Arrow opens no name that is not UTF-8
        return UnreadableError(f"{path}: {why_not_utf8(str(path))}")
    return UnreadableError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or first_line(error)})")
