"""Packed weights: the vectors of transformers' own layers, on every make that is taken; what is unusual goes the old way."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer

from ebr.model.adapters.attach import attach_lora
from ebr.model.compute import packed_weights
from ebr.model.compute.local_engine import LocalEngine, RetrievalEncoder
from ebr.model.compute.packed_weights import PackedForward, packed_forward, why_not_packed
from ebr.model.compute.settings import ComputeSettings, apply_settings, settings_of
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role

MAKES = ("Bert", "Roberta", "XLMRoberta", "MPNet")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LONGEST = 40
TEXTS = ["buy a red shoe", "the lamp", "a", "这是一个大国", "the blue small cup " * 30, "buy the red shoe", "a red cup"]


class PlainProducts:
    """oneDNN's products by torch's own layers, for a processor that oneDNN multiplies no bfloat16 on; counts them."""

    def __init__(self) -> None:
        self.operations = []

    def __call__(self, states, weight, bias, operation, scalars, algorithm):
        self.operations.append(operation)
        product = functional.linear(states, weight, bias)
        return functional.gelu(product, approximate=algorithm) if operation == "gelu" else product

    def binary(self, states, other, weight, bias, operation):
        self.operations.append(operation)
        return functional.linear(states, weight, bias) + other


@pytest.fixture
def with_bfloat16(monkeypatch):
    """As on a processor with bfloat16: the products are torch's, the rest is ours."""
    products = PlainProducts()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", products)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight: weight)
    monkeypatch.setattr(packed_weights, "multiplies_bfloat16", lambda: True)
    return products


def random_model(make, **options):
    """A model of transformers whose every weight is random: biases and norms are 0 and 1 otherwise, and prove nothing."""
    padding = 0 if make == "Bert" else 1
    config = {**SIZES, "vocab_size": 50, "max_position_embeddings": LONGEST + 2, "pad_token_id": padding, **options}
    torch.manual_seed(0)
    model = getattr(transformers, f"{make}Model")(getattr(transformers, f"{make}Config")(**config)).eval()
    for weight in model.parameters():
        weight.data.normal_(0, 0.3)
    return model


def batch_of(model, lengths, side):
    padding = model.config.pad_token_id
    filled = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    filled = filled if side == "right" else filled.flip(1)
    ids = torch.randint(2, 50, filled.shape, generator=torch.Generator().manual_seed(1)).where(filled, padding)
    return {"input_ids": ids, "attention_mask": filled.long()}, filled


@pytest.fixture
def encoder(tiny_model, tmp_path):
    """An encoder of a make, with a tokenizer, a prompt and 24 tokens a text; weights random as above."""

    def make(name="Bert", **options):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        options = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "max_position_embeddings": 26,
            **options,
        }
        random_model(name, **options).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return load_encoder(str(tmp_path / name), device="cpu")

    return make


def engine_of(model, **options):
    packed = replace(settings_of(model), packed_weights=True)
    return LocalEngine(model, Role.DOCUMENT, settings=packed, **options)


# ---------------------------------------------------------------- against transformers


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", MAKES)
def test_states_are_those_of_transformers_for_texts_of_every_length(make, side, fused):
    model = random_model(make)
    packed = PackedForward(model, fused=fused)
    batches = [range(LONGEST, 0, -1), [3, 1, 1, 3, LONGEST], [LONGEST] * 3, [1], [LONGEST]]
    with torch.inference_mode():
        for lengths in batches:
            features, filled = batch_of(model, list(lengths), side)
            ours, theirs = packed(**features, return_dict=True)["last_hidden_state"], model(**features).last_hidden_state
            assert ours.shape == theirs.shape
            assert torch.allclose(ours[filled], theirs[filled], atol=1e-5)
            assert not ours[~filled].any()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh"])
def test_both_kinds_of_gelu_are_told_apart(activation, fused):
    model = random_model("Bert", hidden_act=activation)
    features, _ = batch_of(model, [7, 7], "right")
    with torch.inference_mode():
        ours, theirs = PackedForward(model, fused=fused)(**features)["last_hidden_state"], model(**features).last_hidden_state
    assert torch.allclose(ours, theirs, atol=2e-6)  # the two differ by 1e-4 and more


def test_types_of_tokens_count_and_a_pass_without_mask_has_no_padding():
    model = random_model("Bert")
    features, _ = batch_of(model, [9, 9], "right")
    features = {"input_ids": features["input_ids"], "token_type_ids": features["input_ids"] % 2}
    with torch.inference_mode():
        ours = PackedForward(model)(**features)["last_hidden_state"]
        assert torch.allclose(ours, model(**features).last_hidden_state, atol=1e-5)
        assert not torch.allclose(ours, model(features["input_ids"]).last_hidden_state, atol=1e-2)


