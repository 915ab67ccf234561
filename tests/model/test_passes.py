"""Forward passes at once: the vectors of one after another, on every model they are taken for; the others go as before."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer

from ebr.model.adapters.attach import attach_lora
from ebr.model.compute import passes
from ebr.model.compute.dropout import light_dropout
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.compute.lora_linear import fused_lora
from ebr.model.compute.passes import at_once, how_many, keeps_nothing
from ebr.model.compute.settings import apply_settings, settings_of
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role
from ebr.model.encoder.routes import with_query_map

TEXTS = [" ".join(["red", "shoe", "the", "lamp", "国"][start:] * (1 + n % 5)) for n in range(60) for start in range(3)]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ROPE = {"num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "Bert": {},
    "Roberta": {},
    "XLMRoberta": {},
    "Camembert": {},
    "MPNet": {},
    "Electra": {"embedding_size": 32},
    "Albert": {"embedding_size": 32},
    "DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "ModernBert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "Qwen2": ROPE,
    "Qwen3": ROPE,
    "Llama": ROPE,
    "Mistral": ROPE | {"sliding_window": 8},
    "Gemma": ROPE,
    "Gemma2": ROPE | {"sliding_window": 8},
    "Gemma3Text": ROPE | {"sliding_window": 8},
}


@pytest.fixture(autouse=True)
def three_threads():
    """As on a machine of three cores; every model is tried with small passes."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_passes(monkeypatch):
    monkeypatch.setattr(passes, "_FEWEST_TOKENS", 8)
    monkeypatch.setattr(passes, "_MOST_TOKENS", 40)


@pytest.fixture
def seen(monkeypatch):
    """How many passes ran at once, at most, and in which threads."""
    lock, now, found = threading.Lock(), [0], {"most": 0, "threads": set()}
    forward = LocalEngine._forward

    def watched(engine, features):
        with lock:
            now[0] += 1
            found["most"] = max(found["most"], now[0])
            found["threads"].add((threading.current_thread().name, torch.get_num_threads()))
        try:
            return forward(engine, features)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(LocalEngine, "_forward", watched)
    return found


def of_make(make, tiny_model, folder, **options):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = getattr(transformers, f"{make}Config")(
        **SIZES | MODELS[make] | options,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=80,
    )
    torch.manual_seed(0)
    name = "Gemma3TextModel" if make == "Gemma3Text" else f"{make}Model"
    getattr(transformers, name)(config).save_pretrained(folder / make)
    tokenizer.save_pretrained(folder / make)
    return SentenceTransformer(modules=[Transformer(str(folder / make)), Pooling(32, "mean")], device="cpu")


def alone(model, role=Role.DOCUMENT):
    """The same engine on one thread: its passes come one after another."""
    torch.set_num_threads(1)
    try:
        return LocalEngine(model, role, token_budget=80).encode(TEXTS)
    finally:
        torch.set_num_threads(3)


def differ(ours, theirs):
    return np.abs(ours - theirs).max()


@pytest.mark.parametrize("make", MODELS)
def test_vectors_are_those_of_one_pass_after_another(make, tiny_model, tmp_path, small_passes, seen):
    model = of_make(make, tiny_model, tmp_path)
    assert keeps_nothing(model)
    expected = alone(model)
    assert {name for name, _ in seen["threads"]} == {threading.current_thread().name}
    seen["threads"].clear()
    assert differ(LocalEngine(model, Role.DOCUMENT, token_budget=80).encode(TEXTS), expected) < 1e-6
    assert seen["threads"] == {("pass_0", 1), ("pass_1", 1), ("pass_2", 1)}
    assert torch.get_num_threads() == 3


def test_packed_weights_and_an_adapter_go_at_once_too(tiny_model, small_passes, seen):
    model = load_encoder(tiny_model, device="cpu")
    apply_settings(model, settings_of(model).__class__(**settings_of(model).to_json() | {"packed_weights": True}))
    expected = alone(model)
    assert differ(LocalEngine(model, Role.DOCUMENT, token_budget=80).encode(TEXTS), expected) < 1e-6
    assert ("pass_1", 1) in seen["threads"]


