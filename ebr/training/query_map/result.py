"""What an adaptation has made: the model, how its map was chosen, and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebr.data.result_tables import Fact, Part, Shown, fact_lines

if TYPE_CHECKING:
    from ebr.data.evaluation.calibration import Calibration
    from ebr.data.evaluation.comparison import Comparison
    from ebr.training.query_map.fit import QueryMap


@dataclass(frozen=True)
class AdaptResult(Shown):
    """An adapted model: the base for documents, the base and a map for queries."""

    model_path: Path
    query_map: QueryMap
    embedding_s: float
    """Seconds that the records' vectors took."""
    comparison: Comparison | None = None
    """Base against adapted on the evaluation set; None without one."""
    report: Path | None = None
    thresholds: tuple[tuple[str, Calibration], ...] = ()
    """Of base and adapted on the evaluation set, by what they are called."""

    def summary(self) -> str:
        """What was made, where, and whether it is better."""
        lines = fact_lines(self._facts(), 10)
        return "\n".join([*lines, "", self.comparison.table()] if self.comparison else lines)

    def parts(self) -> list[Part]:
        """The same, as tables."""
        return [self._facts(), *(self.comparison.parts() if self.comparison else [])]

    def _facts(self) -> list[Fact]:
        return [
            ("model", str(self.model_path)),
            ("map", self.query_map.line()),
            ("embedding", f"{self.embedding_s:.1f} s, once"),
            *(("threshold", f"{name}: {calibration.line()}") for name, calibration in self.thresholds),
            *([("report", str(self.report))] if self.report else []),
            ("documents", "have the base's vectors, bit for bit: indexes and vector files of the base stay as they are"),
        ]
