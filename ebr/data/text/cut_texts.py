"""Texts of which a model reads only the beginning: how many there were."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ebr.data.text.counted import are, counted, were


@dataclass(frozen=True)
class CutTexts:
    """How many of n_texts were longer than `length` tokens, and lost what lies beyond. length: None = nothing is cut."""

    n_texts: int = 0
    n_cut: int = 0
    length: int | None = None

    def and_more(self, n_texts: int, n_cut: int) -> CutTexts:
        """The same with further texts of the same length."""
        return CutTexts(self.n_texts + n_texts, self.n_cut + n_cut, self.length)

    def line(self, one: str = "text", many: str = "texts") -> str | None:
        """`1,234 of 10,000 texts are longer than 256 tokens and were cut`; None where none was. one, many: what they are."""
        if not self.n_cut:
            return None
        longer = f"{are(self.n_cut)} longer than {counted(self.length or 0, 'token')} and {were(self.n_cut)} cut"
        return f"{self.n_cut:,} of {counted(self.n_texts, one, many)} {longer}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def cut_lines(cut: tuple[CutTexts, CutTexts]) -> list[str]:
    """What there is to say of queries and documents; nothing where none was cut."""
    queries, documents = cut
    said = queries.line("query", "queries"), documents.line("document", "documents")
    return [line for line in said if line is not None]


def cut_facts(cut: tuple[CutTexts, CutTexts]) -> dict[str, Any]:
    """The same, for a manifest."""
    queries, documents = cut
    return {"queries": queries.to_json(), "documents": documents.to_json()}
