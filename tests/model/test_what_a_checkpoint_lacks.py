"""Files of weights that are not whole, or hold more than is read: buffers, experts, ends of zeros, pointers, layers, heads."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router
from transformers import AutoTokenizer

from ebr.errors import ModelError
from ebr.model.encoder.encoder import load_encoder
from ebr.model.files.loading import LoadedWeights, check_weights
from tests.whole_models import POINTER, TEXTS, edit_json, lines_of, mean_by_hand, save_bert

WEIGHTS = "model.safetensors"
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 128, "initializer_range": 0.2, "head_dim": 8,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
DECODERS = {
    "Gemma4Text": {
        "global_head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
    },
    "Glm4Moe": {**EXPERTS, "n_routed_experts": 8, "first_k_dense_replace": 0},
    "Qwen3Moe": {**EXPERTS, "num_experts": 4},
}  # fmt: skip


@pytest.fixture
def decoder(tiny_decoder, tmp_path):
    """The folder of a family's model as it is published; its buffers hold something that was learned."""

    def make(family, **options):
        tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
        special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        sizes = {"vocab_size": len(tokenizer), **special, **(options or {**SMALL, **DECODERS[family]})}
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**sizes))
        for name, buffer in model.named_buffers():
            if name.endswith(("layer_scalar", "e_score_correction_bias")):
                buffer.copy_(3 * torch.rand(buffer.shape) + 0.2)
        model.save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        return tmp_path / family

    return make


@pytest.fixture
def plain(tiny_model, tmp_path):
    """The folder of a BERT as transformers saves it."""
    return save_bert(tmp_path / "plain", AutoTokenizer.from_pretrained(tiny_model))


def change(folder, new):
    """The tensors of a file, each as new(name, tensor) has it; None = left out."""
    tensors = {name: new(name, tensor) for name, tensor in load_file(folder / WEIGHTS).items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    return str(folder)


# Buffers


@pytest.mark.parametrize(
    ("family", "buffer"), [("Gemma4Text", "layer_scalar"), ("Glm4Moe", "mlp.gate.e_score_correction_bias")]
)
def test_learned_buffers_that_the_file_lacks_are_refused_all_of_them_or_one(decoder, family, buffer):
    folder = decoder(family)
    load_encoder(str(folder))
    with pytest.raises(ModelError, match=rf"lacks 1 weight that an embedding reads.*\(layers\.1\.{buffer}\); copy the model"):
        load_encoder(change(folder, lambda name, tensor: None if name == f"layers.1.{buffer}" else tensor))
    with pytest.raises(ModelError, match=rf"lacks 2 weights .*\(layers\.0\.{buffer}, layers\.1\.{buffer}\)"):
        load_encoder(change(folder, lambda name, tensor: None if buffer in name else tensor))


def test_a_buffer_that_is_counted_out_or_read_by_nothing_may_be_absent_and_stays_as_it_was(tiny_model):
    model = load_encoder(tiny_model)
    before = model.encode(TEXTS)
    transformer = model[0].model
    transformer.register_buffer("idle", torch.ones(3))
    check_weights(model, [LoadedWeights(transformer, frozenset({"embeddings.position_ids", "idle"}), frozenset(), ())], "model")
    assert transformer.idle.tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_array_equal(model.encode(TEXTS), before)


# Experts, put together from several weights of the file


@pytest.mark.parametrize("coloured", [False, True])
def test_an_expert_of_another_shape_is_named_with_the_model_and_why_also_at_a_terminal(decoder, monkeypatch, coloured):
    from transformers.utils import loading_report

    monkeypatch.setattr(loading_report.sys.stdout, "isatty", lambda: coloured, raising=False)
    bent = "layers.0.mlp.experts.1.down_proj.weight"
    folder = change(decoder("Qwen3Moe"), lambda name, tensor: torch.ones(5, 32) if name == bent else tensor)
    said = (
        r"^model '.*Qwen3Moe': its weights layers\.0\.mlp\.experts\.down_proj cannot be put together from those of its file "
        r"\(stack expects each tensor to be equal size, but got \[32, 16\] .* and \[5, 32\] .*\); copy the model again$"
    )
    with pytest.raises(ModelError, match=said):
        load_encoder(folder)


# A download that broke off in a file that was as large as it was to become


@pytest.mark.parametrize("share", [0.05, 0.12, 0.4])
def test_a_file_whose_end_is_zeros_is_refused(plain, share):
    content = (plain / WEIGHTS).read_bytes()
    lost = int(len(content) * share)
    (plain / WEIGHTS).write_bytes(content[:-lost] + bytes(lost))
    with pytest.raises(ModelError, match=rf"{WEIGHTS}: ends in [\d,]+ zeros, in \S+\.weight, as from a copy that broke off"):
        load_encoder(str(plain))


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.weight": torch.ones(4, 4), "z.bias": torch.zeros(2048)},
        {"embed_tokens.weight": torch.cat([torch.ones(60, 32), torch.zeros(40, 32)])},
        {"q.lora_B.weight": torch.zeros(64, 64)},
        {"a.weight": torch.zeros(8, 8)},
    ],
    ids=["bias", "padding rows", "adapter", "few"],
)
def test_zeros_that_a_file_may_end_in_are_no_broken_copy(plain, tensors):
    change(plain, lambda name, tensor: torch.zeros_like(tensor) if name.endswith("bias") else tensor)
    save_file(tensors, plain / "more.safetensors")
    assert (plain / "more.safetensors").read_bytes().endswith(bytes(256))
    np.testing.assert_allclose(load_encoder(str(plain)).encode(TEXTS), mean_by_hand(plain), atol=1e-5)


