"""Texts that training and evaluation share: what was learnt by heart proves nothing.

Texts are compared after NFKC, case folding, and with every stretch of white space as one space.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.progress import progress_bar
from ebr.data.text.near_duplicates import jaccard, rarest
from ebr.data.text.normal_form import each_shingle, normal_form
from ebr.data.training.examples import Example
from ebr.data.training.text_table import RecordIds, TextTable

_EXAMPLES_SHOWN = 10
_LONG_S = 3.0
# A shorter text ends other documents by chance; in bytes, as a Chinese character says as much as three letters.
_TITLELESS_BYTES = 48
_LONGEST_TITLE = 300  # characters
_TAIL = _TITLELESS_BYTES // 4  # characters that such a text has at least
_Features = frozenset[str]


@dataclass(frozen=True)
class LeakedText:
    """One shared text. where: 'answered', 'query' or 'near query', after LeakCheck's counts. text: the evaluation's query.

    document: of an answered query the relevant document, of a near one the training text; else empty.
    """

    where: str
    text: str
    document: str


@dataclass(frozen=True)
class LeakCheck:
    """How many texts were compared, and how many of the evaluation's are training texts; find_leaks says what is counted."""

    n_train_texts: int
    n_queries: int
    n_documents: int
    queries: int
    answered: int
    near_queries: int
    documents: int
    relevant: int
    examples: tuple[LeakedText, ...]

    @property
    def is_leak(self) -> bool:
        """Whether training saw a query, or nearly. Shared documents alone are none: searching a known corpus is fair."""
        return self.queries > 0 or self.answered > 0 or self.near_queries > 0


def find_leaks(
    examples: Iterable[Example], dataset: EvaluationSet, texts: TextTable, *, near_duplicate: float = 0.9
) -> LeakCheck:
    """Count the texts of an evaluation set that training has seen.

    texts: a table of those of the examples.
    n_train_texts: texts of the examples, repeats included. queries: evaluation queries that equal any training text.
    answered: those of them that were also trained on as a query with one of their relevant documents as a positive.
    near_queries: those that equal none, but whose words (of Chinese: character bigrams) have a Jaccard similarity of
    near_duplicate or more with a training text's. documents: documents that equal a training text, with their title or
    without. relevant: those of them with a positive grade for any query.
    Raises ValueError when near_duplicate is not above 0 and at most 1.
    """
    if not 0 < near_duplicate <= 1:
        raise ValueError(f"near_duplicate is {near_duplicate}; it must lie above 0 and be at most 1")
    seen = _Training([normal_form(query) for query in dataset.queries], texts, near_duplicate)
    for example in progress_bar(examples, desc="leak check", unit="example", delay=_LONG_S):
        seen.add(example)
    leaked_documents = _leaked_documents(dataset, seen)
    return _leak_check(dataset, seen, leaked_documents)


class _Training:
    """What training has seen, as far as the evaluation queries want to know it."""

    def __init__(self, queries: Sequence[str], texts: TextTable, threshold: float) -> None:
        self.queries = queries
        self.n_texts = 0
        self.ids: set[int] = set()
        self.tails: set[int] = set()
        """Of each text a hash of its last characters: most documents end like none, and need no search for a title."""
        self.positives: dict[int, set[int]] = {texts.forms[query]: set() for query in queries if query in texts.forms}
        """By evaluation query, the ids of what training gave it as positives."""
        self.nearest: dict[int, tuple[float, str]] = {}
        """By place of a query, the most similar training text that reaches the threshold, and how similar it is."""
        self._near = _NearQueries(queries, threshold)
        self._texts = texts
        self._form_of = list(texts.forms)

    def add(self, example: Example) -> None:
        record = RecordIds.of(example, self._texts.ids)
        if record.query in self.positives:
            self.positives[record.query].update(record.positives)
        for text in example.texts():
            self._add_text(text)

    def id_of(self, form: str) -> int | None:
        """The id of a normal form that training has seen; None = it has not."""
        found = self._texts.forms.get(form)
        return found if found in self.ids else None

    def _add_text(self, text: str) -> None:
        self.n_texts += 1
        number = self._texts.ids[text]
        if number in self.ids:
            return
        self.ids.add(number)
        norm = self._form_of[number]
        self.tails.add(hash(norm[-_TAIL:]))
        for place, similarity in self._near.similar_to(norm):
            if similarity > self.nearest.get(place, (0.0, ""))[0]:
                self.nearest[place] = similarity, text


