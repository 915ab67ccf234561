"""Merging: the merged model is base + adapter, whatever prefix the adapter's weights carry, or nothing is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from ebr.cli import main
from ebr.config import FinetuneConfig, MergeConfig
from ebr.data.files import hash_file, write_json
from ebr.errors import ConfigError, DataError, ModelError
from ebr.model import merging as merging_model
from ebr.model.encoder import fingerprint
from ebr.model.foreign_adapters import plain_key
from ebr.workflow import merge_adapter, plan_merge
from ebr.workflow import train_sentence_transformer as fine_tune

TEXTS = ["buy a red shoe", "the blue small cup", "这是一个大国", "a " * 100]
PROMPTS = {"query": "query: ", "document": "passage: "}
WEIGHTS = "adapter_model.safetensors"
QUERY = "encoder.layer.0.attention.self.query"


def tuned(base, **lora):
    """An encoder with an adapter whose every weight is random: as after training."""
    torch.manual_seed(0)  # peft draws lora_A
    model = SentenceTransformer(base, device="cpu")
    model.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **lora}))
    rng = torch.Generator().manual_seed(1)
    transformer = model[0].model
    places = get_peft_model_state_dict(transformer, save_embedding_layers=False)
    with torch.no_grad():
        for tensor in places.values():
            tensor.add_(torch.randn(tensor.shape, generator=rng) * 0.2)
    return model.eval()


def save_tuned(base, folder, **lora):
    model = tuned(base, **lora)
    model.prompts = PROMPTS
    model[0].query_length, model[0].document_length = 8, 16
    model.max_seq_length = 16
    model[1].pooling_mode = "cls"
    model.save_pretrained(str(folder))
    return folder, vectors(model)


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """The folder of an adapter that embeds otherwise than its base: by CLS, with prompts and lengths."""
    return save_tuned(tiny_model, tmp_path / "adapter")[0]


def merge(base, adapter, **options):
    lines = []
    return merge_adapter(config_of(base, adapter, **options), say=lines.append), lines


def config_of(base, adapter, **options):
    folder = Path(adapter).parent if Path(adapter).is_file() else Path(adapter)
    output = options.pop("output_path", folder.parent / "merged")
    return MergeConfig(base_model_path=str(base), lora_adapter_path=str(adapter), output_path=output, **options)


def vectors(model):
    model = model if isinstance(model, SentenceTransformer) else SentenceTransformer(str(model), device="cpu")
    return np.concatenate([model.encode_query(TEXTS), model.encode_document(TEXTS)])


def rewrite(adapter, rename, *, weights=WEIGHTS, **config):
    """An adapter's keys renamed (None = dropped), and its adapter_config.json changed."""
    tensors = {rename(key): tensor for key, tensor in load_file(adapter / WEIGHTS).items()}
    (adapter / WEIGHTS).unlink()
    save_file({key: tensor for key, tensor in tensors.items() if key}, adapter / weights)
    file = adapter / "adapter_config.json"
    write_json(file, {**json.loads(file.read_text()), **config})
    return adapter


def nothing_written(adapter):
    return {path.name for path in adapter.parent.iterdir()} == {adapter.name}


def test_merged_model_embeds_as_base_with_adapter_and_not_as_base(tiny_model, adapter):
    result, lines = merge(tiny_model, adapter)
    np.testing.assert_allclose(vectors(result.model_path), vectors(adapter), atol=1e-5)
    assert abs(vectors(result.model_path) - vectors(tiny_model)).max() > 0.1
    assert result.smallest_cosine > 0.999999
    assert any("smallest cosine of the merged model" in line for line in lines)
    assert str(result.model_path) in result.summary()


def test_adapter_trained_by_us_merges_without_a_warning(tiny_model, pairs_file, tmp_path):
    trained = fine_tune(
        FinetuneConfig(model_name=tiny_model, data_path=str(pairs_file), output_dir=tmp_path / "saved", max_steps=2,
                       learning_rate=1e-2, max_seq_length=32, report_to=["none"], query_prompt="query: "),
        say=lambda _: None,
    )  # fmt: skip
    result, lines = merge(tiny_model, trained.model_path, output_path=tmp_path / "merged")
    np.testing.assert_allclose(vectors(result.model_path), vectors(trained.model_path), atol=1e-5)
    assert not [line for line in lines if "warning" in line or "not made by ebr" in line]
    record = json.loads((result.model_path / "ebr_manifest.json").read_text())
    assert (record["finetune_type"], record["prompts"]["query"]) == ("lora", "query: ")


