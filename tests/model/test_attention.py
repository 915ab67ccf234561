"""Texts laid end to end give the vectors that padded ones give; a slow kernel of a text at a time stands for the GPU's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from ebr.errors import ModelError
from ebr.model.compute import attention
from ebr.model.compute.attention import (
    CompiledForward,
    attention_of,
    can_pack,
    compiled_forward,
    exact_products,
    is_out_of_memory,
    packed_attention,
    set_attention,
    unpadded_attention,
)
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.compute.settings import apply_settings, settings_of
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role

TEXTS = [
    "a red shoe",
    "the",
    "这是一个大国的人民，我们",
    "buy a small blue lamp and a green book, please!",
    "x" * 90,
    "blue cup",
    "🙂 é",
]


def reference_kernel(query, key, value, starts, longest, *, scale, window):
    """One text after another, with a mask that says what a token sees."""
    parts, repeats = [], query.size(1) // key.size(1)
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        assert end - start <= longest
        q, k, v = (states[start:end].transpose(0, 1)[None] for states in (query, key, value))
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        places = torch.arange(end - start)
        ahead = places[None, :] - places[:, None]
        before, after = (longest if side < 0 else side for side in window)
        seen = (ahead >= -before) & (ahead <= after)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture(scope="module")
def tiny_roberta(tiny_model, tmp_path_factory):
    """Its positions begin at padding_idx + 1."""
    from transformers import RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("roberta")
    transformer = Transformer(tiny_model)
    torch.manual_seed(1)
    config = RobertaConfig(
        vocab_size=len(transformer.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=70, initializer_range=0.2, pad_token_id=0, type_vocab_size=2,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    transformer.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny_windowed(tiny_decoder, tmp_path_factory):
    """Qwen2 that sees 4 tokens back in its second layer."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("windowed")
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    torch.manual_seed(2)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.2, use_sliding_window=True, sliding_window=4,
        max_window_layers=1, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def packed_and_padded(model, *, prompt=""):
    padded = LocalEngine(model, Role.DOCUMENT, prompt=prompt).encode(TEXTS)
    set_attention(model, "varlen", kernel=reference_kernel)
    engine = LocalEngine(model, Role.DOCUMENT, prompt=prompt)
    assert engine.settings.attention == "varlen"
    shapes = []
    model.register_forward_pre_hook(lambda module, args: shapes.append(args[0]["input_ids"].shape[0]))
    packed = engine.encode(TEXTS)
    assert set(shapes) == {1}  # laid end to end indeed
    set_attention(model, "padded")
    return packed, padded


@pytest.mark.parametrize("name", ["tiny_model", "tiny_decoder", "tiny_roberta", "tiny_windowed"])
def test_packed_vectors_equal_padded_ones(name, request):
    model = load_encoder(request.getfixturevalue(name), device="cpu")
    assert can_pack(model)
    packed, padded = packed_and_padded(model)
    assert np.abs(packed - padded).max() < 1e-5
    assert np.abs(padded[0] - padded[5]).max() > 1e-2


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken", "max", "weightedmean"])
def test_every_pooling_reads_packed_tokens_without_the_prompt(tiny_model, mode):
    base = SentenceTransformer(tiny_model, device="cpu")
    model = SentenceTransformer(modules=[base[0], Pooling(32, mode, include_prompt=False)], device="cpu")
    packed, padded = packed_and_padded(model, prompt="query passage: ")
    assert np.abs(packed - padded).max() < 1e-5


def test_after_padded_attention_is_set_again_the_model_encodes_as_ever(tiny_model):
    model = load_encoder(tiny_model, device="cpu")
    before = model.encode(TEXTS)
    packed_and_padded(model)
    assert attention_of(model) == "padded"
    assert np.array_equal(model.encode(TEXTS), before)


def test_padded_features_are_refused_rather_than_read_without_their_mask(tiny_model):
    model = load_encoder(tiny_model, device="cpu")
    set_attention(model, "varlen", kernel=reference_kernel)
    with pytest.raises(ModelError, match="encode with LocalEngine"):
        model.encode(TEXTS)


def test_what_the_kernel_cannot_do_is_refused_by_name():
    states = torch.zeros(1, 2, 3, 8)
    attend = partial(packed_attention, kernel=reference_kernel, cu_seq_lens_q=torch.tensor([0, 3]), max_length_q=3)
    with pytest.raises(ModelError, match="softcap"):
        attend(torch.nn.Module(), states, states, states, None, softcap=30.0)


@pytest.mark.parametrize(
    ("causal", "sliding_window", "window"),
    [(False, None, (-1, -1)), (True, None, (-1, 0)), (True, 4, (3, 0)), (False, 65, (64, 64))],
)
def test_a_sliding_window_counts_the_token_itself(causal, sliding_window, window):
    seen = []

    def kernel(query, key, value, starts, longest, *, scale, window):
        seen.append(window)
        return query

    states = torch.zeros(1, 2, 3, 8)
    out, _ = packed_attention(
        torch.nn.Module(), states, states, states, None, kernel=kernel, is_causal=causal, sliding_window=sliding_window,
        cu_seq_lens_q=torch.tensor([0, 3]), max_length_q=3,
    )  # fmt: skip
    assert seen == [window]
    assert out.shape == (1, 3, 2, 8)


