"""Right answers, by what the records say and by what a chain of records leads to."""

from __future__ import annotations

import numpy as np
import pytest

from ebr.data.training.answers import chain_of_each, count_chains, find_answers
from ebr.data.training.text_table import RecordIds


def records(*triples):
    return [RecordIds(query, tuple(positives), tuple(negatives)) for query, positives, negatives in triples]


# Two intents, whose questions are query here and positive there: 0-1-2 and 5-6-7-8; 9 is nobody's answer.
INTENTS = records((0, [1], [6]), (1, [2], [9]), (5, [6], []), (7, [6, 8], [2]))
# A product (3) that answers two questions which have nothing in common.
PRODUCTS = records((0, [3, 4], []), (1, [3, 5], [4]), (2, [6], []))


def test_a_chain_is_all_that_records_lead_to():
    assert chain_of_each(INTENTS) == {0: 0, 1: 0, 2: 0, 5: 5, 6: 5, 7: 5, 8: 5}
    assert chain_of_each([]) == {}


def test_by_text_only_what_is_written_down_is_right():
    answers = find_answers(INTENTS, "text")
    everything = set(range(10))
    assert {query: answers.among(query, everything) for query in (0, 1, 5, 7)} == {
        0: {0, 1}, 1: {1, 2}, 5: {5, 6}, 7: {6, 7, 8},
    }  # fmt: skip


def test_by_chain_everything_of_the_chain_is_right():
    answers = find_answers(INTENTS, "chain")
    everything = set(range(10))
    assert {query: answers.among(query, everything) for query in (0, 1, 5, 7)} == {
        0: {0, 1, 2}, 1: {0, 1, 2}, 5: {5, 6, 7, 8}, 7: {5, 6, 7, 8},
    }  # fmt: skip
    assert answers.among(0, {9, 2}) == {2}


def test_what_a_record_calls_wrong_outweighs_the_chain_for_that_query_alone():
    answers = find_answers(PRODUCTS, "chain")
    assert answers.among(1, {3, 4, 5}) == {3, 5}, "4 is a negative of query 1, though both hang together by 3"
    assert answers.among(0, {3, 4, 5}) == {3, 4, 5}
    assert not answers.has(1, 4)
    assert answers.has(0, 5)


def test_what_one_record_of_a_query_calls_right_no_other_makes_wrong():
    told = records((0, [1], []), (0, [2], [1]))
    for same_answer in ("text", "chain"):
        assert find_answers(told, same_answer).among(0, {1, 2}) == {1, 2}


def test_the_side_that_is_gone_through_does_not_matter():
    answers = find_answers(INTENTS, "chain")
    for wanted in ({2}, set(range(100))):
        assert answers.among(0, wanted) == wanted & {0, 1, 2}


def test_figures_of_chains_by_hand():
    found = count_chains(INTENTS, 2)
    # Queries 0, 1, 5, 7; positives 1, 2, 6, 8: only 1 is both.
    assert (found.n_texts, found.n_chains, found.largest, found.both_roles, found.contradicted) == (7, 2, 4, 1, 0)
    # Two records a chain: of three others that may stand beside a record, one is of its chain.
    assert found.meeting == pytest.approx(1 / 3)
    assert count_chains(PRODUCTS, 2).contradicted == 1
    assert count_chains([], 4).meeting == 0


def test_chances_of_meeting_are_those_that_are_drawn():
    rng = np.random.default_rng(0)
    many = records(*((row, [1000 + row // 4], []) for row in range(40)))
    wanted = count_chains(many, 8).meeting
    batches = [rng.permutation(40)[:8] // 4 for _ in range(4000)]
    met = np.mean([[np.sum(batch == one) > 1 for one in batch] for batch in batches])
    assert wanted == pytest.approx(met, abs=0.03)


def ring(start, size):
    """Questions of one intent, each the positive of the one before."""
    return [(start + place, [start + (place + 1) % size], []) for place in range(size)]


def both_ways(told):
    return [*told, *records(*((positive, [one.query], []) for one in told for positive in one.positives))]


def test_pairs_written_in_both_directions_say_nothing_of_roles():
    two_kinds = records(*((row, [100 + row // 2], []) for row in range(40)))
    mirrored = both_ways(two_kinds)
    assert count_chains(mirrored, 8).both_roles == 0
    assert count_chains(mirrored, 8).answer("auto") == "text"


def test_negatives_within_chains_speak_against_them():
    intents = [record for start in range(0, 60, 6) for record in ring(start, 6)]
    against = records(*((query, positives, [positives[0] // 6 * 6 + (query + 3) % 6]) for query, positives, _ in intents))
    figures = count_chains(against, 8)
    assert (figures.contradicted, figures.n_negatives) == (60, 60)
    assert figures.answer("auto") == "text"


def test_auto_takes_chains_where_records_join_like_with_like():
    intents = records(*(record for start in range(0, 60, 6) for record in ring(start, 6)))
    assert count_chains(intents, 8).answer("auto") == "chain"
    assert count_chains(intents, 8).answer("text") == "text"


@pytest.mark.parametrize(
    "told",
    [
        PRODUCTS,
        records(*ring(0, 60)),  # everything hangs together: that says nothing
        records(*((row, [100 + row], []) for row in range(20))),
        [],
    ],
    ids=["two kinds", "one chain", "pairs", "none"],
)
def test_auto_stays_with_the_text_elsewhere(told):
    assert count_chains(told, 8).answer("auto") == "text"
    assert count_chains(told, 8).answer("chain") == "chain"
