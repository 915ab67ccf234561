"""An adapter's folder as an encoder: taken up whole, embedding as its base and itself say, or refused."""

import json
import logging
import shutil

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ebr.cli import main
from ebr.data.files.write import write_json
from ebr.errors import ModelError
from ebr.model.encoder.encoder import load_encoder, save_encoder
from ebr.model.encoder.pooling import pooling_name
from tests.lora_adapters import (
    PROMPTS,
    QUERY,
    WEIGHTS,
    merge,
    rewrite,
    said_by_us,
    save_tuned,
    train_away,
    tuned,
    vectors,
)
from tests.model.test_foreign_adapters import PREFIXES


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """The folder of an adapter that embeds otherwise than its base: by CLS, with prompts and lengths."""
    return save_tuned(tiny_model, tmp_path / "adapter")[0]


def loaded(folder, **options):
    return vectors(load_encoder(str(folder), device="cpu", **options))


def bare(adapter):
    """The same adapter as peft alone saves it: nothing about embedding."""
    folder = adapter.parent / "bare"
    folder.mkdir()
    for name in (WEIGHTS, "adapter_config.json"):
        shutil.copy(adapter / name, folder)
    return folder


# Names


@pytest.mark.parametrize("default", [False, True], ids=["plain", "default"])
@pytest.mark.parametrize("prefix", [*PREFIXES.values(), "base_model.model.language_model.", "language_model."])
def test_an_adapter_under_any_prefix_is_taken_up(tiny_model, adapter, prefix, default):
    expected = vectors(adapter)
    name = ".default.weight" if default else ".weight"
    rewrite(adapter, lambda key: prefix + key.removeprefix("base_model.model.").replace(".weight", name))
    np.testing.assert_allclose(loaded(adapter), expected, atol=1e-5)
    assert abs(loaded(adapter) - vectors(tiny_model)).max() > 0.1


@pytest.mark.parametrize(
    ("new_name", "said"),
    [
        (lambda key: None if "layer.1." in key else key, r"4 places without weights: encoder\.layer\.1"),
        (lambda key: None if f"{QUERY}.lora_B" in key else key, "1 places without weights"),
        (lambda key: key.replace("layer.1.", "layer.7."), r"weights without a place: .*layer\.7"),
        (lambda key: key.replace("attention", "attn"), "layers that it lacks"),
    ],
    ids=["a layer missing", "half a layer", "another layer", "no layer"],
)
def test_an_adapter_that_is_not_taken_up_whole_is_refused_by_name(adapter, new_name, said):
    rewrite(adapter, new_name)
    with pytest.raises(ModelError, match=said):
        load_encoder(str(adapter))


def test_an_adapter_that_does_not_fit_ends_the_commands_with_one_line(tiny_model, adapter, evaluation_folder, tmp_path, capfd):
    rewrite(adapter, lambda key: None if "layer.1." in key else key)
    table = tmp_path / "in" / "a.csv"
    table.parent.mkdir()
    table.write_text("id\x01description\n1\x01red shoe\n")
    infer = ["infer", "--model_path", str(adapter), "--input_dir", str(table.parent), "--output_path", str(tmp_path / "v.npy")]
    evaluate = ["evaluate", "--models", f"{tiny_model},{adapter}", "--eval_dataset", str(evaluation_folder)]
    for command in (infer, [*evaluate, "--output_dir", str(tmp_path / "report")]):
        assert main(command) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("ebr: ")]
        assert "encoder.layer.1" in line
    assert not (tmp_path / "v.npy").exists()


# Kinds


