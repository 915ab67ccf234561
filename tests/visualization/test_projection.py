"""Maps: the same seed gives the same map, neighbours stay neighbours, and no input is too small."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from ebr.visualization.project.neighbours import Neighbours, nearest_neighbours
from ebr.visualization.project.projection import (
    FEWEST_POINTS,
    Projection,
    default_neighbors,
    default_perplexity,
    pca_layout,
    project_pca,
    project_tsne,
    project_umap,
)


def _three_groups(n_each=20, dim=16):
    """(3 * n_each, dim): tight groups around three orthogonal directions, with lengths that differ."""
    rng = np.random.default_rng(0)
    directions = np.repeat(np.eye(3, dim), n_each, axis=0) + 0.05 * rng.normal(size=(3 * n_each, dim))
    return (directions * rng.uniform(0.5, 20, size=(3 * n_each, 1))).astype(np.float32), np.repeat([0, 1, 2], n_each)


def _nearest_share_group(coords, groups):
    distances = np.linalg.norm(coords[:, None] - coords[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return (groups[distances.argmin(axis=1)] == groups).mean()


@pytest.fixture(autouse=True)
def _fewer_rounds(monkeypatch):
    """Less than half of the iterations: enough for sixty points, and all that is told here holds for any number."""
    monkeypatch.setattr("ebr.visualization.project.projection._TSNE_ITERATIONS", (250, 50))


def _tsne(vectors, *, perplexity=10.0, seed=1, **options) -> Projection:
    return project_tsne(vectors, perplexity=perplexity, seed=seed, **options)


def _umap(vectors, *, n_neighbors=10, seed=1, **options) -> Projection:
    return project_umap(vectors, n_neighbors=n_neighbors, seed=seed, **options)


def _pca(vectors, *, seed=1) -> Projection:
    return project_pca(vectors, seed=seed)


def test_tsne_of_one_seed_is_equal_bit_for_bit_and_of_another_is_not():
    vectors, _ = _three_groups()
    first = _tsne(vectors)
    np.testing.assert_array_equal(first.coords, _tsne(vectors).coords)
    assert not np.array_equal(first.coords, _tsne(vectors, seed=2).coords)


def test_tsne_does_not_depend_on_the_number_of_threads(monkeypatch):
    vectors, _ = _three_groups()
    on_one_thread = _tsne(vectors[::3])
    monkeypatch.setattr("ebr.visualization.project.projection._ONE_THREAD_UP_TO", 0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    fast = _tsne(vectors[::3], reproducible=False)
    np.testing.assert_array_equal(on_one_thread.coords, fast.coords)
    assert (on_one_thread.settings["mode"], fast.settings["mode"]) == ("reproducible", "fast")


@pytest.mark.long
@pytest.mark.parametrize("project", [project_tsne, project_umap, project_pca])
def test_a_reproducible_map_does_not_depend_on_the_threads_of_matrix_products(project):
    vectors = np.random.default_rng(0).normal(size=(500, 384)).astype(np.float32)
    maps = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            maps.append(project(vectors, seed=1).coords)
    np.testing.assert_array_equal(*maps)


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


@pytest.mark.parametrize(("n_points", "wanted", "used"), [(60, 10.0, 10.0), (31, 30.0, 10.0), (7, 30.0, 2.0), (31, None, 10.0)])
def test_tsne_lowers_the_perplexity_to_a_third_of_the_other_points(n_points, wanted, used):
    vectors, _ = _three_groups()
    projected = _tsne(vectors[::-1][:n_points], perplexity=wanted)
    assert projected.settings == {
        "perplexity": used,
        "learning rate": n_points,
        "early learning rate": round(n_points / 12, 1),
        "engine": "openTSNE",
        "neighbor search": "exact",
        "iterations": 300,
        "start": "PCA",
        "mode": "reproducible",
        "seed": 1,
        "points": n_points,
    }
    assert np.isfinite(projected.coords).all() and projected.coords.std() > 0


def test_umap_lowers_its_neighbours_to_the_other_points():
    vectors, _ = _three_groups()
    projected = _umap(vectors[::7][:FEWEST_POINTS], n_neighbors=15, min_dist=0.3)
    assert projected.settings == {
        "neighbors": 6,
        "min dist": 0.3,
        "epochs": 500,
        "engine": "umap-learn",
        "neighbor search": "exact",
        "start": "PCA",
        "mode": "reproducible",
        "seed": 1,
        "points": 7,
    }
    assert np.isfinite(projected.coords).all() and projected.coords.std() > 0


def test_defaults_follow_the_number_of_points():
    assert [default_perplexity(n) for n in (7, 46, 91, 1_000_000)] == [2, 15, 30, 30]
    # 15 + 15 * (log10 N - 4); log10 of 30,000 is 4.477, which makes 22.2.
    assert [default_neighbors(n) for n in (7, 100, 10_000, 30_000, 100_000, 1_000_000)] == [6, 15, 15, 22, 30, 45]


def test_scikit_learns_tsne_keeps_the_groups_states_its_own_rate_and_repeats_itself():
    vectors, groups = _three_groups()
    first = _tsne(vectors, engine="sklearn")
    np.testing.assert_array_equal(first.coords, _tsne(vectors, engine="sklearn").coords)
    assert _nearest_share_group(first.coords, groups) == 1.0
    assert first.settings["engine"] == "scikit-learn" and first.settings["learning rate"] == 50.0
    assert _tsne(vectors, engine="sklearn", learning_rate=7.0).settings["learning rate"] == 7.0


def test_scikit_learns_own_defaults_are_those_that_are_stated():
    from sklearn.manifold import TSNE

    vectors, _ = _three_groups()
    model = TSNE(perplexity=5).fit(vectors)
    assert model.learning_rate_ == _tsne(vectors, engine="sklearn").settings["learning rate"]


def test_affinities_are_those_that_opentsne_finds_itself(monkeypatch):
    from openTSNE import TSNE

    from ebr.data.vectors.exact_search import unit_rows

    seen = []
    fit = TSNE.fit
    monkeypatch.setattr(
        TSNE, "fit", lambda self, affinities, **more: (seen.append(affinities.P), fit(self, None, affinities, **more))[1]
    )
    vectors, _ = _three_groups()
    _tsne(vectors)
    wanted = TSNE(perplexity=10, neighbors="exact").prepare_initial(unit_rows(vectors)).affinities.P
    np.testing.assert_allclose(seen[0].toarray(), wanted.toarray(), atol=1e-6)


@pytest.mark.parametrize("project", [_tsne, _umap])
def test_a_given_start_is_used_whatever_its_scale_and_place(project):
    vectors, _ = _three_groups()
    start = np.random.default_rng(3).normal(size=(60, 2))
    by_pca, begun = project(vectors), project(vectors, initialization=start)
    assert (by_pca.settings["start"], begun.settings["start"]) == ("PCA", "given")
    assert not np.array_equal(by_pca.coords, begun.coords)
    np.testing.assert_allclose(begun.coords, project(vectors, initialization=start * 1024).coords, atol=1e-2)
    at_one_point = project(vectors, initialization=np.zeros((60, 2)))
    assert np.isfinite(at_one_point.coords).all()
    with pytest.raises(ValueError, match="must be 60 × 2 finite numbers"):
        project(vectors, initialization=start[1:])


@pytest.mark.parametrize(("project", "k"), [(_tsne, 30), (_umap, 9)])
def test_known_neighbours_are_used_where_they_are_enough(project, k, monkeypatch):
    vectors, _ = _three_groups()
    wanted = project(vectors).coords
    near = nearest_neighbours(vectors, k + 3)
    searched = []
    search = "ebr.visualization.project.projection.neighbours_of_unit_rows"
    monkeypatch.setattr(search, lambda rows, k, **_: searched.append(k) or nearest_neighbours(rows, k))
    np.testing.assert_array_equal(project(vectors, neighbours=near).coords, wanted)
    assert searched == []
    project(vectors, neighbours=near.first(k - 1))
    assert searched == [k]


def test_the_way_the_neighbours_were_found_is_stated():
    vectors, _ = _three_groups()
    near = nearest_neighbours(vectors, 9)
    projected = _umap(vectors, neighbours=Neighbours(near.indices, near.similarities, exact=False))
    assert projected.settings["neighbor search"] == "NN-descent"


@pytest.mark.parametrize(("reproducible", "seed", "n_jobs", "stated"), [(True, 1, 1, 1), (False, None, -1, "none")])
def test_umap_is_seeded_on_one_thread_or_fast_on_all(monkeypatch, reproducible, seed, n_jobs, stated):
    seen = {}

    class FakeUMAP:
        def __init__(self, **settings):
            seen.update(settings)

        def fit_transform(self, data):
            return data

    monkeypatch.setattr("umap.UMAP", FakeUMAP)
    projected = _umap(_three_groups()[0], reproducible=reproducible)
    assert (seen["random_state"], seen["n_jobs"], projected.settings["seed"]) == (seed, n_jobs, stated)
    assert seen["precomputed_knn"][0].shape == (60, 10) and (seen["precomputed_knn"][0][:, 0] == np.arange(60)).all()
    assert np.abs(seen["init"]).max() == pytest.approx(10, abs=1e-3)  # umap-learn's own scale


@pytest.mark.slow
def test_fast_umap_keeps_the_groups():
    vectors, groups = _three_groups()
    assert _nearest_share_group(_umap(vectors, reproducible=False).coords, groups) == 1.0


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


@pytest.mark.parametrize("project", [_tsne, _umap, _pca])
def test_rows_of_zeros_do_not_break_a_map(project):
    vectors, _ = _three_groups()
    vectors[[5, 6, 50]] = 0
    assert np.isfinite(project(vectors).coords).all()


@pytest.mark.parametrize("project", [_tsne, _umap, _pca])
def test_many_copies_of_few_vectors_do_not_break_a_map(project):
    vectors, _ = _three_groups()
    assert np.isfinite(project(np.repeat(vectors[[0, 25, 45]], 20, axis=0)).coords).all()


@pytest.mark.parametrize("project", [_tsne, _umap, _pca])
def test_what_cannot_be_a_map_is_refused(project):
    vectors, _ = _three_groups()
    vectors[7, 3] = np.nan
    with pytest.raises(ValueError, match="vector 7 holds NaN or infinity"):
        project(vectors)
    with pytest.raises(ValueError, match="no vectors"):
        project(np.empty((0, 4)))


def test_pca_map_states_the_variance_that_it_shows():
    # Unit vectors at ±e1 (8 each) and ±e2 (2 each) in three dimensions: variance 0.8 and 0.2 of 1, and nothing is left.
    vectors = np.repeat([[5, 0, 0], [-1, 0, 0], [0, 3, 0], [0, -2, 0]], [8, 8, 2, 2], axis=0).astype(np.float32)
    projected = _pca(vectors)
    assert projected.method == "PCA"
    assert projected.settings == {"variance on x": 0.8, "variance on y": 0.2, "fitted on": 20, "points": 20}
    np.testing.assert_allclose(np.abs(projected.coords[0]), [1, 0], atol=1e-6)


@pytest.mark.parametrize("n_points", [1, 2, 3, 5])
def test_pca_map_of_few_points_is_finite(n_points):
    projected = _pca(np.random.default_rng(0).normal(size=(n_points, 8)))
    assert projected.coords.shape == (n_points, 2) and np.isfinite(projected.coords).all()
    assert all(np.isfinite(value) for value in projected.settings.values())


def test_pca_of_a_sample_finds_the_directions_of_all(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 6)) * [9, 4, 1, 1, 1, 1]
    whole = pca_layout(vectors, seed=1)
    monkeypatch.setattr("ebr.visualization.project.projection._PCA_FITTED_ON", 700)
    sampled = pca_layout(vectors, seed=1)
    for axis in (0, 1):
        assert abs(np.corrcoef(whole[:, axis], sampled[:, axis])[0, 1]) > 0.99


def test_pca_layout_finds_the_direction_of_most_variance_first():
    line = np.outer([-1.0, 0.0, 1.0], [3.0, 4.0, 0.0])  # along (3, 4, 0), five units either way
    coords = pca_layout(line, seed=1)
    np.testing.assert_allclose(np.abs(coords[:, 0]), [5, 0, 5], atol=1e-5)
    np.testing.assert_allclose(coords[:, 1], 0, atol=1e-5)


def test_pca_layout_of_one_dimension_has_a_zero_second_axis():
    coords = pca_layout(np.array([[0.0], [2.0]]), seed=1)
    np.testing.assert_allclose(np.abs(coords), [[1, 0], [1, 0]])
