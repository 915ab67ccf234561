"""A map of queries: learned where there is one to learn, for queries alone, the same for the same seed, or not at all."""

import json

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Router, StaticEmbedding

from ebr import cli
from ebr.config import AdaptConfig
from ebr.data.files.write import read_json, read_manifest
from ebr.data.training.examples import Example
from ebr.data.training.text_table import TextTable
from ebr.errors import ConfigError, DataError, ModelError
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.merging import load_saved
from ebr.model.encoder.routes import document_side, is_routed, with_query_map
from ebr.model.encoder.text_reader import TextReader
from ebr.model.files.identity import architecture, fingerprint, spelling_digest
from ebr.training.batches.collator import Collator
from ebr.training.query_map.cached import CachedRecords, Texts
from ebr.training.query_map.fit import fit_query_map
from ebr.training.query_map.plan import plan_adapt
from ebr.workflow import adapting
from tests.adapted import FAST, adapt, write_records
from tests.lora_adapters import save_tuned
from tests.whole_models import save_encoder_of

TEXTS = ["buy a red shoe", "the blue small cup!", "这是一个大国", "a book " * 40]


def plain(folder):
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """(result, lines) of one adaptation."""
    home = tmp_path_factory.mktemp("adapted")
    return adapt(tiny_model, write_records(home / "records.json"), home / "model")


# ---------------------------------------------------------------- the map


def config_of(**options):
    return AdaptConfig(**{"data_path": "records", "output_path": "model", **FAST, **options})


def cached(queries, passages, *, n_held_out=50, seed=0):
    """Record i joins query i and passage i; the last ones are held out."""
    examples = [Example(f"q{row}", (f"p{row}",)) for row in range(len(queries))]
    train, held_out = examples[:-n_held_out], examples[-n_held_out:]
    draw = Collator(train, held_out, TextTable.of(examples).ids, [], 0, seed)
    return CachedRecords(draw, Texts.of(examples), queries.astype(np.float32), passages.astype(np.float32))


def unit(rng, *shape):
    rows = rng.standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_a_rotation_of_the_queries_is_found_and_turned_back():
    rng = np.random.default_rng(0)
    passages, rotation = unit(rng, 300, 8), np.linalg.qr(rng.standard_normal((8, 8)))[0]
    records = cached(passages @ rotation, passages)  # row q = R^T p, so that W = R gives p back
    found = fit_query_map(records, config_of(max_steps=200, learning_rate=0.02), print)
    assert (found.before.mrr < 0.2, found.after.mrr > 0.95) == (True, True)
    turned = passages @ rotation @ found.weight.numpy().T
    cosines = (turned * passages).sum(1) / np.linalg.norm(turned, axis=1)
    assert cosines.min() > 0.9


def test_begins_at_the_identity_and_a_strong_pull_keeps_it_there():
    rng = np.random.default_rng(0)
    passages, rotation = unit(rng, 300, 8), np.linalg.qr(rng.standard_normal((8, 8)))[0]
    records = cached(passages @ rotation, passages)
    distances = [
        fit_query_map(records, config_of(max_steps=60, towards_identity=pull), print).distance for pull in (0.0, 1.0, 10.0)
    ]
    assert distances[0] > distances[1] > distances[2] > 0


def test_no_map_is_written_where_none_is_better():
    rng = np.random.default_rng(0)
    records = cached(unit(rng, 200, 8), unit(rng, 200, 8))  # nothing in common to be learned
    with pytest.raises(DataError, match=r"no map of the queries is surely better than none.*nothing was written"):
        fit_query_map(records, config_of(), print)
    perfect = unit(rng, 200, 8)
    with pytest.raises(DataError, match=r"MRR 1\.0000"):
        fit_query_map(cached(perfect, perfect), config_of(), print)


