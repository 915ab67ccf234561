"""A model's tokenizer: whether it is one, whether it fits the table of embeddings, what it pads with, how it closes a text."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerBase

from ebr.errors import ModelError

log = logging.getLogger(__name__)

PUT_TOKENIZER = "put tokenizer.json and tokenizer_config.json of the model beside its weights"
# Letters, digits and scripts that nearly every tokenizer knows some of; one of whole words is asked for its words.
_SPELLABLE = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 的一是不了人 のを 가나 абвгд αβγ سلام अआ ไทย"
_WHITE = "▁Ġ# "
# Tables are padded to a round number of rows; half of them without a token is more than padding.
_FEWEST_SPELT = 0.5

AnyTokenizer: TypeAlias = PreTrainedTokenizerBase | Tokenizer


def check_tokenizer(tokenizer: object, table: torch.nn.Module | None, where: str) -> None:
    """Refuse a tokenizer that was made up for want of files, or whose words lie outside the table of embeddings.

    table: the module that ids point into; None where there is none. where: the model, for messages. Raises ModelError; special
    tokens beyond the table, and one that spells less than half of it, are said in a warning.
    """
    if not isinstance(tokenizer, AnyTokenizer):
        return
    if not _spells_anything(tokenizer):
        raise ModelError(
            f"{where}: its tokenizer knows no word, as one that is made up where the files are absent; {PUT_TOKENIZER}"
        )
    n_rows = rows_of(table)
    if n_rows is None:
        return
    special, last = _ids(tokenizer)
    if last >= n_rows:
        raise ModelError(
            f"{where}: its tokenizer has ids up to {last}, and its table of embeddings {n_rows:,} rows: "
            "they are of two models, or the table was not grown with the tokenizer; take both from one place"
        )
    if special >= n_rows:
        log.warning("%s: special tokens up to id %d have no row in its table of %s; a text that holds one is refused",
                    where, special, f"{n_rows:,}")  # fmt: skip
    if last + 1 < _FEWEST_SPELT * n_rows:
        log.warning("%s: its tokenizer has %s tokens for a table of %s rows; is it that of another model?",
                    where, f"{last + 1:,}", f"{n_rows:,}")  # fmt: skip


def _spells_anything(tokenizer: AnyTokenizer) -> bool:
    known = _known(tokenizer, _SPELLABLE)
    # One that is made up knows white space at most. One of whole words, k-mers or event names, has them in its vocabulary.
    return len(known) > 1 or any(token.strip(_WHITE) for token in _vocabulary(tokenizer))


def _known(tokenizer: AnyTokenizer, text: str) -> set[int]:
    """The ids of a text, less that of the unknown token."""
    try:
        if isinstance(tokenizer, Tokenizer):
            unknown = tokenizer.token_to_id(str(json.loads(tokenizer.to_str())["model"].get("unk_token")))
            return {*tokenizer.encode(text, add_special_tokens=False).ids} - {unknown}
        return {*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]} - {tokenizer.unk_token_id}
    except Exception as error:  # tokenizers raises plain ones: no unknown token in the vocabulary
        log.debug("%s", error)
        return set()


def _vocabulary(tokenizer: AnyTokenizer) -> set[str]:
    """Its words, without special tokens."""
    if isinstance(tokenizer, Tokenizer):
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        model = json.loads(tokenizer.to_str())["model"]
        return set(tokenizer.get_vocab(with_added_tokens=False)) - added - {model.get("unk_token")}
    try:
        return set(tokenizer.get_vocab()) - {*tokenizer.all_special_tokens}
    except NotImplementedError:  # one of characters has no list of them
        return {"a"}


def _ids(tokenizer: AnyTokenizer) -> tuple[int, int]:
    """(largest id of a special token, largest id of any other): publishers add special tokens that no text has."""
    added = added_tokens(tokenizer)
    n_own = tokenizer.get_vocab_size(with_added_tokens=False) if isinstance(tokenizer, Tokenizer) else tokenizer.vocab_size
    special = max((index for index, token in added.items() if token.special), default=-1)
    return special, max([n_own - 1, *(index for index, token in added.items() if not token.special)])


def added_tokens(tokenizer: AnyTokenizer) -> dict[int, AddedToken]:
    """Its tokens beside the vocabulary proper, by their ids."""
    added: dict[int, AddedToken]
    added = tokenizer.get_added_tokens_decoder() if isinstance(tokenizer, Tokenizer) else tokenizer.added_tokens_decoder
    return added


def rows_of(table: torch.nn.Module | None) -> int | None:
    """Rows of the table that token ids point into, whatever peft wrapped it in; None where there is none."""
    if table is None:
        return None
    plain = (one for one in table.modules() if isinstance(one, torch.nn.Embedding | torch.nn.EmbeddingBag))
    return next((one.num_embeddings for one in plain), None)


def table_of(transformer: torch.nn.Module) -> torch.nn.Module | None:
    """The table that token ids point into; None for a model that has none."""
    try:
        get: Callable[[], torch.nn.Module | None] = transformer.get_input_embeddings  # type: ignore[assignment]
        table = get()
    except (AttributeError, NotImplementedError):
        return None
    return table


def ensure_padding(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Give a tokenizer without a padding token one that it has: the attention mask hides it, whichever it is.

    Raises ModelError when it has no special token at all.
    """
    if tokenizer.pad_token_id is not None:
        return
    for token in (tokenizer.eos_token, tokenizer.sep_token, tokenizer.unk_token, *tokenizer.all_special_tokens):
        if token is not None:
            tokenizer.pad_token = token
            log.info("%s: its tokenizer has no padding token; %s pads, and is masked", where, token)
            return
    raise ModelError(f"{where}: its tokenizer has no special token to pad with; set pad_token in tokenizer_config.json")


