"""Vector files that other programs made: which they are, how they are read, and a line that says what is assumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ebr.data.files.contents import suffix_within
from ebr.data.files.dialects import DELIMITER_OF_SUFFIX
from ebr.data.tables.cells import read_header
from ebr.data.vectors.formats import VectorFormat, detected_format, layout_of, suffix_of
from ebr.data.vectors.layout import Layout
from ebr.data.vectors.npy import rows_path
from ebr.errors import DataError

log = logging.getLogger(__name__)

_NO_VECTORS = (".json", ".jsonl", ".crc")  # what else lies beside vector files: manifests, rejects, checksums


@dataclass(frozen=True)
class ForeignFiles:
    """files: in the order of their names, each with its layout."""

    layouts: Mapping[Path, Layout]
    format: VectorFormat
    delimiter: str

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Every column that is text in one of the files, in the order in which they come up; null where a file lacks it."""
        return tuple(
            dict.fromkeys(name for layout in self.layouts.values() for name in layout.texts if name not in self.left_out)
        )

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Columns that cannot be read as text in one of the files, and what they are there."""
        return {name: what for layout in self.layouts.values() for name, what in layout.left_out.items()}


def find_foreign(path: Path, delimiter: str, option: str, vector_column: str | None) -> ForeignFiles:
    """The vector files of a path without a manifest; lines say what is assumed, and what is left out.

    option: what names the path. Raises DataError when there is none, or one cannot be read.
    """
    files = _files(path)
    formats = {detected_format(file) for file in files}
    if len(formats) != 1:
        kinds = ", ".join(sorted(fmt.value for fmt in formats))
        what = f"holds vector files of several formats ({kinds})" if kinds else "holds no vector files"
        raise DataError(f"{option} {path}: {what}; name one file, or a folder of files of one format")
    (fmt,) = formats
    if fmt is VectorFormat.TXT:
        delimiter = _delimiter(files[0], delimiter)
    layouts = {file: layout_of(file, fmt, delimiter=delimiter, vector_column=vector_column) for file in files}
    found = ForeignFiles(layouts, fmt, delimiter)
    order = f"{len(files)} files in the order of their names, " if path.is_dir() else ""
    assumed = f"{order}{fmt.value}, {_assumed(found)}"
    log.warning("%s: no manifest, so it was made elsewhere or not finished: assuming %s", path, assumed)
    _say_gaps(path, found)
    return found


def visible_files(folder: Path) -> list[Path]:
    """Files that may hold vectors or rows, sorted: not those that tools hide or leave beside the data."""
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith((".", "_")))
    return sorted(file for file in files if file.suffix not in _NO_VECTORS)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    visible = visible_files(path)
    beside = {rows_path(file) for file in visible if suffix_within(file) == suffix_of(VectorFormat.NPY)}
    return [file for file in visible if file not in beside]


def _delimiter(file: Path, delimiter: str) -> str:
    """That of the suffix, where the header is one name under the one that was given."""
    usual = DELIMITER_OF_SUFFIX.get(suffix_within(file), delimiter)
    header = read_header(file, delimiter)
    return usual if len(header) == 1 and usual in header[0] else delimiter


def _assumed(found: ForeignFiles) -> str:
    layout = next(iter(found.layouts.values()))
    if found.format is VectorFormat.NPY:
        return "one vector a row, and its columns in the .rows.parquet beside it, if there is one"
    return f"delimiter {found.delimiter!r} and {layout}" if found.format is VectorFormat.TXT else str(layout)


def _say_gaps(path: Path, found: ForeignFiles) -> None:
    if found.left_out:
        log.warning("%s: left out, for they are no text: %s", path, _named(found.left_out))
    lacking = {name: sum(name not in layout.texts for layout in found.layouts.values()) for name in found.texts}
    if gaps := {name: f"{n:,} of {len(found.layouts):,} files" for name, n in lacking.items() if n}:
        log.warning("%s: null in the files that lack them: %s", path, _named(gaps))


def _named(columns: Mapping[str, str], most: int = 10) -> str:
    named: Sequence[str] = [f"{name!r} ({what})" for name, what in columns.items()]
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")
