"""How many tokens are kept: never more than a model has positions for, whatever it was saved with and begins with."""

import logging

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from ebr.config import EvaluationConfig, IndexConfig, InferenceConfig
from ebr.data.files.write import read_json, write_json
from ebr.errors import ModelError
from ebr.inference.command import run_batch_inference
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.lengths import kept_length, position_limit, set_lengths
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.retrieval.evaluation.models import load_for_evaluation
from ebr.retrieval.index.command import build_index
from ebr.retrieval.index.text_index import open_index

LONG = "red shoe " * 60
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def unbounded(tiny_model, tiny_decoder, tmp_path):
    """The folder of a family's model whose tokenizer names no longest text."""

    def make(family, **options):
        tokenizer = AutoTokenizer.from_pretrained(tiny_decoder if family == "Qwen2" else tiny_model)
        tokenizer.model_max_length = int(1e30)
        config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **{**SMALL, **options})
        torch.manual_seed(0)
        getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return make


# Rows of the table, and how many of them a text can use: those of RoBERTa and its kin begin behind the padding index.
KIN = {
    "Bert": ({"max_position_embeddings": 40}, 40),
    "Roberta": ({"max_position_embeddings": 40, "pad_token_id": 0}, 39),
    "XLMRoberta": ({"max_position_embeddings": 40, "pad_token_id": 1}, 38),
    "Camembert": ({"max_position_embeddings": 40, "pad_token_id": 1}, 38),
    "MPNet": ({"max_position_embeddings": 40, "pad_token_id": 1}, 38),
    "Electra": ({"max_position_embeddings": 40, "embedding_size": 32}, 40),
    "DistilBert": ({"max_position_embeddings": 40, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}, 40),
    "GPT2": ({"n_positions": 40, "n_embd": 32, "n_layer": 1, "n_head": 2}, 40),
    "OPT": ({"max_position_embeddings": 40, "ffn_dim": 64, "word_embed_proj_dim": 32}, 40),
}


@pytest.mark.parametrize("family", KIN)
def test_a_long_text_is_cut_at_the_last_position_without_a_saved_length(unbounded, family):
    options, most = KIN[family]
    model = load_encoder(unbounded(family, **options), device="cpu", pooling="mean")
    assert (model.max_seq_length, position_limit(model)) == (most, most)
    assert model.preprocess([LONG])["input_ids"].shape == (1, most)
    assert np.isfinite(model.encode([LONG, "red"])).all()


def test_a_saved_length_beyond_the_positions_is_lowered_and_one_within_them_kept(unbounded, tmp_path):
    options, most = KIN["XLMRoberta"]
    model = load_encoder(unbounded("XLMRoberta", **options), device="cpu")
    model.max_seq_length, model[0].query_length = 500, 400
    model.save_pretrained(str(tmp_path / "saved"))
    again = load_encoder(str(tmp_path / "saved"), device="cpu")
    assert (again.max_seq_length, again[0].query_length, again[0].document_length) == (most, most, None)
    again.max_seq_length = 7
    again.save_pretrained(str(tmp_path / "short"))
    assert load_encoder(str(tmp_path / "short"), device="cpu").max_seq_length == 7


def test_positions_that_are_no_table_limit_nothing_that_was_saved(unbounded, tmp_path):
    """Rotations go on: a model that was saved for longer texts than it was first trained on keeps its length."""
    folder = unbounded("Qwen2", max_position_embeddings=40, num_key_value_heads=2, head_dim=16)
    model = load_encoder(folder, device="cpu")
    assert model.max_seq_length == 40  # sentence-transformers' own choice, where nothing was saved
    model.save_pretrained(str(tmp_path / "saved"))
    settings = tmp_path / "saved" / "sentence_bert_config.json"
    write_json(settings, {**read_json(settings), "max_seq_length": 60})
    assert load_encoder(str(tmp_path / "saved"), device="cpu").max_seq_length == 60


