"""Which rows of a table of embeddings are new: written into config.json of the model, so that they go wherever it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ebr.errors import ModelError
from ebr.model.files.tokenizer import rows_of, table_of

_KEY = "ebr_new_tokens"
_VERSION = 1


@dataclass(frozen=True)
class NewTokens:
    """Tokens whose rows were drawn, not trained with the base: `count` ids from `first` on. A tuned model keeps the note."""

    first: int
    count: int

    def ids(self) -> list[int]:
        """Their ids."""
        return list(range(self.first, self.first + self.count))


def note_new_tokens(transformer: PreTrainedModel, first: int, count: int, where: str) -> NewTokens:
    """Write down new rows behind those that are noted already, if any. Raises ModelError where others lie between."""
    before = new_tokens_of(transformer, where)
    if before is not None and before.first + before.count != first:
        raise ModelError(f"{where}: tokens were added since it was extended; start from the model before that")
    noted = NewTokens(first, count) if before is None else NewTokens(before.first, before.count + count)
    setattr(transformer.config, _KEY, {"version": _VERSION, "first": noted.first, "count": noted.count})
    return noted


def new_tokens_of(transformer: PreTrainedModel, where: str) -> NewTokens | None:
    """The new rows of a model; None for one whose vocabulary was never extended. where: the model, for messages.

    Raises ModelError for a note that cannot be read, or that does not fit the table.
    """
    note: Any = getattr(transformer.config, _KEY, None)
    if note is None:
        return None
    what = f"{where}: config.json: {_KEY}"
    version = note.get("version") if isinstance(note, dict) else None
    if version != _VERSION:
        raise ModelError(f"{what} is of version {version!r}, and {_VERSION} can be read; update EBR, or delete the entry")
    first, count = note.get("first"), note.get("count")
    n_rows = rows_of(table_of(transformer)) or 0
    if not (type(first) is int and type(count) is int and 0 <= first < first + count <= n_rows):
        raise ModelError(
            f"{what} says first {first!r}, count {count!r}, where the table of embeddings has {n_rows:,} rows; copy it again"
        )
    return NewTokens(first, count)
