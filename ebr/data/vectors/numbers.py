"""Vectors as text and back: `%.9g`, which names a float32 exactly, for many numbers at once.

`%` formats one number at a time. Here a whole array goes through a few array operations: nine digits are three groups of
three, each group one look-up in a table of ready text. What does not fit the pattern goes through `%`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ebr.data.files.dialects import NULL
from ebr.data.vectors.batch import Vectors, first_broken
from ebr.errors import DataError

# A number is a cell of 20 bytes, 0 where nothing stands: sign and what precedes the nine digits (8), then three times
# three digits and a spare byte (4 each). The last spare byte holds the space.
_CELL = 20
_LEADS = ["0.", "0.0", "0.00", "0.000", *(f"{digit}." for digit in range(1, 10))]
_N_LEADS = len(_LEADS)
_SPACE = np.uint32(ord(" ") << 24)

_BRACKETS = {"[": "]", "(": ")", "{": "}"}
"""JSON, pgvector and numpy print [ ], Python ( ), Postgres { }."""
_SEPARATORS = (",", ";", "|", "\x02")
"""The first that occurs stands between numbers; else spaces do."""


def _lead_table() -> npt.NDArray[np.uint32]:
    """(4 · leads, 2): what stands before the digits: +, -, and both again without the point, for numbers without digits."""
    signed = [*_LEADS, *(f"-{lead}" for lead in _LEADS)]
    texts = [*signed, *(text.partition(".")[0] for text in signed)]
    return np.array(texts, dtype="S8").view("<u4").reshape(-1, 2)


def _digit_table() -> npt.NDArray[np.uint32]:
    """(2000,): three digits as text; the second thousand is without zeros at the end."""
    texts = [f"{number:03d}" for number in range(1000)]
    return np.array([*texts, *(text.rstrip("0") for text in texts)], dtype="S4").view("<u4")


_LEAD_TEXT = _lead_table()
_DIGIT_TEXT = _digit_table()
_SCALES = np.array([1e9, 1e10, 1e11, 1e12])


def format_vectors(vectors: Vectors) -> list[bytes]:
    """(N, D) finite float32 → N lines of D numbers between spaces, each as `%.9g` writes it."""
    n_rows, dim = vectors.shape
    cells = _number_cells(np.ascontiguousarray(vectors).reshape(-1))
    cells.reshape(n_rows, dim, _CELL)[:, -1, -1] = ord("\n")
    # Deleting the empty bytes of all cells at once is one pass in C.
    return cells.tobytes().translate(None, b"\0").splitlines()


def _number_cells(values: Vectors) -> npt.NDArray[np.uint8]:
    """(N,) float32 → (N, 20) bytes.

    Exact: a float32 has 24 significant bits and 10^12 has 28 (without its factor 2^12), so the product with a power of ten
    fits into the 53 bits of a double, and rounding it, half to even, rounds the number itself.
    """
    size = np.abs(values).astype(np.float64)
    whole = size >= 1
    n_zeros = (size < 0.1).view(np.uint8) + (size < 0.01).view(np.uint8) + (size < 0.001).view(np.uint8)
    odd = np.flatnonzero(((size < 1e-4) & (size != 0)) | (size >= 10))
    size[odd] = 0
    digits = np.rint(size * _SCALES[n_zeros])
    lead = n_zeros.astype(np.intp)
    lead[size == 0] = 0
    ones = np.flatnonzero(whole & (size != 0))
    if ones.size:  # 1 to 10: one digit before the point, and eight behind it, read as nine of which the last is 0
        first, rest = np.divmod(np.rint(size[ones] * 1e8), 1e8)
        digits[ones] = rest * 10
        lead[ones] = first.astype(np.intp) + 3
    lead += np.signbit(values) * _N_LEADS
    cells = np.empty((values.size, _CELL), dtype=np.uint8)
    _fill(cells.view("<u4"), lead, digits.astype(np.uint32))
    if odd.size:
        texts = np.array([b"%.9g" % value for value in values[odd].tolist()], dtype=f"S{_CELL - 1}")
        cells[odd, :-1] = texts.view(np.uint8).reshape(odd.size, -1)
    return cells


def _fill(words: npt.NDArray[np.uint32], lead: npt.NDArray[np.intp], digits: npt.NDArray[np.uint32]) -> None:
    """Write leads and nine digits as text into the (N, 5) words of the cells."""
    thousand = np.uint32(1000)  # numpy divides whole arrays by one integer several at a time; divmod it does not
    upper = digits // thousand
    high = upper // thousand
    middle, last = upper - high * thousand, digits - upper * thousand
    # A group is cut at its zeros when nothing but zeros follows.
    lead = lead + (digits == 0) * (2 * _N_LEADS)
    words[:, 0] = _LEAD_TEXT[lead, 0]
    words[:, 1] = _LEAD_TEXT[lead, 1]
    words[:, 2] = _DIGIT_TEXT[high + ((middle == 0) & (last == 0)) * thousand]
    words[:, 3] = _DIGIT_TEXT[middle + (last == 0) * thousand]
    words[:, 4] = _DIGIT_TEXT[last + thousand] | _SPACE


def parse_vectors(texts: Sequence[str]) -> Vectors:
    """N texts of D numbers between single spaces → (N, D) float32, the inverse of format_vectors.

    Raises ValueError when one is no such text, or when their lengths differ.
    """
    return _parsed(pa.array(texts, pa.large_string()), " ")


def _parsed(texts: pa.Array, separator: str) -> Vectors:
    if not len(texts):
        return np.empty((0, 0), dtype=np.float32)
    numbers = pc.split_pattern(texts, separator)
    lengths = np.diff(numbers.offsets.to_numpy())
    if lengths.min() != lengths.max():
        raise ValueError(f"vectors of {lengths.min()} and of {lengths.max()} numbers")
    # pa.ArrowInvalid is a ValueError.
    flat: Vectors = numbers.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    return flat.reshape(len(texts), -1)


def read_vectors(texts: Sequence[str | None], dim: int | None, where: Callable[[int], str]) -> Vectors:
    r"""N vectors (N, D) float32 from texts as people and databases write them: `1 2`, `[1, 2]`, `{1,2}`, `1;2`, `1\x022`.

    dim: D, where it is known already. Raises DataError, which begins with where(row), for a row that is no such vector.
    """
    given = [text or "" for text in texts]
    # The spelling of infer first, unless it cannot be: to fail takes long.
    is_other = any(mark in given[0] for mark in (*_BRACKETS, *_SEPARATORS))
    for parse in [_parse_spellings] if is_other else [parse_vectors, _parse_spellings]:
        try:
            vectors = parse(given)
        except ValueError:
            continue
        if vectors.shape[1] == (dim or vectors.shape[1]) and first_broken(vectors) is None:
            return vectors
    parsed: list[Vectors] = []
    for row, text in enumerate(texts):
        parsed.append(_read_vector(where(row), NULL if text is None else text, dim))
        dim = parsed[0].size
    return np.stack(parsed)


def _parse_spellings(texts: Sequence[str]) -> Vectors:
    """Raises ValueError."""
    return _parsed(pa.array(map(_between_commas, texts), pa.large_string()), ",")


def _between_commas(text: str) -> str:
    """The numbers of one vector, however they are written. Raises ValueError where it is not certain which they are."""
    inner = text.strip()
    if len(inner) > 1 and inner[-1] == _BRACKETS.get(inner[0]):
        inner = inner[1:-1].strip()
    separator = next((mark for mark in _SEPARATORS if mark in inner), None)
    if separator is None:
        return ",".join(inner.split())
    if inner.count(f"{separator} ") == inner.count(separator):
        inner = inner.replace(f"{separator} ", separator)
    if len(inner.split()) > 1:  # spread over lines, say
        numbers = inner.split(separator)
        if not all(number[:1].isspace() for number in numbers[1:]):
            raise ValueError("0,5, 1,5 are two numbers in many countries")
        return ",".join(map(str.strip, numbers))
    return inner.replace(separator, ",")


def _read_vector(where: str, text: str, dim: int | None) -> Vectors:
    try:
        numbers = _between_commas(text)
        vector = np.array(numbers.split(",") if numbers else [], dtype=np.float32)
    except ValueError:
        raise DataError(f"{where}: the vector is no list of numbers: {text[:60]!r}") from None
    if vector.size == 0:
        raise DataError(f"{where}: the vector is empty")
    if dim is not None and vector.size != dim:
        raise DataError(f"{where}: the vector has {vector.size} numbers where the first has {dim}")
    if not np.isfinite(vector).all():
        raise DataError(f"{where}: the vector holds nan or inf")
    return vector