def end_with_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a decoder's tokenizer close every text, truncated or not, with EOS: the token that stands for the text as a whole.

    One that closes texts with a special token by itself, because its model was trained so, stays as it is, whatever the token
    is called; what it puts in front of a text (BOS) stays. The change is saved with the tokenizer.
    """
    if tokenizer.eos_token_id is None or _closes_texts(tokenizer):
        return
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"{type(tokenizer).__name__}: only a fast tokenizer can be taught to close texts with EOS; convert it")
    backend = tokenizer.backend_tokenizer
    present = None if backend.post_processor is None else json.loads(backend.post_processor.__getstate__())
    # Only a tokenizer's file can say what a processor is; this one has nothing else in it.
    file = json.loads(Tokenizer(models.BPE()).to_str())
    file["post_processor"] = _closed(present, tokenizer.eos_token, tokenizer.eos_token_id)
    backend.post_processor = Tokenizer.from_str(json.dumps(file)).post_processor


def _closes_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    mask: list[int] = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return mask[-1:] == [1]


def _closed(present: dict[str, Any] | None, eos: str, eos_id: int) -> dict[str, Any]:
    """A post-processor as tokenizer.json spells it, with EOS behind each text."""
    if present is None:
        return _with_eos(_PLAIN, eos, eos_id)
    if present["type"] == "TemplateProcessing":
        return _with_eos(present, eos, eos_id)
    steps = present["processors"] if present["type"] == "Sequence" else [present]
    if any(step["type"] == "TemplateProcessing" for step in steps):
        steps = [_with_eos(step, eos, eos_id) if step["type"] == "TemplateProcessing" else step for step in steps]
    else:
        steps = [*steps, _with_eos(_PLAIN, eos, eos_id)]
    return {"type": "Sequence", "processors": steps}


def _with_eos(template: dict[str, Any], eos: str, eos_id: int) -> dict[str, Any]:
    """A template whose every sequence is followed by EOS."""
    closed = dict(template)
    for form in ("single", "pair"):
        closed[form] = []
        for piece in template[form]:
            closed[form].append(piece)
            if "Sequence" in piece:
                closed[form].append({"SpecialToken": {"id": eos, "type_id": piece["Sequence"]["type_id"]}})
    closed["special_tokens"] = {**template["special_tokens"], eos: {"id": eos, "ids": [eos_id], "tokens": [eos]}}
    return closed


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


_PLAIN: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [_sequence("A", 0)],
    "pair": [_sequence("A", 0), _sequence("B", 1)],
    "special_tokens": {},
}


# Each call sets anew where texts are cut and padded; the lengths are facts of their own.
_OF_A_CALL = ("truncation", "padding")
_PLAIN_TYPES = (bool, int, float, str, list, tuple, dict, set)


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
    kept = {name: value for name, value in options.items() if isinstance(value, _PLAIN_TYPES) and not _is_place(name)}
    words = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else ()
    listed = words.items() if isinstance(words, dict) else enumerate(words)
    ordered = {name: sorted(map(str, value)) if isinstance(value, set) else value for name, value in kept.items()}
    return {"class": type(tokenizer).__name__, **ordered, "vocabulary": sorted(map(str, listed))}


def _is_place(name: str) -> bool:
    """Whether an option says where a tokenizer lies."""
    return name.startswith("_") or name.endswith(("_file", "_path", "_dir"))
