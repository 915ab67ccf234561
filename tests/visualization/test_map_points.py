"""Points in vector files: stamped by colour, and still each in its place."""

import re
from collections import Counter

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from ebr.visualization.picture import points as map_points
from ebr.visualization.picture.points import Points

COLOURS = np.array([[0, 0, 0.8, 0.25]] * 5 + [[0.8, 0, 0, 0.5], [0, 0.4, 0, 0.5]] * 30)
COORDS = np.random.default_rng(0).uniform(0.2, 0.8, size=(65, 2))


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """Draws COORDS as an .svg, one by one or stamped: (fill, x, y) of every point, in the order of drawing."""

    def draw(one_by_one_up_to, rasterized=False):
        monkeypatch.setattr(map_points, "_ONE_BY_ONE_UP_TO", one_by_one_up_to)
        figure = Figure(figsize=(3, 3))
        axes = figure.add_axes((0, 0, 1, 1))
        Points(axes, COORDS, 4.0, COLOURS, rasterized=rasterized)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
        with mpl.rc_context({"svg.hashsalt": "ebr"}):
            figure.savefig(tmp_path / "map.svg")
        svg = (tmp_path / "map.svg").read_text()
        apart = re.findall(r'<use xlink:href="#\w+" x="([^"]*)" y="([^"]*)" style="fill: (#\w+)', svg)
        stamps = re.findall(r'<path d="([^"]*)" [^>]*stroke: (#\w+);[^>]*stroke-linecap: round', svg)
        # A line of no length: moved to a place, and drawn to the same place.
        stamped = [(*place, colour) for d, colour in stamps for place in re.findall(r"M (\S+) (\S+)\s+L \1 \2", d)]
        return [(colour, float(x), float(y)) for x, y, colour in [*apart, *stamped]], svg

    return draw


def test_stamped_points_lie_where_single_ones_do_each_in_its_colour(shapes):
    (apart, _), (stamped, _) = shapes(1000), shapes(0)
    assert Counter(fill for fill, _, _ in stamped) == {"#0000cc": 5, "#cc0000": 30, "#006600": 30}
    np.testing.assert_allclose([x for _, x, _ in sorted(stamped)], [x for _, x, _ in sorted(apart)], atol=1e-4)
    # An axis of 3 inches is 216 points wide, and y counts from the top.
    expected = sorted(zip(216 * COORDS[:, 0], 216 - 216 * COORDS[:, 1], strict=True))
    np.testing.assert_allclose(sorted((x, y) for _, x, y in stamped), expected, atol=1e-4)


def test_stamped_points_are_as_large_and_as_see_through_as_single_ones(shapes):
    apart, stamped = shapes(1000)[1], shapes(0)[1]
    assert apart.count("fill-opacity: 0.25") >= 1 and apart.count("fill-opacity: 0.5") >= 2
    assert stamped.count("stroke-opacity: 0.25") >= 1 and stamped.count("stroke-opacity: 0.5") >= 2
    outline = re.search(r'<path id="\w+" d="M 0 ([-\d.]+)', apart)
    assert abs(float(outline[1])) == pytest.approx(2.0)  # the radius of a dot of 4 points
    assert set(re.findall(r"stroke-width: ([\d.]+); stroke-linecap: round", stamped)) == {"4"}


def test_the_first_lie_lowest_and_the_others_stay_mixed(shapes):
    fills = [fill for fill, _, _ in shapes(0)[0]]
    assert set(fills[:5]) == {"#0000cc"}
    assert min(fills.index("#cc0000"), fills.index("#006600")) < 10
    assert {"#cc0000", "#006600"} == set(fills[-20:])


def test_rasterized_points_are_one_image(shapes):
    found, svg = shapes(0, rasterized=True)
    assert not found and svg.count("<image") == 1
