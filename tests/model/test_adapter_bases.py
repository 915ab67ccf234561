"""The base under an adapter: which one it is, whether it is still the one of training, and what is said where it is not."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

from ebr.cli import main
from ebr.config import EvaluationConfig, FinetuneConfig, InferenceConfig
from ebr.data.files.write import write_json
from ebr.errors import ConfigError, ModelError
from ebr.inference.command import run_batch_inference
from ebr.inference.workers.spec import EngineSpec
from ebr.model.encoder.encoder import load_encoder
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.workflow.finetuning import train_sentence_transformer as fine_tune
from tests.lora_adapters import merge, rewrite, said_by_us, save_tuned, vectors


def silent(line):
    """Where lines for people go that nobody looks at."""


def edit_json(file, **values):
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **values})


def warnings(caplog):
    return said_by_us(caplog, logging.WARNING)


# An adapter and a whole model in one folder


@pytest.fixture
def both(tiny_model, tmp_path):
    """The folder of an adapter in which the merged weights lie too, and its vectors before they did."""
    folder, expected = save_tuned(tiny_model, tmp_path / "both")
    whole = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_model), folder).merge_and_unload()
    whole.save_pretrained(tmp_path / "merged")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "merged" / name).rename(folder / name)
    shutil.rmtree(tmp_path / "merged")
    return folder, expected


def test_an_adapter_beside_a_whole_model_is_not_guessed_upon(tiny_model, both):
    folder, expected = both
    said = (
        rf"{folder}: holds an adapter and a whole model, .*names the base {tiny_model}: give that one with "
        rf"--base_model_path {tiny_model}, or the one in the folder with --base_model_path {folder}; .*move adapter_config"
    )
    with pytest.raises(ModelError, match=said):
        load_encoder(str(folder))
    np.testing.assert_allclose(vectors(load_encoder(str(folder), base_model_path=tiny_model)), expected, atol=1e-5)
    np.testing.assert_allclose(vectors(merge(tiny_model, folder)[0].model_path), expected, atol=1e-5)
    (folder / "adapter_config.json").rename(folder / "moved away.json")
    np.testing.assert_allclose(vectors(load_encoder(str(folder))), expected, atol=1e-5)


def test_the_model_beside_an_adapter_is_its_base_where_that_is_said(tiny_model, both):
    folder, expected = both
    shutil.copy(f"{tiny_model}/model.safetensors", folder)
    np.testing.assert_allclose(vectors(load_encoder(str(folder), base_model_path=str(folder))), expected, atol=1e-5)
    rewrite(folder, lambda key: key, base_model_name_or_path=str(folder))
    np.testing.assert_allclose(vectors(load_encoder(str(folder))), expected, atol=1e-5)


def test_the_model_beside_an_adapter_that_names_a_lost_base_is_taken_with_a_warning(both, caplog):
    folder, _ = both
    rewrite(folder, lambda key: key, base_model_name_or_path="/lost/base")
    load_encoder(str(folder))
    (line,) = warnings(caplog)
    assert "the base /lost/base, which the adapter names, is not here" in line
    assert "wrong if the adapter is merged into it already" in line


def test_a_base_that_holds_an_adapter_too_is_taken_without_it(tiny_model, both, tmp_path):
    folder, _ = both
    shutil.copy(f"{tiny_model}/model.safetensors", folder)
    other, expected = save_tuned(tiny_model, tmp_path / "other", target_modules=["key"])
    np.testing.assert_allclose(vectors(load_encoder(str(other), base_model_path=str(folder))), expected, atol=1e-5)


# A base that has changed


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """An adapter of ours, and the folder of its base."""
    home = tmp_path_factory.mktemp("trained")
    (home / "pairs.json").write_text(
        json.dumps([{"anchor": f"buy a {one}", "positive": f"the {one}"} for one in ("lamp", "cup")])
    )
    options = {"max_steps": 1, "max_seq_length": 16, "report_to": ["none"], "validation_split": 0.0}
    config = FinetuneConfig(model_name=tiny_model, data_path=str(home / "pairs.json"), output_dir=home / "saved", **options)
    return fine_tune(config, say=silent).model_path


@pytest.fixture
def changed(tiny_model, tmp_path):
    """A copy of the base, to be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def test_nothing_is_said_of_a_base_that_is_what_it_was(trained, changed, caplog):
    load_encoder(str(trained))
    load_encoder(str(trained), base_model_path=str(changed))
    assert warnings(caplog) == []


