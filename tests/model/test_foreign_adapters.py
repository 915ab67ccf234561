"""Adapters from anywhere: every weight finds its layer, whatever it is called, or the adapter is refused."""

import shutil

import numpy as np
import pytest
import torch
from peft import IA3Config
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from ebr.data.files.write import write_json
from ebr.model.adapters.foreign import plain_key
from ebr.model.merge_plan import plan_merge
from tests.lora_adapters import PROMPTS, QUERY, WEIGHTS, config_of, merge, refuse, rewrite, save_tuned, vectors


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """The folder of an adapter that embeds otherwise than its base: by CLS, with prompts and lengths."""
    return save_tuned(tiny_model, tmp_path / "adapter")[0]


# What others call a layer

PREFIXES = {
    "peft": "base_model.model.",
    "wrapped": "base_model.model.model.",
    "wrapper": "model.base_model.model.",
    "sentence-transformers": "0.auto_model.",
    "data parallel": "module.",
    "none": "",
    "many": "module.model.base_model.model.bert.",
}


@pytest.mark.parametrize("default", [False, True], ids=["plain", "default"])
@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_foreign_prefixes_find_their_layers(tiny_model, adapter, prefix, default):
    expected = vectors(adapter)
    name = ".default.weight" if default else ".weight"
    rewrite(adapter, lambda key: prefix + key.removeprefix("base_model.model.").replace(".weight", name))
    np.testing.assert_allclose(vectors(merge(tiny_model, adapter)[0].model_path), expected, atol=1e-5)


@pytest.mark.parametrize(
    "targets",
    [
        [f"base_model.model.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")],
        [f"0.auto_model.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")],
        [f"model.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")],
        ["self.query", "self.value"],
        r"model\.encoder\..*\.(query|value)",
        r".*\.(query|value)",
    ],
    ids=["peft", "sentence-transformers", "wrapped", "ends", "pattern with prefix", "pattern"],
)
def test_targets_under_foreign_names_find_their_layers(tiny_model, adapter, targets):
    expected = vectors(adapter)
    rewrite(adapter, lambda key: key.replace("base_model.model.", "base_model.model.model."), target_modules=targets)
    np.testing.assert_allclose(vectors(merge(tiny_model, adapter)[0].model_path), expected, atol=1e-5)


def test_ranks_and_alphas_of_single_layers_keep_their_layers_under_a_foreign_prefix(tiny_model, tmp_path):
    lora = {"rank_pattern": {QUERY: 2}, "alpha_pattern": {QUERY: 32}}
    adapter, expected = save_tuned(tiny_model, tmp_path / "adapter", **lora)
    patterns = {"rank_pattern": {f"^model.{QUERY}": 2}, "alpha_pattern": {f"model.{QUERY}": 32}}
    rewrite(adapter, lambda key: key.replace("base_model.model.", "base_model.model.model."), **patterns)
    np.testing.assert_allclose(vectors(merge(tiny_model, adapter)[0].model_path), expected, atol=1e-5)


def test_layers_chosen_by_number_and_by_exclusion_keep_their_names(tiny_model, tmp_path):
    lora = {"target_modules": ["query", "value"], "layers_to_transform": [1], "layers_pattern": "layer"}
    adapter, expected = save_tuned(tiny_model, tmp_path / "adapter", **lora)
    rewrite(
        adapter,
        lambda key: key.replace("base_model.model.", "base_model.model.model."),
        exclude_modules=["model.encoder.layer.0.attention.self.query"],
    )
    np.testing.assert_allclose(vectors(merge(tiny_model, adapter)[0].model_path), expected, atol=1e-5)


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"bias": "lora_only"},
        {"modules_to_save": ["LayerNorm"]},
        {"target_modules": ["query", "word_embeddings"]},
    ],
    ids=lambda lora: next(iter(lora.items()))[0] + str(next(iter(lora.values()))),
)
@pytest.mark.parametrize("prefix", ["base_model.model.", "model.base_model.model."])
def test_kinds_of_lora_are_left_to_peft(tiny_model, tmp_path, lora, prefix):
    adapter, expected = save_tuned(tiny_model, tmp_path / "adapter", **lora)
    rewrite(adapter, lambda key: key.replace("base_model.model.", prefix))
    np.testing.assert_allclose(vectors(merge(tiny_model, adapter)[0].model_path), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        ("a.q.lora_A.weight", "a.q.lora_A.weight"),
        ("a.q.lora_B.default.weight", "a.q.lora_B.weight"),
        ("a.q.lora_B.retrieval.bias", "a.q.lora_B.bias"),
        ("a.lora_embedding_A.default", "a.lora_embedding_A"),
        ("a.lora_magnitude_vector.default.weight", "a.lora_magnitude_vector"),
        ("a.modules_to_save.default.dense.weight", "a.dense.weight"),
        ("a.default.bias", "a.default.bias"),
    ],
)
def test_plain_key_lacks_the_name_of_the_adapter(key, plain):
    assert plain_key(key) == plain


# What may be given


def test_file_of_any_name_takes_its_settings_from_beside_it(tiny_model, adapter):
    expected = vectors(adapter)
    rewrite(adapter, lambda key: key, weights="best.safetensors")
    first, _ = merge(tiny_model, adapter / "best.safetensors")
    np.testing.assert_allclose(vectors(first.model_path), expected, atol=1e-5)
    assert SentenceTransformer(str(first.model_path)).prompts == PROMPTS
    assert plan_merge(config_of(tiny_model, adapter)).tuned[0].weights.name == "best.safetensors"


