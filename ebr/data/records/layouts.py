"""Where a training record has its query, its positives and its negatives: our two spellings, any mix of them, and others'.

The others are sentence-transformers (negative_1 … negative_n, sentence1 and sentence2, scores), Tevatron (positive_passages)
and ms-swift (messages; response and rejected_response). Keys alone decide, once for each set of keys: a file of millions of
records has few. A key that may hold texts of a pair and is none of these is refused, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from ebr.data.records.fields import read_scores, read_text, read_texts
from ebr.data.records.values import refuse_judged, text_of_messages, texts_of_conversations, texts_of_passages
from ebr.errors import DataError

Scores = tuple[float, ...]

_NEEDED = "every record needs at least one positive text"
_KEYS_SHOWN = 5


class RecordFormat(str, Enum):
    """How a record of ours spells its query, its positives and its negatives."""

    PAIRS = "pairs"
    TRIPLETS = "triplets"

    @property
    def keys(self) -> tuple[str, str, str]:
        """Where the query, the positives and the negatives stand."""
        return ("anchor", "positive", "negative") if self is RecordFormat.PAIRS else ("query", "pos", "neg")

    @property
    def score_keys(self) -> tuple[str, str, str]:
        """Where the positives' scores, the negatives' and the negatives' ranks stand; FlagEmbedding's names for triplets."""
        if self is RecordFormat.PAIRS:
            return "positive_score", "negative_scores", "negative_ranks"
        return "pos_scores", "neg_scores", "neg_ranks"


# ---------------------------------------------------------------- known keys

_PAIRS, _TRIPLETS = RecordFormat.PAIRS, RecordFormat.TRIPLETS
_Unwrap = Callable[[str, Any], Any]
_Table = Mapping[str, tuple[RecordFormat, _Unwrap | None]]

# By key: the format of ours that it is nearest to, and what takes the texts out of the value where they are not the value.
_QUERIES: _Table = {
    "anchor": (_PAIRS, None),
    "query": (_TRIPLETS, None),
    "sentence1": (_PAIRS, None),
    "messages": (_PAIRS, text_of_messages),
}
_POSITIVES: _Table = {
    "positive": (_PAIRS, None),
    "pos": (_TRIPLETS, None),
    "sentence2": (_PAIRS, None),
    "response": (_PAIRS, None),
    "positive_messages": (_PAIRS, texts_of_conversations),
    "positive_passages": (_TRIPLETS, texts_of_passages),
}
_NEGATIVES: _Table = {
    "negative": (_PAIRS, None),
    "neg": (_TRIPLETS, None),
    "rejected_response": (_PAIRS, None),
    "negative_messages": (_PAIRS, texts_of_conversations),
    "negative_passages": (_TRIPLETS, texts_of_passages),
}
_NUMBERED = re.compile(r"neg(?:ative)?_?([0-9]{1,9})")
# What to ask for beside a key that is not of ours.
_PARTNERS = {
    "sentence1": "sentence2",
    "sentence2": "sentence1",
    "messages": "positive_messages",
    "positive_messages": "messages",
    "response": "query",
}
# Their tools write them for pairs that do not belong together too, with a label.
_NOT_SURELY_POSITIVE = {"sentence2", "response", "positive_messages"}

_POSITIVE_SCORES = ("positive_score", "positive_scores", "pos_score", "pos_scores")
_NEGATIVE_SCORES = ("negative_score", "negative_scores", "neg_score", "neg_scores")
# That of the positive, then those of the negatives, as sentence-transformers mines them.
_ALL_SCORES = "scores"
_RANKS = ("positive_ranks", "pos_ranks", "negative_ranks", "neg_ranks")
_JUDGEMENTS = ("label", "labels", "gold_label", "score", "similarity", "similarity_score", "relatedness_score")
_PICTURES = ("images", "videos", "audios")

SCORE_KEYS = frozenset({*_POSITIVE_SCORES, *_NEGATIVE_SCORES, _ALL_SCORES, *_RANKS, *_JUDGEMENTS})
"""Keys whose values are numbers, or lists of them."""
TEXT_KEYS = frozenset({*_QUERIES, *_POSITIVES, *_NEGATIVES})
"""Keys whose values are texts, or lists of them, beside the numbered ones: see is_text_key."""

# Facts about the texts of another key: FlagEmbedding's pos_id and neg_id.
_BESIDE = re.compile(r"(?:pos|neg)(?:itive|ative)?s?(?:_[0-9]+)?_(?:scores?|ranks?|(?:doc(?:ument)?_?|p)?ids?)(?:_.*)?")
_LIKE_POSITIVES = re.compile(r"positive|(?:^|_)pos(?:s|es|[0-9]+|_.*)?$")
# Of what the keys of RecordFormat.keys are called by mistake, the place there.
_OTHER_NAMES = {"anchors": 0, "queries": 0, "pos": 1, "positive": 1, "positives": 1}
_OTHER_NAMES |= {"neg": 2, "negs": 2, "negative": 2, "negatives": 2}


def is_text_key(key: str) -> bool:
    """Whether the value of a key is texts that are trained on."""
    return key in TEXT_KEYS or _NUMBERED.fullmatch(key) is not None


# ---------------------------------------------------------------- layouts


@dataclass(frozen=True)
class _Field:
    """A key that holds texts; unwrap: takes them out of its value. name: what errors call it."""

    key: str
    unwrap: _Unwrap | None
    name: str

    def value(self, record: Mapping[str, Any]) -> Any:  # noqa: ANN401
        value = record[self.key]
        return value if self.unwrap is None else self.unwrap(self.name, value)


@dataclass(frozen=True)
class Layout:
    """Where the records with certain keys have what training reads; format: that of ours which they are nearest to.

    negatives: one field, several that are numbered, or none. rest: the keys that mean nothing to training.
    """

    format: RecordFormat
    query: _Field
    positives: _Field
    negatives: tuple[_Field, ...]
    positive_scores: str | None
    negative_scores: str | None
    all_scores: str | None
    judgements: tuple[str, ...]
    pictures: tuple[str, ...]
    rest: tuple[str, ...]

    def check(self, record: Mapping[str, Any]) -> None:
        """Raise DataError for texts that do not belong together, as a label or a score says, and for pictures."""
        for key in self.judgements:
            refuse_judged(key, record[key], is_plain=self.positives.key not in _NOT_SURELY_POSITIVE)
        for key in self.pictures:
            if record[key]:
                raise DataError(f"has {key!r}, and only texts are read; leave such records out")

    def read_query(self, record: Mapping[str, Any]) -> str:
        """The query. Raises DataError."""
        return read_text(self.query.name, self.query.value(record))

    def read_positives(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The positives, at least one. Raises DataError."""
        name, value = self.positives.name, self.positives.value(record)
        if self.format is RecordFormat.PAIRS and not isinstance(value, list):
            return (read_text(name, value),)
        positives = read_texts(name, value, empty=_NEEDED)
        if not positives:
            raise DataError(f"{name} is empty; {_NEEDED}")
        if self.all_scores and len(positives) > 1 and not self.negatives:
            raise DataError(
                f"has 'scores' of {len(positives)} texts in {name}, negatives among them if a labeled list was mined; "
                f"give those as {self.format.keys[2]!r}, or leave 'scores' out"
            )
        return positives

    def read_negatives(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The negatives, those of numbered keys in the order of their numbers. Raises DataError."""
        mend = "leave it out or give a text"
        if len(self.negatives) == 1:
            field = self.negatives[0]
            return read_texts(field.name, field.value(record), empty=mend)
        return tuple(read_text(field.name, field.value(record), empty=mend) for field in self.negatives)

    def read_scores(self, record: Mapping[str, Any], n_positives: int, n_negatives: int) -> tuple[Scores, Scores]:
        """A teacher's score of each positive and of each negative, or none. Raises DataError."""
        if self.all_scores:
            scores = read_scores(f"'{self.all_scores}'", record[self.all_scores], n_positives + n_negatives)
            return scores[:n_positives], scores[n_positives:]
        of_positives, of_negatives = self.positive_scores, self.negative_scores
        return (
            read_scores(f"'{of_positives}'", record[of_positives], n_positives) if of_positives else (),
            read_scores(f"'{of_negatives}'", record[of_negatives], n_negatives) if of_negatives else (),
        )


def layout_of(record: Mapping[str, Any]) -> Layout:
    """Where the texts of a record stand; a key whose value is null is as good as not there.

    Raises DataError for a key that may hold texts and is none of those known (it names the right one), for two keys of one
    meaning, and when there is no query or no positive (it names the keys that there are).
    """
    keys = tuple(record)
    if None in record.values():
        keys = tuple(key for key in keys if record[key] is not None)
    return _layout_of(keys)


@lru_cache(maxsize=1024)
def _layout_of(keys: tuple[str, ...]) -> Layout:
    query, positives = _only_one(keys, _QUERIES), _only_one(keys, _POSITIVES)
    form = _POSITIVES[positives][0] if positives else _QUERIES[query][0] if query else RecordFormat.PAIRS
    _refuse_misspelt(keys, form)
    if query is None or positives is None:
        raise DataError(_what_is_missing(keys, query, positives, form))
    negatives = _negative_keys(keys)
    positive_scores, negative_scores, all_scores = _score_keys(keys)
    read = {query, positives, *negatives, *_POSITIVE_SCORES, *_NEGATIVE_SCORES, _ALL_SCORES, *_RANKS, "labels"}
    return Layout(
        format=form,
        query=_Field(query, _QUERIES[query][1], f"'{query}'"),
        positives=_Field(positives, _POSITIVES[positives][1], f"'{positives}'"),
        negatives=tuple(_Field(key, _NEGATIVES[key][1] if key in _NEGATIVES else None, f"'{key}'") for key in negatives),
        positive_scores=positive_scores,
        negative_scores=negative_scores,
        all_scores=all_scores,
        judgements=tuple(key for key in keys if key in _JUDGEMENTS),
        pictures=tuple(key for key in keys if key in _PICTURES),
        rest=tuple(key for key in keys if key not in read),
    )


def _only_one(keys: Collection[str], known: Collection[str]) -> str | None:
    """The one key that is known, if any is. Raises DataError for two: one of them would be lost."""
    found = [key for key in known if key in keys]
    if len(found) > 1:
        raise _both(*found[:2])
    return found[0] if found else None


def _both(key: str, other: str) -> DataError:
    return DataError(f"has both {key!r} and {other!r}, which mean the same; keep one of them")


def _negative_keys(keys: Collection[str]) -> list[str]:
    """The key of the negatives, or the numbered keys in their order, or none. Raises DataError for both."""
    one = _only_one(keys, _NEGATIVES)
    numbered = sorted((int(match[1]), key) for key in keys if (match := _NUMBERED.fullmatch(key)))
    if one and numbered:
        raise _both(one, numbered[0][1])
    return [one] if one else [key for _, key in numbered]


def _score_keys(keys: Collection[str]) -> tuple[str | None, str | None, str | None]:
    """The keys of the positives' scores, of the negatives', and of both in one list."""
    of_positives, of_negatives = _only_one(keys, _POSITIVE_SCORES), _only_one(keys, _NEGATIVE_SCORES)
    of_all = _ALL_SCORES if _ALL_SCORES in keys else None
    if of_all and (of_positives or of_negatives):
        raise _both(of_all, of_positives or of_negatives or "")
    return of_positives, of_negatives, of_all


def _what_is_missing(keys: Collection[str], query: str | None, positives: str | None, form: RecordFormat) -> str:
    there = ", ".join(map(repr, list(keys)[:_KEYS_SHOWN])) or "nothing"
    if positives:
        missing = f"{_PARTNERS.get(positives, form.keys[0])!r} is missing; give a text"
    elif query:
        needed = "give a text" if form is RecordFormat.PAIRS else _NEEDED
        missing = f"{_PARTNERS.get(query, form.keys[1])!r} is missing; {needed}"
    else:
        pairs, triplets = (" and ".join(map(repr, one.keys[:2])) for one in RecordFormat)
        return f"has {there}; a record has {pairs}, or {triplets}"
    return missing if TEXT_KEYS.issuperset(keys) else f"{missing}; the record has {there}"


# ---------------------------------------------------------------- keys that are nearly known


def _refuse_misspelt(keys: Collection[str], form: RecordFormat) -> None:
    """To pass over a key that is wrong by a letter would be to lose its texts. Raises DataError."""
    for key in keys:
        if not is_text_key(key) and key not in SCORE_KEYS and (right := _right_key(key.strip().lower(), form)):
            raise DataError(f"has {key!r}; the field is {right}")


def _right_key(plain: str, form: RecordFormat) -> str | None:
    """The key that was meant by one in lower case, in quotes, and what else may be done; None for one that means nothing."""
    if plain in _OTHER_NAMES:
        return repr(form.keys[_OTHER_NAMES[plain]])
    if plain in TEXT_KEYS or plain in SCORE_KEYS:
        return repr(plain)
    if _BESIDE.fullmatch(plain):
        return None
    place = 2 if "neg" in plain else 1 if _LIKE_POSITIVES.search(plain) else None
    return None if place is None else f"{form.keys[place]!r}; rename it if it is something else"
