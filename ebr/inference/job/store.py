"""Vectors of texts that were met before, on disk: what one shard has encoded, another need not.

Memory stays that of SQLite's page cache however many texts there are. A transaction holds all of a shard or nothing, so a run
that was killed finds whole shards.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ebr.data.files.locks import why_no_record_locks
from ebr.data.vectors.batch import Vectors
from ebr.errors import DataError

DIGEST_BYTES = 16
_PATIENCE_S = 600
_RETRY_S = 0.02
# SQLite takes 32,766 parameters a statement; older builds 999.
_MOST_PARAMETERS = 900
_DO_WITHOUT = "write to another disk, or do without dedup global and incremental_key"


def text_digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def row_digest(key: bytes, text: bytes) -> bytes:
    """16 bytes that stand for a text under a key, made of the digests of both."""
    return hashlib.blake2b(key + text, digest_size=DIGEST_BYTES, person=b"row").digest()


class Known(NamedTuple):
    """A vector, (D,) float32, the shard that left it here, and whether its text was cut (None: nobody said)."""

    vector: Vectors
    shard: str
    cut: bool | None


class VectorStore:
    """digest → vector, and the keys that were seen with any text. One writer at a time; the others wait.

    The file is opened when it is first asked for something: until then it may be removed. Every method raises DataError when
    the file cannot be used, mostly because the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: sqlite3.Connection | None = None
        self._opening = threading.Lock()

    def get(self, digests: Sequence[bytes]) -> dict[bytes, Known]:
        """The known ones of these digests."""
        rows = self._select("SELECT digest, vector, shard, cut FROM vectors", digests)
        return {
            digest: Known(np.frombuffer(vector, dtype=np.float32), shard, None if cut is None else bool(cut))
            for digest, vector, shard, cut in rows
        }

    def known_keys(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of these digests of keys that were seen before."""
        return {digest for (digest,) in self._select("SELECT digest FROM keys", digests)}

    def add(
        self,
        digests: Iterable[bytes],
        vectors: Vectors,
        *,
        cut: Iterable[bool | None] | None = None,
        keys: Iterable[bytes] = (),
        shard: str = "",
    ) -> None:
        """Put vectors, (N, D) float32, of a shard under N digests, all or none; a digest that has one keeps it.

        cut: whether their texts were cut; None = nobody says.
        """
        said = [None] * len(vectors) if cut is None else cut
        rows = (
            (digest, vector.tobytes(), shard, is_cut) for digest, vector, is_cut in zip(digests, vectors, said, strict=True)
        )
        with self._usable() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?, ?)", rows)
                db.executemany("INSERT OR IGNORE INTO keys VALUES (?)", ((key,) for key in keys))
                db.execute("COMMIT")
            finally:
                if db.in_transaction:  # a full disk may have ended it already
                    db.execute("ROLLBACK")

    def close(self) -> None:
        """Let go of the file."""
        if self._opened:
            self._opened.close()

    def _select(self, what: str, digests: Sequence[bytes]) -> list[Any]:
        rows: list[Any] = []
        with self._usable() as db:
            for start in range(0, len(digests), _MOST_PARAMETERS):
                some = digests[start : start + _MOST_PARAMETERS]
                rows += db.execute(f"{what} WHERE digest IN ({','.join('?' * len(some))})", some)
        return rows

    @contextmanager
    def _usable(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._opening:
                if self._opened is None:
                    self._opened = _connect(self.path)
            yield self._opened
        except sqlite3.OperationalError as error:
            mend = f"another process holds it; {_DO_WITHOUT}" if "lock" in str(error) else "make room on the disk"
            raise DataError(f"{self.path}: cannot be used ({error}); {mend}") from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path}: is damaged ({error}); delete it") from error


def _to_write_ahead_log(db: sqlite3.Connection) -> None:
    """Have the file written ahead; SQLite does not wait for others who switch it at the same moment, so we do."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    if reason := why_no_record_locks(path.parent):
        raise DataError(f"{path}: no locks on its file system ({reason}), which workers need to share it; {_DO_WITHOUT}")
    db = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
    _to_write_ahead_log(db)
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(
        "CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, vector BLOB, shard TEXT, cut INTEGER) WITHOUT ROWID"
    )
    try:
        db.execute("ALTER TABLE vectors ADD COLUMN cut INTEGER")  # a store of an earlier version
    except sqlite3.OperationalError as error:
        if "duplicate column" not in str(error):
            raise
    db.execute("CREATE TABLE IF NOT EXISTS keys (digest BLOB PRIMARY KEY) WITHOUT ROWID")
    return db
