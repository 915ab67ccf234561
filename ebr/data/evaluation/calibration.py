"""Which similarity gives which precision: the thresholds of a model, as an evaluation records them and a search reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ebr.data.text.counted import counted

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""What thresholds are recorded for."""
HEADLINE_PRECISION = 0.9
"""The one that summaries tell."""


@dataclass(frozen=True)
class OperatingPoint:
    """The lowest similarity from which hits are at least as precise as asked, which of all such leaves the most recall."""

    precision: float
    threshold: float | None
    """None where no similarity reaches the precision; then recall and n_hits are None too."""
    recall: float | None
    """Share of all relevant documents that stand at the threshold or above it."""
    n_hits: int | None
    """Documents that were found there: what the precision is a share of."""

    def line(self, similarity: str) -> str:
        """`precision 0.9 from cosine 0.6431 on: recall 0.5210 (118 hits)`."""
        if self.threshold is None or self.recall is None or self.n_hits is None:
            return f"precision {self.precision:g} is reached at no {similarity}"
        reached = f"precision {self.precision:g} from {similarity} {self.threshold:.4f} on"
        return f"{reached}: recall {self.recall:.4f} ({counted(self.n_hits, 'hit')})"


@dataclass(frozen=True)
class Calibration:
    """The thresholds of one model on one evaluation set, a point for each of PRECISIONS.

    similarity: cosine, or dot. depth: how many documents of each query count as found, at most.
    """

    dataset: str
    similarity: str
    depth: int
    points: tuple[OperatingPoint, ...]

    def point(self, precision: float) -> OperatingPoint | None:
        """The one of the precision, or of the next higher that is recorded, which keeps what was asked; None above them all."""
        return min((one for one in self.points if one.precision >= precision), key=lambda one: one.precision, default=None)

    def line(self) -> str:
        """What summaries tell of it."""
        point = self.point(HEADLINE_PRECISION)
        return point.line(self.similarity) if point else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Calibration:
        """What to_json wrote."""
        return cls(**{**record, "points": tuple(OperatingPoint(**one) for one in record["points"])})
