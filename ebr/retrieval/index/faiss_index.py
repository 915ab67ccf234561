"""FAISS, and nothing else of EBR's knows it: an index that is made, taught, filled, asked, written and read.

The metric is always the inner product. Vectors come as (N, D) float32 and are never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ebr.data.vectors.batch import Vectors
from ebr.errors import DataError, first_line, require_extra
from ebr.retrieval.index.kinds import IndexSpec

require_extra("index", "an index")
import faiss  # noqa: E402

_faiss: Any = faiss  # its type stubs know neither every class nor the arguments by name
Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Effort = dict[str, int]
"""How hard a search looks: nprobe (lists), efSearch (candidates of the walk), k_factor (candidates ranked again, times k)."""

_ITERATIONS = 10
_LEAST_LIMIT = 1 << 30  # an index reserves tables that its file does not hold
_MOST_CANDIDATES = 4096
_K_FACTORS = [1, 2, 4, 8, 16, 32, 64]
_NOTHING = -1


class FaissIndex:
    """One index in memory; row i is the i-th vector that was added."""

    def __init__(self, index: Any) -> None:  # noqa: ANN401
        self._index = index
        # Of an index that ranks again, the one below finds the candidates.
        self._refined = isinstance(index, faiss.IndexRefine)
        self._base: Any = faiss.downcast_index(index.base_index) if self._refined else index
        self._has_lists = isinstance(self._base, faiss.IndexIVF)
        self._has_graph = isinstance(self._base, faiss.IndexHNSW)

    @classmethod
    def make(cls, spec: IndexSpec) -> FaissIndex:
        """An empty index of the kind that a spec names."""
        return cls(faiss.index_factory(spec.dim, spec.factory, faiss.METRIC_INNER_PRODUCT))

    @property
    def n_rows(self) -> int:
        """Vectors that were added."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """D, the numbers of a vector."""
        return int(self._index.d)

    @property
    def is_inner_product(self) -> bool:
        """Whether a larger score is better; what EBR builds always is."""
        return bool(self._index.metric_type == faiss.METRIC_INNER_PRODUCT)

    @property
    def knobs(self) -> dict[str, list[int]]:
        """What can be turned when searching, the main one first, and its values from least to most effort."""
        knobs = {}
        if self._has_lists:
            knobs["nprobe"] = _steps(int(self._base.nlist))
        if self._has_graph:
            knobs["efSearch"] = [step for step in _steps(_MOST_CANDIDATES) if step >= 16]
        if self._refined:
            knobs["k_factor"] = _K_FACTORS
        return knobs

    @property
    def default_effort(self) -> Effort:
        """What to search with when nothing was tuned: the middle of each knob."""
        return {name: values[len(values) // 2] for name, values in self.knobs.items()}

    def train(self, sample: Vectors, *, seed: int) -> None:
        """Learn lists and codes from (N, D) vectors; nothing where the kind learns nothing. Deterministic by the seed."""
        if not len(sample):
            return
        if self._has_lists:
            self._train_lists(sample, seed)
        codes = getattr(self._base, "pq", None)
        if codes is not None:
            codes.cp.seed, codes.cp.min_points_per_centroid = seed, 1
        # Codes are hundreds of clusterings of a moment each: handing them out to threads takes ten times as long.
        with threads(1):
            self._index.train(sample)

    def _train_lists(self, sample: Vectors, seed: int) -> None:
        """Centroids on the sphere, as befits an inner product (spherical k-means, Dhillon and Modha 2001)."""
        lists = self._base
        # Of fewer points a list faiss would print a warning; the number of lists is chosen to avoid it.
        settings = faiss.ClusteringParameters()
        settings.niter, settings.seed, settings.spherical = _ITERATIONS, seed, True
        settings.min_points_per_centroid, settings.max_points_per_centroid = 1, len(sample)
        faiss.Clustering(self.dim, lists.nlist, settings).train(sample, lists.quantizer)

    def add(self, vectors: Vectors) -> None:
        """Append (N, D) rows."""
        self._check(vectors)
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def search(self, queries: Vectors, k: int, effort: Mapping[str, int] | None = None) -> tuple[Scores, Ids]:
        """(Q, D) queries → scores and rows, both (Q, min(k, N)), best first.

        effort: values of `knobs`; None = as the index has it. A query whose lists hold fewer than k rows looks at all of them;
        what is not found even then is row -1 with score -inf. Raises ValueError when the shapes disagree or k is below 1.
        """
        self._check(queries)
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        k = min(k, self.n_rows)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = self._search(queries, k, effort)
        short = np.flatnonzero((rows == _NOTHING).any(axis=1))
        if short.size:
            scores[short], rows[short] = self._search(queries[short], k, self._most_effort())
        lost = np.flatnonzero((rows == _NOTHING).any(axis=1)) if self._has_graph else short[:0]
        if lost.size:  # equal rows link only to each other: what no walk reaches is found by looking at every row
            scores[lost], rows[lost] = self._base.storage.search(queries[lost], k)
        scores[rows == _NOTHING] = -np.inf
        return scores, rows

    def _search(self, queries: Vectors, k: int, effort: Mapping[str, int] | None) -> tuple[Scores, Ids]:
        if not k:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        parameters = None if effort is None else self._parameters(effort, k)
        scores, rows = self._index.search(queries, k, params=parameters)
        return scores, rows

    def _most_effort(self) -> Effort:
        """Every list, or every row of the graph that can be reached."""
        most = {"nprobe": int(self._base.nlist)} if self._has_lists else {}
        most |= {"efSearch": self.n_rows} if self._has_graph else {}
        return most | ({"k_factor": _K_FACTORS[-1]} if self._refined else {})

    def _parameters(self, effort: Mapping[str, int], k: int) -> Any:  # noqa: ANN401
        """The effort as faiss takes it, for this search alone: the index itself is not changed."""
        base = None
        if self._has_lists:
            base = _faiss.SearchParametersIVF(nprobe=min(effort["nprobe"], int(self._base.nlist)))
        if self._has_graph:
            base = _faiss.SearchParametersHNSW(efSearch=max(effort["efSearch"], k))
        if not self._refined:
            return base
        return _faiss.IndexRefineSearchParameters(k_factor=float(effort["k_factor"]), base_index_params=base)

    def _check(self, vectors: Vectors) -> None:
        # faiss itself gives an error without a word.
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"vectors {vectors.shape} for an index of dim {self.dim}")

    def write(self, path: Path) -> None:
        """Write the index to a file, to be renamed by the caller."""
        faiss.write_index(self._index, str(path))


def read_index(path: Path) -> FaissIndex:
    """Read an index from a file. Raises DataError when it is none, or cut short.

    A file from an untrusted source can still do harm: whoever calls this has checked its hash, or has the user's word.
    """
    limit = faiss.get_deserialization_vector_byte_limit()
    # A broken length would otherwise have faiss reserve as much memory as it says.
    faiss.set_deserialization_vector_byte_limit(max(_LEAST_LIMIT, 2 * path.stat().st_size))
    try:
        return FaissIndex(faiss.read_index(str(path)))
    except (RuntimeError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as a FAISS index ({first_line(error)}); build it anew") from None
    finally:
        faiss.set_deserialization_vector_byte_limit(limit)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for faiss within the block, as many as before after it."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def n_threads() -> int:
    """Threads that a search of several queries uses."""
    return int(faiss.omp_get_max_threads())


def library_version() -> str:
    """The version of faiss."""
    return str(faiss.__version__)


def _steps(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, … up to most, which is the last."""
    halves = {step for power in range(most.bit_length()) for step in (1 << power, 3 << power >> 1)}
    return sorted({step for step in halves if 0 < step < most} | {most})
