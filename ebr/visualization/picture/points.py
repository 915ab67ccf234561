"""The points of a map: fast as an image, and small and fast as shapes."""

from __future__ import annotations

import numpy as np
from matplotlib.artist import allow_rasterization
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_mixed import MixedModeRenderer
from matplotlib.collections import PathCollection
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, IdentityTransform
from numpy.typing import NDArray

_ONE_BY_ONE_UP_TO = 2_000
"""Dots that are written one by one, each in its own place in the order."""
_STAMPS = 600
"""About how often a stamp is set down, each time for all points of one colour in a layer; more would take longer."""
_FEWEST_LAYERS = 4
_OPACITIES = 8
"""Steps between no and full opacity, where shapes are stamped."""

_DOT = Path.unit_circle().transformed(Affine2D().scale(0.5))


class Points(PathCollection):
    """Dots (N, 2) of one diameter, in typographic points, and a colour (N, 4) each, the first lowest.

    matplotlib writes every dot into .svg and .pdf with a style of its own: 10 and 28 seconds of CPU for 100,000. Here all dots
    of a colour are one path of lines without length and with round ends, in layers, so that colours still lie mixed over each
    other: less than a second, and the .pdf has 1.5 MB and not 17.
    """

    def __init__(
        self, axes: Axes, coords: NDArray[np.floating], diameter: float, colours: NDArray[np.float64], *, rasterized: bool
    ) -> None:
        super().__init__(
            [_DOT],
            [diameter**2],
            facecolors=colours,
            linewidths=0,
            offsets=coords,
            offset_transform=axes.transData,
            rasterized=rasterized,
        )
        self.set_transform(IdentityTransform())
        self._coords, self._diameter = coords, diameter
        axes.add_collection(self)

    @allow_rasterization  # type: ignore[untyped-decorator]
    def draw(self, renderer: RendererBase) -> None:
        """Draw all dots: one by one, or by stamps in a vector file of many."""
        is_vector = isinstance(renderer, MixedModeRenderer) and not self.get_rasterized()
        if is_vector and self.get_visible() and len(self._coords) > _ONE_BY_ONE_UP_TO:
            renderer.open_group("dots", self.get_gid())
            self._stamp(renderer)
            renderer.close_group("dots")
        else:
            super().draw(renderer)

    def _stamp(self, renderer: RendererBase) -> None:
        colours = np.array(self.get_facecolor())
        colours[:, 3] = np.maximum(np.round(colours[:, 3] * _OPACITIES), 1) / _OPACITIES
        kinds, kind = np.unique(colours, axis=0, return_inverse=True)
        where = self.get_offset_transform().transform(self._coords)
        context = renderer.new_gc()
        context.set_clip_rectangle(self.get_clip_box())
        context.set_linewidth(self._diameter)  # a vector file has 72 units an inch
        context.set_capstyle("round")
        for layer in np.array_split(np.arange(len(kind)), max(_FEWEST_LAYERS, _STAMPS // len(kinds))):
            for one in np.unique(kind[layer]):
                context.set_foreground(tuple(kinds[one]), isRGBA=True)
                renderer.draw_path(context, _dots(where[layer[kind[layer] == one]]), IdentityTransform())
        context.restore()


def _dots(places: NDArray[np.floating]) -> Path:
    """Lines of no length, (n, 2): their round ends are dots as wide as the pen."""
    ends = np.repeat(places, 2, axis=0)
    codes = np.tile(np.array([Path.MOVETO, Path.LINETO], dtype=Path.code_type), len(places))
    path = Path(ends, codes)
    path.should_simplify = False  # it would take a line of no length for nothing
    return path
