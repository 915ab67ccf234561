"""Which colour a label has: told apart by colour-blind eyes, and most different where labels lie beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Theme = Literal["light", "dark"]

# Okabe & Ito's eight colours, told apart by colour-blind eyes, then twelve chosen to lie far from those and from each other.
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000"),
    *("#773322", "#BB55FF", "#44DD66", "#880077", "#EE0055", "#00C8C8", "#666600", "#112299"),
    *("#FF9D8A", "#0B5D1E", "#BB9944", "#A8D5A8"),
)
_ON_DARK = {
    **{"#000000": "#FFFFFF", "#0072B2": "#2A93D5", "#773322": "#B5714F", "#880077": "#D36BC6", "#666600": "#A8A84A"},
    **{"#112299": "#7A8CF5", "#0B5D1E": "#4FA866"},
}
"""The dark ones of the palette would drown in a dark ground."""
GREYS = {"light": ("#9E9E9E", "#CFCFCF"), "dark": ("#7A7A7A", "#4C4C4C")}
"""Of the labels without a colour of their own, and of rows without a label."""
PAPER: dict[Theme, str] = {"light": "#FFFFFF", "dark": "#15181D"}
"""What maps are drawn on."""
MOST_NAMED = 100
OTHER_LABEL = "other"
MISSING_LABEL = "(no label)"

_EASILY_TOLD = 8
"""So many labels take the colours in their order: each of Okabe & Ito's goes beside each."""
_POINTS_A_CELL = 4
_MOST_CELLS = 4096
"""Of the grid on which labels are found to touch; with fewer points, so many cells that each would hold four of them."""
_ROUNDS = 3
_TELLS_APART = 25.0
"""Colours at this distance in CIELAB are told apart at a glance, as dots of a few pixels too."""
_CONTRAST_OF_TEXT = 7.0
"""Of small text to its ground, at least (WCAG 2.2, level AAA: points of the same colour shine through)."""
_TO_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


@dataclass(frozen=True)
class LabelGroup:
    """The rows (n,) int64 of one label, and their colour "#RRGGBB". text: as it stands in the data, not shortened."""

    text: str
    colour: str
    rows: NDArray[np.int64]
    kind: Literal["label", "other", "missing"]

    @property
    def count(self) -> int:
        """How many rows it has."""
        return len(self.rows)


def palette(theme: Theme) -> tuple[str, ...]:
    """The colours for one ground."""
    return PALETTE if theme == "light" else tuple(_ON_DARK.get(colour, colour) for colour in PALETTE)


def colour_groups(labels: Sequence[str], maps: Sequence[NDArray[np.float32]], *, theme: Theme = "light") -> list[LabelGroup]:
    """The labels with their colours, the largest first; then the rest beyond MOST_NAMED in grey, then rows without a label.

    labels: N texts, '' = missing. maps: the (N, 2) maps that are drawn; labels that touch on any of them get colours far from
    each other, also where more labels than colours make them repeat. The same input gives the same colours.
    """
    counts = Counter(label for label in labels if label)
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    named, colours = ranked[:MOST_NAMED], palette(theme)
    code_of = {label: code for code, label in enumerate(named)}
    codes = np.array([code_of.get(label, -1 if label else -2) for label in labels], dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(-2, len(named) + 1))
    missing, other, *own = (order[start:stop] for start, stop in pairwise(edges))
    few = len(named) <= _EASILY_TOLD
    chosen = np.arange(len(named)) if few else _spread(_touching(codes, maps, len(named)), colours)
    groups = [LabelGroup(text, colours[chosen[code]], own[code], "label") for code, text in enumerate(named)]
    grey_other, grey_missing = GREYS[theme]
    groups += [LabelGroup(OTHER_LABEL, grey_other, other, "other")] if len(other) else []
    return groups + ([LabelGroup(MISSING_LABEL, grey_missing, missing, "missing")] if len(missing) else [])


