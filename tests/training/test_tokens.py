"""Tokens: the same from a file, from memory and made anew; a file is keyed by all that changes a token, and never trusted."""

import logging
import os

import numpy as np
import pyarrow as pa
import pytest

from ebr.model.encoder.batching import Tokens
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.text_reader import TextReader
from ebr.training.batches import token_cache as tokens_module
from ebr.training.batches.token_cache import TokenCache, cache_folder, pooled

WORDS = "red blue green shoe shirt lamp cup book small large 的 一 大 国 来".split()
ODD = ["", " ", "\t\n", "这是一个大国", "buy 大 shoe", "e\u0301", "🎈", "the " * 100, "a\0b"]


def made_texts(n, start=0):
    """n distinct texts of 1 to 12 words."""
    return [
        " ".join(WORDS[(index * step) % len(WORDS)] for step in range(1, index % 12 + 2)) + f" {index}"
        for index in range(start, n)
    ]


TEXTS = [*ODD, *made_texts(240)]


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_encoder(tiny_model, device="cpu")


@pytest.fixture
def reader(model):
    return Counting(model, "document", "")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 40 texts, of which every file here has 7, the last of 9."""
    monkeypatch.setattr(tokens_module, "_BLOCK", 40)


@pytest.fixture(autouse=True)
def low_threshold(monkeypatch):
    """200 texts are enough for a file: the tests take a tenth of the time."""
    monkeypatch.setattr(tokens_module, "_FEWEST_TEXTS", 200)


class Counting(TextReader):
    """Notes what it is asked to tokenise."""

    def __init__(self, model, task, prompt):
        super().__init__(model, task, prompt)
        self.calls = []

    def prepare(self, texts):
        self.calls.append(list(texts))
        return super().prepare(texts)

    @property
    def asked(self):
        """Texts since the book was made: the first call looks at what the model is."""
        return [text for call in self.calls[1:] for text in call]


def assert_same(found: Tokens, wanted: Tokens):
    for name in ("ids", "type_ids", "offsets"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
        assert getattr(found, name).dtype == np.int64, name


def shuffled(texts):
    return [texts[place] for place in np.random.default_rng(0).permutation(len(texts))[:100]]


# ---------------------------------------------------------------- equal


@pytest.mark.parametrize("prompt", ["", "query: 大 "])
def test_tokens_of_a_file_of_memory_and_of_a_reader_are_equal(model, tmp_path, small_blocks, prompt):
    reader = TextReader(model, "document", prompt)
    written, read, memory = TokenCache(reader, TEXTS, tmp_path), TokenCache(reader, TEXTS, tmp_path), TokenCache(reader, TEXTS)
    some = [*ODD, *shuffled(TEXTS), TEXTS[39], TEXTS[40], TEXTS[-1]]  # both sides of a block's border
    wanted = reader.prepare(some)
    for book in (written, read, memory):
        found = book.prepare(some)
        assert_same(found.tokens, wanted.tokens)
        assert np.array_equal(found.lengths, wanted.lengths)
        assert (found.texts, found.prompt_length) == ([], wanted.prompt_length)
        assert np.array_equal(book.lengths(), reader.prepare(TEXTS).lengths)


def test_second_book_reads_the_file_and_tokenises_nothing(model, tmp_path, small_blocks):
    TokenCache(TextReader(model, "document", ""), TEXTS, tmp_path)
    second = Counting(model, "document", "")
    book = TokenCache(second, TEXTS, tmp_path)
    book.prepare(shuffled(TEXTS))
    assert second.asked == []
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_read_back_is_mapped_not_loaded(model, tmp_path, small_blocks):
    before = pa.total_allocated_bytes()
    book = TokenCache(TextReader(model, "document", ""), TEXTS, tmp_path)
    # Arrow itself holds none of them.
    assert sum(block.ids.nbytes for block in book._blocks) > 5_000
    assert pa.total_allocated_bytes() - before < 1_000
    assert not any(block.ids.flags.owndata for block in book._blocks)


def test_blocks_of_an_exact_multiple_leave_no_empty_one(reader, tmp_path, small_blocks):
    texts = made_texts(200)
    book = TokenCache(reader, texts, tmp_path)
    assert [len(block) for block in book._blocks] == [40] * 5
    assert len(book.lengths()) == 200


def test_two_thousand_texts_make_a_file_and_fewer_none(reader, tmp_path, monkeypatch):
    monkeypatch.undo()
    texts = made_texts(2_000)
    TokenCache(reader, texts[1:], tmp_path)
    assert list(tmp_path.iterdir()) == []
    TokenCache(reader, texts, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".arrow"]


def test_few_texts_leave_no_file(reader, tmp_path):
    assert_same(TokenCache(reader, ODD, tmp_path).prepare(ODD).tokens, reader.prepare(ODD).tokens)
    assert list(tmp_path.iterdir()) == []


def test_book_of_no_texts_tokenises_what_comes(reader, tmp_path):
    book = TokenCache(reader, [], tmp_path)
    assert_same(book.prepare(ODD).tokens, reader.prepare(ODD).tokens)
    assert len(book.lengths()) == 0


def test_tokenizer_without_type_ids_has_none_in_the_file_either(tiny_decoder, tmp_path, small_blocks):
    reader = TextReader(load_encoder(tiny_decoder, device="cpu"), "document", "")
    TokenCache(reader, TEXTS, tmp_path)
    again = TokenCache(reader, TEXTS, tmp_path).prepare(TEXTS[:150])
    assert again.tokens.type_ids is None
    assert np.array_equal(again.tokens.ids, reader.prepare(TEXTS[:150]).tokens.ids)


# ---------------------------------------------------------------- what noise has changed


def test_only_texts_that_are_new_are_tokenised_again_each_in_its_place(reader, tmp_path):
    book = TokenCache(reader, TEXTS, tmp_path)
    reader.calls = reader.calls[:1]
    asked = [TEXTS[20], "rde shoe", TEXTS[200], "sheo", TEXTS[20], "rde shoe"]
    assert_same(book.prepare(asked).tokens, TextReader(reader.model, "document", "").prepare(asked).tokens)
    assert reader.asked == ["rde shoe", "sheo", "rde shoe"]


def test_known_texts_ask_the_tokenizer_nothing(reader, tmp_path):
    book = TokenCache(reader, TEXTS, tmp_path)
    reader.calls = reader.calls[:1]
    book.prepare(TEXTS[:50])
    assert reader.asked == []


# ---------------------------------------------------------------- the key


def key_of(model, texts=TEXTS, task="document", prompt=""):
    return TokenCache(TextReader(model, task, prompt), texts[:1])._key(texts)


@pytest.mark.parametrize(
    "change",
    [
        dict(prompt="query: "),
        dict(task="query"),
        dict(texts=[*TEXTS[:-1], "other"]),
        dict(texts=[TEXTS[1], TEXTS[0], *TEXTS[2:]]),
        dict(texts=TEXTS[:-1]),
        dict(texts=[TEXTS[0] + TEXTS[9], "", *TEXTS[10:]]),
    ],
    ids=["prompt", "role", "text", "order", "number", "border between two texts"],
)
def test_another_input_has_another_file(model, change):
    assert key_of(model) == key_of(model)
    assert key_of(model, **change) != key_of(model)


def shorter(model):
    model.max_seq_length = 20


def for_documents(model):
    model[0].document_length = 20


def other_words(model):
    model.tokenizer.add_tokens(["shoelace"])


def other_end(model):
    model.tokenizer.truncation_side = "left"


@pytest.mark.parametrize("change", [shorter, for_documents, other_words, other_end])
def test_another_tokenizer_or_length_has_another_file(tiny_model, change):
    model = load_encoder(tiny_model, device="cpu")
    before = key_of(model)
    change(model)
    assert key_of(model) != before


def test_key_does_not_depend_on_what_the_tokenizer_did_last(model):
    before = key_of(model)
    model.tokenizer(["the red shoe"] * 2, padding="max_length", max_length=9, truncation=True)
    assert key_of(model) == before


# ---------------------------------------------------------------- no trust in files


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def scribbled(path):
    path.write_bytes(b"no Arrow file at all" * 500)


def offsets_scribbled(path):
    """The file's frame is whole; in the data of the first block, offsets point to nowhere."""
    whole = bytearray(path.read_bytes())
    start = whole.index(np.array([0, 2], np.int32).tobytes())  # the first text is empty: [CLS] [SEP]
    whole[start + 4 : start + 12] = np.array([2**30, 5], np.int32).tobytes()
    path.write_bytes(bytes(whole))


