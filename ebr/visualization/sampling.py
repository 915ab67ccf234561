"""Which rows a map shows when there are too many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified_sample(labels: Sequence[str], at_most: int, *, seed: int) -> NDArray[np.int64]:
    """Rows of a seeded sample in which every label keeps its share, sorted; all rows when they are few enough.

    Shares are rounded by largest remainder, so that exactly at_most rows are drawn.
    """
    if len(labels) <= at_most:
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    _, codes, counts = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True, return_counts=True)
    exact = counts * at_most / len(labels)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: at_most - quota.sum()]] += 1
    drawn = [rng.choice(np.flatnonzero(codes == code), size=size, replace=False) for code, size in enumerate(quota)]
    return np.sort(np.concatenate(drawn))
