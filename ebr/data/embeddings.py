"""Vector files: the chosen columns of each row, and its vector as text that reads back to the same float32."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from ebr.data.files import hash_file, manifest_path, read_manifest, write_aside, write_json
from ebr.data.tables import BadRow, column_index, join_cells, read_header, read_rows
from ebr.errors import DataError

log = logging.getLogger(__name__)

VECTOR = "vector"
"""The name of the column that holds the vector."""

Vectors = npt.NDArray[np.float32]


def format_vectors(vectors: Vectors) -> list[str]:
    """(N, D) float32 → N texts of D numbers. Nine significant digits name a float32 exactly."""
    row = " ".join(["%.9g"] * vectors.shape[1])
    return [row % tuple(vector) for vector in vectors.tolist()]


def parse_vectors(texts: Sequence[str]) -> Vectors:
    """N texts of D numbers → (N, D) float32, the inverse of format_vectors. Raises ValueError when lengths differ."""
    rows = [np.array(text.split(), dtype=np.float32) for text in texts]
    return np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)


class VectorFileWriter:
    """Appends rows with their vectors to an open file; `facts` go into its manifest."""

    def __init__(self, file: TextIO, columns: Sequence[str], delimiter: str) -> None:
        self._file = file
        self._delimiter = delimiter
        self.facts: dict[str, Any] = {"n_rows": 0, "dim": None, "dtype": "float32", "columns": list(columns)}
        file.write(join_cells([*columns, VECTOR], delimiter) + "\n")

    def write(self, rows: Sequence[Sequence[str]], vectors: Vectors) -> None:
        """Append rows (N lists of cells in the order of columns) with their vectors, (N, D) float32. Refuses nan."""
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            row = rows[int(np.argmin(finite))]
            raise DataError(f"the model gave nan or inf for the row {' | '.join(row)[:200]!r}; its weights may be broken")
        for cells, vector in zip(rows, format_vectors(vectors), strict=True):
            self._file.write(join_cells([*cells, vector], self._delimiter) + "\n")
        self.facts["n_rows"] += len(rows)
        self.facts["dim"] = vectors.shape[1]


@contextmanager
def vector_file(path: Path, columns: Sequence[str], delimiter: str) -> Iterator[VectorFileWriter]:
    """A vector file that is written aside, moved into place when the block ends well, and then gets its manifest."""
    with write_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        writer = VectorFileWriter(file, columns, delimiter)
        yield writer
    written = {"delimiter": delimiter, "sha256": hash_file(path)}
    write_json(manifest_path(path), {"kind": "embeddings", **written, **writer.facts})


@dataclass(frozen=True)
class Embeddings:
    """A vector file in memory: row i has vectors[i], (N, D) float32, and columns[name][i]."""

    vectors: Vectors
    columns: dict[str, list[str]]
    manifest: dict[str, Any] | None


def read_embeddings(path: Path, delimiter: str, columns: Mapping[str, str] | None = None) -> Embeddings:
    """Read the vectors of a file, and its other columns.

    Its manifest says the delimiter and is verified; for a file without one, a line says what is assumed. columns: those to
    keep, each with the option that names it; None = all.
    Raises DataError naming file and line when the file is absent, changed since it was finished, or a vector cannot be read.
    """
    if not path.is_file():
        raise DataError(f"embeddings_path {path}: no such file; run the inference stage first")
    manifest = read_manifest(path)
    if manifest is None:
        log.warning("%s: no manifest, so it was made elsewhere: assuming delimiter %r and a %r column", path, delimiter, VECTOR)
    else:
        delimiter = manifest["delimiter"]
        if hash_file(path) != manifest["sha256"]:
            raise DataError(
                f"{path}: differs from what its manifest recorded; embed again, or delete {manifest_path(path).name}"
            )
    header = read_header(path, delimiter)
    at = column_index(path, header, VECTOR, "a vector file")
    wanted = dict.fromkeys(header, "") if columns is None else columns
    kept = {name: column_index(path, header, name, option) for name, option in wanted.items() if name != VECTOR}
    cells_of: dict[str, list[str]] = {name: [] for name in kept}
    vectors: list[Vectors] = []
    for line, cells in _good_rows(path, delimiter, len(header)):
        vectors.append(_vector(path, line, cells[at], vectors[0].size if vectors else None))
        for name, index in kept.items():
            cells_of[name].append(cells[index])
    if not vectors:
        raise DataError(f"{path}: holds no rows")
    return Embeddings(np.stack(vectors), cells_of, manifest)


def _good_rows(path: Path, delimiter: str, n_columns: int) -> Iterator[tuple[int, list[str]]]:
    for row in read_rows(path, delimiter, n_columns):
        if isinstance(row, BadRow):
            raise DataError(f"{row.file}:{row.line}: {row.reason}")
        yield row.line, row.cells


def _vector(path: Path, line: int, text: str, dim: int | None) -> Vectors:
    try:
        vector = np.array(text.split(), dtype=np.float32)
    except ValueError:
        raise DataError(f"{path}:{line}: the vector is not numbers between spaces: {text[:60]!r}") from None
    if vector.size == 0:
        raise DataError(f"{path}:{line}: the vector is empty")
    if dim is not None and vector.size != dim:
        raise DataError(f"{path}:{line}: the vector has {vector.size} numbers where the first has {dim}")
    if not np.isfinite(vector).all():
        raise DataError(f"{path}:{line}: the vector holds nan or inf")
    return vector