def test_minus_one_position_of_xlnet_is_no_limit(unbounded):
    folder = unbounded("XLNet", d_model=32, n_layer=1, n_head=2, d_inner=64)
    model = load_encoder(folder, device="cpu", max_seq_length=50)
    assert (position_limit(model), model.max_seq_length) == (None, 50)
    assert np.isfinite(model.encode([LONG])).all()


def test_long_texts_go_through_infer_and_evaluate_without_a_saved_length(unbounded, evaluation_folder, tmp_path):
    folder = unbounded("MPNet", **KIN["MPNet"][0])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(f"id\x01description\n1\x01{LONG}\n", encoding="utf-8")
    config = InferenceConfig(model_path=folder, input_dir=tmp_path / "in", output_path=tmp_path / "v.npy", precision="float32")
    run_batch_inference(config, say=lambda _: None)
    stock = SentenceTransformer(folder, device="cpu")
    stock.max_seq_length = 38
    expected = stock.encode([LONG], normalize_embeddings=True)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)
    with (evaluation_folder / "corpus.jsonl").open("a") as corpus:
        corpus.write(f'\n{{"_id": "long", "title": "", "text": "{LONG}"}}\n')
    evaluate_retrieval(
        EvaluationConfig(models=[folder], eval_dataset=evaluation_folder, output_dir=tmp_path / "report"), say=lambda _: None
    )


# Models that begin with something else


@pytest.fixture
def static(tmp_path):
    words = ["[UNK]", "red", "blue", "shoe", "lamp", "cup"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu").save_pretrained(
        str(tmp_path / "static")
    )
    return str(tmp_path / "static")


@pytest.fixture
def router(tiny_model, tmp_path):
    """Queries and documents through towers of their own, with lengths of their own."""
    towers = [SentenceTransformer(tiny_model, device="cpu") for _ in range(2)]
    towers[0].max_seq_length, towers[1].max_seq_length = 6, 30
    routes = {name: [tower[0], tower[1]] for name, tower in zip(("query", "document"), towers, strict=True)}
    SentenceTransformer(modules=[Router(routes, default_route="document")], device="cpu").save_pretrained(
        str(tmp_path / "router")
    )
    return str(tmp_path / "router")


def embedded(model, tmp_path, **options):
    (tmp_path / "in").mkdir(exist_ok=True)
    texts = ["red shoe lamp cup", "blue cup", LONG]
    rows = [f"{number}\x01{text}" for number, text in enumerate(texts)]
    (tmp_path / "in" / "a.csv").write_text("\n".join(["id\x01description", *rows]) + "\n", encoding="utf-8")
    config = InferenceConfig(
        model_path=model, input_dir=tmp_path / "in", output_path=tmp_path / "v.npy", precision="float32", **options
    )
    run_batch_inference(config, say=lambda _: None)
    return texts, np.load(tmp_path / "v.npy")


def test_a_static_model_is_embedded_cut_indexed_and_searched(static, tmp_path):
    stock = SentenceTransformer(static, device="cpu")
    texts, whole = embedded(static, tmp_path)
    np.testing.assert_allclose(whole, stock.encode(texts, normalize_embeddings=True), atol=1e-5)
    texts, cut = embedded(static, tmp_path, max_seq_length=4)
    np.testing.assert_allclose(cut[2], stock.encode(["red shoe red shoe"], normalize_embeddings=True)[0], atol=1e-5)
    build_index(
        IndexConfig(embeddings_path=tmp_path / "v.npy", index_path=tmp_path / "index", id_column=None), say=lambda _: None
    )
    (matches,) = open_index(tmp_path / "index").search(["blue cup"])
    assert (matches[0].id, round(matches[0].score, 4)) == ("1", 1.0)


