"""How far a map can be trusted: equal to scikit-learn's and to numbers worked out by hand; a bad map is said to be bad."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from ebr.visualization.project.quality import Measure
from ebr.visualization.project.trust import MapTrust, map_trust, trust_warning


def _vectors(n=120, dim=8, seed=3):
    """Rows whose lengths differ, so that cosine and Euclidean neighbours do."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, dim)) * rng.uniform(0.2, 9, size=(n, 1))).astype(np.float32)


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _trust(vectors, coords, **options) -> MapTrust:
    return map_trust(vectors, coords, seed=1, **options)


def _circle(*degrees):
    angles = np.radians(degrees)
    return np.column_stack([np.cos(angles), np.sin(angles)])


def _made(trustworthiness, overlap, chance=0.01, n_rows=2000):
    found = [Measure(value, n_rows) for value in (trustworthiness, trustworthiness, overlap, chance)]
    return MapTrust(10, *found)


def test_trustworthiness_and_continuity_equal_scikit_learns():
    vectors = _vectors()
    coords = vectors[:, :2]
    trust = _trust(vectors, coords)
    expected = trustworthiness(vectors, coords, n_neighbors=10, metric="cosine")
    swapped = trustworthiness(coords, _unit(vectors), n_neighbors=10)
    assert trust.trustworthiness == Measure(pytest.approx(expected), 120)
    assert trust.continuity == Measure(pytest.approx(swapped), 120)
    assert abs(expected - swapped) > 0.01  # or the test could not tell one from the other


def test_overlap_is_the_mean_share_of_common_neighbours():
    vectors = _vectors()
    near = NearestNeighbors(n_neighbors=10, metric="cosine").fit(vectors).kneighbors(return_distance=False)
    on_map = NearestNeighbors(n_neighbors=10).fit(vectors[:, :2]).kneighbors(return_distance=False)
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near, on_map, strict=True)])
    assert _trust(vectors, vectors[:, :2]).neighbour_overlap.value == pytest.approx(expected)


def test_three_points_by_hand():
    # Directions 0, 10 and 40 degrees: nearest are 1, 0, 1. On the map, at 0, 5 and 1: nearest are 2, 2, 0. Nobody keeps his
    # neighbour. k = 1, N = 3: each of the three wrong neighbours has rank 2, 1 too far; 1 - 2 / (3 * 1 * (6 - 3 - 1)) * 3 = 0.
    trust = _trust(_circle(0, 10, 40), np.array([[0.0, 0], [5, 0], [1, 0]]))
    figures = (trust.trustworthiness, trust.continuity, trust.neighbour_overlap, trust.chance_overlap)
    assert [figure.value for figure in figures] == [0, 0, 0, 0.5]
    assert trust.k == 1


def test_four_points_by_hand():
    # Nearest of 0, 10, 40 and 75 degrees: 1, 0, 1, 2. On the map 0, 1, 9, 2 along a line: 1, 0, 3, 1. Two of four are kept.
    # Wrong on the map: 2 takes 3 (35 degrees away, 1 is at 30: rank 2), 3 takes 1 (after 2: rank 2); with one rank too far each
    # 1 - 2 / (4 * (8 - 3 - 1)) * 2. Taken away: 1 from 2 (8 away, 3 is 7: rank 2), 2 from 3 (7 away, after 1 and 0: rank 3);
    # 1 - 2 / 16 * (1 + 2).
    trust = _trust(_circle(0, 10, 40, 75), np.array([[0.0, 0], [1, 0], [9, 0], [2, 0]]))
    assert trust.neighbour_overlap.value == 0.5
    assert trust.trustworthiness.value == pytest.approx(1 - 4 / 16)
    assert trust.continuity.value == pytest.approx(1 - 6 / 16)
    assert trust.chance_overlap.value == pytest.approx(1 / 3)


def test_a_map_that_keeps_all_angles_is_fully_trusted_and_a_shuffled_one_is_not():
    circle = _circle(*np.linspace(0, 170, 60) + np.random.default_rng(0).uniform(0, 0.5, 60))
    right = _trust(circle * 7, circle)
    assert right.trustworthiness.value == right.continuity.value == right.neighbour_overlap.value == 1.0
    assert trust_warning(right) == ""
    wrong = _trust(circle, np.random.default_rng(0).permutation(circle))
    assert wrong.trustworthiness.value < 0.7 and wrong.continuity.value < 0.7
    assert "trustworthiness 0." in trust_warning(wrong)


def test_points_placed_at_random_keep_as_many_neighbours_as_chance_says():
    trust = _trust(_vectors(n=600), np.random.default_rng(0).normal(size=(600, 2)))
    assert trust.chance_overlap.value == pytest.approx(10 / 599)
    assert trust.neighbour_overlap.value == pytest.approx(10 / 599, abs=0.005)
    assert trust.trustworthiness.value == pytest.approx(0.5, abs=0.02)
    assert trust_warning(trust)


def test_equal_texts_may_stand_in_for_each_other():
    # 40 rows, 20 copies of each of 2 directions, k = 5: a map that puts copies together keeps every neighbour.
    vectors = np.repeat(_circle(10, 80), 20, axis=0)
    coords = vectors + 1e-3 * np.random.default_rng(0).normal(size=(40, 2))
    assert _trust(vectors, coords, k=5).neighbour_overlap.value == 1.0


