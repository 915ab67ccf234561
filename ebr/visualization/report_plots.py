"""Small pictures for the evaluation report: plain numbers in, SVG text out, the same text for the same numbers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from ebr.visualization.fonts import choose_fonts

ROSE, FELL, UNCLEAR = "#0072B2", "#D55E00", "#767676"
"""Okabe and Ito's blue and vermilion, told apart by colour-blind eyes, and a grey for what shows no clear change."""
_OUTCOME_COLOURS = {"better": ROSE, "worse": FELL, "unclear": UNCLEAR}

KIND_COLOURS = {"float32": "#0072B2", "float16": "#E69F00", "int8": "#009E73", "binary": "#CC79A7"}
_KIND_MARKERS = {"float32": "o", "float16": "s", "int8": "^", "binary": "D"}
_CLIMB_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676")
_INCHES_WIDE = 5.4
_MOST_STEPS = 400  # queries drawn one by one; beyond, evenly spaced ranks show the same shape
# Dates, versions and the address of matplotlib's site have no place in a page that shall be equal for equal numbers.
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def forest_svg(
    labels: Sequence[str],
    differences: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    outcomes: Sequence[str],
) -> str:
    """One line a label, the first on top: a dot at the difference, its interval, and zero as the line to clear.

    labels: short, drawn as they are. outcomes: "better" is drawn blue, "worse" vermilion, "unclear" grey; who calls judges, for
    an interval alone does not always say.
    Raises ValueError when the lengths differ, nothing is to draw or an outcome is none of these.
    """
    if not labels or not len(labels) == len(differences) == len(lows) == len(highs) == len(outcomes):
        counts = f"{len(labels)} labels, {len(differences)} differences, {len(lows)} and {len(highs)} bounds"
        raise ValueError(f"{counts}, {len(outcomes)} outcomes")
    if unknown := set(outcomes) - _OUTCOME_COLOURS.keys():
        raise ValueError(f"unknown outcomes {sorted(unknown)}; known are {', '.join(_OUTCOME_COLOURS)}")
    with _drawing(labels):
        figure, axes = _panel(0.55 + 0.3 * len(labels))
        axes.axvline(0, color="#333333", linewidth=1)
        for row, (middle, low, high, outcome) in enumerate(zip(differences, lows, highs, outcomes, strict=True)):
            colour = _OUTCOME_COLOURS[outcome]
            axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([middle], [row], marker="o", markersize=6, color=colour)
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        _scale_differences(axes, [*lows, *highs, 0.0])
        axes.tick_params(axis="y", length=0)
        return _svg_text(figure)


def differences_svg(differences: npt.NDArray[np.float64]) -> str:
    """The (Q,) differences of single queries, the largest loss at the left, the largest gain at the right.

    Raises ValueError when there is none.
    """
    if not len(differences):
        raise ValueError("there are no differences to draw")
    ordered = np.sort(np.asarray(differences, np.float64))
    ranks = np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_STEPS)).round().astype(np.int64)
    heights, edges = ordered[ranks], np.linspace(0, len(ordered), len(ranks) + 1)
    with _drawing([]):
        figure, axes = _panel(2.1)
        for part, colour in ((np.minimum(heights, 0), FELL), (np.maximum(heights, 0), ROSE)):
            axes.stairs(part, edges, fill=True, color=colour, linewidth=0)
        axes.axhline(0, color="#333333", linewidth=1)
        reach = max(float(np.abs(ordered).max()) * 1.08, 0.01)
        axes.set(xlim=(0, len(ordered)), ylim=(-reach, reach))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(_signed))
        axes.grid(axis="y", alpha=0.25)
        return _svg_text(figure)


