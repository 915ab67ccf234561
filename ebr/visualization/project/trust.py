"""How far a map can be trusted: which of its neighbours are real, and which real ones it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebr.config.options import Language
from ebr.data.vectors.batch import sample_rows
from ebr.data.vectors.exact_search import unit_rows
from ebr.visualization.project.quality import Measure, reason_text, with_measures

LEAST_TRUSTWORTHINESS = 0.85
LEAST_KEPT = 0.1
"""Of the neighbours that chance would not have kept, the share that a map must keep; see trust_warning."""

_SAME_COSINE = 1e-6  # finer differences between equal rows are rounding errors of the matrix product


@dataclass(frozen=True)
class MapTrust:
    """Three numbers about the neighbours on a map, and the chance level of the third. k: neighbours looked at, of each point.

    On a sample (n_rows of each Measure) they are the neighbours within the sample: with one row in ten, k = 10 there reaches as
    far as k = 100 among all rows. So they say whether the map is right at that scale, not about the very nearest.
    """

    k: int
    trustworthiness: Measure
    continuity: Measure
    neighbour_overlap: Measure
    chance_overlap: Measure

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> MapTrust:
        """What dataclasses.asdict made of one."""
        return cls(**with_measures(record))

    def note(self, language: Language = "en") -> str:
        """The figures on one line, to stand below a map's title."""
        found, continuity, kept = self.trustworthiness, self.continuity.value, self.neighbour_overlap.value
        if found.value is None or continuity is None or kept is None:
            reason = reason_text(found, language)
            return f"trustworthiness: undefined ({reason})" if language == "en" else f"可信度：无定义（{reason}）"
        if language == "zh":
            return f"可信度 {found.value:.3f} · 连续性 {continuity:.3f} · {self.k} 近邻保留 {kept:.0%}（{found.n_rows:,} 行）"
        figures = f"trustworthiness {found.value:.3f} · continuity {continuity:.3f} · {kept:.0%} of {self.k} nearest kept"
        return f"{figures} ({found.n_rows:,} rows)"


def map_trust(
    vectors: NDArray[np.floating], coords: NDArray[np.floating], *, seed: int, k: int = 10, max_rows: int = 2000
) -> MapTrust:
    """Trustworthiness, continuity (Venna & Kaski 2001) and neighbour overlap of a map, by cosine, on a seeded sample.

    vectors: (N, D) of any length. coords: (N, 2). k: neighbours looked at, lowered for few points, since the first two need
    k < N / 2. max_rows: the most rows of the sample; the cost is quadratic. Trustworthiness falls with every neighbour on the
    map that is none in the original space, continuity with every original neighbour that the map took away, each by how far it
    is from being one. Overlap is mean |N_k(original) & N_k(map)| / k, 1 at best and k / (N - 1) by chance; where originals are
    equally near, any of them counts. Raises ValueError when the lengths differ, or for NaN.
    """
    if len(vectors) != len(coords):
        raise ValueError(f"{len(vectors)} vectors but {len(coords)} points")
    sample = sample_rows(len(vectors), max_rows, seed)
    points = np.asarray(coords)[sample]
    n_rows, k = len(sample), max(0, min(k, (len(sample) - 1) // 2))
    if k < 1:
        return _undefined(k, n_rows, "fewer than 3 points")
    rows = np.asarray(vectors)[sample]
    unit = unit_rows(rows)
    if (np.ptp(unit, axis=0) < _SAME_COSINE).all():
        return _undefined(k, n_rows, "all vectors are equal" if (rows == rows[:1]).all() else "all vectors point the same way")
    from sklearn.manifold import trustworthiness

    return MapTrust(
        k,
        Measure(float(trustworthiness(unit, points, n_neighbors=k, metric="cosine")), n_rows),
        # Swapped, the roles ask how many original neighbours are far on the map; it wants them by Euclidean distance.
        Measure(float(trustworthiness(points, _as_euclidean(unit), n_neighbors=k)), n_rows),
        Measure(_overlap(unit, points, k), n_rows),
        Measure(k / (n_rows - 1), n_rows),
    )


def trust_warning(trust: MapTrust, language: Language = "en") -> str:
    """One sentence for a map whose neighbours are not to be trusted; '' where they are, or where it cannot be measured.

    Not to be trusted: trustworthiness below 0.85, or less than a tenth of the neighbours kept that chance would not have kept.
    Both lie in the gap between maps that are good and maps that are not. all-MiniLM-L6-v2, 5,000 rows at most, k = 10,
    trustworthiness / share of neighbours kept (0.01 or less by chance):

                     t-SNE         UMAP          PCA           random points
    zh_drcd          0.92 / 0.42   0.91 / 0.36   0.75 / 0.09   0.50 / 0.01
    en_esci          0.99 / 0.67   0.98 / 0.62   0.72 / 0.06   0.50 / 0.01
    en_banking77     0.99 / 0.62   0.99 / 0.58   0.80 / 0.12   0.50 / 0.01
    10 round blobs   0.97 / 0.16                 0.95 / 0.06
    pure noise       0.53 / 0.03                 0.55 / 0.01

    The blobs are why trustworthiness alone does not do: it is content when a neighbour comes from the right blob.
    """
    found, overlap, chance = trust.trustworthiness.value, trust.neighbour_overlap.value, trust.chance_overlap.value
    if found is None or overlap is None or chance is None:
        return ""
    # Corrected for chance, one threshold serves 20 points, of which any map keeps half the neighbours, and 20,000.
    if found >= LEAST_TRUSTWORTHINESS and overlap - chance >= LEAST_KEPT * (1 - chance):
        return ""
    figures = (f"{found:.2f}", f"{overlap:.0%}", f"{chance:.1%}")
    if language == "zh":
        return "不要相信此图的邻近关系：可信度 {}，最近邻只保留 {}（随机 {}）；请以原空间的指标为准。".format(*figures)
    return (
        "do not trust who is near whom here: trustworthiness {}, {} of the nearest neighbours kept ({} by chance); "
        "go by the figures of the original space."
    ).format(*figures)


def _undefined(k: int, n_rows: int, reason: str) -> MapTrust:
    nothing = Measure(None, n_rows, reason)
    return MapTrust(k, nothing, nothing, nothing, nothing)


def _as_euclidean(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows whose Euclidean distances rank as their cosines do. Unit rows do; an all-zero one is at cosine 0 from every other.

    It gets a dimension to itself, and so lies at sqrt(2) from all others, as any right angle does.
    """
    zeros = np.flatnonzero(~unit.any(axis=1))
    own = np.zeros((len(unit), len(zeros)), dtype=unit.dtype)
    own[zeros, np.arange(len(zeros))] = 1
    return np.hstack([unit, own])


def _overlap(unit: NDArray[np.float32], points: NDArray[np.floating], k: int) -> float:
    from sklearn.neighbors import NearestNeighbors

    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -np.inf)
    # The k-th largest: whoever is as near as that is a neighbour, or a hundred equal texts would have neighbours by lot.
    least = np.partition(similarities, -k, axis=1)[:, -k]
    on_map = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(return_distance=False)
    return float((np.take_along_axis(similarities, on_map, axis=1) >= least[:, None] - _SAME_COSINE).mean())
