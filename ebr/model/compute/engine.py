"""What an engine is: texts → (n, D) float32, whatever stands behind; and texts that get no vector, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ebr.data.vectors.batch import Vectors
from ebr.errors import ModelError
from ebr.model.encoder.batching import Bools

OnBatch = Callable[[int], None]
"""Told how many texts each batch held; what it raises ends the work."""


class Engine(Protocol):
    """Turns texts into vectors, one row a text, in their order."""

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        ...

    @property
    def token_budget(self) -> int:
        """Tokens a forward pass; it sinks when memory runs out."""
        ...

    def prepare(self, texts: Sequence[str]) -> Any:  # noqa: ANN401
        """N texts as compute takes them. Safe in a thread of its own, while another one computes."""
        ...

    def compute(self, prepared: Any, on_batch: OnBatch | None = None) -> Vectors:  # noqa: ANN401
        """What prepare made of N texts → (N, D) float32; only ever from one thread.

        on_batch: told how many texts each forward pass held; what it raises ends the work.
        Raises UnfitTexts at the end, when the model cannot embed some texts, and ModelError when a vector is not finite, or
        when memory that was there before stays short.
        """
        ...

    def cut(self, prepared: Any) -> Bools:  # noqa: ANN401
        """(N,) which of N texts were longer than the model reads; after compute has had them."""
        ...


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
