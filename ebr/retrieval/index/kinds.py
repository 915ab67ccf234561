"""Kinds of index: what each stores, how much memory that takes, and which one suits so many rows and so much memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from ebr.data.text.counted import are, counted
from ebr.errors import ConfigError

_EXACT_NUMBERS = 1 << 23
"""Up to so many numbers (rows x dim) a core looks at every vector in some three milliseconds: nothing is worth an error."""
_LEAST_PER_LIST = 39  # fewer training rows a list, and faiss calls its clusters unreliable
_TRAINING_PER_LIST = 64
_TRAINING_ROWS = 1 << 15  # for what is trained beside the lists
_MOST_LISTS = 1 << 16
_CODE_WORDS = 16  # a code of 4 bits names one of 16 words, each learned from a row at least
_LINKS = 32
_HNSW_BYTES = (2 * _LINKS + 1) * 4 + 8 + 4  # links of the lowest level and, on average, one above; offset; level
_ID_BYTES = 8
_FAST_SCAN_BLOCK = 32
_SCATTERED = 4  # a byte that is read out of order takes as long as some four in a row


class Metric(str, Enum):
    """What a score is: the inner product of vectors scaled to length 1, or of the vectors as they are."""

    COSINE = "cosine"
    INNER_PRODUCT = "inner_product"


class Kind(str, Enum):
    """How an index keeps vectors; the second part of a name is what a list or a graph holds, the third what re-ranks."""

    FLAT = "flat"
    IVF = "ivf"
    HNSW = "hnsw"
    PQ = "pq"
    IVF_SQ8 = "ivf_sq8"
    HNSW_SQ8 = "hnsw_sq8"
    IVF_PQ = "ivf_pq"
    IVF_PQ_SQ8 = "ivf_pq_sq8"
    IVF_PQ_FP16 = "ivf_pq_fp16"
    IVF_PQ_FLAT = "ivf_pq_flat"

    @property
    def has_lists(self) -> bool:
        """Whether rows lie in lists, of which a query looks at some."""
        return self.value.startswith("ivf")

    @property
    def has_graph(self) -> bool:
        """Whether a query walks from row to row."""
        return self.value.startswith("hnsw")

    @property
    def has_codes(self) -> bool:
        """Whether rows are first compared by short codes (product quantisation, Jégou et al. 2011)."""
        return "pq" in self.value

    @property
    def refined(self) -> bool:
        """Whether the best by their codes are ranked again by finer vectors."""
        return self in _FINER_BYTES


_FINER_BYTES = {Kind.IVF_PQ_SQ8: 1, Kind.IVF_PQ_FP16: 2, Kind.IVF_PQ_FLAT: 4}
_FINER_NAMES = {Kind.IVF_PQ_SQ8: "Refine(SQ8)", Kind.IVF_PQ_FP16: "Refine(SQfp16)", Kind.IVF_PQ_FLAT: "RFlat"}
_PREFERRED = (Kind.IVF_PQ_FLAT, Kind.IVF_PQ_FP16, Kind.IVF_PQ_SQ8, Kind.IVF_PQ)
"""What auto tries for many rows, the most exact first. All scan codes; they differ in what ranks the best again."""


@dataclass(frozen=True)
class IndexSpec:
    """An index that is fully named: kind, rows, dimension and number of lists (0 where the kind has none)."""

    kind: Kind
    n_rows: int
    dim: int
    n_lists: int

    @classmethod
    def of(cls, kind: Kind, n_rows: int, dim: int) -> IndexSpec:
        """The kind for so many rows. Raises ConfigError when they are too few to learn its codes from."""
        if kind.has_codes and n_rows < _CODE_WORDS:
            raise ConfigError(f"kind {kind.value}: learns its codes from {_CODE_WORDS} rows or more, not {n_rows}; take flat")
        return cls(kind, n_rows, dim, n_lists_for(n_rows) if kind.has_lists else 0)

    @property
    def n_codes(self) -> int:
        """Codes of 4 bits a row: one for two numbers, or one for each where the dimension is odd."""
        return self.dim // 2 if self.dim % 2 == 0 else self.dim

    @property
    def factory(self) -> str:
        """The name that faiss.index_factory understands."""
        lists = f"IVF{self.n_lists}"
        plain = {
            Kind.FLAT: "Flat",
            Kind.IVF: f"{lists},Flat",
            Kind.HNSW: f"HNSW{_LINKS},Flat",
            Kind.PQ: f"PQ{self.n_codes}x4fs",
            Kind.IVF_SQ8: f"{lists},SQ8",
            Kind.HNSW_SQ8: f"HNSW{_LINKS}_SQ8",
        }
        codes = f"{lists},PQ{self.n_codes}x4fs"
        return plain.get(self.kind) or ",".join(filter(None, [codes, _FINER_NAMES.get(self.kind)]))

    @property
    def n_training(self) -> int:
        """Rows that the index learns its lists and codes from; 0 where there is nothing to learn."""
        if self.kind in {Kind.FLAT, Kind.HNSW}:
            return 0
        return min(self.n_rows, max(_TRAINING_ROWS, self.n_lists * _TRAINING_PER_LIST))

    @property
    def row_bytes(self) -> int:
        """Bytes that a query reads of each row it comes by."""
        if self.kind.has_codes:
            return math.ceil(self.n_codes / 2)
        return self.dim if self.kind in {Kind.IVF_SQ8, Kind.HNSW_SQ8} else 4 * self.dim

    @property
    def predicted_bytes(self) -> int:
        """What the finished index takes in memory: rows, links, ids and centroids."""
        rows = float(self.n_rows)
        if self.kind.has_codes:  # fast scan keeps rows in blocks, and fills up the last one of each list
            rows += (self.n_lists or 1) * _FAST_SCAN_BLOCK / 2
        total = rows * self.row_bytes + self.n_rows * self.dim * _FINER_BYTES.get(self.kind, 0)
        if self.kind.has_lists:
            total += rows * _ID_BYTES + self.n_lists * self.dim * 4
        if self.kind.has_graph:
            total += self.n_rows * _HNSW_BYTES
        return round(total)

    def cost(self, effort: dict[str, int], k: int) -> float:
        """Bytes that one query reads, those out of order counted as more: what a search effort is judged by.

        Not a time: times differ from run to run, and the choice would with them.
        """
        share = effort.get("nprobe", 1) / self.n_lists if self.n_lists else 1.0
        finer = effort.get("k_factor", 0) * k * self.dim * _FINER_BYTES.get(self.kind, 0)
        return share * self.n_rows * self.row_bytes + _SCATTERED * finer


def n_lists_for(n_rows: int) -> int:
    """About 2·√N lists, a power of two, as long as each can be learned from 39 rows."""
    wanted: int = 2 ** round(math.log2(2 * math.sqrt(max(1, n_rows))))
    return max(1, min(wanted, n_rows // _LEAST_PER_LIST, _MOST_LISTS))


def choose_kind(n_rows: int, dim: int, budget: int) -> tuple[Kind, str]:
    """The kind that auto takes for so many rows and so many bytes of memory, and why, in one line.

    Raises ConfigError when nothing fits.
    """
    rows = f"{counted(n_rows, 'row')} of {dim}"
    if n_rows * dim <= _EXACT_NUMBERS and IndexSpec.of(Kind.FLAT, n_rows, dim).predicted_bytes <= budget:
        return Kind.FLAT, f"{rows} {are(n_rows)} few: looking at every one is exact, and takes milliseconds"
    specs = [IndexSpec.of(kind, n_rows, dim) for kind in _PREFERRED]
    fitting = [spec for spec in specs if spec.predicted_bytes <= budget]
    if not fitting:
        least = specs[-1]
        raise ConfigError(
            f"memory_budget {bytes_text(budget)}: the smallest index of {rows} ({least.kind.value}) takes "
            f"{bytes_text(least.predicted_bytes)}; raise it, or embed with a lower truncate_dim"
        )
    why = f"{rows}: lists of short codes, the best ranked again by {_ranked_by(fitting[0].kind)}"
    if fitting[0] is not specs[0]:
        why += f"; {specs[0].kind.value} would take {bytes_text(specs[0].predicted_bytes)} of {bytes_text(budget)}"
    return fitting[0].kind, why


def _ranked_by(kind: Kind) -> str:
    names = {Kind.IVF_PQ_FLAT: "their vectors", Kind.IVF_PQ_FP16: "float16 vectors", Kind.IVF_PQ_SQ8: "vectors of 8 bits"}
    return names.get(kind, "nothing, for want of memory")


def bytes_text(n_bytes: float) -> str:
    """Bytes for people: 1.64 GB, 25.3 MB, 812 kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.2f} {unit}" if n_bytes < 10 * size else f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes / 1e3:,.0f} kB"
