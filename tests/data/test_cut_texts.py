"""Texts of which a model reads only the beginning are counted, whoever tokenises them and however often."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding

from ebr import InferenceConfig, run_batch_inference
from ebr.config import EvaluationConfig, IndexConfig, MiningConfig, SearchConfig
from ebr.data.files.write import read_json, read_manifest, write_json
from ebr.data.text.cut_texts import CutTexts
from ebr.inference.job.store import VectorStore
from ebr.model.compute.local_engine import LocalEngine, RetrievalEncoder
from ebr.model.encoder.batching import tokenize
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.lengths import set_lengths
from ebr.model.encoder.prompts import Role
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.retrieval.index.command import build_index
from ebr.retrieval.index.search import search_index
from ebr.retrieval.mining.command import mine_hard_negatives

# With [CLS] and [SEP] a text of six words has eight tokens.
FITS, LONG, LONGER = "red cup red cup red cup", "red cup red cup red cup red", "red cup " * 300


def silent(line):
    """Where lines for people go that nobody looks at."""


def saying(lines):
    return lambda line: lines.append(line)


@pytest.mark.parametrize(
    ("cut", "line"),
    [
        (CutTexts(10_000, 1234, 256), "1,234 of 10,000 texts are longer than 256 tokens and were cut"),
        (CutTexts(2, 1, 8), "1 of 2 texts is longer than 8 tokens and was cut"),
        (CutTexts(1, 1, 8), "1 of 1 text is longer than 8 tokens and was cut"),
        (CutTexts(5, 0, 8), None),
    ],
)
def test_the_line_counts_in_words(cut, line):
    assert cut.line() == line


# ---------------------------------------------------------------- tokenisers


def static_model():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "cup": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return StaticEmbedding(tokenizer, embedding_dim=4)


def plain(tiny_model):
    return load_encoder(tiny_model)


def preprocessed(tiny_model):
    """A model that has its own way with texts, so that every pass is tokenised by its preprocess."""
    model = load_encoder(tiny_model)
    model[0].processing_kwargs = {"text": {"truncation": True}}
    return model


def routed(tiny_model):
    inner = load_encoder(tiny_model)
    return SentenceTransformer(modules=[Router.for_query_document([inner[0], inner[1]], [inner[0], inner[1]])], device="cpu")


def slow(tiny_model):
    from transformers.models.bert_japanese.tokenization_bert_japanese import BertJapaneseTokenizer

    model = load_encoder(tiny_model)
    vocabulary = Path(tiny_model).parent / "raw" / "vocab.txt"
    model[0].processor = BertJapaneseTokenizer(str(vocabulary), word_tokenizer_type="basic")
    return model


@pytest.mark.parametrize("make", [plain, preprocessed, routed, slow])
def test_a_text_is_cut_when_it_has_one_token_more_than_are_kept(tiny_model, make):
    model = make(tiny_model)
    set_lengths(model, 8)
    engine = LocalEngine(model, Role.DOCUMENT, batch_size=2)
    vectors = engine.encode([FITS, LONG, "red", LONGER, LONG])
    assert engine.cut_texts == CutTexts(5, 3, 8)
    assert np.array_equal(vectors, engine.encode([FITS, LONG, "red", LONGER, LONG]))  # the limit is what it was
    assert engine.cut_texts == CutTexts(10, 6, 8)


def test_a_static_model_cuts_where_it_was_told_to_and_nowhere_else(tiny_model):
    model = SentenceTransformer(modules=[static_model()], device="cpu")
    engine = LocalEngine(model, Role.DOCUMENT)
    engine.encode([LONGER])
    assert engine.cut_texts == CutTexts(1, 0, None)
    set_lengths(model, 6)
    engine = LocalEngine(model, Role.DOCUMENT)
    assert np.array_equal(engine.encode([FITS, LONG]), engine.encode([FITS, LONG]))
    assert engine.cut_texts == CutTexts(4, 2, 6)


def test_the_prompt_counts_as_it_is_cut(tiny_model):
    model = load_encoder(tiny_model)
    set_lengths(model, 8)
    assert tokenize(model[0].tokenizer, [FITS, "red"], "query", None).cut.tolist() == [True, False]
    assert tokenize(model[0].tokenizer, [], "", None).cut.tolist() == []


def test_queries_and_documents_are_counted_by_their_own_lengths(tiny_model):
    model = load_encoder(tiny_model)
    set_lengths(model, 16, query=4, passage=8)
    encoder = RetrievalEncoder(model, show_progress=False)
    encoder.encode_queries([FITS, "red"])
    encoder.encode_documents([FITS, LONG, LONGER])
    assert encoder.cut_texts == (CutTexts(2, 1, 4), CutTexts(3, 2, 8))


# ---------------------------------------------------------------- tables

ROWS = [FITS, LONG, LONG, "cup", LONGER, LONG, "red", "cup"]  # four are cut, of two texts


def write_table(home, rows=ROWS, name="a.csv"):
    (home / "tables").mkdir(exist_ok=True)
    lines = [f"{name}{row}\x01{text.strip()}" for row, text in enumerate(rows)]
    (home / "tables" / name).write_text("\n".join(["id\x01description", *lines]) + "\n")


def config_of(model, home, **options):
    files = {"input_dir": home / "tables", "output_path": home / "v.npy"}
    return InferenceConfig(model_path=model, precision="float32", max_seq_length=8, shard_rows=3, **files, **options)


def embedded(model, home, **options):
    result = run_batch_inference(config_of(model, home, **options), say=silent)
    (said,) = [line for line in result.summary().split("\n") if line.startswith("cut")] or [None]
    return read_manifest(home / "v.npy")["n_cut"], said


@pytest.mark.parametrize("options", [{"dedup": "shard"}, {"dedup": "global"}, {"dedup": "none"}, {"incremental_key": "id"}])
def test_every_row_of_a_cut_text_counts_whatever_is_encoded_once(tiny_model, tmp_path, options):
    write_table(tmp_path)
    assert embedded(tiny_model, tmp_path, **options) == (4, "cut      4 of 8 texts are longer than 8 tokens and were cut")
    assert embedded(tiny_model, tmp_path, **options)[0] == 4  # all shards are kept
    write_table(tmp_path, [LONG, "red"], "b.csv")
    assert embedded(tiny_model, tmp_path, **options)[1] == "cut      5 of 10 texts are longer than 8 tokens and were cut"
    write_table(tmp_path, ["red", *ROWS[1:]])  # rows of the run before whose shard is another
    assert embedded(tiny_model, tmp_path, **options)[0] == 5


def test_rows_that_are_left_out_do_not_count(tiny_model, tmp_path):
    write_table(tmp_path, [LONG, "", "red"])
    said = embedded(tiny_model, tmp_path, on_bad_row="reject")
    assert said == (1, "cut      1 of 2 texts is longer than 8 tokens and was cut")
    write_table(tmp_path, ["cup", "red"])
    assert embedded(tiny_model, tmp_path) == (0, None)


def as_of_before(home):
    """Make the state of an output look like that of a version that did not count."""
    state = home / ".v.npy.ebr"
    lines = [json.loads(line) for line in (state / "parts.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("n_cut")
    (state / "parts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for file in (state / "digests").glob("*.npy"):
        np.save(file, np.load(file)[:, :32])
    manifest = read_manifest(home / "v.npy")
    manifest.pop("n_cut")
    write_json(home / "v.npy.manifest.json", manifest)


def test_shards_of_a_version_that_did_not_count_are_kept_and_said_to_be_uncounted(tiny_model, tmp_path):
    write_table(tmp_path)
    embedded(tiny_model, tmp_path)
    as_of_before(tmp_path)
    write_table(tmp_path, [LONG, "red"], "b.csv")
    n_cut, said = embedded(tiny_model, tmp_path)
    assert n_cut is None and said.startswith("cut      not counted: some shards were finished by an earlier version of ebr")


def test_rows_taken_over_from_a_version_that_did_not_count_are_looked_at(tiny_model, tmp_path):
    write_table(tmp_path)
    embedded(tiny_model, tmp_path, incremental_key="id")
    as_of_before(tmp_path)
    write_table(tmp_path, ["red", "cup", *ROWS[1:]])  # every shard is another, most rows are as before
    assert embedded(tiny_model, tmp_path, incremental_key="id")[0] == 4


def test_a_store_of_a_version_that_did_not_count_is_used(tmp_path):
    with sqlite3.connect(tmp_path / "v.sqlite") as db:
        db.execute("CREATE TABLE vectors (digest BLOB PRIMARY KEY, vector BLOB, shard TEXT) WITHOUT ROWID")
        db.execute("INSERT INTO vectors VALUES (?, ?, 's')", (b"1", np.ones(2, np.float32).tobytes()))
    stores = [VectorStore(tmp_path / "v.sqlite") for _ in range(2)]
    for store in stores:
        store.add([b"1", b"2"], np.ones((2, 2), np.float32), cut=[True, True])
    assert {digest: known.cut for digest, known in stores[0].get([b"1", b"2"]).items()} == {b"1": None, b"2": True}
    for store in stores:
        store.close()


# ---------------------------------------------------------------- the other verbs


def test_an_index_and_its_searches_say_what_was_cut(tiny_model, tmp_path, caplog):
    write_table(tmp_path)
    embedded(tiny_model, tmp_path)
    files = {"embeddings_path": tmp_path / "v.npy", "index_path": tmp_path / "i"}
    built = build_index(IndexConfig(**files), say=silent)
    assert "cut      4 of 8 texts are longer than 8 tokens and were cut when they were embedded" in built.summary()
    assert read_manifest(tmp_path / "i")["embeddings"][0]["cut"] == {"n_texts": 8, "n_cut": 4, "length": 8}
    (tmp_path / "q.txt").write_text(f"red\n{LONGER}\n{LONG}\n")
    result = search_index(SearchConfig(queries_path=tmp_path / "q.txt", index_path=tmp_path / "i"), say=silent)
    assert result.cut == CutTexts(3, 2, 8)
    assert "2 of 3 queries are longer than 8 tokens and were cut" in caplog.text


def test_an_evaluation_says_what_was_cut_of_queries_and_documents(tiny_model, tmp_path, evaluation_folder):
    config = EvaluationConfig(
        models=[tiny_model], eval_dataset=evaluation_folder, output_dir=tmp_path / "o", query_max_len=6, passage_max_len=5,
        baselines=False,
    )  # fmt: skip
    result = evaluate_retrieval(config, say=silent)
    # "buy a small red shoe" has seven tokens, "the red small shoe" six.
    assert f"cut       {tiny_model}: 10 of 10 queries are longer than 6 tokens and were cut" in result.summary()
    assert f"cut       {tiny_model}: 30 of 30 documents are longer than 5 tokens and were cut" in result.summary()
    assert read_json(result.json)["model_facts"][tiny_model]["cut"] == {
        "queries": {"n_texts": 10, "n_cut": 10, "length": 6},
        "documents": {"n_texts": 30, "n_cut": 30, "length": 5},
    }


def test_mining_says_what_was_cut(tiny_model, tmp_path, pairs_file):
    config = MiningConfig(data_path=str(pairs_file), model_path=tiny_model, output_path=tmp_path / "m.jsonl", max_seq_length=6)
    result = mine_hard_negatives(config, say=silent)
    assert "cut       30 of 30 queries are longer than 6 tokens and were cut" in result.summary()
    assert read_manifest(tmp_path / "m.jsonl")["cut"]["queries"] == {"n_texts": 30, "n_cut": 30, "length": 6}
