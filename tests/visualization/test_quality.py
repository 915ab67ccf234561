"""Cluster quality: equal to scikit-learn's and to numbers worked out by hand; undefined values say why."""

import json
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from ebr.data.text.terminal_text import text_columns
from ebr.data.vectors.batch import sample_rows
from ebr.visualization.project import quality as quality_module
from ebr.visualization.project import trust as trust_module
from ebr.visualization.project.quality import ClusterQuality, Measure, cluster_quality, quality_lines, reason_text
from ebr.visualization.project.trust import MapTrust
from ebr.visualization.words import words

METRICS = tuple(field.name for field in fields(ClusterQuality) if field.type == "Measure")


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


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30, 1e37])
def test_no_measure_depends_on_the_scale_of_the_vectors(scale):
    vectors, labels = _noisy_groups()
    plain, scaled = (
        cluster_quality(vectors, labels),
        cluster_quality((vectors.astype(np.float64) * scale).astype(np.float32), labels),
    )
    for name in METRICS:
        assert getattr(scaled, name).value == pytest.approx(getattr(plain, name).value, rel=1e-3), name


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
    shuffled = [cluster_quality(vectors, list(rng.permutation(labels))).knn_agreement.value for _ in range(5)]
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


def test_agreement_is_asked_of_a_seeded_sample_but_among_all_rows():
    vectors, labels = _noisy_groups()
    found = [cluster_quality(vectors, labels, seed=seed, agreement_rows=40) for seed in (1, 1, 2)]
    assert found[0].knn_agreement == found[1].knn_agreement != found[2].knn_agreement
    assert found[0].knn_agreement.n_rows == 40 and found[0].chance_agreement.n_rows == 120
    asked = sample_rows(120, 40, 1)
    near = NearestNeighbors(n_neighbors=11, metric="cosine").fit(vectors).kneighbors(vectors[asked], return_distance=False)
    codes = np.array(labels)
    assert found[0].knn_agreement.value == pytest.approx((codes[near[:, 1:]] == codes[asked, None]).mean())


def test_more_rows_are_asked_less_each(monkeypatch):
    vectors, labels = _noisy_groups()
    monkeypatch.setattr(quality_module, "_FEWEST_QUERIES", 10)
    for most_pairs, n_asked in ((120 * 30, 30), (120, 10), (10**9, 120)):
        monkeypatch.setattr(quality_module, "_MOST_PAIRS", most_pairs)
        assert cluster_quality(vectors, labels).knn_agreement.n_rows == n_asked


def test_many_equal_rows_agree_as_their_labels_do():
    # 30 equal rows are nearer to each other than to the 30 others, so a row is not always among its own first eleven.
    vectors = np.repeat(np.eye(2), 30, axis=0)
    assert cluster_quality(vectors, ["a"] * 30 + ["b"] * 30).knn_agreement.value == 1.0
    # Alternating labels: rows 2 to 29 have the rows 0 to 9 or so as neighbours, five of each label.
    assert cluster_quality(vectors, ["a", "b"] * 30).knn_agreement.value == pytest.approx(0.5, abs=0.05)


def test_kmeans_measures_equal_scikit_learns_on_unit_rows():
    vectors, labels = _noisy_groups()
    quality = cluster_quality(vectors * np.random.default_rng(1).uniform(0.1, 9, (120, 1)), labels, seed=5)
    found = KMeans(3, n_init=4, max_iter=50, random_state=5).fit_predict(normalize(vectors))
    assert quality.kmeans_nmi == Measure(pytest.approx(normalized_mutual_info_score(labels, found)), 120)
    assert quality.kmeans_ari == Measure(pytest.approx(adjusted_rand_score(labels, found)), 120)
    assert 0 < quality.kmeans_ari.value < 1


def test_clusters_that_are_the_labels_reach_one_and_shuffled_labels_nothing():
    vectors = np.repeat(np.eye(4), 25, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(100, 4))
    labels = [f"label {row // 25}" for row in range(100)]
    quality = cluster_quality(vectors, labels)
    assert quality.kmeans_nmi.value == quality.kmeans_ari.value == pytest.approx(1)
    shuffled = cluster_quality(vectors, list(np.random.default_rng(0).permutation(labels)))
    assert shuffled.kmeans_ari.value == pytest.approx(0, abs=0.05)


def test_kmeans_sees_a_seeded_sample_and_says_on_how_many_rows():
    vectors, labels = _noisy_groups()
    first, second = (cluster_quality(vectors, labels, seed=1, kmeans_rows=60) for _ in range(2))
    assert first.kmeans_nmi == second.kmeans_nmi and first.kmeans_nmi.n_rows == first.kmeans_ari.n_rows == 60


