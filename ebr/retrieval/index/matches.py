"""What a search finds: matches, for each query in order, as lists, as tables and as a DataFrame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ebr.data.result_tables import DataFrame, Part, Shown, Table
from ebr.data.text.terminal_text import cut_text, pad_text, text_columns

_CELL_COLUMNS = 60
_QUERY_COLUMNS = 72
_OWN = ("query_id", "query", "rank", "score", "scored_by", "id")


class Mode(Enum):
    """How rows are found."""

    DENSE = "dense"
    LEXICAL = "lexical"
    HYBRID = "hybrid"


BM25, RRF = "BM25", "RRF"
"""What scores are in the modes that read words: BM25, and the sum of reciprocal ranks; dense, they are the index's metric."""


@dataclass(frozen=True)
class Match:
    """One row that was found. rank: from 1. columns: what the index keeps of the row.

    scored_by: what the score is, cosine, inner_product, BM25 or RRF; scores of different kinds cannot be compared.
    """

    rank: int
    score: float
    id: str
    columns: dict[str, str | None]
    scored_by: str = "cosine"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        scored = {"score": self.score, "scored_by": self.scored_by}
        return {"rank": self.rank, **scored, "id": self.id, "columns": self.columns}


class Hits(list[list[Match]], Shown):
    """The matches of each query, best first. texts: what was searched for, "query 1", "query 2", … where that was vectors."""

    def __init__(self, matches: Iterable[list[Match]], texts: Sequence[str] = ()) -> None:
        super().__init__(matches)
        self.texts = list(texts) or [f"query {number}" for number in range(1, len(self) + 1)]

    def summary(self) -> str:
        """Each query and its matches, aligned for a terminal; long cells are cut."""
        return "\n\n".join(map(hits_block, self.texts, self))

    def parts(self) -> list[Part]:
        """A table for each query."""
        return hits_parts(self.texts, self)

    def to_frame(self) -> DataFrame:
        """A row for each match: query, rank, score, scored_by, id, and the columns of its row, see hits_table."""
        return hits_table(self.texts, self).to_frame()


def hits_block(text: str, matches: Sequence[Match]) -> str:
    """A query and its matches, aligned for a terminal; long cells are cut."""
    if not matches:
        return f"{cut_text(text, _QUERY_COLUMNS)}\nno hits"
    rows = [["rank", matches[0].scored_by, "id", *matches[0].columns]]
    rows += [
        [str(match.rank), f"{match.score:.4f}", match.id, *("" if cell is None else cell for cell in match.columns.values())]
        for match in matches
    ]
    cells = [[cut_text(cell, _CELL_COLUMNS) for cell in row] for row in rows]
    widths = [max(map(text_columns, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(pad_text(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([cut_text(text, _QUERY_COLUMNS), *lines])


def hits_parts(texts: Sequence[str], matches: Sequence[Sequence[Match]]) -> list[Part]:
    """Each query, and a table of its matches."""
    parts: list[Part] = []
    for text, found in zip(texts, matches, strict=True):
        parts += [text, hits_table([text], [found]).without("query")]
    return parts


def hits_table(texts: Sequence[str], matches: Sequence[Sequence[Match]], query_ids: Sequence[str] | None = None) -> Table:
    """A row for each match: query_id (where there are any), query, rank, score, scored_by, id, and the columns of its row.

    A column of the index by one of these names comes as columns.<name>.
    """
    ids: Sequence[str | None] = [None] * len(texts) if query_ids is None else query_ids
    rows = (
        {
            **({} if query_id is None else {"query_id": query_id}),
            **{"query": text, "rank": match.rank, "score": match.score, "scored_by": match.scored_by, "id": match.id},
            **{f"columns.{name}" if name in _OWN else name: cell for name, cell in match.columns.items()},
        }
        for query_id, text, found in zip(ids, texts, matches, strict=True)
        for match in found
    )
    return Table.of(rows, _OWN[1:] if query_ids is None else _OWN, score=".4f")
