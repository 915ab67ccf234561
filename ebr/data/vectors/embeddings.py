"""Finished vectors and their manifest: one file, or a folder of parts; in any format; made here or elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ebr.data.files.places import place_of
from ebr.data.files.write import Digests, described, hash_file, manifest_path, read_manifest, write_files_aside, write_json
from ebr.data.result_tables import DataFrame, Table
from ebr.data.tables.cells import VECTOR
from ebr.data.vectors.batch import Columns, VectorBatch, Vectors
from ebr.data.vectors.foreign import find_foreign, visible_files
from ebr.data.vectors.formats import (
    VectorFormat,
    files_of,
    format_of,
    is_rows_file,
    read_batches,
    suffix_of,
    unfit_rows,
    write_vectors,
)
from ebr.errors import ConfigError, DataError

PART_FILE = re.compile(r"(part-\d{6,}-[0-9a-f]{12})\.[a-z.]+")
"""What the files of a folder of parts are called: their place, and the beginning of the digest of what they hold."""

_KIND = "embeddings"


@dataclass(frozen=True)
class Embeddings:
    """Vectors in memory: row i has vectors[i], (N, D) float32, and columns[name][i], None where it is null.

    manifest: what is recorded of the whole file or folder; None when it was made elsewhere.
    """

    vectors: Vectors
    columns: Columns
    manifest: dict[str, Any] | None

    def to_frame(self) -> DataFrame:
        """A row for each vector: the columns, then vector, (D,) float32."""
        return Table({**self.columns, VECTOR: list(self.vectors)}).to_frame()


def read_embeddings(
    path: Path, delimiter: str = "\x01", columns: Mapping[str, str] | None = None, *, vector_column: str | None = None
) -> Embeddings:
    """Read all vectors of a file or folder, and its other columns.

    Its manifest says format and delimiter and is verified; for one without, a line says what is assumed. columns: those to
    keep, each with the option that names it; None = all that are text. vector_column: of a file made elsewhere; None = by its
    name, which is vector, embedding or the like, or columns numbered x_0, x_1, …
    Raises DataError naming file and row when something is absent, changed since it was finished, or cannot be read.
    """
    return find_embeddings(path, delimiter, vector_column=vector_column).read(columns)


def iterate_embeddings(
    path: Path,
    delimiter: str = "\x01",
    columns: Mapping[str, str] | None = None,
    batch_rows: int = 4096,
    *,
    vector_column: str | None = None,
    digests: Digests | None = None,
) -> Iterator[Embeddings]:
    """The same rows, at most batch_rows at a time, in the memory of one batch.

    The hash of a file is verified before its first row is given, the number of rows after the last one. digests: that others
    took of the files, or will.
    """
    return find_embeddings(path, delimiter, vector_column=vector_column, digests=digests).batches(columns, batch_rows)


@dataclass(frozen=True)
class VerifiedEmbeddings:
    """The files of one result, in order, how to read them, and the hashes they must have ({}: made elsewhere).

    However often they are read, a file is hashed once: before its first row is given, or when the fingerprint is asked for.
    texts: the columns of each file that are text, by what was found in those made elsewhere; None = all but the vector.
    left_out: their other columns, and what they are.
    """

    path: Path
    files: list[Path]
    format: VectorFormat
    delimiter: str
    manifest: dict[str, Any] | None
    hashes: dict[Path, str]
    vector_column: str | None = VECTOR
    texts: Mapping[Path, Sequence[str]] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    digests: Digests = field(default_factory=Digests, repr=False, compare=False)

    def fingerprint(self) -> str:
        """sha256 over all that a reading depends on: what the files hold, in order, and how they are read.

        Raises DataError for a file that differs from its manifest.
        """
        digest = sha256(json.dumps([self.format.value, self.delimiter, self.vector_column]).encode())
        for file in self.files:
            for written in files_of(file, self.format):
                digest.update((self._verified(written) if written.is_file() else "none").encode())
        return digest.hexdigest()

    def verify(self, file: Path) -> None:
        """Compare the hashes of one vector file. Raises DataError when it changed."""
        for written in files_of(file, self.format):
            if written in self.hashes:
                self._verified(written)

    def _verified(self, written: Path) -> str:
        """The hash of a file that is as its manifest says. Raises DataError for another."""
        digest = self.digests.of(written)
        if self.hashes.get(written, digest) != digest:
            manifest = manifest_path(self.path).name
            raise DataError(
                f"{written}: differs from what its manifest recorded; delete it and embed again, or delete {manifest}"
            )
        return digest

    def batches(self, columns: Mapping[str, str] | None = None, batch_rows: int = 4096) -> Iterator[Embeddings]:
        """The same rows, at most batch_rows at a time, as iterate_embeddings gives them."""
        return _batches(self, columns, batch_rows)

    def read(self, columns: Mapping[str, str] | None = None) -> Embeddings:
        """All rows, as read_embeddings gives them."""
        parts: list[Vectors] = []
        cells: Columns = {}
        for batch in self.batches(columns):
            parts.append(batch.vectors)
            for name, values in batch.columns.items():
                cells.setdefault(name, []).extend(values)
        vectors = np.empty((sum(map(len, parts)), parts[0].shape[1]), dtype=np.float32)
        # From the end: a batch is let go as soon as it is copied, and memory that was never touched costs nothing.
        stop = len(vectors)
        while parts:
            part = parts.pop()
            vectors[stop - len(part) : stop] = part
            stop -= len(part)
        return Embeddings(vectors, cells, self.manifest)


def find_embeddings(
    path: Path,
    delimiter: str = "\x01",
    option: str = "embeddings_path",
    *,
    vector_column: str | None = None,
    digests: Digests | None = None,
) -> VerifiedEmbeddings:
    """The files of a result, unread: by its manifest, or, for one made elsewhere, by what a line says is assumed.

    option: what names the path. vector_column: as read_embeddings has it. digests: as iterate_embeddings has them.
    Raises DataError when something is absent or its manifest cannot be used.
    """
    if not path.exists():
        raise DataError(f"{option} {path}: no such file; run the inference stage first")
    path = described(path)
    manifest, digests = read_manifest(path), digests or Digests()
    if manifest is not None:
        return _found_by_manifest(path, manifest, digests)
    found = find_foreign(path, delimiter, option, vector_column)
    texts = {file: [name for name in layout.texts if name in found.texts] for file, layout in found.layouts.items()}
    return VerifiedEmbeddings(
        path, list(texts), found.format, found.delimiter, None, {}, vector_column, texts, found.left_out, digests
    )


def _found_by_manifest(path: Path, manifest: dict[str, Any], digests: Digests) -> VerifiedEmbeddings:
    mend = f"delete {manifest_path(path)} to load {path.name} as made elsewhere"
    if manifest.get("kind") != _KIND:
        raise DataError(f"{path}: its manifest is that of {manifest.get('kind')!r}, not of embeddings; {mend}")
    try:
        fmt, files = VectorFormat(manifest["format"]), dict(manifest["files"])
        delimiter, _, _ = str(manifest["delimiter"]), int(manifest["n_rows"]), int(manifest["dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its manifest cannot be used ({type(error).__name__}: {error}); {mend}") from None
    if path.is_dir():
        hashes = {path / name: str(digest) for name, digest in files.items()}
        _refuse_strangers(path, fmt, hashes)
    else:
        # By place, not by name: a file may be renamed together with its manifest.
        hashes = dict(zip(files_of(path, fmt), map(str, files.values()), strict=False))
    missing = [file.name for file in hashes if not file.is_file()]
    if missing or not hashes:
        raise DataError(
            f"{path}: {', '.join(missing[:3]) or 'every file'} of its manifest is missing; put it back or embed again"
        )
    in_order = [file for file in hashes if not is_rows_file(file)]
    return VerifiedEmbeddings(path, in_order, fmt, delimiter, manifest, hashes, digests=digests)


def _refuse_strangers(folder: Path, fmt: VectorFormat, hashes: Mapping[Path, str]) -> None:
    suffixes = {file.suffix for name in [f"x{suffix_of(fmt)}"] for file in files_of(Path(name), fmt)}
    strangers = [file.name for file in visible_files(folder) if file.suffix in suffixes and file not in hashes]
    # Parts of a run that is bringing the folder up to date count once the manifest names them.
    strangers = [name for name in strangers if not PART_FILE.fullmatch(name)]
    if strangers:
        names = ", ".join(strangers[:3])
        raise DataError(f"{folder}: {names} is not in its manifest; move it out of the folder, or embed again")


def _batches(found: VerifiedEmbeddings, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[Embeddings]:
    """All rows, checked against the manifest; the last checks come after the last batch."""
    manifest = found.manifest
    n_rows, dim = 0, None if manifest is None else manifest["dim"]
    names = None if found.texts is None else list(dict.fromkeys(name for texts in found.texts.values() for name in texts))
    names = names if columns is None else list(columns)
    for file in found.files:
        found.verify(file)
        for batch in _file_batches(found, file, columns, batch_rows):
            dim = dim or batch.vectors.shape[1]
            names = list(batch.columns) if names is None else names
            if batch.vectors.shape[1] != dim:
                raise DataError(
                    f"{file}: its vectors have {batch.vectors.shape[1]} numbers, not {dim} like the rest; embed again"
                )
            if not batch.columns.keys() <= set(names):
                raise DataError(f"{file}: its columns {list(batch.columns)} differ from {names} before it; embed again")
            n_rows += len(batch.vectors)
            cells = {name: batch.columns.get(name) or [None] * len(batch.vectors) for name in names}
            yield Embeddings(batch.vectors, cells, manifest)
    if not n_rows:
        raise DataError(f"{found.path}: holds no rows")
    if manifest is not None and manifest["n_rows"] != n_rows:
        raise DataError(f"{found.path}: holds {n_rows} rows where its manifest says {manifest['n_rows']}; embed again")


def _file_batches(
    found: VerifiedEmbeddings, file: Path, columns: Mapping[str, str] | None, batch_rows: int
) -> Iterator[VectorBatch]:
    if columns is None and found.texts is not None:
        columns = dict.fromkeys(found.texts[file], "")
    return read_batches(
        file,
        found.format,
        delimiter=found.delimiter,
        columns=columns,
        batch_rows=batch_rows,
        vector_column=found.vector_column,
    )


def write_embeddings(
    path: Path,
    columns: Mapping[str, Sequence[str | None]],
    vectors: Vectors,
    *,
    delimiter: str = "\x01",
    output_format: str | None = None,
    dtype: str = "float32",
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write one finished file with its manifest; `facts` are recorded there too.

    Raises DataError for a row that the format cannot hold, and for nan or inf; ConfigError for a format that does not fit.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file")
    fmt, path = format_of(path, output_format), place_of(path)
    table = pa.table({name: pa.array(list(cells), pa.string()) for name, cells in columns.items()})
    for row, why in unfit_rows(table, fmt, delimiter).items():
        raise DataError(f"{path}: row {row + 1}: {why}")
    with write_files_aside(path.parent) as aside:
        write_vectors(aside / path.name, fmt, table, vectors, delimiter=delimiter, dtype=dtype)
    write_embeddings_manifest(
        path,
        fmt,
        files={file.name: hash_file(file) for file in files_of(path, fmt)},
        delimiter=delimiter,
        dtype=dtype,
        dim=vectors.shape[1],
        n_rows=len(vectors),
        columns=list(columns),
        facts=facts or {},
    )


def write_embeddings_manifest(
    output_path: Path,
    fmt: VectorFormat,
    *,
    files: Mapping[str, str],
    delimiter: str,
    dtype: str,
    dim: int,
    n_rows: int,
    columns: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Record that a file, or a folder of parts, is finished: the last thing that is written.

    files: every file (files_of) by its name in the folder of the output, in the order of the rows, with its sha256.
    facts: what else is known; they cannot replace what is recorded here (ValueError).
    """
    record = {
        "kind": _KIND,
        "format": fmt.value,
        "delimiter": delimiter,
        "dtype": dtype,
        "dim": dim,
        "n_rows": n_rows,
        "columns": list(columns),
        "files": dict(files),
    }
    if taken := sorted(record.keys() & facts.keys()):
        raise ValueError(f"facts: {', '.join(taken)} is recorded already")
    write_json(manifest_path(output_path), {**record, **facts})
