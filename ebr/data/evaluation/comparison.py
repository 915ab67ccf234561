"""Base against tuned on the same queries: the figures of an evaluation as they are written down, read again and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ebr.data.result_tables import DataFrame, Part, Shown, Table
from ebr.data.text.counted import counted

REPORT_JSON = "report.json"
"""The report of an evaluation, for programs."""
EVALUATION_JSON = "evaluation.json"
"""The comparison alone, in the folder of a model."""
HEADLINES = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@10": "Recall@10", "recall@100": "Recall@100"}
CONFIDENCE = 0.95
_COLUMNS = "{:<10}  {:>6}  {:>6}  {:>10}  {:<18}  {:>6}"


@dataclass(frozen=True)
class Interval:
    """A mean difference over n queries, and the confidence interval [low, high] around it."""

    difference: float
    low: float
    high: float
    n: int


class Outcome(str, Enum):
    """What became of a metric, as far as the queries show it."""

    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Change:
    """One metric before and after: the two means, and the difference with its interval and its p-values."""

    metric: str
    base: float
    tuned: float
    interval: Interval
    p: float
    """Two-sided, of a paired randomisation test."""
    p_holm: float
    """The same, for as many metrics as were compared."""

    @property
    def outcome(self) -> Outcome:
        """Clear only where interval and test agree: on few queries a bootstrap interval excludes zero far too often."""
        if self.p > 1 - CONFIDENCE or self.interval.low <= 0 <= self.interval.high:
            return Outcome.UNCLEAR
        return Outcome.BETTER if self.interval.low > 0 else Outcome.WORSE


@dataclass(frozen=True)
class Comparison(Shown):
    """Base against tuned on the same queries, one Change for each metric."""

    dataset: str
    n_queries: int
    n_documents: int
    changes: tuple[Change, ...]
    per_query: Table = field(default=Table({}), repr=False, compare=False)
    """A row for each query: its id, its text, and each of HEADLINES under base and under tuned, as ndcg@10_base."""

    def summary(self) -> str:
        """The table."""
        return self.table()

    def parts(self) -> list[Part]:
        """The table and the verdict."""
        rows = [
            {"metric": HEADLINES[change.metric], **_plain_values(change)}
            for change in self.changes
            if change.metric in HEADLINES
        ]
        digits = dict.fromkeys(("base", "tuned", "p", "p_holm"), ".4f") | dict.fromkeys(("difference", "low", "high"), "+.4f")
        return [Table.of(rows, **digits), self.verdict()]

    def to_frame(self) -> DataFrame:
        """A row for each metric: metric, base, tuned, difference, low, high (of the interval), p, p_holm, outcome."""
        return Table.of({"metric": change.metric, **_plain_values(change)} for change in self.changes).to_frame()

    def table(self) -> str:
        """Aligned text for people, closed by one line that says in words what became of nDCG@10."""
        header = _COLUMNS.format("metric", "base", "tuned", "difference", f"{CONFIDENCE:.0%} interval".replace("%", " %"), "p")
        headlines = [change for change in self.changes if change.metric in HEADLINES]
        return "\n".join([header, *map(_table_row, headlines), "", self.verdict()])

    def change(self, metric: str) -> Change:
        """What became of one metric."""
        return next(change for change in self.changes if change.metric == metric)

    def verdict(self) -> str:
        """Whether nDCG@10 rose, fell, or shows no clear difference, and on how many queries and documents."""
        change = self.change("ndcg@10")
        interval = change.interval
        if change.outcome is Outcome.BETTER:
            outcome = f"nDCG@10 rose by {interval.difference:.4f}: the interval lies above zero"
        elif change.outcome is Outcome.WORSE:
            outcome = f"nDCG@10 fell by {-interval.difference:.4f}: the interval lies below zero"
        elif self.n_queries == 1:
            outcome = "nDCG@10 shows no clear difference: one query has no spread to judge it by"
        elif interval.low <= 0 <= interval.high:
            outcome = "nDCG@10 shows no clear difference: the interval includes zero"
        else:
            outcome = f"nDCG@10 shows no clear difference: chance alone does as much with p = {change.p:.2f}"
        return f"{outcome} ({counted(self.n_queries, 'query', 'queries')}, {counted(self.n_documents, 'document')})."

    def to_json(self) -> dict[str, Any]:
        """Plain values: counts, confidence, and for each metric base, tuned, difference, low, high, p, p_holm, outcome."""
        return {
            "dataset": self.dataset,
            "n_queries": self.n_queries,
            "n_documents": self.n_documents,
            "confidence": CONFIDENCE,
            "metrics": {change.metric: _plain_values(change) for change in self.changes},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Comparison:
        """What to_json wrote, and what stands in a report.json: dataset, n_queries, n_documents, metrics."""
        n_queries = record["n_queries"]
        changes = tuple(
            Change(
                metric,
                found["base"],
                found["tuned"],
                Interval(found["difference"], found["low"], found["high"], n_queries),
                found["p"],
                found["p_holm"],
            )
            for metric, found in record["metrics"].items()
        )
        return cls(record["dataset"], n_queries, record["n_documents"], changes)


def _table_row(change: Change) -> str:
    interval = change.interval
    bounds = f"[{interval.low:+.4f}, {interval.high:+.4f}]"
    return _COLUMNS.format(
        HEADLINES[change.metric],
        f"{change.base:.4f}",
        f"{change.tuned:.4f}",
        f"{interval.difference:+.4f}",
        bounds,
        f"{change.p:.4f}",
    )


def _plain_values(change: Change) -> dict[str, float | str]:
    interval = change.interval
    return {
        "base": change.base,
        "tuned": change.tuned,
        "difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
        "p": change.p,
        "p_holm": change.p_holm,
        "outcome": change.outcome.value,
    }
