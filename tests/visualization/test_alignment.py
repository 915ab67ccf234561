"""Two maps made comparable: a turned, mirrored, scaled copy comes back, and what moved is told from neighbours."""

import numpy as np
import pytest

from ebr.visualization.project.alignment import movement, neighbours_changed, procrustes_align
from ebr.visualization.project.neighbours import Neighbours

POINTS = np.random.default_rng(0).normal(size=(40, 2)) * [5, 1] + [3, -7]


def _near(*rows):
    indices = np.array(rows, dtype=np.int32)
    return Neighbours(indices, np.zeros(indices.shape, dtype=np.float32))


@pytest.mark.parametrize("mirror", [[1, 1], [-1, 1]])
@pytest.mark.parametrize("degrees", [0, 37, 180])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 250.0])
def test_a_turned_mirrored_scaled_and_shifted_copy_comes_back(mirror, degrees, scale):
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    copy = scale * (POINTS * mirror) @ turn + [20, -4]
    np.testing.assert_allclose(procrustes_align(POINTS, copy), POINTS, atol=1e-5, rtol=1e-6)


def test_one_point_that_moved_by_hand():
    # Five points on a line, centred at 0; the copy is twice as long and turned by 90 degrees, but for the last.
    reference = np.array([[-2.0, 0], [-1, 0], [0, 0], [1, 0], [2, 0]])
    moved = np.array([[0.0, -4], [0, -2], [0, 0], [0, 2], [0, 4]])
    np.testing.assert_allclose(procrustes_align(reference, moved), reference, atol=1e-6)
    moved[[3, 4]] = moved[[4, 3]]
    # Cross-covariance 4·2 + 2·1 + 2·2·… = 8 + 2 + 4 + 4 = 18 over a squared size of 40: scale 0.45.
    np.testing.assert_allclose(procrustes_align(reference, moved)[:, 0], 0.45 * np.array([-4, -2, 0, 4, 2]), atol=1e-6)


def test_alignment_brings_no_pair_of_maps_further_apart():
    rng = np.random.default_rng(1)
    reference, moved = rng.normal(size=(30, 2)), rng.normal(size=(30, 2))
    apart = np.square(procrustes_align(reference, moved) - reference).sum()
    assert apart <= np.square(reference - reference.mean(axis=0)).sum() + 1e-6  # scale 0 would do as well
    assert apart <= np.square(moved - reference).sum()


@pytest.mark.parametrize("n_points", [0, 1, 2])
def test_few_points_end_well(n_points):
    np.testing.assert_allclose(procrustes_align(POINTS[:n_points], POINTS[:n_points] * 3 + 1), POINTS[:n_points], rtol=1e-6)


def test_equal_points_come_back_at_the_centre_of_the_reference():
    aligned = procrustes_align(POINTS, np.full((40, 2), 1e6 + 0.1))
    np.testing.assert_allclose(aligned, np.broadcast_to(POINTS.mean(axis=0), (40, 2)), rtol=1e-6)
    onto_one = procrustes_align(np.full((40, 2), 2.0), POINTS)
    np.testing.assert_allclose(onto_one, 2, atol=1e-6)


def test_maps_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="different rows"):
        procrustes_align(POINTS, POINTS[1:])
    with pytest.raises(ValueError, match="NaN"):
        procrustes_align(POINTS, np.where(POINTS == POINTS[0], np.nan, POINTS))


def test_share_of_changed_neighbours_by_hand():
    before = _near([1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2])
    after = _near([3, 1, 2], [0, 2, 4], [0, 5, 6], [4, 5, 6])
    # The same in another order: 0. Two of 3 + 3 - 2 = 4: 0.5. One of five: 0.8. None: 1.
    np.testing.assert_allclose(neighbours_changed(before, after), [0, 0.5, 0.8, 1], rtol=1e-6)


def test_the_fewer_neighbours_are_compared_and_none_at_all_is_no_change():
    np.testing.assert_allclose(neighbours_changed(_near([1, 2, 3]), _near([1])), [0])
    np.testing.assert_allclose(neighbours_changed(_near([1]), _near([2, 1])), [1])
    assert neighbours_changed(_near([], []), _near([], [])).tolist() == [0, 0]
    with pytest.raises(ValueError, match="cannot be compared"):
        neighbours_changed(_near([1]), _near([1], [0]))


def test_what_moved_most_goes_by_neighbours_first_and_by_displacement_second():
    before, after = _near([1], [0], [0], [0]), _near([1], [2], [1], [0])
    aligned = np.array([[9.0, 0], [3, 4], [6, 8], [0, 1]])
    moved = movement(np.zeros((4, 2)), aligned, before, after)
    np.testing.assert_allclose(moved.displacement, [9, 5, 10, 1])
    assert moved.neighbours_changed.tolist() == [0, 1, 1, 0]
    assert moved.most(3).tolist() == [2, 1, 0]
    assert moved.most(9).tolist() == [2, 1, 0, 3]
