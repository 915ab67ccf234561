"""Neighbours by cosine: those of scikit-learn, nearest first, ties in the order of rows, nearly all by NN-descent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from ebr.data.vectors.exact_search import unit_rows
from ebr.visualization.project import neighbours
from ebr.visualization.project.neighbours import Neighbours, nearest_neighbours, neighbours_in

# Angles of 0, 60, 90 and 180 degrees to the first, with lengths that do not matter.
FOUR = np.array([[2, 0], [0.5, 0.5 * 3**0.5], [0, 3], [-7, 0]], dtype=np.float32)


def _random(n_rows=300, dim=12, seed=0):
    return np.random.default_rng(seed).normal(size=(n_rows, dim)).astype(np.float32)


def _sorted_by_hand(similarities, k):
    """Largest first, lower column first among equals, by Python's own sort."""
    order = [sorted(range(len(row)), key=lambda column: (-row[column], column))[:k] for row in similarities.tolist()]
    return np.array(order)


def test_four_directions_by_hand():
    found = nearest_neighbours(FOUR, 3)
    np.testing.assert_array_equal(found.indices, [[1, 2, 3], [2, 0, 3], [1, 0, 3], [2, 1, 0]])
    cos_30 = 3**0.5 / 2
    wanted = [[0.5, 0, -1], [cos_30, 0.5, -0.5], [cos_30, 0, 0], [0, -0.5, -1]]
    np.testing.assert_allclose(found.similarities, wanted, atol=1e-6)
    assert found.exact and found.indices.dtype == np.int32 and found.similarities.dtype == np.float32


def test_neighbours_and_similarities_are_scikit_learns():
    vectors = _random()
    distances, indices = NearestNeighbors(n_neighbors=10, metric="cosine").fit(vectors).kneighbors()
    found = nearest_neighbours(vectors, 10)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.similarities, 1 - distances, atol=1e-6)


def test_no_bit_depends_on_the_number_of_threads(monkeypatch):
    vectors = np.random.default_rng(5).normal(size=(700, 384)).astype(np.float32)
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 4 * 700 * 100)  # seven blocks
    found = []
    for n_threads in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda n=n_threads: n)
        found.append(nearest_neighbours(vectors, 20))
    np.testing.assert_array_equal(found[0].indices, found[1].indices)
    np.testing.assert_array_equal(found[0].similarities, found[1].similarities)


def test_a_search_that_fails_says_so_and_stops(monkeypatch):
    asked = []

    def fail(values, k):
        asked.append(len(values))
        raise MemoryError("no room")

    monkeypatch.setattr(neighbours, "_largest", fail)
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 4 * 5)  # a block a row
    with pytest.raises(MemoryError, match="no room"):
        nearest_neighbours(np.eye(2000, 5, dtype=np.float32) + 1, 2)
    assert len(asked) < 2000


def test_equally_near_rows_come_in_the_order_of_the_rows():
    vectors = np.tile(np.eye(3, dtype=np.float32), (20, 1))  # row i is equal to i + 3, i + 6, …
    found = nearest_neighbours(vectors, 4)
    assert found.indices[0].tolist() == [3, 6, 9, 12]
    assert found.indices[4].tolist() == [1, 7, 10, 13]
    assert found.similarities.min() == 1


def test_rows_of_one_direction_tie_in_spite_of_rounding():
    lengths = np.random.default_rng(1).uniform(0.5, 20, size=(200, 1))  # divided out, they leave the last bit to chance
    vectors = (np.repeat(_random(5, 96), 40, axis=0) * lengths).astype(np.float32)
    found = nearest_neighbours(vectors, 39)
    for row in (0, 17, 199):
        group = row // 40 * 40
        assert found.indices[row].tolist() == [other for other in range(group, group + 40) if other != row]


@settings(deadline=None, max_examples=40, database=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 3), st.integers(0, 99))
def test_the_largest_are_those_of_a_stable_sort_even_where_values_repeat(n_columns, k, spread, seed):
    k = min(k, n_columns)
    values = np.random.default_rng(seed).integers(0, 3**spread, size=(3, n_columns)).astype(np.float32)
    columns, found = neighbours._largest(values, k)
    np.testing.assert_array_equal(columns, _sorted_by_hand(values, k))
    np.testing.assert_array_equal(found, np.take_along_axis(values, columns, axis=1))


@pytest.mark.parametrize("block_bytes", [1, 4 * 300 * 7, 2**26])
def test_the_size_of_a_block_changes_nothing(monkeypatch, block_bytes):
    vectors = _random()
    whole = nearest_neighbours(vectors, 5)
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", block_bytes)
    parts = nearest_neighbours(vectors, 5)
    np.testing.assert_array_equal(parts.indices, whole.indices)
    np.testing.assert_allclose(parts.similarities, whole.similarities, atol=2e-6)


