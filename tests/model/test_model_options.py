"""Pooling and the place of a base, asked for by every command that loads a model; and what makes a model another one."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from ebr.config import (
    EvaluationConfig,
    FinetuneConfig,
    IndexConfig,
    InferenceConfig,
    MiningConfig,
    SearchConfig,
)
from ebr.data.files.write import read_manifest, write_json
from ebr.errors import ConfigError, ModelError
from ebr.inference.command import run_batch_inference
from ebr.model.encoder.encoder import load_encoder
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.retrieval.index.command import build_index
from ebr.retrieval.index.search import search_index
from ebr.retrieval.index.text_index import open_index
from ebr.retrieval.mining.command import mine_hard_negatives
from ebr.retrieval.ranking import rank_texts
from ebr.workflow.finetuning import train_sentence_transformer as fine_tune
from tests.lora_adapters import rewrite, save_tuned

TEXTS = ["the red small shoe", "这是一个大国", "a large blue lamp", "the green book"]


def silent(line):
    """Where lines for people go that nobody looks at."""


@pytest.fixture
def plain(tiny_model, tmp_path):
    """A model as transformers saves it: nothing says how it pools."""
    AutoModel.from_pretrained(tiny_model).save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "plain")
    return str(tmp_path / "plain")


@pytest.fixture
def moved(tiny_model, tmp_path):
    """An adapter whose base is no longer where it was, and where it is now."""
    adapter, _ = save_tuned(tiny_model, tmp_path / "adapter")
    rewrite(adapter, lambda key: key, base_model_name_or_path="/lost/base")
    return str(adapter), shutil.copytree(tiny_model, tmp_path / "base")


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    rows = [f"{number}\x01{text}" for number, text in enumerate(TEXTS)]
    (folder / "part.csv").write_text("\n".join(["id\x01description", *rows]) + "\n", encoding="utf-8")
    return folder


def embed(model, table, said=silent, **options):
    out = table.parent / "vectors.npy"
    run_batch_inference(
        InferenceConfig(model_path=str(model), input_dir=table, output_path=out, precision="float32", **options), say=said
    )
    return np.load(out)


def expected(model, texts=TEXTS, **options):
    return load_encoder(str(model), **options).encode_document(texts, normalize_embeddings=True)


# infer


def test_infer_pools_as_asked_and_says_what_it_guesses(plain, table, caplog):
    with caplog.at_level(logging.INFO):
        assumed = embed(plain, table)
    assert any("mean pooling is assumed" in record.getMessage() for record in caplog.records)
    np.testing.assert_allclose(assumed, expected(plain, pooling="mean"), atol=1e-5)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        asked = embed(plain, table, pooling="cls")
    assert not any("is assumed" in record.getMessage() for record in caplog.records)
    np.testing.assert_allclose(asked, expected(plain, pooling="cls"), atol=1e-5)
    assert abs(asked - assumed).max() > 0.05
    assert read_manifest(table.parent / "vectors.npy")["pooling"] == "cls"


def test_pooling_against_what_a_model_says_is_done_and_said(tiny_model, table, caplog):
    asked = embed(tiny_model, table, pooling="cls")
    assert any("pooled by cls, as asked for; it was saved for mean" in record.getMessage() for record in caplog.records)
    np.testing.assert_allclose(asked, expected(tiny_model, pooling="cls"), atol=1e-5)


def test_infer_finds_a_base_where_it_is_said_to_lie(moved, table):
    adapter, base = moved
    with pytest.raises(ModelError, match=r"--base_model_path"):
        embed(adapter, table)
    np.testing.assert_allclose(
        embed(adapter, table, base_model_path=str(base)), expected(adapter, base_model_path=str(base)), atol=1e-5
    )


@pytest.mark.long
@pytest.mark.parametrize("engine", ["processes"])
def test_other_processes_load_the_model_as_this_one(moved, table, engine):
    adapter, base = moved
    alone = embed(adapter, table, base_model_path=str(base), pooling="mean")
    together = embed(adapter, table, base_model_path=str(base), pooling="mean", engine=engine, num_workers=1, shard_rows=2)
    np.testing.assert_allclose(together, alone, atol=1e-6)


# index and search


def built(table, **options):
    vectors = table.parent / "vectors.npy"
    index = table.parent / "index"
    build_index(IndexConfig(embeddings_path=vectors, index_path=index, id_column=None, **options), say=silent)
    return index


def test_a_search_pools_as_the_vectors_were_and_finds_the_base_again(plain, moved, table):
    embed(plain, table, pooling="cls")
    index = built(table)
    (matches,) = open_index(index).search([TEXTS[1]])
    assert (matches[0].id, round(matches[0].score, 4)) == ("1", 1.0)
    with pytest.raises(ConfigError, match=r"pooling mean: the vectors of .* were pooled by cls"):
        open_index(index, pooling="mean").search(["a"])
    adapter, base = moved
    embed(adapter, table, base_model_path=str(base), prompt="query: ")
    index = built(table)
    (matches,) = open_index(index).search([TEXTS[3]])
    assert (matches[0].id, round(matches[0].score, 4)) == ("3", 1.0)
    shutil.move(base, base.parent / "elsewhere")
    with pytest.raises(ModelError, match=r"base"):
        open_index(index).search(["a"])
    config = SearchConfig(query=TEXTS[3], index_path=index, base_model_path=str(base.parent / "elsewhere"), k=1)
    assert search_index(config, say=silent).matches[0][0].id == "3"


def test_vectors_made_elsewhere_are_searched_with_the_model_that_the_index_was_told(plain, table):
    np.save(table.parent / "vectors.npy", expected(plain, pooling="cls"))
    index = built(table, model_path=plain, pooling="cls")
    (matches,) = open_index(index).search([TEXTS[2]])
    assert (matches[0].id, round(matches[0].score, 4)) == ("2", 1.0)
    (matches,) = open_index(built(table), model_path=plain, pooling="cls").search([TEXTS[2]])
    assert (matches[0].id, round(matches[0].score, 4)) == ("2", 1.0)


# evaluate, mine, tune, rank


def test_evaluate_pools_as_asked_and_finds_a_base(plain, moved, evaluation_folder, tmp_path):
    adapter, base = moved
    config = EvaluationConfig(
        models=[plain, adapter], eval_dataset=evaluation_folder, output_dir=tmp_path / "report", baselines=False,
        pooling="max", base_model_path=str(base),
    )  # fmt: skip
    report = evaluate_retrieval(config, say=silent).report
    assert [model.facts["pooling"] for model in report.main.measured] == ["max", "max"]
    with pytest.raises(ConfigError, match="none of the models is an adapter"):
        evaluate_retrieval(config.model_copy(update={"models": [plain]}), say=silent)


def test_mining_pools_as_asked_and_finds_a_base(moved, pairs_file, tmp_path):
    adapter, base = moved
    scores = []
    for number, pooling in enumerate((None, "max")):
        config = MiningConfig(
            model_path=adapter, data_path=str(pairs_file), output_path=tmp_path / f"{number}.jsonl", base_model_path=str(base),
            pooling=pooling,
        )  # fmt: skip
        mine_hard_negatives(config, say=silent)
        scores.append([json.loads(line)["positive_score"] for line in config.output_path.read_text().splitlines()])
    assert scores[0] != scores[1]


def test_ranking_pools_as_asked_and_finds_a_base(moved):
    adapter, base = moved
    ranking = rank_texts(adapter, ["red"], TEXTS, base_model_path=str(base), pooling="max")
    right = load_encoder(adapter, base_model_path=str(base), pooling="max")
    np.testing.assert_allclose(ranking.document_vectors, right.encode_document(TEXTS, normalize_embeddings=True), atol=1e-5)


# What makes a model another one


def settled(table):
    return read_manifest(table.parent / "vectors.npy")


def edit_json(file, **values):
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **values})


def test_another_lora_alpha_is_another_model(tiny_model, table, tmp_path):
    adapter, _ = save_tuned(tiny_model, tmp_path / "adapter")
    before = embed(adapter, table)
    index = built(table)
    open_index(index).search(["a"])
    edit_json(adapter / "adapter_config.json", lora_alpha=16)
    lines = []
    after = embed(adapter, table, said=lines.append)
    np.testing.assert_allclose(after, expected(adapter), atol=1e-5)
    assert abs(after - before).max() > 0.01
    assert any("another architecture: everything is embedded anew" in line for line in lines)
    with pytest.raises(ModelError, match=r"is not the model that made the vectors .*lora scale was 2.0, is 4.0"):
        open_index(index).search(["a"])


def test_another_is_causal_is_another_model(tiny_decoder, table, tmp_path):
    model = load_encoder(tiny_decoder)
    folder = tmp_path / "decoder"
    model.save_pretrained(str(folder))
    embed(folder, table)
    index = built(table)
    edit_json(folder / "config.json", is_causal=False)
    lines = []
    embed(folder, table, said=lines.append)
    assert any("everything is embedded anew" in line for line in lines)
    with pytest.raises(ModelError, match=r"is_causal was None, is False"):
        open_index(index).search(["a"])


def test_another_tokenizer_is_another_model(tiny_model, table, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    embed(folder, table)
    index = built(table)
    AutoTokenizer.from_pretrained(folder, do_lower_case=False).save_pretrained(folder)
    lines = []
    embed(folder, table, said=lines.append)
    assert any("another spelling_sha256: everything is embedded anew" in line for line in lines)
    with pytest.raises(ModelError, match="its tokenizer differs"):
        open_index(index).search(["a"])


def test_the_same_model_elsewhere_is_the_same_model(tiny_model, table, tmp_path):
    embed(tiny_model, table)
    index = built(table)
    SentenceTransformer(tiny_model, device="cpu").save_pretrained(str(tmp_path / "saved again"))
    lines = []
    embed(tmp_path / "saved again", table, said=lines.append)
    assert not any("anew" in line for line in lines)
    open_index(index, model_path=str(tmp_path / "saved again")).search(["a"])


def test_rows_of_another_architecture_are_not_added_to_an_index(tiny_model, table, tmp_path):
    adapter, _ = save_tuned(tiny_model, tmp_path / "adapter")
    embed(adapter, table)
    index = built(table)
    edit_json(adapter / "adapter_config.json", lora_alpha=16)
    embed(adapter, table)
    with pytest.raises(ValueError, match=r"does not fit .*: architecture; embed it like the rest"):
        build_index(
            IndexConfig(embeddings_path=table.parent / "vectors.npy", index_path=index, id_column=None, add=True), say=silent
        )


def test_an_index_of_before_that_records_no_architecture_is_searched_by_its_weights(tiny_model, table):
    embed(tiny_model, table)
    index = built(table)
    record = read_manifest(index)
    write_json(
        index / "ebr_manifest.json",
        {name: value for name, value in record.items() if name not in ("architecture", "spelling_sha256")},
    )
    open_index(index).search(["a"])


# Code of the model's own

_CODE = """
from transformers import BertModel

