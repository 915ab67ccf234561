"""Maps and curves as picture files: .png, .svg or .pdf by the suffix, written aside and renamed into place."""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ebr.config.visualization import PICTURES
from ebr.data.files import write_aside
from ebr.errors import ConfigError
from ebr.visualization.fonts import choose_fonts
from ebr.visualization.projection import Projection

# Okabe & Ito's eight colours, told apart by colour-blind eyes, then twelve chosen to lie far from those and from each other.
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000"),
    *("#773322", "#BB55FF", "#44DD66", "#880077", "#EE0055", "#00C8C8", "#666600", "#112299"),
    *("#FF9D8A", "#0B5D1E", "#BB9944", "#A8D5A8"),
)
MISSING_LABEL = "(no label)"
MISSING_COLOUR = "#CFCFCF"
OTHER_COLOUR = "#9E9E9E"

_PANEL_INCHES = 5.6
_LABEL_COLUMNS = 30  # a label of more columns is cut; a Chinese character is two columns wide
_TITLE_COLUMNS_A_PANEL = 38
_UNDRAWABLE = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, line and paragraph separators
_MARKED_UP_TO = 40  # records on a curve: beyond, dots would run together
_RASTER_ABOVE = 2000  # points in an .svg or .pdf: beyond, one embedded image is smaller and opens faster than as many shapes


@dataclass(frozen=True)
class _Series:
    """One legend entry: its text, its colour and the rows that it stands for."""

    text: str
    colour: str
    rows: NDArray[np.int64]


def draw_maps(
    projections: Sequence[Projection],
    labels: Sequence[str],
    path: Path,
    *,
    title: str,
    notes: Sequence[str] = (),
    preferred_fonts: Sequence[str] = (),
    seed: int = 42,
) -> None:
    """Draw maps side by side, coloured by label, with one legend, into path.

    labels: one text a point, an empty one is missing; beyond 20 labels the 19 largest keep a colour. title: what was embedded,
    by which model; the number of points is added. notes: one line a map, shown below its settings. preferred_fonts: families
    to try first for characters that the default font lacks. seed: the order in which points cover each other.
    Raises ConfigError for another suffix than .png, .svg, .pdf, and ValueError when the lengths differ or nothing is to draw.
    """
    _picture_format(path)
    _save(map_figure(projections, labels, title=title, notes=notes, preferred_fonts=preferred_fonts, seed=seed), path)


def map_figure(
    projections: Sequence[Projection],
    labels: Sequence[str],
    *,
    title: str,
    notes: Sequence[str] = (),
    preferred_fonts: Sequence[str] = (),
    seed: int = 42,
) -> Figure:
    """The figure that draw_maps writes."""
    if not projections or not labels or any(len(projection.coords) != len(labels) for projection in projections):
        raise ValueError(f"{[len(p.coords) for p in projections]} points on the maps but {len(labels)} labels")
    series = _series(labels)
    fonts = choose_fonts([title, *notes, *(entry.text for entry in series)], preferred_fonts)
    order = _drawing_order(labels, series, seed)
    colours = np.full(len(labels), PALETTE[0], dtype=object)
    for entry in series:
        colours[entry.rows] = entry.colour
    with mpl.rc_context({"font.family": fonts.families}), _quiet_about_glyphs():
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
        figure = Figure(figsize=(_PANEL_INCHES * len(projections), _PANEL_INCHES + 1.1), dpi=150, layout=layout)
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(projections), squeeze=False)[0]
        for axes, projection, note in zip(panels, projections, notes or [""] * len(projections), strict=True):
            _draw_panel(axes, projection, note, order, colours)
        if series:
            _add_legend(figure, series)
        _add_heading(figure, f"{_shortened(title, _TITLE_COLUMNS_A_PANEL * len(projections))} · {len(labels):,} points")
    return figure


def _series(labels: Sequence[str]) -> list[_Series]:
    """Legend entries, the largest label first, then the rest and the missing in grey; none at all when no row has a label."""
    array = np.asarray(labels, dtype=object)
    counts = Counter(label for label in labels if label)
    if not counts:
        return []
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    n_named = len(ranked) if len(ranked) <= len(PALETTE) else len(PALETTE) - 1
    entries = [(_shortened(ranked[i], _LABEL_COLUMNS), PALETTE[i], array == ranked[i]) for i in range(n_named)]
    entries.append(("other", OTHER_COLOUR, np.isin(array, np.array(ranked[n_named:], dtype=object))))
    entries.append((MISSING_LABEL, MISSING_COLOUR, array == ""))
    return [_Series(f"{text} ({mask.sum():,})", colour, np.flatnonzero(mask)) for text, colour, mask in entries if mask.any()]


def _shortened(text: str, columns: int) -> str:
    """Text on one line in so many columns, an East Asian wide character being two; what is cut ends in an ellipsis."""
    # Not str.isprintable(): it rejects joiners, and every character that is younger than this Python.
    text = "".join(" " if unicodedata.category(c) in _UNDRAWABLE else c for c in text)
    text = " ".join(text.split())
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text]
    if sum(widths) <= columns:
        return text
    fits = int(np.searchsorted(np.cumsum(widths), columns - 1, side="right"))
    return text[:fits].rstrip() + "…"