def _touching(codes: NDArray[np.int64], maps: Sequence[NDArray[np.float32]], n_labels: int) -> NDArray[np.float64]:
    """(L, L): how much two labels mix or touch on the maps; 0 on the diagonal.

    Of each point, the share of every label in the cells round it; summed over a label's points, by the size of the smaller one.
    """
    touch = np.zeros((n_labels, n_labels))
    own = codes[codes >= 0]
    sizes = np.maximum(np.bincount(own, minlength=n_labels), 1)
    for coords in maps if len(own) > 1 and n_labels > 1 else ():
        cells, (columns, rows) = _cells(coords[codes >= 0])
        counts = np.bincount(cells * n_labels + own, minlength=columns * rows * n_labels).astype(np.float64)
        padded = np.pad(counts.reshape(columns, rows, n_labels), ((1, 1), (1, 1), (0, 0)))
        around = np.sum([padded[x : x + columns, y : y + rows] for x in range(3) for y in range(3)], axis=0)
        shares = around / np.maximum(around.sum(axis=2, keepdims=True), 1)
        pairs = counts.reshape(-1, n_labels).T @ shares.reshape(-1, n_labels)
        touch = np.maximum(touch, (pairs + pairs.T) / np.minimum(sizes[:, None], sizes[None]))
    np.fill_diagonal(touch, 0)
    return touch


def _cells(points: NDArray[np.float32]) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """(n,): which square cell each of the points (n, 2) lies in, column by column; and the number of columns and of rows."""
    spans = np.maximum(np.ptp(points, axis=0).astype(np.float64), 1e-30)
    n_cells = np.clip(len(points) / _POINTS_A_CELL, 1, _MOST_CELLS)
    width = max(np.sqrt(spans.prod() / n_cells), spans.max() / n_cells)
    columns, rows = (int(side) for side in np.ceil(spans / width))
    x, y = np.minimum((points - points.min(axis=0)) / width, [columns - 1, rows - 1]).astype(np.int64).T
    return x * rows + y, (columns, rows)


def _spread(touch: NDArray[np.float64], colours: Sequence[str]) -> NDArray[np.int64]:
    """For each label the place of its colour: each colour equally often, and like ones not beside each other.

    Colours are given out by size of label, each time the one that lies least near to those of the neighbours, and then
    exchanged between two labels as long as that helps.
    """
    n_labels = len(touch)
    likeness = np.exp(-_distances(tuple(colours)) / _TELLS_APART)
    places = np.arange(n_labels) % len(colours)
    free = list(places)
    chosen = np.full(n_labels, -1, dtype=np.int64)
    for label in range(n_labels):
        given = chosen >= 0
        cost = touch[label, given] @ likeness[chosen[given]] if given.any() else np.zeros(len(colours))
        best = min(range(len(free)), key=lambda place: (round(float(cost[free[place]]), 9), place))
        chosen[label] = free.pop(best)
    for _ in range(_ROUNDS):
        for first in range(n_labels):
            for second in range(first + 1, n_labels):
                _exchange_if_better(chosen, first, second, touch, likeness)
    return chosen


def _exchange_if_better(
    chosen: NDArray[np.int64], first: int, second: int, touch: NDArray[np.float64], likeness: NDArray[np.float64]
) -> None:
    a, b = chosen[first], chosen[second]
    if a == b or not (touch[first].any() or touch[second].any()):
        return
    around = touch[first] - touch[second]
    around[[first, second]] = 0  # what lies between the two stays as it is
    if around @ (likeness[b] - likeness[a])[chosen] < -1e-9:
        chosen[first], chosen[second] = b, a


@cache
def _distances(colours: tuple[str, ...]) -> NDArray[np.float64]:
    """(C, C) Euclidean distances in CIELAB (CIE 1976)."""
    lab = np.array([lab_of(colour) for colour in colours])
    found: NDArray[np.float64] = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return found


def readable(colour: str, ground: str) -> str:
    """The colour "#RRGGBB", darkened on a light ground or lightened on a dark one as far as small text needs (WCAG 2.2)."""
    channels, paper = _channels(colour), _luminance(_channels(ground))
    end = 0.0 if paper > 0.5 else 1.0
    for share in np.linspace(0, 1, 41):
        mixed = channels + share * (end - channels)
        lighter, darker = sorted((_luminance(mixed), paper), reverse=True)
        if (lighter + 0.05) / (darker + 0.05) >= _CONTRAST_OF_TEXT:
            break
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in mixed)


def lab_of(colour: str) -> NDArray[np.float64]:
    """(3,) CIELAB of "#RRGGBB": sRGB under D65 (IEC 61966-2-1, CIE 15)."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], _TO_LUMINANCE, [0.0193, 0.1192, 0.9505]])
    ratio = to_xyz @ _linear(_channels(colour)) / np.array([0.95047, 1.0, 1.08883])
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def _channels(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255


def _linear(channels: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return found


def _luminance(channels: NDArray[np.float64]) -> float:
    return float(_TO_LUMINANCE @ _linear(channels))
