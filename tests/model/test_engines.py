"""The local engine: stock vectors, whatever the batches; no text lost when memory runs out."""

from __future__ import annotations

import pickle
import random
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from ebr.errors import DataError, ModelError
from ebr.model.compute import local_engine as engines
from ebr.model.compute import settings as compute_settings
from ebr.model.compute.engine import TOO_LARGE, UnfitTexts
from ebr.model.compute.local_engine import LocalEngine, RetrievalEncoder
from ebr.model.compute.settings import ComputeSettings, apply_settings, copy_in, settings_of
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.lengths import set_lengths
from ebr.model.encoder.prompts import Role
from ebr.model.files.identity import fingerprint

QUICK = settings(deadline=None, max_examples=25, database=None)
TEXTS = [
    "a red shoe",
    "the",
    "这是一个大国的人民，我们",
    "buy a small blue lamp and a green book, please!",
    "x" * 300,
    "red",
    "🙂 é",
]
ODD = [" ", "\u200b", "\x00", "a\r\nb", "\u2028", "🙂" * 40, "国" * 200, "lamp " * 20_000, "https://a.b/c.png", "[PAD] [SEP]"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_encoder(tiny_model, device="cpu")


def engine_of(model, **options):
    return LocalEngine(model, Role.DOCUMENT, **options)


def smallest_cosine(ours, theirs):
    return (ours * theirs).sum(axis=1).min() / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)).max()


# ---------------------------------------------------------------- equal to stock


@pytest.mark.parametrize("role", list(Role))
def test_vectors_equal_stock_encode_for_either_role_with_its_own_prompt_and_length(tiny_model, role):
    model = load_encoder(tiny_model, device="cpu")
    model.prompts = {"query": "query: ", "document": "passage: "}
    set_lengths(model, 40, query=9, passage=20)
    stock = {Role.QUERY: model.encode_query, Role.DOCUMENT: model.encode_document}[role](TEXTS, batch_size=2)
    engine = LocalEngine(model, role)
    ours = engine.encode(TEXTS)
    assert engine.prepare(TEXTS).tokens is not None  # by our own tokens, not by the model's preprocess
    assert ours.dtype == np.float32
    assert np.abs(ours - stock).max() < 1e-6
    assert smallest_cosine(ours, stock) >= 0.99999
    other = LocalEngine(model, Role.DOCUMENT if role is Role.QUERY else Role.QUERY).encode(TEXTS)
    assert np.abs(ours - other).max() > 1e-2


@pytest.mark.parametrize("include", [True, False])
def test_a_prompt_left_out_of_the_pooling_is_left_out_as_stock_does(tiny_model, include):
    base = SentenceTransformer(tiny_model, device="cpu")
    model = SentenceTransformer(modules=[base[0], Pooling(32, "mean", include_prompt=include)], device="cpu")
    stock = model.encode(TEXTS, prompt="query passage: ", normalize_embeddings=True)
    assert np.abs(engine_of(model, prompt="query passage: ").encode(TEXTS) - stock).max() < 1e-6


@pytest.mark.parametrize("name", ["tiny_model", "tiny_decoder"])
@pytest.mark.parametrize("max_seq_length", [6, None])
def test_truncated_and_odd_texts_equal_stock(name, max_seq_length, request):
    model = load_encoder(request.getfixturevalue(name), device="cpu", max_seq_length=max_seq_length)
    stock = model.encode(TEXTS + ODD, batch_size=1, normalize_embeddings=True)
    ours = engine_of(model, token_budget=200).encode(TEXTS + ODD)
    assert np.isfinite(ours).all()
    assert np.abs(ours - stock).max() < 2e-6


def test_a_model_with_its_own_way_with_texts_goes_through_its_own_preprocess(tiny_model):
    model = load_encoder(tiny_model, device="cpu")
    stock = model.encode(TEXTS, prompt="query: ")
    model[0].processing_kwargs = {"text": {"max_length": 64}}
    engine = engine_of(model, prompt="query: ", token_budget=16)
    assert engine.prepare(TEXTS).tokens is None
    assert np.abs(engine.encode(TEXTS) - stock).max() < 1e-6


