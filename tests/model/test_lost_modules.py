"""A model's own account of how it embeds: lost with modules.json, or not kept by a module that does something else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Router,
    Transformer,
    WeightedLayerPooling,
)
from transformers import AutoConfig, AutoTokenizer

from ebr.errors import ModelError
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.pooling import pooling_name
from tests.lora_adapters import save_tuned
from tests.whole_models import TEXTS, edit_json, lines_of, mean_by_hand, save_bert, save_encoder_of, states_by_hand

PROMPTS = {"query": "query: ", "document": "passage: "}
GELU = "transformers.activations.GELUActivation"


@pytest.fixture
def dense(tiny_model, tmp_path):
    """The folder of an encoder that pools by the first token, and shortens what it pools."""
    torch.manual_seed(3)
    return save_encoder_of(tiny_model, tmp_path / "dense", "cls", [Dense(32, 16), Normalize()], prompts=PROMPTS)


# modules.json


def test_a_folder_whose_modules_json_is_lost_is_refused_with_what_says_so(dense):
    assert load_encoder(str(dense)).encode(TEXTS).shape == (len(TEXTS), 16)
    (dense / "modules.json").unlink()
    said = (
        r"modules\.json is absent, which says what becomes of 1_Pooling, 2_Dense, 3_Normalize, "
        r"config_sentence_transformers\.json, sentence_bert_config\.json; fetch the model again, whole, or give --pooling"
    )
    with pytest.raises(ModelError, match=said):
        load_encoder(str(dense))


@pytest.mark.parametrize("left", ["1_Pooling", "config_sentence_transformers.json"])
def test_one_thing_that_is_left_tells_that_modules_json_was_lost(dense, left):
    for path in dense.iterdir():
        if path.is_dir() and path.name != left:
            shutil.rmtree(path)
        elif path.name in {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"} - {left}:
            path.unlink()
    with pytest.raises(ModelError, match=rf"modules\.json is absent, which says what becomes of {left};"):
        load_encoder(str(dense))


def test_pooling_that_is_asked_for_embeds_by_the_transformer_alone_and_says_what_is_left_out(dense, caplog):
    (dense / "modules.json").unlink()
    model = load_encoder(str(dense), pooling="mean")
    np.testing.assert_allclose(model.encode(TEXTS), mean_by_hand(dense), atol=1e-5)
    (line,) = lines_of(caplog)
    assert "2_Dense" in line
    assert line.endswith("embedded by its transformer alone, pooled by mean")


def test_an_adapter_whose_modules_json_is_lost_is_refused_too(tiny_model, tmp_path):
    adapter, _ = save_tuned(tiny_model, tmp_path / "adapter")
    (adapter / "modules.json").unlink()
    with pytest.raises(ModelError, match=r"adapter': modules\.json is absent, which says what becomes of 1_Pooling"):
        load_encoder(str(adapter))
    assert pooling_name(load_encoder(str(adapter), pooling="cls")) == "cls"


@pytest.fixture
def cached(tiny_model, monkeypatch, tmp_path):
    """A model as the hub's cache keeps it; the hub itself is not in reach."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo, revision = tmp_path / "hub" / "models--org--cached", "a" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(revision)
    snapshot = repo / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_model) / file, snapshot)
    return repo / ".no_exist" / revision


def test_a_model_of_the_hub_whose_cache_does_not_tell_of_modules_json_is_refused(cached, caplog):
    said = (
        r"model 'org/cached': the hub cannot be asked, and its cache here does not tell whether the model has a "
        r"modules\.json; fetch the model again, whole, or give --pooling"
    )
    with pytest.raises(ModelError, match=said):
        load_encoder("org/cached")
    assert pooling_name(load_encoder("org/cached", pooling="cls")) == "cls"
    assert any(line.endswith("pooled by cls") for line in lines_of(caplog))


def test_a_model_of_the_hub_that_is_known_to_have_no_modules_json_is_pooled_as_its_kind(cached):
    cached.mkdir(parents=True)
    (cached / "modules.json").touch()
    assert pooling_name(load_encoder("org/cached")) == "mean"


# The activation of a Dense module


def activation_of(folder):
    edit_json(folder / "config.json", activation_function=GELU)


REFUSED = rf"a Dense module wants the activation {GELU}, which runs only with --trust_remote_code"


def test_an_activation_that_is_not_torchs_runs_only_with_trust(tiny_model, tmp_path):
    torch.manual_seed(3)
    layer = Dense(32, 16)
    folder = save_encoder_of(tiny_model, tmp_path / "gelu", behind=[layer])
    activation_of(folder / "2_Dense")
    with pytest.raises(ModelError, match=REFUSED):
        load_encoder(str(folder))
    pooled = torch.nn.functional.linear(torch.tensor(mean_by_hand(folder)), layer.linear.weight, layer.linear.bias)
    expected = torch.nn.functional.gelu(pooled).detach().numpy()
    np.testing.assert_allclose(load_encoder(str(folder), trust_remote_code=True).encode(TEXTS), expected, atol=1e-5)


def test_a_route_and_an_adapter_lose_no_activation_either(tiny_model, dense, tmp_path):
    tower = SentenceTransformer(tiny_model, device="cpu")
    routes = Router.for_query_document([tower[0], tower[1], Dense(32, 16)], [tower[0], tower[1], Dense(32, 16)])
    SentenceTransformer(modules=[routes], device="cpu").save_pretrained(str(tmp_path / "router"))
    load_encoder(str(tmp_path / "router"))
    activation_of(tmp_path / "router" / "document_2_Dense")
    adapter, _ = save_tuned(str(dense), tmp_path / "adapter")
    load_encoder(str(adapter))
    activation_of(adapter / "2_Dense")
    for folder in (tmp_path / "router", adapter):
        with pytest.raises(ModelError, match=REFUSED):
            load_encoder(str(folder))
        load_encoder(str(folder), trust_remote_code=True)


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.ReLU(), torch.nn.GELU(), None])
def test_an_activation_of_torch_needs_no_trust(tiny_model, tmp_path, activation):
    folder = save_encoder_of(tiny_model, tmp_path / "torch", behind=[Dense(32, 16, activation_function=activation)])
    assert type(load_encoder(str(folder))[2].activation_function) is type(activation or torch.nn.Identity())


# WeightedLayerPooling


def test_layers_that_are_weighed_but_not_given_are_refused(tiny_model, tmp_path):
    raw = save_bert(tmp_path / "raw", AutoTokenizer.from_pretrained(tiny_model), num_hidden_layers=3)
    weighed = WeightedLayerPooling(32, num_hidden_layers=3, layer_start=1)
    weighed.layer_weights.data = torch.tensor([5.0, 1.0, 0.0])
    folder = tmp_path / "weighed"
    modules = [Transformer(str(raw)), weighed, Pooling(32, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    assert "output_hidden_states" not in json.loads((folder / "config.json").read_text())
    with pytest.raises(ModelError, match=r"WeightedLayerPooling.*write \"output_hidden_states\": true into config\.json"):
        load_encoder(str(folder))
    edit_json(folder / "config.json", output_hidden_states=True)
    assert AutoConfig.from_pretrained(folder).output_hidden_states
    first, second = (states_by_hand(folder, layer=layer) for layer in (1, 2))
    expected = [((5 * one + two) / 6).mean(0).numpy() for one, two in zip(first, second, strict=True)]
    np.testing.assert_allclose(load_encoder(str(folder)).encode(TEXTS), expected, atol=1e-5)
