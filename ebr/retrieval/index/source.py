"""The vectors that an index is made of, as a stream of blocks: ids checked, vectors scaled, never all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ebr.data.files.write import hash_file, manifest_path
from ebr.data.text.cut_texts import CutTexts
from ebr.data.vectors.batch import Columns, Vectors
from ebr.data.vectors.embeddings import VerifiedEmbeddings
from ebr.errors import DataError
from ebr.retrieval.index.kinds import Metric

BLOCK_ROWS = 4096
SAME_VECTORS = (
    "model_sha256", "architecture", "spelling_sha256", "pooling", "prompt", "max_seq_length", "passage_max_len", "normalized",
    "truncate_dim",
)  # fmt: skip
"""What vectors must have in common to lie in one index."""
UNRECORDED = ("architecture", "spelling_sha256")
"""Of these, what manifests did not record at first: where one side has none, nothing is known against it."""

_OF_QUERIES = ("model", "base_model_path", "whole_model_sha256", "query_prompt", "query_max_len")
_NAMED = 5


@dataclass(frozen=True)
class Block:
    """Consecutive rows: row first_row + i has ids[i], vectors[i] and columns[name][i]."""

    first_row: int
    ids: list[str]
    vectors: Vectors
    columns: Columns


@dataclass(frozen=True)
class VectorSource:
    """A finished vector file or folder, as an index sees it.

    id_column: None = ids are row numbers, from first_id on. keep: the columns that are stored, None = all.
    """

    files: VerifiedEmbeddings
    id_column: str | None
    keep: tuple[str, ...] | None
    metric: Metric
    n_rows: int
    dim: int
    columns: tuple[str, ...]
    """What is stored beside the id."""
    first_id: int = 0

    @property
    def path(self) -> Path:
        """Where the vectors lie."""
        return self.files.path

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What is recorded of them; None when they were made elsewhere."""
        return self.files.manifest

    def blocks(self) -> Iterator[Block]:
        """All rows, in their order; scaled to length 1 in a copy where the metric is the cosine.

        Raises DataError naming the row whose id is null or empty, or that has no direction.
        """
        row = 0
        for batch in self.files.batches(_wanted(self.id_column, self.keep), BLOCK_ROWS):
            n_rows = len(batch.vectors)
            if self.id_column is None:
                ids = [str(self.first_id + row + index) for index in range(n_rows)]
            else:
                ids = _checked_ids(self.path, row, self.id_column, batch.columns[self.id_column])
            vectors = scaled(batch.vectors, ids, self.path) if self.metric is Metric.COSINE else batch.vectors
            yield Block(row, ids, vectors, {name: batch.columns[name] for name in self.columns})
            row += n_rows

    @property
    def model(self) -> dict[str, Any]:
        """What the manifest says of the model that made the vectors, and of how it did; None where it says nothing."""
        manifest = self.manifest or {}
        options = manifest.get("config")
        facts = {**(options if isinstance(options, dict) else {}), **manifest} if "model_sha256" in manifest else manifest
        return {name: facts.get(name) for name in (*_OF_QUERIES, *SAME_VECTORS)}

    def facts(self) -> dict[str, Any]:
        """Which vectors these are, for the sidecar of an index: path, rows, and the hash of their manifest, if there is one."""
        manifest = manifest_path(self.path)
        digest = hash_file(manifest) if self.manifest is not None else None
        return {"path": str(self.path.resolve()), "n_rows": self.n_rows, "cut": self._cut(), "manifest_sha256": digest}

    def _cut(self) -> dict[str, Any] | None:
        """How many of the texts the model read only the beginning of; None where the manifest does not say."""
        manifest = self.manifest or {}
        if not isinstance(manifest.get("n_cut"), int):
            return None
        length = manifest.get("passage_max_len") or manifest.get("max_seq_length")
        return CutTexts(self.n_rows, manifest["n_cut"], length).to_json()


def open_source(
    files: VerifiedEmbeddings, id_column: str | None, keep: Sequence[str] | None, metric: Metric, *, first_id: int = 0
) -> VectorSource:
    """Look at the rows of find_embeddings: how many is in their manifest; without a manifest they are read once to count.

    Raises DataError naming what is absent or cannot be read.
    """
    path, n_rows, dim, names = files.path, 0, 0, []
    for batch in files.batches(_wanted(id_column, keep), BLOCK_ROWS):
        n_rows, dim, names = n_rows + len(batch.vectors), batch.vectors.shape[1], list(batch.columns)
        if files.manifest is not None:
            n_rows = int(files.manifest["n_rows"])
            break
    if id_column is not None and id_column not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise DataError(
            f"{path}: no column {id_column!r} (id_column); it has {known}; name the one with the ids, or none for row numbers"
        )
    columns = tuple(name for name in names if name != id_column) if keep is None else tuple(dict.fromkeys(keep))
    return VectorSource(
        files=files,
        id_column=id_column,
        keep=None if keep is None else tuple(keep),
        metric=metric,
        n_rows=n_rows,
        dim=dim,
        columns=columns,
        first_id=first_id,
    )


def _wanted(id_column: str | None, keep: Sequence[str] | None) -> dict[str, str] | None:
    """Columns to read, each with the option that names it; None = all."""
    if keep is None:
        return None
    return {**dict.fromkeys(keep, "output_columns"), **({id_column: "id_column"} if id_column is not None else {})}


def _checked_ids(path: Path, first_row: int, column: str, ids: Sequence[str | None]) -> list[str]:
    for row, name in enumerate(ids, start=first_row + 1):
        if not name:
            raise DataError(f"{path}: row {row}: {column!r} is {'null' if name is None else 'empty'}; every row needs an id")
    return [name for name in ids if name]


def scaled(vectors: Vectors, ids: Sequence[str], where: object) -> Vectors:
    """(N, D) vectors of length 1, in a new array. Raises DataError naming the row that is all zeros."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    if not lengths.all():
        row = int(np.argmin(lengths))
        raise DataError(f"{where}: the vector of {ids[row]!r} is all zeros and has no direction; leave the row out")
    unit: Vectors = (vectors / lengths[:, None]).astype(np.float32)
    return unit


class SeenIds:
    """Ids that must not come twice."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def add(self, ids: Sequence[str], where: object, mend: str) -> None:
        """Remember ids. Raises DataError naming the first few that came before; mend: what to do about it."""
        before = len(self._seen)
        twice = [name for name in ids if name in self._seen]
        self._seen.update(ids)
        if len(self._seen) - before < len(ids) - len(twice):  # within these
            fresh: set[str] = set()
            twice += [name for name in ids if name in fresh or fresh.add(name)]  # type: ignore[func-returns-value]
        if twice:
            names = ", ".join(map(repr, dict.fromkeys(twice[:_NAMED])))
            raise DataError(f"{where}: {names}{' and more' if len(twice) > _NAMED else ''} {mend}")


class Gathered:
    """Chosen rows of a stream, (n, D), in the order of their numbers."""

    def __init__(self, rows: npt.NDArray[np.int64], dim: int) -> None:
        self.rows = rows
        self.vectors = np.empty((len(rows), dim), dtype=np.float32)

    def take(self, block: Block) -> None:
        """Keep those of the chosen rows that are in this block."""
        start, stop = np.searchsorted(self.rows, [block.first_row, block.first_row + len(block.ids)])
        self.vectors[start:stop] = block.vectors[self.rows[start:stop] - block.first_row]
