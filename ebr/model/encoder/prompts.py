"""What a text is to retrieval, and the prompt that goes before it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from sentence_transformers import SentenceTransformer

_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""What sentence-transformers calls the prompt of a document, the first of them that is there."""


class Role(str, Enum):
    """What a text is to retrieval: it decides prompt and length."""

    QUERY = "query"
    DOCUMENT = "document"


def prompt_for(model: SentenceTransformer, role: Role) -> str:
    """The prompt that the model was saved with for texts of this role; '' when it has none."""
    if model.default_prompt_name is not None and not any(name in model.prompts for name in _names(role)):
        return model.prompts.get(model.default_prompt_name) or ""
    return saved_prompt(model.prompts, role)


def saved_prompt(prompts: Mapping[str, str | None], role: Role) -> str:
    """The prompt for texts of this role among those that were saved, by name; '' when there is none."""
    # sentence-transformers puts an empty document prompt beside a passage prompt that was saved, and then takes that.
    return next(filter(None, map(prompts.get, _names(role))), "")


def _names(role: Role) -> tuple[str, ...]:
    return ("query",) if role is Role.QUERY else _DOCUMENT_PROMPTS


def set_prompts(
    model: SentenceTransformer, *, prompt: str | None, query_prompt: str | None, passage_prompt: str | None
) -> None:
    """Settle the model's query and document prompts; they are saved with it. None = fall back, at last to the model's own.

    Its prompts for other tasks (STS, Clustering, …) stay.
    """
    query = _first(query_prompt, prompt, prompt_for(model, Role.QUERY))
    document = _first(passage_prompt, prompt, prompt_for(model, Role.DOCUMENT))
    also = {name: document for name in _DOCUMENT_PROMPTS if name in model.prompts}
    model.prompts = {**model.prompts, **also, "query": query, "document": document}
    # A default prompt would also go before texts whose role nobody named, unlike in training.
    model.default_prompt_name = None


def _first(*choices: str | None) -> str:
    return next(choice for choice in choices if choice is not None)
