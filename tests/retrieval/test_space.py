"""The health of a space: each number by hand on a few vectors, and defined where there is next to nothing."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.errors import ModelError
from ebr.retrieval.measures import space
from ebr.retrieval.measures.space import SpaceHealth, measure_space, positive_pairs

RIGHT, UP, LEFT = [1, 0], [0, 1], [-1, 0]


def rows(*vectors):
    return np.array(vectors, np.float32)


def unit_rows(rng, n, dim=8):
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def health(documents, queries=None, positives=(), *, seed=0, **options):
    queries = np.zeros((0, documents.shape[1]), np.float32) if queries is None else queries
    return measure_space(queries, documents, positives, seed=seed, **options)


def test_alignment_is_the_mean_squared_distance_of_a_query_and_its_positive():
    # Right to itself is 0 apart, right to up 2, up to left 2: the mean is 4/3.
    found = health(rows(RIGHT, UP, LEFT), rows(RIGHT, UP), [(0, 0), (0, 1), (1, 2)])
    assert found.alignment == pytest.approx(4 / 3)


def test_alignment_is_the_same_in_many_small_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    queries, documents = unit_rows(rng, 5), unit_rows(rng, 9)
    pairs = [(query, document) for query in range(5) for document in range(9)]
    whole = health(documents, queries, pairs).alignment
    monkeypatch.setattr(space, "_BLOCK", 4)
    assert health(documents, queries, pairs).alignment == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(np.mean([((queries[q] - documents[d]) ** 2).sum() for q, d in pairs]), rel=1e-6)


def test_uniformity_and_mean_cosine_by_hand():
    # Squared distances 2, 2 and 4; cosines 0, 0 and -1.
    found = health(rows(RIGHT, UP, LEFT))
    assert found.uniformity == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
    assert found.mean_cosine == pytest.approx(-1 / 3)


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_uniformity_and_mean_cosine_equal_all_pairs_one_by_one(monkeypatch, block):
    monkeypatch.setattr(space, "_BLOCK", block)
    documents = unit_rows(np.random.default_rng(1), 40)
    found = health(documents)
    assert found.uniformity == pytest.approx(np.log(np.exp(-2 * pdist(documents) ** 2).mean()), rel=1e-5)
    assert found.mean_cosine == pytest.approx(np.mean([a @ b for a, b in combinations(documents, 2)]), rel=1e-4)


def test_a_document_that_is_near_to_all_others_is_seen_as_a_hub():
    spread = unit_rows(np.random.default_rng(8), 60, dim=30)
    spread[:, 0] += 0.7
    spread /= np.linalg.norm(spread, axis=1, keepdims=True)
    with_middle = health(np.vstack([spread, np.eye(1, 30, dtype=np.float32)]))
    assert with_middle.largest_hub > 0.9 > health(spread).largest_hub
    assert with_middle.hubness > health(spread).hubness


def occurrences_by_hand(documents, k=10):
    counts = [0] * len(documents)
    for here in range(len(documents)):
        others = [row for row in range(len(documents)) if row != here]
        others.sort(key=lambda row: (-float(np.float32(documents[here].astype(float) @ documents[row].astype(float))), row))
        for row in others[:k]:
            counts[row] += 1
    return np.array(counts, float)


def skewness_by_hand(documents):
    apart = occurrences_by_hand(documents) - occurrences_by_hand(documents).mean()
    return (apart**3).mean() / (apart**2).mean() ** 1.5


def test_hubness_is_the_skewness_of_how_often_each_is_a_neighbour():
    documents = unit_rows(np.random.default_rng(2), 60, dim=30)
    found, counts = health(documents), occurrences_by_hand(documents)
    assert found.hubness == pytest.approx(skewness_by_hand(documents))
    assert found.largest_hub == pytest.approx(counts.max() / 59)
    assert found.orphans == pytest.approx((counts == 0).mean())
    assert counts.max() < 59 and found.hubness > 0.1  # else nothing was shown


def test_copies_of_a_document_make_no_hubs():
    documents = unit_rows(np.random.default_rng(3), 40, dim=20)
    once, often = health(documents), health(np.vstack([documents, *[documents[:5]] * 20]))
    assert (often.hubness, often.largest_hub, often.orphans) == (once.hubness, once.largest_hub, once.orphans)
    assert often.n_documents == 140
    assert often.mean_cosine > once.mean_cosine  # but the space is fuller in one place, and that is seen


def test_near_copies_that_push_a_document_out_of_its_own_list_are_borne():
    # Longer vectors in one direction: each finds the longest, and few find themselves among the first eleven.
    documents = np.array([[1 + row / 100, 0] for row in range(30)], np.float32)
    # The ten longest are in all other lists, and the eleventh is in theirs.
    assert space._occurrences(documents).tolist() == [0] * 19 + [10] + [29] * 10
    assert health(documents).orphans == pytest.approx(19 / 30)


def test_eleven_documents_are_all_in_each_others_lists():
    found = health(unit_rows(np.random.default_rng(4), 11))
    assert (found.hubness, found.largest_hub, found.orphans) == (0.0, 1.0, 0.0)


def test_a_collapsed_space_shows_as_one():
    found = health(np.tile(rows(RIGHT), (50, 1)))
    assert found == SpaceHealth(0.0, 0.0, pytest.approx(1.0), 0.0, 0.0, 0.0, 50)


@pytest.mark.parametrize("n_documents", [0, 1])
def test_fewer_than_two_documents_give_zeros(n_documents):
    documents = np.ones((n_documents, 1), np.float32)
    assert health(documents) == SpaceHealth(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, n_documents)


def test_two_documents_have_each_other():
    found = health(rows(RIGHT, UP))
    assert found == SpaceHealth(0.0, pytest.approx(-4.0), 0.0, 0.0, 1.0, 0.0, 2)


@given(st.integers(0, 30), st.integers(1, 5), st.integers(0, 2**31))
def test_no_number_is_ever_undefined_and_all_lie_in_their_range(n_documents, n_distinct, seed):
    rng = np.random.default_rng(seed)
    documents = unit_rows(rng, n_distinct, dim=3)[rng.integers(0, n_distinct, n_documents)]
    found = health(documents, documents[:1], [(0, 0)] if n_documents else [])
    assert 0 <= found.alignment <= 4 and -8 - 1e-6 <= found.uniformity <= 1e-6 and -1 - 1e-6 <= found.mean_cosine <= 1 + 1e-6
    assert math.isfinite(found.hubness) and 0 <= found.largest_hub <= 1 and 0 <= found.orphans < 1


def test_large_corpora_are_sampled_by_the_seed_from_a_memory_map_too(tmp_path):
    documents = unit_rows(np.random.default_rng(5), 300)
    np.save(tmp_path / "documents.npy", documents)
    mapped = np.load(tmp_path / "documents.npy", mmap_mode="r")
    first = health(mapped, documents[:2], [(0, 0), (1, 299)], seed=7, max_documents=50)
    assert first == health(documents, documents[:2], [(0, 0), (1, 299)], seed=7, max_documents=50)
    assert first.n_documents == 50
    assert first != health(documents, documents[:2], [(0, 0), (1, 299)], seed=8, max_documents=50)
    assert health(documents, max_documents=300) == health(documents, seed=9, max_documents=300)


def test_the_sample_does_not_touch_the_alignment():
    documents = unit_rows(np.random.default_rng(6), 30)
    found = health(documents, documents[:1], [(0, 29)], max_documents=2)
    assert found.alignment == pytest.approx(((documents[0] - documents[29]) ** 2).sum(), rel=1e-6)


@pytest.mark.parametrize(("queries", "documents"), [(np.ones((1, 3)), np.ones((1, 4))), (np.ones(3), np.ones((1, 3)))])
def test_matrices_that_do_not_fit_are_refused(queries, documents):
    with pytest.raises(ValueError, match="same width"):
        measure_space(queries, documents, [], seed=0)


def test_a_diverged_model_is_refused():
    with pytest.raises(ModelError, match="nan or inf"):
        health(rows(RIGHT, [np.nan, 0]))


def test_positive_pairs_are_relevant_documents_that_the_corpus_holds():
    dataset = EvaluationSet(
        "set", ["q1", "q2"], ["one", "two"], ["d1", "d2", "d3"], ["", "", ""],
        {"q1": {"d3": 2, "d1": 0, "lost": 1}, "q2": {"d2": -1, "d1": 1, "d3": 1}}, 0, 0, 1,
    )  # fmt: skip
    assert positive_pairs(dataset) == [(0, 2), (1, 0), (1, 2)]
