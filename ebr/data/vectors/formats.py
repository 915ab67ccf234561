"""The formats of vector files, one contract for all: write a whole file, join parts into one, read in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path

import pyarrow as pa

from ebr.data.files.contents import TableKind, contents_of, suffix_within
from ebr.data.tables.cells import VECTOR
from ebr.data.vectors.arrow import columnar_layout, json_layout, read_columnar, read_json_lines
from ebr.data.vectors.batch import VectorBatch, Vectors, checked_vectors
from ebr.data.vectors.delimited import join_text, read_text, text_layout, unfit_names, unfit_text_rows, write_text
from ebr.data.vectors.layout import Layout
from ebr.data.vectors.npy import ROWS_SUFFIX, join_npy, npy_layout, npz_layout, read_npy, read_npz, rows_path, write_npy
from ebr.data.vectors.parquet import join_parquet, parquet_layout, read_parquet, write_parquet
from ebr.errors import ConfigError, DataError

DTYPES = ("float32", "float16")
"""The types a vector may be stored in; text is always float32."""


class VectorFormat(str, Enum):
    """How a vector file is written. The last four are only read."""

    TXT = "txt"
    PARQUET = "parquet"
    NPY = "npy"
    NPZ = "npz"
    ORC = "orc"
    ARROW = "arrow"
    JSON = "JSON lines"


_WRITTEN = (VectorFormat.TXT, VectorFormat.PARQUET, VectorFormat.NPY)
_OF_SUFFIX = {
    ".txt": VectorFormat.TXT,
    ".csv": VectorFormat.TXT,
    ".tsv": VectorFormat.TXT,
    ".parquet": VectorFormat.PARQUET,
    ".npy": VectorFormat.NPY,
}
_READ_SUFFIX = {
    **_OF_SUFFIX,
    **{".jsonl": VectorFormat.JSON, ".ndjson": VectorFormat.JSON},
    **{".npz": VectorFormat.NPZ, ".orc": VectorFormat.ORC, ".arrow": VectorFormat.ARROW, ".feather": VectorFormat.ARROW},
}
_MAGIC = {b"\x93NUM": VectorFormat.NPY, b"PK\x03\x04": VectorFormat.NPZ}
_OF_KIND = {
    TableKind.TEXT: VectorFormat.TXT,
    TableKind.PARQUET: VectorFormat.PARQUET,
    TableKind.ORC: VectorFormat.ORC,
    TableKind.ARROW: VectorFormat.ARROW,
}
_COLUMNAR = {VectorFormat.ORC: TableKind.ORC, VectorFormat.ARROW: TableKind.ARROW}
_OTHERS = frozenset(
    ".json .jsonl .ndjson .xml .html .md .yaml .yml .xls .xlsx .ods .orc .avro .arrow .feather .ipc .pq .parq .lance "
    ".npz .mat .h5 .hdf5 .pkl .pickle .pt .pth .safetensors .faiss .index .db .sqlite .duckdb .fvecs .bvecs .ivecs "
    ".gz .gzip .bz2 .xz .zst .zstd .lz4 .snappy .br .z .zip .7z .rar .tar .tgz".split()
)
"""Suffixes of what is none of these, packed files among them."""


def format_of(output_path: Path, output_format: str | None) -> VectorFormat:
    """The format asked for; None: the one the suffix names, else text.

    Raises ConfigError when the format is unknown, or contradicts the suffix, or when the suffix is that of something else.
    """
    suffix = output_path.suffix.lower()
    if suffix in _OTHERS:
        known = ", ".join(map(suffix_of, _WRITTEN))
        raise ConfigError(f"output_path {output_path}: no vector file is written as {suffix}; let it end in {known}")
    by_suffix = _OF_SUFFIX.get(suffix)
    if output_format is None:
        return by_suffix or VectorFormat.TXT
    if output_format not in [each.value for each in _WRITTEN]:
        raise ConfigError(f"output_format {output_format!r}: must be one of {', '.join(each.value for each in _WRITTEN)}")
    fmt = VectorFormat(output_format)
    if by_suffix not in {None, fmt}:
        raise ConfigError(f"output_format {fmt.value}: contradicts output_path {output_path}; let it end in {suffix_of(fmt)}")
    return fmt


def detected_format(path: Path) -> VectorFormat:
    """The format of a file made elsewhere: by its suffix, else by its first bytes, else text."""
    by_suffix = _READ_SUFFIX.get(suffix_within(path))
    if by_suffix:
        return by_suffix
    with path.open("rb") as file:
        by_magic = _MAGIC.get(file.read(4))
    return by_magic or _OF_KIND[contents_of(path).kind]


def suffix_of(fmt: VectorFormat) -> str:
    """How a file of this format ends: .txt, .parquet or .npy."""
    return f".{fmt.value}"


def files_of(path: Path, fmt: VectorFormat) -> list[Path]:
    """Every file that one vector file consists of, itself first: x.npy has x.rows.parquet beside it."""
    return [path, rows_path(path)] if fmt is VectorFormat.NPY else [path]


def is_rows_file(path: Path) -> bool:
    """Whether this is the file of columns beside a matrix."""
    return path.name.endswith(ROWS_SUFFIX)


def check_output_columns(names: Sequence[str], fmt: VectorFormat, delimiter: str) -> None:
    """Refuse column names that the format cannot hold, before any work. Raises DataError naming the column."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(f"output_columns: {', '.join(twice)} stands there twice; name each once")
    if VECTOR in names:
        raise DataError(f"output_columns: {VECTOR!r} is the name of the column that is added; rename the input column")
    why = unfit_names(names, delimiter) if fmt is VectorFormat.TXT else None
    if why:
        raise DataError(f"output_columns: {why}; leave it out, or set output_format to parquet")


