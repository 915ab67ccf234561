"""Labels as names at their clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ebr.visualization.colours import LabelGroup, readable
from ebr.visualization.figures import shortened
from ebr.visualization.picture.label_placement import Box, densest_spot, place_names
from ebr.visualization.picture.style import Style
from ebr.visualization.project.projection import Projection

_NAME_COLUMNS = 26


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
