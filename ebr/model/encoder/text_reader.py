"""One model's way from texts to what its modules read: each text is tokenised once, and looked at before a pass."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import PreTrainedTokenizerBase

from ebr.errors import ModelError
from ebr.model.encoder.batching import NOT_LOOKED_AT, Bools, Ints, Tokens, packed_features, padded_features, tokenize
from ebr.model.encoder.lengths import first_module, kept_length, uncut
from ebr.model.files.tokenizer import AnyTokenizer, added_tokens, rows_of, table_of

# Where nothing says how many tokens a text has, only which texts are long matters.
_CHARACTERS_A_TOKEN = 4
_ROWLESS = "holds {!r}, for which the model has no embedding"
_NONE: Ints = np.empty(0, dtype=np.int64)
_KNOWN_FEATURES = {"input_ids", "token_type_ids", "attention_mask"}


def asks_for_role(model: SentenceTransformer) -> bool:
    """Whether a module of the model, a Router say, wants to be told if its texts are queries or documents."""
    return any("task" in getattr(module, "forward_kwargs", ()) for module in model)


def first_position_of(model: SentenceTransformer) -> int:
    """0; for RoBERTa and its kin, which number positions from padding_idx + 1, that number."""
    for module in model[0].model.modules():
        table, padding_idx = getattr(module, "position_embeddings", None), getattr(module, "padding_idx", None)
        if isinstance(table, torch.nn.Embedding) and isinstance(padding_idx, int):
            return padding_idx + 1
    return 0


@dataclass(frozen=True)
class Prepared:
    """N texts, tokenised where the model takes plain tokens, else tokens is None. lengths: (N,), in tokens.

    prompt_length: tokens of the prompt before each text, for a pooling that leaves them out; None without a prompt.
    wordless: texts that leave no token at all. unfit: those that the model has no row of its table for, and why.
    cut: (N,) texts that are longer than the model reads; without tokens, known once they have been in a pass: see mark_cut.
    """

    texts: list[str]
    tokens: Tokens | None
    lengths: Ints
    prompt_length: int | None
    wordless: Ints = field(default_factory=lambda: _NONE)
    unfit: Mapping[int, str] = field(default_factory=dict)
    cut: Bools = field(default_factory=lambda: NOT_LOOKED_AT)


class TextReader:
    """One model's way from texts to what its modules read; each text is tokenised once, by one thread at a time."""

    def __init__(self, model: SentenceTransformer, task: str, prompt: str) -> None:
        self.model = model
        self.task = task
        self.prompt = prompt
        # A fast tokenizer that two threads use at once raises "Already borrowed".
        self.lock = threading.Lock()

    def prepare(self, texts: Sequence[str]) -> Prepared:
        """Tokens of N texts; the texts themselves for a model that has its own way with them."""
        sample = ["a", "a b c d"]
        with self.lock:
            features = self._preprocess(sample)
            if not _takes_plain_tokens(self.model, features) or not self._agrees(features, self._tokenize(sample)):
                lengths = np.array([len(text) // _CHARACTERS_A_TOKEN + 1 for text in texts], dtype=np.int64)
                cut = np.zeros(len(texts), dtype=np.bool_)
                return Prepared(list(texts), None, lengths, None, unfit=self._naming_rowless(texts), cut=cut)
            tokens = self._tokenize(texts)
        prompt_length = features.get("prompt_length")
        wordless, unfit = self._wordless(tokens), self._beyond_table(tokens)
        return Prepared([], tokens, tokens.lengths, prompt_length, wordless, unfit, tokens.cut)

    def _wordless(self, tokens: Tokens) -> Ints:
        """Texts of which tokenize could only make a token of padding."""
        first = tokens.offsets[:-1]
        return np.flatnonzero((tokens.lengths == 1) & (tokens.ids[first] == self.model.tokenizer.pad_token_id))

    def _beyond_table(self, tokens: Tokens) -> dict[int, str]:
        """Texts with a token that the table of embeddings has no row for, and what it is: an error deep in a pass otherwise."""
        if self.n_rows is None or not tokens.ids.size or tokens.ids.max() < self.n_rows:
            return {}
        places = np.flatnonzero(tokens.ids >= self.n_rows)
        found: dict[int, str] = {}
        for text, place in zip(np.searchsorted(tokens.offsets, places, side="right") - 1, places, strict=True):
            token = self.model.tokenizer.convert_ids_to_tokens(int(tokens.ids[place]))
            found.setdefault(int(text), _ROWLESS.format(token))
        return found

    def _naming_rowless(self, texts: Sequence[str]) -> dict[int, str]:
        """As _beyond_table, where only the model can tell the tokens of a text: those that name such a token are tried."""
        found: dict[int, str] = {}
        for index, text in enumerate(texts if self._rowless else ()):
            if (token := next((one for one in self._rowless if one in text), None)) and self._exceeds(self._preprocess([text])):
                found[index] = _ROWLESS.format(token)
        return found

    def _exceeds(self, features: Mapping[str, Any]) -> bool:
        ids = features.get("input_ids")
        return self.n_rows is not None and isinstance(ids, torch.Tensor) and ids.numel() > 0 and int(ids.max()) >= self.n_rows

    @cached_property
    def _rowless(self) -> list[str]:
        """Special tokens that publishers add beyond the table."""
        tokenizer = getattr(self._first, "tokenizer", None)
        if self.n_rows is None or not isinstance(tokenizer, AnyTokenizer):
            return []
        return [str(token) for index, token in added_tokens(tokenizer).items() if index >= self.n_rows]

    @cached_property
    def _first(self) -> Any:  # noqa: ANN401
        return first_module(self.model, self.task)

    @cached_property
    def n_rows(self) -> int | None:
        """Rows of the table that token ids point into; None where it cannot be told."""
        first = self._first
        table = table_of(first.model) if isinstance(first, Transformer) else getattr(first, "embedding", None)
        return rows_of(table)

    def features(self, prepared: Prepared, batch: Ints, *, packed: bool) -> dict[str, Any]:
        """What the model's modules read of the texts of a batch, on its device. packed: laid end to end, else padded."""
        features: dict[str, Any]
        if prepared.tokens is None:
            with self.lock:
                features = self._preprocess([prepared.texts[index] for index in batch])
            if self._exceeds(features):
                raise ModelError(
                    f"a text holds token {int(features['input_ids'].max())}, where the model has {self.n_rows:,} embeddings; "
                    "leave it out"
                )
        elif packed:
            features = {"modality": "text", **packed_features(prepared.tokens, batch, self._first_position)}
        else:
            features = {"modality": "text", **padded_features(prepared.tokens, batch, self.model.tokenizer)}
        if prepared.prompt_length is not None:
            features["prompt_length"] = prepared.prompt_length
        return {name: _to_device(value, self.model.device) for name, value in features.items()}

    def mark_cut(self, prepared: Prepared, batch: Ints, features: Mapping[str, Any]) -> None:
        """Note which texts of a batch are cut, for a model that has its own way with them. features: of these texts.

        Those that are as long as can be are read again without a limit.
        """
        lengths = _lengths(features, len(batch)) if prepared.tokens is None and self._limit is not None else None
        if lengths is None or self._limit is None or not (full := batch[lengths >= self._limit]).size:
            return
        with self.lock, uncut(self.model, self.task):
            whole = _lengths(self._preprocess([prepared.texts[index] for index in full]), len(full))
        if whole is not None:
            prepared.cut[full] = whole > self._limit

    @cached_property
    def _limit(self) -> int | None:
        return kept_length(self.model, self.task)

    @cached_property
    def _first_position(self) -> int:
        return first_position_of(self.model)

    def _preprocess(self, texts: list[str]) -> dict[str, Any]:
        features: dict[str, Any] = self.model.preprocess(texts, prompt=self.prompt or None, task=self.task)
        return features

    def _tokenize(self, texts: Sequence[str]) -> Tokens:
        first = self.model[0]
        lengths = {"query": first.query_length, "document": first.document_length}
        return tokenize(first.tokenizer, texts, self.prompt, lengths.get(self.task))

    def _agrees(self, features: dict[str, Any], tokens: Tokens) -> bool:
        """Whether our tokens make the features that the model's own preprocess made of the same texts."""
        ours = padded_features(tokens, np.arange(len(tokens)), self.model.tokenizer)
        theirs = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _lengths(features: Mapping[str, Any], n_texts: int) -> Ints | None:
    """(N,) tokens of each text of a pass; None where they are not told."""
    mask, offsets = features.get("attention_mask"), features.get("offsets")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and len(mask) == n_texts:
        return np.asarray(mask.sum(1).cpu().numpy(), dtype=np.int64)
    if isinstance(offsets, torch.Tensor) and len(offsets) == n_texts:  # of an embedding bag: where each text begins
        return np.diff(np.append(offsets.cpu().numpy(), len(features["input_ids"]))).astype(np.int64)
    return None


def _to_device(value: Any, device: torch.device) -> Any:  # noqa: ANN401
    if not isinstance(value, torch.Tensor) or device.type == "cpu":
        return value
    if device.type == "cuda" and value.device.type == "cpu":
        # From pinned memory the copy runs while the device still computes the pass before.
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def _takes_plain_tokens(model: SentenceTransformer, features: Mapping[str, Any]) -> bool:
    """Whether texts can be tokenised once and batched here: a transformer that reads nothing but its tokenizer's output.

    features: what the model's own preprocess gives for two texts of unequal length; anything unknown in it leaves the work to
    preprocess, as do chat templates, processors of images, query expansion and options for the tokenizer.
    """
    first = model[0]
    if not isinstance(first, Transformer) or not isinstance(first.processor, PreTrainedTokenizerBase):
        return False
    plain = "text" in first.modality_config and "message" not in first.modality_config and not first.processing_kwargs
    known = _KNOWN_FEATURES | {"modality", "prompt_length"}
    return plain and first.query_expansion is None and {"input_ids", "attention_mask"} <= set(features) <= known
