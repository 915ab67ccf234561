"""The report as one page of HTML that needs nothing beside itself: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ebr.config.options import Language
from ebr.data.evaluation.comparison import CONFIDENCE, Change, Interval, Outcome
from ebr.retrieval.measures.changes import Slice
from ebr.retrieval.measures.compression import Compressed
from ebr.retrieval.measures.measurement import UNJUDGED
from ebr.retrieval.report import text as report_text
from ebr.retrieval.report.parts import MOST_CHARACTERS, Contrast, DatasetReport, Ladder, Measured, Report
from ebr.retrieval.report.text import Wording, facts_to_show, isolated, score, signed
from ebr.visualization.report_plots import differences_svg, forest_svg, ladder_svg, sizes_svg

HEADLINE = "ndcg@10"
TOLERANCE = 0.01
"""Of nDCG@10: what a smaller vector may lose and still count as good as the full one."""
LEAST_QUERIES = 20
"""A slice has no p-value. On fewer queries than these its interval excludes zero too often to be believed alone."""


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: its data address, its words, and what it says to somebody who cannot see it."""

    uri: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Verdict:
    """What became of nDCG@10. state: better, worse, unclear or measured, a key of the words."""

    state: str
    sentence: Markup
    evidence: Markup
    elsewhere: Markup | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table of all results."""

    name: str
    is_base: bool
    means: Mapping[str, float]


@dataclass(frozen=True)
class ContrastPart:
    """A contrast with its pictures, and its slices, each with its outcome.

    gained, lost: the names of the metrics that rose, and that fell, clearly even for one of several.
    """

    contrast: Contrast
    forest: Picture
    per_query: Picture
    slices: list[tuple[Slice, str]]
    slices_forest: Picture | None
    gained: str
    lost: str


@dataclass(frozen=True)
class DatasetPart:
    """One evaluation set as the page shows it. best: by metric, the value that its column's best row shows."""

    report: DatasetReport
    metrics: list[str]
    rows: list[Row]
    best: Mapping[str, str]
    contrasts: list[ContrastPart]


@dataclass(frozen=True)
class SizePart:
    """What smaller vectors of one model cost. cells: by dimension, then by kind."""

    name: str
    kinds: list[str]
    cells: Mapping[int, Mapping[str, Compressed]]
    smallest: Compressed
    sentence: Markup
    picture: Picture


@dataclass(frozen=True)
class LadderPart:
    """What was tried before the choice, with its picture."""

    ladder: Ladder
    picture: Picture


def report_html(report: Report, language: Language) -> str:
    """The whole page. language: "en" or "zh".

    Everything from data is escaped; characters that UTF-8 or HTML cannot hold become U+FFFD. Equal reports give equal pages.
    """
    words = Wording(language)
    models = [*report.main.measured[1:], *report.main.measured[:1]]
    return _environment().get_template("report.html").render(
        report=report,
        t=words,
        verdicts=_verdicts(report, words),
        main=_dataset(report.main, words),
        forgetting=_dataset(report.forgetting, words) if report.forgetting else None,
        ladder=_ladder(report.ladder, words) if report.ladder else None,
        sizes=[_sizes(model, words) for model in models if model.compression],
        facts_of=lambda facts: facts_to_show(facts, language),
        unjudged=UNJUDGED,
        most_characters=MOST_CHARACTERS,
    )  # fmt: skip


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ebr.retrieval.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: report_text.printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    texts = (report_text.shortened, report_text.without_unit, isolated)
    for function in (score, signed, report_text.probability, *texts):
        environment.filters[function.__name__] = function
    environment.filters["columns"] = lambda rows: list(zip(*rows, strict=True))
    return environment


