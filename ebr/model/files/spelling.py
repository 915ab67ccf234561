"""How a tokenizer turns texts into tokens, as plain values: two that spell alike have equal ones, wherever they lie."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

# Each call sets anew where texts are cut and padded; the lengths are facts of their own.
_OF_A_CALL = ("truncation", "padding")
_PLAIN = (bool, int, float, str, list, tuple, dict, set)


def spelling_of(tokenizer: object) -> dict[str, Any]:
    """What tokenizer.json holds, or vocabulary and options of a tokenizer of Python; and on which side it cuts."""
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        state: dict[str, Any] = json.loads(backend.to_str())
        spelling = {name: value for name, value in state.items() if name not in _OF_A_CALL}
    else:
        spelling = _plain_values(tokenizer)
    return {**spelling, "truncation_side": getattr(tokenizer, "truncation_side", None)}


def _plain_values(tokenizer: object) -> dict[str, Any]:
    options = getattr(tokenizer, "init_kwargs", None) or vars(tokenizer)
    kept = {name: value for name, value in options.items() if isinstance(value, _PLAIN) and not _is_place(name)}
    words = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else ()
    listed = words.items() if isinstance(words, dict) else enumerate(words)
    ordered = {name: sorted(map(str, value)) if isinstance(value, set) else value for name, value in kept.items()}
    return {"class": type(tokenizer).__name__, **ordered, "vocabulary": sorted(map(str, listed))}


def _is_place(name: str) -> bool:
    """Whether an option says where a tokenizer lies."""
    return name.startswith("_") or name.endswith(("_file", "_path", "_dir"))
