"""Hard negatives: what a model takes for a query's answer, less what probably is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ebr.data.progress import progress_bar
from ebr.data.records.documents import Document
from ebr.data.records.texts import QUERIES
from ebr.data.text.normal_form import form_digest, is_near, normal_form, shingles
from ebr.data.training.files import Negative, Record
from ebr.data.vectors.batch import Vectors
from ebr.data.vectors.exact_search import exact_search
from ebr.errors import DataError
from ebr.retrieval.measures.measurement import TextEncoder
from ebr.retrieval.mining.passages import Likenesses, Texts, blocks, distinct, embed_to_disk

if TYPE_CHECKING:
    from ebr.retrieval.mining.teachers import HybridTeacher

_BLOCK = 1024


class Reason(str, Enum):
    """Why a candidate became no negative; the first that applies, in this order."""

    QUERY = "query"
    POSITIVE = "positive"
    NEAR_POSITIVE = "near_positive"
    SCORE = "score"
    ANNOTATED = "annotated"
    SKIPPED = "skipped"
    SURPLUS = "surplus"


@dataclass(frozen=True)
class Rules:
    """What a negative may be, how many a record gets, and how far is looked for them: the options of MiningConfig."""

    num_negatives: int = 4
    top_k: int = 100
    skip_top: int = 0
    max_relative_score: float = 0.95
    near_duplicate: float = 0.9
    keep_negatives: bool = True

    def limit(self, positive_scores: Sequence[float]) -> float:
        """The highest score that a negative may have; it lies below the lowest positive's, whatever the sign of that one."""
        lowest = min(positive_scores)
        return lowest - (1 - self.max_relative_score) * abs(lowest)


@dataclass(frozen=True)
class LeftOut:
    """A candidate that became no negative."""

    text: str
    score: float
    rank: int
    reason: Reason


@dataclass(frozen=True)
class Mined:
    """What one record got."""

    positive_scores: tuple[float, ...]
    limit: float
    kept: tuple[Negative, ...]
    """Negatives that the record had before."""
    mined: tuple[Negative, ...]
    """New ones, best first."""
    left_out: tuple[LeftOut, ...]
    """By rank; with the mined ones, every candidate that was looked at."""
    contradictions: tuple[str, ...]
    """Negatives that the record had before and that are positives of its query: no longer kept."""
    teacher_scores: tuple[float, ...] | None = None
    """A teacher's scores of the positives, then of the negatives; None = the cosines of the model that mined are the scores."""

    @property
    def negatives(self) -> tuple[Negative, ...]:
        """All of the record's: those it had before, then the new ones."""
        return self.kept + self.mined

    def as_taught(self) -> tuple[tuple[float, ...], tuple[Negative, ...]]:
        """The scores of the positives, and the negatives with theirs: the teacher's, where there is one."""
        if self.teacher_scores is None:
            return self.positive_scores, self.negatives
        n_positives = len(self.positive_scores)
        scored = zip(self.negatives, self.teacher_scores[n_positives:], strict=True)
        return self.teacher_scores[:n_positives], tuple(replace(one, score=score) for one, score in scored)


def mine(
    records: Sequence[Record],
    candidates: Iterable[Document] | None,
    encode: TextEncoder,
    rules: Rules,
    *,
    scratch: Path,
    block: int = _BLOCK,
    n_candidates: int | None = None,
    by_words_too: bool = False,
    chain_of: Mapping[str, int] | None = None,
) -> Generator[Mined, None, None]:
    """What each record gets, in the order of the records; it depends neither on that order nor on `block`.

    candidates: what to choose from, read once; None = every positive of the records. Texts of one normal form count once.
    scratch: a folder on whose disk the candidates' texts and float32 vectors lie, in files without a name; `block` of them, and
    the search results of `block` records, are in memory at once. n_candidates: how many there may be, for the bar.
    chain_of: by normal form, the chain of a text of the records, where a chain has one answer: a candidate in that of the query
    is a positive too. None = only what the records say themselves.
    by_words_too: also have the texts scored by a HybridTeacher as deep as top_k; the candidates' words are then in memory.

    A query's positives are those of every record with the same normal form of the query. A document is one of them, and one of
    the record's negatives, also when only its title, or its text without the title, stands in the record. The candidates of a
    record are its query's top_k by cosine, equal scores in their order; Reason says which are left out. A document is the query
    likewise, and where it has the id that the record gives its query. The limit on the score is the record's own: of several
    positives the lowest counts. Raises DataError without a candidate, ModelError when a vector
    is not finite.
    """
    if candidates is None:
        candidates = [Document("", text) for text in sorted({text.strip() for one in records for text in one.positives})]
        n_candidates = len(candidates)
    own = (text for record in records for text in record.positives + (record.negatives if rules.keep_negatives else ()))
    ids_of = _query_ids(records)
    with closing(_Passages(candidates, own, ids_of, encode, scratch, block, n_candidates)) as passages:
        if not len(passages.texts):
            raise DataError("there are no candidates to choose negatives from; give a corpus with texts")
        teacher = passages.hybrid_teacher(rules.top_k) if by_words_too else None
        judge = _Judge(records, ids_of, passages, rules, teacher, chain_of or {})
        queries = {query: row for row, query in enumerate(dict.fromkeys(record.query for record in records))}
        vectors = embed_to_disk(queries, encode.encode_queries, scratch, block=block, desc="queries", total=len(queries))
        with progress_bar(total=len(records), desc="mine", unit="record") as bar:
            for some in blocks(records, block):
                left = Counter(record.query for record in some)
                scores, rows = exact_search(vectors[[queries[query] for query in left]], passages.candidates, rules.top_k)
                place_of = {query: place for place, query in enumerate(left)}
                judged: dict[str, _Query] = {}
                for record in some:
                    query = record.query
                    if query not in judged:
                        judged[query] = judge.judged(query, scores[place_of[query]], rows[place_of[query]])
                    yield judge.choose(record, vectors[queries[query]], judged[query])
                    left[query] -= 1
                    if not left[query]:
                        del judged[query]  # top_k texts, which may be long
                bar.update(len(some))


