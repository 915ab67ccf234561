"""Texts of training, tokenised once: in parallel, into an Arrow file keyed by the data, the tokenizer and the lengths."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from ebr.data.files.write import cache_home, write_aside
from ebr.data.progress import progress_bar
from ebr.errors import ModelError, first_line
from ebr.model.encoder.batching import Ints, Tokens
from ebr.model.encoder.text_reader import Prepared, TextReader
from ebr.model.files.tokenizer import spelling_of

log = logging.getLogger(__name__)

_BLOCK = 16_384
"""Texts of one record batch: what is in memory at once while the file is made."""
_SHOWN = 60
_MOST_FILES = 16
_FEWEST_TEXTS = 2_000
"""Fewer are tokenised in a moment, and need no file."""
_BAR_FROM_TEXTS = 50_000
_FORMAT = "1"
_LISTS = pa.list_(pa.int32())
_SCHEMA = pa.schema([pa.field("ids", _LISTS), pa.field("type_ids", _LISTS)])


class TokenCache:
    """The tokens of the distinct texts of one role, looked up; what noise has changed is tokenised when it is asked for.

    texts: in a fixed order. folder: where the file lies, see cache_folder; None = keep the tokens in memory.
    """

    def __init__(self, reader: TextReader, texts: Sequence[str], folder: Path | None = None) -> None:
        self.reader = reader
        first = reader.prepare(texts[:1])
        self.prompt_length = first.prompt_length
        self.reads_tokens = first.tokens is not None
        """Whether the model takes plain tokens; if not, texts go through its own preprocess each time they are embedded."""
        self.places = {text: place for place, text in enumerate(texts)} if self.reads_tokens else {}
        self._blocks = self._tokenised(texts, folder) if self.reads_tokens else []
        if not self.reads_tokens:
            self._fitting(texts)

    def prepare(self, texts: Sequence[str]) -> Prepared:
        """The texts as the embedder takes them, in their order."""
        if not self.reads_tokens:
            return self._fitting(texts)
        places = [self.places.get(text, -1) for text in texts]
        new = [text for text, place in zip(texts, places, strict=True) if place < 0]
        fresh = self._fit(new) if new else None
        rows, n_new = [], 0
        for place in places:
            if place < 0 and fresh is not None:
                rows.append((fresh, n_new))
                n_new += 1
            else:
                rows.append((self._blocks[place // _BLOCK], place % _BLOCK))
        tokens = _gathered(rows)
        return Prepared([], tokens, tokens.lengths, self.prompt_length)

    def lengths(self) -> Ints:
        """(N,) tokens of each distinct text, the longest that the model keeps at most; empty where it takes no plain tokens."""
        return np.concatenate([np.empty(0, np.int64), *(block.lengths for block in self._blocks)])

    # ------------------------------------------------------------ the file

    def _tokenised(self, texts: Sequence[str], folder: Path | None) -> list[Tokens]:
        if folder is None or len(texts) < _FEWEST_TEXTS:
            return list(self._blocks_of(texts))
        path = folder / f"{self._key(texts)}.arrow"
        found = _read(path, len(texts))
        if found is not None:
            return found
        try:
            self._write(path, texts)
        except (OSError, UnicodeError) as error:  # Arrow opens no name that is not UTF-8
            log.warning("%s: tokens are kept in memory, for the file cannot be written (%s)", path, first_line(error))
            return list(self._blocks_of(texts))
        written = _read(path, len(texts))
        return list(self._blocks_of(texts)) if written is None else written

    def _blocks_of(self, texts: Sequence[str]) -> Iterator[Tokens]:
        with progress_bar(total=len(texts), desc="tokenise", unit="text", disable=len(texts) < _BAR_FROM_TEXTS) as bar:
            for start in range(0, len(texts), _BLOCK):
                block = texts[start : start + _BLOCK]
                yield self._fit(block)
                bar.update(len(block))

    def _fit(self, texts: Sequence[str]) -> Tokens:
        prepared = self._fitting(texts)
        assert prepared.tokens is not None  # reads_tokens
        return prepared.tokens

    def _fitting(self, texts: Sequence[str]) -> Prepared:
        """The texts as the embedder takes them. Raises ModelError for one that the model cannot embed."""
        prepared = self.reader.prepare(texts)
        for index, reason in prepared.unfit.items():
            raise ModelError(
                f"training text {texts[index][:_SHOWN]!r} {reason}; leave it out, or grow the table with the tokenizer"
            )
        return prepared

    def _key(self, texts: Sequence[str]) -> str:
        """Changes with anything that changes a token: the tokenizer, the prompt, the length, the texts and their order."""
        digest = hashlib.sha256("\0".join([_FORMAT, self.reader.task, self.reader.prompt, *_makes(self.reader)]).encode())
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()[:32]

    def _write(self, path: Path, texts: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as file:
            for tokens in self._blocks_of(texts):
                columns = [_column(tokens.ids, tokens), _column(tokens.type_ids, tokens)]
                file.write_batch(pa.record_batch(columns, schema=_SCHEMA))


def cache_folder() -> Path:
    """Where the files lie: tokens in $EBR_CACHE_DIR, or in ~/.cache/ebr."""
    return cache_home() / "tokens"


def _makes(reader: TextReader) -> Iterator[str]:
    """What tokens depend on beside the texts."""
    first = reader.model[0]
    tokenizer = first.tokenizer
    yield json.dumps(spelling_of(tokenizer), sort_keys=True, default=str)
    yield f"{type(tokenizer).__name__} {tokenizer.pad_token_id} {reader.n_rows}"
    yield f"{tokenizer.model_max_length} {first.query_length} {first.document_length} {first.max_seq_length}"


def _column(values: Ints | None, tokens: Tokens) -> pa.Array:
    if values is None:
        return pa.nulls(len(tokens), _LISTS)
    return pa.ListArray.from_arrays(pa.array(tokens.offsets, pa.int32()), pa.array(values, pa.int32()))


def _read(path: Path, n_texts: int) -> list[Tokens] | None:
    """The blocks of a file, mapped and not loaded; None where there is no whole one."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [table.get_batch(index) for index in range(table.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)  # a disk can fail where a rename did not
    except (OSError, UnicodeError, pa.ArrowException) as error:
        log.debug("%s: %s", path, error)
        return None
    sizes = [_BLOCK] * (n_texts // _BLOCK) + [n_texts % _BLOCK] * bool(n_texts % _BLOCK)
    if [batch.num_rows for batch in batches] != sizes or table.schema != _SCHEMA:
        return None
    with suppress(OSError):  # another's file, or one on a read-only disk
        os.utime(path)  # the files used last are kept
    return [_block(batch) for batch in batches]


def _block(batch: pa.RecordBatch) -> Tokens:
    ids, type_ids = batch.column(0), batch.column(1)
    offsets = ids.offsets.to_numpy().astype(np.int64)
    has_types = type_ids.null_count == 0
    return Tokens(ids.values.to_numpy(), type_ids.values.to_numpy() if has_types else None, offsets)


def sweep(folder: Path, at_least: int) -> None:
    """Delete all files but those used last: sixteen, or as many as a run uses itself."""
    with suppress(OSError):  # another run may be sweeping too
        files = sorted(folder.glob("*.arrow"), key=lambda path: path.stat().st_mtime)
        for path in files[: -max(_MOST_FILES, at_least)]:
            path.unlink(missing_ok=True)


def _gathered(rows: Sequence[tuple[Tokens, int]]) -> Tokens:
    """Texts out of several blocks as one."""
    spans = [(tokens, int(tokens.offsets[place]), int(tokens.offsets[place + 1])) for tokens, place in rows]
    empty = np.empty(0, np.int64)
    ids = np.concatenate([empty, *(tokens.ids[start:end] for tokens, start, end in spans)])
    type_ids = [tokens.type_ids[start:end] for tokens, start, end in spans if tokens.type_ids is not None]
    offsets = np.concatenate([[0], np.cumsum([end - start for _, start, end in spans], dtype=np.int64)]).astype(np.int64)
    return Tokens(ids, np.concatenate([empty, *type_ids]) if len(type_ids) == len(spans) else None, offsets)


def pooled(parts: Sequence[Tokens]) -> Tokens:
    """Several records of tokens as one, in their order."""
    return _gathered([(tokens, place) for tokens in parts for place in range(len(tokens))])
