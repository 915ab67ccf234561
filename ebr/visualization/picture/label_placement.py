"""Where names stand on a map: at their clusters, none over another, none outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