@pytest.mark.parametrize("make", MAKES)
def test_an_engine_gives_the_same_vectors(encoder, make):
    model = encoder(make)
    for options in ({}, {"prompt": "query: "}, {"truncate_dim": 8}, {"token_budget": 30}, {"batch_size": 1}):
        apply_settings(model, replace(settings_of(model), packed_weights=False))
        expected = LocalEngine(model, Role.DOCUMENT, **options).encode(TEXTS)
        engine = engine_of(model, **options)
        assert engine.settings.packed_weights
        assert np.allclose(engine.encode(TEXTS), expected, atol=1e-5)
        assert np.allclose(engine.encode(TEXTS[4:5]), expected[4:5], atol=1e-5)


@pytest.mark.parametrize("make", MAKES)
def test_in_bfloat16_the_vectors_are_those_of_bfloat16(encoder, make, with_bfloat16):
    model = encoder(make)
    exact = LocalEngine(model, Role.DOCUMENT).encode(TEXTS)
    half = replace(settings_of(model), precision="bfloat16")
    eager = LocalEngine(copy.deepcopy(model), Role.DOCUMENT, settings=half).encode(TEXTS)
    engine = LocalEngine(model, Role.DOCUMENT, settings=replace(half, packed_weights=True))
    packed = engine.encode(TEXTS)
    assert engine.settings.packed_weights
    assert with_bfloat16.operations[:4] == ["none", "add", "gelu", "add"]
    for vectors in (eager, packed):
        assert 0.99 < (vectors * exact).sum(axis=1).min() < 1
    assert (packed * eager).sum(axis=1).min() > 0.999


@pytest.mark.skipif(not packed_weights.multiplies_bfloat16(), reason="oneDNN does not multiply bfloat16 on this processor")
def test_onednn_multiplies_bfloat16_as_torch_does(encoder):
    model = encoder()
    half = replace(settings_of(model), precision="bfloat16")
    eager = LocalEngine(copy.deepcopy(model), Role.DOCUMENT, settings=half).encode(TEXTS)
    packed = LocalEngine(model, Role.DOCUMENT, settings=replace(half, packed_weights=True)).encode(TEXTS)
    assert (packed * eager).sum(axis=1).min() > 0.999


# ---------------------------------------------------------------- what goes the old way


def test_no_other_make_is_taken(encoder):
    assert why_not_packed(encoder(), torch.float32) is None
    model = encoder()
    model[0].model.__class__ = type("Remade", (transformers.BertModel,), {})
    assert why_not_packed(model, torch.float32) == "Remade is none of BertModel, RobertaModel, XLMRobertaModel, MPNetModel"
    model[0].model = transformers.ElectraModel(transformers.ElectraConfig(**SIZES, embedding_size=32))
    assert "ElectraModel is none of" in why_not_packed(model, torch.float32)


def _lora(model):
    attach_lora(model, r=2, alpha=4, dropout=0.0)


def _hook(model):
    model[0].model.encoder.layer[1].register_forward_hook(lambda *_: None)


def _patched(model):
    output = model[0].model.encoder.layer[0].output
    output.forward = partial(type(output).forward, output)


def _other_layer(model):
    model[0].model.encoder.layer[0].output.dense = type("Linear8bit", (nn.Linear,), {})(64, 32)


def _activation(model):
    model[0].model.encoder.layer[1].intermediate.intermediate_act_fn = nn.ReLU()


def _config(name, value=True):
    return lambda model: setattr(model[0].model.config, name, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_lora, "encoder.layer.0.attention.self.query is a "),
        (_hook, "encoder.layer.1 has a hook"),
        (_patched, "encoder.layer.0.output has a hook"),
        (_other_layer, "encoder.layer.0.output.dense is a Linear8bit"),
        (_activation, "encoder.layer.1.intermediate.intermediate_act_fn is a ReLU"),
        (_config("is_decoder"), "its configuration has is_decoder"),
        (_config("output_hidden_states"), "its configuration has output_hidden_states"),
        (_config("position_embedding_type", "relative_key"), "its configuration has position_embedding_type"),
    ],
)
def test_what_is_unusual_goes_the_old_way_and_a_line_says_why(encoder, change, reason, caplog):
    model = encoder()
    change(model)
    before = LocalEngine(model, Role.DOCUMENT).encode(TEXTS)
    assert reason in why_not_packed(model, torch.float32)
    with caplog.at_level(logging.WARNING, "ebr"):
        engine = engine_of(model)
    assert not engine.settings.packed_weights
    assert np.array_equal(engine.encode(TEXTS), before)
    assert [record.message.startswith("packed weights: ") for record in caplog.records] == [True]


def test_a_model_of_which_more_than_the_last_states_is_read_goes_the_old_way(encoder, monkeypatch):
    model = encoder()
    monkeypatch.setitem(model[0].modality_config["text"], "method_output_name", "pooler_output")
    assert why_not_packed(model, torch.float32) == "more than its last hidden state is read"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_precision_that_onednn_does_not_multiply_here_is_refused(encoder, dtype, monkeypatch):
    monkeypatch.setattr(packed_weights, "multiplies_bfloat16", lambda: False)
    name = str(dtype).removeprefix("torch.")
    assert why_not_packed(encoder(), dtype) == f"oneDNN does not multiply {name} on this processor"


