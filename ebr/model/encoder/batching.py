"""Texts → tokens → forward passes: which texts share one, how many tokens it may hold, and what goes into it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from transformers import BatchEncoding, PreTrainedTokenizerBase

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_CACHE_BYTES, _DEFAULT_CORE_CACHE_BYTES = 16 * 2**20, 2**20
# A rented machine names the last cache of the whole processor, which its neighbours use too.
_MOST_CACHE_BYTES = 32 * 2**20
# Tuned by benchmarks/encode.py: the widest activation of a pass, and as much again that is read or written beside it.
_CACHE_SHARE = 0.5
_FEWEST_TOKENS, _MOST_TOKENS_CPU, _MOST_TOKENS_CUDA = 512, 16384, 65536
_CUDA_SHARE = 0.4
# Measured on a core with AMX and 2 MiB, all-MiniLM-L6-v2: 1,024 to 2,048 tokens are best, 4,096 lose 15 %, 8,192 half.
_CORE_CACHES, _MOST_TOKENS_A_CORE = 2, 2048
_DEFAULT_WIDTH = 4096
# Where nothing says how many tokens a text has, only which texts are long matters.
_CHARACTERS_A_TOKEN = 4
# A tokenizer's own record of a text is many times as large as its tokens; a shard of them would be gigabytes.
_TEXTS_A_CALL = 1024
_NONE: Ints = np.empty(0, dtype=np.int64)
NOT_LOOKED_AT: Bools = np.empty(0, dtype=np.bool_)
_KNOWN_FEATURES = {"input_ids", "token_type_ids", "attention_mask"}


def token_budget_batches(
    lengths: Sequence[int] | Ints, token_budget: int, *, batch_size: int | None = None, padded: bool = True
) -> list[Ints]:
    """Indices of the texts of each forward pass; a pure function of the arguments.

    lengths: in tokens. The longest come first, so that a pass that does not fit in memory fails at once; texts of equal length
    keep their order. A pass costs longest × rows when padded, the sum of its lengths otherwise, and no more than token_budget;
    a text beyond it goes alone. batch_size: most texts a pass; None = as many as the budget lets in.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    sums = np.concatenate([[0], np.cumsum(counts[order])])
    batches, start = [], 0
    while start < len(order):
        if padded:
            end = start + int(token_budget // max(1, counts[order[start]]))
        else:
            end = int(np.searchsorted(sums, sums[start] + token_budget, side="right")) - 1
        end = max(start + 1, end)
        if batch_size is not None:
            end = min(end, start + batch_size)
        batches.append(order[start:end])
        start = end
    return batches


def cost_of(lengths: Ints, *, padded: bool) -> int:
    """Tokens that a pass over texts of these lengths computes, those of the padding included."""
    return int(lengths.max() * len(lengths)) if padded else int(lengths.sum())


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, one after another: text i is ids[offsets[i]:offsets[i + 1]]. type_ids: None where the model has none.

    cut: (N,) whether a text had more tokens than are kept; NOT_LOOKED_AT where nobody asked.
    """

    ids: Ints
    type_ids: Ints | None
    offsets: Ints
    cut: Bools = field(default_factory=lambda: NOT_LOOKED_AT)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """(N,) tokens of each text."""
        return np.diff(self.offsets)

    def rows(self, flat: Ints, batch: Ints) -> Ints:
        """The values that `flat`, one of this record's arrays, has for the texts of a batch, one after another."""
        return np.concatenate([flat[self.offsets[index] : self.offsets[index + 1]] for index in batch])


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prompt: str = "", max_length: int | None = None
) -> Tokens:
    """Tokens of N texts, each once and without padding. max_length: None = the tokenizer's own."""
    starts = range(0, len(texts), _TEXTS_A_CALL)
    some = [_tokenize_some(tokenizer, texts[start : start + _TEXTS_A_CALL], prompt, max_length) for start in starts]
    type_ids = [one.type_ids for one in some if one.type_ids is not None]
    lengths = np.concatenate([_NONE, *(one.lengths for one in some)])
    return Tokens(
        np.concatenate([_NONE, *(one.ids for one in some)]),
        np.concatenate([_NONE, *type_ids]) if len(type_ids) == len(some) else None,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([NOT_LOOKED_AT, *(one.cut for one in some)]),
    )


def _tokenize_some(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prompt: str, max_length: int | None) -> Tokens:
    encoded = tokenizer(
        [prompt + text for text in texts],
        padding=False,
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,
    )
    # A text that leaves no token at all becomes one of padding: a pass cannot hold an empty row.
    ids = [row or [tokenizer.pad_token_id] for row in encoded["input_ids"]]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids], dtype=np.int64)]).astype(np.int64)
    type_ids = [row or [0] for row in encoded["token_type_ids"]] if "token_type_ids" in encoded else None
    return Tokens(
        _flat(ids), None if type_ids is None else _flat(type_ids), offsets, _cut(tokenizer, encoded, texts, prompt, max_length)
    )