class BackwardBert(BertModel):
    def forward(self, input_ids=None, attention_mask=None, **options):
        return super().forward(input_ids=input_ids.flip(1), attention_mask=attention_mask.flip(1), **options)
"""


@pytest.fixture
def own_code(tiny_model, tmp_path):
    """A model of a type that transformers knows, with code of its own that embeds otherwise."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "own code"))
    (folder / "modeling_backward.py").write_text(_CODE)
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_backward.BackwardBert"})
    return folder


def test_code_of_its_own_that_is_not_run_is_said_with_file_and_flag(own_code, table, caplog):
    without = embed(own_code, table)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("ebr")]
    assert any("config.json (auto_map)" in line and "--trust_remote_code" in line for line in said)
    caplog.clear()
    lines = []
    with_code = embed(own_code, table, trust_remote_code=True, said=lines.append)
    assert abs(with_code - without).max() > 0.01
    assert any("another architecture: everything is embedded anew" in line for line in lines)
    assert not [record for record in caplog.records if "auto_map" in record.getMessage()]


def test_a_search_without_the_code_that_made_the_vectors_is_refused(own_code, table):
    embed(own_code, table, trust_remote_code=True)
    index = built(table)
    with pytest.raises(ModelError, match=r"class was 'BackwardBert', is 'BertModel'.*trust_remote_code"):
        open_index(index).search(["a"])
    open_index(index, trust_remote_code=True).search(["a"])


