"""A frozen base in bfloat16: half the size while it trains, every bit as before when it is looked at."""

import pytest
import torch
from sentence_transformers import SentenceTransformer

from ebr.model.adapters.attach import attach_lora
from ebr.model.compute.serving import as_loaded, frozen_in_bfloat16


@pytest.fixture
def model(tiny_model):
    model = SentenceTransformer(tiny_model, device="cpu")
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    return model


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return all(left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left)


def test_frozen_matrices_are_halved_and_adapters_norms_and_biases_stay_float32(model):
    with frozen_in_bfloat16(model):
        kinds = {name: value.dtype for name, value in model.named_parameters()}
        halved = {name for name, kind in kinds.items() if kind == torch.bfloat16}
        assert halved == {name for name in kinds if "lora_" not in name and name.endswith("weight") and "LayerNorm" not in name}
        assert len(halved) > 10


@pytest.mark.parametrize("exact", [False, True])
def test_every_bit_is_back_afterwards_and_in_an_evaluation_on_the_way(model, exact):
    if exact:  # as a checkpoint in bfloat16 is loaded: nothing has to be kept
        for one in model.parameters():
            one.data = one.data.bfloat16().float()
    before = weights(model)
    with frozen_in_bfloat16(model):
        assert not same(weights(model), before)
        with as_loaded(model):
            assert same(weights(model), before)
        assert not same(weights(model), before)
    assert same(weights(model), before)


def test_what_the_adapter_learned_meanwhile_stays(model):
    adapter = next(value for name, value in model.named_parameters() if "lora_B" in name)
    with frozen_in_bfloat16(model):
        adapter.data.fill_(0.5)
    assert (adapter == 0.5).all()


def test_outside_there_is_nothing_to_restore(model):
    before = weights(model)
    with as_loaded(model):
        assert same(weights(model), before)


def test_gradients_of_the_adapter_under_autocast_are_those_of_a_float32_base_but_for_rounding(model):
    features = model.preprocess(["buy a small red shoe", "the red small shoe"])
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(generator=torch.Generator().manual_seed(0), std=0.1)

    def gradient():
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(dict(features))["sentence_embedding"].float()[:, :4].sum().backward()
        return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])

    plain = gradient()
    with frozen_in_bfloat16(model):
        halved = gradient()
    assert torch.nn.functional.cosine_similarity(plain, halved, dim=0) > 0.99