def _cut(
    tokenizer: PreTrainedTokenizerBase, encoded: BatchEncoding, texts: Sequence[str], prompt: str, max_length: int | None
) -> Bools:
    """(N,) which texts had more tokens than were kept. Only those that are as long as can be are looked at."""
    limit = tokenizer.model_max_length if max_length is None else max_length
    cut = np.zeros(len(texts), dtype=np.bool_)
    for place, row in enumerate(encoded["input_ids"]):
        if len(row) < limit:
            continue
        if encoded.encodings is not None:
            cut[place] = bool(encoded.encodings[place].overflowing)
        else:  # a slow tokenizer does not say what it left out
            cut[place] = len(tokenizer(prompt + texts[place], truncation=False, verbose=False)["input_ids"]) > len(row)
    return cut


def _flat(rows: Sequence[Sequence[int]]) -> Ints:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64)


def padded_features(tokens: Tokens, batch: Ints, tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """What the tokenizer itself would give for these texts: each feature (B, longest), padded on the tokenizer's side."""
    lengths = tokens.lengths[batch][:, None]
    places = np.arange(lengths.max())
    filled = places < lengths if tokenizer.padding_side == "right" else places >= lengths.max() - lengths
    features = {"input_ids": _spread(tokens.rows(tokens.ids, batch), filled, tokenizer.pad_token_id)}
    if tokens.type_ids is not None:
        features["token_type_ids"] = _spread(tokens.rows(tokens.type_ids, batch), filled, tokenizer.pad_token_type_id)
    return features | {"attention_mask": torch.from_numpy(filled.astype(np.int64))}


def _spread(values: Ints, filled: npt.NDArray[np.bool_], padding: int) -> torch.Tensor:
    spread = np.full(filled.shape, padding, dtype=np.int64)
    spread[filled] = values
    return torch.from_numpy(spread)


def packed_features(tokens: Tokens, batch: Ints, first_position: int) -> dict[str, Any]:
    """The texts of a batch, T tokens, as one row: each feature (1, T), and where each text begins.

    first_position: number of a text's first position, see first_position_of.
    """
    lengths = tokens.lengths[batch]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths) + first_position
    features: dict[str, Any] = {
        "input_ids": torch.from_numpy(tokens.rows(tokens.ids, batch)[None]),
        "position_ids": torch.from_numpy(positions[None]),
        "cu_seq_lens_q": torch.from_numpy(starts.astype(np.int32)),
        # Else the pooling counts it out itself, and waits for the GPU to do so.
        "seq_idx": torch.from_numpy(np.repeat(np.arange(len(batch), dtype=np.int32), lengths)[None]),
        "max_length_q": int(lengths.max()),
        "max_length_k": int(lengths.max()),
    }
    features["cu_seq_lens_k"] = features["cu_seq_lens_q"]
    if tokens.type_ids is not None:
        features["token_type_ids"] = torch.from_numpy(tokens.rows(tokens.type_ids, batch)[None])
    return features


def cache_bytes(folder: Path = CACHE_FOLDER, *, level: int | None = None) -> int:
    """The largest cache of this processor, or the one of this level; 16 MiB, or 1 MiB, where the system does not say."""
    default = _DEFAULT_CACHE_BYTES if level is None else _DEFAULT_CORE_CACHE_BYTES
    sizes = []
    for file in sorted(folder.glob("index*/size")):
        if level is not None and file.with_name("level").read_text(encoding="ascii").strip() != str(level):
            continue
        text = file.read_text(encoding="ascii").strip()
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        if text.rstrip("KMG").isdigit():
            sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes, default=default)


def _widths(model: SentenceTransformer) -> tuple[int, int]:
    """Numbers that a token is, between layers and at most within one."""
    config = getattr(getattr(model[0], "model", None), "config", None)
    hidden = getattr(config, "hidden_size", None) or getattr(config, "dim", None) or _DEFAULT_WIDTH // 4
    return hidden, getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None) or 4 * hidden


def default_token_budget(model: SentenceTransformer, dtype: torch.dtype) -> int:
    """Tokens a forward pass, when nobody says.

    On a CPU: as many as keep the widest activation, the one inside a feed-forward block, within half of the largest cache; a
    pass beyond the cache is slower, not faster. On CUDA: what fits in 0.4 of the free memory, most of it for activations of one
    layer, and no more than keep the device busy.
    """
    hidden, width = _widths(model)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        fits = int(free * _CUDA_SHARE / (dtype.itemsize * (3 * width + 8 * hidden)))
        return min(max(fits, _FEWEST_TOKENS), _MOST_TOKENS_CUDA)
    fits = int(min(cache_bytes(), _MOST_CACHE_BYTES) * _CACHE_SHARE / (dtype.itemsize * width))
    return min(max(fits, _FEWEST_TOKENS), _MOST_TOKENS_CPU)


def packed_token_budget(model: SentenceTransformer, dtype: torch.dtype) -> int:
    """The same for packed weights, on a CPU.

    In bfloat16 as many as have the widest activation in twice a core's own cache: what a fused product writes,
    the next one reads. 2 MiB a core and 1,536 numbers, as MiniLM has them, are 1,365 tokens.
    """
    if dtype != torch.bfloat16:
        return default_token_budget(model, dtype)
    a_core = int(_CORE_CACHES * cache_bytes(level=2) / (dtype.itemsize * _widths(model)[1]))
    return min(max(a_core, _FEWEST_TOKENS), _MOST_TOKENS_A_CORE)