# Pointers of git-lfs


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt"])
def test_a_pointer_beside_a_whole_file_of_weights_does_not_matter(plain, name):
    (plain / name).write_text(POINTER)
    np.testing.assert_allclose(load_encoder(str(plain)).encode(TEXTS), mean_by_hand(plain), atol=1e-5)


def test_a_pointer_in_a_routers_tower_is_named(tiny_model, tmp_path):
    towers = [SentenceTransformer(tiny_model, device="cpu") for _ in range(2)]
    routes = Router.for_query_document([*towers[0]][:2], [*towers[1]][:2])
    SentenceTransformer(modules=[routes], device="cpu").save_pretrained(str(tmp_path / "router"))
    load_encoder(str(tmp_path / "router"))
    (tmp_path / "router" / "document_0_Transformer" / WEIGHTS).write_text(POINTER)
    with pytest.raises(ModelError, match=rf"document_0_Transformer/{WEIGHTS}: is a git-lfs pointer.*git lfs pull"):
        load_encoder(str(tmp_path / "router"))


# Weights that are used nowhere


def test_a_layer_of_opt_that_its_configuration_does_not_have_is_said(decoder, caplog):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32}
    folder = decoder("OPT", **sizes, max_position_embeddings=128)
    load_encoder(str(folder))
    assert lines_of(caplog) == []
    edit_json(folder / "config.json", num_hidden_layers=2)
    load_encoder(str(folder))
    (line,) = lines_of(caplog)
    assert "16 weights in its file have no place in OPTModel and are not used: decoder.layers.2.fc1.bias" in line


@pytest.mark.parametrize("base", ["encoder", "decoder"])
def test_heads_and_numbers_of_positions_are_no_news(plain, tiny_decoder, tmp_path, caplog, base):
    heads = {
        "lm_head.weight", "lm_head.decoder.weight", "classifier.weight", "score.weight", "cls.predictions.decoder.weight",
        "cls.predictions.transform.dense.weight", "cls.seq_relationship.weight", "embeddings.position_ids", "qa_outputs.weight",
    }  # fmt: skip
    folder = plain
    if base == "decoder":
        folder = tmp_path / "decoder"
        transformers.AutoModel.from_pretrained(tiny_decoder).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_decoder).save_pretrained(folder)
    heads = heads - {"embeddings.position_ids"} | {"pooler.extra.weight"} if base == "decoder" else heads
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, **{name: torch.ones(2, 32) for name in heads}}, folder / WEIGHTS, metadata={"format": "pt"})
    load_encoder(str(folder))
    assert lines_of(caplog) == []
