"""Cluster quality: equal to scikit-learn's and to numbers worked out by hand; undefined values say why."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from ebr.visualization.quality import MEANINGS, Measure, cluster_quality, map_trustworthiness, quality_lines

METRICS = ("silhouette", "calinski_harabasz", "davies_bouldin", "knn_agreement", "chance_agreement")


def _noisy_groups(n=120):
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, size=n)
    return (np.eye(3, 8)[codes] + 0.6 * rng.normal(size=(n, 8))).astype(np.float32), [f"label {code}" for code in codes]


def test_label_metrics_equal_scikit_learns():
    vectors, labels = _noisy_groups()
    quality = cluster_quality(vectors, labels)
    assert quality.silhouette.value == pytest.approx(silhouette_score(vectors, labels, metric="cosine"))
    assert quality.calinski_harabasz.value == pytest.approx(calinski_harabasz_score(vectors, labels))
    assert quality.davies_bouldin.value == pytest.approx(davies_bouldin_score(vectors, labels))
    assert (quality.n_rows, quality.n_unlabelled, quality.n_labels) == (120, 0, 3)


def test_neighbour_agreement_by_hand():
    # Directions at 0, 10, 25 and 90 degrees. Nearest other: 10, 0, 10, 25. Labels a a b b: yes, yes, no, yes.
    angles = np.radians([0, 10, 25, 90])
    vectors = np.column_stack([np.cos(angles), np.sin(angles)]) * [[1], [9], [1], [5]]  # lengths must not matter
    assert cluster_quality(vectors, ["a", "a", "b", "b"], k=1).knn_agreement.value == pytest.approx(3 / 4)


def test_neighbour_agreement_leaves_the_row_itself_out():
    vectors = np.repeat(np.eye(2), 2, axis=0)  # two pairs of twins, and the labels split each pair
    assert cluster_quality(vectors, ["a", "b", "a", "b"], k=1).knn_agreement.value == 0.0


def test_chance_agreement_by_hand():
    # a a a b b: (3 * 2 + 2 * 1) / (5 * 4)
    vectors = np.random.default_rng(0).normal(size=(5, 4))
    assert cluster_quality(vectors, list("aaabb")).chance_agreement.value == pytest.approx(8 / 20)


def test_chance_agreement_is_what_shuffled_labels_reach():
    vectors, labels = _noisy_groups(n=400)
    rng = np.random.default_rng(0)
    shuffled = [cluster_quality(vectors, list(rng.permutation(labels))).knn_agreement.value for _ in range(10)]
    assert np.mean(shuffled) == pytest.approx(cluster_quality(vectors, labels).chance_agreement.value, abs=0.02)


def test_rows_without_a_label_are_left_out():
    vectors, labels = _noisy_groups()
    with_gaps = np.insert(vectors, [0, 50, 120], 99.0, axis=0)
    gaps = ["", *labels[:50], "", *labels[50:], ""]
    without, quality = cluster_quality(vectors, labels), cluster_quality(with_gaps, gaps)
    assert quality.n_unlabelled == 3 and quality.n_rows == 123
    for name in METRICS:
        assert getattr(quality, name) == getattr(without, name)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([], "fewer than 2 labels"),
        ([""] * 3, "fewer than 2 labels"),
        (["a"], "fewer than 2 labels"),
        (["a"] * 5, "fewer than 2 labels"),
        (list("abcde"), "every label occurs only once"),
        (["a", "b"], "every label occurs only once"),
    ],
)
def test_labels_that_cannot_be_compared_are_undefined_with_a_reason(labels, reason):
    quality = cluster_quality(np.random.default_rng(0).normal(size=(len(labels), 4)), labels)
    for name in METRICS:
        measure = getattr(quality, name)
        assert measure.value is None and measure.reason == reason


def test_equal_vectors_are_undefined_rather_than_perfect():
    quality = cluster_quality(np.ones((6, 4)), list("aaabbb"))
    assert quality.davies_bouldin == Measure(None, 6, "all vectors are equal")


def test_three_rows_of_two_labels_are_measured_with_two_neighbours():
    quality = cluster_quality(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), ["a", "a", "b"])
    assert quality.k == 2
    assert quality.knn_agreement.value == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)


def test_silhouette_is_sampled_by_seed_and_says_on_how_many_rows():
    vectors, labels = _noisy_groups()
    first, second, other = (cluster_quality(vectors, labels, seed=seed, silhouette_rows=60) for seed in (1, 1, 2))
    assert first.silhouette == second.silhouette != other.silhouette
    assert first.silhouette.n_rows == 60 and first.calinski_harabasz.n_rows == 120


def test_trustworthiness_equals_scikit_learns_by_cosine():
    vectors, _ = _noisy_groups()
    coords = vectors[:, :2]
    expected = trustworthiness(vectors, coords, n_neighbors=10, metric="cosine")
    assert map_trustworthiness(vectors, coords) == Measure(pytest.approx(expected), 120)


def test_a_map_that_keeps_all_angles_is_fully_trusted_and_a_shuffled_one_is_not():
    angles = np.linspace(0, 3, 60)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    assert map_trustworthiness(circle * 7, circle).value == 1.0
    assert map_trustworthiness(circle, np.random.default_rng(0).permutation(circle)).value < 0.7


def test_trustworthiness_is_sampled_by_seed():
    vectors, _ = _noisy_groups()
    first, second, other = (map_trustworthiness(vectors, vectors[:, :2], seed=seed, max_rows=50) for seed in (1, 1, 2))
    assert first == second != other
    assert first.n_rows == 50


@pytest.mark.parametrize("n_points", [0, 1, 2])
def test_trustworthiness_of_fewer_than_three_points_is_undefined(n_points):
    assert map_trustworthiness(np.eye(3)[:n_points], np.eye(3, 2)[:n_points]) == Measure(None, n_points, "fewer than 3 points")


@pytest.mark.parametrize("n_points", [3, 4, 5, 12])
def test_trustworthiness_lowers_its_neighbours_for_few_points(n_points):
    vectors = np.random.default_rng(0).normal(size=(n_points, 2))
    assert map_trustworthiness(vectors, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).value == 1.0


def test_trustworthiness_of_equal_vectors_is_undefined():
    assert map_trustworthiness(np.ones((9, 4)), np.zeros((9, 2))).reason == "all vectors are equal"


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="3 vectors but 2 labels"):
        cluster_quality(np.eye(3), ["a", "b"])
    with pytest.raises(ValueError, match="3 vectors but 2 points"):
        map_trustworthiness(np.eye(3), np.eye(2))


def test_lines_are_aligned_and_every_metric_has_its_meaning():
    vectors, labels = _noisy_groups()
    quality = cluster_quality(vectors, [*labels[:-1], ""], silhouette_rows=60)
    head, *lines = quality_lines(quality, {"t-SNE": Measure(0.91234, 119), "UMAP": Measure(None, 2, "fewer than 3 points")})
    assert head == "119 labelled rows, 3 labels; 1 rows without a label are left out"
    meanings = list(MEANINGS.values())
    starts = [line.index(meaning) for line, meaning in zip(lines, meanings, strict=False)]
    assert len(lines) == 7 and len(starts) == 6 and len(set(starts)) == 1
    assert lines[0].endswith("(on 60 rows)")
    assert lines[5].split("  ")[0] == "trustworthiness, t-SNE" and " 0.912 " in lines[5]
    assert lines[6][starts[0] :] == "undefined: fewer than 3 points"