def test_plain_transformers_gives_the_same_token_vectors(tiny_model, adapter):
    result, _ = merge(tiny_model, adapter)
    model = SentenceTransformer(str(result.model_path), device="cpu")
    plain, tokenizer = AutoModel.from_pretrained(result.model_path), AutoTokenizer.from_pretrained(result.model_path)
    with torch.no_grad():
        ours = model[0](model.preprocess([TEXTS[0]]))["token_embeddings"]
        theirs = plain.eval()(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state
    assert torch.equal(ours, theirs)


def test_folder_holds_a_whole_model_and_nothing_of_the_adapter(tiny_model, adapter):
    (adapter / "training_args.bin").write_bytes(b"pickled")
    (adapter / "checkpoint-3").mkdir()
    result, _ = merge(tiny_model, adapter)
    names = {path.name for path in result.model_path.iterdir()}
    assert {"model.safetensors", "config.json", "modules.json", "tokenizer.json", "ebr_manifest.json", "1_Pooling"} <= names
    assert not {name for name in names if "adapter" in name or name.endswith(".bin") or "checkpoint" in name}
    assert "quantization_config" not in json.loads((result.model_path / "config.json").read_text())


def test_pooling_prompts_and_lengths_are_those_of_the_adapter(tiny_model, adapter):
    model = SentenceTransformer(str(merge(tiny_model, adapter)[0].model_path), device="cpu")
    assert (model[1].pooling_mode, model.prompts, model.max_seq_length) == ("cls", PROMPTS, 16)
    assert (model[0].query_length, model[0].document_length) == (8, 16)
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]


def test_adapter_that_says_nothing_about_embedding_takes_it_from_the_base(tiny_model, adapter):
    bare = adapter.parent / "bare"
    bare.mkdir()
    for name in (WEIGHTS, "adapter_config.json"):
        shutil.copy(adapter / name, bare)
    result, lines = merge(tiny_model, bare)
    model = SentenceTransformer(str(result.model_path), device="cpu")
    assert (model[1].pooling_mode, model.max_seq_length) == ("mean", 64)
    np.testing.assert_allclose(vectors(model), vectors(tuned(tiny_model)), atol=1e-5)
    assert any("modules.json" in line and "from the base" in line for line in lines)


def test_settings_of_an_adapter_made_elsewhere_are_taken_and_said(tiny_model, adapter):
    assert any("not made by ebr" in line for line in merge(tiny_model, adapter)[1])


def test_base_that_the_adapter_names_by_a_lost_path_is_the_one_given(tiny_model, adapter):
    expected = vectors(adapter)
    rewrite(adapter, lambda key: key, base_model_name_or_path="/lost/base")
    np.testing.assert_allclose(vectors(merge(tiny_model, adapter)[0].model_path), expected, atol=1e-5)


def test_decoder_without_sentence_transformers_files_becomes_an_encoder(tiny_decoder, tmp_path):
    from ebr.model.adapters import attach_lora
    from ebr.model.encoder import load_encoder

    model = load_encoder(tiny_decoder)
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(tmp_path / "adapter"))
    result, _ = merge(tiny_decoder, tmp_path / "adapter")
    merged = SentenceTransformer(str(result.model_path), device="cpu")
    assert merged[1].pooling_mode == "lasttoken"
    np.testing.assert_allclose(vectors(merged), vectors(model), atol=1e-5)


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
    assert plan_merge(config_of(tiny_model, adapter)).adapter.weights.name == "best.safetensors"


def refuse(base, adapter, pattern, error=ModelError, **options):
    before = sorted(adapter.parent.rglob("*"))
    with pytest.raises(error, match=pattern) as caught:
        merge(base, adapter, **options)
    assert "\n" not in str(caught.value)
    assert sorted(adapter.parent.rglob("*")) == before


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
    refuse(tiny_model, adapter, "cannot be read")


def test_adapter_as_base_is_refused(tiny_model, adapter):
    other = shutil.copytree(adapter, adapter.parent / "other")
    refuse(other, adapter, "is an adapter itself")