def test_a_preprocess_that_gives_other_tokens_than_ours_is_obeyed(tiny_model, monkeypatch):
    model = load_encoder(tiny_model, device="cpu")
    plain = model[0].preprocess
    monkeypatch.setattr(model[0], "preprocess", lambda texts, **options: plain([f"{text} cup" for text in texts], **options))
    stock = model.encode(TEXTS)
    engine = engine_of(model)
    assert engine.prepare(TEXTS).tokens is None
    assert np.abs(engine.encode(TEXTS) - stock).max() < 1e-6


def test_static_embeddings_need_no_transformer():
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "shoe": 2, "a": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    texts = ["red shoe", "a shoe", "a red red shoe"]
    ours = engine_of(model, normalize_embeddings=False).encode(texts)
    assert np.abs(ours - model.encode(texts)).max() < 1e-6


def test_no_texts_give_no_rows(model):
    assert engine_of(model).encode([]).shape == (0, 32)


def test_a_shortened_vector_is_normalized_after_the_cut(model):
    cut = engine_of(model).encode(TEXTS)[:, :8]
    assert (
        np.abs(engine_of(model, truncate_dim=8).encode(TEXTS) - cut / np.linalg.norm(cut, axis=1, keepdims=True)).max() < 1e-6
    )


# ---------------------------------------------------------------- whatever the batch around it


@QUICK
@given(st.integers(0, 2**32), st.integers(1, 400), st.one_of(st.none(), st.integers(1, 8)))
def test_a_vector_is_the_same_whatever_the_batch_around_it(model, seed, budget, most):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(["a", "red", "国", "lamp", "qzx", "!"], k=rng.randint(1, 30))) for _ in range(24)]
    alone = engine_of(model, batch_size=1).encode(texts)
    order = rng.sample(range(24), 24)
    cuts = sorted(rng.sample(range(1, 24), 3))
    engine = engine_of(model, token_budget=budget, batch_size=most)
    parts = [order[start:end] for start, end in zip([0, *cuts], [*cuts, 24], strict=True)]
    for part in parts:
        assert np.abs(engine.encode([texts[index] for index in part]) - alone[part]).max() < 1e-6


def test_no_pass_holds_more_tokens_than_the_budget(model):
    shapes = []
    engine = engine_of(model, token_budget=60)
    model_forward = engine._forward
    engine._forward = lambda features: shapes.append(tuple(features["input_ids"].shape)) or model_forward(features)
    engine.encode(TEXTS * 4)
    assert sum(rows for rows, _ in shapes) == 28
    assert all(rows == 1 or rows * longest <= 60 for rows, longest in shapes)
    assert max(rows for rows, _ in shapes) > 1


def test_preparing_in_another_thread_while_computing_changes_nothing(model):
    engine = engine_of(model, token_budget=64)
    groups = [[f"{text} {index}" for text in TEXTS] for index in range(8)]
    expected = [engine.encode(group) for group in groups]
    prepared = []
    thread = threading.Thread(target=lambda: prepared.extend(engine.prepare(group) for group in groups))
    thread.start()
    again = [engine.encode(group) for group in groups]
    thread.join()
    assert all(np.array_equal(one, other) for one, other in zip(expected, again, strict=True))
    assert all(np.array_equal(one, engine.compute(ready)) for one, ready in zip(expected, prepared, strict=True))


def test_queries_and_documents_of_one_model_share_its_tokenizer_lock(model):
    encoder = RetrievalEncoder(model, batch_size=3, show_progress=False)
    assert encoder.queries.reader.lock is encoder.documents.reader.lock
    assert np.abs(encoder.encode_documents(TEXTS) - encoder.encode_queries(TEXTS)).max() < 1e-6


# ---------------------------------------------------------------- memory


OUT = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


def with_room_for(engine, n_tokens, error=OUT[0]):
    """The engine on a device that holds so many tokens; the shapes that it tried."""
    tried, forward = [], engine._forward

    def forward_if_it_fits(features):
        rows, longest = features["input_ids"].shape
        tried.append((rows, longest))
        if rows * longest > n_tokens:
            raise error
        return forward(features)

    engine._forward = forward_if_it_fits
    return tried


