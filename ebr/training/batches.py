"""Examples → the tensors of a batch: which positive and negatives are drawn, what noise they get, which candidates count."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ebr.data.examples import Example, right_answers
from ebr.data.noise import NOISE


@dataclass(frozen=True)
class Noise:
    """A record gets noise with chance `prob`, on the fields named; `prob` is also the share of their words touched."""

    kind: str
    prob: float
    fields: frozenset[str]

    def apply(self, name: str, text: str, rng: np.random.Generator) -> str:
        """The text with noise, or as it is when the field is not named."""
        return NOISE[self.kind](text, self.prob, rng) if name in self.fields else text


@dataclass(frozen=True)
class Drawn:
    """What one example contributes to one batch."""

    query: str
    positive: str
    negatives: tuple[str, ...]


@dataclass
class BatchMaker:
    """The trainer's collator: rows of the example list → tokens of queries and candidates, and the mask between them.

    A draw is a pure function of seed, epoch and row: the same in every process, in any order, and after a resume.
    `epoch` is set by the trainer at the start of each. Rows from len(train) on are the validation split, which is always
    drawn as in epoch 0 and without noise: the trainer has one collator for both.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    tokenize: Callable[..., dict[str, Any]]
    prompts: Mapping[str, str]
    n_negatives: int
    seed: int
    noise: Noise | None = None
    epoch: int = 0
    _right: dict[str, set[str]] = field(init=False, repr=False)
    valid_label_columns: list[str] = field(default_factory=list)
    """sentence-transformers asks each collator for it; there is no label column."""

    def __post_init__(self) -> None:
        self._right = right_answers((*self.train, *self.validation))

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """[{"row": 3}, …] → query_* and passage_* token columns (positives, then negatives) and `label`, the rows (B,)."""
        indices = [row["row"] for row in rows]
        drawn = [self.draw(index) for index in indices]
        passages = _passages(drawn)
        batch: dict[str, Any] = {"label": torch.tensor(indices)}
        for name, role, texts in (("query", "query", [item.query for item in drawn]), ("passage", "document", passages)):
            tokens = self.tokenize(texts, prompt=self.prompts[role], task=role)
            batch.update({f"{name}_{key}": value for key, value in tokens.items()})
        return batch

    def draw(self, row: int) -> Drawn:
        """One positive, in turn over the epochs; up to n_negatives negatives, none twice; noise if it is this record's lot."""
        plain = self._draw_plain(row)
        if self.noise is None or row >= len(self.train):
            return plain
        rng = np.random.default_rng([self.seed, self.epoch, row, 1])
        if rng.random() >= self.noise.prob:
            return plain
        return Drawn(
            self.noise.apply("anchor", plain.query, rng),
            self.noise.apply("positive", plain.positive, rng),
            tuple(self.noise.apply("negative", text, rng) for text in plain.negatives),
        )

    def _draw_plain(self, row: int) -> Drawn:
        example = self._example(row)
        epoch = self.epoch if row < len(self.train) else 0
        rng = np.random.default_rng([self.seed, epoch, row, 0])
        # Rows start at different positives, or the first epoch would see only the first of each.
        first = zlib.crc32(f"{self.seed} {row}".encode())
        positive = example.positives[(first + epoch) % len(example.positives)]
        distinct = list(dict.fromkeys(example.negatives))
        chosen = rng.permutation(len(distinct))[: self.n_negatives]
        return Drawn(example.query, positive, tuple(distinct[index] for index in chosen))

    def _example(self, row: int) -> Example:
        return self.train[row] if row < len(self.train) else self.validation[row - len(self.train)]

    def allowed(self, rows: Sequence[int], others: Sequence[Sequence[int]] = ()) -> torch.Tensor:
        """(B, C) bool: False where a candidate is, by its text, right for the query although it stands in another place.

        rows: the batch's own, whose passages are the first candidates; others: the rows of each batch whose passages follow.
        Judged by the texts before noise: noise does not make a right answer wrong.
        """
        queries = [self._example(row).query.strip() for row in rows]
        candidates = [text.strip() for group in (rows, *others) for text in _passages([self._draw_plain(row) for row in group])]
        places: dict[str, list[int]] = {}
        for place, text in enumerate(candidates):
            places.setdefault(text, []).append(place)
        allowed = torch.ones(len(queries), len(candidates), dtype=torch.bool)
        for row, query in enumerate(queries):
            # Few candidates are right for a query, and a large batch has millions of pairs: only those few are looked at.
            allowed[row, [place for text in self._right[query] for place in places.get(text, ())]] = False
        return allowed.logical_or_(torch.eye(len(queries), len(candidates), dtype=torch.bool))


def _passages(drawn: Sequence[Drawn]) -> list[str]:
    """The candidates that a batch brings: every positive, then every negative."""
    return [item.positive for item in drawn] + [text for item in drawn for text in item.negatives]