def test_another_base_of_the_same_shape_is_said_and_merged(tiny_model, adapter, tmp_path):
    write_json(adapter / "ebr_manifest.json", {"base_sha256": "0" * 64, "config": {"finetune_type": "lora"}})
    assert any("is not the base that the adapter was trained on" in line for line in merge(tiny_model, adapter)[1])
    write_json(adapter / "ebr_manifest.json", {"base_sha256": "0" * 64, "config": {"finetune_type": "qlora"}})
    assert not any("is not the base" in line for line in merge(tiny_model, adapter)[1])


# Precision


@pytest.mark.parametrize(
    ("beside", "recorded", "asked", "precision", "warned"),
    [
        (None, None, None, "float32", False),
        (None, None, "bfloat16", "bfloat16", False),
        ({"bf16": True}, None, None, "bfloat16", False),
        ({"bf16": False}, None, None, "float32", False),
        (None, True, None, "bfloat16", False),
        ({"bf16": False}, True, None, "float32", False),
        ({"lr": 1}, True, None, "bfloat16", False),
        ({"bf16": True}, None, "float32", "float32", True),
        (None, False, "bfloat16", "bfloat16", True),
        ({"bf16": True}, None, "bfloat16", "bfloat16", False),
    ],
)
def test_precision_is_the_one_asked_for_else_that_of_training(tiny_model, adapter, beside, recorded, asked, precision, warned):
    if beside is not None:
        write_json(adapter / "training_config.json", beside)
    if recorded is not None:
        write_json(adapter / "ebr_manifest.json", {"config": {"bf16": recorded}})
    plan = plan_merge(config_of(tiny_model, adapter, training_precision=asked))
    assert plan.precision == precision
    assert any("warning: the adapter was trained in" in line for line in plan.lines()) == warned


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_training_config_is_refused(tiny_model, adapter, text):
    (adapter / "training_config.json").write_text(text)
    refuse(tiny_model, adapter, "training_config.json", DataError)


def test_bfloat16_is_on_disk_and_near(tiny_model, adapter):
    result, _ = merge(tiny_model, adapter, training_precision="bfloat16")
    assert {tensor.dtype for tensor in load_file(result.model_path / "model.safetensors").values()} == {torch.bfloat16}
    assert SentenceTransformer(str(result.model_path), device="cpu").dtype == torch.bfloat16
    assert 0.999 <= result.smallest_cosine < 0.9999999


def test_float32_is_on_disk_unless_asked_otherwise(tiny_model, adapter):
    result, _ = merge(tiny_model, adapter)
    assert {tensor.dtype for tensor in load_file(result.model_path / "model.safetensors").values()} == {torch.float32}


# What is written, and when


def test_manifest_says_what_was_merged(tiny_model, adapter):
    result, _ = merge(tiny_model, adapter)
    record = json.loads((result.model_path / "ebr_manifest.json").read_text())
    assert record["kind"] == "model"
    assert record["base_sha256"] == fingerprint(SentenceTransformer(tiny_model, device="cpu"))
    assert record["model_sha256"] == fingerprint(SentenceTransformer(str(result.model_path), device="cpu"))
    assert record["adapter_sha256"] == hash_file(adapter / WEIGHTS)
    assert (record["adapter"], record["base_model"]) == (str(adapter / WEIGHTS), tiny_model)
    assert (record["training_precision"], record["finetune_type"], record["dim"]) == ("float32", None, 32)
    assert (record["pooling"], record["prompts"], record["max_seq_length"]) == ("cls", PROMPTS, 16)
    assert (record["query_length"], record["document_length"]) == (8, 16)
    assert record["smallest_cosine"] > 0.999999
    assert MergeConfig.from_dict(record["config"]).output_path == result.model_path


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoil_weights(monkeypatch):
    save = merging_model.save_merged

    def spoiled(encoder, adapter, folder, **options):
        save(encoder, adapter, folder, **options)
        weights = load_file(folder / "model.safetensors")
        weights[f"{QUERY}.weight"] += 0.05 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merging_model, "save_merged", spoiled)


def full_disk(monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging_model, "save_encoder", fail)
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fail)


def unmerged(monkeypatch):
    """As if peft gave the base back without adding the adapter."""
    monkeypatch.setattr(merging_model.LoraModel, "merge_and_unload", lambda self, **_: self.unload())