@pytest.mark.parametrize("error", OUT)
def test_out_of_memory_halves_the_budget_for_good_and_loses_no_text(model, error, caplog):
    texts = ["red shoe", "blue", "a small lamp", "the green cup", "book"] * 20
    expected = engine_of(model).encode(texts)
    engine = engine_of(model, token_budget=600)
    tried = with_room_for(engine, 200, error)
    assert np.abs(engine.encode(texts) - expected).max() < 1e-6
    assert engine.settings.token_budget == 125  # 100 texts of 5 tokens: 500 → 250 → 125
    assert len([record for record in caplog.records if "out of memory" in record.message]) == 2
    tried.clear()
    assert np.abs(engine.encode(texts) - expected).max() < 1e-6
    assert all(rows * longest <= 125 for rows, longest in tried)


def test_a_batch_smaller_than_the_budget_is_split_too(model):
    texts = ["red shoe"] * 8  # 4 tokens each: 32 in one pass, far below the budget
    engine = engine_of(model, token_budget=10_000)
    tried = with_room_for(engine, 16)
    assert np.isfinite(engine.encode(texts)).all()
    assert tried == [(8, 4), (4, 4), (4, 4)]
    assert engine.settings.token_budget == 16


def test_texts_that_do_not_fit_alone_are_named_at_the_end_with_all_the_other_vectors(model):
    texts = ["red shoe", "国" * 40, "a blue cup", "国" * 50, "the lamp"]
    expected = engine_of(model).encode(texts)
    engine = engine_of(model, token_budget=400)
    with_room_for(engine, 30)
    with pytest.raises(UnfitTexts, match=r"^text 1 does not fit .*; lower max_seq_length \(2 texts get no vector\)$") as caught:
        engine.encode(texts)
    assert caught.value.reasons == dict.fromkeys([1, 3], TOO_LARGE)
    assert np.isnan(caught.value.vectors[[1, 3]]).all()
    assert np.abs(caught.value.vectors[[0, 2, 4]] - expected[[0, 2, 4]]).max() < 1e-6
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reasons, str(copy)) == (caught.value.reasons, str(caught.value))


def test_texts_too_large_are_counted_across_blocks_and_no_other_vector_moves(model, monkeypatch):
    texts = ["red shoe", "国" * 40, "a blue cup", "the lamp", "book", "a small lamp", "国" * 50, "green", "the red", "国" * 45]
    expected = engine_of(model).encode(texts)
    monkeypatch.setattr(engines, "_TEXTS_AT_ONCE", 4)  # blocks of 4, 4 and 2
    engine = engine_of(model, token_budget=400)
    with_room_for(engine, 30)
    with pytest.raises(UnfitTexts, match=r"^text 1 does not fit .* \(3 texts get no vector\)$") as caught:
        engine.encode(texts)
    assert list(caught.value.reasons) == [1, 6, 9]
    assert np.isnan(caught.value.vectors[[1, 6, 9]]).all()
    fitted = [0, 2, 3, 4, 5, 7, 8]
    assert np.abs(caught.value.vectors[fitted] - expected[fitted]).max() < 1e-6
    with pytest.raises(UnfitTexts, match=r"^text 5 does not fit .*; lower max_seq_length$"):
        engine.encode([*["red"] * 5, "国" * 50])


def test_many_texts_too_large_do_not_wear_the_budget_down_to_nothing(model):
    engine = engine_of(model, token_budget=400, batch_size=1)
    with_room_for(engine, 30)
    with pytest.raises(UnfitTexts):
        engine.encode(["国" * 50] * 20 + ["red"])
    assert engine.settings.token_budget == 51  # one less than the 52 tokens of such a text


def without_memory_for_a_while(engine, n_times):
    """The engine, whose next so many passes find no memory."""
    left, forward = [n_times], engine._forward

    def forward_later(features):
        left[0] -= 1
        if left[0] >= 0:
            raise OUT[0]
        return forward(features)

    engine._forward = forward_later


def test_a_passing_shortage_is_waited_for_and_rejects_no_text(model):
    texts = ["国" * 40, "red shoe"]
    waits = []
    engine = engine_of(model, batch_size=1, token_budget=400, sleep=waits.append)
    expected = engine.encode(texts)
    without_memory_for_a_while(engine, 3)
    assert np.array_equal(engine.encode(texts), expected)
    assert len(waits) == 3
    assert waits == sorted(waits)
    assert engine.token_budget == 400


