"""The log-likelihood of right answers, by hand and by what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.retrieval.measures.likelihood import _TEMPERATURES, log_likelihoods


def dataset(qrels, n_documents, doc_ids=None):
    names = doc_ids or [f"d{row}" for row in range(n_documents)]
    queries, documents = [f"text of {one}" for one in qrels], [f"text of {one}" for one in names]
    return EvaluationSet("by hand", list(qrels), queries, names, documents, qrels, 0, 0, 0)


def unit(*angles):
    """(n, 2) float32 unit rows at so many degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_one_query_by_hand():
    """Cosines 1, 0.5 and 0; the second document is right: the best temperature is the largest, as it is not the first."""
    found = log_likelihoods(unit(0), unit(0, 60, 90), dataset({"q": {"d1": 1}}, 3))
    warm = _TEMPERATURES[0]
    expected = 0.5 / warm - np.log(np.exp(1 / warm) + np.exp(0.5 / warm) + np.exp(0 / warm))
    assert found.tolist() == pytest.approx([expected], abs=1e-6)


def test_several_answers_count_by_their_mean_and_grade_zero_is_none():
    both = dataset({"q": {"d0": 1, "d1": 2, "d2": 0}}, 3)
    warm = _TEMPERATURES[0]
    total = np.log(sum(np.exp(cosine / warm) for cosine in (1, 0.5, 0)))
    assert log_likelihoods(unit(0), unit(0, 60, 90), both)[0] == pytest.approx((1 + 0.5) / 2 / warm - total, abs=1e-6)


def test_a_first_place_is_surer_the_colder():
    """What is right stands first everywhere: the coldest softmax says so, and nothing is lost."""
    found = log_likelihoods(unit(0, 90), unit(0, 90), dataset({"q": {"d0": 1}, "r": {"d1": 1}}, 2))
    assert found == pytest.approx([0.0, 0.0], abs=1e-9)


def test_a_querys_own_document_is_no_candidate():
    """The query itself in the corpus would be nearest to itself, and no answer could be likely."""
    with_itself = dataset({"q": {"d1": 1}}, 3, ["q", "d1", "d2"])
    without = dataset({"q": {"d1": 1}}, 2, ["d1", "d2"])
    assert log_likelihoods(unit(0), unit(0, 60, 90), with_itself) == pytest.approx(
        log_likelihoods(unit(0), unit(60, 90), without), abs=1e-6
    )


@given(st.floats(0.01, 100.0))
def test_longer_vectors_are_no_likelier(length):
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(9, 8)).astype(np.float32)
    judged = dataset({f"q{row}": {f"d{row}": 1} for row in range(5)}, 9)
    before = log_likelihoods(queries, documents, judged)
    assert log_likelihoods(queries, documents * np.float32(length), judged) == pytest.approx(before, rel=1e-4)


def test_a_query_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="query q has no right answer"):
        log_likelihoods(unit(0), unit(0, 60), dataset({"q": {"elsewhere": 1}}, 2))
