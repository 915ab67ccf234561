"""Forward passes at once: the vectors of one after another, on every model they are taken for; the others go as before."""

from __future__ import annotations

import threading
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
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.compute.passes import how_many, keeps_nothing, passes_at_once
from ebr.model.compute.settings import apply_settings, settings_of
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role

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
    monkeypatch.setattr(passes, "_ENOUGH_TOKENS", 40)


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


def alone(model):
    """The same engine on one thread: its passes come one after another."""
    torch.set_num_threads(1)
    try:
        return LocalEngine(model, Role.DOCUMENT, token_budget=40).encode(TEXTS)
    finally:
        torch.set_num_threads(3)


@pytest.mark.parametrize("make", MODELS)
def test_vectors_are_those_of_one_pass_after_another(make, tiny_model, tmp_path, small_passes, seen):
    model = of_make(make, tiny_model, tmp_path)
    assert keeps_nothing(model)
    expected = alone(model)
    assert {name for name, _ in seen["threads"]} == {threading.current_thread().name}
    seen["threads"].clear()
    assert np.array_equal(LocalEngine(model, Role.DOCUMENT, token_budget=40).encode(TEXTS), expected)
    assert seen["threads"] == {("pass_0", 1), ("pass_1", 1), ("pass_2", 1)}
    assert torch.get_num_threads() == 3


def test_packed_weights_and_an_adapter_go_at_once_too(tiny_model, small_passes, seen):
    model = load_encoder(tiny_model, device="cpu")
    apply_settings(model, settings_of(model).__class__(**settings_of(model).to_json() | {"packed_weights": True}))
    expected = alone(model)
    assert np.abs(LocalEngine(model, Role.DOCUMENT, token_budget=40).encode(TEXTS) - expected).max() < 1e-6
    assert ("pass_1", 1) in seen["threads"]
    adapted = load_encoder(tiny_model, device="cpu")
    attach_lora(adapted, r=2, alpha=4, dropout=0.0)
    assert keeps_nothing(adapted)


def test_a_model_that_may_keep_something_goes_one_pass_after_another(tiny_model, tmp_path, small_passes, seen):
    class Own(torch.nn.Linear):
        """A publisher's code."""

    turned = of_make("Llama", tiny_model, tmp_path, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    hooked, own = (load_encoder(tiny_model, device="cpu") for _ in range(2))
    hooked[0].model.encoder.register_forward_hook(lambda *_: None)
    own[0].model.pooler.dense = Own(32, 32)
    for model in (turned, hooked, own):
        assert not keeps_nothing(model)
        assert np.array_equal(LocalEngine(model, Role.DOCUMENT, token_budget=40).encode(TEXTS), alone(model))
    assert seen["most"] == 1


@pytest.mark.parametrize(
    ("n_tokens", "budget", "expected"),
    [
        (500, 2730, (1, 2730)),  # less than two passes that are worth a core
        (600, 2730, (2, 300)),
        (3000, 2730, (3, 1000)),
        (9000, 2730, (3, 1000)),  # of 1,024 at most: three share the cache of one
        (9000, 6000, (3, 1500)),
        (10_000, 100, (3, 99)),
    ],
)
def test_passes_are_as_many_as_keep_every_core_busy_to_the_end(tiny_model, n_tokens, budget, expected):
    assert how_many(load_encoder(tiny_model, device="cpu"), n_tokens, budget) == expected


def test_results_come_in_the_order_of_the_calls_and_an_error_where_it_arose():
    running = threading.Barrier(2)

    def call(number):
        if number < 2:
            running.wait(10)  # both at once, or never
        if number == 3:
            raise ValueError("the fourth")
        return number

    with passes_at_once(call, 2) as at_once:
        waiting = deque(range(5))
        found = []
        with pytest.raises(ValueError, match="the fourth"):
            while waiting or at_once:
                at_once.start(waiting)
                found.append(at_once.next())
    assert found == [(0, 0), (1, 1), (2, 2)]
    assert torch.get_num_threads() == 3
    ready = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    ready.start()
    ready.join()
    assert found[-1] == 3  # a later thread has all of them


def test_memory_that_runs_out_in_one_pass_of_several_loses_no_text(tiny_model, small_passes):
    model = load_encoder(tiny_model, device="cpu")
    expected = alone(model)
    engine = LocalEngine(model, Role.DOCUMENT, token_budget=40)
    forward, most = engine._forward, 30

    def with_little_room(features):
        if features["input_ids"].numel() > most:
            raise MemoryError
        return forward(features)

    engine._forward = with_little_room
    told = []
    assert np.abs(engine.compute(engine.prepare(TEXTS), told.append) - expected).max() < 1e-6
    assert sum(told) == len(TEXTS)
    assert engine.token_budget <= most
