"""The report's pictures: what is clear has a colour, equal numbers give equal texts, and no picture names another machine."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.visualization import report_plots
from ebr.visualization.report_plots import FELL, KIND_COLOURS, ROSE, UNCLEAR, differences_svg, forest_svg, sizes_svg

CURVES = {"float32": ([1536, 768], [0.70, 0.66]), "binary": ([48, 24], [0.60, 0.50])}


def draw_all():
    return {
        "forest": forest_svg(["nDCG@10", "MRR@10"], [0.1, -0.2], [0.05, -0.3], [0.15, -0.1], ["better", "worse"]),
        "differences": differences_svg(np.array([0.5, -0.25, 0.0])),
        "sizes": sizes_svg(CURVES, 0.69),
    }


@pytest.fixture(scope="module")
def drawings():
    """One of each, drawn once: drawing is what takes the time."""
    return draw_all()


def figure_of(draw, monkeypatch):
    """The figure behind a picture, before it becomes text."""
    figures = []
    monkeypatch.setattr(report_plots, "_svg_text", lambda figure: figures.append(figure) or "<svg/>")
    draw()
    return figures[0].axes[0]


@pytest.mark.parametrize("name", ["forest", "differences", "sizes"])
def test_picture_is_one_svg_element_that_needs_nothing_from_elsewhere(drawings, name):
    svg = drawings[name]
    assert svg.startswith("<svg") and ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    addresses = set(re.findall(r"https?://[^\"' <]+", svg))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names of namespaces, never fetched
    assert "<script" not in svg and "<image" not in svg and "<text" not in svg
    assert len(svg) < 100_000


def test_equal_numbers_give_equal_pictures_and_other_numbers_others(drawings):
    assert drawings == draw_all()
    one, other = (forest_svg(["m"], [0.1], [0.05], [high], ["better"]) for high in (0.15, 0.25))
    assert one != other


def test_colour_says_the_outcome_wherever_the_interval_lies(monkeypatch):
    outcomes = ["better", "worse", "unclear", "unclear"]
    lows, highs = [0.1, -0.2, 0.1, -0.2], [0.2, -0.1, 0.2, -0.1]
    axes = figure_of(lambda: forest_svg(list("abcd"), [0.15, -0.15, 0.15, -0.15], lows, highs, outcomes), monkeypatch)
    drawn = [line.get_color() for line in axes.lines[1:]]
    assert drawn[::2] == drawn[1::2] == [ROSE, FELL, UNCLEAR, UNCLEAR]  # interval and dot alike


def test_forest_draws_each_interval_where_it_lies_first_label_on_top(monkeypatch):
    axes = figure_of(lambda: forest_svg(["a", "b"], [0.1, -0.2], [0.05, -0.3], [0.15, -0.1], ["unclear"] * 2), monkeypatch)
    zero, *lines = [(line.get_xdata(), line.get_ydata()) for line in axes.lines]
    assert list(zero[0]) == [0, 0]
    assert [(list(x), list(y)) for x, y in lines] == [
        ([0.05, 0.15], [0, 0]),
        ([0.1], [0]),
        ([-0.3, -0.1], [1, 1]),
        ([-0.2], [1]),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.get_xlim()[0] < -0.3 and axes.get_xlim()[1] > 0.15


def test_null_comparison_is_not_blown_up_to_the_full_width(monkeypatch):
    axes = figure_of(lambda: forest_svg(["a"], [0.0], [-1e-9], [1e-9], ["unclear"]), monkeypatch)
    assert np.ptp(axes.get_xlim()) >= 0.004


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=900))
@settings(max_examples=15, deadline=None)
def test_sorted_differences_keep_both_ends_and_rise(differences):
    with pytest.MonkeyPatch.context() as patch:
        axes = figure_of(lambda: differences_svg(np.array(differences)), patch)
    below, above = (patch.get_data().values for patch in axes.patches)
    drawn = below + above
    assert (drawn[0], drawn[-1]) == (min(differences), max(differences))
    assert (np.diff(drawn) >= 0).all() and len(drawn) <= 400
    assert below.max() <= 0 <= above.min()
    assert axes.get_xlim() == (0, len(differences))


def test_many_queries_do_not_make_a_large_picture():
    svg = differences_svg(np.random.default_rng(0).normal(size=100_000).clip(-1, 1))
    assert len(svg) < 100_000


def test_sizes_draws_one_line_a_kind_from_small_to_large(monkeypatch):
    axes = figure_of(lambda: sizes_svg(CURVES, 0.69), monkeypatch)
    dashed, *lines = axes.lines
    assert set(dashed.get_ydata()) == {0.69}
    assert {line.get_label(): (list(line.get_xdata()), list(line.get_ydata()), line.get_color()) for line in lines} == {
        "float32": ([768, 1536], [0.66, 0.70], KIND_COLOURS["float32"]),
        "binary": ([24, 48], [0.50, 0.60], KIND_COLOURS["binary"]),
    }
    assert axes.get_xscale() == "log"
    assert [f"{tick:.0f}" for tick in axes.get_xticks()] == ["24", "48", "768", "1536"]


def test_ticks_that_would_run_into_each_other_are_left_out(monkeypatch):
    axes = figure_of(lambda: sizes_svg({"int8": ([100, 110, 200, 210], [0.1, 0.2, 0.3, 0.4])}, 0.4), monkeypatch)
    assert list(axes.get_xticks()) == [100, 200]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: forest_svg([], [], [], [], []),
        lambda: forest_svg(["a"], [0.1, 0.2], [0, 0], [1, 1], ["better"] * 2),
        lambda: forest_svg(["a"], [0.1], [0], [1], ["better"] * 2),
        lambda: forest_svg(["a"], [0.1], [0], [1], ["rose"]),
        lambda: differences_svg(np.array([])),
        lambda: sizes_svg({"int8": ([], [])}, 0.5),
    ],
)
def test_nothing_to_draw_is_an_error(draw):
    with pytest.raises(ValueError):
        draw()


def test_odd_labels_are_drawn_as_they_are(recwarn):
    svg = forest_svg(["$\\nonsense{$", "a_b <i>&"], [0, 0], [0, 0], [0, 0], ["unclear"] * 2)
    ET.fromstring(svg)
    assert not recwarn.list


def test_letters_that_no_font_here_has_are_left_to_the_reader(monkeypatch, caplog, recwarn):
    from ebr.visualization.fonts import FontChoice

    monkeypatch.setattr(report_plots, "choose_fonts", lambda texts: FontChoice(["DejaVu Sans"], "查"))
    svg = forest_svg(["查"], [0], [0], [0], ["unclear"])
    assert ">查</text>" in svg.replace("\n", "")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "+0.05"), (-0.05, "−0.05"), (0.0, "0"), (-0.0, "0"), (1e-9, "0"), (0.1, "+0.1"), (-1, "−1"), (10.0, "+10")],
)
def test_ticks_of_differences_carry_their_sign(value, text):
    assert report_plots._signed(value, None) == text
