"""Each distinct text once: which rows of a shard share a vector, and which of them are known already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from ebr.data.vectors.batch import Vectors
from ebr.inference.job.store import DIGEST_BYTES, Known, VectorStore, row_digest, text_digest
from ebr.model.compute.engine import Engine, OnBatch, UnfitTexts
from ebr.model.encoder.batching import Bools


class Dedup(str, Enum):
    """Among which texts a distinct one is encoded once."""

    SHARD = "shard"
    GLOBAL = "global"
    NONE = "none"


@dataclass(frozen=True)
class RowDigests:
    """What stands for N rows in a store: 16 bytes for each text, each key, and both together."""

    texts: list[bytes]
    keys: list[bytes]
    rows: list[bytes]

    @classmethod
    def of(cls, texts: Sequence[str], keys: Sequence[str] | None) -> RowDigests:
        """Of N texts and their keys; without keys, of the texts alone."""
        of_texts = [text_digest(text) for text in texts]
        if keys is None:
            return cls(of_texts, [], [])
        of_keys = [text_digest(key) for key in keys]
        return cls(of_texts, of_keys, [row_digest(key, text) for key, text in zip(of_keys, of_texts, strict=True)])

    def table(self, cut: Bools) -> npt.NDArray[np.uint8]:
        """(N, 33): the digest of each row's key and of its text, and whether that is cut, side by side."""
        rows = [key + text for key, text in zip(self.keys, self.texts, strict=True)]
        digests = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), 2 * DIGEST_BYTES)
        return np.column_stack([digests, cut.astype(np.uint8)])


@dataclass(frozen=True)
class EncodedRows:
    """The vectors of N rows, and where they come from."""

    vectors: Vectors
    """(N, D); nan where the model cannot embed a text."""
    unfit: dict[int, str]
    """Rows whose text it cannot embed, and why not."""
    n_encoded: int
    """Texts that went through the model, now or before this very shard was interrupted."""
    cut: Bools
    """(N,) rows whose text is longer than the model reads."""
    n_reused: int = 0
    """Rows that the run before had with the same text."""
    n_changed: int = 0
    """Rows whose key the run before had with another text."""


class DistinctEncoder:
    """Encodes the rows of shards, each distinct text once: of a shard, or (GLOBAL) of all that came before as well.

    incremental: rows whose key and text the store holds from the run before are taken over.
    """

    def __init__(self, engine: Engine, dedup: Dedup, store: VectorStore | None = None, *, incremental: bool = False) -> None:
        if store is None and (incremental or dedup is Dedup.GLOBAL):
            raise ValueError("a store is needed")
        self.engine = engine
        self.dedup = dedup
        self.incremental = incremental
        self._store = store

    def encode(self, texts: Sequence[str], digests: RowDigests | None, on_batch: OnBatch, shard: str = "") -> EncodedRows:
        """The vectors of N texts. digests: of these rows; needed where there is a store. shard: what stands for these rows."""
        known = self._known(digests, shard)
        missing = [row for row in range(len(texts)) if row not in known.rows]
        wanted = [texts[row] for row in missing]
        distinct, place = (wanted, np.arange(len(wanted))) if self.dedup is Dedup.NONE else _distinct(wanted)
        encoded, unfit, cut = _encode(self.engine, distinct, on_batch)
        vectors = np.empty((len(texts), self.engine.dim), dtype=np.float32)
        for row, one in known.rows.items():
            vectors[row] = one.vector
        vectors[missing] = encoded[place]
        is_cut = self._known_cut(texts, known)
        is_cut[missing] = cut[place]
        if self.dedup is Dedup.GLOBAL and self._store and digests and missing:
            by_place = dict(zip(place.tolist(), (digests.texts[row] for row in missing), strict=True))
            whole = [index for index in range(len(encoded)) if index not in unfit]
            self._store.add([by_place[index] for index in whole], encoded[whole], cut=cut[whole].tolist(), shard=shard)
        failed = {row: unfit[index] for row, index in zip(missing, place.tolist(), strict=True) if index in unfit}
        return EncodedRows(vectors, failed, len(distinct) + known.n_own, is_cut, known.n_reused, known.n_changed)

    def _known_cut(self, texts: Sequence[str], known: _KnownRows) -> Bools:
        """(N,) which of the known rows are cut; where an earlier version did not say, their texts are looked at."""
        cut = np.zeros(len(texts), dtype=np.bool_)
        for row, one in known.rows.items():
            cut[row] = bool(one.cut)
        unsaid = [row for row, one in known.rows.items() if one.cut is None]
        if unsaid:
            cut[unsaid] = self.engine.cut(self.engine.prepare([texts[row] for row in unsaid]))
        return cut

    def _known(self, digests: RowDigests | None, shard: str) -> _KnownRows:
        if self._store is None or digests is None:
            return _KnownRows({}, 0, 0, 0)
        known: dict[int, Known] = {}
        n_changed = n_own = 0
        if self.incremental:
            before = self._store.get(digests.rows)
            known = {row: before[digest] for row, digest in enumerate(digests.rows) if digest in before}
            keys = self._store.known_keys(digests.keys)
            n_changed = sum(key in keys and row not in known for row, key in enumerate(digests.keys))
        n_reused = len(known)
        if self.dedup is Dedup.GLOBAL:
            others = self._store.get(list(dict.fromkeys(digests.texts)))
            known = {row: others[digest] for row, digest in enumerate(digests.texts) if digest in others} | known
            n_own = sum(other.shard == shard for other in others.values())
        return _KnownRows(known, n_reused, n_changed, n_own)


@dataclass(frozen=True)
class _KnownRows:
    """What a store holds of the rows of a shard."""

    rows: dict[int, Known]
    n_reused: int
    n_changed: int
    n_own: int
    """Texts that this shard left there itself, before it was interrupted."""


def _distinct(texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct texts in the order they first come, and for each text which of them it is."""
    place: dict[str, int] = {}
    row_of = np.fromiter((place.setdefault(text, len(place)) for text in texts), dtype=np.int64, count=len(texts))
    return list(place), row_of


def _encode(engine: Engine, texts: Sequence[str], on_batch: OnBatch) -> tuple[Vectors, dict[int, str], Bools]:
    """The vectors of N texts, those that get none, and which are cut."""
    prepared = engine.prepare(texts)
    try:
        vectors, unfit = engine.compute(prepared, on_batch), {}
    except UnfitTexts as error:
        vectors, unfit = error.vectors, error.reasons
    return vectors, unfit, engine.cut(prepared)
