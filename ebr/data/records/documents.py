"""A document: a text that can be found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text to choose from, with its title and its id where it has them."""

    title: str
    text: str
    id: str = ""

    @property
    def whole(self) -> str:
        """Title + space + text, stripped, as in evaluation sets."""
        return f"{self.title} {self.text}".strip()
