import numpy as np
import pytest

from ebr.data.vectors import exact_search as search
from ebr.data.vectors.exact_search import exact_search
from ebr.errors import ModelError


def unit_rows(rng, n, dim=24):
    rows = rng.normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(queries, documents, k):
    scores = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def test_the_largest_inner_products_come_first_by_hand():
    documents = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
    scores, rows = exact_search(np.array([[1, 0], [0, 2]], np.float32), documents, k=3)
    assert rows.tolist() == [[0, 2, 1], [1, 2, 0]]
    assert scores == pytest.approx(np.array([[1, 0.6, 0], [2, 1.6, 0]]))
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("k", [1, 10, 4321])
def test_results_equal_brute_force(k):
    rng = np.random.default_rng(0)
    queries, documents = unit_rows(rng, 9), unit_rows(rng, 4321)
    scores, rows = exact_search(queries, documents, k, block=2000)
    expected_scores, expected_rows = brute_force(queries, documents, k)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(rows, expected_rows)


@pytest.mark.parametrize("block", [1, 2, 7, 64, 299, 10_000])
def test_the_block_size_changes_nothing_even_among_equal_vectors(block):
    rng = np.random.default_rng(1)
    distinct = unit_rows(rng, 100, dim=384)
    documents = distinct[rng.integers(0, 100, size=300)]  # each vector about three times: ties everywhere
    queries = unit_rows(rng, 5, dim=384)
    scores, rows = exact_search(queries, documents, 40, block=block)
    expected_scores, expected_rows = brute_force(queries, documents, 40)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_many_queries_equal_the_same_queries_one_by_one(monkeypatch):
    rng = np.random.default_rng(2)
    queries, documents = unit_rows(rng, 11), unit_rows(rng, 30)
    whole = exact_search(queries, documents, 5)
    monkeypatch.setattr(search, "_QUERY_BLOCK", 4)
    for expected, chunked in zip(whole, exact_search(queries, documents, 5), strict=True):
        np.testing.assert_array_equal(chunked, expected)


@pytest.mark.parametrize("block", [1, 2, 100])
def test_ties_stand_in_row_order_and_the_lower_rows_survive_the_cut(block):
    documents = np.array([[0.5], [1], [1], [0.5], [1], [0.5]], np.float32)
    _, rows = exact_search(np.ones((1, 1), np.float32), documents, k=5, block=block)
    assert rows.tolist() == [[1, 2, 4, 0, 3]]


def test_negative_scores_sort_below_zero_and_both_zeros_tie():
    # The product of row 1 is too small for a float32 and becomes -0.0.
    documents = np.array([[-2], [-1e-30], [0], [-1], [3]], np.float32)
    scores, rows = exact_search(np.full((1, 1), 1e-30, np.float32), documents, k=5)
    assert rows.tolist() == [[4, 1, 2, 3, 0]]
    assert scores[0] == pytest.approx(np.array([3e-30, 0, 0, -1e-30, -2e-30]), rel=1e-6, abs=0)


def test_more_than_there_is_returns_all():
    scores, rows = exact_search(np.ones((2, 3), np.float32), np.ones((4, 3), np.float32), k=100)
    assert scores.shape == rows.shape == (2, 4)


def test_no_documents_and_no_queries_give_empty_answers():
    assert exact_search(np.ones((2, 3), np.float32), np.ones((0, 3), np.float32), k=5)[1].shape == (2, 0)
    assert exact_search(np.ones((0, 3), np.float32), np.ones((4, 3), np.float32), k=5)[1].shape == (0, 4)


@pytest.mark.parametrize(
    ("queries", "documents", "options", "problem"),
    [
        (np.ones((1, 3)), np.ones((1, 4)), {"k": 1}, "same width"),
        (np.ones(3), np.ones((1, 3)), {"k": 1}, "two matrices"),
        (np.ones((1, 3)), np.ones((1, 3)), {"k": 0}, "k and block"),
        (np.ones((1, 3)), np.ones((1, 3)), {"k": 1, "block": 0}, "k and block"),
    ],
)
def test_what_cannot_be_searched_is_refused(queries, documents, options, problem):
    with pytest.raises(ValueError, match=problem):
        exact_search(queries, documents, **options)


def test_vectors_of_a_diverged_model_are_refused():
    with pytest.raises(ModelError, match="nan or inf"):
        exact_search(np.ones((1, 3)), np.full((1, 3), np.nan), 1)
