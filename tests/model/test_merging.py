"""Merging: the merged model is base + adapter, in the precision asked for, or nothing is written."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from ebr.cli import main
from ebr.config import FinetuneConfig, MergeConfig
from ebr.data.files.write import hash_file, read_json, write_json
from ebr.errors import ConfigError, DataError, ModelError
from ebr.model.encoder import merging as merging_model
from ebr.model.encoder.encoder import load_encoder
from ebr.model.files.identity import fingerprint
from ebr.model.merge_plan import plan_merge
from ebr.workflow.finetuning import train_sentence_transformer as fine_tune
from tests.lora_adapters import PROMPTS, QUERY, TEXTS, WEIGHTS, config_of, merge, refuse, rewrite, save_tuned, tuned, vectors


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """The folder of an adapter that embeds otherwise than its base: by CLS, with prompts and lengths."""
    return save_tuned(tiny_model, tmp_path / "adapter")[0]


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
    from ebr.model.adapters.attach import attach_lora
    from ebr.model.encoder.encoder import load_encoder

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


# Precision


@pytest.mark.parametrize(
    ("beside", "recorded", "asked", "precision", "warned"),
    [
        (None, None, None, "float32", False),
        (None, None, "bfloat16", "bfloat16", False),
        ({"bf16": True}, None, None, "float32", False),
        ({"bf16": False}, None, None, "float32", False),
        (None, True, None, "float32", False),
        ({"bf16": True}, None, "float32", "float32", False),
        (None, False, "bfloat16", "bfloat16", False),
        ({"bf16": True}, None, "bfloat16", "bfloat16", False),
    ],
)
def test_precision_is_float32_unless_asked_for(tiny_model, adapter, beside, recorded, asked, precision, warned):
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
    # The fingerprint is of the model as every command loads it, in float32: what is stored of it is found again.
    loaded = fingerprint(load_encoder(str(result.model_path), device="cpu"))
    assert read_json(result.model_path / "ebr_manifest.json")["model_sha256"] == loaded


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
    assert (record["query_max_len"], record["passage_max_len"]) == (8, 16)
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
    refuse(base, adapter, "something else than an earlier merge", ConfigError, output_path=tmp_path / "mine")
    refuse(base, adapter, "is a file", ConfigError, output_path=tmp_path / "mine" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    assert merge(base, adapter, output_path=tmp_path / "empty")[0].model_path == tmp_path / "empty"


def test_pickle_among_the_settings_is_refused(tiny_model, adapter):
    (adapter / "1_Pooling" / "pytorch_model.bin").write_bytes(b"pickled")
    refuse(tiny_model, adapter, "1_Pooling/pytorch_model.bin: is a pickle")


def test_module_path_that_leads_out_of_the_adapter_is_refused(tiny_model, adapter):
    modules = json.loads((adapter / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    (adapter / "modules.json").write_text(json.dumps(modules))
    (adapter.parent / "elsewhere").mkdir()
    before = {path: path.stat().st_mtime_ns for path in adapter.parent.rglob("*")}
    with pytest.raises(ModelError, match=r"modules\.json: path '\.\./elsewhere' leads out of the folder"):
        merge(tiny_model, adapter, output_path=adapter.parent / "again")
    assert {path: path.stat().st_mtime_ns for path in adapter.parent.rglob("*")} == before


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
    from ebr.model.adapters.attach import attach_lora
    from ebr.model.encoder.encoder import load_encoder

    model = load_encoder(tiny_decoder, quantization_bits=bits, device="cpu")
    torch.manual_seed(1)
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