def test_to_spread_all_scores_alike_is_no_gain():
    """Passages share a direction that queries need not: a map that takes it away lowers the loss and moves no rank."""
    rng = np.random.default_rng(0)
    rows = unit(rng, 200, 8)
    shared = np.concatenate([rows, np.full((200, 1), 2.0)], axis=1) / np.sqrt(5)
    with pytest.raises(DataError, match="surely better"):
        fit_query_map(cached(shared, shared), config_of(temperature=0.5), print)


def test_the_same_seed_gives_the_same_map_and_another_another(tiny_model, made, tmp_path):
    data = write_records(tmp_path / "records.json")
    same, other = (adapt(tiny_model, data, tmp_path / str(seed), seed=seed)[0].query_map.weight for seed in (42, 7))
    assert torch.equal(made[0].query_map.weight, same)
    assert not torch.equal(same, other)


# ---------------------------------------------------------------- the model


def test_documents_are_the_base_s_bit_for_bit_and_queries_are_mapped(tiny_model, made):
    base, model, weight = plain(tiny_model), plain(made[0].model_path), made[0].query_map.weight.numpy()
    assert np.array_equal(model.encode_document(TEXTS), base.encode_document(TEXTS))
    assert np.array_equal(model.encode(TEXTS), base.encode(TEXTS)), "plain encode takes every text for a document"
    wanted = base.encode_query(TEXTS) @ weight.T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_query(TEXTS), wanted, atol=1e-6)
    assert abs(wanted - base.encode_query(TEXTS)).max() > 0.01


