"""A vocabulary extended: what could not be spelt is, what could be stays as it was to the last bit, the rest is said."""

import json
import random

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ebr import cli
from ebr.config import ExtendConfig
from ebr.data.files.write import read_json, read_manifest
from ebr.errors import ConfigError, DataError, ModelError
from ebr.model.encoder.encoder import load_encoder
from ebr.model.files.identity import fingerprint
from ebr.model.vocabulary.command import extend_vocabulary, plan_extend
from ebr.model.vocabulary.missing import find_missing
from ebr.model.vocabulary.new_tokens import NewTokens, new_tokens_of
from ebr.model.vocabulary.spelling import spelling_of
from ebr.retrieval.evaluation.leak_check import Provenance
from tests.lora_adapters import save_tuned
from tests.model.test_vocabulary import SPECIAL, of_pieces, of_whole_words
from tests.whole_models import edit_json, save_bert, save_encoder_of

KNOWN = ["buy a red shoe", "the small blue cup!", "这是一个大国", "red, 42", ""]
# 水 and 火 are lacking; 水 stands three times, 火 twice.
RECORDS = [{"anchor": "red 水", "positive": "水火", "negative": "the cup"}, {"anchor": "一水", "positive": "a 火"}]


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return path


def extend(model, data, folder, **options):
    config = ExtendConfig(model_name=str(model), data_path=data and str(data), output_path=folder, **options)
    lines = []
    return extend_vocabulary(config, say=lines.append), lines


def test_unknown_characters_become_tokens_and_known_texts_keep_every_bit(tiny_model, records, tmp_path):
    result, _ = extend(tiny_model, records, tmp_path / "extended")
    base, extended = (SentenceTransformer(str(folder), device="cpu") for folder in (tiny_model, result.model_path))
    assert extended.tokenizer.tokenize("水火 red") == ["水", "火", "red"]
    assert extended.tokenizer(KNOWN)["input_ids"] == base.tokenizer(KNOWN)["input_ids"]
    assert np.array_equal(base.encode(KNOWN), extended.encode(KNOWN))
    assert abs(extended.encode("水") - extended.encode("火")).max() > 0.01
    assert not [path for path in result.model_path.rglob("*") if path.suffix in {".bin", ".pt"}]


def test_the_most_frequent_come_first_and_shares_are_those_counted_by_hand(tiny_model, records, tmp_path):
    result, lines = extend(tiny_model, records, tmp_path / "extended", max_new_tokens=1)
    assert result.new_tokens == ("水",)
    # red水 水火 thecup 一水 a火: 4 + 2 + 6 + 2 + 2 characters, five of them lacking in four of five texts; then the two 火.
    before, after = result.unknown_before, result.unknown_after
    assert (before.n_lost, before.n_characters, before.n_broken, before.n_texts) == (5, 16, 4, 5)
    assert (after.n_lost, after.n_characters, after.n_broken, after.n_texts) == (2, 16, 2, 5)
    assert "new     1 token of 2 that are lacking: 水" in lines
    assert "unknown 31.2% of the characters, in 80.0% of the texts before" in lines
    assert any("much stays unknown" in line for line in lines)


def test_plan_says_the_same_and_writes_nothing(tiny_model, records, tmp_path):
    plan = plan_extend(ExtendConfig(model_name=tiny_model, data_path=str(records), output_path=tmp_path / "extended"))
    assert "new     2 tokens of 2 that are lacking: 水 火" in plan.lines()
    assert sorted(path.name for path in tmp_path.iterdir()) == [records.name]


def test_a_corpus_is_looked_through_too(tiny_model, records, tmp_path):
    (tmp_path / "texts.txt").write_text("山山山山\n", encoding="utf-8")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "title": "木", "text": "red"}\n', encoding="utf-8")
    corpora = [str(tmp_path / "texts.txt"), str(tmp_path / "corpus.jsonl")]
    assert extend(tiny_model, records, tmp_path / "both", corpus=corpora)[0].new_tokens == ("山", "水", "火", "木")
    assert extend(tiny_model, None, tmp_path / "corpus", corpus=corpora)[0].new_tokens == ("山", "木")