def _drawing_order(labels: Sequence[str], series: Sequence[_Series], seed: int) -> NDArray[np.int64]:
    """Rows in the order to draw them: grey ones lowest; the others mixed, so that no label hides the one before it."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    is_coloured = np.ones(len(labels), dtype=bool)
    for entry in series:
        is_coloured[entry.rows] = entry.colour not in (OTHER_COLOUR, MISSING_COLOUR)
    return np.concatenate([shuffled[~is_coloured[shuffled]], shuffled[is_coloured[shuffled]]])


def _draw_panel(axes: Axes, projection: Projection, note: str, order: NDArray[np.int64], colours: NDArray[np.object_]) -> None:
    coords, n_points = projection.coords, len(projection.coords)
    axes.scatter(
        coords[order, 0],
        coords[order, 1],
        c=list(colours[order]),
        s=float(np.clip(14_000 / n_points, 4, 45)),
        alpha=float(np.clip(1.15 - 0.13 * np.log10(n_points), 0.45, 0.9)),
        linewidths=0,
        rasterized=n_points > _RASTER_ABOVE,
    )
    # One scale both ways: a map is read by its distances, never by its axes.
    centre = (coords.max(axis=0) + coords.min(axis=0)) / 2
    reach = float(np.ptp(coords, axis=0).max()) * 0.53 or 1.0
    axes.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach), xticks=[], yticks=[])
    axes.set_box_aspect(1)
    for spine in axes.spines.values():
        spine.set_color("#D0D0D0")
    settings = ", ".join(
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}" for name, value in projection.settings.items()
    )
    below = "\n".join(line for line in (settings, note) if line)
    axes.set_title(projection.method, fontsize=12)
    axes.set_xlabel(below, fontsize=9, color="#444444", parse_math=False)


def _add_legend(figure: Figure, series: Sequence[_Series]) -> None:
    """Put the legend right of the panels and widen the figure by what it takes."""
    dots = [Line2D([], [], marker="o", linestyle="", markersize=7, color=entry.colour) for entry in series]
    legend = figure.legend(dots, [entry.text for entry in series], loc="outside right center", frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.set_figwidth(figure.get_figwidth() + legend.get_window_extent().width / figure.dpi + 0.2)


def _add_heading(figure: Figure, text: str) -> None:
    """Put a title over the whole figure, smaller where wide letters would run over its edges."""
    heading = figure.suptitle(text, fontsize=13, parse_math=False)
    excess = heading.get_window_extent().width / (0.96 * figure.bbox.width)
    heading.set_fontsize(13 / max(1.0, excess))


def draw_loss_curve(history: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw training loss, evaluation loss and nDCG@10 (right axis) over the steps into path; False, and no file, without any.

    history: records with "step" and any of "loss", "eval_loss", "ndcg_at_10"; what is missing, None or not finite is left out.
    Raises ConfigError for another suffix than .png, .svg, .pdf.
    """
    _picture_format(path)
    loss, eval_loss, ndcg = (_curve(history, key) for key in ("loss", "eval_loss", "ndcg_at_10"))
    if not (len(loss) or len(eval_loss) or len(ndcg)):
        return False
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    lines = [
        axes.plot(*curve.T, color=colour, marker="o" if len(curve) <= _MARKED_UP_TO else "", markersize=4, label=text)[0]
        for curve, colour, text in ((loss, PALETTE[0], "training loss"), (eval_loss, PALETTE[3], "evaluation loss"))
        if len(curve)
    ]
    axes.set(xlabel="step", ylabel="loss" if lines else "")
    if len(ndcg):
        lines.append(_draw_ndcg(axes.twinx() if lines else axes, ndcg))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top"]].set_visible(False)
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines), frameon=False)
    _save(figure, path)
    return True


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """(n, 2) steps and values, by step, of the records that have both."""
    pairs = [(record.get("step"), record.get(key)) for record in history]
    known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
    known = known[np.isfinite(known).all(axis=1)]
    return known[np.argsort(known[:, 0], kind="stable")]


def _draw_ndcg(axes: Axes, ndcg: NDArray[np.float64]) -> Line2D:
    best_step, best = ndcg[ndcg[:, 1].argmax()]
    text = f"nDCG@10, best {best:.3f} at step {best_step:,.0f}"
    axes.set_ylabel("nDCG@10")
    axes.spines[["top"]].set_visible(False)
    return axes.plot(*ndcg.T, color=PALETTE[2], linestyle="--", marker="D", markersize=5, label=text)[0]


def _picture_format(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in PICTURES:
        raise ConfigError(f"output_path: {path} ends in {suffix or 'no suffix'!r}; a picture is .png, .svg or .pdf")
    return suffix[1:]


def _save(figure: Figure, path: Path) -> None:
    file_format = _picture_format(path)
    # A date or a random id inside the file would make equal pictures differ.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(file_format)
    with mpl.rc_context({"svg.hashsalt": "ebr"}), _quiet_about_glyphs(), write_aside(path) as aside:
        figure.savefig(aside, format=file_format, metadata=metadata)


@contextmanager
def _quiet_about_glyphs() -> Iterator[None]:
    """choose_fonts has said once what cannot be shown; matplotlib would say it again for every character."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
