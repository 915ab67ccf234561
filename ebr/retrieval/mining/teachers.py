"""Teachers: who says how well a text answers a query, for losses that learn from scores, if not the model that mines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ebr.data.training.files import Record
from ebr.retrieval.measures.lexical import LexicalIndex, reciprocal_ranks
from ebr.retrieval.measures.measurement import TextEncoder
from ebr.retrieval.mining.passages import blocks

if TYPE_CHECKING:
    from ebr.retrieval.mining.rules import Mined

_BLOCK = 1024


class HybridTeacher:
    """Where a query's texts stand among the candidates by words and by the model that mines: reciprocal rank fusion of both.

    Scores are shares of the most there can be, which is that of a text first in both: from 0 to 1, as cosines of answers are.
    """

    def __init__(self, texts: Iterable[str], n_candidates: int, depth: int) -> None:
        """texts: the candidates first, then those of the records that are none. depth: ranks beyond it count nothing."""
        self._lexical, self._n_candidates, self._depth = LexicalIndex(texts), n_candidates, depth

    def scores(
        self, query: str, rows: Sequence[int], cosines: Sequence[float], best_cosines: npt.NDArray[np.float32]
    ) -> tuple[float, ...]:
        """The fused score of some texts, 0 for one that neither ranking has among its first.

        rows: of the texts. cosines: theirs. best_cosines: (k,) of the candidates, k the depth, or as many as there are. A rank
        is 1 + the candidates that score more: equal scores share one.
        """
        by_words = self._lexical.scores(query)
        candidates, own = by_words[: self._n_candidates], by_words[np.asarray(rows, np.int64)]
        lexical = np.array([1 + np.count_nonzero(candidates > score) for score in own])
        dense = np.array([1 + np.count_nonzero(best_cosines > np.float32(cosine)) for cosine in cosines])
        fused = np.where((own > 0) & (lexical <= self._depth), reciprocal_ranks(lexical), 0)
        fused += np.where(dense <= self._depth, reciprocal_ranks(dense), 0)
        return tuple((fused / (2 * reciprocal_ranks(np.array(1)))).tolist())


def scored_by(
    encode: TextEncoder, records: Sequence[Record], mined: Iterable[Mined], *, block: int = _BLOCK
) -> Iterator[Mined]:
    """The same, with the cosines of another model as the teacher's scores; `block` records are in memory at once."""
    for some in blocks(zip(records, mined, strict=True), block):
        queries = {query: row for row, query in enumerate(dict.fromkeys(record.query for record, _ in some))}
        texts = {text: row for row, text in enumerate(dict.fromkeys(text for pair in some for text in _texts(*pair)))}
        query_vectors, text_vectors = encode.encode_queries(list(queries)), encode.encode_documents(list(texts))
        for record, one in some:
            rows = [texts[text] for text in _texts(record, one)]
            cosines = text_vectors[rows].astype(np.float64) @ query_vectors[queries[record.query]].astype(np.float64)
            yield replace(one, teacher_scores=tuple(cosines.tolist()))


def _texts(record: Record, mined: Mined) -> list[str]:
    return [*record.positives, *(one.text for one in mined.negatives)]
