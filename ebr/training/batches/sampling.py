"""Who shares a batch: batches from one source each, drawn as often as its weight says, and batches of like length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import BatchSampler

Rows = npt.NDArray[np.int64]

_MEGABATCH, _MEGABATCHES = 50, 4
"""Rounds that are sorted together by length, fewer where that leaves a pass fewer parts than four: enough to make their texts
alike, few enough to bring other rows together in another epoch."""
# Beyond any epoch, so that these streams of random numbers are none of Collator's.
_ROWS, _ORDER = 2**40, 2**40 + 1


@dataclass(frozen=True)
class _Share:
    """What one source gives to every epoch: `rate` draws on average, in n_rounds rounds of at most `round_size` rows.

    The source is gone through pass after pass, each in an order of its own; an epoch goes on where the last one ended.
    """

    rate: Fraction
    round_size: int

    @classmethod
    def of(cls, n_rows: int, weight: float, round_size: int) -> _Share:
        """A round holds no more rows than there are: the rest would be rows that it holds already."""
        size = min(round_size, n_rows)
        # 0.29 of 100 rows are 29, and three times a third is one; at least one row is drawn.
        rate = max(Fraction(1), Fraction(weight).limit_denominator(1_000_000) * n_rows)
        return cls(Fraction(math.ceil(rate)) if size == 1 else rate, size)  # rounds of one row leave none to share out

    @property
    def n_rounds(self) -> int:
        """Rounds of every epoch, of those too that have a row less to draw."""
        return math.ceil(math.ceil(self.rate) / self.round_size)

    def span(self, epoch: int) -> tuple[int, int]:
        """The draws of an epoch, first and one past the last, counted from the start of the run."""
        return math.floor(epoch * self.rate), math.floor((epoch + 1) * self.rate)

    def sizes(self, n_drawn: int, n_processes: int) -> list[int]:
        """Rows of each round: full ones, then the rest; a rest too small to hold two rows a process shares with the one before.

        A batch of one row has no other's positive to tell its own from.
        """
        sizes = [self.round_size] * (self.n_rounds - 1)
        rest = n_drawn - sum(sizes)
        if sizes and rest < 2 * n_processes:
            together = sizes.pop() + rest
            return [*sizes, together - together // 2, together // 2]
        return [*sizes, rest]


def batches_per_epoch(n_rows: Sequence[int], weights: Sequence[float], batch_size: int, n_processes: int = 1) -> int:
    """Batches of an epoch, of all processes together: the same in every epoch, and a multiple of n_processes.

    n_rows: training rows of each source, none in a source that the validation split took whole.
    """
    shares = [_Share.of(rows, weight, batch_size * n_processes) for rows, weight in zip(n_rows, weights, strict=True) if rows]
    return n_processes * sum(share.n_rounds for share in shares)


class EpochBatches(BatchSampler):
    """Batches of rows for the trainer: a pure function of seed and epoch, the same in every process, and after a resume.

    The unit is the round, one batch of every process: its rows are of one source, dealt to the processes in turn, so that
    batches taken at once are of one source and differ by a row at most. Rounds come in random order. A row drawn twice in an
    epoch (weight above 1) is kept out of the round that has it already, where another round can take it.
    With one source of weight 1 and no grouping the stock sampler does: see is_needed.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        seed: int,
        sources: Sequence[int] | None = None,
        weights: Sequence[float] = (1.0,),
        lengths: Sequence[int] | None = None,
        n_processes: int = 1,
    ) -> None:
        """sources: the source of each row, an index into weights; None = all of source 0. batch_size: rows of one process.

        lengths: of each row's texts, in any unit, to group rows of like length; None = as they fall.
        Raises ValueError when there are no rows, or not as many sources as lengths.
        """
        n_rows = {len(values) for values in (sources, lengths) if values is not None}
        if len(n_rows) != 1 or 0 in n_rows:
            raise ValueError(f"sources or lengths must be given, one a row and as many of both: rows {sorted(n_rows)}")
        origin = np.zeros(n_rows.pop(), np.int64) if sources is None else np.asarray(sources, np.int64)
        # None tells accelerate that batches differ in size; it would drop short ones from between full ones.
        self.batch_size: Any = None
        self.drop_last = False
        self.epoch = 0
        self._seed = seed
        self._n_processes = n_processes
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._rows = [np.flatnonzero(origin == source) for source in range(len(weights))]
        self._length = batches_per_epoch([len(rows) for rows in self._rows], weights, batch_size, n_processes)
        self._shares = [
            _Share.of(len(rows), weight, batch_size * n_processes) if len(rows) else None
            for rows, weight in zip(self._rows, weights, strict=True)
        ]

    def set_epoch(self, epoch: int) -> None:
        """Which epoch to draw next, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch, of all processes together: the same in each."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch; batch i is for process i % n_processes."""
        rounds = [rows for source, share in enumerate(self._shares) if share for rows in self._rounds(source, share)]
        for index in np.random.default_rng([self._seed, _ORDER, self.epoch]).permutation(len(rounds)):
            yield from self._dealt(rounds[index])

    def _dealt(self, rows: list[int]) -> Iterator[list[int]]:
        """A round as one batch a process; a process that is left without a row repeats another's."""
        for process in range(self._n_processes):
            yield rows[process :: self._n_processes] or [rows[process % len(rows)]]

    def _rounds(self, source: int, share: _Share) -> list[list[int]]:
        """One source's rounds of this epoch."""
        passes = self._drawn(source, share)
        ordered = passes if self._lengths is None else self._by_length(passes, share.round_size)
        drawn: list[int] = np.concatenate(ordered).tolist()
        ends = np.cumsum(share.sizes(len(drawn), self._n_processes)).tolist()
        rounds = [drawn[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if len(passes) > 1:
            separate_duplicates(rounds)
        return rounds

    def _drawn(self, source: int, share: _Share) -> list[Rows]:
        """The rows of this epoch in random order, a piece for each pass over the source; in a piece no row comes twice."""
        rows = self._rows[source]
        first, end = share.span(self.epoch)
        pieces = []
        for number in range(first // len(rows), (end - 1) // len(rows) + 1):
            order = np.random.default_rng([self._seed, _ROWS, source, number]).permutation(rows)
            start = number * len(rows)
            pieces.append(order[max(first - start, 0) : end - start])
        return sorted(pieces, key=len, reverse=True)  # whole passes first: in a small source they fill whole rounds

    def _by_length(self, passes: Sequence[Rows], round_size: int) -> list[Rows]:
        """Each pass in megabatches sorted by length."""
        assert self._lengths is not None
        megabatches = [piece for rows in passes for piece in _megabatches(rows, round_size)]
        ordered = [rows[np.argsort(self._lengths[rows], kind="stable")] for rows in megabatches]
        # Up, down, up: a round that takes the end of one and the start of the next still holds texts of like length.
        return [rows[::-1] if index % 2 else rows for index, rows in enumerate(ordered)]


def is_needed(weights: Sequence[float], *, group_by_length: bool) -> bool:
    """Whether batches are other than the stock sampler's: several sources, a weight, or groups of like length."""
    return group_by_length or len(weights) > 1 or any(weight != 1 for weight in weights)


def _megabatches(rows: Rows, round_size: int) -> list[Rows]:
    """The rows in parts of whole rounds; the last part takes what is left."""
    step = round_size * max(1, min(_MEGABATCH, len(rows) // (_MEGABATCHES * round_size)))
    return np.split(rows, range(step, len(rows) - step + 1, step))


def separate_duplicates(rounds: list[list[int]]) -> None:
    """Swap every row that stands in its round twice with a row of the nearest round that has room for it, in place.

    Nearest, so that rounds of like length stay so. A row that every round holds already stays where it is.
    """
    for index, rows in enumerate(rounds):
        seen: set[int] = set()
        for place, row in enumerate(rows):
            if row in seen:
                _swap_away(rounds, index, place)
            seen.add(rows[place])


def _swap_away(rounds: list[list[int]], index: int, place: int) -> None:
    rows, row = rounds[index], rounds[index][place]
    for other in sorted(range(len(rounds)), key=lambda number: abs(number - index)):
        if row in rounds[other]:
            continue
        for partner, candidate in enumerate(rounds[other]):
            if candidate not in rows:
                rows[place], rounds[other][partner] = candidate, row
                return
