"""Maps as picture files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from numpy.typing import NDArray

from ebr.config.options import Language
from ebr.visualization.colours import LabelGroup, Theme
from ebr.visualization.figures import picture_format, quiet_about_glyphs, save_figure, shortened
from ebr.visualization.fonts import DEFAULT_FAMILY, choose_fonts
from ebr.visualization.picture.columns import MapColumn
from ebr.visualization.picture.label_placement import name_clusters
from ebr.visualization.picture.points import Points
from ebr.visualization.picture.style import SCALE, Style, scale_of, style_of
from ebr.visualization.project.projection import Projection, Settings
from ebr.visualization.words import words

SHARED_START = "PCA of before"
"""Where both maps of a comparison begin."""

_UNSAID = ("engine", "neighbor search", "early learning rate", "iterations", "epochs", "points", "fitted on")
_CHINESE = {
    "perplexity": "困惑度",
    "learning rate": "学习率",
    "neighbors": "邻居数",
    "min dist": "最小距离",
    "start": "初始位置",
    "mode": "模式",
    "seed": "随机种子",
    "variance on x": "x 轴方差占比",
    "variance on y": "y 轴方差占比",
    "placed by neighbours": "按邻居放置",
    "because": "原因",
}
_CHINESE_VALUES = {
    "one point is too few": "只有一个点",
    "all vectors point the same way": words("undefined", "zh")["all vectors point the same way"],
    "reproducible": "可复现",
    "fast": "快速",
    "none": "无",
    "given": "给定",
    SHARED_START: "微调前的 PCA",
}


def settings_text(settings: Settings, language: Language = "en") -> str:
    """What made a map, on one line, as it stands below it: perplexity 30, learning rate 1,667; the rest is in its numbers."""
    said = {name: _value(name, value) for name, value in settings.items() if name not in _UNSAID}
    if language == "zh":
        said = {_CHINESE.get(name, name): _chinese_value(text) for name, text in said.items()}
    return {"en": ", ", "zh": "，"}[language].join(f"{name} {text}" for name, text in said.items())


def _value(name: str, value: float | int | str) -> str:
    if isinstance(value, str) or name == "seed":
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _chinese_value(text: str) -> str:
    return _CHINESE_VALUES.get(text) or re.sub(r"^(\d+) points are too few$", r"只有 \1 个点", text)


def method_text(method: str, language: Language = "en") -> str:
    """A projection's name for people: t-SNE, or PCA instead of t-SNE."""
    return re.sub("^PCA instead of (.*)$", r"PCA（代替 \1）", method) if language == "zh" else method


_PANEL_INCHES = 6.4
_DPI = 150
_BAR_INCHES = 1.1
"""What a colour bar takes beside the panels."""
_LABEL_COLUMNS = 30  # a label of more columns is cut; a Chinese character is two columns wide
_TITLE_COLUMNS_A_PANEL = 44
_NOTE_COLUMNS = 84
_RASTER_ABOVE = 100_000  # points in an .svg or .pdf: beyond, one embedded image is smaller and opens faster than as many shapes
_CELLS = 60
"""Cells a side of the grid on which the density of points is counted."""
_COVERED = 0.55
"""Of the cell where the middle point lies, the share that its points cover."""
_SMALLEST, _LARGEST = 1.2, 7.5
"""Diameters of a point, in typographic points."""
_SEEN = 220
"""Divided by the root of N: a diameter below which the points of a map of N small islands could not be told from dust."""
_FAINTEST, _FULL = 0.22, 0.92
_FIGURE_SPACE = "\u2007"  # as wide as a digit
_WARNING = {"light": "#B23A00", "dark": "#FFB15C"}


def draw_maps(projections: Sequence[Projection], column: MapColumn, path: Path, *, title: str, **options: object) -> None:
    """Draw maps side by side, coloured by a column, into path; options as for map_figure.

    Raises ConfigError for another suffix than .png, .svg, .pdf, and ValueError when the lengths differ or nothing is to draw.
    """
    picture_format(path)
    save_figure(map_figure(projections, column, title=title, **options), path)  # type: ignore[arg-type]


