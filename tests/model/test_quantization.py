"""A base in 4 or 8 bits: what was loaded trains, and counts on no processor."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from ebr.data.files.write import write_json
from ebr.errors import ModelError
from ebr.model.adapters.attach import attach_lora, train_every_weight
from ebr.model.encoder.encoder import load_encoder, save_encoder

pytest.importorskip("bitsandbytes")

TEXTS = ["buy a red shoe", "the lamp", "a " * 40]


@pytest.fixture
def without_pooler(tiny_model, tmp_path):
    """The same weights as they are published by many: without a pooler, which transformers then makes up."""
    AutoModel.from_pretrained(tiny_model, add_pooling_layer=False).save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "plain")
    return str(tmp_path / "plain")


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


@pytest.fixture(params=[4, 8])
def saved_quantized(request, tiny_model, tmp_path):
    """(folder, bits) of a whole model whose own files hold its weights in few bits."""
    model = load_encoder(tiny_model, quantization_bits=request.param, device="cpu")
    save_encoder(model, tmp_path / "saved")
    return str(tmp_path / "saved"), request.param


def test_a_model_that_was_saved_in_few_bits_says_so_and_learns_by_an_adapter_only(saved_quantized, processor, caplog):
    folder, bits = saved_quantized
    with caplog.at_level("INFO"):
        model = load_encoder(folder, device="cpu")
    assert f"held in {bits} bits, as they were saved" in caplog.text
    with pytest.raises(ModelError, match="finetune_type full: the weights of this model are quantised"):
        train_every_weight(model)
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    model.train()
    model(model.preprocess(TEXTS))["sentence_embedding"].square().sum().backward()
    assert all(one.grad.abs().max() > 0 for name, one in model.named_parameters() if "lora_B" in name)
    with pytest.raises(ModelError, match=rf"was saved in {bits} bits; give quantization_bits {bits}"):
        load_encoder(folder, quantization_bits=12 - bits, device="cpu")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_that_nothing_says_how_to_scale_are_refused(dtype, tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    scaled = {**weights, name: (weights[name] * 100).to(dtype), f"{name}_scale": torch.tensor(0.01)}
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"holds quantised weights \({name}, .*no quantization_config"):
        load_encoder(str(folder))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("base", ["tiny_model", "without_pooler"])
def test_a_pooler_stays_in_float_and_an_adapter_beside_it_comes_back(base, bits, request, tmp_path):
    base = request.getfixturevalue(base)
    model = load_encoder(base, quantization_bits=bits, device="cpu")
    kinds = {name: type(module).__name__ for name, module in model[0].model.named_modules() if hasattr(module, "in_features")}
    assert kinds.pop("pooler.dense") == "Linear"
    assert set(kinds.values()) == {"Linear4bit" if bits == 4 else "Linear8bitLt"}
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    expected = model.eval().encode(TEXTS, normalize_embeddings=True)
    save_encoder(model, tmp_path / "adapter")
    write_json(tmp_path / "adapter" / "ebr_manifest.json", {"config": {"finetune_type": "qlora", "quantization_bits": bits}})
    again = load_encoder(str(tmp_path / "adapter"), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(again, expected, atol=1e-5)
    whole = load_encoder(str(tmp_path / "adapter"), device="cpu", quantization_bits=0)
    cosines = (whole.encode(TEXTS, normalize_embeddings=True) * again).sum(axis=1)
    assert cosines.min() > {4: 0.85, 8: 0.999}[bits]