def _verdicts(report: Report, words: Wording) -> list[Verdict]:
    """One for each tuned model; a model alone is reported without a judgement."""
    if report.main.contrasts:
        return [_verdict(contrast, report.forgetting, words) for contrast in report.main.contrasts]
    model = report.main.measured[0]
    n_queries, n_documents = len(model.evaluation.query_ids), model.evaluation.n_documents
    counts = {"queries": words.count("queries", n_queries), "documents": words.count("documents", n_documents)}
    sentence = words("alone", model=isolated(model.name), value=score(model.evaluation.mean(HEADLINE)))
    return [Verdict("measured", sentence, words("measured_on", **counts))]


def _verdict(contrast: Contrast, forgetting: DatasetReport | None, words: Wording) -> Verdict:
    comparison, change = contrast.comparison, contrast.comparison.change(HEADLINE)
    interval = change.interval
    state = change.outcome.value
    key = "one_query" if comparison.n_queries == 1 else {"better": "rose", "worse": "fell", "unclear": "same"}[state]
    names = {"base": isolated(contrast.base), "tuned": isolated(contrast.tuned)}
    size = score(abs(interval.difference))
    sentence = words(key, **names, size=size, before=score(change.base), after=score(change.tuned))
    evidence = words(
        "sure",
        low=signed(interval.low),
        high=signed(interval.high),
        queries=words.count("queries", comparison.n_queries),
        documents=words.count("documents", comparison.n_documents),
    )
    return Verdict(state, sentence, evidence, _elsewhere(contrast, forgetting, words))


def _elsewhere(contrast: Contrast, forgetting: DatasetReport | None, words: Wording) -> Markup | None:
    """What became of the same model on the other set."""
    if forgetting is None:
        return None
    for other in forgetting.contrasts:
        if (other.base, other.tuned) == (contrast.base, contrast.tuned):
            change = other.comparison.change(HEADLINE)
            key = {"better": "other_rose", "worse": "other_fell", "unclear": "other_same"}[change.outcome.value]
            return words(key, dataset=isolated(forgetting.name), difference=signed(change.interval.difference))
    return None


def _dataset(report: DatasetReport, words: Wording) -> DatasetPart:
    rows = [Row(model.name, model is report.measured[0], model.evaluation.means()) for model in report.measured]
    rows += [Row(name, False, means) for name, means in report.baselines.items()]
    metrics = list(report.measured[0].evaluation.scores)
    shown = {metric: [row.means[metric] for row in rows if metric in row.means] for metric in metrics}
    best = {metric: score(max(values)) for metric, values in shown.items() if len(values) > 1}
    evaluations = {model.name: model.evaluation for model in report.measured}
    contrasts = []
    for contrast in report.contrasts:
        before, after = evaluations[contrast.base].scores[HEADLINE], evaluations[contrast.tuned].scores[HEADLINE]
        contrasts.append(_contrast(contrast, after - before, words))
    return DatasetPart(report, metrics, rows, best, contrasts)


def _contrast(contrast: Contrast, differences: npt.NDArray[np.float64], words: Wording) -> ContrastPart:
    changes = contrast.comparison.changes
    counts = {key: f"{getattr(contrast.counts, key):,}" for key in ("wins", "ties", "losses")}
    lines = [(words.metric(change.metric), change.interval, change.outcome.value) for change in changes]
    slices = [(entry, _slice_outcome(entry).value) for entry in contrast.slices]
    slice_lines = [(report_text.without_unit(entry.label), entry.interval, outcome) for entry, outcome in slices]
    return ContrastPart(
        contrast=contrast,
        forest=_forest(lines, words("forest_caption"), words),
        per_query=_picture(differences_svg(differences), words("sorted_alt", **counts), words("sorted_caption")),
        slices=slices,
        slices_forest=_forest(slice_lines, words("slices_caption", least=LEAST_QUERIES), words) if slices else None,
        gained=_listed(_clear_among_all(changes, Outcome.BETTER), words),
        lost=_listed(_clear_among_all(changes, Outcome.WORSE), words),
    )


