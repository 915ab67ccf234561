"""Vectors as text and back: `%.9g`, which names a float32 exactly, for many numbers at once.

`%` formats one number at a time. Here a whole array goes through a few array operations: nine digits are three groups of
three, each group one look-up in a table of ready text. What does not fit the pattern goes through `%`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ebr.data.vectors import Vectors

# A number is a cell of 20 bytes, 0 where nothing stands: sign and what precedes the nine digits (8), then three times
# three digits and a spare byte (4 each). The last spare byte holds the space.
_CELL = 20
_LEADS = ["0.", "0.0", "0.00", "0.000", *(f"{digit}." for digit in range(1, 10))]
_N_LEADS = len(_LEADS)
_SPACE = np.uint32(ord(" ") << 24)


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
    if not texts:
        return np.empty((0, 0), dtype=np.float32)
    numbers = pc.split_pattern(pa.array(texts, pa.large_string()), " ")
    lengths = np.diff(numbers.offsets.to_numpy())
    if lengths.min() != lengths.max():
        raise ValueError(f"vectors of {lengths.min()} and of {lengths.max()} numbers")
    # pa.ArrowInvalid is a ValueError.
    flat: Vectors = numbers.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    return flat.reshape(len(texts), -1)