def map_figure(
    projections: Sequence[Projection],
    column: MapColumn,
    *,
    title: str,
    groups: list[LabelGroup] | None = None,
    n_all: int | None = None,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    panel_titles: Sequence[str] = (),
    marked: Sequence[tuple[int, str]] = (),
    theme: Theme = "light",
    language: Language = "en",
    preferred_fonts: Sequence[str] = (),
    seed: int = 42,
) -> Figure:
    """The figure that draw_maps writes.

    title: what was embedded, by which model; the number of points is added, and n_all, of how many rows they are a sample.
    groups: the labels with their colours, if they are known already. notes, warnings, panel_titles: one a map, '' = none; a map
    without a title has its method. marked: rows that get a number on every map, and their texts, listed below. Up to
    MOST_IN_LEGEND labels stand in a legend with their counts, more at their clusters as far as they fit; numbers get a colour
    bar. preferred_fonts: families to try first for characters that the default font lacks. seed: which point covers which.
    """
    if not projections or not column.texts or any(len(one.coords) != len(column.texts) for one in projections):
        raise ValueError(f"{[len(one.coords) for one in projections]} points on the maps but {len(column.texts)} labels")
    style = style_of(projections, column, theme, language, seed, groups)
    n_maps = len(projections)
    below, warned = [*notes, *[""] * n_maps][:n_maps], [*warnings, *[""] * n_maps][:n_maps]
    heads = [title or one.method for title, one in zip([*panel_titles, *[""] * n_maps], projections, strict=False)]
    texts = [title, column.name, *below, *warned, *heads, *(text for _, text in marked), *(g.text for g in style.groups)]
    fonts = choose_fonts([*texts, *style.words.values()], preferred_fonts)
    with mpl.rc_context({"font.family": fonts.families, "text.color": style.ground.ink}), quiet_about_glyphs():
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
        size = (_PANEL_INCHES * n_maps, _PANEL_INCHES + 1.1)
        figure = Figure(figsize=size, dpi=_DPI, layout=layout, facecolor=style.ground.paper)
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(1, n_maps, squeeze=False)[0])
        for axes, one, head, note, warning in zip(panels, projections, heads, below, warned, strict=True):
            _draw_panel(axes, one, style, head)
            _write_below(axes, one, style, note, warning)
            _mark(axes, one, style, marked)
        _add_key(figure, panels, style)
        if marked:
            _list_marked(figure, style, marked)
        n_points = len(column.texts)
        count = style.words["points" if n_all in (None, n_points) else "points_of"].format(n=n_points, all=n_all)
        _add_heading(figure, f"{shortened(title, _TITLE_COLUMNS_A_PANEL * n_maps)} · {count}")
        if style.is_named_on_the_map:
            name_clusters(figure, panels, projections, style)
    return figure


# ---------------------------------------------------------------- a panel


def _draw_panel(axes: Axes, projection: Projection, style: Style, head: str) -> None:
    coords = projection.coords
    # One scale both ways: a map is read by its distances, never by its axes.
    centre = (coords.max(axis=0) + coords.min(axis=0)) / 2
    reach = float(np.ptp(coords, axis=0).max()) * 0.53 or 1.0
    diameter, opacity = _sizes(coords, centre, reach)
    colours = np.column_stack([style.colours, opacity])[style.order]
    Points(axes, coords[style.order], diameter, colours, rasterized=len(coords) > _RASTER_ABOVE)
    axes.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach), xticks=[], yticks=[])
    axes.set_box_aspect(1)
    axes.set_facecolor(style.ground.paper)
    for spine in axes.spines.values():
        spine.set_color(style.ground.frame)
    axes.set_title(shortened(head, _TITLE_COLUMNS_A_PANEL), fontsize=12, color=style.ground.ink, parse_math=False)


def _sizes(coords: NDArray[np.float32], centre: NDArray[np.float32], reach: float) -> tuple[float, NDArray[np.float64]]:
    """The diameter of all points, in typographic points, and the (N,) opacity of each, by how dense the map is there.

    Where the median point lies, points cover about half the paper; where they cover it many times over, they are fainter, so
    that a dense core still shows its shape and its mixture.
    """
    cells = np.clip(((coords - centre) / (2 * reach) + 0.5) * _CELLS, 0, _CELLS - 1).astype(np.int64)
    places = cells[:, 0] * _CELLS + cells[:, 1]
    crowd = np.bincount(places, minlength=_CELLS * _CELLS)[places].astype(np.float64)
    cell = (_PANEL_INCHES * 72 / _CELLS) ** 2
    area = _COVERED * cell / float(np.median(crowd))
    smallest = float(np.clip(_SEEN / np.sqrt(len(coords)), _SMALLEST, 3.0))
    diameter = float(np.clip(2 * np.sqrt(area / np.pi), smallest, _LARGEST))
    layers = crowd * np.pi * (diameter / 2) ** 2 / cell
    return diameter, np.clip(_FULL / np.sqrt(np.maximum(layers, 1)), _FAINTEST, _FULL)


