"""The texts of a run as integers: whether two of them are the same text is made out once, and then asked of two numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ebr.data.progress import progress_bar
from ebr.data.text.normal_form import normal_form
from ebr.data.training.examples import Example

_LONG_S = 3.0


@dataclass(frozen=True)
class RecordIds:
    """The texts of one record by their ids."""

    query: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]

    @classmethod
    def of(cls, example: Example, ids: Mapping[str, int]) -> RecordIds:
        """Those of an example; ids: see TextTable."""
        return cls(
            ids[example.query],
            tuple(ids[text] for text in example.positives),
            tuple(ids[text] for text in example.negatives),
        )

    def core(self) -> Iterator[int]:
        """What makes the record what it is: its query and its positives. A negative may be anyone's text."""
        yield self.query
        yield from self.positives


class TextTable:
    """The texts of some examples, numbered 0, 1, 2, … as they come; texts of one normal form are one text.

    ids: the number of each text as it is spelt. forms: that of each normal form.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.ids: dict[str, int] = {}
        self.forms: dict[str, int] = {}
        for text in texts:
            if text not in self.ids:
                form = normal_form(text)
                # Many texts are their own form; the same string is held once.
                self.ids[text] = self.forms.setdefault(text if form == text else form, len(self.forms))

    @classmethod
    def of(cls, examples: Iterable[Example]) -> TextTable:
        """Of every text of the examples."""
        shown = progress_bar(examples, desc="compare texts", unit="example", delay=_LONG_S)
        return cls(text for example in shown for text in example.texts())

    def records(self, examples: Iterable[Example]) -> list[RecordIds]:
        """The examples in numbers."""
        return [RecordIds.of(example, self.ids) for example in examples]

    def drop_forms(self) -> None:
        """Leave the numbers alone, which are all that training asks for: the forms take as much memory as the texts."""
        del self.forms
