"""Points placed on a finished map: an equal vector on its twin, a torn one in a cluster and not between two."""

import numpy as np
import pytest

from ebr.visualization.project import placement
from ebr.visualization.project.placement import place_by_neighbours


def _on_circle(degrees):
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1).astype(np.float32)


def _two_clusters(seed=0):
    """Ten vectors near 0 degrees, drawn around (0, 0), and ten near 90, drawn around (100, 0)."""
    rng = np.random.default_rng(seed)
    vectors = _on_circle(np.concatenate([rng.uniform(0, 5, 10), rng.uniform(85, 90, 10)]))
    coords = rng.normal(size=(20, 2)) + np.repeat([[0, 0], [100, 0]], 10, axis=0)
    return vectors, coords.astype(np.float32)


def test_an_equal_vector_of_any_length_lies_on_its_twin():
    vectors, coords = _two_clusters()
    np.testing.assert_allclose(place_by_neighbours(vectors, coords, 7 * vectors[[3, 14]]), coords[[3, 14]], atol=1e-3)


def test_a_single_neighbour_gives_its_own_place():
    placed = place_by_neighbours(np.eye(2), np.array([[1, 2], [3, 4]]), np.array([[5, 1], [1, 5]]), k=1)
    np.testing.assert_array_equal(placed, [[1, 2], [3, 4]])


def test_a_vector_between_two_clusters_lies_in_one_of_them_and_not_in_the_gap():
    vectors, coords = _two_clusters()
    placed = place_by_neighbours(vectors, coords, _on_circle(np.arange(30.0, 61.0)), k=20)
    from_either = np.abs(placed[:, :1] - [[0, 100]]).min(axis=1)
    assert from_either.max() < 3  # the plain mean puts most of them 20 to 50 from both


def test_neighbours_outvote_one_that_was_drawn_far_away():
    vectors = _on_circle(np.array([-2.0, -1.0, 1.0, 2.0, 1.5]))
    coords = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [500, 500]])
    placed = place_by_neighbours(vectors, coords, _on_circle(np.array([0.0])), k=5)
    assert (placed >= 0).all() and (placed <= 1).all()


def test_the_mean_of_equally_near_neighbours_by_hand():
    # Three neighbours at 10 degrees' cosine, in three dimensions; from the middle one the others lie 3 and 1 away, so that
    # the nearer half is the middle one and the one at 4: their mean is 3.5.
    tilt = np.deg2rad(10)
    around = np.deg2rad([0, 120, 240])
    vectors = np.stack([np.sin(tilt) * np.cos(around), np.sin(tilt) * np.sin(around), np.full(3, np.cos(tilt))], axis=1)
    placed = place_by_neighbours(vectors, np.array([[0, 0], [3, 0], [4, 0]]), np.array([[0, 0, 1]]), k=3)
    np.testing.assert_allclose(placed, [[3.5, 0]], atol=1e-3)


def test_blocks_and_chosen_rows_change_nothing(monkeypatch):
    vectors, coords = _two_clusters()
    queries = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    whole = place_by_neighbours(vectors, coords, queries)
    monkeypatch.setattr(placement, "_ROWS_AT_A_TIME", 7)
    np.testing.assert_allclose(place_by_neighbours(vectors, coords, queries), whole, atol=1e-3)
    chosen = np.array([40, 3, 3])
    np.testing.assert_allclose(place_by_neighbours(vectors, coords, queries, rows=chosen), whole[chosen], atol=1e-3)


def test_a_vector_of_zeros_goes_to_the_middle_and_equal_points_stay_finite():
    placed = place_by_neighbours(np.eye(3), np.array([[0, 0], [2, 8], [4, 4]]), np.zeros((1, 3)))
    np.testing.assert_array_equal(placed, [[2, 4]])
    same = place_by_neighbours(np.ones((9, 3)), np.full((9, 2), 5), np.ones((2, 3)))
    np.testing.assert_allclose(same, 5)
    assert place_by_neighbours(np.eye(3), np.zeros((3, 2)), np.empty((0, 3))).shape == (0, 2)


def test_a_sample_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="places nothing"):
        place_by_neighbours(np.eye(3), np.zeros((2, 2)), np.eye(3))
    with pytest.raises(ValueError, match="no neighbours in"):
        place_by_neighbours(np.eye(3), np.zeros((3, 2)), np.eye(2))