def test_the_folder_holds_the_transformer_once_and_no_pickle(tiny_model, made):
    folder = made[0].model_path
    weights = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.safetensors")}
    assert sorted(weights) == ["2_Router/query_0_Dense/model.safetensors", "model.safetensors"]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".md"}
    assert [entry["name"] for entry in read_json(folder / "modules.json")] == ["0", "1", "query_map", "2"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "bit for bit" in card and "encode_query" in card and str(folder.parent) not in card


def test_the_manifest_says_what_the_documents_are_and_how_the_map_was_chosen(tiny_model, made):
    record, base, model = read_manifest(made[0].model_path), load_encoder(tiny_model), load_encoder(str(made[0].model_path))
    assert record["base_sha256"] == fingerprint(base) == fingerprint(document_side(model))
    assert record["model_sha256"] == fingerprint(model) != record["base_sha256"]
    assert architecture(document_side(model)) == architecture(base)
    assert spelling_digest(document_side(model)) == spelling_digest(model) == spelling_digest(base)
    held_out = record["query_map"]["held_out"]
    assert held_out["after"]["loss"] < held_out["before"]["loss"]
    assert (record["n_train"], record["n_validation"]) == (42, 18)


def test_prompts_and_lengths_are_saved_with_the_model(tiny_model, tmp_path):
    data = write_records(tmp_path / "records.json")
    result, _ = adapt(
        tiny_model, data, tmp_path / "model", query_prompt="query: ", passage_prompt="passage: ", max_seq_length=16
    )
    model = plain(result.model_path)
    assert (model.prompts["query"], model.prompts["document"], model.max_seq_length) == ("query: ", "passage: ", 16)


@pytest.mark.parametrize("behind", ["nothing", "dense"])
def test_a_base_without_unit_vectors_and_one_with_a_layer_behind_the_pooling(tiny_model, tmp_path, behind):
    torch.manual_seed(1)
    more = () if behind == "nothing" else (Dense(32, 16), Normalize())
    base = save_encoder_of(tiny_model, tmp_path / "base", behind=more)
    data = write_records(tmp_path / "records.json")
    result, _ = adapt(base, data, tmp_path / "model")
    one, other = plain(base), plain(result.model_path)
    assert np.array_equal(one.encode_document(TEXTS), other.encode_document(TEXTS))
    wanted = one.encode_query(TEXTS) @ result.query_map.weight.numpy().T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(other.encode_query(TEXTS, normalize_embeddings=True), wanted, atol=1e-5)


def test_a_base_of_static_embeddings(tiny_model, tmp_path):
    static = StaticEmbedding(plain(tiny_model).tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(tmp_path / "base"))
    result, _ = adapt(tmp_path / "base", write_records(tmp_path / "records.json"), tmp_path / "model")
    one, other = plain(tmp_path / "base"), plain(result.model_path)
    assert np.array_equal(one.encode_document(TEXTS), other.encode_document(TEXTS))
    assert abs(one.encode_query(TEXTS) - other.encode_query(TEXTS)).max() > 0.01


def test_a_map_of_other_dimensions_and_a_second_one_are_refused(tiny_model):
    model = load_encoder(tiny_model)
    with pytest.raises(ModelError, match=r"a map of shape \(8, 8\) does not fit a model of 32 dimensions"):
        with_query_map(model, torch.eye(8))
    with pytest.raises(ModelError, match="has modules of its own for queries"):
        with_query_map(with_query_map(model, torch.eye(32)), torch.eye(32))
    assert not is_routed(model), "the base itself stays as it was"


def test_a_model_that_is_saved_otherwise_takes_no_place(tiny_model, tmp_path, monkeypatch):
    from ebr.model.encoder import routes

    def broken(model, weight):
        made = with_query_map(model, weight)
        made[0].model.embeddings.word_embeddings.weight.data += 1e-3
        return made

    monkeypatch.setattr(routes, "with_query_map", broken)
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="does not give its vectors of documents"):
        adapt(tiny_model, write_records(tmp_path / "records.json"), tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


def test_weights_that_cannot_be_written_are_one_line_and_exit_code_2(tiny_model, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise SafetensorError("Error while serializing: IoError")

    monkeypatch.setattr(SentenceTransformer, "save_pretrained", fail)
    data = write_records(tmp_path / "records.json")
    options = {"model_name": tiny_model, "data_path": data, "output_path": tmp_path / "model", **FAST}
    assert cli.main(["adapt", *(f"--{name}={value}" for name, value in options.items())]) == 2
    assert "the model cannot be written (Error while serializing: IoError)" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_folder_that_does_not_load_is_no_merged_model(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_saved(tmp_path, trust_remote_code=False)
    assert "merged" not in str(caught.value)


@pytest.mark.parametrize(("key", "what"), [("anchor", "query"), ("positive", "passage")])
def test_a_text_that_the_model_cannot_embed_is_named_with_its_file(tiny_model, tmp_path, monkeypatch, key, what):
    data = write_records(tmp_path / "records.json", negatives=False)
    records = read_json(data)
    records[1] = {**records[0], key: "a word beyond the table"}  # of de-duplicated texts it is number 1
    data.write_text(json.dumps(records), encoding="utf-8")
    monkeypatch.setattr(
        TextReader,
        "_beyond_table",
        lambda self, tokens: {int(n): "holds 'x', for which the model has no embedding" for n in [1] if len(tokens) > 1
                              and self.task == ("query" if key == "anchor" else "document")},
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        adapt(tiny_model, data, tmp_path / "model")
    assert str(caught.value) == (
        f"data_path {data}: the {what} 'a word beyond the table' holds 'x', for which the model has no embedding; "
        "mend or leave out its records"
    )


# ---------------------------------------------------------------- what is measured, said, refused


def test_base_and_adapted_are_measured_and_documents_embedded_once(tiny_model, evaluation_folder, tmp_path, monkeypatch):
    from ebr.model.compute.local_engine import RetrievalEncoder

    counts = []
    encode = RetrievalEncoder.encode_documents
    monkeypatch.setattr(
        RetrievalEncoder, "encode_documents", lambda self, texts: (counts.append(len(texts)), encode(self, texts))[1]
    )
    data = write_records(tmp_path / "records.json")
    result, lines = adapt(tiny_model, data, tmp_path / "model", eval_dataset=evaluation_folder)
    assert counts == [90, 30]  # of the records, 60 positives and 30 negatives; of the evaluation set
    assert result.comparison and result.report == result.model_path / "report.html"
    report = read_json(result.model_path / "report.json")
    assert report["model_facts"][str(result.model_path)]["model_sha256"] == read_manifest(result.model_path)["model_sha256"]
    found = {name: figures["ndcg@10"] for name, figures in report["models"].items()}
    assert list(found) == [tiny_model, str(result.model_path)]
    assert any(line.startswith("leak check: no evaluation query") for line in lines)
    assert "nDCG@10" in result.summary() and len(result.parts()) > 1


def test_both_layouts_of_records_and_few_held_out_are_known(tiny_model, tmp_path):
    one = {"query": "buy a red shoe", "pos": ["the red shoe"], "neg": ["the blue cup"]}
    other = {"query": "a lamp", "pos": ["the lamp"], "neg": []}
    data = tmp_path / "records.jsonl"
    data.write_text("\n".join(map(json.dumps, [one, other])), encoding="utf-8")
    plan = plan_adapt(AdaptConfig(model_name=tiny_model, data_path=str(data), output_path=tmp_path / "model"))
    assert plan.lines()[1:3] == [
        "records 1 to learn from, 1 held out; same answer: text",
        "warning: 1 record held out can hardly tell a good map from luck",
    ]
    assert not (tmp_path / "model").exists()


@pytest.fixture
def broken(tiny_model, made, tmp_path):
    """Options that are refused, and what is said."""
    data, full = write_records(tmp_path / "records.json"), tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    (tmp_path / "one.json").write_text(json.dumps([{"anchor": "a", "positive": "b"}]), encoding="utf-8")
    save_tuned(tiny_model, tmp_path / "adapter")
    fits = {"model_name": tiny_model, "data_path": data, "output_path": tmp_path / "model"}
    return {
        "no data": ({**fits, "data_path": tmp_path / "none.json"}, DataError, "none.json: is no file"),
        "one record": ({**fits, "data_path": tmp_path / "one.json"}, DataError, "one record teaches nothing"),
        "empty data_path": ({**fits, "data_path": " "}, ConfigError, "data_path: is empty"),
        "no model": ({**fits, "model_name": tmp_path / "none"}, ModelError, "none"),
        "an adapter": ({**fits, "model_name": tmp_path / "adapter"}, ModelError, "is an adapter; merge it first"),
        "an adapted model": ({**fits, "model_name": made[0].model_path}, ModelError, "modules of its own for queries"),
        "output taken": ({**fits, "output_path": full}, ConfigError, "holds something else than an earlier adaptation"),
        "output is the base": ({**fits, "output_path": tiny_model}, ConfigError, "is, holds or lies in the model_name"),
        "no evaluation": ({**fits, "eval_dataset": tmp_path / "none"}, DataError, "none"),
    }


@pytest.mark.parametrize("what", ["no data", "one record", "empty data_path", "no model", "an adapter", "an adapted model",
                                  "output taken", "output is the base", "no evaluation"])  # fmt: skip
def test_what_cannot_be_is_refused_with_exit_code_2(broken, what, capsys):
    options, error, said = broken[what]
    with pytest.raises(error, match=said):
        adapting.adapt_queries(
            AdaptConfig(**{**options, "data_path": str(options["data_path"]), "model_name": str(options["model_name"])})
        )
    assert cli.main(["adapt", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]) == 2
    assert said in capsys.readouterr().err


def test_an_earlier_adaptation_is_replaced(tiny_model, tmp_path):
    data = write_records(tmp_path / "records.json")
    for seed in (1, 2):
        adapt(tiny_model, data, tmp_path / "model", seed=seed)
        assert read_manifest(tmp_path / "model")["config"]["seed"] == seed


def test_a_router_in_front_is_no_base(tiny_model, tmp_path):
    towers = plain(tiny_model)
    SentenceTransformer(
        modules=[Router.for_query_document([towers[0], towers[1]], [towers[0], towers[1]])], device="cpu"
    ).save_pretrained(str(tmp_path / "routes"))
    with pytest.raises(ModelError, match="modules of its own for queries"):
        adapt(tmp_path / "routes", write_records(tmp_path / "records.json"), tmp_path / "model")