def test_an_all_zero_row_is_at_a_right_angle_to_every_other():
    # After its twin, each row's next is the pair 70 degrees off (1.15 away on the unit circle) and not the zeros, which lie 1
    # from every unit row but at a right angle by cosine. The map has it so. Only the zeros' own two, all equally near, are by
    # lot: at worst of ranks 3 and 4, so that continuity is at least 1 - 2 / (5 * 2 * (10 - 6 - 1)) * (1 + 2) = 0.8.
    vectors = np.vstack([_circle(0, 1, 70, 71), [[0.0, 0.0]]])
    coords = np.array([[0.0, 0], [1, 0], [50, 0], [51, 0], [1000, 0]])
    trust = _trust(vectors, coords, k=2)
    assert trust.continuity.value >= 0.8 - 1e-9
    assert trust.neighbour_overlap.value == 1.0


def test_figures_are_sampled_by_seed_and_say_on_how_many_rows():
    vectors = _vectors()
    first, second, other = (map_trust(vectors, vectors[:, :2], seed=seed, max_rows=50) for seed in (1, 1, 2))
    assert first == second != other
    assert {first.trustworthiness.n_rows, first.continuity.n_rows, first.neighbour_overlap.n_rows} == {50}
    assert first.chance_overlap == Measure(10 / 49, 50)


@pytest.mark.parametrize("n_points", [0, 1, 2])
def test_fewer_than_three_points_are_undefined(n_points):
    trust = _trust(np.eye(3)[:n_points], np.eye(3, 2)[:n_points])
    assert (
        trust.trustworthiness == trust.continuity == trust.neighbour_overlap == Measure(None, n_points, "fewer than 3 points")
    )
    assert trust_warning(trust) == ""
    assert trust.note() == "trustworthiness: undefined (fewer than 3 points)"
    assert trust.note("zh") == "可信度：无定义（少于 3 个点）"


@pytest.mark.parametrize(("n_points", "k"), [(3, 1), (4, 1), (5, 2), (12, 5)])
def test_few_points_have_fewer_neighbours(n_points, k):
    vectors = _vectors(n_points, dim=2, seed=0)
    trust = _trust(vectors, _unit(vectors))
    assert (trust.k, trust.trustworthiness.value) == (k, 1.0)


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (np.ones((9, 4)), "all vectors are equal"),
        (np.arange(1, 10)[:, None] * np.ones(4), "all vectors point the same way"),
        (np.zeros((9, 4)), "all vectors are equal"),
    ],
)
def test_vectors_without_directions_are_undefined(vectors, reason):
    assert _trust(vectors, np.zeros((9, 2))).neighbour_overlap == Measure(None, 9, reason)


def test_all_points_in_one_place_are_measured_and_warned_of():
    assert trust_warning(_trust(_vectors(n=300), np.zeros((300, 2))))


def test_lengths_that_differ_and_nan_are_refused():
    with pytest.raises(ValueError, match="3 vectors but 2 points"):
        _trust(np.eye(3), np.eye(2))
    with pytest.raises(ValueError, match="vector 1 holds NaN"):
        _trust(np.array([[1.0, 0], [np.nan, 0], [0, 1]]), np.eye(3, 2))


@pytest.mark.parametrize(
    ("trustworthiness", "overlap", "chance", "is_warned"),
    [
        (0.92, 0.42, 0.01, False),  # t-SNE of zh_drcd
        (0.80, 0.12, 0.005, True),  # PCA of en_banking77
        (0.95, 0.06, 0.005, True),  # PCA of blobs: the right blob, and within it nobody's neighbours
        (0.97, 0.16, 0.005, False),  # t-SNE of the same blobs
        (0.9, 0.5, 0.47, True),  # 20 points, where chance keeps 0.47: 0.03 of 0.53 is no tenth
        (0.9, 0.53, 0.47, False),
    ],
)
def test_a_warning_needs_false_neighbours_or_few_kept_beyond_chance(trustworthiness, overlap, chance, is_warned):
    trust = _made(trustworthiness, overlap, chance)
    assert bool(trust_warning(trust)) == bool(trust_warning(trust, "zh")) == is_warned


def test_warning_and_note_carry_the_figures_in_both_languages():
    trust = _made(0.5049, 0.0149, 0.005)
    assert "trustworthiness 0.50, 1% of the nearest neighbours kept (0.5% by chance)" in trust_warning(trust)
    assert "可信度 0.50，最近邻只保留 1%（随机 0.5%）" in trust_warning(trust, "zh")
    assert trust.note() == "trustworthiness 0.505 · continuity 0.505 · 1% of 10 nearest kept (2,000 rows)"
    assert trust.note("zh") == "可信度 0.505 · 连续性 0.505 · 10 近邻保留 1%（2,000 行）"


def test_figures_come_back_from_json():
    vectors = _vectors()
    for trust in (_trust(vectors, vectors[:, :2]), _trust(vectors[:2], vectors[:2, :2])):
        assert MapTrust.from_json(json.loads(json.dumps(asdict(trust)))) == trust
