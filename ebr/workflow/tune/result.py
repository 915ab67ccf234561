"""What a tuning has found: the model or the base, how it was chosen, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import TuneConfig
from ebr.data.result_tables import DataFrame, Fact, Part, Shown, Table, fact_lines
from ebr.data.versions import library_versions
from ebr.workflow.tune.plan import KIND, MODEL

if TYPE_CHECKING:
    from ebr.data.evaluation.comparison import Comparison, Interval
    from ebr.retrieval.report.parts import Ladder

_HEAD = "{:<28} {:>6}  {:>7}  {:>8}  {:<18}  {:>6}"


@dataclass(frozen=True)
class TuneResult(Shown):
    """A finished tuning. model_path: the folder of the chosen model; None where the base is the answer.

    comparison: the base against the chosen on the test part, forgetting likewise on the second set, over_stock the difference
    in nDCG@10 to the stock recipe; None without a choice, and for a model that was made again. proof: nDCG@10 on the test
    part by name. command: makes the same model again.
    """

    base: str
    model_path: Path | None
    why: str
    seconds: float
    comparison: Comparison | None = None
    forgetting: Comparison | None = None
    over_stock: Interval | None = None
    proof: dict[str, float] = field(default_factory=dict)
    ladder: Ladder | None = None
    report: Path | None = None
    command: str = ""

    def manifest(self, config: TuneConfig, inputs: Mapping[str, str], found: Mapping[str, Any]) -> dict[str, Any]:
        """What the folder's manifest holds. found: what was found out once, on the way."""
        return {
            "kind": KIND,
            "config": config.to_json(),
            "base_model": self.base,
            "model": MODEL if self.model_path else None,
            "why": self.why,
            "proof": self.proof,
            "inputs": dict(inputs),
            "found": dict(found),
            "seconds": round(self.seconds, 1),
            "versions": library_versions(),
        }

    def summary(self) -> str:
        """What was tried, what is taken and why, what it is worth, and how to make it again."""
        found = [self._attempts_as_text()] if self.ladder else []
        if self.comparison:
            found += [f"proof: {self.base} → the chosen model, on {self.comparison.dataset}", self.comparison.table(), ""]
        if self.forgetting:
            found += [f"forgetting: the same on {self.forgetting.dataset}", self.forgetting.table(), ""]
        return "\n".join([*found, *fact_lines(self._facts(), 8)])

    def parts(self) -> list[Part]:
        """The same, as tables."""
        compared = [part for one in (self.comparison, self.forgetting) if one for part in one.parts()]
        return [*([self._attempts()] if self.ladder else []), *compared, self._facts()]

    def to_frame(self) -> DataFrame:
        """A row for each trial, and the soup: recipe, steps, ndcg, gain, low, high, seconds, chosen."""
        return self._attempts().to_frame()

    def _attempts(self) -> Table:
        attempts = self.ladder.attempts if self.ladder else ()
        rows = [
            {
                "recipe": one.recipe,
                "steps": one.steps,
                "nDCG@10": one.ndcg,
                "gain": one.gain.difference,
                "low": one.gain.low,
                "high": one.gain.high,
                "seconds": one.seconds,
                "chosen": "★" if one.is_chosen else "",
            }
            for one in attempts
        ]
        digits = dict.fromkeys(("gain", "low", "high"), "+.4f")
        return Table.of(rows, **{"nDCG@10": ".4f", "seconds": ".0f", **digits})

    def _attempts_as_text(self) -> str:
        assert self.ladder is not None
        lines = [_HEAD.format("recipe", "steps", "nDCG@10", "− base", "95 % interval", "s")]
        for one in self.ladder.attempts:
            name = f"{one.recipe}{' ★' if one.is_chosen else ''}"
            bounds = f"{one.gain.low:+.4f} … {one.gain.high:+.4f}"
            figures = (f"{one.steps:,}", f"{one.ndcg:.4f}", f"{one.gain.difference:+.4f}", bounds, f"{one.seconds:,.0f}")
            lines.append(_HEAD.format(name, *figures))
        return "\n".join([*lines, ""])

    def _facts(self) -> list[Fact]:
        # Fusions stand in the report.
        proof = ", ".join(f"{name} {value:.4f}" for name, value in self.proof.items() if " + " not in name)
        over = self.over_stock
        stock = f"{over.difference:+.4f} [{over.low:+.4f}, {over.high:+.4f}] nDCG@10 on the test part" if over else ""
        facts = [
            ("chosen", self.why),
            ("proof", f"nDCG@10: {proof}" if proof else ""),
            ("", f"over the stock recipe {stock}" if stock else ""),
            ("model", str(self.model_path) if self.model_path else f"{self.base}, the base: nothing was better beyond chance"),
            ("report", str(self.report) if self.report else ""),
            ("again", self.command),
            ("took", f"{self.seconds / 60:,.1f} min"),
        ]
        return [(name, text) for name, text in facts if text]
