"""Places of names: at the cluster, free, inside."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.visualization.picture.label_placement import Box, densest_spot, place_names

PAGE = Box(0, 0, 400, 300)


def test_the_densest_spot_is_in_the_larger_island_and_not_between_the_two():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(60, 2)), rng.normal(size=(40, 2)) + 100])
    assert np.linalg.norm(densest_spot(points, 100.0)) < 2


def test_one_point_is_its_own_spot():
    np.testing.assert_array_equal(densest_spot(np.array([[3.0, 4.0]]), 0.0), [3, 4])


def test_a_name_stands_just_above_its_anchor():
    assert place_names([(200, 150)], [(40, 10)], PAGE) == [Box(180, 155, 220, 165)]


def test_where_that_is_taken_below_and_where_nothing_is_free_nowhere():
    taken = [Box(150, 153, 250, 300)]
    assert place_names([(200, 150)], [(40, 10)], PAGE, taken) == [Box(180, 135, 220, 145)]
    assert place_names([(200, 150)], [(40, 10)], PAGE, [PAGE]) == [None]
    assert place_names([(200, 150)], [(500, 10)], PAGE) == [None]


def test_the_first_choose_first():
    first, second = place_names([(200, 150), (200, 150)], [(40, 10), (40, 10)], PAGE)
    assert first == Box(180, 155, 220, 165)
    assert second == Box(180, 135, 220, 145)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-50, 450), st.floats(-50, 350), st.floats(1, 120), st.floats(4, 20)), max_size=40))
def test_no_name_lies_over_another_or_leaves_the_map(names):
    places = place_names([(x, y) for x, y, _, _ in names], [(width, height) for _, _, width, height in names], PAGE)
    boxes = [box for box in places if box is not None]
    assert len(places) == len(names)
    assert all(PAGE.holds(box) for box in boxes)
    assert not any(one.meets(other) for place, one in enumerate(boxes) for other in boxes[:place])