@pytest.mark.parametrize(
    "lora",
    [{"use_dora": True}, {"use_rslora": True}, {"bias": "lora_only"}, {"modules_to_save": ["LayerNorm"]},
     {"target_modules": ["query", "word_embeddings"]}, {"trainable_token_indices": [7, 9]}],
    ids=lambda lora: next(iter(lora)),
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["base_model.model.", "model.base_model.model."])
def test_every_kind_of_lora_embeds_as_it_was_trained_and_merges_to_the_same(tiny_model, tmp_path, lora, prefix):
    model = tuned(tiny_model, **lora)
    expected = vectors(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    rewrite(tmp_path / "adapter", lambda key: key.replace("base_model.model.", prefix))
    np.testing.assert_allclose(loaded(tmp_path / "adapter"), expected, atol=1e-5)
    np.testing.assert_allclose(vectors(merge(tiny_model, tmp_path / "adapter")[0].model_path), expected, atol=1e-5)


# How to embed


def test_an_adapter_that_says_how_to_embed_is_asked(adapter):
    model = load_encoder(str(adapter), device="cpu")
    assert (pooling_name(model), model.prompts, model.max_seq_length) == ("cls", PROMPTS, 16)
    assert (model[0].query_length, model[0].document_length) == (8, 16)
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_bare_adapter_embeds_as_its_base_says(tiny_model, adapter, tmp_path, caplog):
    base = SentenceTransformer(tiny_model, device="cpu")
    base.prompts, base.max_seq_length, base[1].pooling_mode = {"query": "ask: ", "document": "the: "}, 12, "max"
    base.save_pretrained(str(tmp_path / "base"))
    expected_model = tuned(str(tmp_path / "base"))
    folder = bare(adapter)
    with caplog.at_level(logging.INFO):
        model = load_encoder(str(folder), base_model_path=str(tmp_path / "base"), device="cpu")
    assert (pooling_name(model), model.prompts["query"], model.max_seq_length) == ("max", "ask: ", 12)
    np.testing.assert_allclose(vectors(model), vectors(expected_model), atol=1e-5)
    assert [line for line in said_by_us(caplog) if "taken from the base" in line]
    merged, _ = merge(tmp_path / "base", folder)
    np.testing.assert_allclose(vectors(merged.model_path), vectors(model), atol=1e-5)


def test_a_bare_adapter_on_a_plain_decoder_pools_the_last_token_closed_by_eos(tiny_decoder, tmp_path):
    base = load_encoder(tiny_decoder, device="cpu")
    peft = get_peft_model(AutoModel.from_pretrained(tiny_decoder), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    train_away(peft).save_pretrained(tmp_path / "bare")
    base[0].model = peft.base_model.model
    expected = vectors(base)
    np.testing.assert_allclose(loaded(tmp_path / "bare"), expected, atol=1e-5)
    np.testing.assert_allclose(vectors(merge(tiny_decoder, tmp_path / "bare")[0].model_path), expected, atol=1e-5)


@pytest.mark.parametrize("base", ["tiny_model", "tiny_decoder"])
def test_tokens_that_an_adapter_added_and_trained_are_its_own(base, request, tmp_path):
    base = request.getfixturevalue(base)
    texts = ["red foozle shoe", "barquux", "red shoe"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["foozle", "barquux"])
    whole = AutoModel.from_pretrained(base)
    whole.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers = ["q_proj"] if "qwen" in str(base) else ["query"]
    name = "embed_tokens" if "qwen" in str(base) else "word_embeddings"
    peft = get_peft_model(whole, LoraConfig(r=4, target_modules=layers, modules_to_save=[name]))
    train_away(peft).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    # The right vectors: the trained model behind the base's pooling and the grown tokenizer.
    right = load_encoder(base, device="cpu")
    closing = right.tokenizer("a")["input_ids"][-1]
    right[0].model = peft.base_model.model
    right.tokenizer.add_tokens(["foozle", "barquux"])
    expected = right.encode(texts)
    model = load_encoder(str(tmp_path / "adapter"), device="cpu")
    assert len(model.tokenizer("foozle")["input_ids"]) == len(right.tokenizer("foozle")["input_ids"])
    assert model.tokenizer("a")["input_ids"][-1] == closing
    np.testing.assert_allclose(model.encode(texts), expected, atol=1e-5)
    merged, _ = merge(base, tmp_path / "adapter")
    np.testing.assert_allclose(SentenceTransformer(str(merged.model_path), device="cpu").encode(texts), expected, atol=1e-5)


def test_a_merged_model_is_held_against_its_adapters_own_tokenizer(tiny_model, adapter, monkeypatch):
    """What merging drops shows in the cosine that it asks for: the two are embedded each as its own folder says."""
    from ebr.model.encoder import merging

    plain = merging.save_merged

    def dropping(encoder, *args, **kwargs):
        plain(encoder, *args, **kwargs)
        folder = args[1]
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)

    AutoTokenizer.from_pretrained(adapter, do_lower_case=False).save_pretrained(adapter)  # capitals are unknown to it
    monkeypatch.setattr(merging, "save_merged", dropping)
    with pytest.raises(ModelError, match=r"differs from base \+ adapter"):
        merge(tiny_model, adapter)


# Heads and grown tables


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "lm_head"], "all-linear"])
def test_an_adapter_of_a_whole_language_model_leaves_its_head_aside(tiny_decoder, tmp_path, targets, caplog):
    whole = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    whole.config.tie_word_embeddings = False
    peft = get_peft_model(whole, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    train_away(peft).save_pretrained(tmp_path / "adapter")
    right = load_encoder(tiny_decoder, device="cpu")
    right[0].model = peft.base_model.model.model
    np.testing.assert_allclose(loaded(tmp_path / "adapter"), vectors(right), atol=1e-5)
    if "lm_head" in targets:
        assert any("does not read are left out (base_model.model.lm_head" in line for line in said_by_us(caplog))
    np.testing.assert_allclose(vectors(merge(tiny_decoder, tmp_path / "adapter")[0].model_path), vectors(right), atol=1e-5)


def test_an_adapter_of_a_classifier_leaves_its_scores_aside(tiny_decoder, tmp_path):
    whole = AutoModelForSequenceClassification.from_pretrained(tiny_decoder, num_labels=2)
    peft = get_peft_model(whole, LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS"))
    train_away(peft).save_pretrained(tmp_path / "adapter")
    right = load_encoder(tiny_decoder, device="cpu")
    right[0].model = peft.base_model.model.model
    np.testing.assert_allclose(loaded(tmp_path / "adapter"), vectors(right), atol=1e-5)
    np.testing.assert_allclose(vectors(merge(tiny_decoder, tmp_path / "adapter")[0].model_path), vectors(right), atol=1e-5)


def test_a_layer_beside_the_model_that_the_base_has_is_no_head(tiny_model, adapter):
    """`encoder` behind another prefix than the rest is a layer that finds no place."""
    rewrite(
        adapter,
        lambda key: key.replace("base_model.model.", "base_model.model.bert.") if QUERY not in key else key,
    )
    with pytest.raises(ModelError, match="weights without a place"):
        load_encoder(str(adapter))


@pytest.mark.parametrize("how", ["saved whole", "modules_to_save", "indices"])
def test_a_table_that_grew_with_the_adapter_grows_again(tiny_decoder, tmp_path, how):
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    n_before = len(tokenizer)
    tokenizer.add_tokens(["foozle", "barquux"])
    whole = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    whole.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    more = {"modules_to_save": {"modules_to_save": ["embed_tokens", "lm_head"]},
            "indices": {"trainable_token_indices": [3, n_before, n_before + 1]}}.get(how, {})  # fmt: skip
    peft = get_peft_model(whole, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **more))
    train_away(peft).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    right = load_encoder(tiny_decoder, device="cpu")
    right[0].model = peft.base_model.model.model
    right.tokenizer.add_tokens(["foozle", "barquux"])
    texts = ["red foozle shoe", "barquux", "red shoe"]
    expected = right.encode(texts)
    np.testing.assert_allclose(load_encoder(str(tmp_path / "adapter"), device="cpu").encode(texts), expected, atol=1e-5)
    merged = SentenceTransformer(str(merge(tiny_decoder, tmp_path / "adapter")[0].model_path), device="cpu")
    np.testing.assert_allclose(merged.encode(texts), expected, atol=1e-5)
    assert merged[0].model.config.vocab_size == n_before + 2


def test_a_grown_table_whose_rows_are_not_there_is_refused_and_the_base_not_blamed(tiny_decoder, tmp_path):
    whole = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    n_before = whole.config.vocab_size
    whole.resize_token_embeddings(n_before + 2, mean_resizing=False)
    peft = get_peft_model(whole, LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"))
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(
        ModelError, match=rf"a table of {n_before + 2} tokens, where the base has {n_before}, and holds no rows"
    ):
        load_encoder(str(tmp_path / "adapter"))


# The base


def test_a_base_whose_weights_have_changed_since_is_said(tiny_model, adapter, caplog):
    write_json(adapter / "ebr_manifest.json", {"base_sha256": "0" * 64, "config": {"finetune_type": "lora"}})
    load_encoder(str(adapter))
    assert [line for line in said_by_us(caplog) if "is not the base that the adapter was trained on" in line]


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("D:\\models\\base", r"names the base 'D:\\\\models\\\\base', which is not here"),
        ("/lost/base", "names the base '/lost/base', which is not here"),
        (None, "names no base"),
        ("", "names no base"),
        ("someone/unknown", "its base cannot be found: .*someone/unknown"),
    ],
)
def test_a_base_that_is_not_found_names_the_file_and_the_way_out(tiny_model, adapter, named, said):
    expected = vectors(adapter)
    rewrite(adapter, lambda key: key, base_model_name_or_path=named)
    with pytest.raises(ModelError, match=rf"adapter_config\.json: {said}.*--base_model_path"):
        load_encoder(str(adapter))
    np.testing.assert_allclose(loaded(adapter, base_model_path=tiny_model), expected, atol=1e-5)