def other_columns(path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("ids", pa.int32())])) as file:
        for n_rows in [40] * 6 + [9]:
            file.write_batch(pa.record_batch([pa.nulls(n_rows, pa.int32())], names=["ids"]))


@pytest.mark.parametrize("damage", [cut_short, empty, scribbled, offsets_scribbled, other_columns])
def test_damaged_file_is_made_again(model, tmp_path, small_blocks, damage):
    TokenCache(TextReader(model, "document", ""), TEXTS, tmp_path)
    whole = only_file(tmp_path).read_bytes()
    damage(only_file(tmp_path))
    reader = Counting(model, "document", "")
    book = TokenCache(reader, TEXTS, tmp_path)
    assert reader.asked == TEXTS
    assert_same(book.prepare(TEXTS).tokens, TextReader(model, "document", "").prepare(TEXTS).tokens)
    assert only_file(tmp_path).read_bytes() == whole


def test_file_with_blocks_of_another_size_is_made_again(model, tmp_path, monkeypatch):
    TokenCache(TextReader(model, "document", ""), TEXTS, tmp_path)
    monkeypatch.setattr(tokens_module, "_BLOCK", 40)
    reader = Counting(model, "document", "")
    TokenCache(reader, TEXTS, tmp_path)
    assert reader.asked == TEXTS


