"""The report that a user shows to a colleague: report.html to read, report.json for programs."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from ebr.config.options import Language
from ebr.data.evaluation.comparison import REPORT_JSON
from ebr.data.files.write import write_aside, write_json
from ebr.errors import MissingPackageError, require_extra
from ebr.retrieval.measures.changes import ChangedQuery
from ebr.retrieval.report.parts import MOST_CHARACTERS, Contrast, DatasetReport, Measured, Report

__all__ = ["Contrast", "DatasetReport", "Measured", "Report", "report_json", "write_report"]

log = logging.getLogger(__name__)

REPORT_HTML = "report.html"


def write_report(folder: Path, report: Report, language: Language) -> tuple[Path | None, Path]:
    """Write report.html and report.json into folder, each whole or not at all, the JSON last; returns both paths.

    language: "en" or "zh", of the page; the JSON's names are English. Neither file stands when the other cannot be made.
    Without the packages of the extra `report` there is no page, which is said, and its path is None.
    """
    try:
        require_extra("report", f"{REPORT_HTML}, which is left out,")
    except MissingPackageError as error:
        log.warning("%s", error)
        (folder / REPORT_HTML).unlink(missing_ok=True)  # of an evaluation before, and no longer true
        return None, _write_record(folder, report)
    from ebr.retrieval.report.page import report_html

    page, record = report_html(report, language), report_json(report)
    with write_aside(folder / REPORT_HTML) as aside:
        aside.write_text(page, encoding="utf-8", newline="\n")
    write_json(folder / REPORT_JSON, record)
    return folder / REPORT_HTML, folder / REPORT_JSON


def _write_record(folder: Path, report: Report) -> Path:
    write_json(folder / REPORT_JSON, report_json(report))
    return folder / REPORT_JSON


def report_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON: models by name, baselines, comparisons, forgetting, leaks, space, compression, thresholds.

    All facts stand beside them; a fact of the run never hides one of these entries. Numbers that are not finite are None. Texts
    of documents are cut at 4,000 characters; their ids stand beside them.
    """
    main = _dataset(report.main)
    record = {
        "kind": "evaluation",
        **main,
        "forgetting": _dataset(report.forgetting) if report.forgetting else None,
        "leaks": dataclasses.asdict(report.leaks) | {"is_leak": report.leaks.is_leak} if report.leaks else None,
        "leak_note": report.leak_note,
    }
    if report.ladder:
        record["ladder"] = dataclasses.asdict(report.ladder)
    plain: dict[str, Any] = _plain(record | {name: fact for name, fact in report.facts.items() if name not in record})
    return plain


def _dataset(report: DatasetReport) -> dict[str, Any]:
    return {
        "dataset": {"name": report.name, **report.facts},
        "models": {model.name: model.evaluation.means() for model in report.measured},
        "baselines": report.baselines,
        "comparisons": [_comparison(contrast) for contrast in report.contrasts],
        "space": {model.name: dataclasses.asdict(model.space) for model in report.measured if model.space},
        "compression": {
            model.name: [dataclasses.asdict(entry) for entry in model.compression]
            for model in report.measured
            if model.compression
        },
        "thresholds": {model.name: model.thresholds.to_json() for model in report.measured if model.thresholds},
        "model_facts": {model.name: model.facts for model in report.measured},
    }


def _comparison(contrast: Contrast) -> dict[str, Any]:
    comparison = contrast.comparison
    return {
        "base": contrast.base,
        "tuned": contrast.tuned,
        "n_queries": comparison.n_queries,
        "n_documents": comparison.n_documents,
        "metrics": comparison.to_json()["metrics"],
        **dataclasses.asdict(contrast.counts),
        "slices": [dataclasses.asdict(entry) for entry in contrast.slices],
        "worse": [_query(query) for query in contrast.worse],
        "better": [_query(query) for query in contrast.better],
    }


def _query(query: ChangedQuery) -> dict[str, Any]:
    record = dataclasses.asdict(query)
    for document in (*record["found_before"], *record["found_after"], *record["expected"]):
        if len(document["text"]) > MOST_CHARACTERS:
            document["text"] = document["text"][:MOST_CHARACTERS] + "…"
    return record


def _plain(value: Any) -> Any:  # noqa: ANN401
    """What JSON and UTF-8 can hold: numpy's numbers become Python's, nan None, half a surrogate pair U+FFFD."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {_plain(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