def test_a_base_beside_the_adapter_is_found_from_any_working_directory(tiny_model, adapter, tmp_path, monkeypatch):
    expected = vectors(adapter)
    shutil.copytree(tiny_model, adapter.parent / "base")
    rewrite(adapter, lambda key: key, base_model_name_or_path="../base")
    monkeypatch.chdir("/")
    np.testing.assert_allclose(loaded(adapter), expected, atol=1e-5)


def test_a_base_inside_the_adapters_folder_is_the_base(tiny_model, adapter):
    expected = vectors(adapter)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"{tiny_model}/{name}", adapter)
    rewrite(adapter, lambda key: key, base_model_name_or_path="/lost/base")
    np.testing.assert_allclose(loaded(adapter), expected, atol=1e-5)


def test_a_base_path_for_a_whole_model_is_refused(tiny_model):
    with pytest.raises(ModelError, match="is no adapter, but whole; leave it out"):
        load_encoder(tiny_model, base_model_path=tiny_model)


def test_an_adapter_as_base_is_refused(adapter):
    other = shutil.copytree(adapter, adapter.parent / "other")
    with pytest.raises(ModelError, match="is an adapter itself"):
        load_encoder(str(adapter), base_model_path=str(other))


def test_a_loaded_adapter_is_saved_as_an_adapter_of_the_same_base(tiny_model, adapter, tmp_path):
    model = load_encoder(str(adapter), device="cpu")
    save_encoder(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    settings = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == tiny_model
    modules = json.loads((tmp_path / "saved" / "modules.json").read_text())
    assert "Around" not in json.dumps(modules)
    np.testing.assert_allclose(loaded(tmp_path / "saved"), vectors(adapter), atol=1e-6)
    np.testing.assert_allclose(vectors(tmp_path / "saved"), vectors(adapter), atol=1e-6)


def test_an_adapter_of_another_kind_is_refused(adapter):
    rewrite(adapter, lambda key: key, peft_type="IA3")
    with pytest.raises(ModelError, match="peft_type is 'IA3'"):
        load_encoder(str(adapter))


def test_a_diverged_adapter_is_refused(adapter):
    tensors = load_file(adapter / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(ModelError, match="nan or inf"):
        load_encoder(str(adapter))