def test_a_shortage_that_stays_ends_the_run_and_rejects_no_text(model):
    waits = []
    engine = engine_of(model, batch_size=1, sleep=waits.append)
    engine.encode(["国" * 40])
    without_memory_for_a_while(engine, 100)
    with pytest.raises(ModelError, match=r"out of memory .* free memory and run the same command again") as caught:
        engine.encode(["red"])
    assert not isinstance(caught.value, UnfitTexts)
    assert 2 <= len(waits) <= 5
    assert sum(waits) < 60


@pytest.mark.parametrize("n_texts", [1, 64])
def test_a_text_longer_than_any_that_fitted_is_too_large_without_a_wait(model, n_texts):
    waits = []
    engine = engine_of(model, sleep=waits.append)
    engine.encode(["red shoe"] * n_texts)  # more tokens in one pass than the long text has, and no proof that it fits
    with_room_for(engine, 30)
    with pytest.raises(UnfitTexts):
        engine.encode(["国" * 40])
    assert waits == []


def test_the_budget_of_later_texts_stays_above_the_longest_that_fitted(model):
    texts = ["red shoe"] * 32
    engine = engine_of(model, token_budget=400, sleep=lambda seconds: None)
    expected = engine.encode(texts)
    engine.encode(["国" * 40])  # 42 tokens
    without_memory_for_a_while(engine, 6)  # 128 tokens → 64 → 32 → 16 → 8 → 4: alone, and once more
    assert np.abs(engine.encode(texts) - expected).max() < 1e-6
    assert engine.token_budget == 42


def overflowing(engine, precision):
    """The engine, in whose third text of three a number overflows."""
    forward = engine._forward
    engine._settings = replace(engine._settings, precision=precision)

    def forward_and_overflow(features):
        rows = forward(features)
        if features["input_ids"].shape[1] > 10:
            rows = torch.full_like(rows, float("inf"))
        return rows

    engine._forward = forward_and_overflow
    return engine


@pytest.mark.parametrize(
    ("precision", "says"),
    [
        ("float16", r"float16 overflows for 2 texts \(first: text 1\); use precision bfloat16 or float32"),
        ("bfloat16", r"vectors in bfloat16 are not finite for 2 texts \(first: text 1\)"),
    ],
)
def test_vectors_that_are_not_finite_end_the_run(model, precision, says):
    engine = overflowing(engine_of(model, batch_size=1), precision)
    with pytest.raises(ModelError, match=says):
        engine.encode(["red", "国" * 40, "blue", "国" * 50])


def test_an_overflow_in_a_later_block_is_named_by_its_place_among_all_texts(model, monkeypatch):
    monkeypatch.setattr(engines, "_TEXTS_AT_ONCE", 4)
    engine = overflowing(engine_of(model, batch_size=1), "float16")
    with pytest.raises(ModelError, match=r"1 text \(first: text 6\)"):
        engine.encode([*["red"] * 6, "国" * 40, "blue"])


def test_rows_of_texts_too_large_are_not_taken_for_an_overflow(model):
    engine = engine_of(model, batch_size=1)
    with_room_for(engine, 30)
    with pytest.raises(UnfitTexts):
        engine.encode(["red", "国" * 40])


