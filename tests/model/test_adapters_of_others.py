"""Adapters as others train and save them: on heads, on parameters, with tokens of their own; right, or refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from ebr.errors import ModelError
from ebr.model.adapters.attach import attach_lora
from ebr.model.encoder.encoder import load_encoder
from tests.lora_adapters import (
    WEIGHTS,
    by_hand,
    merge,
    peft_of,
    refuse,
    rewrite,
    said_by_us,
    save_tuned,
    tuned,
    vectors,
)

TEXTS = ["buy a red shoe", "the blue small cup", "这是一个大国", "a book " * 12]


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """The folder of an adapter that embeds otherwise than its base: by CLS, with prompts and lengths."""
    return save_tuned(tiny_model, tmp_path / "adapter")[0]


def unit_vectors(model, **options):
    model = load_encoder(str(model), device="cpu", **options) if not isinstance(model, SentenceTransformer) else model
    return model.encode(TEXTS, normalize_embeddings=True)


def loads_and_merges_to(expected, base, folder):
    np.testing.assert_allclose(unit_vectors(folder), expected, atol=1e-5)
    merged = SentenceTransformer(str(merge(base, folder)[0].model_path), device="cpu")
    np.testing.assert_allclose(unit_vectors(merged), expected, atol=1e-5)


# Tokens


def test_a_tokenizer_of_the_adapters_own_closes_texts_with_its_own_token(tiny_decoder, tmp_path):
    peft = peft_of(AutoModel.from_pretrained(tiny_decoder), target_modules=["q_proj", "v_proj"])
    peft.save_pretrained(tmp_path / "adapter")
    own = AutoTokenizer.from_pretrained(tiny_decoder, eos_token="<|endoftext|>")
    own.save_pretrained(tmp_path / "adapter")
    closed = by_hand(peft.base_model.model, own, TEXTS, last=True, close=[own.eos_token_id])
    loads_and_merges_to(closed, tiny_decoder, tmp_path / "adapter")


def test_tokens_that_an_adapter_added_and_did_not_all_train_are_refused(tiny_decoder, tmp_path):
    tokenizer, whole = AutoTokenizer.from_pretrained(tiny_decoder), AutoModelForCausalLM.from_pretrained(tiny_decoder)
    n_before = len(tokenizer)
    tokenizer.add_tokens(["foozle", "barquux", "wibble"])
    whole.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    trained = {"trainable_token_indices": {"embed_tokens": [n_before, n_before + 1]}}
    peft = peft_of(whole, target_modules=["q_proj"], task_type="CAUSAL_LM", **trained)
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=rf"ids up to {n_before + 2}, and its table of embeddings {n_before + 2} rows"):
        load_encoder(str(tmp_path / "adapter"))


# Heads, towers and experts


def test_an_adapter_trained_under_a_head_of_masked_words_needs_no_pooler(tiny_model, tmp_path):
    peft = peft_of(AutoModelForMaskedLM.from_pretrained(tiny_model), target_modules=["query", "dense"])
    peft.save_pretrained(tmp_path / "adapter")
    expected = by_hand(peft.base_model.model.bert, AutoTokenizer.from_pretrained(tiny_model), TEXTS)
    loads_and_merges_to(expected, tiny_model, tmp_path / "adapter")


def test_an_adapter_of_both_towers_embeds_by_the_encoders_part(tiny_model, tmp_path, caplog):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=3.0,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.sep_token_id, decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    base = tmp_path / "t5"
    transformers.T5ForConditionalGeneration(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    peft = peft_of(AutoModelForSeq2SeqLM.from_pretrained(base), target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    peft.save_pretrained(tmp_path / "adapter")
    loads_and_merges_to(by_hand(peft.base_model.model.get_encoder(), tokenizer, TEXTS), base, tmp_path / "adapter")
    assert any("16 weights of layers that an embedding does not read are left out" in line for line in said_by_us(caplog))


def test_an_adapter_of_experts_finds_their_parameters(tiny_decoder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=64, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1,
        max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    base = tmp_path / "moe"
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    peft = peft_of(AutoModelForCausalLM.from_pretrained(base), target_modules="all-linear", task_type="CAUSAL_LM")
    assert any("mlp.experts" in name and "lora_A" in name for name, _ in peft.named_parameters())
    peft.save_pretrained(tmp_path / "adapter")
    expected = by_hand(peft.base_model.model.model, tokenizer, TEXTS, last=True, close=[tokenizer.eos_token_id])
    loads_and_merges_to(expected, base, tmp_path / "adapter")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda key: key.replace("layer.1.", "layer.1._checkpoint_wrapped_module."),
        lambda key: "_fsdp_wrapped_module." + key.replace("layer.0.", "layer.0._fsdp_wrapped_module."),
    ],
    ids=["checkpointed", "sharded"],
)
def test_what_wrapped_the_layers_in_training_is_no_part_of_their_names(tiny_model, adapter, wrapped):
    expected = unit_vectors(adapter)
    assert abs(expected - unit_vectors(tiny_model)).max() > 0.1
    loads_and_merges_to(expected, tiny_model, rewrite(adapter, wrapped))


# The folder


def test_a_base_in_the_old_layout_lends_its_tokenizer_to_an_adapter_without_one(tiny_model, tmp_path):
    base = tmp_path / "old"
    shutil.copytree(
        tiny_model, base / "0_Transformer", ignore=shutil.ignore_patterns("1_*", "2_*", "modules.json", "*_config.json")
    )
    shutil.copy(f"{tiny_model}/tokenizer_config.json", base / "0_Transformer")
    shutil.copytree(f"{tiny_model}/1_Pooling", base / "1_Pooling")
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (base / "modules.json").write_text(json.dumps(modules))
    model = tuned(str(base))
    model.save_pretrained(str(tmp_path / "adapter"))
    rewrite(tmp_path / "adapter", lambda key: key, base_model_name_or_path=str(base))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "adapter" / name).unlink()
    loads_and_merges_to(unit_vectors(model), base, tmp_path / "adapter")


def test_an_adapter_that_lost_its_modules_json_is_not_embedded_as_its_base(tiny_model, adapter, caplog):
    (adapter / "modules.json").unlink()
    said = r"modules\.json is absent, which says what becomes of 1_Pooling, .*give --pooling to embed by its transformer alone"
    with pytest.raises(ModelError, match=said):
        load_encoder(str(adapter))
    model = load_encoder(str(adapter), pooling="cls", device="cpu")
    right = tuned(tiny_model)
    right[1].pooling_mode = "cls"
    np.testing.assert_allclose(vectors(model), vectors(right), atol=1e-5)
    assert any("embedded by its transformer alone, pooled by cls" in line for line in said_by_us(caplog))


# What cannot come back


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alora_invocation_tokens": [7, 9]}, "alora_invocation_tokens: acts behind a call in the text alone"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' splits the base at random .*convert the adapter"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication: adapters on copies of the base's layers"),
        ({"r": "4"}, "r is '4', not a number"),
        ({"r": None, "lora_alpha": True}, "r is None, lora_alpha is True, not a number"),
        ({"task_type": "EMBEDDING"}, "cannot be used .*Invalid task type"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_bring_no_adapter_back_are_refused_by_name(tiny_model, adapter, settings, said):
    rewrite(adapter, lambda key: key, **settings)
    with pytest.raises(ModelError, match=rf"adapter_config\.json: .*{said}"):
        load_encoder(str(adapter))
    refuse(tiny_model, adapter, said)


def test_a_pickled_adapter_is_refused_with_the_way_out(tiny_model, adapter):
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    said = r"adapter_model\.bin: is a pickle, .*save the adapter as safetensors"
    with pytest.raises(ModelError, match=said):
        load_encoder(str(adapter))
    refuse(tiny_model, adapter, said)


# Bases that take none


def test_a_model_without_linear_layers_gets_no_adapter(tiny_model, tmp_path):
    config = transformers.AutoConfig.from_pretrained(tiny_model, num_hidden_layers=0)
    transformers.BertModel(config).save_pretrained(tmp_path / "shallow")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "shallow")
    with pytest.raises(
        ModelError, match="finetune_type lora: an embedding of this model passes through no linear layer; use full"
    ):
        attach_lora(load_encoder(str(tmp_path / "shallow")), r=2, alpha=4, dropout=0.0)
