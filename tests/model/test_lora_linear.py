"""Fused adapters: peft's values and gradients, what is not plain left to peft, dropout that its own gradient agrees with."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from ebr.model.adapters.attach import attach_lora
from ebr.model.compute import lora_linear
from ebr.model.compute.dropout import keep_mask
from ebr.model.compute.lora_linear import fused_lora
from ebr.model.encoder.encoder import load_encoder

IN, OUT, R = 6, 5, 3


def adapted(*, bias=True, p=0.0, dtype=torch.float64, **options):
    """Two linear layers, the first with an adapter whose B is not zero; inputs are IN wide."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, OUT, bias=bias), nn.Linear(OUT, 2))
    model.requires_grad_(False)
    config = LoraConfig(r=R, lora_alpha=2 * R + 1, lora_dropout=p, target_modules=["0"], **options)
    model = inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter)
    return model.to(dtype).train()


@pytest.fixture
def fused(monkeypatch):
    """How often a fused layer computed."""
    calls, whole = [], lora_linear._Adapted.apply

    def noting(*args):
        calls.append(args)
        return whole(*args)

    monkeypatch.setattr(lora_linear._Adapted, "apply", noting)
    return calls


def inputs(*shape, needs_gradient=True, dtype=torch.float64):
    values = torch.randn(*shape, IN, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return values.requires_grad_(needs_gradient)


def step(model, x):
    """(output, gradient of the input, gradients of the weights)."""
    x = x.detach().clone().requires_grad_(x.requires_grad)
    y = model(x)
    weights = torch.arange(1, y.numel() + 1, dtype=y.dtype).reshape(y.shape).sin()
    (y * weights).sum().backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return y.detach(), x.grad, found


def assert_same(found, wanted, tolerance=1e-12):
    assert torch.allclose(found[0], wanted[0], rtol=tolerance, atol=tolerance)
    assert (found[1] is None) == (wanted[1] is None)
    assert found[1] is None or torch.allclose(found[1], wanted[1], rtol=tolerance, atol=tolerance)
    assert found[2].keys() == wanted[2].keys() != set()
    for name, gradient in wanted[2].items():
        assert gradient.abs().max() > 0, name
        assert torch.allclose(found[2][name], gradient, rtol=tolerance, atol=tolerance), name
        assert found[2][name].dtype == gradient.dtype, name


# ---------------------------------------------------------------- equal to peft


@pytest.mark.parametrize("shape", [(7,), (2, 4), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs_gradient", [True, False], ids=["inner layer", "first layer"])
def test_values_and_gradients_are_pefts(fused, shape, bias, needs_gradient):
    model, x = adapted(bias=bias), inputs(*shape, needs_gradient=needs_gradient)
    wanted = step(model, x)
    with fused_lora(model):
        found = step(model, x)
    assert len(fused) == 1
    assert_same(found, wanted)


def test_input_that_does_not_lie_in_a_row_is_read_as_it_is(fused):
    model = adapted()
    x = inputs(4, 3).detach().transpose(0, 1).requires_grad_()
    wanted = step(model, x)
    with fused_lora(model):
        assert_same(step(model, x), wanted)
    assert fused


def test_rank_stabilised_scaling_is_pefts(fused):
    model, x = adapted(use_rslora=True), inputs(7)
    wanted = step(model, x)
    with fused_lora(model):
        assert_same(step(model, x), wanted)
    assert fused[0][5] == pytest.approx((2 * R + 1) / math.sqrt(R))


def test_encoder_has_the_vectors_and_gradients_that_it_has_with_peft(tiny_model, fused):
    model = load_encoder(tiny_model, device="cpu")
    attach_lora(model, r=4, alpha=8, dropout=0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.double().train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter)

    def embed(texts):
        return model(model.preprocess(texts))["sentence_embedding"]

    def gradients():
        model.zero_grad()
        embed(["the red shoe", "buy a small lamp"])[:, :7].sum().backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    wanted = gradients()
    with fused_lora(model):
        found = gradients()
    assert len(fused) == sum("lora_A" in name for name in wanted) > 0
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-9), name


# ---------------------------------------------------------------- left to peft


@pytest.mark.parametrize(
    "options",
    [dict(use_dora=True), dict(lora_bias=True), dict(modules_to_save=["1"])],
    ids=["dora", "bias of B", "another layer"],
)
def test_layers_out_of_the_plain_case_are_pefts_own(fused, options):
    model = adapted(**options) if "modules_to_save" not in options else adapted()
    if "modules_to_save" in options:
        model[0].base_layer.requires_grad_(True)  # a base that is trained too
    with fused_lora(model):
        assert "forward" not in vars(model[0])
        step(model, inputs(7))
    assert fused == []


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_several_adapters_at_once_are_pefts_own(fused):
    model = adapted()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), model, adapter_name="second")
    model[0].set_adapter(["default", "second"])
    with fused_lora(model):
        step(model.double(), inputs(7))
    assert fused == []


