"""A base in 4 or 8 bits: what was loaded trains, and counts on no processor."""

import numpy as np
import pytest
import torch

from ebr.model.adapters import attach_lora
from ebr.model.encoder import load_encoder, save_encoder

pytest.importorskip("bitsandbytes")

TEXTS = ["buy a red shoe", "the lamp", "a " * 40]


def packed_layers(model):
    """Names of the 4-bit layers whose weights were packed for inference, or may be at the next pass."""
    four = {name: layer for name, layer in model.named_modules() if hasattr(layer, "support_avx512bf16_for_cpu")}
    assert four
    return [
        name
        for name, layer in four.items()
        if layer.support_avx512bf16_for_cpu or getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    ]


@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_model"])
def test_no_pass_through_a_4_bit_base_packs_its_weights_on_either_processor(base, processor, request):
    model = load_encoder(request.getfixturevalue(base), quantization_bits=4, device="cpu")
    assert packed_layers(model) == []
    model.encode(TEXTS)
    assert packed_layers(model) == []


@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_model"])
def test_a_4_bit_base_gives_gradients_after_it_has_embedded_on_either_processor(base, processor, request):
    model = load_encoder(request.getfixturevalue(base), quantization_bits=4, device="cpu")
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    model.encode(TEXTS)
    model.train()
    model(model.preprocess(TEXTS))["sentence_embedding"].square().sum().backward()
    gradients = {name: one.grad.abs().max() for name, one in model.named_parameters() if "lora_B" in name}
    assert gradients
    assert all(gradient > 0 for gradient in gradients.values())


def test_a_4_bit_base_has_the_vectors_of_its_own_dequantised_weights_on_either_processor(tiny_decoder, processor):
    from bitsandbytes.functional import dequantize_4bit

    four, whole = load_encoder(tiny_decoder, quantization_bits=4, device="cpu"), load_encoder(tiny_decoder, device="cpu")
    layers = dict(four[0].model.named_modules())
    for name, module in whole[0].model.named_modules():
        if hasattr(layers[name], "support_avx512bf16_for_cpu"):
            module.weight.data = dequantize_4bit(layers[name].weight.data, layers[name].weight.quant_state).float()
    np.testing.assert_allclose(four.encode(TEXTS), whole.encode(TEXTS), atol=1e-4)


def test_an_adapter_on_a_4_bit_base_comes_back_unpacked_on_either_processor(tiny_decoder, processor, tmp_path):
    from ebr.data.files import write_json

    model = load_encoder(tiny_decoder, quantization_bits=4, device="cpu")
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    save_encoder(model, tmp_path / "adapter")
    write_json(tmp_path / "adapter" / "ebr_manifest.json", {"config": {"finetune_type": "qlora", "quantization_bits": 4}})
    again = load_encoder(str(tmp_path / "adapter"), device="cpu")
    assert packed_layers(again) == []
    np.testing.assert_allclose(again.encode(TEXTS), model.eval().encode(TEXTS), atol=1e-5)


def test_an_8_bit_base_trains(tiny_model):
    model = load_encoder(tiny_model, quantization_bits=8, device="cpu")
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    model.encode(TEXTS)
    model.train()
    model(model.preprocess(TEXTS))["sentence_embedding"].square().sum().backward()
    assert all(torch.any(one.grad != 0) for name, one in model.named_parameters() if "lora_B" in name)