def _write_below(axes: Axes, projection: Projection, style: Style, note: str, warning: str) -> None:
    """What was set, how far to trust it, and the warning, in lines below the map."""
    lines = [line for text in (settings_text(projection.settings, style.language), note) for line in _wrapped(text)]
    axes.set_xlabel("\n".join(lines), fontsize=8.5, color=style.ground.faint, parse_math=False)
    if warning:
        axes.annotate(
            "\n".join(_wrapped(warning)),
            (0.5, 0.985),
            xycoords="axes fraction",
            ha="center",
            va="top",
            fontsize=9,
            color=_WARNING[style.theme],
            parse_math=False,
            bbox={
                "facecolor": style.ground.paper,
                "edgecolor": _WARNING[style.theme],
                "boxstyle": "round,pad=0.4",
                "alpha": 0.92,
            },
        )


def _wrapped(text: str) -> list[str]:
    """A text in lines of at most _NOTE_COLUMNS columns, broken at spaces where there are any."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest:
        line = shortened(rest, _NOTE_COLUMNS)
        if line == rest:
            return [*lines, line]
        fits = len(line) - 1
        at = rest.rfind(" ", 0, fits + 1)
        at = at if at > fits // 2 else fits
        lines, rest = [*lines, rest[:at].rstrip()], rest[at:].lstrip()
    return lines


def _mark(axes: Axes, projection: Projection, style: Style, marked: Sequence[tuple[int, str]]) -> None:
    for number, (row, _) in enumerate(marked, start=1):
        x, y = projection.coords[row]
        axes.plot(
            [x], [y], marker="o", markersize=9, markerfacecolor="none", markeredgecolor=style.ground.ink, markeredgewidth=1.1
        )
        text = axes.annotate(
            f"{number}", (x, y), (5, 5), textcoords="offset points", fontsize=8.5, fontweight="bold", clip_on=True,
            fontfamily=DEFAULT_FAMILY,  # a Chinese family without a bold face makes matplotlib say so
        )  # fmt: skip
        text.set(color=style.ground.ink, path_effects=[withStroke(linewidth=2.5, foreground=style.ground.paper)])


# ---------------------------------------------------------------- round the panels


def _add_key(figure: Figure, panels: Sequence[Axes], style: Style) -> None:
    """What the colours mean: a legend, a colour bar, or a line that says what the names on the map leave out."""
    if style.column.numbers is not None:
        figure.set_figwidth(figure.get_figwidth() + _BAR_INCHES)
        scale = ScalarMappable(scale_of(style.column.numbers), SCALE[style.theme])
        bar = figure.colorbar(scale, ax=list(panels), shrink=0.6, aspect=30, pad=0.02)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(colors=style.ground.faint, labelsize=9)
        bar.set_label(shortened(style.column.name, _LABEL_COLUMNS), color=style.ground.ink, parse_math=False)
    elif style.groups and not style.is_named_on_the_map:
        _add_legend(figure, style)


def _add_legend(figure: Figure, style: Style) -> None:
    """Put the legend right of the panels and widen the figure by what it takes."""
    dots = [Line2D([], [], marker="o", linestyle="", markersize=7, color=group.colour) for group in style.groups]
    texts = [
        f"{shortened(group.text, _LABEL_COLUMNS)} ({group.count:,})"
        if group.kind == "label"
        else style.words[group.kind].format(n=group.count)
        for group in style.groups
    ]
    legend = figure.legend(dots, texts, loc="outside right center", frameon=False, fontsize=9.5, labelcolor=style.ground.ink)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.set_figwidth(figure.get_figwidth() + legend.get_window_extent().width / figure.dpi + 0.2)


def _list_marked(figure: Figure, style: Style, marked: Sequence[tuple[int, str]]) -> None:
    columns = int(_NOTE_COLUMNS * 1.6)
    lines = [
        f"{number}".rjust(2, _FIGURE_SPACE) + f"  {shortened(text, columns)}"
        for number, (_, text) in enumerate(marked, start=1)
    ]
    text = figure.supxlabel("\n".join([style.words["moved"], *lines]), x=0.03, ha="left", fontsize=8.5, color=style.ground.ink)
    text.set_parse_math(False)
    _narrow(text, 0.92 * figure.bbox.width)
    figure.set_figheight(figure.get_figheight() + 0.165 * (len(lines) + 1))


def _add_heading(figure: Figure, text: str) -> None:
    """Put a title over the whole figure."""
    _narrow(figure.suptitle(text, fontsize=13, parse_math=False), 0.96 * figure.bbox.width)


def _narrow(text: Text, width: float) -> None:
    """Make a text smaller where wide letters would run over so many pixels."""
    text.set_fontsize(float(text.get_fontsize()) / max(1.0, text.get_window_extent().width / width))
