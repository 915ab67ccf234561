"""What a model makes of the texts: how long they are in tokens, what is cut off, what is padding, what it cannot spell."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ebr.config import ExtendConfig
from ebr.data.training.examples import Example
from ebr.errors import ModelError
from ebr.model.compute.attention import PADDED, attention_of
from ebr.model.encoder.batching import Ints, cost_of
from ebr.model.encoder.lengths import position_limit
from ebr.model.vocabulary.missing import MissingTokens, find_missing
from ebr.model.vocabulary.spelling import spelling_of
from ebr.training.batches.gradient_cache import PASS_COST_CPU, PASS_COST_CUDA, least_padding_cuts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MOST_TEXTS = 2_000
SMALL_BUDGET = 512
"""Tokens of the smallest micro-batch that still keeps a processor busy."""
# A book as one text would take longer than everything else; whatever limit there is, it is cut.
_MOST_CHARACTERS = 50_000
_MOST_IN_ALL = 4_000_000
_AT_ONCE = 128
"""Texts tokenised in one call: what it gives takes many times their own memory."""
_NAMES = {
    "CJK": "Chinese characters",
    "HIRAGANA": "Japanese kana",
    "KATAKANA": "Japanese kana",
    "HANGUL": "Korean",
}
_KINDS = {"S": "symbols and emoji", "P": "punctuation", "N": "numbers", "M": "marks", "C": "symbols and emoji"}


@dataclass(frozen=True)
class SampledRecords:
    """Some records as an epoch would draw them, N of them: their queries, their positives, their lists of negatives."""

    queries: list[str]
    positives: list[str]
    negatives: list[list[str]]

    @property
    def passages(self) -> list[str]:
        """The positives, then every negative."""
        return [*self.positives, *(text for texts in self.negatives for text in texts)]


def sample_records(
    examples: Sequence[Example], neg_nums: int, rng: np.random.Generator, most: int = MOST_TEXTS
) -> SampledRecords:
    """Records drawn at random, with one positive and up to neg_nums negatives each.

    They hold about `most` texts; fewer where four million characters come first.
    """
    drawn = SampledRecords([], [], [])
    n_texts = n_characters = 0
    for row in rng.permutation(len(examples)):
        example = examples[row]
        negatives = list(dict.fromkeys(example.negatives))[:neg_nums]
        drawn.queries.append(example.query)
        drawn.positives.append(example.positives[rng.integers(len(example.positives))])
        drawn.negatives.append(negatives)
        n_texts += 2 + len(negatives)
        n_characters += sum(min(len(text), _MOST_CHARACTERS) for text in (example.query, drawn.positives[-1], *negatives))
        if n_texts >= most or n_characters >= _MOST_IN_ALL:
            break
    return drawn


@dataclass(frozen=True)
class Lengths:
    """Tokens of N texts of one role before they are cut, prompt and special tokens counted. limit: what is kept of a text."""

    tokens: Ints
    limit: int

    @property
    def share_cut(self) -> float:
        """The share of the texts that are longer than the limit."""
        return float((self.tokens > self.limit).mean()) if len(self.tokens) else 0.0

    def cutting(self, share: float) -> int:
        """The smallest limit that would cut no more than this share of the texts."""
        if not len(self.tokens):
            return 0
        n_cut = int(round(share * len(self.tokens), 9))
        return int(np.sort(self.tokens)[len(self.tokens) - 1 - n_cut])

    def kept(self) -> Ints:
        """(N,) tokens of each text once it is cut."""
        return np.minimum(self.tokens, self.limit)


@dataclass(frozen=True)
class TextFigures:
    """Figures of the sampled records. unknown: by script, the tokens that the tokenizer cannot spell, of n_tokens in all.

    Both are of the texts themselves, without their prompts and special tokens, as is tokens_a_character: how many tokens a
    character takes. extended: which characters are unknown as it is, and which once ebr extend has been there; None where
    it cannot help. positions: what the model has; None where it does not say. The share of a batch's tokens that is padding is
    padding_stock when each column is padded to its longest text, as stock sentence-transformers does; padding_ours when the
    texts are sorted and cut into micro-batches; padding_small when those are of SMALL_BUDGET tokens, None but on a CPU: a GPU
    would stand idle.
    """

    queries: Lengths
    passages: Lengths
    unknown: Counter[str]
    n_tokens: int
    tokens_a_character: float
    extended: MissingTokens | None
    padding_stock: float
    padding_ours: float
    padding_small: float | None
    positions: int | None

    @property
    def tokens_a_record(self) -> float:
        """Mean tokens of a record's texts, cut."""
        return float(self.queries.kept().sum() + self.passages.kept().sum()) / max(1, len(self.queries.tokens))

    @property
    def longest(self) -> int:
        """Tokens of the longest text, cut."""
        return max((int(one.kept().max()) for one in (self.queries, self.passages) if len(one.tokens)), default=0)