def test_an_adapter_tuned_with_the_code_is_not_loaded_without(own_code, pairs_file, tmp_path, caplog):
    tuned = fine_tune(
        FinetuneConfig(
            model_name=str(own_code), data_path=str(pairs_file), output_dir=tmp_path / "saved", max_steps=1, max_seq_length=16,
            report_to=["none"], trust_remote_code=True,
        ),
        say=silent,
    ).model_path  # fmt: skip
    with pytest.raises(ModelError, match=r"as its manifest says.*--trust_remote_code"):
        load_encoder(str(tuned))
    model = load_encoder(str(tuned), trust_remote_code=True)
    assert type(model[0].model).__name__ == "BackwardBert"
    (tuned / "ebr_manifest.json").unlink()
    load_encoder(str(tuned))
    assert any("config.json (auto_map)" in record.getMessage() for record in caplog.records)


# Similarity


@pytest.fixture
def dot_model(tiny_model, tmp_path):
    """A model made for inner products, whose long vectors win: no layer normalises them."""
    base = SentenceTransformer(tiny_model, device="cpu")
    model = SentenceTransformer(modules=[base[0], base[1]], device="cpu", similarity_fn_name="dot")
    model.save_pretrained(str(tmp_path / "dot"))
    return str(tmp_path / "dot")