def test_a_model_outside_the_attention_interface_stays_padded(tiny_model, monkeypatch):
    model = load_encoder(tiny_model, device="cpu")
    monkeypatch.setattr(type(model[0].model), "_supports_attention_backend", False)
    assert not can_pack(model)
    with pytest.raises(ModelError, match="cannot do without padding"):
        set_attention(model, "varlen")


def test_a_tail_that_reads_rows_of_tokens_stays_padded(tiny_model):
    base = SentenceTransformer(tiny_model, device="cpu")

    class Tail(torch.nn.Module):
        def forward(self, features):
            return features

    assert not can_pack(SentenceTransformer(modules=[base[0], Tail(), base[1]], device="cpu"))


def test_a_cpu_has_no_way_without_padding(tiny_model):
    assert unpadded_attention(load_encoder(tiny_model, device="cpu")) is None


# ---------------------------------------------------------------- compiled


@pytest.fixture
def compiling(tiny_model, monkeypatch):
    """A model set to compile, by a compiler that notes its calls and fails when told to."""
    calls = []

    def compile_(function, *, dynamic):
        assert dynamic

        def compiled(*args, **kwargs):
            calls.append(1)
            if compiling_fails:
                raise compiling_fails[0]
            return function(*args, **kwargs)

        return compiled

    compiling_fails = []
    monkeypatch.setattr(torch, "compile", compile_)
    return load_encoder(tiny_model, device="cpu"), calls, compiling_fails


def test_the_compiled_forward_is_the_one_that_runs_and_is_undone(compiling):
    model, calls, _ = compiling
    eager = LocalEngine(model, Role.DOCUMENT).encode(TEXTS)
    names = list(model.state_dict())
    settings = settings_of(model)
    engine = LocalEngine(model, Role.DOCUMENT, settings=type(settings)(**{**settings.to_json(), "compiled": True}))
    assert np.array_equal(engine.encode(TEXTS), eager)
    assert calls
    assert engine.settings.compiled
    assert list(model.state_dict()) == names  # so a fingerprint stays what it was
    apply_settings(model, settings)
    assert compiled_forward(model) is None
    calls.clear()
    assert np.abs(model.encode(TEXTS) - eager).max() < 1e-6
    assert not calls


def test_a_compilation_that_fails_goes_on_eagerly_and_says_so_once(compiling, caplog):
    model, calls, fails = compiling
    eager = LocalEngine(model, Role.DOCUMENT).encode(TEXTS)
    fails.append(AssertionError("no such instruction\nand a page of it"))
    model[0].model.forward = CompiledForward(model[0].model)
    engine = LocalEngine(model, Role.DOCUMENT, batch_size=1)
    assert np.abs(engine.encode(TEXTS) - eager).max() < 1e-6
    assert len(calls) == 1
    assert not engine.settings.compiled
    assert [record.message for record in caplog.records if record.name == attention.__name__] == [
        "torch.compile failed, eager from here on (no such instruction)"
    ]


def products_now():
    return [torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="an API of torch 2.9")
@pytest.mark.parametrize(
    "setter",
    [
        (lambda: torch.set_float32_matmul_precision("medium"), "medium"),
        (lambda: setattr(torch.backends, "fp32_precision", "tf32"), None),
        (lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"), None),
        (lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"), None),
        (lambda: None, "highest"),
    ],
    ids=["legacy", "all", "cuda", "mkldnn", "nothing"],
)
def test_products_of_float32_are_exact_whatever_a_notebook_set(setter):
    set_products, products_before = setter
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    try:
        set_products()
        asked_for = products_now()
        assert asked_for != ["ieee", "ieee"]
        with exact_products():
            assert products_now() == ["ieee", "ieee"]
        assert products_now() == asked_for
        with pytest.raises(ZeroDivisionError), exact_products():
            raise ZeroDivisionError
        assert products_now() == asked_for
        assert products_before is None or torch.get_float32_matmul_precision() == products_before
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_want_of_memory_has_many_names(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("CUDA error: out of memory")]
)
def test_other_errors_are_not_want_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_the_pooling_of_packed_texts_need_not_count_out_whose_token_is_whose(tiny_model, mode, monkeypatch):
    base = SentenceTransformer(tiny_model, device="cpu")
    model = SentenceTransformer(modules=[base[0], Pooling(32, mode)], device="cpu")
    monkeypatch.setattr(torch, "repeat_interleave", None)
    packed, padded = packed_and_padded(model)
    assert np.abs(packed - padded).max() < 1e-5
