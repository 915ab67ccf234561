"""What a text is to retrieval, and the prompt that goes before it."""

from __future__ import annotations

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
    names = ("query",) if role is Role.QUERY else _DOCUMENT_PROMPTS
    there = [model.prompts[name] or "" for name in names if name in model.prompts]
    if not there and model.default_prompt_name is not None:
        return model.prompts.get(model.default_prompt_name) or ""
    # sentence-transformers puts an empty document prompt beside a passage prompt that was saved, and then takes that.
    return next(filter(None, there), "")


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
