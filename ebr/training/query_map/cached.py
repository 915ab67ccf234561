"""The vectors of some records, computed once, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebr.data.training.examples import Example
from ebr.data.vectors.batch import Vectors
from ebr.training.batches.collator import Collator


@dataclass(frozen=True)
class Texts:
    """The distinct texts of some records, in the order in which they come, each with its place."""

    queries: dict[str, int]
    passages: dict[str, int]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Texts:
        """What is embedded once, as it is spelt."""
        queries = dict.fromkeys(one.query for one in examples)
        passages = dict.fromkeys(text for one in examples for text in (*one.positives, *one.negatives))
        return cls(*({text: place for place, text in enumerate(texts)} for texts in (queries, passages)))


@dataclass(frozen=True)
class CachedBatch:
    """B queries and C candidates, of which candidate i is query i's own positive for i < B. mask: (B, C), see Targets."""

    queries: Tensor
    candidates: Tensor
    mask: Tensor


class CachedRecords:
    """Batches of records as fine-tuning draws them, as vectors that are there already. Rows are the draw's: see Collator.

    queries: (Q, D) of texts.queries; passages: (P, D) of texts.passages.
    """

    def __init__(self, draw: Collator, texts: Texts, queries: Vectors, passages: Vectors) -> None:
        self.draw = draw
        self._texts = texts
        self._names = list(texts.passages)
        self._queries, self._passages = torch.from_numpy(queries), torch.from_numpy(passages)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._queries.shape[1])

    def batch(self, rows: Sequence[int], further: Sequence[int] = ()) -> CachedBatch:
        """Records with a positive and negatives drawn for each. further: places of passages that are candidates beside them."""
        drawn = [self.draw.draw(row) for row in rows]
        candidates = [*(one.positive for one in drawn), *(text for one in drawn for text in one.negatives)]
        present = set(candidates)
        candidates += [name for place in further if (name := self._names[place]) not in present]
        ids = np.array([self.draw.ids[text] for text in candidates], dtype=np.int64)
        places = torch.tensor([self._texts.passages[text] for text in candidates])
        queries = self._queries[torch.tensor([self._texts.queries[one.query] for one in drawn])]
        return CachedBatch(queries, self._passages[places], self.draw.false_negative_mask(rows, ids))

    def held_out(self, rng: np.random.Generator, *, most_rows: int, most_passages: int) -> CachedBatch:
        """The records that are not trained on, or some, among passages of all records."""
        n_train, n_held_out = len(self.draw.train), len(self.draw.validation)
        rows = np.sort(rng.permutation(n_held_out)[:most_rows]) + n_train
        further = rng.permutation(len(self._names))[:most_passages]
        return self.batch(rows.tolist(), further.tolist())

    def epochs(self, rng: np.random.Generator, size: int) -> Iterator[CachedBatch]:
        """Batches of the records to learn from, in a new order each epoch, without end; a rest of one record is left out."""
        epoch = 0
        while True:
            self.draw.epoch = epoch
            order = rng.permutation(len(self.draw.train))
            for start in range(0, len(order), size):
                rows = order[start : start + size].tolist()
                if len(rows) > 1 or len(order) == 1:
                    yield self.batch(rows)
            epoch += 1