def test_another_configuration_of_the_same_weights_is_said_once(trained, changed, caplog):
    edit_json(changed / "config.json", hidden_act="relu")
    load_encoder(str(trained), base_model_path=str(changed))
    (line,) = warnings(caplog)
    assert "is not what its manifest says: 0.model hidden_act was 'gelu', is 'relu'; its vectors may be others" in line


@pytest.mark.parametrize("whose", ["the base", "the adapter"])
def test_another_spelling_is_said_once(trained, changed, tmp_path, whose, caplog):
    adapter = Path(shutil.copytree(trained, tmp_path / "adapter"))
    if whose == "the base":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (adapter / name).unlink()
    load_encoder(str(adapter), base_model_path=str(changed))
    assert warnings(caplog) == []
    folder = changed if whose == "the base" else adapter
    AutoTokenizer.from_pretrained(folder, do_lower_case=False).save_pretrained(folder)
    load_encoder(str(adapter), base_model_path=str(changed))
    (line,) = warnings(caplog)
    assert "is not what its manifest says: its tokenizer makes other tokens of a text" in line


def test_the_workers_of_a_run_do_not_repeat_what_was_said(trained, changed, tmp_path, caplog):
    edit_json(changed / "config.json", hidden_act="relu")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("id\x01description\n1\x01red shoe\n")
    config = InferenceConfig(
        model_path=str(trained), base_model_path=str(changed), input_dir=tmp_path / "in", output_path=tmp_path / "v.npy",
        precision="float32",
    )  # fmt: skip
    run_batch_inference(config, say=silent)
    EngineSpec(str(trained), base_model_path=str(changed)).build()
    load_encoder(str(trained), base_model_path=str(changed), compare=False)
    assert len([line for line in warnings(caplog) if "hidden_act" in line]) == 1


@pytest.mark.parametrize("bits", [4, 8])
def test_the_base_of_a_lora_adapter_held_in_fewer_bits_is_no_other_base(trained, bits, caplog):
    pytest.importorskip("bitsandbytes")
    load_encoder(str(trained), quantization_bits=bits)
    assert warnings(caplog) == []


# Several adapters at once


def test_one_base_for_adapters_of_several_is_refused(tiny_model, evaluation_folder, tmp_path, capfd):
    adapters = [str(save_tuned(tiny_model, tmp_path / name)[0]) for name in ("one", "two", "three")]
    rewrite(Path(adapters[1]), lambda key: key, base_model_name_or_path="/lost/base")
    options = {"models": adapters[:2], "eval_dataset": evaluation_folder, "output_dir": tmp_path / "report"}
    named = rf"{adapters[0]} names {tiny_model}; {adapters[1]} names /lost/base"
    with pytest.raises(ConfigError, match=rf"the adapters are of several bases \({named}\); evaluate them apart"):
        evaluate_retrieval(EvaluationConfig(**options, base_model_path=tiny_model), say=silent)
    command = ["evaluate", "--eval_dataset", str(evaluation_folder), "--output_dir", str(tmp_path / "report"), "--no_baselines"]
    command += ["--base_model_path", tiny_model, "--models"]
    assert main([*command, f"{adapters[0]},{adapters[2]},{tiny_model}"]) == 0
    (Path(adapters[0]) / "adapter_config.json").write_text("{")
    assert main([*command, adapters[0]]) == 2
    assert "cannot be read (Expecting property name" in capfd.readouterr().err.splitlines()[-1]