def not_a_number(monkeypatch):
    monkeypatch.setattr(merging_model, "smallest_cosine", lambda *_: float("nan"))


@pytest.mark.parametrize("failure", [spoil_weights, full_disk, unmerged, not_a_number])
def test_failure_leaves_the_old_model_as_it_was(tiny_model, adapter, monkeypatch, failure):
    result, _ = merge(tiny_model, adapter)
    before, beside = content(result.model_path), sorted(adapter.parent.iterdir())
    failure(monkeypatch)
    with pytest.raises(OSError if failure is full_disk else ModelError):
        merge(tiny_model, adapter)
    assert content(result.model_path) == before
    assert sorted(adapter.parent.iterdir()) == beside


def test_second_merge_takes_the_place_of_the_first(tiny_model, adapter):
    merge(tiny_model, adapter)
    result, _ = merge(tiny_model, adapter, training_precision="bfloat16")
    assert json.loads((result.model_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {path.name for path in adapter.parent.iterdir()} == {"adapter", "merged"}


def test_output_that_would_hurt_something_is_refused(tiny_model, adapter, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    for output in (adapter, adapter / "merged", tmp_path):
        refuse(base, adapter, "lora_adapter_path", ConfigError, output_path=output)
    for output in (base, base / "merged"):
        refuse(base, adapter, "base_model_path", ConfigError, output_path=output)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refuse(base, adapter, "no model that could be replaced", ConfigError, output_path=tmp_path / "mine")
    refuse(base, adapter, "is a file", ConfigError, output_path=tmp_path / "mine" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    assert merge(base, adapter, output_path=tmp_path / "empty")[0].model_path == tmp_path / "empty"


def test_pickle_among_the_settings_is_refused(tiny_model, adapter):
    (adapter / "1_Pooling" / "pytorch_model.bin").write_bytes(b"pickled")
    refuse(tiny_model, adapter, "1_Pooling/pytorch_model.bin: is a pickle")


def test_smallest_cosine_is_of_the_worst_row_and_nan_stays():
    first = np.array([[1, 0], [1, 1]], dtype=np.float32)
    assert merging_model.smallest_cosine(first, np.array([[2, 0], [1, 0]], dtype=np.float32)) == pytest.approx(0.5**0.5)
    assert np.isnan(merging_model.smallest_cosine(first, np.array([[2, 0], [0, 0]], dtype=np.float32)))


# The shell


def flags(base, adapter, *more):
    output = str(adapter.parent / "merged")
    return ["merge", "--base_model_path", base, "--lora_adapter_path", str(adapter), "--output_path", output, *more]


def test_command_merges_or_says_in_one_line_why_not(tiny_model, adapter, capsys):
    assert main(flags(tiny_model, adapter, "--dry_run")) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert nothing_written(adapter)
    assert main(flags(tiny_model, adapter)) == 0
    assert "cosine" in capsys.readouterr().out
    shutil.rmtree(adapter.parent / "merged")
    rewrite(adapter, lambda key: key.replace("layer.1.", "layer.7."))
    assert main(flags(tiny_model, adapter)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert nothing_written(adapter)


# QLoRA


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_adapter_merges_into_the_unquantised_base(tiny_decoder, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    from ebr.model.adapters import attach_lora
    from ebr.model.encoder import load_encoder

    model = load_encoder(tiny_decoder, quantization_bits=bits, device="cpu")
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapter = tmp_path / "adapter"
    model.save_pretrained(str(adapter))
    write_json(adapter / "training_config.json", {"finetune_type": "qlora", "quantization_bits": bits, "bf16": False})
    result, lines = merge(tiny_decoder, adapter)
    assert result.smallest_cosine > 0.99999
    assert 0.5 < result.quantised_cosine < 0.99999
    assert any(f"with the {bits}-bit base" in line for line in lines)
    assert "quantization_config" not in json.loads((result.model_path / "config.json").read_text())
    assert {tensor.dtype for tensor in load_file(result.model_path / "model.safetensors").values()} == {torch.float32}


def test_comparison_with_the_quantised_base_is_left_out_without_bitsandbytes(tiny_model, adapter, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    write_json(adapter / "training_config.json", {"finetune_type": "qlora", "quantization_bits": 4})
    result, lines = merge(tiny_model, adapter)
    assert result.quantised_cosine is None
    assert any("is left out" in line and "bitsandbytes" in line for line in lines)
