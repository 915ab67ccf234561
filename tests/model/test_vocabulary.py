"""Words that a tokenizer knows and a table of embeddings has rows for: of whole words, beyond the table, none at all."""

import itertools
import json
import string

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Router, StaticEmbedding
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, BertTokenizerFast, ByT5Tokenizer, PreTrainedTokenizerFast

from ebr.config import EvaluationConfig
from ebr.errors import ModelError
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.text_reader import TextReader
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.training.batches.token_cache import TokenCache
from tests.whole_models import TEXTS, lines_of, mean_by_hand, run_over, save_bert, save_encoder_of

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BEYOND = "<image_soft_token>"
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 128, "head_dim": 8, "initializer_range": 0.2,
}  # fmt: skip


# Whole words


def of_pieces(folder, words):
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]), encoding="utf-8")
    return BertTokenizerFast(
        vocab=str(folder / "vocab.txt"), do_lower_case=False, strip_accents=False, tokenize_chinese_chars=False,
        model_max_length=64,
    )  # fmt: skip


def of_whole_words(words, **special):
    """A tokenizer that knows these words, one token each, and no other."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64)


HEBREW, TAMIL = "אבגדהוזחטיכלמנסעפצקרשת", "அஆஇஈகஙசஞடணதநபமயரலவ"
WORDS = {
    "6-mers": (["".join(letters) for letters in itertools.product("ATCG", repeat=6)], ["AAAAAA AAAAAT", "AAAAAC TTTTTT"]),
    "Hebrew": ([*HEBREW, *(f"##{letter}" for letter in HEBREW)], ["אבגד הוז", "שלום"]),
    "Tamil": ([*TAMIL], ["அ ஆ க", "ச ட"]),
    "events": (["login", "logout", "failed", "user", "error", "disk", "full"], ["user login failed", "disk full error"]),
}


@pytest.mark.parametrize("kind", WORDS)
def test_a_tokenizer_of_whole_words_or_of_any_script_is_one(kind, tmp_path):
    words, texts = WORDS[kind]
    tokenizer = of_whole_words([*SPECIAL[:2], *words]) if kind == "events" else of_pieces(tmp_path, words)
    folder = save_bert(tmp_path / "words", tokenizer)
    vectors = load_encoder(str(folder)).encode(texts)
    np.testing.assert_allclose(vectors, mean_by_hand(folder, texts), atol=1e-5)
    assert abs(vectors[0] - vectors[1]).max() > 0.05


# Tokens without a row in the table


@pytest.fixture
def embedding_gemma(tiny_decoder, tmp_path, request):
    """The form of EmbeddingGemma: its tokenizer has a token of pictures, whose id is the number of rows of the table.

    chat: its tokenizer has a template of chats as well, so that only the model itself can tell the tokens of a text.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    if getattr(request, "param", "") != "chat":
        tokenizer.chat_template = None
    config = transformers.Gemma3TextConfig(
        **SMALL, vocab_size=len(tokenizer), query_pre_attn_scalar=8, sliding_window=16, use_bidirectional_attention=True,
        layer_types=["sliding_attention", "full_attention"], bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(BEYOND, special=True)], special_tokens=True)
    torch.manual_seed(0)
    transformers.Gemma3TextModel(config).save_pretrained(tmp_path / "raw")
    tokenizer.save_pretrained(tmp_path / "raw")
    behind = [Dense(32, 48, bias=False, activation_function=None), Dense(48, 32, bias=False, activation_function=None)]
    return save_encoder_of(tmp_path / "raw", tmp_path / "gemma", behind=[*behind, Normalize()])