def _slice_outcome(entry: Slice) -> Outcome:
    if entry.n_queries < LEAST_QUERIES or entry.interval.low <= 0 <= entry.interval.high:
        return Outcome.UNCLEAR
    return Outcome.BETTER if entry.interval.low > 0 else Outcome.WORSE


def _clear_among_all(changes: Sequence[Change], outcome: Outcome) -> list[Change]:
    """Those of one outcome by Holm's p: of several metrics judged at once, chance makes one look clear more often."""
    return [change for change in changes if change.outcome is outcome and change.p_holm <= 1 - CONFIDENCE]


def _listed(changes: Sequence[Change], words: Wording) -> str:
    return ("、" if words.language == "zh" else ", ").join(
        f"{words.metric(change.metric)} {signed(change.interval.difference)}" for change in changes
    )


def _forest(lines: Sequence[tuple[str, Interval, str]], caption: Markup, words: Wording) -> Picture:
    """lines: label, interval and outcome of each."""
    labels, intervals, outcomes = zip(*lines, strict=True)
    differences, lows, highs = zip(*((i.difference, i.low, i.high) for i in intervals), strict=True)
    svg = forest_svg(labels, differences, lows, highs, outcomes)
    values = "; ".join(f"{label} {signed(i.difference)} [{signed(i.low)}, {signed(i.high)}]" for label, i, _ in lines)
    return _picture(svg, words("forest_alt", values=values), caption)


def _sizes(model: Measured, words: Wording) -> SizePart:
    entries = sorted(model.compression, key=lambda entry: (-entry.dim, -entry.bytes_per_vector))
    full = max(entries, key=lambda entry: entry.bytes_per_vector)
    good_enough = full.ndcg - TOLERANCE
    smallest = min(
        (entry for entry in entries if entry.ndcg >= good_enough), key=lambda entry: (entry.bytes_per_vector, -entry.ndcg)
    )
    kinds = list(dict.fromkeys(entry.kind for entry in entries))
    cells: dict[int, dict[str, Compressed]] = {}
    for entry in entries:
        cells.setdefault(entry.dim, {})[entry.kind] = entry
    curves = {
        kind: ([e.bytes_per_vector for e in entries if e.kind == kind], [e.ndcg for e in entries if e.kind == kind])
        for kind in kinds
    }
    sentence = words(
        "smallest_is_full" if smallest is full else "smallest",
        model=isolated(model.name),
        full=score(full.ndcg),
        full_bytes=words("bytes", n=f"{full.bytes_per_vector:,}"),
        dim=smallest.dim,
        kind=smallest.kind,
        bytes=words("bytes", n=f"{smallest.bytes_per_vector:,}"),
        value=score(smallest.ndcg),
    )
    picture = _picture(sizes_svg(curves, good_enough), words("sizes_alt"), words("sizes_caption"))
    return SizePart(model.name, kinds, cells, smallest, sentence, picture)


def _ladder(ladder: Ladder, words: Wording) -> LadderPart:
    climbs: dict[str, tuple[list[float], list[float]]] = {}
    for attempt in sorted(ladder.attempts, key=lambda attempt: attempt.steps):
        if attempt.left_out is None:
            steps, ndcg = climbs.setdefault(attempt.recipe, ([], []))
            steps.append(attempt.steps)
            ndcg.append(attempt.ndcg)
    ordered = dict(sorted(climbs.items(), key=lambda climb: -max(climb[1][1])))
    chosen = next(((one.recipe, float(one.steps)) for one in ladder.attempts if one.is_chosen), None)
    svg = ladder_svg(ordered, next(iter(ladder.baselines.values())), chosen)
    values = "; ".join(f"{one.recipe} {one.steps:,}: {score(one.ndcg)}" for one in ladder.attempts)
    return LadderPart(ladder, _picture(svg, words("ladder_alt", values=values), words("ladder_caption")))


def _picture(svg: str, alt: Markup, caption: Markup) -> Picture:
    address = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")
    return Picture(address, alt.unescape(), caption.unescape())