@pytest.mark.filterwarnings("error")
def test_fewer_different_rows_than_labels_are_clustered_without_a_warning():
    vectors = np.repeat(np.eye(2), 6, axis=0)
    assert cluster_quality(vectors, list("abcabcdefdef")).kmeans_nmi.value is not None


def test_too_many_labels_leave_out_what_would_take_minutes(monkeypatch):
    vectors, labels = _noisy_groups()
    monkeypatch.setattr(quality_module, "MOST_LABELS", 2)
    quality = cluster_quality(vectors, labels)
    left_out = [name for name, measure in quality.measures().items() if measure.value is None]
    assert left_out == ["calinski_harabasz", "davies_bouldin", "kmeans_nmi", "kmeans_ari"]
    assert quality.davies_bouldin.reason == "more than 1,000 labels"


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="3 vectors but 2 labels"):
        cluster_quality(np.eye(3), ["a", "b"])
    with pytest.raises(ValueError, match="vector 2 holds NaN"):
        cluster_quality(np.array([[1.0, 0], [0, 1], [np.nan, 0], [1, 1]]), list("aabb"))


def test_quality_comes_back_from_json():
    vectors, labels = _noisy_groups()
    for quality in (cluster_quality(vectors, labels), cluster_quality(vectors[:2], labels[:2])):
        assert ClusterQuality.from_json(json.loads(json.dumps(asdict(quality)))) == quality


def _table():
    vectors, labels = _noisy_groups()
    quality = cluster_quality(vectors, [*labels[:-1], ""], silhouette_rows=60)
    found, undefined = Measure(0.91234, 119), Measure(None, 2, "fewer than 3 points")
    return quality, {"t-SNE": MapTrust(10, *[found] * 4), "UMAP": MapTrust(0, *[undefined] * 4)}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_lines_are_aligned_and_every_metric_has_its_meaning(language):
    quality, trust = _table()
    head, columns, *lines = quality_lines(quality, trust, language)
    meanings = list(words("metric_meanings", language).values())
    assert len(meanings) == 11 and len(lines) == 7 + 2 * 4
    # A Chinese character takes two columns of a terminal.
    starts = {text_columns(line[: line.index(meaning)]) for line, meaning in zip(lines, meanings, strict=False)}
    last = "meaning" if language == "en" else "含义"
    assert starts == {text_columns(columns[: columns.index(last)])}
    assert head.startswith("119 ") and "1 " in head[4:]


def test_lines_say_the_value_the_rows_and_why_there_is_none():
    quality, trust = _table()
    head, _, *lines = quality_lines(quality, trust)
    assert head == "119 labelled rows, 3 labels; 1 rows without a label are left out"
    assert lines[0].split()[:5] == ["silhouette", "(cosine)", f"{quality.silhouette.value:.3f}", "60", "-1..1;"]
    assert lines[7].split()[:5] == ["trustworthiness,", "t-SNE", "0.912", "119", "0..1;"]
    assert lines[9].startswith("neighbours kept, k=10, t-SNE ")
    assert lines[11].split(maxsplit=4)[2:] == ["-", "2", "undefined: fewer than 3 points"]
    zh = quality_lines(quality, trust, "zh")
    assert zh[0] == "119 行有标签，共 3 种标签；另有 1 行没有标签，未计入"
    assert zh[13].endswith("无定义：少于 3 个点")
    assert len(quality_lines(quality)) == 2 + 7


def test_words_of_both_languages_cover_every_number_and_every_reason():
    numbers = [field.name for record in (ClusterQuality, MapTrust) for field in fields(record) if field.type == "Measure"]
    for section in ("metric_meanings", "metric_names"):
        assert list(words(section, "en")) == list(words(section, "zh")) == numbers
    sources = "".join(Path(module.__file__).read_text("utf-8") for module in (quality_module, trust_module))
    chinese = words("undefined", "zh")
    said = {reason for reason in chinese if f'"{reason}"' in sources} | {quality_module._TOO_MANY}
    assert said == set(chinese)
    assert {reason_text(Measure(None, 0, reason), "en") for reason in chinese} == set(chinese)
    assert all(reason_text(Measure(None, 0, reason), "zh") == chinese[reason] for reason in chinese)


def test_a_map_from_the_cache_needs_no_scikit_learn():
    code = (
        "import sys; from ebr.visualization.project.quality import ClusterQuality, quality_lines; "
        "from ebr.visualization.project.trust import MapTrust; "
        "print([name for name in sys.modules if name.startswith('sklearn')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
