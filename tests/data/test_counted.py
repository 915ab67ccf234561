"""How many of what, in words: one is not many."""

import pytest

from ebr.data.text.counted import are, counted, were
from ebr.retrieval.index.kinds import choose_kind


@pytest.mark.parametrize(("count", "words"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1234, "1,234 rows")])
def test_one_is_not_many(count, words):
    assert counted(count, "row") == words


def test_words_of_their_own_and_verbs():
    assert [counted(n, "query", "queries") for n in (1, 3)] == ["1 query", "3 queries"]
    assert [(are(n), were(n)) for n in (1, 2)] == [("is", "was"), ("are", "were")]
    assert choose_kind(1, 8, 2**30)[1].startswith("1 row of 8 is few")
