"""How well the labels group in the original space, and how far a map can be trusted.

The label metrics look at the vectors themselves, never at a map: t-SNE and UMAP draw clusters where there are none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import trustworthiness
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

MEANINGS = {
    "silhouette (cosine)": "-1..1; higher = labels form tight, separate groups",
    "Calinski-Harabasz": "0 and up; higher = more spread between labels than within them; compare equal row counts only",
    "Davies-Bouldin": "0 and up; lower = every label lies far from its most similar other label",
    "kNN label agreement": "0..1; higher = a vector's nearest neighbours carry its label",
    "agreement by chance": "what the line above would be if the labels were shuffled",
    "trustworthiness": "0..1; higher = neighbours on the map are neighbours in the original space",
}
"""What each metric means, in one English sentence."""


@dataclass(frozen=True)
class Measure:
    """One number. value: None when it is undefined, and then reason says why. n_rows: the rows that it was computed on."""

    value: float | None
    n_rows: int
    reason: str = ""


@dataclass(frozen=True)
class ClusterQuality:
    """How well labels group in the original space. Rows without a label are counted and otherwise left out."""

    n_rows: int
    n_unlabelled: int
    n_labels: int
    k: int
    silhouette: Measure
    calinski_harabasz: Measure
    davies_bouldin: Measure
    knn_agreement: Measure
    chance_agreement: Measure


def cluster_quality(
    vectors: NDArray[np.floating], labels: Sequence[str], *, seed: int = 42, k: int = 10, silhouette_rows: int = 5000
) -> ClusterQuality:
    """Measure how well labels group, by four metrics and a chance level.

    vectors: (N, D), as they are: Calinski-Harabasz and Davies-Bouldin are Euclidean, the others go by cosine. labels: N texts,
    an empty one is missing. k: neighbours of the agreement, lowered to N - 1. silhouette_rows: the silhouette is quadratic and
    is computed on a seeded sample of at most so many rows. Raises ValueError when the lengths differ.
    """
    if len(vectors) != len(labels):
        raise ValueError(f"{len(vectors)} vectors but {len(labels)} labels")
    has_label = np.array([bool(label) for label in labels], dtype=bool)
    rows = np.asarray(vectors)[has_label]
    names, codes = np.unique([label for label in labels if label], return_inverse=True)
    k = min(k, max(len(rows) - 1, 0))
    sample = _sample(len(rows), silhouette_rows, seed)
    return ClusterQuality(
        n_rows=len(labels),
        n_unlabelled=int(len(labels) - has_label.sum()),
        n_labels=len(names),
        k=k,
        silhouette=_measure(lambda x, y: silhouette_score(x, y, metric="cosine"), rows[sample], codes[sample]),
        calinski_harabasz=_measure(calinski_harabasz_score, rows, codes),
        davies_bouldin=_measure(davies_bouldin_score, rows, codes),
        knn_agreement=_measure(lambda x, y: _neighbour_agreement(x, y, k), rows, codes),
        chance_agreement=_measure(lambda _, y: _chance_agreement(y), rows, codes),
    )


def map_trustworthiness(
    vectors: NDArray[np.floating], coords: NDArray[np.floating], *, seed: int = 42, k: int = 10, max_rows: int = 2000
) -> Measure:
    """Share of map neighbourhoods that are real, 0 to 1 (Venna & Kaski 2001), by cosine on a seeded sample of max_rows rows.

    vectors: (N, D). coords: (N, 2). k: neighbours looked at, lowered for few points, since the measure needs k < N / 2.
    Raises ValueError when the lengths differ.
    """
    if len(vectors) != len(coords):
        raise ValueError(f"{len(vectors)} vectors but {len(coords)} points")
    sample = _sample(len(vectors), max_rows, seed)
    rows, points = np.asarray(vectors)[sample], np.asarray(coords)[sample]
    k = min(k, (len(rows) - 1) // 2)
    if k < 1:
        return Measure(None, len(rows), "fewer than 3 points")
    if _all_equal(rows):
        return Measure(None, len(rows), "all vectors are equal")
    return Measure(float(trustworthiness(rows, points, n_neighbors=k, metric="cosine")), len(rows))


def quality_lines(quality: ClusterQuality, trust: Mapping[str, Measure] | None = None) -> list[str]:
    """Lines to print: what was measured, then a metric a line with its value and its meaning, in aligned columns.

    trust: the trustworthiness of each map, by the map's name.
    """
    rows = [
        ("silhouette (cosine)", quality.silhouette, MEANINGS["silhouette (cosine)"]),
        ("Calinski-Harabasz", quality.calinski_harabasz, MEANINGS["Calinski-Harabasz"]),
        ("Davies-Bouldin", quality.davies_bouldin, MEANINGS["Davies-Bouldin"]),
        (f"kNN label agreement, k={quality.k}", quality.knn_agreement, MEANINGS["kNN label agreement"]),
        ("agreement by chance", quality.chance_agreement, MEANINGS["agreement by chance"]),
        *((f"trustworthiness, {name}", measure, MEANINGS["trustworthiness"]) for name, measure in (trust or {}).items()),
    ]
    n_labelled = quality.n_rows - quality.n_unlabelled
    name_width = max(len(name) for name, _, _ in rows)
    value_width = max(len(_value_text(measure)) for _, measure, _ in rows)
    head = f"{n_labelled:,} labelled rows, {quality.n_labels:,} labels"
    if quality.n_unlabelled:
        head += f"; {quality.n_unlabelled:,} rows without a label are left out"
    return [head] + [
        f"{name:<{name_width}}  {_value_text(measure):>{value_width}}  {_remark(measure, meaning, n_labelled)}"
        for name, measure, meaning in rows
    ]


def _value_text(measure: Measure) -> str:
    return "-" if measure.value is None else f"{measure.value:,.3f}"


def _remark(measure: Measure, meaning: str, n_labelled: int) -> str:
    if measure.value is None:
        return f"undefined: {measure.reason}"
    return meaning if measure.n_rows == n_labelled else f"{meaning} (on {measure.n_rows:,} rows)"


def _sample(n_rows: int, at_most: int, seed: int) -> NDArray[np.int64]:
    if n_rows <= at_most:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, at_most, replace=False))


def _measure(
    metric: Callable[[NDArray[np.floating], NDArray[np.int64]], float], rows: NDArray[np.floating], codes: NDArray[np.int64]
) -> Measure:
    reason = _why_undefined(rows, codes)
    return Measure(None, len(rows), reason) if reason else Measure(float(metric(rows, codes)), len(rows))


def _why_undefined(rows: NDArray[np.floating], codes: NDArray[np.int64]) -> str:
    n_labels = len(np.unique(codes))
    if n_labels < 2:
        return "fewer than 2 labels"
    if n_labels == len(codes):
        return "every label occurs only once"
    return "all vectors are equal" if _all_equal(rows) else ""


def _all_equal(rows: NDArray[np.floating]) -> bool:
    return bool((rows == rows[:1]).all())


def _neighbour_agreement(rows: NDArray[np.floating], codes: NDArray[np.int64], k: int) -> float:
    """Mean share of a row's k nearest others, by cosine, that carry its label."""
    # Asked without rows, kneighbors() leaves each row out of its own neighbours.
    neighbours = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(rows).kneighbors(return_distance=False)
    return float((codes[neighbours] == codes[:, None]).mean())


def _chance_agreement(codes: NDArray[np.int64]) -> float:
    """The agreement to expect of shuffled labels: the chance that two different rows share one, sum n(n-1) / N(N-1)."""
    n_rows = len(codes)
    return sum(n * (n - 1) for n in Counter(codes.tolist()).values()) / (n_rows * (n_rows - 1))
