"""How a tokenizer spells a word, what it lacks for it, and how it gets it: tokens of one character, in its own vocabulary.

A new token of one character leaves alone whatever was spelt before. WordPiece takes the longest piece that fits, which was
there already, and none is shorter; a Unigram gets only characters that stand in none of its pieces, so no text of before has
them. An added token, which is looked for before normalisation, would keep neither promise.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ebr.errors import ModelError

_SHORTEST_WORD = 3
_MARK = "▁"
# Below the least likely piece, as far as the unknown token itself stands below it (kUnkPenalty of SentencePiece).
_PENALTY = 10.0


class Spelling(ABC):
    """A tokenizer of one kind."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], *, lower_case: bool) -> None:
        self.tokenizer = tokenizer
        self.state = state
        self._lower_case = lower_case
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self.special = {token.content for token in self._backend.get_added_tokens_decoder().values()}

    def words(self, text: str) -> list[str]:
        """The words of a text, normalised, as the tokenizer makes pieces of them."""
        text = text.strip().lower() if self._lower_case else text
        normalizer, parts = self._backend.normalizer, self._backend.pre_tokenizer
        normal = text if normalizer is None else normalizer.normalize_str(text)
        return [word for word, _ in parts.pre_tokenize_str(normal)] if parts is not None else [normal]

    @abstractmethod
    def lacking(self, word: str) -> list[str]:
        """The tokens of one character that it lacks to spell a word, repeats too; none for a word that it spells."""

    @abstractmethod
    def n_lost(self, word: str, lacking: Sequence[str]) -> int:
        """How many characters of a word become unknown while these of its tokens are lacking."""

    @abstractmethod
    def n_characters(self, word: str) -> int:
        """Characters of a word, without what the tokenizer puts to it."""

    @abstractmethod
    def whole_words(self) -> list[int]:
        """Ids of the tokens that are words of letters: what the model has met often, and knows well."""

    @abstractmethod
    def add(self, tokens: Sequence[str]) -> int:
        """Let the tokenizer have these tokens, in this order, behind all that it has; returns the id of the first.

        Raises ModelError where it cannot.
        """

    def _rebuilt(self, tokens: Sequence[str], first: int) -> int:
        """Read the changed state again, and see that every token has the id that it had, and a new one the next."""
        before = self._backend.get_vocab(with_added_tokens=True)
        backend = Tokenizer.from_str(json.dumps(self.state))
        after = backend.get_vocab(with_added_tokens=True)
        if after != {**before, **{token: first + place for place, token in enumerate(tokens)}}:
            raise ModelError(
                f"its tokenizer ({self.state['model']['type']}) has tokens behind its vocabulary, so that new ones find no "
                "place in it; it cannot be extended"
            )
        self.tokenizer._tokenizer = self._backend = backend
        return first


class WordPiece(Spelling):
    """The longest piece that fits, from left to right; a word with one place that none fits is unknown as a whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], *, lower_case: bool) -> None:
        super().__init__(tokenizer, state, lower_case=lower_case)
        model = state["model"]
        self._vocabulary: dict[str, int] = model["vocab"]
        self._prefix, self._longest = model["continuing_subword_prefix"], model["max_input_chars_per_word"]

    def lacking(self, word: str) -> list[str]:
        """By their place: the first character is a token of its own, a later one continues a word."""
        if len(word) > self._longest or self._is_spelt(word):
            return []
        pieces = [self._prefix * (place > 0) + character for place, character in enumerate(word)]
        return [piece for piece in pieces if piece not in self._vocabulary]

    def _is_spelt(self, word: str) -> bool:
        start = 0
        while start < len(word):
            lead = self._prefix * (start > 0)
            ends = range(len(word), start, -1)
            start = next((end for end in ends if lead + word[start:end] in self._vocabulary), 0)
            if not start:
                return False
        return True

    def n_lost(self, word: str, lacking: Sequence[str]) -> int:
        """All of a word or none."""
        return len(word) if lacking or len(word) > self._longest else 0

    def n_characters(self, word: str) -> int:
        """All of them."""
        return len(word)

    def whole_words(self) -> list[int]:
        """Those that begin a word, of three letters or more."""
        return sorted(
            index
            for token, index in self._vocabulary.items()
            if len(token) >= _SHORTEST_WORD and token.isalpha() and token not in self.special
        )

    def add(self, tokens: Sequence[str]) -> int:
        """As entries of the vocabulary."""
        first = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        self._vocabulary.update({token: first + place for place, token in enumerate(tokens)})
        return self._rebuilt(tokens, first)


class Unigram(Spelling):
    """The most likely pieces; characters that stand in none are unknown."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], *, lower_case: bool) -> None:
        super().__init__(tokenizer, state, lower_case=lower_case)
        self._pieces: list[list[Any]] = state["model"]["vocab"]
        self._known = {character for piece, _ in self._pieces if piece not in self.special for character in piece} | {_MARK}

    def lacking(self, word: str) -> list[str]:
        """The characters that stand in no piece."""
        return [character for character in word if character not in self._known]

    def n_lost(self, word: str, lacking: Sequence[str]) -> int:
        """Each by itself."""
        return len(lacking)

    def n_characters(self, word: str) -> int:
        """All but the mark where a word begins."""
        return len(word.replace(_MARK, ""))

    def whole_words(self) -> list[int]:
        """Those that begin a word, of three letters or more."""
        return [
            index
            for index, (piece, _) in enumerate(self._pieces)
            if piece.startswith(_MARK) and len(piece) > _SHORTEST_WORD and piece[1:].isalpha()
        ]

    def add(self, tokens: Sequence[str]) -> int:
        """As pieces less likely than any other, so that none of before gives way to them."""
        first = len(self._pieces)
        least = min(score for _, score in self._pieces)
        self._pieces.extend([token, least - _PENALTY] for token in tokens)
        self._known.update(tokens)
        return self._rebuilt(tokens, first)


_KINDS = {"WordPiece": WordPiece, "Unigram": Unigram}


def spelling_of(tokenizer: object, where: str, *, lower_case: bool = False) -> Spelling:
    """How a tokenizer spells. where: the model, for messages; lower_case: whether its encoder lowers every text before.

    Raises ModelError for one that knows every character by its bytes, and for one of a kind that cannot be extended here.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not isinstance(backend, Tokenizer):
        raise ModelError(f"{where}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json, and cannot be extended")
    state = json.loads(backend.to_str())
    kind = state["model"].get("type")
    if state["model"].get("byte_fallback") or "ByteLevel" in json.dumps([state["normalizer"], state["pre_tokenizer"]]):
        raise ModelError(
            f"{where}: its tokenizer ({kind}) spells byte by byte what it does not know, so no character is unknown to it and "
            "there is nothing to extend; tune it as it is, or take a base made for the language"
        )
    if kind not in _KINDS:
        raise ModelError(
            f"{where}: its tokenizer is of the kind {kind}; only {' and '.join(_KINDS)} can be extended; take another base"
        )
    return _KINDS[kind](tokenizer, state, lower_case=lower_case)
