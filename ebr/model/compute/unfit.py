"""Texts that get no vector, and why."""

from __future__ import annotations

from collections.abc import Mapping

from ebr.data.vectors.batch import Vectors
from ebr.errors import ModelError

TOO_LARGE = "does not fit in the device's memory, even alone; lower max_seq_length"
NO_DIRECTION = "has a vector of zeros: its characters are all unknown to the model's tokenizer"


class UnfitTexts(ModelError):
    """Texts that the model cannot embed.

    reasons: why not, by where they stand among the texts. vectors: (N, D), of all the others; the rows of these are nan.
    """

    def __init__(self, reasons: Mapping[int, str], vectors: Vectors) -> None:
        first = min(reasons)
        others = f" ({len(reasons):,} texts get no vector)" if len(reasons) > 1 else ""
        super().__init__(f"text {first} {reasons[first]}{others}")
        self.reasons = dict(reasons)
        self.vectors = vectors

    def __reduce__(self) -> tuple[type[UnfitTexts], tuple[dict[int, str], Vectors]]:
        return UnfitTexts, (self.reasons, self.vectors)