@pytest.mark.parametrize(("n_rows", "k", "width"), [(1, 5, 0), (2, 5, 1), (5, 9, 4), (5, 0, 0)])
def test_k_is_lowered_to_the_other_rows(n_rows, k, width):
    found = nearest_neighbours(_random(n_rows), k)
    assert found.indices.shape == found.similarities.shape == (n_rows, width)
    assert all(row not in found.indices[row] for row in range(n_rows))


def test_a_row_of_zeros_is_at_similarity_zero_from_all():
    found = nearest_neighbours(np.array([[1, 0], [0, 0], [-1, 0]]), 2)
    assert found.indices.tolist() == [[1, 2], [0, 2], [1, 0]]
    assert found.similarities.tolist() == [[0, -1], [0, 0], [0, -1]]


def test_neighbours_in_a_reference_include_an_equal_row():
    found = neighbours_in(FOUR, np.array([[0, 1], [-1, -0.1]]), 2)
    assert found.indices.tolist() == [[2, 1], [3, 2]]
    np.testing.assert_allclose(found.similarities[0], [1, 3**0.5 / 2], atol=1e-6)
    assert neighbours_in(FOUR, FOUR, 9).indices.shape == (4, 4)


def test_neighbours_in_reads_half_precision_from_a_file(tmp_path):
    queries = np.lib.format.open_memmap(tmp_path / "q.npy", mode="w+", dtype=np.float16, shape=(50, 12))
    queries[:] = _random(50)
    in_memory = neighbours_in(_random(), np.array(queries), 3)
    np.testing.assert_array_equal(neighbours_in(_random(), queries, 3).indices, in_memory.indices)


class FakeDescent:
    """What pynndescent gives, without a minute of compiling: a row among its own neighbours, or not, in any order."""

    seen: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, rows, **settings):
        FakeDescent.seen = settings
        n_neighbors = settings["n_neighbors"]
        found = neighbours_in(rows, rows, n_neighbors).indices[:, ::-1].copy()
        found[0] = nearest_neighbours(rows, n_neighbors).indices[0]
        self.neighbor_graph = found, None


@pytest.mark.slow
def test_what_nn_descent_finds_is_measured_again_and_never_holds_the_row_itself(monkeypatch):
    monkeypatch.setattr("pynndescent.NNDescent", FakeDescent)
    vectors = _random()
    exact, found = nearest_neighbours(vectors, 8), nearest_neighbours(vectors, 8, exact_up_to=299, seed=5, n_jobs=1)
    np.testing.assert_array_equal(found.indices, exact.indices)
    np.testing.assert_allclose(found.similarities, exact.similarities, atol=2e-6)
    assert exact.exact and not found.exact
    assert FakeDescent.seen == {"n_neighbors": 9, "metric": "euclidean", "random_state": 5, "n_jobs": 1, "verbose": False}


@pytest.mark.slow
def test_nn_descent_finds_nearly_all_and_repeats_itself():
    centres = np.repeat(_random(20, 16), 30, axis=0)
    vectors = centres + 0.3 * _random(600, 16, seed=1)
    exact, found = nearest_neighbours(vectors, 8), nearest_neighbours(vectors, 8, exact_up_to=100, seed=1, n_jobs=1)
    shared = np.mean([len({*a} & {*b}) / 8 for a, b in zip(exact.indices, found.indices, strict=True)])
    assert shared > 0.97
    again = nearest_neighbours(vectors, 8, exact_up_to=100, seed=1, n_jobs=1)
    np.testing.assert_array_equal(found.indices, again.indices)


def test_the_first_of_the_neighbours_are_the_nearest():
    found = nearest_neighbours(FOUR, 3).first(1)
    assert isinstance(found, Neighbours) and found.indices.tolist() == [[1], [2], [1], [2]]


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_lengths_at_the_edges_of_float32_are_divided_out(length):
    np.testing.assert_allclose(unit_rows(np.array([[3, 4]], dtype=np.float32) * np.float32(length)), [[0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_named(odd):
    vectors = _random(5)
    vectors[3, 2] = odd
    with pytest.raises(ValueError, match="vector 3 holds NaN or infinity"):
        nearest_neighbours(vectors, 2)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        neighbours_in(_random(5), vectors, 2)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be a matrix"):
        nearest_neighbours(np.zeros(4), 2)
    with pytest.raises(ValueError, match="no neighbours in"):
        neighbours_in(_random(5, 4), _random(5, 3), 2)
