"""What all panels of a figure share: the colours of points, of paper and ink, and the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize, to_rgb
from numpy.typing import NDArray

from ebr.config.options import Language
from ebr.visualization.colours import GREYS, PAPER, LabelGroup, Theme, colour_groups, palette
from ebr.visualization.picture.columns import MapColumn
from ebr.visualization.project.projection import Projection
from ebr.visualization.words import words

MOST_IN_LEGEND = 12
"""Labels beyond this many are named at their clusters."""
SCALE = {"light": mpl.colormaps["viridis_r"].resampled(64), "dark": mpl.colormaps["viridis"].resampled(64)}
"""Colours of numbers; more than 64 look the same and make a vector file that holds them slow to write."""


@dataclass(frozen=True)
class ThemeColours:
    """Colours that are not data's."""

    paper: str
    ink: str
    faint: str
    frame: str


THEMES = {
    "light": ThemeColours(PAPER["light"], "#1A1A1A", "#555555", "#D0D0D0"),
    "dark": ThemeColours(PAPER["dark"], "#F0F0F0", "#AAB0B8", "#3A4048"),
}


@dataclass(frozen=True)
class Style:
    """What all panels share: (N, 3) colours, the order of drawing, the groups (none for a column of numbers), language."""

    column: MapColumn
    groups: list[LabelGroup]
    colours: NDArray[np.float64]
    order: NDArray[np.int64]
    theme: Theme
    language: Language

    @property
    def words(self) -> Mapping[str, str]:
        """What stands on the map beside data's own words."""
        return words("map", self.language)

    @property
    def ground(self) -> ThemeColours:
        """Paper and ink."""
        return THEMES[self.theme]

    @property
    def labels(self) -> list[LabelGroup]:
        """The groups that have a colour of their own, the largest first."""
        return [group for group in self.groups if group.kind == "label"]

    @property
    def is_named_on_the_map(self) -> bool:
        """Whether there are too many labels for a legend."""
        return len(self.labels) > MOST_IN_LEGEND


def style_of(
    projections: Sequence[Projection],
    column: MapColumn,
    theme: Theme,
    language: Language,
    seed: int,
    groups: list[LabelGroup] | None = None,
) -> Style:
    """The colour of each row, and the order in which to draw them: the same for equal input and seed.

    groups: what colour_groups makes of the column, if it is known already.
    """
    n_rows = len(column.texts)
    shuffled = np.random.default_rng(seed).permutation(n_rows)
    if (numbers := column.numbers) is not None:
        colours = SCALE[theme](scale_of(numbers)(np.nan_to_num(numbers, nan=float(np.nanmin(numbers)))))[:, :3]
        given = np.isfinite(numbers)
        colours[~given] = to_rgb(GREYS[theme][1])
        return Style(column, [], colours, _grey_first(shuffled, ~given), theme, language)
    groups = groups or colour_groups(column.texts, [one.coords for one in projections], theme=theme)
    colours = np.empty((n_rows, 3))
    is_grey = np.zeros(n_rows, dtype=bool)
    for group in groups:
        colours[group.rows] = to_rgb(group.colour)
        is_grey[group.rows] = group.kind != "label"
    if is_grey.all():  # no label at all: nothing to be grey beside
        colours[:], groups = to_rgb(palette(theme)[0]), []
    return Style(column, groups, colours, _grey_first(shuffled, is_grey), theme, language)


def _grey_first(shuffled: NDArray[np.int64], is_grey: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Grey points lowest; the others mixed, so that no label hides the one before it."""
    return np.concatenate([shuffled[is_grey[shuffled]], shuffled[~is_grey[shuffled]]])


def scale_of(numbers: NDArray[np.float64]) -> Normalize:
    """From the second to the 98th of a hundred: a few outliers do not take all the colours."""
    low, high = np.nanpercentile(numbers, [2, 98])
    return Normalize(float(low), float(high) if high > low else float(low) + 1, clip=True)