def test_folder_that_cannot_be_written_means_memory_and_one_warning(reader, tmp_path, caplog):
    (tmp_path / "file").write_text("where a folder should be")
    with caplog.at_level(logging.WARNING):
        book = TokenCache(reader, TEXTS, tmp_path / "file" / "tokens")
    assert_same(book.prepare(TEXTS).tokens, TextReader(reader.model, "document", "").prepare(TEXTS).tokens)
    assert [record.message.count("kept in memory") for record in caplog.records] == [1]


def test_file_of_another_user_is_read_though_its_time_cannot_be_set(model, tmp_path, monkeypatch):
    TokenCache(TextReader(model, "document", ""), TEXTS, tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError("not yours")

    monkeypatch.setattr(os, "utime", refuse)
    reader = Counting(model, "document", "")
    TokenCache(reader, TEXTS, tmp_path)
    assert reader.asked == []


def test_of_many_files_those_used_last_are_kept(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "_MOST_FILES", 2)
    monkeypatch.setattr(tokens_module, "_FEWEST_TEXTS", 1)

    def book(text):
        made = TokenCache(TextReader(model, "document", ""), [text], tmp_path)
        return made._key([text]) + ".arrow"

    first, second = book("first"), book("second")
    for age, name in enumerate([second, first]):
        os.utime(tmp_path / name, (1_000 + age, 1_000 + age))
    book("second")  # used again: newer than the first now
    third = book("third")
    tokens_module.sweep(tmp_path, at_least=3)  # what a run uses itself stays, however much it is
    assert {path.name for path in tmp_path.iterdir()} == {first, second, third}
    tokens_module.sweep(tmp_path, at_least=1)
    assert {path.name for path in tmp_path.iterdir()} == {second, third}


def test_folder_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("EBR_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path / "tokens"


# ---------------------------------------------------------------- models with their own way


def test_texts_of_a_model_that_takes_no_plain_tokens_go_through_its_own_preprocess(tiny_model, tmp_path):
    reader = TextReader(load_encoder(tiny_model, device="cpu"), "document", "")
    reader.model[0].processing_kwargs = {"text": {"max_length": 64}}
    book = TokenCache(reader, TEXTS, tmp_path)
    found = book.prepare(TEXTS[:30])
    assert not book.reads_tokens
    assert (found.tokens, found.texts) == (None, TEXTS[:30])
    assert list(tmp_path.iterdir()) == []
    assert len(book.lengths()) == 0


# ---------------------------------------------------------------- pooled


def test_pooled_tokens_stand_in_the_order_of_their_parts(reader):
    first, second = ["the red shoe", ""], ["大国"]
    parts = [reader.prepare(texts).tokens for texts in (first, second)]
    assert_same(pooled(parts), reader.prepare([*first, *second]).tokens)