def test_key_without_a_place_is_refused_by_name(tiny_model, adapter):
    rewrite(adapter, lambda key: key.replace("layer.1.", "layer.7."))
    refuse(
        tiny_model, adapter, r"does not fit this base \(4 weights without a place: .*layer\.7\..* …; 4 places without weights"
    )


def test_key_of_another_kind_is_refused_by_name(tiny_model, adapter):
    tensors = load_file(adapter / WEIGHTS)
    save_file({**tensors, "base_model.model.encoder.layer.0.mystery": torch.ones(3)}, adapter / WEIGHTS)
    refuse(tiny_model, adapter, r"1 weights without a place: base_model\.model\.encoder\.layer\.0\.mystery\)")


def test_key_behind_another_prefix_than_the_rest_is_refused(tiny_model, adapter):
    rewrite(adapter, lambda key: key.replace("base_model.model.", "other.") if f"{QUERY}.lora_A" in key else key)
    refuse(tiny_model, adapter, r"1 weights without a place: other\.")


def test_weight_of_another_shape_is_refused(tiny_model, adapter):
    tensors = load_file(adapter / WEIGHTS)
    key = f"base_model.model.{QUERY}.lora_A.weight"
    save_file({**tensors, key: torch.ones(4, 31)}, adapter / WEIGHTS)
    refuse(tiny_model, adapter, r"1 of another shape: .*query\.lora_A\.weight \(4, 31\) where the base takes \(4, 32\)")


def test_layer_of_the_settings_without_weights_is_refused(tiny_model, adapter):
    rewrite(adapter, lambda key: None if QUERY in key else key)
    refuse(tiny_model, adapter, r"2 places without weights: encoder\.layer\.0\.attention\.self\.query\.lora_A")


def test_half_of_a_layer_is_refused(tiny_model, adapter):
    rewrite(adapter, lambda key: None if f"{QUERY}.lora_B" in key else key)
    refuse(tiny_model, adapter, r"1 places without weights: encoder\.layer\.0\.attention\.self\.query\.lora_B")


def test_weights_of_a_layer_that_the_settings_do_not_name_are_refused(tiny_model, adapter):
    rewrite(adapter, lambda key: key, target_modules=["query"])
    refuse(tiny_model, adapter, r"4 weights without a place: .*value")


def test_base_of_another_architecture_is_refused(tiny_decoder, adapter):
    refuse(
        tiny_decoder, adapter, r"4 layers that it lacks: .*base_model_path must be the model that the adapter was trained on"
    )


def test_two_adapters_in_one_file_are_refused(tiny_model, adapter):
    tensors = load_file(adapter / WEIGHTS)
    other = {key.replace(".weight", ".other.weight"): tensor.clone() for key, tensor in tensors.items()}
    save_file({**tensors, **other}, adapter / WEIGHTS)
    refuse(tiny_model, adapter, "twice")


def test_diverged_adapter_is_refused(tiny_model, adapter):
    tensors = load_file(adapter / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, adapter / WEIGHTS)
    refuse(tiny_model, adapter, "nan or inf")


def test_only_lora_is_merged(tiny_model, tmp_path):
    model = SentenceTransformer(tiny_model, device="cpu")
    model.add_adapter(IA3Config(target_modules=["query"], feedforward_modules=[]))
    model.save_pretrained(str(tmp_path / "adapter"))
    refuse(tiny_model, tmp_path / "adapter", "peft_type is 'IA3'; only LORA")


def test_adapter_without_settings_or_weights_is_refused(tiny_model, adapter):
    bare = adapter.parent / "bare"
    bare.mkdir()
    refuse(tiny_model, bare, "holds no .safetensors file")
    shutil.copy(adapter / WEIGHTS, bare)
    refuse(tiny_model, bare / WEIGHTS, "holds no adapter_config.json")
    refuse(tiny_model, adapter / "README.md", "is no .safetensors file")
    refuse(tiny_model, adapter.parent / "absent", "no such folder")
    (adapter / WEIGHTS).write_bytes(b"{}")
    refuse(tiny_model, adapter, "is no whole safetensors file")


def test_adapter_as_base_is_refused(tiny_model, adapter):
    other = shutil.copytree(adapter, adapter.parent / "other")
    refuse(other, adapter, "is an adapter itself")


def test_another_base_of_the_same_shape_is_said_and_merged(tiny_model, adapter, tmp_path):
    write_json(adapter / "ebr_manifest.json", {"base_sha256": "0" * 64, "config": {"finetune_type": "lora"}})
    assert any("is not the base that the adapter was trained on" in line for line in merge(tiny_model, adapter)[1])
    write_json(adapter / "ebr_manifest.json", {"base_sha256": "0" * 64, "config": {"finetune_type": "qlora"}})
    assert not any("is not the base" in line for line in merge(tiny_model, adapter)[1])


def test_setting_that_this_peft_does_not_know_is_refused_unless_it_is_off(tiny_model, adapter):
    rewrite(adapter, lambda key: key, use_tomorrow=False)
    merge(tiny_model, adapter)
    rewrite(adapter, lambda key: key, use_tomorrow={"r": 2})
    refuse(tiny_model, adapter, "this peft does not know use_tomorrow")


def test_weights_behind_a_link_keep_the_settings_beside_the_link(tiny_model, adapter, tmp_path):
    expected = vectors(adapter)
    (tmp_path / "blobs").mkdir()
    (adapter / WEIGHTS).rename(tmp_path / "blobs" / "0123")
    (adapter / WEIGHTS).symlink_to(tmp_path / "blobs" / "0123")
    np.testing.assert_allclose(vectors(merge(tiny_model, adapter)[0].model_path), expected, atol=1e-5)
