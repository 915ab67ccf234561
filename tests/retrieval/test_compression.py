"""What smaller vectors cost: each way to store them by hand, and the table as a whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.vectors.exact_search import exact_search
from ebr.errors import ModelError
from ebr.retrieval.measures import compression
from ebr.retrieval.measures.compression import Compressed, compress_table, scored_queries
from ebr.retrieval.measures.measurement import evaluate_vectors


def unit_rows(rng, n, dim):
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def dataset_of(qrels, n_documents):
    """Queries q0, q1, … with these qrels (a list of {document row: grade}) over documents d0, d1, …"""
    query_ids = [f"q{row}" for row in range(len(qrels))]
    grades = {f"q{row}": {f"d{doc}": grade for doc, grade in wanted.items()} for row, wanted in enumerate(qrels)}
    doc_ids = [f"d{row}" for row in range(n_documents)]
    return EvaluationSet("set", query_ids, query_ids, doc_ids, doc_ids, grades, 0, 0, 0)


def random_case(seed, n_queries=12, n_documents=150, dim=64):
    """Queries near their relevant documents, with noise, so that nDCG lies between 0 and 1."""
    rng = np.random.default_rng(seed)
    documents = unit_rows(rng, n_documents, dim)
    wanted = [
        {int(row): int(rng.integers(1, 3)) for row in rng.choice(n_documents, 3, replace=False)} for _ in range(n_queries)
    ]
    queries = np.stack([documents[list(row)].sum(axis=0) for row in wanted]) + rng.normal(size=(n_queries, dim)) * 0.2
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    return queries, documents, dataset_of(wanted, n_documents)


def by_name(table):
    return {(row.dim, row.kind): row.ndcg for row in table}


def test_signs_lose_what_halves_keep_by_hand():
    # The query asks for the first dimension. Both documents have the same signs, so binary ties, and d1 wins a tie by its id.
    queries = np.array([[1, 0]], np.float32)
    documents = np.array([[0.8, 0.6], [0.6, 0.8]], np.float32)
    found = by_name(compress_table(queries, documents, dataset_of([{0: 1}], 2)))
    assert found[2, "float32"] == found[2, "float16"] == found[2, "int8"] == 1.0
    assert found[2, "binary"] == pytest.approx(1 / np.log2(3))


def test_halves_lose_what_only_the_last_bits_tells():
    # 0.5 + 1e-4 is 0.5 in float16, whose step there is 0.0005; then d1 wins the tie by its id.
    queries = np.array([[1, 0]], np.float32)
    documents = np.array([[0.5 + 1e-4, 0.1], [0.5, 0.9]], np.float32)
    found = by_name(compress_table(queries, documents, dataset_of([{0: 1}], 2)))
    assert found[2, "float32"] == 1.0
    assert found[2, "float16"] == pytest.approx(1 / np.log2(3))


def test_bytes_of_a_vector_count_whole_bytes():
    queries, documents, dataset = random_case(0, dim=36)
    table = compress_table(queries, documents, dataset)
    assert [(row.dim, row.kind, row.bytes_per_vector) for row in table] == [
        (36, "float32", 144), (36, "float16", 72), (36, "int8", 36), (36, "binary", 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "dims"),
    [(1, [1]), (63, [63]), (64, [64, 32]), (100, [100, 50]), (384, [384, 192, 96, 48]), (512, [512, 256, 128, 64, 32])],
)
def test_dimensions_are_halved_down_to_32(width, dims):
    queries, documents, dataset = random_case(1, n_queries=1, n_documents=12, dim=width)
    table = compress_table(queries, documents, dataset)
    assert list(dict.fromkeys(row.dim for row in table)) == dims
    assert [row.kind for row in table] == ["float32", "float16", "int8", "binary"] * len(dims)


@pytest.mark.parametrize("k", [10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_full_vectors_in_float32_have_the_ndcg_of_the_evaluation_exactly(seed, k):
    queries, documents, dataset = random_case(seed)
    documents = documents[np.arange(150) % 60]  # ties everywhere: the depth decides which of them are seen
    table = compress_table(queries, documents, dataset, k=k)
    assert 0 < table[0].ndcg < 1
    assert table[0] == Compressed(64, "float32", 256, evaluate_vectors(queries, documents, dataset, k=k).mean("ndcg@10"))


def test_truncation_equals_doing_it_by_hand():
    queries, documents, dataset = random_case(4)
    short = documents[:, :32] / np.linalg.norm(documents[:, :32], axis=1, keepdims=True)
    found = by_name(compress_table(queries, documents, dataset))
    expected = evaluate_vectors(queries[:, :32], short, dataset).mean("ndcg@10")
    unscaled = evaluate_vectors(queries[:, :32], np.ascontiguousarray(documents[:, :32]), dataset).mean("ndcg@10")
    assert found[32, "float32"] == pytest.approx(expected, abs=1e-12)
    assert expected != pytest.approx(unscaled, abs=1e-6)  # the length matters, else this shows nothing


def test_every_kind_equals_searching_what_is_left_of_the_vectors():
    queries, documents, dataset = random_case(5)
    low, high = documents.min(axis=0), documents.max(axis=0)
    levels = np.clip(np.floor((documents - low) / ((high - low) / 255)), 0, 255)
    left = {
        "float16": documents.astype(np.float16).astype(np.float32),
        "int8": (low + (levels + 0.5) * (high - low) / 255).astype(np.float32),
        "binary": np.where(documents > 0, 1, -1).astype(np.float32),
    }
    found = by_name(compress_table(queries, documents, dataset))
    for kind, vectors in left.items():
        assert found[64, kind] == pytest.approx(evaluate_vectors(queries, vectors, dataset).mean("ndcg@10"), abs=1e-12), kind
    assert found[64, "binary"] < found[64, "int8"]


def test_levels_are_those_of_sentence_transformers():
    quantize = pytest.importorskip("sentence_transformers.util.quantization").quantize_embeddings
    documents = unit_rows(np.random.default_rng(6), 200, 16)
    documents[:, 3] = 0.25  # a dimension without spread
    levels = compression._to_levels(documents, compression._value_range(documents, 16))
    np.testing.assert_array_equal(levels, quantize(documents, "uint8"))


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_int8_is_never_off_by_more_than_half_a_level(n, dim, seed, scale):
    vectors = (np.random.default_rng(seed).normal(size=(n, dim)) * scale).astype(np.float32)
    value_range = compression._value_range(vectors, dim)
    read_back = compression._read_back(vectors, "int8", value_range)
    step = (value_range[1] - value_range[0]) / 255
    assert (np.abs(read_back - vectors) <= step / 2 + 1e-5 * scale).all()


def test_a_dimension_without_spread_is_read_back_as_it_was():
    vectors = np.array([[0.25, -1], [0.25, 1]], np.float32)
    with np.errstate(all="raise"):
        read_back = compression._read_back(vectors, "int8", compression._value_range(vectors, 2))
    assert read_back[:, 0].tolist() == [0.25, 0.25]


@pytest.mark.parametrize("block", [1, 7, 64])
def test_documents_are_read_in_blocks_from_a_memory_map_with_the_same_result(monkeypatch, tmp_path, block):
    queries, documents, dataset = random_case(7)
    documents = documents[np.arange(150) % 100]  # ties across the blocks
    whole = compress_table(queries, documents, dataset)
    np.save(tmp_path / "documents.npy", documents)
    monkeypatch.setattr(compression, "_BLOCK", block)
    assert compress_table(queries, np.load(tmp_path / "documents.npy", mmap_mode="r"), dataset) == whole


@pytest.mark.parametrize("k", [1, 5, 30])
def test_search_over_blocks_equals_the_search_of_all(k):
    rng = np.random.default_rng(8)
    queries, documents = unit_rows(rng, 6, 4), unit_rows(rng, 10, 4)[rng.integers(0, 10, 25)]
    blocks = iter([documents[:3], documents[3:4], documents[4:]])
    for found, expected in zip(
        compression._search_blocks(queries, blocks, k), exact_search(queries, documents, k), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_queries_are_picked_evenly_when_there_is_too_much_to_score():
    assert scored_queries(10, 1000, max_scored=1000).tolist() == list(range(10))  # never fewer than 50, or all
    assert scored_queries(200, 10, max_scored=1000).tolist() == list(range(0, 200, 2))
    assert scored_queries(100, 10**9).tolist() == list(range(0, 100, 2))
    assert scored_queries(7, 0).tolist() == list(range(7))


@given(st.integers(0, 5000), st.integers(0, 10**7), st.integers(1, 10**9))
def test_picked_queries_are_distinct_and_within_bounds(n_queries, n_documents, max_scored):
    picked = scored_queries(n_queries, n_documents, max_scored=max_scored)
    assert len(set(picked.tolist())) == len(picked) >= min(n_queries, 50)
    assert all(0 <= row < n_queries for row in picked.tolist())
    assert len(picked) in (n_queries, 50) or len(picked) * n_documents <= max_scored


def test_the_table_is_of_the_picked_queries():
    queries, documents, dataset = random_case(9, n_queries=100)
    picked = scored_queries(100, 150, max_scored=1)
    part = dataset_of([{int(doc[1:]): grade for doc, grade in dataset.qrels[f"q{row}"].items()} for row in picked], 150)
    expected = evaluate_vectors(queries[picked], documents, part).mean("ndcg@10")
    assert compress_table(queries, documents, dataset, max_scored=1)[0].ndcg == expected
    assert compress_table(queries, documents, dataset)[0].ndcg != expected


def test_a_vector_of_zeros_stays_one():
    queries, documents, dataset = random_case(10)
    documents[3, :32] = 0
    assert all(np.isfinite(row.ndcg) for row in compress_table(queries, documents, dataset))


def test_an_empty_corpus_finds_nothing():
    queries, _, dataset = random_case(11)
    empty = EvaluationSet("set", dataset.query_ids, dataset.queries, [], [], dataset.qrels, 0, 0, 0)
    assert {row.ndcg for row in compress_table(queries, np.zeros((0, 64), np.float32), empty)} == {0.0}


def test_vectors_that_do_not_belong_to_the_dataset_are_refused():
    queries, documents, dataset = random_case(12)
    for wrong_queries, wrong_documents in ((queries[1:], documents), (queries, documents[1:]), (queries[:, 1:], documents)):
        with pytest.raises(ValueError, match="do not fit"):
            compress_table(wrong_queries, wrong_documents, dataset)


def test_a_diverged_model_is_refused():
    queries, documents, dataset = random_case(13)
    documents[5, 5] = np.nan
    with pytest.raises(ModelError, match="nan or inf"):
        compress_table(queries, documents, dataset)