def test_an_adapter_in_training_and_a_map_of_queries_go_at_once_too(tiny_model, small_passes, seen):
    adapted, routed = load_encoder(tiny_model, device="cpu"), load_encoder(tiny_model, device="cpu")
    attach_lora(adapted, r=2, alpha=4, dropout=0.1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.2)
    routed = with_query_map(routed, torch.randn(32, 32))
    with fused_lora(adapted), light_dropout(adapted):
        for model in (adapted, routed):
            expected = alone(model)
            seen["threads"].clear()
            assert differ(LocalEngine(model, Role.QUERY, token_budget=80).encode(TEXTS), alone(model, Role.QUERY)) < 1e-6
            assert differ(LocalEngine(model, Role.DOCUMENT, token_budget=80).encode(TEXTS), expected) < 1e-6
            assert ("pass_1", 1) in seen["threads"]


def test_a_model_that_may_keep_something_goes_one_pass_after_another(tiny_model, tmp_path, small_passes, seen):
    class Own(torch.nn.Linear):
        """A publisher's code."""

    patched, compiled = (load_encoder(tiny_model, device="cpu") for _ in range(2))
    plain = patched[0].model.forward
    patched[0].model.forward = lambda *args, **others: plain(*args, **others)
    compiled[0].model.pooler._compiled_call_impl = compiled[0].model.pooler.forward
    turned = of_make("Llama", tiny_model, tmp_path, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    hooked, own = (load_encoder(tiny_model, device="cpu") for _ in range(2))
    hooked[0].model.encoder.register_forward_hook(lambda *_: None)
    own[0].model.pooler.dense = Own(32, 32)
    for model in (turned, hooked, own, patched, compiled):
        assert not keeps_nothing(model)
        assert differ(LocalEngine(model, Role.DOCUMENT, token_budget=80).encode(TEXTS), alone(model)) < 1e-6
    assert seen["most"] == 1


@pytest.mark.parametrize(
    ("n_threads", "n_tokens", "longest", "budget", "expected"),
    [
        (3, 500, 50, 2730, (1, 2730)),  # less than two passes that are worth a core
        (3, 600, 50, 2730, (1, 2730)),  # two passes would leave a core idle
        (2, 600, 50, 2730, (2, 300)),
        (3, 3000, 50, 2730, (3, 1000)),
        (3, 9000, 50, 2730, (3, 1500)),  # of 2,048 at most, in two rounds
        (3, 10_000, 50, 100, (3, 99)),
        (8, 1300, 50, 2730, (4, 325)),  # two threads each
        (16, 10**6, 8192, 2730, (4, 2048)),  # 5 × 8,192 tokens would be no more than 16 × 2,730; four have four threads each
        (2, 10**6, 8192, 2730, (1, 2730)),
    ],
)
def test_passes_are_as_many_as_keep_every_core_busy_to_the_end(tiny_model, n_threads, n_tokens, longest, budget, expected):
    torch.set_num_threads(n_threads)
    found = how_many(load_encoder(tiny_model, device="cpu"), n_tokens, longest, budget)
    assert found == (expected[0], found[1])
    assert abs(found[1] - expected[1]) < 20


def test_results_come_in_the_order_of_the_calls_and_an_error_where_it_arose():
    running = threading.Barrier(2)

    def call(number):
        if number < 2:
            running.wait(10)  # both at once, or never
        if number == 3:
            raise ValueError("the fourth")
        return number

    found = []
    with pytest.raises(ValueError, match="the fourth"):
        found.extend(at_once(call, deque(range(5)), 2))
    assert found == [(0, 0), (1, 1), (2, 2)]
    assert torch.get_num_threads() == 3
    ready = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    ready.start()
    ready.join()
    assert found[-1] == 3  # a later thread has all of them


def test_no_more_is_begun_once_one_finds_no_room():
    waiting = deque(range(6))
    found = list(at_once(lambda number: None if number == 1 else number, waiting, 2))
    assert found == [(0, 0), (1, None), (2, 2)]
    assert list(waiting) == [3, 4, 5]


def test_memory_that_passes_at_once_do_not_share_suffices_for_one_at_a_time(tiny_model, small_passes):
    model = load_encoder(tiny_model, device="cpu")
    expected = alone(model)
    engine = LocalEngine(model, Role.DOCUMENT, token_budget=80)
    forward, lock, held, most = engine._forward, threading.Lock(), [0], 80

    def with_room_for_one(features):
        with lock:
            held[0] += features["input_ids"].numel()
            fits = held[0] <= most
        try:
            if not fits:
                raise MemoryError
            time.sleep(0.002)
            return forward(features)
        finally:
            with lock:
                held[0] -= features["input_ids"].numel()

    engine._forward = with_room_for_one
    told = []
    assert differ(engine.compute(engine.prepare(TEXTS), told.append), expected) < 1e-6
    assert sum(told) == len(TEXTS)
    assert engine.token_budget == 80  # none was too large by itself