def test_whoever_trains_or_wants_gradients_or_more_gets_the_models_own_pass():
    model = random_model("Bert")
    features, _ = batch_of(model, [5, 4], "right")
    packed = model.forward = PackedForward(model)
    model(**features).last_hidden_state.sum().backward()
    assert all(layer.output.dense.weight.grad.any() for layer in model.encoder.layer)
    with torch.inference_mode():
        assert len(model(**features, output_hidden_states=True).hidden_states) == 3
        model.train()
        assert not torch.equal(packed(**features)["last_hidden_state"], packed(**features)["last_hidden_state"])  # dropout


# ---------------------------------------------------------------- put on and taken off


def test_other_settings_take_it_off_and_the_bits_are_those_of_before(encoder):
    model = encoder()
    plain = settings_of(model)
    before = LocalEngine(model, Role.DOCUMENT).encode(TEXTS)
    engine_of(model)
    assert packed_forward(model) is not None
    assert settings_of(model).packed_weights
    assert np.array_equal(LocalEngine(model, Role.DOCUMENT, settings=plain).encode(TEXTS), before)
    assert packed_forward(model) is None


def test_settings_applied_again_pack_the_weights_of_now(encoder):
    model = encoder()
    engine_of(model).encode(TEXTS)
    for weight in model.parameters():
        weight.data.mul_(-0.5)
    packed = engine_of(model).encode(TEXTS)
    apply_settings(model, replace(settings_of(model), packed_weights=False))
    assert np.allclose(packed, LocalEngine(model, Role.DOCUMENT).encode(TEXTS), atol=1e-5)


def test_a_copy_packs_its_own_weights(encoder):
    model = encoder()
    expected = engine_of(model).encode(TEXTS)
    copied = copy.deepcopy(model)
    for weight in copied.parameters():
        weight.data.mul_(2)
    assert packed_forward(copied) is not packed_forward(model)
    assert not np.allclose(LocalEngine(copied, Role.DOCUMENT).encode(TEXTS), expected, atol=1e-2)
    assert np.array_equal(LocalEngine(model, Role.DOCUMENT).encode(TEXTS), expected)


def test_queries_and_documents_of_a_packed_model_are_computed_so(encoder):
    model = encoder()
    engine_of(model)
    both = RetrievalEncoder(model, show_progress=False)
    assert both.queries.settings.packed_weights
    assert both.documents.settings.packed_weights


def test_settings_of_before_there_were_packed_weights_are_read(encoder):
    made = replace(settings_of(encoder()), packed_weights=True)
    assert ComputeSettings.from_json(made.to_json()) == made
    assert "float32 on cpu, padded, packed weights, " in made.describe()
    before = {name: value for name, value in made.to_json().items() if name != "packed_weights"}
    assert ComputeSettings.from_json(before) == replace(made, packed_weights=False)


# ---------------------------------------------------------------- many texts at once


def test_many_texts_are_encoded_with_packed_weights_and_the_model_is_as_it_was_after(encoder, monkeypatch):
    model, packs = encoder(), []
    monkeypatch.setattr(packed_weights, "_WORTH_PACKING", len(TEXTS) * 2)
    pack = packed_weights.pack_weights
    monkeypatch.setattr(packed_weights, "pack_weights", lambda model: packs.append(model) or pack(model))
    engine = LocalEngine(model, Role.DOCUMENT)
    expected = engine.encode(TEXTS)
    assert not packs
    assert np.abs(engine.encode(TEXTS * 2) - np.concatenate([expected] * 2)).max() < 1e-5
    assert packs == [model]
    # Weights that training has changed in between are packed anew.
    for weight in model.parameters():
        weight.data.mul_(0.5)
    changed = engine.encode(TEXTS)
    assert np.abs(changed - expected).max() > 0.01
    assert np.abs(engine.encode(TEXTS * 2)[: len(TEXTS)] - changed).max() < 1e-5
    assert packed_forward(model) is None
    monkeypatch.setattr(packed_weights.platform, "machine", lambda: "aarch64")
    engine.encode(TEXTS * 2)
    model[0].model.forward = lambda *args, **kwargs: None  # a hook of somebody's
    with packed_weights.packed_for(model, 10_000):
        assert packed_forward(model) is None
    assert len(packs) == 2


def test_a_failed_pass_leaves_the_model_as_it_was(encoder, monkeypatch):
    monkeypatch.setattr(packed_weights, "_WORTH_PACKING", 1)
    model = encoder()
    with pytest.raises(ZeroDivisionError), packed_weights.packed_for(model, 1):
        assert packed_forward(model) is not None
        _ = 1 / 0
    assert packed_forward(model) is None
