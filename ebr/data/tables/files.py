"""The files of a warehouse: which they are, what they are (by their first bytes), and which columns they have.

Hive's part files carry no suffix, and folders like dt=2026-01-01 carry a column.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from ebr.data.files.contents import Contents, TableKind, contents_of, looks_like_gbk
from ebr.data.files.dialects import Dialect
from ebr.data.files.unpacking import TextStream, readable
from ebr.data.tables.cells import first_records, names_of, without_twins
from ebr.data.tables.columnar import are_unnamed, columnar_schema
from ebr.errors import ConfigError, DataError

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""How Hive names the folder of rows whose partition column is null."""

_LEFT_BY_TOOLS = (".crc", "_$folder$", "~")

_UNFINISHED = re.compile(
    r"(\._COPYING_|\.(tmp|temp|in-?progress|pending|partial|filepart|crdownload)(\.[0-9a-f-]+)?)$", re.IGNORECASE
)
"""How names end while a tool is writing: HDFS, Flume, Flink (with an id behind), copying tools."""


@dataclass(frozen=True)
class TableFile:
    """One input file, its header read and checked.

    name: posix path from input_dir. columns: the file's own, in its order. partitions: the columns that its folders give,
    each with its value (None is null), which counts where the file has the column too. n_bytes: size on disk.
    dialect: how its text is written, in its own encoding.
    """

    path: Path
    name: str
    contents: Contents
    dialect: Dialect
    columns: tuple[str, ...]
    partitions: tuple[tuple[str, str | None], ...]
    n_bytes: int

    @property
    def kind(self) -> TableKind:
        """How its rows are stored."""
        return self.contents.kind

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The file's own columns, then those that only its folders have."""
        return tuple(dict.fromkeys((*self.columns, *(name for name, _ in self.partitions))))

    def open(self) -> TextStream:
        """The content of a text file, unpacked, in UTF-8. Raises DataError when it cannot be read, or the archive is broken."""
        return self.contents.open(self.path)


def find_tables(folder: Path, pattern: str) -> tuple[list[Path], list[Path]]:
    """The tables of a folder and its subfolders, sorted, and the files that are still being written; of a file, itself.

    Whoever names unfinished files in the pattern wants them. Raises DataError when there are no tables.
    """
    if folder.is_file():
        return [folder], []
    if not folder.is_dir():
        raise DataError(f"input_dir {folder}: no such folder or file")
    try:
        found = {path for below in _with_linked_folders(folder) for path in below.rglob(pattern) if path.is_file()}
    except (NotImplementedError, ValueError):
        raise ConfigError(f"file_pattern {pattern!r}: must lie below input_dir, like *.csv") from None
    files = sorted(path for path in found if not any(map(_is_left_by_a_tool, path.relative_to(folder).parts)))
    unfinished = [] if _UNFINISHED.search(pattern) else [path for path in files if _is_unfinished(path.relative_to(folder))]
    tables = [path for path in files if path not in set(unfinished)]
    if not tables:
        but = f" but what is still being written, like {unfinished[0]}" if unfinished else ""
        raise DataError(f"input_dir {folder}: no file matches {pattern!r}{but}; set file_pattern or put tables there")
    return tables, unfinished


def _with_linked_folders(folder: Path) -> Iterator[Path]:
    """The folder, and every folder below it that is a link to elsewhere, which rglob does not enter; each real one once."""
    yield folder
    home = folder.resolve()
    seen = {home}
    for place, names, _ in os.walk(folder, followlinks=True):
        for name in sorted(names):
            below = Path(place, name)
            if not below.is_symlink():
                continue
            real = below.resolve()
            if real in seen or home in real.parents or real in home.parents:
                names.remove(name)  # met already, on another way, or a loop
            else:
                seen.add(real)
                yield below


def _is_left_by_a_tool(part: str) -> bool:
    """Hidden files and folders, _SUCCESS, _temporary, checksums: no data. A folder like _dt=2026 is a partition after all."""
    return part.startswith((".", "+tmp")) or part.endswith(_LEFT_BY_TOOLS) or (part.startswith("_") and "=" not in part)


def _is_unfinished(path: Path) -> bool:
    # A partition like name=x.tmp is none.
    return any(_UNFINISHED.search(part) for part in (path.name, *path.parent.parts) if part == path.name or "=" not in part)


def open_table(path: Path, input_dir: Path, dialect: Dialect, column_names: Sequence[str] | None) -> TableFile | None:
    """Say what a file is and which columns it has; None for one that holds nothing but line ends.

    column_names: those of a text file without a header line, or of an ORC file that knows their places alone; None = its
    first line names them. Other files have their own.
    Raises DataError when the file cannot be read, or names a column twice.
    """
    relative = path.relative_to(input_dir)
    with readable(path):
        n_bytes = path.stat().st_size
    contents = contents_of(path, dialect.encoding)
    own = replace(dialect, encoding=contents.encoding)
    file = TableFile(path, relative.as_posix(), contents, own, (), _partitions(path, relative), n_bytes)
    is_text = contents.kind is TableKind.TEXT
    columns = _text_columns(file, column_names) if is_text else _stored_columns(file, column_names)
    if columns is None:
        return None
    return replace(file, columns=tuple(without_twins(str(path), columns)))


def _partitions(path: Path, relative: Path) -> tuple[tuple[str, str | None], ...]:
    try:
        relative.as_posix().encode()
        pairs = [part.split("=", 1) for part in relative.parent.parts if part.find("=") > 0]
        found = [(unquote(name, errors="strict"), unquote(value, errors="strict")) for name, value in pairs]
    except UnicodeError:
        raise DataError(f"{str(path)!a}: its name or a folder's is not UTF-8; rename it") from None
    without_twins(str(path), [name for name, _ in found])
    return tuple((name, None if value == HIVE_NULL else value) for name, value in found)


def _text_columns(file: TableFile, column_names: Sequence[str] | None) -> list[str] | None:
    with file.open() as stream:
        first = first_records(file.path, stream, file.dialect)
    if first is None:
        return None
    if column_names is not None:
        return list(column_names)
    is_gbk = looks_like_gbk(first.data[first.starts[0] : first.ends[0]])
    mend = "it reads as GBK: set encoding gb18030" if is_gbk else "set its encoding, like latin-1"
    return names_of(file.path, first, file.dialect, mend)


def _stored_columns(file: TableFile, column_names: Sequence[str] | None) -> list[str]:
    stored = columnar_schema(file.path, file.kind).names
    if not (file.kind is TableKind.ORC and are_unnamed(stored)):
        return list(stored)
    if column_names is None or len(column_names) < len(stored):
        raise DataError(f"{file.path}: its {len(stored)} columns have no names (old Hive's ORC); name each in column_names")
    return list(column_names[: len(stored)])
