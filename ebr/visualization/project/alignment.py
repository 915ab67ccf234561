"""Two maps of the same rows made comparable: one turned onto the other, and what moved most between the two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebr.visualization.project.neighbours import Neighbours

_ROWS_AT_A_TIME = 65_536


@dataclass(frozen=True)
class Movement:
    """How much each row changed between two models, (N,) float32 each.

    neighbours_changed: 0..1, the share of its neighbours in the original spaces that changed; what the ranking goes by.
    displacement: how far its point moved on the aligned maps, in the unit of the first; partly noise of the projection.
    """

    neighbours_changed: NDArray[np.float32]
    displacement: NDArray[np.float32]

    def most(self, n: int) -> NDArray[np.int64]:
        """The n rows that changed most, the most first: by neighbours, equal ones by displacement, then by row."""
        order = np.lexsort((-self.displacement, -self.neighbours_changed))
        return order[:n].astype(np.int64)


def procrustes_align(reference: NDArray[np.floating], moved: NDArray[np.floating]) -> NDArray[np.float32]:
    """The moved map turned, mirrored, scaled and shifted onto the reference, so that the squared distances are least.

    reference, moved: (N, 2) coordinates of the same rows. Returns (N, 2) float32; shapes within the map stay as they are, for
    one scale and one rotation serve all points. A map whose points are all equal comes back at the reference's centre.
    Raises ValueError when the shapes differ or a coordinate is not finite. Schönemann & Carroll 1970.
    """
    if np.shape(reference) != np.shape(moved) or np.ndim(reference) != 2:
        raise ValueError(f"maps of the shapes {np.shape(reference)} and {np.shape(moved)} show different rows")
    onto, turned = np.asarray(reference, dtype=np.float64), np.asarray(moved, dtype=np.float64)
    if not (np.isfinite(onto).all() and np.isfinite(turned).all()):
        raise ValueError("a map to be aligned holds NaN or infinity")
    if not len(onto):
        return np.empty(onto.shape, dtype=np.float32)
    centre, own_centre = onto.mean(axis=0), turned.mean(axis=0)
    onto, turned = onto - centre, turned - own_centre
    size = float(np.square(turned).sum())
    if size <= 1e-12 * max(1.0, float(np.square(own_centre).sum())) * len(turned):  # nothing but the rounding of one point
        return np.array(np.broadcast_to(centre, onto.shape), dtype=np.float32)
    # The rotation that maximises the overlap, from the singular vectors of the cross-covariance; a mirror image is allowed.
    left, strengths, right = np.linalg.svd(turned.T @ onto)
    return np.asarray(turned @ (left @ right) * (strengths.sum() / size) + centre, dtype=np.float32)


def movement(reference: NDArray[np.floating], aligned: NDArray[np.floating], before: Neighbours, after: Neighbours) -> Movement:
    """How much each row changed from one model to the other.

    reference, aligned: (N, 2) maps, the second aligned to the first. before, after: the neighbours of the same rows in the
    two models' own spaces. Raises ValueError when the rows differ in number.
    """
    if not len(reference) == len(aligned) == len(before.indices) == len(after.indices):
        raise ValueError("maps and neighbours of different numbers of rows cannot be compared")
    displacement = np.linalg.norm(np.asarray(aligned, dtype=np.float64) - np.asarray(reference, dtype=np.float64), axis=1)
    return Movement(neighbours_changed(before, after), displacement.astype(np.float32))


def neighbours_changed(before: Neighbours, after: Neighbours) -> NDArray[np.float32]:
    """1 - the Jaccard overlap of each row's neighbours in two spaces: 0 when they are the same rows, 1 when none is shared.

    It looks at the vectors, never at a map: two t-SNE runs of one model move points as well. Of k and k' neighbours the fewer
    are compared. Returns (N,) float32, zeros where there is no neighbour. Raises ValueError when the rows differ in number.
    """
    if len(before.indices) != len(after.indices):
        raise ValueError(f"neighbours of {len(before.indices)} and of {len(after.indices)} rows cannot be compared")
    k = min(before.indices.shape[1], after.indices.shape[1])
    changed = np.zeros(len(before.indices), dtype=np.float32)
    if k == 0:
        return changed
    for start in range(0, len(changed), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        both = np.sort(np.concatenate([before.indices[part, :k], after.indices[part, :k]], axis=1), axis=1)
        shared = np.count_nonzero(both[:, 1:] == both[:, :-1], axis=1)  # a row stands once in either list
        changed[part] = 1 - shared / (2 * k - shared)
    return changed
