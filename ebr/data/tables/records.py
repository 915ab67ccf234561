r"""Where the rows of a delimited table begin and end, found in the bytes of a stream without a look at each line.

Only \n ends a line; where the dialect has quotes, a \n within a quoted cell ends none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import AnyStr, BinaryIO

import numpy as np
import numpy.typing as npt

from ebr.data.files.dialects import Dialect
from ebr.errors import DataError

LONGEST_QUOTED = 16 * 2**20
"""Bytes of a quoted cell. A quote still open after them never closes: reading on would take the whole file for one row."""

_Positions = npt.NDArray[np.int64]
_LONGEST_RECORD = 2**30
_BLOCK = 512 * 2**10  # fits the cache: larger ones are read at half the speed
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Records:
    r"""A stretch of a table that ends where a record ends; record i, its line end included, is data[starts[i]:ends[i]].

    Blank lines lie between the records and are none. newlines: where every \n of the data is. offset: bytes of the table
    before the data. first_line: the line that the data begins with, from 1.
    """

    data: bytes
    starts: _Positions
    ends: _Positions
    newlines: _Positions
    offset: int
    first_line: int

    def __len__(self) -> int:
        return len(self.starts)

    def line_of(self, index: int) -> int:
        """The line on which a record begins, from 1."""
        return self.first_line + int(np.searchsorted(self.newlines, self.starts[index]))

    def lines(self) -> list[int]:
        """The line of every record."""
        lines: list[int] = (self.first_line + np.searchsorted(self.newlines, self.starts)).tolist()
        return lines

    def raws(self) -> list[bytes]:
        """The bytes of every record."""
        return [self.data[start:end] for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]


def read_records(file: Path, stream: BinaryIO, dialect: Dialect, block_bytes: int = _BLOCK) -> Iterator[Records]:
    """The records of an open table, in stretches of about block_bytes; a BOM at the very start is left out.

    A stretch may hold no record. Raises DataError when a record is over 1 GiB.
    """
    pending, offset, line, final = stream.read(len(_BOM)).removeprefix(_BOM), 0, 1, False
    while not final:
        # A record longer than a block is searched anew each time; reading twice as much each time keeps that linear.
        block = stream.read(max(block_bytes, len(pending)))
        data, final = pending + block, not block
        records = find_records(data, dialect, line, offset=offset, final=final)
        yield records
        pending, offset = data[len(records.data) :], offset + len(records.data)
        line += len(records.newlines)
        if len(pending) > _LONGEST_RECORD:
            raise DataError(f"{file}:{line}: a row over 1 GiB; is this a table of text?")


def find_records(data: bytes, dialect: Dialect, first_line: int, *, offset: int = 0, final: bool = True) -> Records:
    """The whole records of data, which starts where a record may. final: nothing follows, so the last needs no line end."""
    view = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(view == ord("\n"))
    ends = newlines + 1
    if dialect.quote and dialect.quote.encode() in data:
        ends = newlines[~_is_quoted(data, newlines, dialect)] + 1
    if final and data and not (len(ends) and ends[-1] == len(data)):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1]])[: len(ends)].astype(np.int64)
    n_bytes = ends - starts - (view[ends - 1] == ord("\n"))
    is_blank = (n_bytes == 0) | ((n_bytes == 1) & (view[starts] == ord("\r")))
    used = int(ends[-1]) if len(ends) else 0
    newlines = newlines[: np.searchsorted(newlines, used)]
    return Records(data[:used], starts[~is_blank], ends[~is_blank], newlines, offset, first_line)


def _is_quoted(data: bytes, newlines: _Positions, dialect: Dialect) -> npt.NDArray[np.bool_]:
    """Which line ends lie in a quoted cell. A cell that is still open, or may be, where the data ends, holds all the rest."""
    quote, delimiter, escape = dialect.quote.encode(), dialect.delimiter.encode(), dialect.escape.encode()
    quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == ord(quote))
    if escape and escape in data:
        quotes = quotes[[not is_escaped(data, int(at), escape) for at in quotes]]
    if _are_paired(data, quotes, delimiter):
        is_quoted: npt.NDArray[np.bool_] = np.searchsorted(quotes, newlines) % 2 == 1
        return is_quoted
    opens, closes, at = [-1], [-1], 0
    while (opened := data.find(quote, at)) >= 0:
        if (
            opened and data[opened - 1] not in delimiter + b"\n"
        ):  # within a cell that no quote opened, a character like any other
            at = opened + 1
            continue
        limit = min(opened + LONGEST_QUOTED, len(data))
        end = end_of_quoted(data, quote, opened, limit, escape)
        at = limit if end is None else end
        opens.append(opened)
        closes.append(at)
        if end is None or not data.startswith((delimiter, b"\n", b"\r\n"), at):
            # Broken: nothing can be trusted before the next line.
            at = data.find(b"\n", at) + 1
            if not at:
                break
    last_open = np.searchsorted(opens, newlines, side="right") - 1
    is_quoted = newlines < np.asarray(closes)[last_open]
    return is_quoted


def _are_paired(data: bytes, quotes: _Positions, delimiter: bytes) -> bool:
    """Whether every second quote closes what the one before it opened, so that counting them is enough. The common case."""
    if len(data) > LONGEST_QUOTED:
        return False
    # What stands around each quote; the data's ends count as line ends.
    around = np.frombuffer(b"\n" + data + b"\n\n", np.uint8)
    before, behind, next_but_one = around[quotes[::2]], around[quotes[1::2] + 2], around[quotes[1::2] + 3]
    between, quote = ord(delimiter), data[quotes[0]] if len(quotes) else 0
    opens = (before == between) | (before == ord("\n"))
    closes = (behind == between) | (behind == ord("\n")) | ((behind == ord("\r")) & (next_but_one == ord("\n")))
    # Two quotes within a cell are one of its own: the first seems to close the cell, the second to open it again.
    opens[1:] |= quotes[2::2] == quotes[1:-1:2] + 1
    return bool(opens.all() and (closes | (behind == quote)).all())


def end_of_quoted(text: AnyStr, quote: AnyStr, opened: int, limit: int, escape: AnyStr) -> int | None:
    """Where the cell that a quote opens is over; None when it is not before the limit.

    Two quotes are one of the cell's own, and so is one behind an escape (empty = none).
    """
    at = opened + 1
    while (closing := text.find(quote, at, limit)) >= 0:
        if escape and is_escaped(text, closing, escape):
            at = closing + 1
        elif text.startswith(quote, closing + 1):
            at = closing + 2
        else:
            return closing + 1
    return None


def is_escaped(text: AnyStr, at: int, escape: AnyStr) -> bool:
    """Whether an odd number of escapes stands before a place: every second one is escaped itself."""
    first = at
    while first and text.startswith(escape, first - 1):
        first -= 1
    return (at - first) % 2 == 1
