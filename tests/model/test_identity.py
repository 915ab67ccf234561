"""Whatever changes a vector makes a model another one, for infer, search and tuning; where it lies does not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer, WeightedLayerPooling, WordEmbeddings
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from ebr.config import FinetuneConfig, IndexConfig, InferenceConfig
from ebr.data.files.write import read_manifest, write_json
from ebr.errors import ConfigError, ModelError
from ebr.inference.command import run_batch_inference
from ebr.model.encoder.encoder import load_encoder, save_encoder
from ebr.model.encoder.loaded import LoadedModel
from ebr.model.origin import resolve_model, weight_files_digest
from ebr.retrieval.index.command import build_index
from ebr.retrieval.index.text_index import open_index
from ebr.training.loop import fit as run_module
from ebr.workflow.finetuning import train_sentence_transformer as fine_tune
from tests.lora_adapters import WEIGHTS, save_tuned

TEXTS = ["buy a red shoe", "the blue cup", "red " * 80 + "blue lamp cup book green small", "日本語", "東京大学の"]


def silent(line):
    """Where lines for people go that nobody looks at."""


def edit_json(file, **values):
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **values})


def copied(model, folder):
    return Path(shutil.copytree(model, folder))


def tiny_bert(folder, n_words, **options):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=n_words, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2, **options,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)


def with_tokenizer_of(model, folder):
    """A tokenizer that gives no token types."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


# A model, and what is changed in its folder


def xlm_roberta(tiny_model, folder):
    n_words = with_tokenizer_of(tiny_model, folder)
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        vocab_size=n_words, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=70, pad_token_id=0, type_vocab_size=1, initializer_range=0.2,
    )  # fmt: skip
    transformers.XLMRobertaModel(config).save_pretrained(folder)


def bart(tiny_model, folder):
    n_words = with_tokenizer_of(tiny_model, folder)
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=n_words, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, init_std=0.2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3, forced_eos_token_id=3,
    )  # fmt: skip
    transformers.BartModel(config).save_pretrained(folder)


MODULE = """
from sentence_transformers.sentence_transformer.modules import Pooling

class MyPool(Pooling):
    def forward(self, features, **options):
        features["sentence_embedding"] = features["token_embeddings"].sum(1)
        return features
"""
MODEL = """
from transformers import BertModel
from .layers_x import mix

class XModel(BertModel):
    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        out["last_hidden_state"] = mix(out["last_hidden_state"])
        return out
"""
LAYERS = "def mix(hidden):\n    return hidden * 1.0\n"


def own_module(tiny_model, folder):
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    (folder / "my_pool.py").write_text(MODULE)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "my_pool.MyPool"
    write_json(folder / "modules.json", modules)


def two_code_files(tiny_model, folder):
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    (folder / "modeling_x.py").write_text(MODEL)
    (folder / "layers_x.py").write_text(LAYERS)
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_x.XModel"})


def word_embeddings(tiny_model, folder):
    words = ["buy", "red", "shoe", "the", "blue", "cup", "lamp"]
    table = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    tokenizer = WhitespaceTokenizer(vocab=["PAD", *words], stop_words={"a"}, do_lower_case=True)
    SentenceTransformer(modules=[WordEmbeddings(tokenizer, table), Pooling(16, "mean")], device="cpu").save(str(folder))


def slow_tokenizer(tiny_model, folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"日本語東京大学のをにはが"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    transformers.BertJapaneseTokenizer(
        str(folder / "vocab.txt"), word_tokenizer_type="basic", subword_tokenizer_type="character", model_max_length=64
    ).save_pretrained(folder)
    tiny_bert(folder, len(words))


def weighted_layers(tiny_model, folder):
    copied(tiny_model, folder / "raw")
    edit_json(folder / "raw" / "config.json", output_hidden_states=True)
    (folder / "raw" / "modules.json").unlink()
    layers = WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1)
    layers.layer_weights.data = torch.tensor([5.0, 1.0])
    modules = [Transformer(str(folder / "raw")), layers, Pooling(32, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))


def as_it_is(tiny_model, folder):
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)


def other_order(file, key=None):
    """The first words of a vocabulary the other way round, but those that are no words."""
    words = json.loads(file.read_text())[key] if key else file.read_text(encoding="utf-8").splitlines()
    first = 1 if key else 5
    turned = words[:first] + words[first:][::-1]
    if key:
        edit_json(file, **{key: turned})
    else:
        file.write_text("\n".join(turned), encoding="utf-8")


def replaced(file, old, new):
    file.write_text(file.read_text().replace(old, new))


