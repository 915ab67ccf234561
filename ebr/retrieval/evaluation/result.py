"""What an evaluation found: metrics, comparisons and where they are written down; as text, as tables and as DataFrames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ebr.data.evaluation.leaks import leak_line
from ebr.data.result_tables import DataFrame, Fact, Part, Shown, Table, fact_lines
from ebr.data.text.cut_texts import CutTexts, cut_lines
from ebr.data.text.terminal_text import pad_text, text_columns
from ebr.errors import ConfigError

if TYPE_CHECKING:
    from ebr.data.evaluation.comparison import Comparison
    from ebr.retrieval.report.write import DatasetReport, Report


@dataclass(frozen=True)
class EvaluationResult(Shown):
    """What was found, and where it is written down."""

    report: Report
    html: Path | None
    """None without the packages of the extra `report`."""
    json: Path
    runs: list[Path]
    leak_note: str
    seconds: float
    notes: tuple[str, ...] = ()
    """What was done with the sets that whoever gave them may not expect."""

    def summary(self) -> str:
        """The metrics of every model, what became of the base's, and where the report is."""
        lines = [*metrics_table(self.report.main), *self.notes]
        for found in self.report.main.contrasts:
            lines += ["", f"{found.base} → {found.tuned}", found.comparison.table()]
        if self.report.forgetting:
            for found in self.report.forgetting.contrasts:
                lines += ["", f"forgetting, on {self.report.forgetting.name}: {found.base} → {found.tuned}"]
                lines.append(found.comparison.table())
        return "\n".join([*lines, "", leak_line(self.report.leaks, self.leak_note), *fact_lines(self._facts(), 10)])

    def parts(self) -> list[Part]:
        """The metrics of every model, what became of the base's, and where the report is."""
        main, forgetting = self.report.main, self.report.forgetting
        parts: list[Part] = [_metrics(main), *self.notes]
        for dataset in (main, forgetting) if forgetting else (main,):
            for found in dataset.contrasts:
                on = f"forgetting, on {dataset.name}: " if dataset is forgetting else ""
                parts += [f"{on}{found.base} → {found.tuned}", *found.comparison.parts()]
        return [*parts, leak_line(self.report.leaks, self.leak_note), self._facts()]

    def to_frame(self) -> DataFrame:
        """A row for each model and baseline, a column for each metric."""
        return _metrics(self.report.main).to_frame()

    @property
    def per_query(self) -> Table:
        """A row for each query and model or baseline: model, query_id, query, and every metric."""
        return Table.of(
            {"model": name, **row} for name, ranking in self.report.main.rankings.items() for row in ranking.per_query.records()
        )

    def compare(self, base: str, tuned: str) -> Comparison:
        """Any two rows of the table against each other, BM25 and the hybrids too, on the queries of the evaluation set.

        Raises ConfigError for a name that the table has not.
        """
        from ebr.retrieval.measures.measurement import compare

        rankings = self.report.main.rankings
        if unknown := next((name for name in (base, tuned) if name not in rankings), None):
            raise ConfigError(f"compare: no {unknown!r} was measured; there are {', '.join(map(repr, rankings))}")
        return compare(rankings[base], rankings[tuned], seed=self.report.facts["config"]["seed"])

    def _facts(self) -> list[Fact]:
        reports = filter(None, (self.report.main, self.report.forgetting))
        cut = [("cut", f"{name}: {said}") for report in reports for name, said in _cut_texts(report)]
        page = [("report", str(self.html))] if self.html else []
        files = [*page, ("numbers", str(self.json)), *(("run", str(path)) for path in self.runs)]
        calibrated = [(model.name, model.thresholds) for model in self.report.main.measured if model.thresholds]
        points = [("threshold", f"{name}: {calibration.line()}") for name, calibration in calibrated]
        return [*points, *cut, *files, ("took", f"{self.seconds:,.1f} s")]


def _metrics(report: DatasetReport) -> Table:
    means = _means_by_model(report)
    return Table.of(({"model": name, **row} for name, row in means.items()), **dict.fromkeys(next(iter(means.values())), ".4f"))


def _means_by_model(report: DatasetReport) -> dict[str, dict[str, float]]:
    """The mean of each metric, of every model and baseline."""
    return {model.name: model.evaluation.means() for model in report.measured} | report.baselines


def _cut_texts(report: DatasetReport) -> Iterator[tuple[str, str]]:
    """What each model read only the beginning of."""
    for model in report.measured:
        queries, documents = (CutTexts(**model.facts["cut"][name]) for name in ("queries", "documents"))
        yield from ((model.name, said) for said in cut_lines((queries, documents)))


def metrics_table(report: DatasetReport) -> list[str]:
    """A row for each model and baseline, a column for each metric, aligned."""
    rows = _means_by_model(report)
    metrics = list(report.measured[0].evaluation.means())
    width = max(map(text_columns, [*rows, "model"]))
    lines = [pad_text("model", width) + "".join(f"  {metric:>10}" for metric in metrics)]
    for name, means in rows.items():
        lines.append(pad_text(name, width) + "".join(f"  {means[metric]:>10.4f}" for metric in metrics))
    return lines
