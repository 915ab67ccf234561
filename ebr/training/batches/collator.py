"""Examples → batches: which positive and negatives are drawn, what noise they get, which candidates are right answers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from ebr.data.training.answers import Answers, SameAnswer, find_answers
from ebr.data.training.examples import Example
from ebr.data.training.noise import NOISE
from ebr.data.training.text_table import RecordIds
from ebr.model.encoder.batching import Ints
from ebr.model.encoder.text_reader import Prepared
from ebr.training.batches.token_cache import pooled

QUERY, DOCUMENT = "query", "document"


class Reader(Protocol):
    """Texts of one role and prompt → what the embedder takes; see TokenCache."""

    def prepare(self, texts: Sequence[str]) -> Prepared:
        """The texts, in their order."""
        ...


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
    """What one example contributes to one batch; scores: the teacher's, nan where the data has none."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    positive_score: float = float("nan")
    negative_scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class TextGroup:
    """Texts that may share a forward pass. places: where each stands among the queries, positives, negatives of its batch.

    role: query or document, and source, whose prompt they have; neither matters to tokens of both, which are pooled.
    """

    role: str
    source: int
    prepared: Prepared
    places: Ints


@dataclass(frozen=True)
class Batch:
    """B queries and their C candidates: the B positives, then the negatives.

    candidates: (C,) int64, the id of each candidate, before noise. owners: (C,) int64, the query each was drawn for.
    scores: (C,) float32, the teacher's, nan where there is none.
    """

    rows: list[int]
    groups: tuple[TextGroup, ...]
    candidates: Ints
    owners: Ints
    scores: np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Collator:
    """The trainer's collator: rows of the example list → the tokens of a batch, and what its candidates are.

    A draw is a pure function of seed, epoch and row: the same in every process, in any order, and after a resume.
    `epoch` is set by the trainer at the start of each. Rows from len(train) on are the validation split, which is always
    drawn as in epoch 0 and without noise: the trainer has one collator for both.
    ids: the number of each text, see TextTable. readers: for each source, by role. source_of: the source of each row; None =
    all are of the first.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    ids: Mapping[str, int]
    readers: Sequence[Mapping[str, Reader]]
    n_negatives: int
    seed: int
    noise: Noise | None = None
    epoch: int = 0
    source_of: Sequence[int] | None = None
    by_role: bool = False
    """Whether the model treats queries and documents differently, so that they never share a pass."""
    same_answer: SameAnswer = "text"
    """Which texts are right answers to a query; see find_answers."""
    _answers: Answers = field(init=False, repr=False)
    valid_label_columns: list[str] = field(default_factory=list)
    """sentence-transformers asks each collator for it; there is no label column."""

    def __post_init__(self) -> None:
        records = [RecordIds.of(example, self.ids) for example in (*self.train, *self.validation)]
        self._answers = find_answers(records, self.same_answer)

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """[{"row": 3}, …] → `batch`, see Batch, and `label`, the rows (B,)."""
        indices = [row["row"] for row in rows]
        plain = [self._draw_plain(index) for index in indices]
        noisy = [self._with_noise(index, drawn) for index, drawn in zip(indices, plain, strict=True)]
        owners = [*range(len(plain)), *(place for place, drawn in enumerate(plain) for _ in drawn.negatives)]
        scores = [*(drawn.positive_score for drawn in plain), *(score for drawn in plain for score in drawn.negative_scores)]
        batch = Batch(
            indices,
            self._groups(indices, noisy, owners),
            np.array([self.ids[text] for text in _candidates(plain)], dtype=np.int64),
            np.array(owners, dtype=np.int64),
            np.array(scores, dtype=np.float32),
        )
        return {"label": torch.tensor(indices), "batch": batch}

    def _groups(self, rows: Sequence[int], drawn: Sequence[Drawn], owners: Sequence[int]) -> tuple[TextGroup, ...]:
        texts = [*(one.query for one in drawn), *_candidates(drawn)]
        places: dict[tuple[str, int], list[int]] = {}
        for place in range(len(texts)):
            role, owner = (QUERY, place) if place < len(rows) else (DOCUMENT, owners[place - len(rows)])
            places.setdefault((role, self._source(rows[owner])), []).append(place)
        groups = [
            TextGroup(role, source, self.readers[source][role].prepare([texts[place] for place in own]), np.array(own))
            for (role, source), own in places.items()
        ]
        return tuple(groups) if self.by_role else _pooled(groups)

    def _source(self, row: int) -> int:
        return self.source_of[row] if self.source_of is not None else 0

    def draw(self, row: int) -> Drawn:
        """One positive, in turn over the epochs; up to n_negatives negatives, none twice; noise if it is this record's lot."""
        return self._with_noise(row, self._draw_plain(row))

    def _with_noise(self, row: int, plain: Drawn) -> Drawn:
        if self.noise is None or row >= len(self.train):
            return plain
        rng = np.random.default_rng([self.seed, self.epoch, row, 1])
        if rng.random() >= self.noise.prob:
            return plain
        return replace(
            plain,
            query=self.noise.apply("anchor", plain.query, rng),
            positive=self.noise.apply("positive", plain.positive, rng),
            negatives=tuple(self.noise.apply("negative", text, rng) for text in plain.negatives),
        )

    def _draw_plain(self, row: int) -> Drawn:
        example = self._example(row)
        epoch = self.epoch if row < len(self.train) else 0
        rng = np.random.default_rng([self.seed, epoch, row, 0])
        # Rows start at different positives, or the first epoch would see only the first of each.
        first = zlib.crc32(f"{self.seed} {row}".encode())
        turn = (first + epoch) % len(example.positives)
        distinct = list(dict.fromkeys(example.negatives))
        chosen = [distinct[index] for index in rng.permutation(len(distinct))[: self.n_negatives]]
        return Drawn(example.query, example.positives[turn], tuple(chosen), *_scores(example, turn, chosen))

    def _example(self, row: int) -> Example:
        return self.train[row] if row < len(self.train) else self.validation[row - len(self.train)]

    def false_negative_mask(self, rows: Sequence[int], candidates: Ints) -> torch.Tensor:
        """(B, C) bool: False where a candidate is right for the query although it stands in another place.

        A candidate is right that any record with this query calls so, or its chain (see find_answers), and the query itself.
        candidates: (C,) the id of each, the rows' own positives first. Judged by the texts before noise: noise does not make
        a right answer wrong.
        """
        places: dict[int, list[int]] = {}
        for place, text in enumerate(candidates.tolist()):
            places.setdefault(text, []).append(place)
        mask = np.ones((len(rows), len(candidates)), dtype=np.bool_)
        for place, row in enumerate(rows):
            found = self._answers.among(self.ids[self._example(row).query], places.keys())
            mask[place, [one for text in found for one in places[text]]] = False
        np.fill_diagonal(mask, True)
        return torch.from_numpy(mask)

    def further_positives(self, rows: Sequence[int], candidates: Ints, mask: torch.Tensor) -> torch.Tensor:
        """(B, C) bool: of what the false_negative_mask hides, the right answers; the query itself teaches nothing."""
        queries = np.array([self.ids[self._example(row).query] for row in rows])
        return ~mask & torch.from_numpy(queries[:, None] != candidates[None, :])


def _candidates(drawn: Sequence[Drawn]) -> list[str]:
    """The candidates that a batch brings: every positive, then every negative."""
    return [item.positive for item in drawn] + [text for item in drawn for text in item.negatives]


def _scores(example: Example, turn: int, negatives: Sequence[str]) -> tuple[float, tuple[float, ...]]:
    """The teacher's scores of what was drawn."""
    positive = example.positive_scores[turn] if example.positive_scores else float("nan")
    by_text = dict(zip(example.negatives, example.negative_scores, strict=False))
    return positive, tuple(by_text.get(text, float("nan")) for text in negatives)


def _pooled(groups: Sequence[TextGroup]) -> tuple[TextGroup, ...]:
    """One group where all are tokens and nothing else: whoever shares a pass with a text does not change its vector."""
    tokens = [group.prepared.tokens for group in groups if group.prepared.tokens is not None]
    if len(tokens) < len(groups) or any(group.prepared.prompt_length is not None for group in groups):
        return tuple(groups)
    whole = pooled(tokens)
    return (TextGroup(DOCUMENT, 0, Prepared([], whole, whole.lengths, None), np.concatenate([one.places for one in groups])),)
