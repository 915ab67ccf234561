"""What a file is, by its first bytes, whatever its name: text in some encoding, columns, packed, or what nothing here reads."""

from __future__ import annotations

import codecs
import io
import re
import zlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from ebr.data.files.dialects import UTF8
from ebr.data.files.unpacking import Compression, TextStream, open_content, readable
from ebr.errors import DataError


class TableKind(str, Enum):
    """How a file's rows are stored."""

    TEXT = "text"
    PARQUET = "parquet"
    ORC = "orc"
    ARROW = "arrow"


@dataclass(frozen=True)
class Contents:
    """What a file is. encoding: of text, by its byte-order mark where it has one, else as was asked for."""

    kind: TableKind
    compression: Compression = Compression.NONE
    encoding: str = UTF8

    def open(self, path: Path) -> TextStream:
        """The content of such a file of text: unpacked, in UTF-8."""
        return open_content(path, self.compression, self.encoding)


_HEAD = 8192
PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".deflate")
"""How names of packed files end."""
_ORC_MAGIC = b"ORC"
_MARKS = {
    codecs.BOM_UTF8: UTF8,
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    b"\x84\x31\x95\x33": "gb18030",
}
_MARKED = ("utf-16", "utf-32")  # without an ending the mark tells the order of bytes

_PACKED = {
    b"\x1f\x8b": Compression.GZIP,
    b"\x28\xb5\x2f\xfd": Compression.ZSTD,
    b"\xfd7zXZ\0": Compression.XZ,
    b"\x04\x22\x4d\x18": Compression.LZ4,
}
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_DEFLATE = (b"\x78\x9c", b"\x78\xda")  # not 78 01: that is an x before a \001