def test_a_router_is_embedded_cut_indexed_and_searched_with_its_own_lengths(router, tmp_path):
    stock = SentenceTransformer(router, device="cpu")
    texts, whole = embedded(router, tmp_path)
    np.testing.assert_allclose(whole, stock.encode_document(texts, normalize_embeddings=True), atol=1e-5)
    build_index(
        IndexConfig(embeddings_path=tmp_path / "v.npy", index_path=tmp_path / "index", id_column=None), say=lambda _: None
    )
    query = "red shoe lamp cup red shoe lamp cup"
    found = open_index(tmp_path / "index").encode([query])
    np.testing.assert_allclose(found, stock.encode_query([query], normalize_embeddings=True), atol=1e-5)
    texts, cut = embedded(router, tmp_path, max_seq_length=8)
    stock.max_seq_length = 8
    np.testing.assert_allclose(cut, stock.encode_document(texts, normalize_embeddings=True), atol=1e-5)


def test_lengths_of_a_static_model_and_of_a_router_are_told(static, router):
    assert kept_length(load_encoder(static)) is None
    assert kept_length(load_encoder(static, max_seq_length=5)) == 5
    model = load_encoder(router)
    assert (kept_length(model, "query"), kept_length(model, "document"), kept_length(model)) == (6, 30, 30)


def test_an_evaluation_cuts_a_static_model_and_a_router(static, router, evaluation_folder, tmp_path):
    for model in (static, router):
        config = EvaluationConfig(models=[model], eval_dataset=evaluation_folder, output_dir=tmp_path / "r", max_seq_length=5)
        assert kept_length(load_for_evaluation(config, model).model) == 5
        evaluate_retrieval(config, say=lambda _: None)


@pytest.mark.parametrize(
    ("lengths", "named"),
    [
        ({"query_max_len": 5}, "query_max_len 5"),
        ({"passage_max_len": 5}, "passage_max_len 5"),
        ({"query_max_len": 4, "passage_max_len": 9}, "query_max_len 4, passage_max_len 9"),
        ({"query_max_len": 5, "max_seq_length": 9}, "query_max_len 5, max_seq_length 9"),
    ],
)
def test_a_static_model_refuses_two_lengths_which_it_cannot_keep_apart(static, evaluation_folder, tmp_path, lengths, named):
    config = EvaluationConfig(models=[static], eval_dataset=evaluation_folder, output_dir=tmp_path / "r", **lengths)
    with pytest.raises(ModelError, match=rf"^{named}: StaticEmbedding cuts queries and passages alike; give max_seq_length"):
        evaluate_retrieval(config, say=lambda _: None)


def test_one_length_said_twice_cuts_a_static_model(static, evaluation_folder, tmp_path):
    config = EvaluationConfig(
        models=[static], eval_dataset=evaluation_folder, output_dir=tmp_path / "r", query_max_len=5, passage_max_len=5
    )
    assert kept_length(load_for_evaluation(config, static).model) == 5


def test_static_routes_have_each_its_own_length_unless_they_are_one(static):
    query, document = (SentenceTransformer(static, device="cpu")[0] for _ in range(2))
    model = SentenceTransformer(modules=[Router.for_query_document([query], [document])], device="cpu")
    set_lengths(model, None, query=4, passage=9)
    assert (kept_length(model, "query"), kept_length(model, "document")) == (4, 9)
    shared = SentenceTransformer(modules=[Router.for_query_document([query], [query])], device="cpu")
    with pytest.raises(ModelError, match="query_max_len 3, max_seq_length 9: StaticEmbedding cuts"):
        set_lengths(shared, 9, query=3)


def test_a_model_that_reads_whole_texts_refuses_a_length():
    from sentence_transformers.sentence_transformer.modules import BoW

    model = SentenceTransformer(modules=[BoW(["red", "shoe"])], device="cpu")
    with pytest.raises(ModelError, match="max_seq_length 5: BoW reads whole texts"):
        set_lengths(model, 5)
    with pytest.raises(ModelError, match="query_max_len 5: BoW reads whole texts"):
        set_lengths(model, None, query=5)


def test_a_length_that_is_lowered_when_it_is_asked_for_is_said_once(unbounded, caplog):
    options, most = KIN["MPNet"]
    with caplog.at_level(logging.WARNING):
        load_encoder(unbounded("MPNet", **options), max_seq_length=100, pooling="mean")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("ebr")] == [
        f"max_seq_length 100 lowered to {most}: the model has no more positions"
    ]
