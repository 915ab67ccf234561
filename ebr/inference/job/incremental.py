"""Changed daily tables: the vectors of the finished output, by key and text, for the run over the tables of today."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ebr.data.files.write import Digests, read_manifest
from ebr.data.vectors.embeddings import iterate_embeddings
from ebr.inference.job.ledger import Finished
from ebr.inference.job.parts import PartOptions
from ebr.inference.job.store import DIGEST_BYTES, VectorStore, row_digest

log = logging.getLogger(__name__)

_CUT = 2 * DIGEST_BYTES
"""Where it stands, behind the digests of a row, whether its text was cut."""
_UNSAID = 2


def fill_store(output_path: Path, finished: Finished, options: PartOptions, digests: Digests) -> None:
    """Put every row of a finished output into the store, once; nothing when it is not there any more, or less exact than asked.

    digests: that the run takes of the output's files.
    Killed meanwhile, it begins anew: a store is whole or not used.
    """
    assert options.store_path is not None
    store = VectorStore(options.store_path)
    ready = f"all rows of {finished.inputs_sha256}".encode()
    try:
        if store.known_keys([ready]):
            return
        if not _is_there(output_path, finished, options.vector_dtype):
            log.warning("%s: is not what the last run finished, or holds float16: no vector of it is taken over", output_path)
            return
        if not all(options.digests_path(key).is_file() for key in finished.keys):
            log.warning("%s: the record of its keys is gone: no vector of it is taken over", output_path)
            return
        of_rows = _Table(options.digests_path(key) for key in finished.keys)
        for batch in iterate_embeddings(output_path, options.schema.delimiter, columns={}, digests=digests):
            keys, texts, cut = of_rows.take(len(batch.vectors))
            rows = [row_digest(key, text) for key, text in zip(keys, texts, strict=True)]
            store.add(rows, batch.vectors, cut=cut, keys=keys)
        store.add([], np.empty((0, 0), dtype=np.float32), keys=[ready])
    finally:
        store.close()


def _is_there(output_path: Path, finished: Finished, dtype: str) -> bool:
    """Whether the output is still the one that was finished, its vectors as exact as those to come."""
    manifest = read_manifest(output_path) if output_path.exists() else None
    return (
        manifest is not None
        and manifest.get("inputs_sha256") == finished.inputs_sha256
        and manifest.get("dtype") in {"float32", dtype}
    )


class _Table:
    """The rows of several digest files in a row."""

    def __init__(self, paths: Iterator[Path]) -> None:
        self._tables = map(_digests, paths)
        self._rest: npt.NDArray[np.uint8] = np.empty((0, _CUT + 1), dtype=np.uint8)

    def take(self, n_rows: int) -> tuple[list[bytes], list[bytes], list[bool | None]]:
        """The digests of the keys and of the texts of the next N rows, and whether the texts were cut."""
        while len(self._rest) < n_rows:
            self._rest = np.concatenate([self._rest, next(self._tables)])
        now, self._rest = self._rest[:n_rows], self._rest[n_rows:]
        cut = [None if said == _UNSAID else bool(said) for said in now[:, _CUT].tolist()]
        return [row[:DIGEST_BYTES].tobytes() for row in now], [row[DIGEST_BYTES:_CUT].tobytes() for row in now], cut


def _digests(path: Path) -> npt.NDArray[np.uint8]:
    """(N, 33), as RowDigests makes them; files of an earlier version do not say which texts were cut."""
    table: npt.NDArray[np.uint8] = np.load(path, allow_pickle=False)
    return table if table.shape[1] > _CUT else np.column_stack([table, np.full(len(table), _UNSAID, dtype=np.uint8)])