_UNPACK = "unpack it first"
_SAVE_AS_TABLE = "save it as Parquet, ORC or delimited text"
_FOREIGN: dict[bytes, tuple[str, str]] = {
    b"PK\x03\x04": ("a zip archive (.xlsx and .npz are such too)", "unpack it, or save the sheet as CSV"),
    b"PK\x05\x06": ("a zip archive without a file", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!\x1a\x07": ("a rar archive", _UNPACK),
    b"\x1f\x9d": ("packed with compress (.Z)", _UNPACK),
    b"\x89LZO\0\r\n\x1a\n": ("packed with lzop", _UNPACK),
    b"\xff\x06\0\0sNaPpY": ("packed with snappy", "unpack it, or pack it with gzip, zstd, lz4, bzip2 or xz"),
    b"\x02\x21\x4c\x18": ("packed with lz4's old format", _UNPACK),
    b"SEQ\x04": ("a Hadoop SequenceFile", _SAVE_AS_TABLE),
    b"SEQ\x05": ("a Hadoop SequenceFile", _SAVE_AS_TABLE),
    b"SEQ\x06": ("a Hadoop SequenceFile", _SAVE_AS_TABLE),
    b"RCF\x01\0": ("a Hive RCFile", _SAVE_AS_TABLE),
    b"RCF\x01\x01": ("a Hive RCFile", _SAVE_AS_TABLE),
    b"PARE": ("an encrypted Parquet file", "save it without encryption"),
    b"FEA1": ("a Feather file of version 1", _SAVE_AS_TABLE),
    b"\xff\xff\xff\xff": ("an Arrow stream", _SAVE_AS_TABLE),
    b"\x93NUMPY": ("a NumPy array", _SAVE_AS_TABLE),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", _SAVE_AS_TABLE),
    b"SQLite format 3\0": ("an SQLite database", _SAVE_AS_TABLE),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an old Office file (.xls, .doc)", "save the sheet as CSV"),
    b"\x80\x04\x95": ("a Python pickle", _SAVE_AS_TABLE),
    b"\x80\x05\x95": ("a Python pickle", _SAVE_AS_TABLE),
    b"%PDF-": ("a PDF document", _SAVE_AS_TABLE),
    b"\x89PNG\r\n\x1a\n": ("a PNG picture", "leave it out"),
    b"\xff\xd8\xff": ("a JPEG picture", "leave it out"),
}


def suffix_within(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: .jsonl of x.jsonl.gz."""
    return without_packing(path).suffix.lower()


def open_text(path: Path) -> TextStream:
    """The content of a file of text, unpacked, in UTF-8. Raises DataError when it is none, or cannot be read."""
    contents = contents_of(path)
    if contents.kind is not TableKind.TEXT:
        raise DataError(f"{path}: is a file of columns ({contents.kind.value}); give it as text")
    return contents.open(path)


def contents_of(path: Path, encoding: str = UTF8) -> Contents:
    """What a file is; encoding: of a text without a byte-order mark. Raises DataError for what nothing here reads."""
    with readable(path), path.open("rb") as stream:
        head = stream.read(_HEAD)
        kind = _kind(head, stream)
    compression = compression_of(head)
    if compression is not Compression.NONE:
        with open_content(path, compression) as unpacked:
            head = unpacked.read(_HEAD)
        kind = _kind(head)
        within = compression_of(head).value if compression_of(head) is not Compression.NONE else kind.value
        if within != TableKind.TEXT.value:
            raise DataError(f"{path}: holds {within} packed with {compression.value}; {_UNPACK}")
    if kind is not TableKind.TEXT:
        return Contents(kind)
    _refuse_foreign(path, head, compression)
    found = next((name for mark, name in _MARKS.items() if head.startswith(mark)), encoding)
    if head and found in _MARKED:
        raise DataError(f"{path}: has no byte-order mark; give the encoding as {found}-le or {found}-be")
    _refuse_binary(path, head, found)
    if found == encoding != UTF8 and _is_utf8(head):
        raise DataError(f"{path}: is UTF-8, not {encoding}; leave encoding out, or keep files of one encoding in a folder")
    return Contents(kind, compression, found)


def unpacked(path: Path) -> Path | BinaryIO:
    """The file itself; where it is packed, its content, in memory. Raises DataError when it cannot be read."""
    with readable(path), path.open("rb") as stream:
        compression = compression_of(stream.read(_HEAD))
    if compression is Compression.NONE:
        return path
    with open_content(path, compression) as stream:
        return io.BytesIO(stream.read())


def without_packing(path: Path) -> Path:
    """The name of what is packed: v.npy of v.npy.gz."""
    return path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES else path


def compression_of(head: bytes) -> Compression:
    """How a file is packed that begins with these bytes."""
    # Tools that pack in parallel put a frame before the data that readers skip: 50 to 5f, then 2a 4d 18.
    if head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return Compression.ZSTD
    if _BZIP2.match(head):
        return Compression.BZIP2
    if head.startswith(_DEFLATE) and _inflates(head):
        return Compression.DEFLATE
    return next((packed for magic, packed in _PACKED.items() if head.startswith(magic)), Compression.NONE)


def _inflates(head: bytes) -> bool:
    try:
        zlib.decompressobj().decompress(head)
    except zlib.error:
        return False
    return True


def _kind(head: bytes, stream: BinaryIO | None = None) -> TableKind:
    """stream: the file, to look at its end; None = what is packed, whose end is seen where it is small."""
    if head.startswith(b"PAR1"):
        return TableKind.PARQUET
    if head.startswith(b"ARROW1\0\0"):
        return TableKind.ARROW
    # A column may be called ORCID.
    if head.startswith(_ORC_MAGIC) and (b"\0" in head or (_end(stream) if stream else head)[-4:-1] == _ORC_MAGIC):
        return TableKind.ORC
    return TableKind.TEXT


def _end(stream: BinaryIO) -> bytes:
    stream.seek(-min(4, stream.seek(0, 2)), 2)
    return stream.read()


def _refuse_foreign(path: Path, head: bytes, compression: Compression) -> None:
    where = f"{path}: " if compression is Compression.NONE else f"{path}: within {compression.value}, "
    for magic, (what, mend) in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{where}is {what}; {mend}")
    if head.startswith(b"Obj\x01") and b"avro." in head:
        raise DataError(f"{where}is an Avro file; {_SAVE_AS_TABLE}")
    if head[257:262] == b"ustar":
        raise DataError(f"{where}is a tar archive; {_UNPACK}")


def _refuse_binary(path: Path, head: bytes, encoding: str) -> None:
    """Text may hold a NUL here and there; it does not begin with one, nor consist of them."""
    text = head.decode(encoding, "replace")
    n_nuls = text.count("\0")
    if not text.startswith("\0") and n_nuls * 16 <= len(text) + 64:
        return
    guess = "leave it out"
    if path.suffix.lower() in {".snappy", ".lz4", ".lzo"}:
        guess = f"Hadoop's own form of {path.suffix[1:].lower()} is not read: write the table with gzip, zstd, bzip2 or deflate"
    elif encoding == UTF8 and n_nuls * 3 > len(text):
        order = "be" if head.startswith(b"\0") else "le"
        guess = f"if it is UTF-16, give the encoding as utf-16-{order}"
    raise DataError(f"{path}: holds NUL bytes and is no text; {guess}")


def _is_utf8(head: bytes) -> bool:
    """Whether bytes, perhaps cut within a character, are UTF-8 beyond doubt: in another encoding several letters never are."""
    try:
        text = codecs.getincrementaldecoder(UTF8)().decode(head)
    except UnicodeDecodeError:
        return False
    return sum(not char.isascii() for char in text) >= 4


def looks_like_gbk(raw: bytes) -> bool:
    """Whether bytes that are no UTF-8 read as Chinese of GBK: mostly signs and characters of the common half of GB2312."""
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return False
    beyond = [char.encode("gb2312", "ignore") for char in text if not char.isascii()]
    n_common = sum(1 for code in beyond if code and code[0] <= 0xD7)
    return n_common * 4 >= len(beyond) * 3 > 0


def save_as_utf8(raw: bytes) -> str:
    """How to mend a text that is no UTF-8, where no option tells its encoding."""
    return "it reads as GBK: iconv -f GB18030 -t UTF-8 turns the file" if looks_like_gbk(raw) else "save the file as UTF-8"