def measure_texts(
    model: SentenceTransformer, records: SampledRecords, *, batch_size: int, token_budget: int
) -> TextFigures | None:
    """Tokenise the sampled records once. None for a model whose texts go through no tokenizer.

    batch_size: records a batch; token_budget: tokens a micro-batch.
    """
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    spelt = {
        role: _spell(tokenizer, texts, model.prompts.get(role) or "")
        for role, texts in (("query", records.queries), ("document", records.passages))
    }
    first, most = model[0], model.max_seq_length or tokenizer.model_max_length
    queries = Lengths(spelt["query"].lengths, getattr(first, "query_length", None) or most)
    passages = Lengths(spelt["document"].lengths, getattr(first, "document_length", None) or most)
    n_tokens, unknown = sum(one.n_tokens for one in spelt.values()), spelt["query"].unknown + spelt["document"].unknown
    columns = _columns(queries.kept(), passages.kept(), [len(texts) for texts in records.negatives])
    packed, on_cpu = attention_of(model) != PADDED, model.device.type == "cpu"
    pass_cost = PASS_COST_CUDA if model.device.type == "cuda" else PASS_COST_CPU
    return TextFigures(
        queries=queries,
        passages=passages,
        unknown=unknown,
        n_tokens=n_tokens,
        tokens_a_character=n_tokens / max(1, sum(one.n_characters for one in spelt.values())),
        extended=_extended(model, records) if unknown else None,
        padding_stock=_mean_padding(columns, batch_size, None),
        padding_ours=0.0 if packed else _mean_padding(columns, batch_size, token_budget, pass_cost),
        padding_small=_mean_padding(columns, batch_size, SMALL_BUDGET) if on_cpu and not packed else None,
        positions=position_limit(model),
    )


def _extended(model: SentenceTransformer, records: SampledRecords) -> MissingTokens | None:
    """What ebr extend would do for these texts, as it comes."""
    try:
        spelling = spelling_of(model.tokenizer, "model", lower_case=bool(getattr(model[0], "do_lower_case", False)))
    except ModelError:
        return None
    texts = (text[:_MOST_CHARACTERS] for text in (*records.queries, *records.passages))
    return find_missing(spelling, texts, ExtendConfig.model_fields["max_new_tokens"].default)


@dataclass(frozen=True)
class _Spelt:
    """Texts as a tokenizer spells them. lengths: with the prompt and the special tokens; all else without."""

    lengths: Ints
    unknown: Counter[str]
    n_tokens: int
    n_characters: int


def _spell(tokenizer: Any, texts: Sequence[str], prompt: str) -> _Spelt:  # noqa: ANN401
    """Tokenise whole texts behind their prompt, some at a time, and look at what became an unknown token."""
    whole = [text[: max(0, _MOST_CHARACTERS - len(prompt))] for text in texts]
    strange, unknown = tokenizer.unk_token_id, Counter[str]()
    lengths: list[int] = []
    for start in range(0, len(whole), _AT_ONCE):
        chunk = whole[start : start + _AT_ONCE]
        ids = _encoded(tokenizer, [prompt + text for text in chunk])["input_ids"]
        lengths += map(len, ids)
        unknown += _unspelt(tokenizer, [text for text, row in zip(chunk, ids, strict=True) if strange in row], strange)
    n_prompt = len(_encoded(tokenizer, [prompt], add_special_tokens=False)["input_ids"][0]) if prompt else 0
    n_around = (tokenizer.num_special_tokens_to_add() + n_prompt) * len(whole)
    counts = np.array(lengths, dtype=np.int64)
    return _Spelt(counts, unknown, max(0, int(counts.sum()) - n_around), sum(map(len, whole)))


def _unspelt(tokenizer: Any, texts: Sequence[str], strange: int) -> Counter[str]:  # noqa: ANN401
    """By script, how often the texts themselves hold what the tokenizer cannot spell; strange: the id of the unknown token.

    A token that the tokenizer's template puts around every text, or that the text calls by name, may be the same one.
    """
    found: Counter[str] = Counter()
    if not texts:
        return found
    fast = bool(getattr(tokenizer, "is_fast", False))
    bare = [text.replace(tokenizer.unk_token, " ") for text in texts]
    encoded = _encoded(tokenizer, bare, add_special_tokens=False, return_offsets_mapping=fast)
    offsets = encoded["offset_mapping"] if fast else [None] * len(bare)
    for text, row, spans in zip(bare, encoded["input_ids"], offsets, strict=True):
        for place, token in enumerate(row):
            if token == strange:
                start, end = spans[place] if spans is not None else (0, len(text))
                found[_script(text[start:end])] += 1
    return found


def _encoded(tokenizer: Any, texts: Sequence[str], **more: bool) -> Any:  # noqa: ANN401
    return tokenizer(list(texts), padding=False, truncation=False, verbose=False, return_attention_mask=False, **more)


def _script(text: str) -> str:
    """The script that most of the characters are of, by their names in Unicode."""
    found = Counter(map(_script_of, text.replace(" ", "")))
    return found.most_common(1)[0][0] if found else "white space"


def _script_of(character: str) -> str:
    if kind := _KINDS.get(unicodedata.category(character)[0]):
        return kind
    word = unicodedata.name(character, "unnamed").split(" ")[0].split("-")[0]
    return _NAMES.get(word, word.capitalize())


def _columns(queries: Ints, passages: Ints, n_negatives: Sequence[int]) -> list[list[int]]:
    """Of each record the tokens of its texts: query, positive, negatives."""
    ends = len(queries) + np.cumsum([0, *n_negatives])
    return [
        [int(queries[row]), int(passages[row]), *passages[ends[row] : ends[row + 1]].tolist()] for row in range(len(queries))
    ]


def _mean_padding(
    records: Sequence[Sequence[int]], batch_size: int, token_budget: int | None, pass_cost: int = PASS_COST_CPU
) -> float:
    """The share of padding over batches of the records as they come. token_budget: None = a column is padded to its longest."""
    real = computed = 0
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        lengths = np.array([length for record in batch for length in record], dtype=np.int64)
        real += int(lengths.sum())
        if token_budget is None:
            width = max(map(len, batch))
            columns = [np.array([record[place] for record in batch if place < len(record)]) for place in range(width)]
            computed += sum(cost_of(column, padded=True) for column in columns)
        else:
            cuts = least_padding_cuts(lengths, token_budget, pass_cost)
            computed += sum(cost_of(lengths[one], padded=True) for one in cuts)
    return 1 - real / computed if computed else 0.0