def sizes_svg(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], good_enough: float) -> str:
    """nDCG@10 (upwards) against bytes a vector (to the right, doubling), one line a kind of number.

    curves: kind → (bytes, ndcg). good_enough: drawn as a dashed line; a point on or above it loses too little to matter.
    Raises ValueError when there is no point to draw.
    """
    if not any(len(sizes) for sizes, _ in curves.values()):
        raise ValueError("there are no sizes to draw")
    with _drawing(curves):
        figure, axes = _panel(2.9)
        axes.axhline(good_enough, color="#333333", linewidth=1, linestyle=(0, (4, 3)))
        for kind, (sizes, ndcg) in curves.items():
            order = np.argsort(sizes)
            (line,) = axes.plot(np.asarray(sizes)[order], np.asarray(ndcg)[order], label=kind, linewidth=1.6, markersize=5)
            line.set(color=KIND_COLOURS.get(kind, UNCLEAR), marker=_KIND_MARKERS.get(kind, "o"))
        _double(axes, (size for sizes, _ in curves.values() for size in sizes))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
        return _svg_text(figure)


def ladder_svg(
    climbs: Mapping[str, tuple[Sequence[float], Sequence[float]]], base: float, chosen: tuple[str, float] | None
) -> str:
    """nDCG@10 (upwards) against training steps (to the right, doubling), one line a recipe, one point a trial.

    climbs: recipe → (steps, ndcg), the recipe that climbed highest first. base: the untuned model's, a dashed line. chosen: the
    name and steps of what was taken, drawn as a star; None = none was.
    Raises ValueError when there is no point to draw.
    """
    if not any(len(steps) for steps, _ in climbs.values()):
        raise ValueError("there are no trials to draw")
    with _drawing(climbs):
        figure, axes = _panel(3.4)
        axes.axhline(base, color="#333333", linewidth=1, linestyle=(0, (4, 3)))
        for place, (name, (steps, ndcg)) in enumerate(climbs.items()):
            colour = _CLIMB_COLOURS[place % len(_CLIMB_COLOURS)]
            axes.plot(steps, ndcg, label=name, color=colour, linewidth=1.6, marker="o", markersize=4.5)
            for x, y in zip(steps, ndcg, strict=True):
                if chosen == (name, x):
                    axes.plot([x], [y], color=colour, marker="*", markersize=15, markeredgecolor="#333333")
        _double(axes, (x for steps, _ in climbs.values() for x in steps))
        axes.margins(x=0.08, y=0.12)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
        return _svg_text(figure)


def _double(axes: Axes, places: Iterable[float]) -> None:
    """The axis to the right doubles at equal distances, with a number at each of the places that has room for one."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_spread_out(sorted({float(place) for place in places}))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _spread_out(ticks: Sequence[float], factor: float = 1.6) -> list[float]:
    """Those of rising ticks that keep a distance, so that their numbers do not run into each other on a doubling axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick >= factor * kept[-1]:
            kept.append(tick)
    return kept


def _panel(inches_high: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_INCHES_WIDE, inches_high), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=9.5)
    return figure, axes


def _scale_differences(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 0.002)  # so that a null comparison does not blow rounding errors up to the full width
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(_signed))
    axes.grid(axis="x", alpha=0.25)


def _signed(value: float, _: object) -> str:
    """+0.05, −0.05, 0: with the true minus, and without a sign for what rounds to nothing."""
    text = f"{value:+.4f}".rstrip("0").rstrip(".").replace("-", "−")
    return "0" if text in ("+0", "−0") else text


@contextmanager
def _drawing(texts: Iterable[str]) -> Iterator[None]:
    """Letters as outlines, so that the picture needs no font; and no random ids, so that equal pictures are equal texts."""
    fonts = choose_fonts(texts)
    settings = {
        "font.family": fonts.families,
        # Letters that no font here has are left to the fonts of whoever reads the page.
        "svg.fonttype": "none" if fonts.missing else "path",
        "svg.hashsalt": "ebr",
        "axes.unicode_minus": True,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # choose_fonts has said it once
        yield


def _svg_text(figure: Figure) -> str:
    """The <svg> element alone: the lines before it name a document type on another machine."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