def check_dtype(fmt: VectorFormat, dtype: str) -> None:
    """Refuse a type that the format cannot store. Raises ConfigError."""
    if dtype not in DTYPES:
        raise ConfigError(f"vector_dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    if fmt is VectorFormat.TXT and dtype != "float32":
        raise ConfigError(f"vector_dtype {dtype}: txt holds float32 only; set output_format to parquet or npy")


def unfit_rows(columns: pa.Table, fmt: VectorFormat, delimiter: str) -> dict[int, str]:
    r"""Row → reason, for rows whose cells would not read back the same: delimiters, line breaks and a literal `\N` in text."""
    return unfit_text_rows(columns, delimiter) if fmt is VectorFormat.TXT else {}


def write_vectors(
    path: Path,
    fmt: VectorFormat,
    columns: pa.Table,
    vectors: Vectors,
    *,
    delimiter: str,
    dtype: str = "float32",
    packed: bool = True,
) -> list[Path]:
    """Write one whole file at exactly `path`, to be renamed by the caller; return every file written.

    columns: N rows of pa.string(), without those of unfit_rows; or no column at all. vectors: (N, D) float32, N may be 0.
    dtype: float32, or float16 (parquet and npy). packed: False = for a part that is joined and removed: Parquet is not
    compressed. Raises DataError for nan, inf, and what goes beyond float16;
    ConfigError for a type that the format cannot store; OSError when the disk refuses.
    """
    check_dtype(fmt, dtype)
    check_output_columns(columns.column_names, fmt, delimiter)
    vectors = checked_vectors(columns, vectors)
    if fmt is VectorFormat.TXT:
        write_text(path, columns, vectors, delimiter)
    elif fmt is VectorFormat.PARQUET:
        write_parquet(path, columns, vectors, dtype, packed=packed)
    else:
        write_npy(path, columns, vectors, dtype)
    return files_of(path, fmt)


def join_parts(parts: Sequence[Path], output: Path, fmt: VectorFormat) -> None:
    """Stream one or more parts into one file at exactly `output`, to be renamed by the caller.

    The bytes of txt and npy are those of one write of all rows; Parquet gets a row group or more a part.
    Raises DataError when a part cannot be read or does not fit the first.
    """
    if not parts:
        raise ValueError("no parts to join")
    join = {VectorFormat.TXT: join_text, VectorFormat.PARQUET: join_parquet, VectorFormat.NPY: join_npy}[fmt]
    join(parts, output)


def layout_of(path: Path, fmt: VectorFormat, *, delimiter: str, vector_column: str | None = None) -> Layout:
    """Which columns of one file are what, without its rows. Raises DataError when it cannot be read, or none is the vector."""
    if fmt is VectorFormat.TXT:
        return text_layout(path, delimiter, vector_column)
    if fmt is VectorFormat.PARQUET:
        return parquet_layout(path, vector_column)
    if fmt in _COLUMNAR:
        return columnar_layout(path, _COLUMNAR[fmt], vector_column)
    if fmt is VectorFormat.JSON:
        return json_layout(path, vector_column)
    return npy_layout(path) if fmt is VectorFormat.NPY else npz_layout(path, vector_column)


def read_batches(
    path: Path,
    fmt: VectorFormat,
    *,
    delimiter: str,
    columns: Mapping[str, str] | None = None,
    batch_rows: int = 4096,
    vector_column: str | None = None,
) -> Iterator[VectorBatch]:
    """The rows of one file, at most batch_rows at a time; no batch when it holds none.

    columns: those to keep, each with the option that names it; None = all. vector_column: as find_vector has it.
    Raises DataError naming file, column and row when something is absent or cannot be read, nan and inf included.
    """
    if fmt is VectorFormat.TXT:
        return read_text(path, delimiter, columns, batch_rows, vector_column)
    if fmt is VectorFormat.PARQUET:
        return read_parquet(path, columns, batch_rows, vector_column)
    if fmt in _COLUMNAR:
        return read_columnar(path, _COLUMNAR[fmt], columns, vector_column)
    if fmt is VectorFormat.JSON:
        return read_json_lines(path, columns, batch_rows, vector_column)
    if fmt is VectorFormat.NPY:
        return read_npy(path, columns, batch_rows)
    return read_npz(path, columns, batch_rows, vector_column)
