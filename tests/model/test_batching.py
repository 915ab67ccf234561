"""Which texts share a pass, what goes into it, and how much: worked by hand, and held against the tokenizer itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from ebr.model.encoder import batching, text_reader
from ebr.model.encoder.batching import (
    Tokens,
    cache_bytes,
    cost_of,
    default_token_budget,
    packed_features,
    packed_token_budget,
    padded_features,
    token_budget_batches,
    tokenize,
)
from ebr.model.encoder.text_reader import TextReader

QUICK = settings(deadline=None, max_examples=100, database=None)
TEXTS = ["a red shoe", "the", "这是一个大国的人民，我们", "buy a small blue lamp and a green book, please!", "x" * 300, "🙂 é"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return SentenceTransformer(tiny_model, device="cpu")


def lists(batches):
    return [batch.tolist() for batch in batches]


def test_padded_batches_by_hand():
    lengths = [3, 9, 3, 5, 9]
    assert lists(token_budget_batches(lengths, 18)) == [[1, 4], [3, 0, 2]]  # 9 × 2 = 18; 5 × 3 = 15
    assert lists(token_budget_batches(lengths, 17)) == [[1], [4], [3, 0, 2]]
    assert lists(token_budget_batches(lengths, 14)) == [[1], [4], [3, 0], [2]]  # 5 × 3 = 15 is one too many


def test_unpadded_batches_by_hand():
    lengths = [3, 9, 3, 5, 9]
    assert lists(token_budget_batches(lengths, 17, padded=False)) == [[1], [4, 3, 0], [2]]  # 9 + 9 = 18; 9 + 5 + 3 = 17
    assert lists(token_budget_batches(lengths, 29, padded=False)) == [[1, 4, 3, 0, 2]]


def test_batch_size_is_the_most_texts_of_a_pass():
    assert lists(token_budget_batches([3, 9, 3, 5, 9], 10**6, batch_size=2)) == [[1, 4], [3, 0], [2]]


@QUICK
@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 200), st.one_of(st.none(), st.integers(1, 9)), st.booleans())
def test_every_text_is_in_one_pass_longest_first_and_no_pass_costs_more_than_the_budget(lengths, budget, most, padded):
    batches = token_budget_batches(lengths, budget, batch_size=most, padded=padded)
    flat = [index for batch in batches for index in batch.tolist()]
    assert flat == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for batch, following in itertools.zip_longest(batches, batches[1:]):
        counts = np.array(lengths)[batch]
        assert len(batch) == 1 or cost_of(counts, padded=padded) <= budget
        assert most is None or len(batch) <= most
        if following is not None:  # and none could have taken the next text too
            more = np.append(counts, lengths[following[0]])
            assert len(more) > (most or len(more)) or cost_of(more, padded=padded) > budget


def test_cost_is_what_a_pass_computes():
    assert cost_of(np.array([9, 5, 3]), padded=True) == 27
    assert cost_of(np.array([9, 5, 3]), padded=False) == 17


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [None, 7])
def test_padded_features_are_those_of_the_tokenizer_itself(tiny_model, side, max_length):
    tokenizer = SentenceTransformer(tiny_model, device="cpu").tokenizer
    tokenizer.padding_side = side
    tokens = tokenize(tokenizer, TEXTS, "query: ", max_length)
    batch = np.array([4, 0, 3, 1])
    ours = padded_features(tokens, batch, tokenizer)
    texts = ["query: " + TEXTS[index] for index in batch]
    theirs = tokenizer(texts, padding=True, truncation="longest_first", max_length=max_length, return_tensors="pt")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert tokens.lengths[batch].tolist() == theirs["attention_mask"].sum(dim=1).tolist()


def test_packed_features_by_hand():
    tokens = Tokens(np.array([7, 8, 9, 4, 5, 6, 3]), None, np.array([0, 3, 4, 7]))  # [7 8 9] [4] [5 6 3]
    packed = packed_features(tokens, np.array([2, 1]), 2)
    assert packed["input_ids"].tolist() == [[5, 6, 3, 4]]
    assert packed["position_ids"].tolist() == [[2, 3, 4, 2]]
    assert packed["cu_seq_lens_q"].tolist() == packed["cu_seq_lens_k"].tolist() == [0, 3, 4]
    assert packed["cu_seq_lens_q"].dtype == torch.int32
    assert (packed["max_length_q"], packed["max_length_k"]) == (3, 3)
    assert "token_type_ids" not in packed
    assert packed["seq_idx"].tolist() == [[0, 0, 0, 1]]
    assert packed["seq_idx"].dtype == torch.int32


def test_a_text_without_a_token_becomes_one_of_padding(tiny_decoder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    tokens = tokenize(tokenizer, ["", "red"])
    assert tokens.lengths[0] == 1
    assert tokens.ids[0] == tokenizer.pad_token_id


def test_each_text_is_tokenized_once(model, monkeypatch):
    seen = []
    plain = text_reader.tokenize

    def counted(tokenizer, texts, *rest):
        seen.extend(texts)
        return plain(tokenizer, texts, *rest)

    monkeypatch.setattr(text_reader, "tokenize", counted)
    reader = TextReader(model, "document", "")
    prepared = reader.prepare(TEXTS)
    for batch in token_budget_batches(prepared.lengths, 64):
        reader.features(prepared, batch, packed=False)
    assert [seen.count(text) for text in TEXTS] == [1] * len(TEXTS)


def test_tokenizing_in_many_threads_gives_what_one_gives(model):
    from concurrent.futures import ThreadPoolExecutor

    reader = TextReader(model, "document", "")
    alone = reader.prepare(TEXTS).tokens.ids
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: reader.prepare(TEXTS).tokens.ids, range(16)))
    assert all(np.array_equal(ids, alone) for ids in together)


def test_a_model_with_options_of_its_own_keeps_its_own_preprocess(tiny_model):
    model = SentenceTransformer(tiny_model, device="cpu")
    model[0].processing_kwargs = {"text": {"max_length": 5}}
    reader = TextReader(model, "document", "")
    prepared = reader.prepare(["a red shoe and a blue one"])
    assert prepared.tokens is None
    assert reader.features(prepared, np.array([0]), packed=False)["input_ids"].shape == (1, 5)


def test_no_texts_give_no_tokens(model):
    assert len(TextReader(model, "document", "").prepare([]).lengths) == 0


def test_the_largest_cache_counts(tmp_path):
    for index, size in enumerate(("32K", "2048K", "32M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n", encoding="ascii")
    assert cache_bytes(tmp_path) == 32 * 2**20
    (tmp_path / "index2" / "size").write_text("unknown\n", encoding="ascii")
    assert cache_bytes(tmp_path) == 2 * 2**20
    assert cache_bytes(tmp_path / "absent") == 16 * 2**20


def test_the_cache_of_a_level_is_asked_for_by_its_number(tmp_path):
    for index, (level, size) in enumerate(((1, "48K"), (2, "2048K"), (3, "32M"))):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n", encoding="ascii")
        (tmp_path / f"index{index}" / "level").write_text(f"{level}\n", encoding="ascii")
    assert cache_bytes(tmp_path, level=2) == 2 * 2**20
    assert cache_bytes(tmp_path, level=4) == cache_bytes(tmp_path / "absent", level=2) == 2**20


@pytest.mark.parametrize(
    ("core_cache", "budget"),
    [
        (2**16, 1024),  # 2 caches / 64 wide, 2 bytes each
        (2**10, 512),
        (2**22, 2048),
    ],
)
def test_packed_weights_in_bfloat16_take_tokens_by_a_cores_own_cache(model, monkeypatch, core_cache, budget):
    monkeypatch.setattr(batching, "cache_bytes", lambda level: core_cache)
    assert packed_token_budget(model, torch.bfloat16) == budget


def test_the_budget_keeps_the_widest_activation_in_half_of_the_cache(model, monkeypatch):
    monkeypatch.setattr(batching, "cache_bytes", lambda: 2**20)
    assert default_token_budget(model, torch.float32) == 2048  # 2**20 / 2 bytes, 64 wide, 4 bytes each
    assert default_token_budget(model, torch.bfloat16) == 4096
    monkeypatch.setattr(batching, "cache_bytes", lambda: 2**10)
    assert default_token_budget(model, torch.float32) == 512
