"""Colours of labels: told apart, most of all where labels touch."""

import numpy as np
import pytest

from ebr.visualization.colours import GREYS, MOST_NAMED, PALETTE, colour_groups, lab_of, palette, readable

NOWHERE = np.zeros((0, 2), np.float32)


def grid(n_labels, n_each=20, seed=0):
    """(N, 2) and N labels: blobs on a line, each touching the next."""
    rng = np.random.default_rng(seed)
    rows = np.arange(n_labels * n_each)
    middle = np.stack([(rows % n_labels) * 3.0, np.zeros(len(rows))], axis=1)
    return (middle + rng.normal(size=middle.shape)).astype(np.float32), [f"n{row % n_labels:03}" for row in rows]


def apart(one, other):
    return float(np.linalg.norm(lab_of(one) - lab_of(other)))


def test_lab_is_that_of_the_standard():
    # White, black and the red of sRGB under D65, as tables have them.
    np.testing.assert_allclose(lab_of("#FFFFFF"), [100, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab_of("#000000"), [0, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab_of("#FF0000"), [53.24, 80.09, 67.20], atol=0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_two_colours_of_a_palette_differ_at_a_glance(theme):
    colours = palette(theme)
    assert len(set(colours)) == len(PALETTE) == 20
    assert min(apart(one, other) for place, one in enumerate(colours) for other in colours[:place]) > 12
    ground = "#FFFFFF" if theme == "light" else "#15181D"
    assert min(apart(colour, ground) for colour in colours) > 20


def test_a_readable_shade_is_the_colour_itself_or_as_dark_as_seven_to_one_asks():
    # #595959 is the lightest grey with a contrast of 7 to white, as WCAG's tables have it.
    assert readable("#595959", "#FFFFFF") == "#595959"
    assert int(readable("#5A5A5A", "#FFFFFF")[1:3], 16) < 0x5A
    red, green, blue = (int(readable("#F0E442", "#FFFFFF")[at : at + 2], 16) for at in (1, 3, 5))
    assert blue < green < red < 0x90  # still yellow's hue
    assert readable("#000000", "#15181D") > "#909090"  # on dark paper it gets lighter


def test_the_largest_come_first_then_other_then_missing():
    labels = ["b"] * 2 + ["a"] * 2 + ["c"] * 5 + [""] * 3 + [f"x{i:03}" for i in range(MOST_NAMED)]
    groups = colour_groups(labels, [np.zeros((len(labels), 2), np.float32)])
    assert [(group.text, group.count, group.kind) for group in groups[:3]] == [
        ("c", 5, "label"),
        ("a", 2, "label"),
        ("b", 2, "label"),
    ]
    assert [(group.count, group.kind) for group in groups[-2:]] == [(3, "other"), (3, "missing")]
    assert [group.colour for group in groups[-2:]] == list(GREYS["light"])
    assert sorted(np.concatenate([group.rows for group in groups]).tolist()) == list(range(len(labels)))
    assert groups[0].rows.tolist() == [4, 5, 6, 7, 8]


def test_up_to_eight_labels_take_the_colours_of_okabe_and_ito():
    coords, labels = grid(8)
    assert {group.colour for group in colour_groups(labels, [coords])} == set(PALETTE[:8])


def test_each_colour_is_used_equally_often():
    coords, labels = grid(50)
    used = [group.colour for group in colour_groups(labels, [coords])]
    assert sorted(used.count(colour) for colour in PALETTE) == [2] * 10 + [3] * 10


@pytest.mark.parametrize("n_labels", [12, 20, 60, 100])
def test_labels_that_touch_are_well_apart_also_where_colours_repeat(n_labels):
    coords, labels = grid(n_labels)
    colour = {group.text: group.colour for group in colour_groups(labels, [coords])}
    beside = [apart(colour[f"n{i:03}"], colour[f"n{i + 1:03}"]) for i in range(n_labels - 1)]
    assert min(beside) > 40


def test_touching_on_any_of_the_maps_counts():
    # On the first map the blobs stand in order, on the second every label stands beside the one after the next.
    first, labels = grid(40)
    order = {f"n{i:03}": place for place, i in enumerate([*range(0, 40, 2), *range(1, 40, 2)])}
    second = first.copy()
    second[:, 0] += 3.0 * np.array([order[label] - int(label[1:]) for label in labels], np.float32)
    colour = {group.text: group.colour for group in colour_groups(labels, [first, second])}
    assert min(apart(colour[f"n{i:03}"], colour[f"n{i + 1:03}"]) for i in range(39)) > 30
    assert min(apart(colour[f"n{i:03}"], colour[f"n{i + 2:03}"]) for i in range(38)) > 30


def test_the_same_input_has_the_same_colours():
    coords, labels = grid(30)
    one, two = ([(g.text, g.colour) for g in colour_groups(labels, [coords])] for _ in range(2))
    assert one == two


@pytest.mark.parametrize("labels", [["a"], ["", ""], ["a", "a"], ["a", "b"]])
def test_a_point_or_two_are_coloured(labels):
    groups = colour_groups(labels, [np.zeros((len(labels), 2), np.float32)])
    assert sum(group.count for group in groups) == len(labels)