def test_glued_letters_get_tokens_that_continue_a_word(tiny_model, tmp_path):
    (tmp_path / "texts.txt").write_text("жук жу ук\n", encoding="utf-8")
    result, _ = extend(tiny_model, None, tmp_path / "extended", corpus=[str(tmp_path / "texts.txt")])
    assert sorted(result.new_tokens) == ["##к", "##у", "ж", "у"]
    tokenizer = SentenceTransformer(str(result.model_path), device="cpu").tokenizer
    assert tokenizer.tokenize("жук ук, redж") == ["ж", "##у", "##к", "у", "##к", ",", "[UNK]"]


def test_a_longer_piece_is_not_broken_up(tmp_path):
    """'##bc' is known and '##b' is not: once 'ab' asks for it, 'abc' is spelt as before."""
    tokenizer = of_pieces(tmp_path, ["a", "##bc", "ab", "##c"])
    spelling = spelling_of(tokenizer, "model")
    assert tokenizer.tokenize("abc aab") == ["ab", "##c", "[UNK]"]
    missing = find_missing(spelling, ["abc aab abc"], 9)
    assert missing.tokens == ("##a", "##b")
    spelling.add(missing.tokens)
    assert tokenizer.tokenize("abc aab") == ["ab", "##c", "a", "##a", "##b"]


def test_no_text_that_was_spelt_is_spelt_otherwise(tmp_path):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcd", k=rng.randint(1, 4))) for _ in range(30)]
    tokenizer = of_pieces(tmp_path, list(dict.fromkeys([*words[:15], *(f"##{word}" for word in words[15:])])))
    texts = ["".join(rng.choices("abcd", k=rng.randint(1, 8))) for _ in range(400)]
    before = {text: tokenizer.tokenize(text) for text in texts}
    spelling = spelling_of(tokenizer, "model")
    missing = find_missing(spelling, texts, 99)
    assert missing.before.n_broken == sum(before[text] == ["[UNK]"] for text in texts) > 0
    spelling.add(missing.tokens)
    assert [text for text, tokens in before.items() if tokens != ["[UNK]"] and tokenizer.tokenize(text) != tokens] == []
    assert [text for text in texts if "[UNK]" in tokenizer.tokenize(text)] == []


def test_rows_are_drawn_like_those_of_whole_words_dimension_by_dimension(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("ebr.model.vocabulary.rows._FEWEST_WORDS", 2)
    characters = "".join(chr(code) for code in range(0x5000, 0x5000 + 2000))
    (tmp_path / "texts.txt").write_text(characters + "\n", encoding="utf-8")
    options = {"corpus": [str(tmp_path / "texts.txt")], "max_new_tokens": 2000}
    seeds = {"one": 1, "again": 1, "other": 2}
    folders = [extend(tiny_model, None, tmp_path / name, seed=seed, **options)[0].model_path for name, seed in seeds.items()]
    tables = [load_encoder(str(folder))[0].model.get_input_embeddings().weight.detach().numpy() for folder in folders]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    words = [index for token, index in tokenizer.get_vocab().items() if len(token) > 2 and token.isalpha()]
    known, drawn = tables[0][words], tables[0][len(tokenizer) :]
    assert len(drawn) > 1900
    np.testing.assert_allclose(drawn.mean(0), known.mean(0), atol=4 * known.std(0).max() / np.sqrt(1900))
    np.testing.assert_allclose(drawn.std(0), known.std(0, ddof=1), rtol=0.1)
    assert np.array_equal(tables[0], tables[1])
    assert np.array_equal(tables[0][: len(tokenizer)], tables[2][: len(tokenizer)])
    assert not np.array_equal(tables[0], tables[2])


# A tokenizer of pieces with scores


def of_scores(pieces, **options):
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), *pieces], unk_id=0, **options))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>", model_max_length=64)


