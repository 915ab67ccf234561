"""Which rows a map shows when there are too many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified_sample(labels: Sequence[str], at_most: int, *, seed: int) -> NDArray[np.int64]:
    """Rows of a seeded sample in which every label keeps its share, sorted; all rows when they are few enough.

    Shares are rounded by largest remainder, so that exactly at_most rows are drawn. A rare label keeps one row, at the expense
    of the largest: a map that drops it would say that it does not exist. With more labels than rows, the frequent ones stay;
    of equally frequent ones, those that the seed draws.
    """
    if len(labels) <= at_most:
        return np.arange(len(labels))
    codes, counts = _codes(labels)
    random = np.random.default_rng(seed)
    # One random order of all rows, then sorted by label: the first of each label are a fair draw from it.
    shuffled = random.permutation(len(labels))
    quota = _quota(counts, at_most, lots=random.permutation(len(counts)))
    by_label = shuffled[np.argsort(codes[shuffled], kind="stable")]
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(by_label[rank < np.repeat(quota, counts)])


def _codes(labels: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A number for each row's label, in the order of the labels' texts, and the rows that each number has."""
    # A dictionary, for np.unique sorts a million texts one comparison at a time, padded to the longest.
    number = {label: code for code, label in enumerate(sorted(set(labels)))}
    codes = np.fromiter((number[label] for label in labels), dtype=np.int64, count=len(labels))
    return codes, np.bincount(codes)


def _quota(counts: NDArray[np.int64], at_most: int, lots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows to draw of each label: their shares, but one at least; one of the most frequent each where labels outnumber rows.

    lots: which of equally frequent labels go first; by their texts it would be the beginning of the alphabet.
    """
    quota = np.zeros(len(counts), dtype=np.int64)
    if len(counts) > at_most:
        quota[np.lexsort((lots, -counts))[:at_most]] = 1
        return quota
    rare = np.zeros(len(counts), dtype=bool)
    while True:  # each round gives some rare labels their one row, and the others share what is left
        quota[~rare] = _largest_remainder(counts[~rare], at_most - int(np.count_nonzero(rare)))
        if quota.all():
            return quota
        rare |= quota == 0
        quota[rare] = 1


def _largest_remainder(counts: NDArray[np.int64], n_rows: int) -> NDArray[np.int64]:
    exact = counts * n_rows / counts.sum()
    quota: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: n_rows - quota.sum()]] += 1
    return quota
