"""Where the texts of a batch, sorted by length, are cut into micro-batches: the least padding for the fewest passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ebr.model.encoder.batching import Ints

PASS_COST_CPU, PASS_COST_CUDA = 64, 2048
"""Tokens that take as long as a pass costs beside its tokens: what is done once a layer, and products too thin to be fast."""


def least_padding_cuts(lengths: Sequence[int] | Ints, token_budget: int, pass_cost: int) -> list[Ints]:
    """Indices of the texts of each micro-batch, the longest texts first; a pure function of the arguments.

    lengths: in tokens. Of all ways to cut the sorted texts, the one with the smallest sum of (longest × texts + pass_cost) over
    the micro-batches, none beyond token_budget but a text that is so alone: the optimal partition of a sequence, by dynamic
    programming, in O(texts × texts of a micro-batch).
    """
    counts = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    n, longest_first = len(order), counts[order]
    # least[i]: the cost of the first i texts; a micro-batch that begins at text j is as wide as that text.
    least, begins = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    earliest = 0
    for end in range(1, n + 1):
        while earliest < end - 1 and longest_first[earliest] * (end - earliest) > token_budget:
            earliest += 1
        starts = np.arange(earliest, end)
        costs = least[starts] + longest_first[starts] * (end - starts) + pass_cost
        # Of equal cuts the one that begins first: fewer passes.
        best = int(np.argmin(costs))
        least[end], begins[end] = costs[best], starts[best]
    cuts = [n]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    return [order[start:end] for end, start in zip(cuts[-2::-1], cuts[:0:-1], strict=True)]