PIECES = [
    ("▁", -3.0),
    *((f"▁{word}", -4.0) for word in ("red", "shoe")),
    *((letter, -6.0) for letter in "abcdefghijklmnopqrst"),
]


def test_a_unigram_gets_characters_that_stand_in_no_piece(tmp_path):
    folder = save_encoder_of(save_bert(tmp_path / "raw", of_scores(PIECES)), tmp_path / "model", behind=[Normalize()])
    (tmp_path / "texts.txt").write_text("red 水水 shoe火\nred shoe\n", encoding="utf-8")
    result, _ = extend(folder, None, tmp_path / "extended", corpus=[str(tmp_path / "texts.txt")])
    assert result.new_tokens == ("水", "火")
    # red水水shoe火 and redshoe
    before = result.unknown_before
    assert (before.n_lost, before.n_characters, before.n_broken) == (3, 17, 1)
    base, extended = (SentenceTransformer(str(one), device="cpu") for one in (folder, result.model_path))
    assert extended.tokenizer.tokenize("shoe水") == ["▁shoe", "水"]
    assert np.array_equal(base.encode(["red shoe", "a bed"]), extended.encode(["red shoe", "a bed"]))


# What is refused


def test_a_tokenizer_that_knows_every_byte_is_refused_with_the_reason(tiny_decoder, records, tmp_path):
    with pytest.raises(ModelError, match=r"its tokenizer \(BPE\) spells byte by byte .* there is nothing to extend"):
        extend(tiny_decoder, records, tmp_path / "extended", pooling="lasttoken")
    with pytest.raises(ModelError, match=r"its tokenizer \(Unigram\) spells byte by byte"):
        spelling_of(of_scores([*PIECES, *((f"<0x{byte:02X}>", -9.0) for byte in range(256))], byte_fallback=True), "model")


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(ModelError, match="of the kind WordLevel; only WordPiece and Unigram can be extended"):
        spelling_of(of_whole_words([*SPECIAL[:2], "red"]), "model")


def test_tokens_behind_the_vocabulary_of_a_unigram_are_refused():
    tokenizer = of_scores(PIECES)
    tokenizer.add_tokens(["<behind>"])
    with pytest.raises(ModelError, match="has tokens behind its vocabulary"):
        spelling_of(tokenizer, "model").add(["水"])


def test_an_adapter_is_to_be_merged_first(tiny_model, records, tmp_path):
    save_tuned(tiny_model, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"is an adapter, .*merge it first \(ebr merge\)"):
        extend(tmp_path / "adapter", records, tmp_path / "extended")


def test_texts_that_hold_nothing_unknown_are_said(tiny_model, pairs_file, tmp_path):
    with pytest.raises(DataError, match="spells every character that it can be taught; there is nothing to extend"):
        extend(tiny_model, pairs_file, tmp_path / "extended")
    assert not (tmp_path / "extended").exists()


def test_no_texts_at_all_are_an_error_of_options(tmp_path):
    with pytest.raises(ConfigError, match="data_path, corpus: give one of them"):
        plan_extend(ExtendConfig(output_path=tmp_path / "extended"))


def test_only_an_earlier_extension_is_written_over(tiny_model, records, tmp_path):
    extend(tiny_model, records, tmp_path / "extended")
    again, _ = extend(tiny_model, records, tmp_path / "extended", max_new_tokens=1)
    assert len(load_encoder(str(again.model_path)).tokenizer) == len(AutoTokenizer.from_pretrained(tiny_model)) + 1
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else than an earlier extension"):
        extend(tiny_model, records, tmp_path / "own")
    with pytest.raises(ConfigError, match="is, holds or lies in the model_name"):
        extend(tmp_path / "extended", records, tmp_path / "extended")