CASES = {
    "truncation_side": (as_it_is, lambda at: edit_json(at / "tokenizer_config.json", truncation_side="left")),
    "pad_token_id": (xlm_roberta, lambda at: edit_json(at / "config.json", pad_token_id=1)),
    "decoder_start_token_id": (bart, lambda at: edit_json(at / "config.json", decoder_start_token_id=2)),
    "code of a module": (own_module, lambda at: replaced(at / "my_pool.py", "sum(1)", "max(1).values")),
    "a second code file": (two_code_files, lambda at: replaced(at / "layers_x.py", "* 1.0", "* hidden.abs()")),
    "words of a table": (word_embeddings, lambda at: other_order(at / "whitespacetokenizer_config.json", "vocab")),
    "words of a slow tokenizer": (slow_tokenizer, lambda at: other_order(at / "vocab.txt")),
}


def seen(folder):
    """What a manifest records of a model, and the vectors of the texts."""
    model = load_encoder(str(folder), trust_remote_code=True)
    facts = {name: value for name, value in LoadedModel.of(model).facts().items() if name != "versions"}
    return facts, model.encode([*TEXTS, "Red SHOE"])


@pytest.fixture
def made(tiny_model, tmp_path):
    """make(case) → the folder of its model."""

    def make(case):
        folder = tmp_path / "model"
        folder.mkdir()
        CASES[case][0](tiny_model, folder)
        return folder

    return make


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_another_one_when_its_vectors_are_and_not_when_it_lies_elsewhere(made, tmp_path, case):
    folder = made(case)
    facts, vectors = seen(folder)
    there, same = seen(copied(folder, tmp_path / "copied elsewhere"))
    assert there == facts and np.array_equal(same, vectors)
    save_encoder(load_encoder(str(folder), trust_remote_code=True), tmp_path / "saved again")
    again, same = seen(tmp_path / "saved again")
    assert again == facts and np.array_equal(same, vectors)
    CASES[case][1](folder)
    changed, others = seen(folder)
    assert abs(others - vectors).max() > 1e-3
    assert changed != facts


def test_layers_that_a_pooling_of_layers_no_longer_gets_are_refused_and_never_left_out(tiny_model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    weighted_layers(tiny_model, folder)
    load_encoder(str(folder))
    edit_json(folder / "config.json", output_hidden_states=False)
    with pytest.raises(ModelError, match=r'would do nothing; write "output_hidden_states": true into config\.json'):
        load_encoder(str(folder))


# A finished output


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    rows = [f"{number}\x01{text}" for number, text in enumerate(TEXTS[:3])]
    (folder / "part.csv").write_text("\n".join(["id\x01description", *rows]) + "\n", encoding="utf-8")
    return folder


def embed(model, table, **options):
    """The vectors of a run over an output that may stand already, and what it said."""
    out, lines = table.parent / "vectors.npy", []
    files = {"model_path": str(model), "input_dir": table, "output_path": out}
    run_batch_inference(InferenceConfig(**files, precision="float32", trust_remote_code=True, **options), say=lines.append)
    return np.load(out), [line for line in lines if "anew" in line]


def built(table, **options):
    files = {"embeddings_path": table.parent / "vectors.npy", "index_path": table.parent / "index"}
    build_index(IndexConfig(**files, id_column=None, output_columns=[], **options), say=silent)
    return files["index_path"]


@pytest.mark.parametrize(("case", "said"), [("truncation_side", "spelling_sha256"), ("code of a module", "architecture")])
def test_a_finished_output_of_another_model_is_embedded_anew_once_and_says_why(made, table, case, said):
    folder = made(case)
    before, _ = embed(folder, table)
    CASES[case][1](folder)
    after, lines = embed(folder, table)
    assert len(lines) == 1 and f"made with another {said}: everything is embedded anew" in lines[0]
    right = load_encoder(str(folder), trust_remote_code=True).encode(TEXTS[:3], normalize_embeddings=True)
    np.testing.assert_allclose(after, right, atol=1e-5)
    assert abs(after - before).max() > 1e-3
    assert embed(folder, table)[1] == []


def test_an_index_is_searched_by_the_spelling_that_it_was_made_with(made, table):
    folder = made("truncation_side")
    embed(folder, table)
    index = built(table)
    (matches,) = open_index(index).search([TEXTS[2]])
    assert (matches[0].id, round(matches[0].score, 4)) == ("2", 1.0)
    CASES["truncation_side"][1](folder)
    with pytest.raises(ModelError, match=r"is not the model that made the vectors of .*index \(its tokenizer differs\); give"):
        open_index(index).search([TEXTS[2]])


# Records of before, when spelling was recorded as tokenizer_sha256, or not at all, nor the architecture


def as_before(record, *, is_first):
    """A record as earlier versions wrote it."""
    kept = {name: value for name, value in record.items() if name != "spelling_sha256"}
    if not is_first:
        return {**kept, "tokenizer_sha256": "5" * 64}
    return {name: value for name, value in kept.items() if name != "architecture"}


@pytest.mark.parametrize("is_first", [True, False])
def test_an_index_of_before_is_searched_and_grows(tiny_model, table, is_first):
    embed(tiny_model, table)
    index = built(table)
    write_json(index / "ebr_manifest.json", as_before(read_manifest(index), is_first=is_first))
    (matches,) = open_index(index).search([TEXTS[0]])
    assert (matches[0].id, round(matches[0].score, 4)) == ("0", 1.0)
    built(table, add=True)
    assert len(open_index(index)) == 6


@pytest.mark.parametrize("is_first", [True, False])
def test_an_output_of_before_is_embedded_anew_once_and_says_why(tiny_model, table, is_first):
    embed(tiny_model, table)
    state = table.parent / ".vectors.npy.ebr" / "run.json"
    run = json.loads(state.read_text())
    run["recipe"]["vectors"] = run["finished"]["vectors"] = as_before(run["recipe"]["vectors"], is_first=is_first)
    write_json(state, run)
    _, lines = embed(tiny_model, table)
    changed = "architecture, spelling_sha256" if is_first else "spelling_sha256, tokenizer_sha256"
    assert len(lines) == 1 and f"made with another {changed}: everything is embedded anew" in lines[0]
    assert embed(tiny_model, table)[1] == []


# A run of tuning


def tuning(model, pairs_file, out, **options):
    return FinetuneConfig(
        **{
            "model_name": str(model), "data_path": str(pairs_file), "output_dir": out, "max_steps": 2, "save_steps": 1,
            "max_seq_length": 16, "learning_rate": 1e-2, "report_to": ["none"], "validation_split": 0.0, **options,
        }
    )  # fmt: skip


def test_a_run_is_not_resumed_with_another_tokenizer(made, pairs_file, tmp_path):
    folder = made("truncation_side")
    run = tuning(folder, pairs_file, tmp_path / "saved")
    fine_tune(run, say=silent)
    (checkpoint,) = tmp_path.glob("saved/*.run/checkpoint-1")
    transformers.AutoTokenizer.from_pretrained(folder, do_lower_case=False).save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=r"checkpoint-1: the base model's tokenizer changed; set .* back, or start without it"
    ):
        fine_tune(run.model_copy(update={"resume_from_checkpoint": checkpoint}), say=silent)