def test_a_model_made_for_inner_products_is_judged_by_them(dot_model, evaluation_folder, tmp_path):
    from ebr.data.evaluation.evaluation_set import read_evaluation_set
    from ebr.model.compute.local_engine import RetrievalEncoder
    from ebr.retrieval.measures.measurement import evaluate_encoder

    dataset = read_evaluation_set(evaluation_folder)
    model = SentenceTransformer(dot_model, device="cpu")
    queries, documents = model.encode_query(dataset.queries), model.encode_document(dataset.documents)
    best = (queries @ documents.T).argsort(axis=1)[:, ::-1][:, :10]
    found = evaluate_encoder(RetrievalEncoder(load_encoder(dot_model), show_progress=False), dataset)
    np.testing.assert_array_equal(found.rows[:, :5], best[:, :5])
    config = EvaluationConfig(models=[dot_model], eval_dataset=evaluation_folder, output_dir=tmp_path / "report")
    (measured,) = evaluate_retrieval(config, say=silent).report.main.measured
    assert measured.evaluation.mean("ndcg@10") == found.mean("ndcg@10")
    assert -1 <= measured.space.mean_cosine <= 1


def test_ranking_with_a_model_made_for_inner_products_says_so(dot_model):
    ranking = rank_texts(dot_model, ["red"], TEXTS)
    assert ranking.similarity == "dot"
    assert "dot" in ranking.table().splitlines()[0]
    np.testing.assert_allclose(ranking.scores, ranking.query_vectors @ ranking.document_vectors.T, rtol=1e-4)


def test_infer_says_what_unit_vectors_do_to_a_model_made_for_inner_products(dot_model, table):
    lines = []
    unit = embed(dot_model, table, said=lines.append)
    assert any("made for inner products" in line and "--no_normalize_embeddings" in line for line in lines)
    lines = []
    raw = embed(dot_model, table, said=lines.append, normalize_embeddings=False)
    assert not any("made for inner products" in line for line in lines)
    assert np.linalg.norm(unit, axis=1).max() < 1.001 < np.linalg.norm(raw, axis=1).min()


def test_mining_compares_by_cosine_also_with_a_model_made_for_inner_products(dot_model, pairs_file, tmp_path):
    config = MiningConfig(
        model_path=dot_model, data_path=str(pairs_file), output_path=tmp_path / "mined.jsonl", num_negatives=1
    )
    mine_hard_negatives(config, say=silent)
    records = [json.loads(line) for line in config.output_path.read_text().splitlines()]
    model = SentenceTransformer(dot_model, device="cpu", similarity_fn_name="cosine")
    said, right = [], []
    for record in records:
        texts = [record["positive"], *record["negative"]]
        said += [record["positive_score"], *record["negative_scores"]]
        right += model.similarity(model.encode_query(record["anchor"]), model.encode_document(texts))[0].tolist()
    assert len(said) > len(records)
    np.testing.assert_allclose(said, right, atol=1e-4)
