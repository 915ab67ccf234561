"""Which texts share a forward pass: those of like length, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of texts, longest first, batch_size at a time; texts of equal length keep their order.

    lengths: in tokens. The longest come first so that a batch that does not fit in memory fails at once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