def test_vectors_are_those_of_the_settings_under_autocast_too(model):
    expected = engine_of(model).encode(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(engine_of(model).encode(TEXTS), expected)


def test_a_quantized_model_keeps_the_autocast_around_it(tiny_model):
    model = load_encoder(tiny_model, device="cpu")
    model[0].model.is_quantized = True
    expected = engine_of(model).encode(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not np.array_equal(engine_of(model).encode(TEXTS), expected)


def test_another_error_is_not_taken_for_want_of_memory(model):
    engine = engine_of(model)

    def broken(features):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    engine._forward = broken
    with pytest.raises(RuntimeError, match="mat1"):
        engine.encode(TEXTS)


# ---------------------------------------------------------------- settings


def test_settings_make_the_model_compute_so_and_leave_its_buffers_alone(tiny_decoder):
    model = load_encoder(tiny_decoder, device="cpu")
    plain = settings_of(model)
    assert (plain.precision, plain.compiled, plain.attention, plain.device) == ("float32", False, "padded", "cpu")
    expected = engine_of(model).encode(TEXTS)
    engine = engine_of(model, settings=replace(plain, precision="bfloat16", token_budget=77))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}
    assert engine.settings.precision == "bfloat16"
    assert engine.settings.token_budget == 77
    ours = engine.encode(TEXTS)
    assert ours.dtype == np.float32
    assert 0.98 < smallest_cosine(ours, expected) < 0.9999999


def test_threads_are_set_where_it_computes_and_only_when_settings_ask(model):
    before = torch.get_num_threads()
    seen = []
    engine = engine_of(model, settings=replace(settings_of(model), n_threads=before + 1))
    assert torch.get_num_threads() == before
    thread = threading.Thread(target=lambda: seen.append((engine.encode(["red"]), torch.get_num_threads())[1]))
    thread.start()
    thread.join()
    assert seen == [before + 1]


def test_settings_in_words_count_one_thread_as_one(model):
    here = replace(settings_of(model), token_budget=4096)
    assert [replace(here, n_threads=n).describe().split(", ")[-1] for n in (1, 2)] == ["1 thread", "2 threads"]


def test_settings_made_elsewhere_keep_padding_and_say_so(model, caplog):
    here = settings_of(model)
    made = replace(here, device="cuda", attention="varlen", precision="float16", token_budget=10**9)
    expected = engine_of(model).encode(TEXTS)
    engine = engine_of(model, settings=made)
    assert engine.settings == here
    assert np.array_equal(engine.encode(TEXTS), expected)
    assert [record.message[:48] for record in caplog.records] == ["settings were made on cuda and the model is on c"]
    assert engine_of(model, settings=replace(made, token_budget=77)).token_budget == 77


@pytest.mark.parametrize(("unpadded", "attention"), [(None, "padded"), ("flash_attention_2", "padded"), ("varlen", "varlen")])
def test_without_flash_attn_texts_are_attended_to_otherwise_and_said_so(tiny_model, unpadded, attention, monkeypatch, caplog):
    model = load_encoder(tiny_model, device="cpu")
    monkeypatch.setattr(compute_settings, "unpadded_attention", lambda model: unpadded)
    engine = engine_of(model, settings=replace(settings_of(model), attention="flash_attention_2"))
    assert engine.settings.attention == attention
    warnings = [record.message for record in caplog.records if record.name == compute_settings.__name__]
    assert len(warnings) == 1
    assert warnings[0].startswith("attention flash_attention_2: ")
    assert warnings[0].endswith(f"; {attention} from here on")


def test_other_attention_that_cannot_be_set_is_an_error(tiny_model, monkeypatch):
    model = load_encoder(tiny_model, device="cpu")
    monkeypatch.setattr(type(model[0].model), "_supports_attention_backend", False)
    with pytest.raises(ModelError, match="attention varlen"):
        engine_of(model, settings=replace(settings_of(model), attention="varlen"))


def test_settings_survive_json_and_what_is_not_theirs_is_refused():
    made = ComputeSettings("bfloat16", True, "varlen", 4096, 2, "cuda")
    assert ComputeSettings.from_json(made.to_json()) == made
    for change in ({"precision": "int4"}, {"token_budget": "4096"}, {"extra": 1}):
        with pytest.raises(DataError, match="start the run anew"):
            ComputeSettings.from_json(made.to_json() | change)


def test_a_copy_in_another_precision_leaves_the_model_as_it_is_and_shares_what_it_can(tiny_model):
    model = load_encoder(tiny_model, device="cpu")
    before = fingerprint(model)
    half = copy_in(model, torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    apply_settings(half, replace(settings_of(half), precision="bfloat16"))
    same = copy_in(model, torch.float32)
    assert all(one is other for one, other in zip(same.parameters(), model.parameters(), strict=True))
    assert half.tokenizer is model.tokenizer
    assert half[0].model.config is not model[0].model.config
    assert fingerprint(model) == before


def test_a_bar_counts_texts_when_asked(model, capsys, monkeypatch):
    monkeypatch.setattr("ebr.model.compute.local_engine._LONG_S", 0)
    engine_of(model, show_progress=True).encode(TEXTS)
    assert "encode: 7 texts in " in capsys.readouterr().err
    engine_of(model).encode(TEXTS)
    assert capsys.readouterr().err == ""