class _NearQueries:
    """Finds the queries that nearly equal a text, by the rarest features of both, as near_duplicates does."""

    def __init__(self, queries: Sequence[str], threshold: float) -> None:
        self._threshold = threshold
        self._features = [frozenset(each_shingle(query)) for query in queries]
        self._frequency = Counter(feature for features in self._features for feature in features)
        self._places_of: defaultdict[str, list[int]] = defaultdict(list)
        for place, features in enumerate(self._features):
            for feature in rarest(features, self._frequency, threshold):
                self._places_of[feature].append(place)
        # Rounded, as in rarest: 9 / 0.9 must not become less than 10.
        self._most = math.floor(round(max(map(len, self._features), default=0) / threshold, 9))

    def similar_to(self, text: str) -> Iterator[tuple[int, float]]:
        """(place, similarity) of every query that reaches the threshold; text is normalised."""
        features = self._few_features(text)
        if not features:
            return
        places = {
            place
            for feature in rarest(features, self._frequency, self._threshold)
            for place in self._places_of.get(feature, ())
        }
        for place in sorted(places):
            similarity = jaccard(features, self._features[place])
            if similarity >= self._threshold:
                yield place, similarity

    def _few_features(self, text: str) -> _Features:
        """The text's features, or none as soon as they are too many for any query: a long passage is not read to its end."""
        found: set[str] = set()
        for feature in each_shingle(text):
            found.add(feature)
            if len(found) > self._most:
                return frozenset()
        return frozenset(found)


def _leaked_documents(dataset: EvaluationSet, seen: _Training) -> dict[str, list[int]]:
    """By id of a document, the ids of the texts as which training has seen a document: as a whole, or without its title."""
    leaked = {}
    pairs = zip(dataset.doc_ids, dataset.documents, strict=True)
    bar = progress_bar(pairs, total=len(dataset.doc_ids), desc="leak check", unit="document", delay=_LONG_S)
    for doc_id, document in bar:
        norm = normal_form(document)
        forms = _forms(norm) if hash(norm[-_TAIL:]) in seen.tails else ()
        found = [number for number in map(seen.id_of, forms) if number is not None]
        if found:
            leaked[doc_id] = found
    return leaked


def _forms(document: str) -> Iterator[str]:
    """The document, and what is left of it without its first words, as the set no longer says which of them are its title."""
    yield document
    start = document.find(" ") + 1
    # A title is no longer than the text that it stands above; the bound keeps long documents from being read once a word.
    while (
        0 < start <= min(len(document) // 2, _LONGEST_TITLE)
        and len(document[start:].encode("utf-8", "surrogatepass")) >= _TITLELESS_BYTES
    ):
        yield document[start:]
        start = document.find(" ", start) + 1


def _leak_check(dataset: EvaluationSet, seen: _Training, leaked_documents: dict[str, list[int]]) -> LeakCheck:
    text_of = dict(zip(dataset.doc_ids, dataset.documents, strict=True)) if leaked_documents else {}
    relevant = {doc_id for grades in dataset.qrels.values() for doc_id, grade in grades.items() if grade > 0}
    answered, asked, near = [], [], []
    for place, (query_id, query) in enumerate(zip(dataset.query_ids, dataset.queries, strict=True)):
        number = seen.id_of(seen.queries[place])
        if number is None:
            if place in seen.nearest:
                near.append(LeakedText("near query", query, seen.nearest[place][1]))
            continue
        answers = [
            doc_id
            for doc_id, grade in dataset.qrels[query_id].items()
            if grade > 0 and not seen.positives[number].isdisjoint(leaked_documents.get(doc_id, ()))
        ]
        if answers:
            answered.append(LeakedText("answered", query, text_of[answers[0]]))
        else:
            asked.append(LeakedText("query", query, ""))
    return LeakCheck(
        n_train_texts=seen.n_texts,
        n_queries=len(dataset.query_ids),
        n_documents=len(dataset.doc_ids),
        queries=len(answered) + len(asked),
        answered=len(answered),
        near_queries=len(near),
        documents=len(leaked_documents),
        relevant=len(relevant & leaked_documents.keys()),
        examples=tuple(islice([*answered, *asked, *near], _EXAMPLES_SHOWN)),
    )


def leak_line(leaks: LeakCheck | None, note: str) -> str:
    """One line on what training and evaluation share; loud where they share what they must not."""
    if leaks is None:
        return f"leak check not made: {note}"
    more = f" ({note})" if note else ""
    if not leaks.is_leak:
        return f"leak check: no evaluation query among {leaks.n_train_texts:,} training texts{more}"
    return (
        f"LEAK: of {leaks.n_queries:,} evaluation queries {leaks.queries:,} stand in the training records "
        f"({leaks.answered:,} with an answer of theirs), {leaks.near_queries:,} more nearly so: the figures are too good{more}"
    )