def _query_ids(records: Sequence[Record]) -> dict[str, set[str]]:
    """By the normal form of each query, the ids that its records give it."""
    ids_of: dict[str, set[str]] = {}
    for record in records:
        ids = ids_of.setdefault(normal_form(record.query), set())
        if query_id := QUERIES.id_of(record.rest):
            ids.add(query_id)
    return ids_of


class _Passages:
    """The distinct candidates, texts and vectors, and the vectors of those texts of the records that are not among them."""

    def __init__(
        self,
        candidates: Iterable[Document],
        own: Iterable[str],
        ids_of: Mapping[str, AbstractSet[str]],
        encode: TextEncoder,
        scratch: Path,
        block: int,
        n: int | None,
    ) -> None:
        self.texts = Texts(scratch)
        wanted = dict.fromkeys(text.strip() for text in own)
        self._row_of: dict[str, int] = {}
        self._parts: dict[str, set[str]] = {}
        """By a document's normal form, those of its title and its text, as far as the records hold them."""
        self._ids: dict[str, set[str]] = {}
        """Likewise its ids, as far as they are queries'."""
        encoded = encode.encode_documents
        stored = self._stored(self._wholes(candidates, wanted, ids_of), wanted)
        self.candidates = embed_to_disk(stored, encoded, scratch, block=block, desc="candidates", total=n)
        # Only now is it known which texts of the records are not among the candidates.
        others = [text for text in wanted if text not in self._row_of]
        self._row_of |= {text: len(self.candidates) + row for row, text in enumerate(others)}
        self._other_texts = others
        self._others = embed_to_disk(others, encoded, scratch, block=block, desc="positives", total=len(others))

    def _wholes(
        self, candidates: Iterable[Document], wanted: Iterable[str], ids_of: Mapping[str, AbstractSet[str]]
    ) -> Iterator[str]:
        digests = {form_digest(normal_form(text)) for text in wanted} | set(map(form_digest, ids_of))
        query_ids = frozenset().union(*ids_of.values())
        for document in candidates:
            whole = document.whole
            if document.title:
                forms = {normal_form(document.title), normal_form(document.text)}
                if named := {form for form in forms if form_digest(form) in digests}:
                    self._parts.setdefault(normal_form(whole), set()).update(named)
            if document.id in query_ids:
                self._ids.setdefault(normal_form(whole), set()).add(document.id)
            yield whole

    def _stored(self, candidates: Iterable[str], wanted: Container[str]) -> Iterator[str]:
        for text in distinct(candidates):
            if text in wanted:
                self._row_of[text] = len(self.texts)
            self.texts.append(text)
            yield text

    def hybrid_teacher(self, depth: int) -> HybridTeacher:
        """A teacher that ranks among these candidates, and knows the other texts by the rows behind them."""
        from ebr.retrieval.mining.teachers import HybridTeacher

        texts = (self.texts[row] for row in range(len(self.texts)))
        return HybridTeacher(chain(texts, self._other_texts), len(self.texts), depth)

    def row_of(self, text: str) -> int:
        """Where a text of the records stands: among the candidates, or behind them."""
        return self._row_of[text.strip()]

    def score(self, query: Vectors, text: str) -> float:
        """Cosine of a query's vector and a text of the records, in the same arithmetic as exact_search's."""
        row = self.row_of(text)
        n = len(self.candidates)
        vector = self.candidates[row] if row < n else self._others[row - n]
        return float(np.float32(query.astype(np.float64) @ vector.astype(np.float64)))

    def is_among(self, form: str, forms: AbstractSet[str]) -> bool:
        """Whether the text of a normal form is one of the forms, or a document whose title or text is."""
        return form in forms or not self._parts.get(form, set()).isdisjoint(forms)

    def has_id_among(self, form: str, ids: AbstractSet[str]) -> bool:
        """Whether the text of a normal form is a document under one of the ids."""
        return not self._ids.get(form, set()).isdisjoint(ids)

    def close(self) -> None:
        """Let go of the texts' file."""
        self.texts.close()