@pytest.mark.parametrize(("case", "kind"), [("lower case", "lora"), ("code of a module", "lora")])
def test_the_record_of_a_tuned_model_is_what_is_loaded_from_its_folder(made, pairs_file, tmp_path, case, kind):
    base = made("truncation_side" if case == "lower case" else case)
    if case == "lower case":
        transformers.AutoTokenizer.from_pretrained(base, do_lower_case=False).save_pretrained(base)
        edit_json(base / "sentence_bert_config.json", do_lower_case=True)
    run = tuning(base, pairs_file, tmp_path / "saved", finetune_type=kind, max_steps=1, trust_remote_code=True)
    tuned = fine_tune(run, say=silent).model_path
    facts, vectors = seen(tuned)
    record = read_manifest(tuned)
    assert {name: record[name] for name in facts} == facts
    assert abs(vectors - seen(base)[1]).max() > 1e-3
    if case == "lower case":
        assert np.array_equal(*load_encoder(str(tuned)).encode(["Red SHOE", "red shoe"]))


def test_a_run_goes_on_where_the_base_of_its_adapter_lies_now(tiny_model, pairs_file, tmp_path):
    adapter, _ = save_tuned(str(copied(tiny_model, tmp_path / "base")), tmp_path / "adapter")
    run = tuning(adapter, pairs_file, tmp_path / "saved")
    whole = load_file(fine_tune(run, say=silent).model_path / WEIGHTS)
    (checkpoint,) = tmp_path.glob("saved/*.run/checkpoint-1")
    moved = shutil.move(tmp_path / "base", tmp_path / "moved")
    again = run.model_copy(update={"resume_from_checkpoint": checkpoint, "base_model_path": str(moved)})
    resumed = load_file(fine_tune(again, say=silent).model_path / WEIGHTS)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("becomes", ["moved away", "another model"])
def test_the_record_says_what_the_base_was_whatever_becomes_of_its_files_meanwhile(
    tiny_model, pairs_file, tmp_path, monkeypatch, becomes
):
    pytest.importorskip("bitsandbytes")
    base = copied(tiny_model, tmp_path / "base")
    train = run_module.fine_tune

    def train_meanwhile(*args, **options):
        record = train(*args, **options)
        shutil.move(base, tmp_path / "moved")
        if becomes == "another model":
            model = SentenceTransformer(tiny_model, device="cpu")
            next(model.parameters()).data.add_(0.01)
            model.save(str(base))
        return record

    monkeypatch.setattr(run_module, "fine_tune", train_meanwhile)
    config = tuning(base, pairs_file, tmp_path / "saved", finetune_type="qlora", max_steps=1)
    record = read_manifest(fine_tune(config, say=silent).model_path)
    before = weight_files_digest(resolve_model(tiny_model))
    assert (record["base_model"], record["base_files_sha256"]) == (str(base), before)
