"""How much of what exact search finds an index finds too, how hard it must look for that, and how fast it is then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from ebr.data.vectors.batch import Vectors
from ebr.data.vectors.exact_search import exact_search, keep_best
from ebr.retrieval.index.faiss_index import Effort, FaissIndex, n_threads, threads

CUT = 10
"""Recall is of the ten best."""
_DEPTH = 100  # exact neighbours kept, so that all that tie with the tenth are known
_TIE = 1e-6  # scores closer than float32 can tell are one
_ENOUGH = 0.005  # where the target is out of reach: effort that gains less than this is not worth its time
_MOST_ALONE = 200  # queries asked one at a time
_MOST_SECONDS = 3.0
_BATCH = 256

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Queries:
    """Q queries that an index is measured with. own_rows: the row that each one is itself, or None when they are no rows."""

    vectors: Vectors
    own_rows: Ids | None

    def halves(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Those to tune the search with, and those to report with: what is tuned on would flatter itself."""
        every = np.arange(len(self.vectors))
        return (every[1::2], every[::2]) if len(every) > 1 else (every, every)


class ExactNeighbours:
    """The exact neighbours of queries, gathered block by block: no more vectors are held than those of a block."""

    def __init__(self, queries: Queries) -> None:
        self.queries = queries
        n_queries = len(queries.vectors)
        self.scores = np.empty((n_queries, 0), np.float32)
        self.rows = np.empty((n_queries, 0), np.int64)
        self.seconds = 0.0
        """Spent in update: it runs while an index is built, and is no part of building it."""

    def update(self, first_row: int, vectors: Vectors) -> None:
        """See the (N, D) vectors of the rows from first_row on. Blocks come in the order of their rows."""
        started = time.perf_counter()
        scores, rows = exact_search(self.queries.vectors, vectors, _DEPTH + 1)
        rows += first_row
        if self.queries.own_rows is not None:
            scores[rows == self.queries.own_rows[:, None]] = -np.inf
        self.scores, self.rows = keep_best(np.hstack([self.scores, scores]), np.hstack([self.rows, rows]), _DEPTH)
        self.seconds += time.perf_counter() - started

    def recall(self, found: Ids, of: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """(Q',) share of the ten best of the queries `of` that stand among their (Q', 10) found rows.

        Any row that ties with the tenth best counts as well as it, up to a hundred of them: rows of one text are one answer.
        Of fewer than ten other rows, all of them. nan where there is no other row.
        """
        scores, rows = self.scores[of], self.rows[of]
        n_best = np.minimum(CUT, np.isfinite(scores).sum(axis=1))
        last = np.take_along_axis(scores, np.maximum(n_best - 1, 0)[:, None], axis=1)
        good = np.isfinite(scores) & (scores >= last - _TIE * np.maximum(1, np.abs(last)))
        hits = ((found[:, :, None] == rows[:, None, :]) & good[:, None, :]).any(axis=2).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.minimum(hits, n_best) / np.where(n_best, n_best, np.nan), dtype=np.float64)


def found_rows(index: FaissIndex, queries: Queries, of: npt.NDArray[np.intp], effort: Effort) -> Ids:
    """(Q', 10) rows that the index finds for the queries `of`, without each one's own; -1 where there are no more."""
    own = queries.own_rows
    _, rows = index.search(queries.vectors[of], CUT if own is None else CUT + 1, effort)
    if own is not None:
        # The own row goes behind the others, and is then cut off; where it was not found, the last one is.
        order = np.argsort(rows == own[of][:, None], axis=1, kind="stable")
        rows = np.take_along_axis(np.where(rows == own[of][:, None], -1, rows), order, axis=1)
    padded = np.full((len(rows), CUT), -1, dtype=np.int64)
    padded[:, : rows.shape[1]] = rows[:, :CUT]
    return padded


@dataclass(frozen=True)
class Tuned:
    """How hard a search looks, and the recall@10 of the queries that this was chosen with."""

    effort: Effort
    recall: float
    reached: bool
    """Whether the wanted recall was within reach at all."""


