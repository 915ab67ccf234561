"""Texts and their vectors on the disk, while something is looked for among them: neither need fit in memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ebr.data.likeness import normal_form

Vectors = npt.NDArray[np.float32]
Item = TypeVar("Item")

_DIGEST_BYTES = 16


class Texts:
    """Texts in a file, by row: 8 bytes of memory each."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("w+b")
        self._starts = array("q", [0])
        self._is_flushed = True

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> str:
        if not self._is_flushed:
            self._file.flush()
            self._is_flushed = True
        start, end = self._starts[row], self._starts[row + 1]
        return os.pread(self._file.fileno(), end - start, start).decode()

    def append(self, text: str) -> None:
        """Add a text; it can be read at once."""
        raw = text.encode()
        self._file.write(raw)
        self._starts.append(self._starts[-1] + len(raw))
        self._is_flushed = False

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Each text once, by its normal form, in the spelling that comes first. Takes a digest of each in memory, not the text."""
    seen: set[bytes] = set()
    for text in texts:
        digest = blake2b(normal_form(text).encode(), digest_size=_DIGEST_BYTES).digest()
        if digest not in seen:
            seen.add(digest)
            yield text


def embed_to_disk(
    texts: Iterable[str], encode: Callable[[Sequence[str]], Vectors], path: Path, *, block: int, desc: str, total: int | None
) -> Vectors:
    """N texts → (N, D) float32 vectors in a new file, mapped; `block` texts are in memory at once. (0, 0) for no texts.

    total: texts that are expected, for the bar; None = unknown.
    """
    n_texts, dim = 0, 0
    with path.open("wb") as file, tqdm(total=total, desc=desc, unit="text", dynamic_ncols=True, disable=total == 0) as bar:
        for some in blocks(texts, block):
            vectors = np.ascontiguousarray(encode(some), dtype=np.float32)
            file.write(vectors.data)
            n_texts, dim = n_texts + len(some), vectors.shape[1]
            bar.update(len(some))
    # An empty file cannot be mapped.
    return np.memmap(path, np.float32, "r", shape=(n_texts, dim)) if n_texts else np.empty((0, 0), np.float32)


def blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
