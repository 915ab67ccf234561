"""Labels as names at their clusters: none over another, none outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from ebr.visualization.colours import LabelGroup, readable
from ebr.visualization.figures import shortened
from ebr.visualization.picture.style import Style
from ebr.visualization.project.projection import Projection

_NAME_COLUMNS = 26
_LOOKED_AT = 400
_RADIUS = 0.03
"""Of the map's width: what lies this near belongs to the same spot."""
_RINGS = (1.0, 1.7, 2.6)
"""Distances that are tried round an anchor, in heights of the name."""
_DIRECTIONS = tuple((float(np.cos(angle)), float(np.sin(angle))) for angle in np.pi / 2 + np.arange(8) * np.pi / 4)
_ABOVE_BELOW_ON = (1.0, -1.0, 0.0)
_GAP = 2.0
"""Pixels between two names."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def holds(self, other: Box) -> bool:
        """Whether the other lies inside."""
        return self.x0 <= other.x0 and self.y0 <= other.y0 and self.x1 >= other.x1 and self.y1 >= other.y1

    def meets(self, other: Box) -> bool:
        """Whether the two share a pixel, or nearly."""
        apart_x = other.x0 >= self.x1 + _GAP or self.x0 >= other.x1 + _GAP
        return not (apart_x or other.y0 >= self.y1 + _GAP or self.y0 >= other.y1 + _GAP)


def densest_spot(points: NDArray[np.floating], width: float) -> NDArray[np.float64]:
    """(2,): the middle of the place where most of a label's points (n, 2) lie, never the gap between two islands.

    width: of the whole map. Looks at _LOOKED_AT evenly chosen points at most.
    """
    chosen = np.asarray(points, np.float64)[np.linspace(0, len(points) - 1, min(len(points), _LOOKED_AT)).round().astype(int)]
    x, y = chosen.T
    near = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2 <= (_RADIUS * width) ** 2
    found: NDArray[np.float64] = chosen[near[near.sum(axis=1).argmax()]].mean(axis=0)
    return found


def place_names(
    anchors: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], inside: Box, taken: Sequence[Box] = ()
) -> list[Box | None]:
    """A place for each name, all in pixels; None where none is free, or the name shows nothing. The first names choose first.

    anchors: what each stands at. sizes: width and height of each. taken: where nothing may stand.
    """
    placed: list[Box | None] = []
    occupied = list(taken)
    for anchor, size in zip(anchors, sizes, strict=True):
        if min(size) <= 0:  # nothing but characters that cannot be seen
            placed.append(None)
            continue
        found = next(
            (box for box in _candidates(anchor, size) if inside.holds(box) and not any(map(box.meets, occupied))), None
        )
        placed.append(found)
        if found is not None:
            occupied.append(found)
    return placed


def _candidates(anchor: tuple[float, float], size: tuple[float, float]) -> list[Box]:
    """Boxes to try: just above, just below, on the spot, then rings round it."""
    (x, y), (width, height) = anchor, size
    steps = [(0.0, up) for up in _ABOVE_BELOW_ON]
    steps += [(across * (ring + width / height / 2), up * ring) for ring in _RINGS for across, up in _DIRECTIONS]
    middles = [(x + across * height, y + up * height) for across, up in steps]
    return [Box(a - width / 2, b - height / 2, a + width / 2, b + height / 2) for a, b in middles]


def name_clusters(figure: Figure, panels: Sequence[Axes], projections: Sequence[Projection], style: Style) -> None:
    """Write each label at its densest spot on every map, the largest first, as long as there is room; say how many had it."""
    lines: list[str] = []
    grey = {group.kind: group.count for group in style.groups if group.kind != "label"}
    for word, kind in (("rest", "other"), ("none", "missing")):
        lines += [style.words[word].format(n=grey[kind])] if kind in grey else []
    for axes in panels:  # room for the line below, before places are looked for
        axes.set_xlabel("\n".join([axes.get_xlabel(), " · ".join([style.words["names"].format(shown=0, all=0), *lines])]))
    for _ in range(2):  # a square panel moves once more when the layout has made room for what stands below it
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, projection in zip(panels, projections, strict=True):
        shown = _name_panel(figure, axes, projection, style)
        named = style.words["names"].format(shown=shown, all=len(style.labels))
        axes.set_xlabel("\n".join([*axes.get_xlabel().split("\n")[:-1], " · ".join([named, *lines])]))


def _name_panel(figure: Figure, axes: Axes, projection: Projection, style: Style) -> int:
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    width = float(np.ptp(projection.coords, axis=0).max()) or 1.0
    spots = np.array([densest_spot(projection.coords[group.rows], width) for group in style.labels])
    anchors = [(float(x), float(y)) for x, y in axes.transData.transform(spots)]
    texts = [_name(axes, group, style) for group in style.labels]
    extents = [text.get_window_extent(renderer) for text in texts]
    inside = axes.get_window_extent(renderer)
    others = [*axes.lines, *(text for text in axes.texts if text not in texts)]  # rings, their numbers, a warning
    taken = [_box(one.get_window_extent(renderer)) for one in others]
    places = place_names(
        anchors, [(extent.width, extent.height) for extent in extents], Box(inside.x0, inside.y0, inside.x1, inside.y1), taken
    )
    for text, place in zip(texts, places, strict=True):
        if place is None:
            text.remove()
        else:
            middle = ((place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2)
            x, y = axes.transAxes.inverted().transform(middle)
            text.set_position((float(x), float(y)))
    return sum(place is not None for place in places)


def _name(axes: Axes, group: LabelGroup, style: Style) -> Text:
    """In a readable shade of its points' colour, so that the eye finds which of the near clusters it names."""
    halo = [withStroke(linewidth=2.6, foreground=style.ground.paper, alpha=0.85)]
    return axes.text(
        0.5, 0.5, shortened(group.text, _NAME_COLUMNS), transform=axes.transAxes, ha="center", va="center", fontsize=8,
        color=readable(group.colour, style.ground.paper), path_effects=halo, parse_math=False,
    )  # fmt: skip


def _box(extent: Bbox) -> Box:
    return Box(extent.x0, extent.y0, extent.x1, extent.y1)
