"""How well labels group in the original space: one number a question, the rows it stands on, and what it means.

These metrics look at the vectors themselves, never at a map: t-SNE and UMAP draw clusters where there are none. How far a map
can be believed is asked in trust.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ebr.config.options import Language
from ebr.data.result_tables import DataFrame, Table
from ebr.data.text.terminal_text import pad_text, text_columns
from ebr.data.vectors.batch import sample_rows
from ebr.data.vectors.exact_search import unit_rows
from ebr.visualization.project.neighbours import neighbours_in
from ebr.visualization.words import words

if TYPE_CHECKING:
    from ebr.visualization.project.trust import MapTrust

MOST_LABELS = 1000
"""Of more labels, the metrics that compare each with every other (or cluster into as many) would take minutes and gigabytes."""
_TOO_MANY = f"more than {MOST_LABELS:,} labels"
_ALL_EQUAL = "all vectors are equal"
_NOT_FINITE = "the vectors' numbers are too large or too small"
_NUMBERS = "the column holds numbers, not labels (label_kind)"
_MODERATE = (1e-6, 1e6)

# Each row that is asked for its neighbours is compared with all others; from 1,000 rows the share that agrees is known to 0.016
# (one standard error, at worst).
_MOST_PAIRS = 100_000_000
_FEWEST_QUERIES = 1000
_SURE_PRODUCT = 200_000
"""Up to so many rows x labels, k-means starts four times and keeps the best; beyond, greedy k-means++ once is close to it."""


@dataclass(frozen=True)
class Measure:
    """One number. value: None when it is undefined, and then reason says why. n_rows: the rows that it was computed on."""

    value: float | None
    n_rows: int
    reason: str = ""


@dataclass(frozen=True)
class ClusterQuality:
    """How well labels group in the original space. Rows without a label are counted and otherwise left out.

    k: neighbours of the agreement. kmeans_nmi, kmeans_ari: of as many clusters of unit rows as there are labels, against them.
    """

    n_rows: int
    n_unlabelled: int
    n_labels: int
    k: int
    silhouette: Measure
    calinski_harabasz: Measure
    davies_bouldin: Measure
    knn_agreement: Measure
    chance_agreement: Measure
    kmeans_nmi: Measure
    kmeans_ari: Measure

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ClusterQuality:
        """What dataclasses.asdict made of one."""
        return cls(**with_measures(record))

    def measures(self) -> dict[str, Measure]:
        """Every number by its name, in the order of the table."""
        return measures_of(self)

    def to_frame(self) -> DataFrame:
        """A row for each number: measure, name, value, n_rows, meaning (or why it is undefined)."""
        return Table.of(quality_records(self)).without("map").to_frame()


def with_measures(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of numbers and measures, read from JSON: its dictionaries become Measures."""
    return {name: Measure(**value) if isinstance(value, Mapping) else value for name, value in record.items()}


