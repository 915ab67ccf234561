"""What a check before training reports: findings, how bad each is, and the figures they are judged by."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ebr.data.result_tables import DataFrame, Part, Shown, Table

_COLUMNS = 110
_MARGIN = 14
_MOST_LINES = 60
"""A page."""
_FINDING = ("name", "severity", "what", "why", "advice")


class Severity(str, Enum):
    """How bad a finding is: a run is wasted, it will be worse than it could be, or it is good to know."""

    CRITICAL = "critical"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing found. name: never changes, for programs. what: the measured figures. advice: the exact option to change."""

    name: str
    severity: Severity
    what: str
    why: str
    advice: str

    def lines(self) -> list[str]:
        """The finding in a few lines of at most 110 columns."""
        parts = (f"{self.severity.value.upper()} {self.name}: {self.what}", f"why: {self.why}", f"do: {self.advice}")
        head, *rest = (textwrap.wrap(part, _COLUMNS - 4, break_long_words=False) for part in parts)
        return [head[0], *(f"    {line}" for line in (*head[1:], *(line for part in rest for line in part)))]

    def to_json(self) -> dict[str, str]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "severity": self.severity.value,
            "what": self.what,
            "why": self.why,
            "advice": self.advice,
        }


@dataclass(frozen=True)
class Fact:
    """One figure, or a few that belong together. value: plain JSON values; text: the same for people, on one line."""

    name: str
    value: Any
    text: str


@dataclass(frozen=True)
class CheckReport(Shown):
    """What was found, the worst first, and the figures."""

    findings: tuple[Finding, ...]
    facts: tuple[Fact, ...]

    @classmethod
    def of(cls, findings: Sequence[Finding], facts: Sequence[Fact]) -> CheckReport:
        """The report, its findings in order of severity."""
        order = list(Severity)
        return cls(tuple(sorted(findings, key=lambda finding: order.index(finding.severity))), tuple(facts))

    @property
    def is_healthy(self) -> bool:
        """Whether there is nothing but notes."""
        return all(finding.severity is Severity.NOTE for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One line."""
        counts = {severity: sum(finding.severity is severity for finding in self.findings) for severity in Severity}
        words = [_counted(number, severity.value) for severity, number in counts.items() if number]
        state = "healthy" if self.is_healthy else "needs attention"
        return f"training check: {state}" + (f" ({', '.join(words)})" if words else "")

    def lines(self) -> list[str]:
        """The report on one page; findings that do not fit are named, the mildest first to go."""
        lines = [self.verdict, *(self._fact_line(fact) for fact in self.facts)]
        for place, finding in enumerate(self.findings):
            more = finding.lines()
            if len(lines) + len(more) > _MOST_LINES - 1:
                left = ", ".join(one.name for one in self.findings[place:])
                return [*lines, *textwrap.wrap(f"and: {left} (see training_check.json)", _COLUMNS)]
            lines += more
        return lines

    def _fact_line(self, fact: Fact) -> str:
        return f"{fact.name.replace('_', ' ').ljust(_MARGIN)}{fact.text}"

    def summary(self) -> str:
        """The page."""
        return "\n".join(self.lines())

    def parts(self) -> list[Part]:
        """The verdict, every finding, the figures."""
        findings = [Table.of(finding.to_json() for finding in self.findings)] if self.findings else []
        return [self.verdict, *findings, [(fact.name.replace("_", " "), fact.text) for fact in self.facts]]

    def to_frame(self) -> DataFrame:
        """A row for each finding, the worst first: name, severity, what, why, advice."""
        return Table.of((finding.to_json() for finding in self.findings), _FINDING).to_frame()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the verdict, every finding, every figure by its name."""
        facts: Mapping[str, Any] = {fact.name: fact.value for fact in self.facts}
        return {
            "healthy": self.is_healthy,
            "findings": [finding.to_json() for finding in self.findings],
            "facts": dict(facts),
        }


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 or word == "critical" else f"{number} {word}s"
