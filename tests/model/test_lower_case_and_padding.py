"""How a model reads texts besides its tokenizer's own rules: in lower case, padded in front; kept on load and when saved."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from ebr.config import FinetuneConfig
from ebr.data.files.write import read_manifest
from ebr.model.encoder.encoder import load_encoder, save_encoder
from ebr.model.files.identity import spelling_digest
from ebr.workflow.finetuning import train_sentence_transformer as fine_tune
from ebr.workflow.merging import merge_adapter
from tests.lora_adapters import PROMPTS, config_of, save_tuned
from tests.whole_models import TEXTS, edit_json, run_over, save_bert, save_encoder_of

SHOUTED, SPOKEN = ["Red SHOE", "A Blue Cup"], ["red shoe", "a blue cup"]


@pytest.fixture
def lower(tiny_model, tmp_path):
    """The folder of a model whose tokenizer knows no capital, and whose sentence_bert_config.json has texts in lower case."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, do_lower_case=False)
    folder = save_encoder_of(save_bert(tmp_path / "raw", tokenizer), tmp_path / "lower")
    assert abs(np.subtract(*(SentenceTransformer(str(folder)).encode(texts) for texts in (SHOUTED, SPOKEN)))).max() > 0.05
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    return folder


def reads_in_lower_case(folder, **options):
    """By ebr, and by sentence-transformers, which has but the files to know it from."""
    stock = SentenceTransformer(str(folder), device="cpu")
    for model in (load_encoder(str(folder), **options), stock):
        np.testing.assert_allclose(model.encode(SHOUTED), model.encode(SPOKEN), atol=1e-6)
    return True


def test_a_run_over_texts_reads_them_in_lower_case(lower, tmp_path):
    expected = SentenceTransformer(str(lower), device="cpu").encode(SPOKEN, normalize_embeddings=True)
    np.testing.assert_allclose(run_over(lower, SHOUTED, tmp_path)[0], expected, atol=1e-5)


def test_what_is_saved_of_a_loaded_model_keeps_lower_case(lower, tmp_path):
    load_encoder(str(lower)).save_pretrained(str(tmp_path / "again"))
    assert reads_in_lower_case(tmp_path / "again")
    save_encoder(SentenceTransformer(str(lower), device="cpu"), tmp_path / "ours")
    assert reads_in_lower_case(tmp_path / "ours")


def test_an_adapter_reads_as_its_base_does_and_so_does_the_merged_model(lower, tmp_path):
    adapter, _ = save_tuned(str(lower), tmp_path / "adapter")
    assert "do_lower_case" not in json.loads((adapter / "sentence_bert_config.json").read_text())  # as the library saves it
    model = load_encoder(str(adapter))
    np.testing.assert_allclose(model.encode(SHOUTED), model.encode(SPOKEN), atol=1e-6)
    merge_adapter(config_of(lower, adapter), say=lambda _: None)
    assert reads_in_lower_case(tmp_path / "merged")
    np.testing.assert_allclose(load_encoder(str(tmp_path / "merged")).encode(SHOUTED), model.encode(SPOKEN), atol=1e-5)
    assert load_encoder(str(tmp_path / "merged")).prompts.items() >= PROMPTS.items()


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_a_tuned_model_keeps_lower_case_and_its_manifest_is_that_of_what_it_reads(lower, pairs_file, tmp_path, finetune_type):
    config = FinetuneConfig(
        model_name=str(lower), data_path=str(pairs_file), output_dir=tmp_path / "out", finetune_type=finetune_type, max_steps=1,
        max_seq_length=16, report_to=["none"], validation_split=0.0, query_prompt="", passage_prompt="",
    )  # fmt: skip
    folder = fine_tune(config, say=lambda _: None).model_path
    assert reads_in_lower_case(folder)
    assert read_manifest(folder)["spelling_sha256"] == spelling_digest(load_encoder(str(folder)))


# Padding


@pytest.fixture
def last(tiny_decoder, tmp_path):
    """The folder of a model that takes the last place of a batch by code of its own, and is padded in front."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    tokenizer.chat_template = None
    AutoModel.from_pretrained(tiny_decoder).save_pretrained(tmp_path / "raw")
    tokenizer.save_pretrained(tmp_path / "raw")
    folder = save_encoder_of(tmp_path / "raw", tmp_path / "last", "lasttoken")
    (folder / "last_pool.py").write_text(
        "from sentence_transformers.sentence_transformer.modules import Pooling\n\n\n"
        "class LastPool(Pooling):\n"
        "    def forward(self, features, **kwargs):\n"
        "        features['sentence_embedding'] = features['token_embeddings'][:, -1]\n"
        "        return features\n"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "last_pool.LastPool"
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    return folder


@torch.no_grad()
def last_by_hand(folder, texts):
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    encoded = (tokenizer(text, truncation=True, max_length=128, return_tensors="pt") for text in texts)
    return np.array([model(**one)[0][0, -1].numpy() for one in encoded])


def test_code_of_a_models_own_is_given_texts_padded_as_it_was_saved(last, tmp_path):
    model = load_encoder(str(last), trust_remote_code=True)
    assert model.tokenizer.padding_side == "left"
    expected = last_by_hand(last, TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)
    vectors, _ = run_over(last, TEXTS, tmp_path, trust_remote_code=True)
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_modules_of_the_library_are_padded_behind_whatever_was_saved(last):
    modules = json.loads((last / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    (last / "modules.json").write_text(json.dumps(modules))
    model = load_encoder(str(last))
    assert model.tokenizer.padding_side == "right"
    np.testing.assert_allclose(model.encode(TEXTS), last_by_hand(last, TEXTS), atol=1e-5)
