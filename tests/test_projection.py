"""Maps: the same seed gives the same map, neighbours stay neighbours, and no input is too small."""

import numpy as np
import pytest

from ebr.visualization.projection import FEWEST_POINTS, Projection, pca_layout, project_tsne, project_umap


def _three_groups(n_each=20, dim=16):
    """(3 * n_each, dim): tight groups around three orthogonal directions, with lengths that differ."""
    rng = np.random.default_rng(0)
    directions = np.repeat(np.eye(3, dim), n_each, axis=0) + 0.05 * rng.normal(size=(3 * n_each, dim))
    return (directions * rng.uniform(0.5, 20, size=(3 * n_each, 1))).astype(np.float32), np.repeat([0, 1, 2], n_each)


def _nearest_share_group(coords, groups):
    distances = np.linalg.norm(coords[:, None] - coords[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return (groups[distances.argmin(axis=1)] == groups).mean()


def _tsne(vectors, *, perplexity=10.0, learning_rate=None, seed=1) -> Projection:
    return project_tsne(vectors, perplexity=perplexity, learning_rate=learning_rate, seed=seed)


def _umap(vectors, *, n_neighbors=10, min_dist=0.1, seed=1) -> Projection:
    return project_umap(vectors, n_neighbors=n_neighbors, min_dist=min_dist, seed=seed)


def test_tsne_of_one_seed_is_equal_bit_for_bit_and_of_another_is_not():
    vectors, _ = _three_groups()
    first = _tsne(vectors)
    np.testing.assert_array_equal(first.coords, _tsne(vectors).coords)
    assert not np.array_equal(first.coords, _tsne(vectors, seed=2).coords)


def test_tsne_does_not_depend_on_the_number_of_threads(monkeypatch):
    vectors, _ = _three_groups()
    on_one_thread = _tsne(vectors[::3]).coords
    monkeypatch.setattr("ebr.visualization.projection._ONE_THREAD_UP_TO", 0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    np.testing.assert_array_equal(on_one_thread, _tsne(vectors[::3]).coords)


def test_umap_of_one_seed_is_equal_bit_for_bit_and_keeps_groups_that_differ_in_direction():
    vectors, groups = _three_groups()
    first = _umap(vectors)
    np.testing.assert_array_equal(first.coords, _umap(vectors).coords)
    assert first.method == "UMAP" and first.coords.shape == (60, 2) and first.coords.dtype == np.float32
    assert _nearest_share_group(first.coords, groups) == 1.0


def test_tsne_goes_by_direction_not_by_length():
    vectors, groups = _three_groups()
    projected = _tsne(vectors)
    assert projected.method == "t-SNE" and projected.coords.shape == (60, 2) and projected.coords.dtype == np.float32
    assert _nearest_share_group(projected.coords, groups) == 1.0
    lengths = 2.0 ** np.random.default_rng(1).integers(-3, 4, size=(60, 1))  # powers of two: they divide out without rounding
    np.testing.assert_array_equal(projected.coords, _tsne(vectors * lengths).coords)


@pytest.mark.parametrize(("n_points", "wanted", "used"), [(60, 10.0, 10.0), (31, 30.0, 10.0), (7, 30.0, 2.0)])
def test_tsne_lowers_the_perplexity_to_a_third_of_the_other_points(n_points, wanted, used):
    vectors, _ = _three_groups()
    projected = _tsne(vectors[::-1][:n_points], perplexity=wanted)
    assert projected.settings == {"perplexity": used, "learning rate": "auto"}
    assert np.isfinite(projected.coords).all() and projected.coords.std() > 0


def test_umap_lowers_its_neighbours_to_the_other_points():
    vectors, _ = _three_groups()
    projected = _umap(vectors[::7][:FEWEST_POINTS], n_neighbors=15, min_dist=0.3)
    assert projected.settings == {"neighbors": 6, "min dist": 0.3}
    assert np.isfinite(projected.coords).all() and projected.coords.std() > 0


def test_tsne_options_reach_the_map():
    vectors, _ = _three_groups()
    base = _tsne(vectors).coords
    assert not np.array_equal(base, _tsne(vectors, perplexity=5.0).coords)
    slow = _tsne(vectors, learning_rate=0.5)
    assert slow.settings["learning rate"] == 0.5
    assert not np.array_equal(base, slow.coords)


@pytest.mark.parametrize("project", [_tsne, _umap])
@pytest.mark.parametrize("n_points", [1, 2, 3, 4, 5, 6])
def test_too_few_points_get_the_pca_layout_and_say_so(project, n_points):
    vectors = np.random.default_rng(0).normal(size=(n_points, 8)).astype(np.float32)
    projected = project(vectors)
    assert projected.method == f"PCA instead of {'t-SNE' if project is _tsne else 'UMAP'}"
    assert "too few" in projected.settings["because"]
    assert projected.coords.shape == (n_points, 2) and np.isfinite(projected.coords).all()
    assert len(np.unique(projected.coords, axis=0)) == n_points


@pytest.mark.parametrize("project", [_tsne, _umap])
def test_equal_vectors_lie_on_one_point(project):
    projected = project(np.full((30, 4), 3.0, dtype=np.float32))
    assert projected.settings == {"because": "all vectors point the same way"}
    assert not projected.coords.any()


def test_a_row_of_zeros_does_not_break_tsne():
    vectors, _ = _three_groups()
    vectors[5] = 0
    assert np.isfinite(_tsne(vectors).coords).all()


def test_many_copies_of_few_vectors_do_not_break_tsne():
    vectors, _ = _three_groups()
    assert np.isfinite(_tsne(np.repeat(vectors[[0, 25, 45]], 20, axis=0)).coords).all()


def test_pca_layout_finds_the_direction_of_most_variance_first():
    line = np.outer([-1.0, 0.0, 1.0], [3.0, 4.0, 0.0])  # along (3, 4, 0), five units either way
    coords = pca_layout(line, seed=1)
    np.testing.assert_allclose(np.abs(coords[:, 0]), [5, 0, 5], atol=1e-5)
    np.testing.assert_allclose(coords[:, 1], 0, atol=1e-5)


def test_pca_layout_of_one_dimension_has_a_zero_second_axis():
    coords = pca_layout(np.array([[0.0], [2.0]]), seed=1)
    np.testing.assert_allclose(np.abs(coords), [[1, 0], [1, 0]])
