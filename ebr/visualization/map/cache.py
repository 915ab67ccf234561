"""What a map took long to compute, kept on disk: found again under the hash of the vectors and of everything that shaped it."""

from __future__ import annotations

import io
import json
import logging
import os
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebr.data.files.write import cache_home, write_aside
from ebr.data.text.terminal_text import cut_text
from ebr.data.versions import own_version
from ebr.errors import first_line

log = logging.getLogger(__name__)

MOST_BYTES = 2 * 2**30
_FORMAT = 1
_FACTS = "facts.json"
_SUFFIX = ".npz"
_BLOCK_BYTES = 32 * 2**20
_PARTIAL_LIVES_S = 24 * 3600
"""A file that is still being written is younger; an older one is what a killed run left."""
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "openTSNE", "umap-learn", "pynndescent", "numba")
FORMAT = 1
"""To be raised by whoever changes what is computed for a map, or how its vectors are read, within one version of EBR."""


@dataclass(frozen=True)
class CachedMap:
    """One entry: arrays by name, and facts as JSON gives them back (tuples are lists)."""

    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]


def digest_of(vectors: NDArray[Any]) -> str:
    """sha256 over the dtype, shape and bytes of an array; by blocks, so that one mapped from a file need not fit memory."""
    digest = sha256(f"{vectors.dtype.str} {vectors.shape}".encode())
    n_rows = max(1, _BLOCK_BYTES // max(1, vectors[:1].nbytes))
    for start in range(0, len(vectors), n_rows):
        digest.update(np.ascontiguousarray(vectors[start : start + n_rows]).data)
    return digest.hexdigest()


def key_of(vectors: NDArray[Any] | str, settings: Mapping[str, Any]) -> str:
    """The name of an entry: changes with the vectors, with any setting, with the libraries that project and with our code.

    vectors: (N, D), or what digest_of said of them. settings: anything that JSON holds; the order of keys does not matter.
    """
    made_of = {
        "format": _FORMAT,
        "vectors": vectors if isinstance(vectors, str) else digest_of(vectors),
        "settings": settings,
        "made_by": _makers(),
    }
    return sha256(json.dumps(made_of, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@cache
def _makers() -> dict[str, str | int]:
    makers: dict[str, str | int] = {"ebr": own_version(), "format": FORMAT}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            makers[name] = version(name)
    return makers


class MapCache:
    """Entries in a folder, each one file: a zip of .npy arrays and a JSON document, no pickle; zip keeps a checksum of each.

    folder: default $EBR_CACHE_DIR/maps, or ~/.cache/ebr/maps. most_bytes: what all entries may fill; those used longest ago go
    first. A cache never stops a run: a broken file is a miss, a full disk a warning. Several processes may share it: an entry
    appears whole, by a rename, and two that store the same key store the same thing.
    """

    def __init__(self, folder: Path | None = None, *, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder if folder is not None else default_folder()
        self.most_bytes = most_bytes

    def load(self, key: str) -> CachedMap | None:
        """An entry, or None where there is none that is whole; one that is broken is said, and removed."""
        path = self._path(key)
        try:
            found = _read(path, key)
        except FileNotFoundError:
            return None
        except Exception as error:  # zipfile has half a dozen for bytes that are wrong, and none of them may stop a run
            log.warning("%s: broken, so it is computed again (%s)", path, cut_text(str(error), 80) or type(error).__name__)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(path)  # sweep removes by last use
        return found

    def store(self, key: str, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Keep arrays (of numbers; by names that are file names) and facts (JSON). Raises ValueError for arrays of objects."""
        path = self._path(key)
        try:
            with write_aside(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr(_FACTS, json.dumps({"key": key, "arrays": list(arrays), "facts": facts}))
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
        except OSError as error:
            log.warning("%s: not kept for the next time (%s)", path, first_line(error))
            return
        self.sweep(keep=path)

    def sweep(self, keep: Path | None = None) -> None:
        """Remove entries, those used longest ago first, until the rest fits; and what killed runs left half written."""
        with suppress(OSError):  # another run may be sweeping too
            now = time.time()
            for path in self.folder.glob(f".*.partial-*{_SUFFIX}"):
                if now - path.stat().st_mtime > _PARTIAL_LIVES_S:
                    path.unlink(missing_ok=True)
            entries = [(path.stat(), path) for path in self.folder.glob(f"*{_SUFFIX}") if not path.name.startswith(".")]
            excess = sum(stat.st_size for stat, _ in entries) - self.most_bytes
            for stat, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
                if excess <= 0:
                    return
                if path != keep:
                    path.unlink(missing_ok=True)
                    excess -= stat.st_size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


def default_folder() -> Path:
    """Where maps are kept: maps in $EBR_CACHE_DIR, or in ~/.cache/ebr."""
    return cache_home() / "maps"


def _read(path: Path, key: str) -> CachedMap:
    # Each member is read to its end at once, which is where zipfile compares its checksum.
    with zipfile.ZipFile(path) as archive:
        record = json.loads(archive.read(_FACTS))
        if record["key"] != key:
            raise ValueError("it holds another entry")
        arrays = {
            name: np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
            for name in record["arrays"]
        }
    return CachedMap(arrays, record["facts"])