def test_special_tokens_beyond_the_table_are_said_and_texts_without_them_embedded(embedding_gemma, caplog):
    n_rows = json.loads((embedding_gemma / "config.json").read_text())["vocab_size"]
    model = load_encoder(str(embedding_gemma))
    (line,) = lines_of(caplog)
    assert line.endswith(
        f"special tokens up to id {n_rows} have no row in its table of {n_rows}; a text that holds one is refused"
    )
    stock = SentenceTransformer(str(embedding_gemma), device="cpu", model_kwargs={"dtype": torch.float32})
    np.testing.assert_allclose(model.encode(TEXTS), stock.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("embedding_gemma", ["plain", "chat"], indirect=True)
def test_a_run_rejects_the_text_that_holds_one_and_names_it(embedding_gemma, tmp_path):
    texts = ["buy a red shoe", f"the {BEYOND} lamp", "the blue cup"]
    vectors, rejected = run_over(embedding_gemma, texts, tmp_path)
    assert rejected == [f"a.csv:3: holds {BEYOND!r}, for which the model has no embedding"]
    np.testing.assert_allclose(vectors, load_encoder(str(embedding_gemma)).encode(texts[::2]), atol=1e-5)


def test_an_evaluation_names_it_too(embedding_gemma, evaluation_folder, tmp_path):
    with (evaluation_folder / "corpus.jsonl").open("a", encoding="utf-8") as corpus:
        corpus.write("\n" + json.dumps({"_id": "odd", "title": "", "text": f"the {BEYOND}"}))
    config = EvaluationConfig(models=[str(embedding_gemma)], eval_dataset=evaluation_folder, output_dir=tmp_path / "report")
    with pytest.raises(ModelError, match=f"text 30 holds {BEYOND!r}, for which the model has no embedding"):
        evaluate_retrieval(config, say=lambda _: None)


@pytest.mark.parametrize("embedding_gemma", ["plain", "chat"], indirect=True)
def test_a_training_that_would_read_one_ends_before_it_begins(embedding_gemma, tmp_path):
    texts = [f"buy a {BEYOND}", "red", "blue", "green"]
    with pytest.raises(ModelError, match=f"^training text 'buy a {BEYOND}' holds {BEYOND!r}, for which the model has no"):
        TokenCache(TextReader(load_encoder(str(embedding_gemma)), "query", ""), texts)


@pytest.fixture
def static(tmp_path):
    """The folder of a static model of these words, with as many rows as are asked for."""

    def make(tokenizer, n_rows=None):
        torch.manual_seed(0)
        table = torch.randn(n_rows or len(tokenizer), 16)
        module = StaticEmbedding(tokenizer, embedding_weights=table)
        SentenceTransformer(modules=[module], device="cpu").save_pretrained(str(tmp_path / "static"))
        return tmp_path / "static"

    return make


@pytest.mark.parametrize("kind", ["static", "router"])
def test_a_static_model_and_a_router_reject_such_a_text_too(static, tmp_path, kind):
    tokenizer = of_whole_words([*SPECIAL[:2], "red", "shoe"])
    tokenizer.add_tokens([AddedToken(BEYOND, special=True)], special_tokens=True)
    model = static(tokenizer, len(tokenizer) - 1)
    if kind == "router":
        tower = SentenceTransformer(str(model), device="cpu")[0]
        model = tmp_path / "router"
        SentenceTransformer(modules=[Router.for_query_document([tower], [tower])], device="cpu").save_pretrained(str(model))
    vectors, rejected = run_over(model, ["red shoe", f"a {BEYOND}"], tmp_path)
    assert rejected == [f"a.csv:3: holds {BEYOND!r}, for which the model has no embedding"]
    np.testing.assert_allclose(vectors, load_encoder(str(model)).encode(["red shoe"], normalize_embeddings=True), atol=1e-5)


@pytest.mark.parametrize("kind", ["transformer", "static"])
def test_words_beyond_the_table_refuse_the_model(static, tmp_path, kind):
    tokenizer = of_whole_words([*SPECIAL[:2], *string.ascii_lowercase])
    folder = static(tokenizer, 20) if kind == "static" else save_bert(tmp_path / "short", tokenizer, vocab_size=20)
    with pytest.raises(ModelError, match="its tokenizer has ids up to 27, and its table of embeddings 20 rows"):
        load_encoder(str(folder))


# No word, no token


def test_a_static_model_whose_tokenizer_knows_no_word_is_refused(static):
    folder = static(of_whole_words([*SPECIAL[:2], "red", "shoe"]))
    load_encoder(str(folder))
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["model"]["vocab"] = {"[UNK]": 0}
    (folder / "tokenizer.json").write_text(json.dumps({**saved, "added_tokens": []}))
    with pytest.raises(ModelError, match=r"its tokenizer knows no word.*put tokenizer\.json"):
        load_encoder(str(folder))


def letters():
    """A tokenizer without a token for what it does not know."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", *string.ascii_lowercase, *string.digits])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=64)


NO_TOKEN = "has a vector of zeros: its characters are all unknown to the model's tokenizer"


@pytest.mark.parametrize("kind", ["transformer", "static"])
def test_a_text_of_which_no_token_is_left_is_a_rejected_row(static, tmp_path, kind):
    folder = static(letters()) if kind == "static" else save_bert(tmp_path / "letters", letters())
    texts = ["大国", "red shoe", "的一是", "a lamp"]
    vectors, rejected = run_over(folder, texts, tmp_path)
    assert rejected == [f"a.csv:2: {NO_TOKEN}", f"a.csv:4: {NO_TOKEN}"]
    np.testing.assert_allclose(vectors, load_encoder(str(folder)).encode(texts[1::2], normalize_embeddings=True), atol=1e-5)


def test_such_a_text_in_an_evaluation_has_no_direction_and_is_said(static, evaluation_folder, tmp_path, caplog):
    with (evaluation_folder / "corpus.jsonl").open("a", encoding="utf-8") as corpus:
        corpus.write("\n" + json.dumps({"_id": "odd", "title": "", "text": "大国"}))
    config = EvaluationConfig(
        models=[str(save_bert(tmp_path / "letters", letters()))], eval_dataset=evaluation_folder, output_dir=tmp_path / "report"
    )
    evaluate_retrieval(config, say=lambda _: None)
    assert f"text 30 {NO_TOKEN}" in lines_of(caplog)


# A decoder without a tokenizer that could be taught


def test_a_decoder_whose_slow_tokenizer_closes_texts_itself_is_embedded_by_the_closing_token(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=384, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
    )
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    tokenizer = ByT5Tokenizer(model_max_length=64)
    tokenizer.save_pretrained(tmp_path)
    model, texts = AutoModel.from_pretrained(tmp_path).eval(), ["red shoe", "a"]
    encoded = [tokenizer(text, return_tensors="pt") for text in texts]
    assert [one["input_ids"][0, -1].item() for one in encoded] == [tokenizer.eos_token_id] * 2
    with torch.no_grad():
        expected = [model(**one)[0][0, -1].numpy() for one in encoded]
    np.testing.assert_allclose(load_encoder(str(tmp_path)).encode(texts), expected, atol=1e-5)