def test_a_model_that_embeds_otherwise_is_not_written(tiny_model, records, tmp_path, monkeypatch):
    stock = SentenceTransformer.encode
    monkeypatch.setattr(
        SentenceTransformer, "encode", lambda self, *args, **more: stock(self, *args, **more) + self[0].model.config.vocab_size
    )
    with pytest.raises(ModelError, match="gives other vectors for texts that it knew; nothing was written"):
        extend(tiny_model, records, tmp_path / "extended")
    assert not (tmp_path / "extended").exists()


# What is written down


def test_the_model_says_which_rows_are_new_and_an_extension_of_it_adds_to_them(tiny_model, records, tmp_path):
    n_before = len(AutoTokenizer.from_pretrained(tiny_model))
    first, _ = extend(tiny_model, records, tmp_path / "first")
    assert new_tokens_of(load_encoder(str(first.model_path))[0].model, "model") == NewTokens(n_before, 2)
    (tmp_path / "texts.txt").write_text("山 水\n", encoding="utf-8")
    second, _ = extend(first.model_path, None, tmp_path / "second", corpus=[str(tmp_path / "texts.txt")])
    assert second.new_tokens == ("山",)
    assert new_tokens_of(load_encoder(str(second.model_path))[0].model, "model") == NewTokens(n_before, 3)
    assert new_tokens_of(load_encoder(tiny_model)[0].model, "model") is None


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ({"version": 2, "first": 1, "count": 1}, "is of version 2, and 1 can be read; update EBR"),
        ("yes", "is of version None"),
        ({"version": 1, "first": 5, "count": 10_000}, r"says first 5, count 10000, where the table of embeddings has \d+ rows"),
        ({"version": 1, "first": -1, "count": 1}, "says first -1"),
        ({"version": 1, "first": "1", "count": 1}, "says first '1'"),
    ],
)
def test_a_note_that_does_not_fit_is_refused(tiny_model, records, tmp_path, note, said):
    result, _ = extend(tiny_model, records, tmp_path / "extended")
    edit_json(result.model_path / "config.json", ebr_new_tokens=note)
    with pytest.raises(ModelError, match=said):
        new_tokens_of(SentenceTransformer(str(result.model_path), device="cpu")[0].model, "model")


def test_manifest_and_card_say_what_it_was_and_what_became_unknown(tiny_model, records, tmp_path):
    result, _ = extend(tiny_model, records, tmp_path / "extended")
    record = read_manifest(result.model_path)
    assert (record["base_model"], record["new_tokens"]["added"]) == (tiny_model, 2)
    assert record["base_sha256"] == fingerprint(load_encoder(tiny_model))
    assert record["model_sha256"] == fingerprint(load_encoder(str(result.model_path)))
    assert record["unknown"]["before"] == {"characters": 5, "of_characters": 16, "texts": 4, "of_texts": 5}
    card = (result.model_path / "README.md").read_text(encoding="utf-8")
    assert "| unknown characters | 5 of 16 | 0 |" in card
    assert str(tmp_path) not in card


def test_what_was_only_looked_through_counts_as_no_training_data(tiny_model, records, tmp_path):
    result, _ = extend(tiny_model, records, tmp_path / "extended")
    assert Provenance.of([str(result.model_path)]).sources == ()


def test_the_command_line_extends(tiny_model, records, tmp_path, capsys):
    flags = ["extend", "--model_name", tiny_model, "--data_path", str(records), "--output_path", str(tmp_path / "extended")]
    assert cli.main([*flags, "--dry_run"]) == 0
    assert not (tmp_path / "extended").exists()
    assert cli.main(flags) == 0
    assert "unknown 31.2% of the characters" in capsys.readouterr().out
    assert read_json(tmp_path / "extended" / "config.json")["ebr_new_tokens"]["count"] == 2