@dataclass(frozen=True)
class _Hit:
    """A candidate of a query; reason: what speaks against it in every record of the query."""

    text: str
    form: str
    row: int
    score: float
    rank: int
    reason: Reason | None


@dataclass(frozen=True)
class _Query:
    """What all records of a query share: its candidates by rank, and the normal forms of its positives."""

    hits: list[_Hit]
    right: frozenset[str]
    scores: npt.NDArray[np.float32]
    """Of the hits."""


class _Judge:
    """Says of every candidate of a record why it is no negative, or that it is one."""

    def __init__(
        self,
        records: Sequence[Record],
        ids_of: Mapping[str, AbstractSet[str]],
        passages: _Passages,
        rules: Rules,
        teacher: HybridTeacher | None,
        chain_of: Mapping[str, int],
    ) -> None:
        self._chain_of = chain_of
        self._ids_of, self._passages, self._rules, self._teacher = ids_of, passages, rules, teacher
        # Texts only: the shingles of all positives would take many times their memory.
        self._positives: dict[str, dict[str, None]] = {}
        for record in records:
            self._positives.setdefault(normal_form(record.query), {}).update(dict.fromkeys(record.positives))
        self._likenesses = Likenesses(passages.texts)

    def judged(self, query: str, scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> _Query:
        """The candidates of a query, judged as far as they are the same for all of its records. scores, rows: (k,) each."""
        form, words, hits = normal_form(query), shingles(query), []
        right = frozenset(map(normal_form, self._positives[form]))
        right_words = list(map(shingles, self._positives[form]))
        for rank, (score, row) in enumerate(zip(scores.tolist(), rows.tolist(), strict=True), start=1):
            text, its_form, its_words = self._likenesses[row]
            reason = None
            if self._passages.is_among(its_form, {form}) or self._is_near(its_words, [words]):
                reason = Reason.QUERY
            elif self._passages.is_among(its_form, right) or self._are_chained(form, its_form):
                reason = Reason.POSITIVE
            elif self._is_near(its_words, right_words):
                reason = Reason.NEAR_POSITIVE
            elif self._passages.has_id_among(its_form, self._ids_of[form]):
                reason = Reason.QUERY
            hits.append(_Hit(text, its_form, row, score, rank, reason))
        return _Query(hits, right, scores)

    def _are_chained(self, form: str, other: str) -> bool:
        """Whether two texts, by their normal forms, have one answer because records lead from one to the other."""
        chain = self._chain_of.get(form)
        return chain is not None and chain == self._chain_of.get(other)

    def _is_near(self, words: frozenset[str], others: Iterable[frozenset[str]]) -> bool:
        return any(is_near(words, other, self._rules.near_duplicate) for other in others)

    def choose(self, record: Record, vector: Vectors, query: _Query) -> Mined:
        """What a record gets. vector: (D,) of its query."""
        rules = self._rules
        positive_scores = tuple(self._passages.score(vector, text) for text in record.positives)
        limit = rules.limit(positive_scores)
        kept, contradictions = self._kept(record, vector, query)
        annotated = {normal_form(one.text) for one in kept}
        mined: list[Negative] = []
        mined_rows: list[int] = []
        left_out: list[LeftOut] = []
        for hit in query.hits:
            reason = hit.reason or self._own_reason(hit, limit, annotated, len(mined))
            if reason is None:
                mined.append(Negative(hit.text, hit.score, hit.rank))
                mined_rows.append(hit.row)
            else:
                left_out.append(LeftOut(hit.text, hit.score, hit.rank, reason))
        taught = None
        if self._teacher is not None:
            own = map(self._passages.row_of, (*record.positives, *(one.text for one in kept)))
            cosines = [*positive_scores, *(one.score for one in (*kept, *mined))]
            taught = self._teacher.scores(record.query, [*own, *mined_rows], cosines, query.scores)
        return Mined(positive_scores, limit, kept, tuple(mined), tuple(left_out), contradictions, taught)

    def _own_reason(self, hit: _Hit, limit: float, annotated: set[str], n_mined: int) -> Reason | None:
        """What speaks against a candidate in one record; annotated: the normal forms of its own negatives."""
        if hit.score > limit:
            return Reason.SCORE
        if self._passages.is_among(hit.form, annotated):
            return Reason.ANNOTATED
        if hit.rank <= self._rules.skip_top:
            return Reason.SKIPPED
        return Reason.SURPLUS if n_mined == self._rules.num_negatives else None

    def _kept(self, record: Record, vector: Vectors, query: _Query) -> tuple[tuple[Negative, ...], tuple[str, ...]]:
        """The record's own negatives that are kept, and those that are positives of its query."""
        if not self._rules.keep_negatives:
            return (), ()
        rank_of = {hit.form: hit.rank for hit in query.hits}
        form_of = {text: normal_form(text) for text in record.negatives}
        contradictions = {text for text, form in form_of.items() if self._passages.is_among(form, query.right)}
        wrong = [text for text in record.negatives if text not in contradictions]
        kept = [Negative(text, self._passages.score(vector, text), rank_of.get(form_of[text])) for text in wrong]
        return tuple(kept), tuple(text for text in record.negatives if text in contradictions)
