"""Texts and their vectors on the disk, while something is looked for among them: neither need fit in memory."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from ebr.data.files.write import naming
from ebr.data.progress import progress_bar
from ebr.data.text.normal_form import form_digest, normal_form, shingles
from ebr.data.vectors.batch import Vectors

Item = TypeVar("Item")

_MOST_KEPT = 1_000_000  # shingles, which with their set take some 150 bytes each
_CHARACTERS_A_SHINGLE = 32


class Texts:
    """Texts in a file without a name, by row: 8 bytes of memory each.

    folder: on whose disk the file lies; however the process ends, nothing is left of it.
    """

    def __init__(self, folder: Path) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)
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


class Likenesses:
    """Texts by row, with their normal form and shingles, which are kept for the texts that were read last.

    Counted by shingles and not by texts: one long Chinese text has tens of thousands.
    """

    def __init__(self, texts: Texts, most: int = _MOST_KEPT) -> None:
        self._texts, self._most = texts, most
        self._kept: OrderedDict[int, tuple[str, str, frozenset[str]]] = OrderedDict()
        self._size = 0

    def __getitem__(self, row: int) -> tuple[str, str, frozenset[str]]:
        found = self._kept.pop(row, None)
        if found is None:
            text = self._texts[row]
            found = text, normal_form(text), shingles(text)
            self._size += _size(found)
        self._kept[row] = found
        while self._size > self._most:
            self._size -= _size(self._kept.popitem(last=False)[1])
        return found


def _size(kept: tuple[str, str, frozenset[str]]) -> int:
    """What a text takes, in shingles; its characters count too, for those of a text that repeats itself."""
    text, _, words = kept
    return 1 + len(words) + len(text) // _CHARACTERS_A_SHINGLE


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Each text once, by its normal form, in the spelling that comes first. Takes a digest of each in memory, not the text."""
    seen: set[bytes] = set()
    for text in texts:
        digest = form_digest(normal_form(text))
        if digest not in seen:
            seen.add(digest)
            yield text


def embed_to_disk(
    texts: Iterable[str], encode: Callable[[Sequence[str]], Vectors], folder: Path, *, block: int, desc: str, total: int | None
) -> Vectors:
    """N texts → (N, D) float32 vectors in a file, mapped; `block` texts are in memory at once. (0, 0) for no texts.

    folder: on whose disk the file lies; it has no name, so that nothing is left however the process ends. total: texts that are
    expected, for the bar; None = unknown.
    """
    n_texts, dim = 0, 0
    bar = progress_bar(total=total, desc=desc, unit="text", disable=total == 0)
    with naming(folder), tempfile.TemporaryFile(dir=folder) as file, bar:
        for some in blocks(texts, block):
            vectors = np.ascontiguousarray(encode(some), dtype=np.float32)
            file.write(vectors.data)
            n_texts, dim = n_texts + len(some), vectors.shape[1]
            bar.update(len(some))
        file.flush()
        # An empty file cannot be mapped.
        return np.memmap(file, np.float32, "r", shape=(n_texts, dim)) if n_texts else np.empty((0, 0), np.float32)


def blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