def tune(index: FaissIndex, exact: ExactNeighbours, cost: Callable[[Effort], float], *, min_recall: float) -> Tuned:
    """The cheapest effort whose recall@10, less its standard error, is min_recall; on the half of the queries for tuning.

    Less the error, or every second sample would fall below what was asked for. Where nothing reaches it: the cheapest effort
    that comes within half a percent of the best. cost: of an effort, in any unit.
    """
    tuning, _ = exact.queries.halves()
    knobs = index.knobs
    tried: dict[tuple[int, ...], tuple[float, float]] = {}

    def attempt(values: tuple[int, ...]) -> tuple[float, float]:
        """(recall, recall less its standard error)."""
        if values not in tried:
            effort = dict(zip(knobs, values, strict=True))
            recalls = exact.recall(found_rows(index, exact.queries, tuning, effort), tuning)
            error = recalls.std(ddof=1) / np.sqrt(len(recalls)) if len(recalls) > 1 else 0.0
            tried[values] = (float(recalls.mean()), float(recalls.mean() - error))
        return tried[values]

    if not knobs:
        recall, safe = attempt(())
        return Tuned({}, recall, safe >= min_recall)
    main, *others = knobs.values()
    for rest in product(*others):
        _least(main, lambda value, rest=rest: attempt((value, *rest))[1] >= min_recall)  # type: ignore[misc]
        attempt((main[-1], *rest))
    good = [values for values, (_, safe) in tried.items() if safe >= min_recall]
    best = max(recall for recall, _ in tried.values())
    fair = good or [values for values, (recall, _) in tried.items() if recall >= best - _ENOUGH]
    chosen = min(fair, key=lambda values: (cost(dict(zip(knobs, values, strict=True))), values))
    return Tuned(dict(zip(knobs, chosen, strict=True)), tried[chosen][0], bool(good))


def _least(steps: list[int], suffices: Callable[[int], bool]) -> None:
    """Bisect for the least step that suffices; what was tried on the way is kept by whoever tries."""
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if suffices(steps[middle]):
            high = middle
        else:
            low = middle + 1
    suffices(steps[low])


@dataclass(frozen=True)
class IndexQuality:
    """recall@10 of the queries that nothing was tuned on, and queries a second with that effort."""

    recall: float
    recall_p5: float
    """The 5th percentile: one query in twenty fares worse."""
    n_queries: int
    one_at_a_time: float
    """Queries a second on one thread."""
    batch: float
    """Queries a second, many at once on all threads."""
    batch_size: int
    n_threads: int


def measure(index: FaissIndex, exact: ExactNeighbours, effort: Effort) -> IndexQuality:
    """Recall and speed on the half of the queries for reporting."""
    _, reporting = exact.queries.halves()
    recalls = exact.recall(found_rows(index, exact.queries, reporting, effort), reporting)
    queries = exact.queries.vectors[reporting]
    with threads(1):
        one_at_a_time = _rate(lambda query: index.search(query[None], CUT, effort), queries[:_MOST_ALONE])
    batch = np.resize(queries, (_BATCH, queries.shape[1])) if len(queries) < _BATCH else queries[:_BATCH]
    return IndexQuality(
        recall=float(recalls.mean()),
        recall_p5=float(np.percentile(recalls, 5)),
        n_queries=len(reporting),
        one_at_a_time=one_at_a_time,
        batch=len(batch) * _rate(lambda each: index.search(each, CUT, effort), batch[None]),
        batch_size=len(batch),
        n_threads=n_threads(),
    )


def _rate(search: Callable[[Vectors], object], each: Vectors) -> float:
    """Searches a second: of each once, or of as many as seconds allow; after one that pays for what only the first pays."""
    search(each[0])
    started, n_done = time.perf_counter(), 0
    while n_done < len(each) and time.perf_counter() - started < _MOST_SECONDS:
        search(each[n_done])
        n_done += 1
    return n_done / max(time.perf_counter() - started, 1e-9)