def measures_of(record: ClusterQuality | MapTrust) -> dict[str, Measure]:
    """The fields of a record that are measures, by name, in their order."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value for name, value in values.items() if isinstance(value, Measure)}


def cluster_quality(
    vectors: NDArray[np.floating],
    labels: Sequence[str],
    *,
    seed: int = 42,
    k: int = 10,
    silhouette_rows: int = 5000,
    agreement_rows: int = 5000,
    kmeans_rows: int = 10_000,
) -> ClusterQuality:
    """Measure how well labels group: seven numbers, each with the rows it stands on; about ten seconds for 100,000 of 384.

    vectors: (N, D), as they are: Calinski-Harabasz and Davies-Bouldin are Euclidean, the others go by cosine. labels: N texts,
    an empty one is missing. k: neighbours of the agreement, lowered to N - 1. silhouette_rows, kmeans_rows: the most rows of
    the seeded samples that these costly ones see. agreement_rows: the most rows whose neighbours, among all, are looked up;
    fewer beyond 20,000 rows, 1,000 at least. Raises ValueError when the lengths differ, or for NaN.
    """
    if len(vectors) != len(labels):
        raise ValueError(f"{len(vectors)} vectors but {len(labels)} labels")
    has_label = np.fromiter(map(bool, labels), dtype=bool, count=len(labels))
    rows = np.asarray(vectors) if has_label.all() else np.asarray(vectors)[has_label]  # no copy of a million rows for nothing
    code_of = {label: code for code, label in enumerate(sorted(set(labels) - {""}))}
    codes = np.fromiter((code_of[label] for label in labels if label), dtype=np.int64, count=len(rows))
    k = min(k, max(len(rows) - 1, 0))
    near = sample_rows(len(rows), silhouette_rows, seed)
    asked = sample_rows(len(rows), min(agreement_rows, max(_FEWEST_QUERIES, _MOST_PAIRS // max(len(rows), 1))), seed)
    # One reason for the agreement and its chance level: both are of all rows, whichever of them are asked.
    reason = _why_undefined(rows, codes)
    rows = _of_moderate_size(rows)
    nmi, ari = _kmeans_measures(rows, codes, sample_rows(len(rows), kmeans_rows, seed), seed)
    return ClusterQuality(
        n_rows=len(labels),
        n_unlabelled=len(labels) - len(rows),
        n_labels=len(code_of),
        k=k,
        silhouette=_measure(_silhouette, unit_rows(rows[near]), codes[near]),
        calinski_harabasz=_measure(_calinski_harabasz, rows, codes, most_labels=MOST_LABELS),
        davies_bouldin=_measure(_davies_bouldin, rows, codes, most_labels=MOST_LABELS),
        knn_agreement=Measure(None if reason else _neighbour_agreement(rows, codes, asked, k), len(asked), reason),
        chance_agreement=Measure(None if reason else _chance_agreement(codes), len(rows), reason),
        kmeans_nmi=nmi,
        kmeans_ari=ari,
    )


def quality_of_numbers(numbers: NDArray[np.float64]) -> ClusterQuality:
    """What is to be said of a column of numbers (N,), nan where one is missing: nothing here measures it."""
    n_given = int(np.isfinite(numbers).sum())
    nothing = Measure(None, n_given, _NUMBERS)
    return ClusterQuality(len(numbers), len(numbers) - n_given, 0, 0, *[nothing] * 7)


def quality_lines(quality: ClusterQuality, trust: Mapping[str, MapTrust] | None = None, language: Language = "en") -> list[str]:
    """Lines to print: what was measured, then a metric a line with its value, its rows and its meaning, in aligned columns.

    trust: how far each map can be trusted, by the map's name.
    """
    table = [tuple(words("metric_table", language).values())]
    for row in quality_records(quality, trust, language):
        name = f"{row['name']}{', ' if language == 'en' else '，'}{row['map']}" if row["map"] else row["name"]
        value = "-" if row["value"] is None else f"{row['value']:,.3f}"
        table.append((name, value, f"{row['n_rows']:,}", row["meaning"]))
    widths = [max(map(text_columns, column)) for column in zip(*table, strict=True)]
    return [quality_head(quality, language)] + [
        f"{pad_text(name, widths[0])}  {_right(value, widths[1])}  {_right(n_rows, widths[2])}  {meaning}"
        for name, value, n_rows, meaning in table
    ]


def quality_records(
    quality: ClusterQuality, trust: Mapping[str, MapTrust] | None = None, language: Language = "en"
) -> list[dict[str, Any]]:
    """The rows of that table: measure (its field), name (in words), map ("" = none), value, n_rows, meaning."""
    has_labels = quality.n_labels or quality.silhouette.reason == _NUMBERS
    measured = [("", quality.k, quality.measures())] if has_labels else []
    measured += [(name, figures.k, measures_of(figures)) for name, figures in (trust or {}).items()]
    return [
        {
            "measure": field,
            "name": words("metric_names", language)[field].format(k=k),
            "map": map_name,
            "value": measure.value,
            "n_rows": measure.n_rows,
            "meaning": _meaning(field, measure, language),
        }
        for map_name, k, measures in measured
        for field, measure in measures.items()
    ]


def quality_head(quality: ClusterQuality, language: Language) -> str:
    """What was measured, on one line."""
    n_labelled = quality.n_rows - quality.n_unlabelled
    if quality.silhouette.reason == _NUMBERS:
        return f"{n_labelled:,} rows with a number" if language == "en" else f"{n_labelled:,} 行有数值"
    if language == "zh":
        left_out = f"；另有 {quality.n_unlabelled:,} 行没有标签，未计入" if quality.n_unlabelled else ""
        return f"{n_labelled:,} 行有标签，共 {quality.n_labels:,} 种标签{left_out}"
    left_out = f"; {quality.n_unlabelled:,} rows without a label are left out" if quality.n_unlabelled else ""
    return f"{n_labelled:,} labelled rows, {quality.n_labels:,} labels{left_out}"


def _meaning(field: str, measure: Measure, language: Language) -> str:
    if measure.value is not None:
        return words("metric_meanings", language)[field]
    reason = reason_text(measure, language)
    return f"undefined: {reason}" if language == "en" else f"无定义：{reason}"


def reason_text(measure: Measure, language: Language) -> str:
    """Why a number is undefined, in a language."""
    return words("undefined", language).get(measure.reason, measure.reason)


def _right(text: str, columns: int) -> str:
    return " " * (columns - text_columns(text)) + text


# ---------------------------------------------------------------- measuring


def _measure(
    metric: Callable[[NDArray[np.floating], NDArray[np.int64]], float],
    rows: NDArray[np.floating],
    codes: NDArray[np.int64],
    *,
    most_labels: int | None = None,
) -> Measure:
    reason = _why_undefined(rows, codes, most_labels)
    value = None if reason else float(metric(rows, codes))
    return Measure(value, len(rows), reason) if value is None or isfinite(value) else Measure(None, len(rows), _NOT_FINITE)


def _why_undefined(rows: NDArray[np.floating], codes: NDArray[np.int64], most_labels: int | None = None) -> str:
    n_labels = len(np.unique(codes))
    if n_labels < 2:
        return "fewer than 2 labels"
    if n_labels == len(codes):
        return "every label occurs only once"
    if most_labels is not None and n_labels > most_labels:
        return _TOO_MANY
    return _ALL_EQUAL if all_equal(rows) else ""


def all_equal(rows: NDArray[np.floating]) -> bool:
    """Whether every row is the first one."""
    # The second look costs as much memory as a quarter of the rows, and is taken only when the first finds no difference.
    return bool((rows[-1:] == rows[:1]).all() and (rows == rows[:1]).all())


# scikit-learn takes a second to import: a map that is redrawn from the cache needs these records and none of its functions.


def _of_moderate_size(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """The rows, divided by their largest number where squares would leave float32: no measure here depends on the scale."""
    largest = max(abs(float(rows.max(initial=0))), abs(float(rows.min(initial=0))))
    return (
        rows if _MODERATE[0] <= largest <= _MODERATE[1] or not 0 < largest < np.inf else rows / np.asarray(largest, rows.dtype)
    )


def _silhouette(rows: NDArray[np.floating], codes: NDArray[np.int64]) -> float:
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(rows, codes, metric="cosine"))


def _calinski_harabasz(rows: NDArray[np.floating], codes: NDArray[np.int64]) -> float:
    from sklearn.metrics import calinski_harabasz_score

    return float(calinski_harabasz_score(rows, codes))


def _davies_bouldin(rows: NDArray[np.floating], codes: NDArray[np.int64]) -> float:
    from sklearn.metrics import davies_bouldin_score

    return float(davies_bouldin_score(rows, codes))


def _kmeans_measures(
    rows: NDArray[np.floating], codes: NDArray[np.int64], sample: NDArray[np.int64], seed: int
) -> tuple[Measure, Measure]:
    """NMI and ARI of the labels and as many clusters of the sampled unit rows (spherical in effect: cosine, not length)."""
    own = codes[sample]
    reason = _why_undefined(rows[sample], own, MOST_LABELS)
    if reason:
        return Measure(None, len(own), reason), Measure(None, len(own), reason)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    n_clusters = len(np.unique(own))
    starts = 4 if len(own) * n_clusters <= _SURE_PRODUCT else 1
    model = KMeans(n_clusters, n_init=starts, max_iter=50, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than labels: then some clusters stay empty
        found = model.fit_predict(unit_rows(rows[sample]).astype(np.float64))
    nmi, ari = normalized_mutual_info_score(own, found), adjusted_rand_score(own, found)
    return Measure(float(nmi), len(own)), Measure(float(ari), len(own))


def _neighbour_agreement(rows: NDArray[np.floating], codes: NDArray[np.int64], asked: NDArray[np.int64], k: int) -> float:
    """Mean share of the k nearest others of the rows asked about, by cosine among all rows, that carry the row's label."""
    found = neighbours_in(rows, rows[asked], k + 1).indices
    is_self = found == asked[:, None]
    is_self[~is_self.any(axis=1), -1] = True  # among many equal rows a row need not be one of its own nearest: drop the last
    others = found[~is_self].reshape(len(asked), k)
    return float((codes[others] == codes[asked, None]).mean())


def _chance_agreement(codes: NDArray[np.int64]) -> float:
    """The agreement to expect of shuffled labels: the chance that two different rows share one, sum n(n-1) / N(N-1)."""
    counts = np.bincount(codes).astype(np.float64)
    return float((counts * (counts - 1)).sum() / (len(codes) * (len(codes) - 1)))
