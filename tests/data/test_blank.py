"""Which texts say nothing, and that every reader takes them for empty."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.data.evaluation.corpus import count_texts, read_corpus
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.data.evaluation.queries import Query, read_queries
from ebr.data.files.dialects import Dialect
from ebr.data.tables.shard_rows import parse_shard
from ebr.data.tables.shards import open_source, read_shards
from ebr.data.text.blank import is_blank
from ebr.data.training.examples import read_examples
from ebr.errors import DataError

INVISIBLE = {
    "nothing": "",
    "white space": " \t\r\n\x0b\x0c\x1c\x85\xa0\u3000\u2028\u2029",
    "control characters": "\x00\x01\x1b\x7f\x9f",
    "zero-width space": "\u200b",
    "joiners and directions": "\u200c\u200d\u200e\u202a\u2060\u2066",
    "byte order mark": "\ufeff",
    "soft hyphen": "\xad",
    "fillers of Hangul": "\u115f\u1160\u3164\uffa0",
    "selectors of variants": "\ufe0f\U000e0100",
    "tags": "\U000e0041\U000e007f",
    "blank of Braille": "\u2800",
    "white space around a zero-width space": " \u200b\n",
}
VISIBLE = ["a", "0", ".", "-", "中", "\u0301", "👩\u200d💻", "\u200bx", " \ufeff?\u200b", "\u06dd", "\ufffd", "[]", "_"]


@pytest.mark.parametrize("text", INVISIBLE.values(), ids=INVISIBLE)
def test_what_nobody_sees_is_blank(text):
    assert is_blank(text)


@pytest.mark.parametrize("text", VISIBLE)
def test_one_character_that_is_seen_makes_a_text(text):
    assert not is_blank(text)


def test_letters_and_digits_of_every_script_are_seen():
    fillers = set(INVISIBLE["fillers of Hangul"])
    kinds = {"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "Sm", "Sc", "Po", "Pd"}
    blank = [chr(code) for code in range(0x110000) if is_blank(chr(code)) and unicodedata.category(chr(code)) in kinds]
    assert set(blank) == fillers


@given(st.text(st.characters(categories=["Zs", "Zl", "Zp", "Cc"])))
def test_white_space_and_control_characters_alone_are_blank(text):
    assert is_blank(text)
    assert not is_blank(text + "x" + text)


# ---------------------------------------------------------------- every reader

NOTHING = "\u200b"


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"anchor": NOTHING, "positive": "b"}, "'anchor' is empty; give a text or remove the record"),
        ({"anchor": "a", "positive": f" {NOTHING}"}, "'positive' is empty; give a text or remove the record"),
        ({"query": "a", "pos": ["b", NOTHING]}, "'pos'[1] is empty; give a text or take it out of the list"),
        ({"query": "a", "pos": ["b"], "neg": ["\x00\ufeff"]}, "'neg'[0] is empty; give a text or take it out of the list"),
    ],
)
def test_a_text_that_nobody_sees_is_empty_in_a_training_record(tmp_path, record, problem):
    (tmp_path / "t.jsonl").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_examples([tmp_path / "t.jsonl"])
    assert str(caught.value).endswith(f"t.jsonl:1: {problem}")


def test_a_text_that_nobody_sees_is_no_candidate(tmp_path):
    lines = [json.dumps({"title": "\ufeff", "text": NOTHING}), json.dumps({"title": NOTHING, "text": "seen"})]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [document.text for document in read_corpus(tmp_path / "corpus.jsonl")] == ["seen"]
    (tmp_path / "texts.txt").write_text(f"one\n{NOTHING}\n", encoding="utf-8")
    assert count_texts(tmp_path / "texts.txt") == 1


def test_in_an_evaluation_set_a_document_that_nobody_sees_is_empty_and_a_query_is_refused(tmp_path):
    def written(query):
        (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "d", "title": NOTHING, "text": "\ufeff"}) + "\n")
        (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": query}) + "\n")
        (tmp_path / "qrels.tsv").write_text("q\td\t1\n")
        return read_evaluation_set(tmp_path)

    assert written("seen").documents == [""]
    with pytest.raises(DataError, match=r"queries\.jsonl:1: 'text' must be a string that is not empty"):
        written(NOTHING)


def test_a_query_that_nobody_sees_is_left_out_of_lines_and_refused_in_json(tmp_path):
    (tmp_path / "q.txt").write_text(f"one\n{NOTHING}\ntwo\n", encoding="utf-8")
    assert read_queries(tmp_path / "q.txt") == [Query("1", "one"), Query("3", "two")]
    (tmp_path / "q.jsonl").write_text(json.dumps({"text": NOTHING}), encoding="utf-8")
    with pytest.raises(DataError, match=r"q\.jsonl:1: the text to search for is empty"):
        read_queries(tmp_path / "q.jsonl")


def test_a_row_whose_text_nobody_sees_is_rejected_and_one_that_is_a_list_is_a_text_like_any_other(tmp_path):
    (tmp_path / "t").write_text(f"id|text\n1|{NOTHING}\n2|['a', 'b']\n3|\ufeff \x1b\n4|[\"a\"]\n", encoding="utf-8")
    source = open_source(tmp_path, "*", Dialect.of("|"), "text", None)
    (rows,) = [parse_shard(shard, source.schema) for shard in read_shards(source, 100)]
    assert rows.texts == ["['a', 'b']", '["a"]']
    assert [(row.line, row.reason) for row in rows.bad] == [(2, "text is empty"), (4, "text is empty")]