def test_base_of_another_kind_of_layer_is_pefts_own(fused):
    class Quantised(nn.Linear):
        pass

    model = adapted()
    model[0].base_layer.__class__ = Quantised
    with fused_lora(model):
        step(model, inputs(7))
    assert fused == []


def test_adapter_switched_off_or_merged_inside_the_block_is_pefts_own(fused):
    model, x = adapted(), inputs(7)
    with fused_lora(model):
        model[0].enable_adapters(False)
        assert torch.equal(model(x), model[1](model[0].base_layer(x)))
        model[0].enable_adapters(True)
        whole = model(x)
        assert len(fused) == 1
        model[0].merge()
        assert torch.allclose(model(x), whole, atol=1e-12)
    assert len(fused) == 1


def test_evaluation_is_pefts_own_to_the_bit(fused):
    model, x = adapted(p=0.5).eval(), inputs(7)
    with torch.no_grad():
        wanted = model(x)
        with fused_lora(model):
            assert torch.equal(model(x), wanted)
    assert fused == []


@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
def test_block_leaves_no_trace(error):
    model = adapted()
    before = set(vars(model[0]))
    try:
        with fused_lora(model):
            assert "forward" in vars(model[0])
            if error:
                raise error
    except RuntimeError as caught:
        assert caught is error
    assert set(vars(model[0])) == before


# ---------------------------------------------------------------- dropout


def test_mean_over_draws_is_peft_without_dropout():
    model, x = adapted(p=0.3), inputs(4)
    wanted = model.eval()(x).detach()
    torch.manual_seed(0)
    with fused_lora(model), torch.no_grad():
        model.train()
        draws = model(x.expand(2_000, 4, IN))
    assert draws.std(0).min() > 0.01
    assert ((draws.mean(0) - wanted).abs() / (draws.std(0) / math.sqrt(2_000))).max() < 5


def test_one_draw_by_hand():
    model, x = adapted(p=0.4), inputs(2, 3, needs_gradient=False)
    layer = model[0]
    torch.manual_seed(5)
    with fused_lora(model):
        found = layer(x)
    torch.manual_seed(5)
    mask, keep_scale = keep_mask(torch.Size([6, IN]), 0.4, torch.device("cpu"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    dropped = x * mask.reshape(x.shape) * keep_scale
    assert torch.allclose(found, layer.base_layer(x) + (2 * R + 1) / R * dropped @ a.T @ b.T, rtol=1e-12)


def test_gradients_are_those_of_the_mask_that_was_drawn():
    model = adapted(p=0.4)
    layer, x = model[0], inputs(2, 3)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def draw(x, a_values, b_values):
        torch.manual_seed(5)  # the same mask each time
        return lora_linear._Adapted.apply(x, layer.base_layer.weight, layer.base_layer.bias, a_values, b_values, 1.7, 0.4)

    assert torch.autograd.gradcheck(draw, (x, a, b), eps=1e-6, atol=1e-8)


def test_training_without_a_graph_draws_and_gives_what_it_does_with_one():
    """What a gradient cache lives on: its first pass has no graph, its second has."""
    model, x = adapted(p=0.4, dtype=torch.float32), inputs(3, dtype=torch.float32)
    with fused_lora(model):
        torch.manual_seed(5)
        with torch.no_grad():
            first = model(x)
        behind = torch.get_rng_state()
        torch.manual_seed(5)
        assert torch.equal(model(x), first)
    assert torch.equal(torch.get_rng_state(), behind)


# ---------------------------------------------------------------- half precision


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_close_to_peft_and_adapter_gradients_stay_float32(fused, base):
    model, x = adapted(dtype=torch.float32), inputs(2, 40, dtype=torch.float32)
    wanted = step(model, x)
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(base)
    with fused_lora(copied), torch.autocast("cpu", torch.bfloat16):
        found = step(copied, x)
    assert fused[0][0].dtype == torch.bfloat16
    for name, gradient in wanted[2].items():
        assert found[2][name].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found[2][name].flatten(), gradient.flatten(), dim=0) > 0.999, name
    assert found[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found[1].flatten(), wanted[1].flatten(), dim=0) > 0.999
    # bfloat16 keeps 8 bits: 0.4 % of a value, and a few of them add up.
    assert (found[0].float() - wanted[0]).abs().max() < 0.03 * wanted[0].abs().max()
