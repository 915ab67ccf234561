"""Which texts are right answers to which queries, and which records have nothing to tell their positive from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from ebr.data.text.near_duplicates import Groups
from ebr.data.training.examples import Example
from ebr.data.training.text_table import RecordIds, TextTable

SameAnswer = Literal["text", "chain"]

_BOTH_ROLES = 0.5
"""Share of the texts that are both a query and a positive from which records are taken to join texts of one kind."""
_MOST_IN_A_CHAIN = 0.2
"""Share of all texts beyond which a chain shows no answer but that everything hangs together."""
_MOST_CONTRADICTED = 0.01
"""Share of the records' negatives that may stand in the chain of their query: more, and chains are not what was meant."""


@dataclass(frozen=True)
class Answers:
    """By query, the texts that are right for it in whatever batch they meet it, the query itself among them, all by their ids.

    exceptions: by query, those of them that a record calls its negatives, and none its positives.
    """

    right: Mapping[int, Set[int]]
    exceptions: Mapping[int, Set[int]]

    def has(self, query: int, text: int) -> bool:
        """Whether the text is right for the query."""
        return text in self.right[query] and text not in self.exceptions.get(query, ())

    def among(self, query: int, texts: Set[int]) -> Set[int]:
        """Those of the texts that are right for the query."""
        right = self.right[query]
        # Whichever is fewer is gone through: a large batch has millions of pairs, a label as a query a million answers.
        found = right & texts if len(right) < len(texts) else texts & right
        return found - self.exceptions[query] if query in self.exceptions else found


def find_answers(records: Sequence[RecordIds], same_answer: SameAnswer) -> Answers:
    """By text: the positives of every record with the query. By chain: every text of its chain, see chain_of_each."""
    direct = right_answers(records)
    if same_answer == "text":
        return Answers({query: {query, *texts} for query, texts in direct.items()}, {})
    chain_of = chain_of_each(records)
    members: dict[int, set[int]] = {}
    for text, chain in chain_of.items():
        members.setdefault(chain, set()).add(text)
    exceptions: dict[int, set[int]] = {}
    for one in records:
        here = members[chain_of[one.query]]
        # What somebody wrote down outweighs what follows from a chain.
        if called_wrong := {text for text in one.negatives if text in here} - direct[one.query] - {one.query}:
            exceptions.setdefault(one.query, set()).update(called_wrong)
    return Answers({query: members[chain_of[query]] for query in direct}, exceptions)


def right_answers(records: Iterable[RecordIds]) -> dict[int, set[int]]:
    """By query, the positives of every record with it: right in whatever batch they meet it."""
    right: dict[int, set[int]] = {}
    for one in records:
        right.setdefault(one.query, set()).update(one.positives)
    return right


def chain_of_each(records: Iterable[RecordIds]) -> dict[int, int]:
    """By text, query or positive, its chain: two texts are in one where records lead from one to the other.

    A chain is told by the smallest of its ids.
    """
    pairs = [(one.query, positive) for one in records for positive in one.positives]
    together = Groups(1 + max((max(pair) for pair in pairs), default=-1))
    for query, positive in pairs:
        together.join(query, positive)
    return {text: together.root(text) for pair in pairs for text in pair}


@dataclass(frozen=True)
class ChainFigures:
    """n_texts: queries and positives; largest: texts of the largest chain; both_roles: texts that are query and positive.

    A pair that is there in both directions says nothing of roles: it does not count for both_roles. contradicted: of
    n_negatives, those that stand in the chain of their query.
    """

    n_texts: int
    n_chains: int
    largest: int
    both_roles: int
    contradicted: int
    n_negatives: int
    meeting: float
    """Chance that a query meets another positive of its chain in a batch."""

    @property
    def shows(self) -> SameAnswer:
        """What the records show: that all texts of a chain have one answer, or nothing beyond equal texts.

        Where most texts are query here and positive there, records join like with like (two questions of one intent, two
        wordings of one thing), and like of like is like. Where queries and documents are of two kinds it is not: a product
        answers two questions that have nothing in common.
        """
        alike = self.both_roles >= _BOTH_ROLES * self.n_texts and self.largest <= _MOST_IN_A_CHAIN * self.n_texts
        agreed = self.contradicted <= _MOST_CONTRADICTED * self.n_negatives
        return "chain" if alike and agreed and self.n_chains > 1 else "text"

    def answer(self, wanted: SameAnswer | Literal["auto"]) -> SameAnswer:
        """What the option same_answer comes to."""
        return self.shows if wanted == "auto" else wanted


def count_chains(records: Sequence[RecordIds], batch_size: int) -> ChainFigures:
    """The figures of the records' chains, in random batches of that size."""
    chain_of = chain_of_each(records)
    sizes = Counter(chain_of.values())
    rows = Counter(chain_of[one.query] for one in records)
    n_others = min(batch_size, len(records)) - 1
    met = sum(count * (1 - (1 - (count - 1) / max(1, len(records) - 1)) ** n_others) for count in rows.values())
    pairs = {(one.query, positive) for one in records for positive in one.positives}
    one_way = [(query, positive) for query, positive in pairs if (positive, query) not in pairs]
    queries, positives = {query for query, _ in one_way}, {positive for _, positive in one_way}
    return ChainFigures(
        n_texts=len(chain_of),
        n_chains=len(sizes),
        largest=max(sizes.values(), default=0),
        both_roles=len(queries & positives),
        contradicted=sum(chain_of.get(text) == chain_of[one.query] for one in records for text in one.negatives),
        n_negatives=sum(len(one.negatives) for one in records),
        meeting=met / max(1, len(records)),
    )


def is_taught_by_negatives(record: RecordIds, right: Mapping[int, set[int]]) -> bool:
    """Whether one of its negatives is wrong: no right answer, nor the query itself; right: see right_answers."""
    answers = right[record.query]
    return any(text not in answers and text != record.query for text in record.negatives)


def rows_without_negatives(examples: Sequence[Example], texts: TextTable, batch_size: int, neg_nums: int) -> list[int]:
    """Indices of the examples that teach nothing: alone in their batch, with no negative to tell the positive from.

    neg_nums: negatives drawn a record. A negative that is, by its text, a positive of any record with the same query does
    not count: Collator masks it. In a batch of two or more the others' positives are negatives, and no row is lonely.
    """
    if batch_size > 1:
        return []
    records = texts.records(examples)
    right = right_answers(records)
    return [row for row, one in enumerate(records) if neg_nums == 0 or not is_taught_by_negatives(one, right)]
