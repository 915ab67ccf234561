"""Texts to choose from: which file, which texts, which mistakes."""

import gzip
import json

import pytest

from ebr.data.evaluation.corpus import count_texts, find_corpus, read_corpus
from ebr.data.records.documents import Document
from ebr.errors import DataError


def written(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_beir_documents_keep_title_and_text_apart_and_are_title_space_text(tmp_path):
    file = written(
        tmp_path / "corpus.jsonl",
        '{"_id": "1", "title": "鞋", "text": "红色的鞋"}',
        "",
        '{"_id": "2", "title": null, "text": " alone "}',
        '{"_id": "3", "text": "no title"}',
        '{"_id": "4", "title": "", "text": ""}',
    )
    found = list(read_corpus(file))
    assert found == [Document("鞋", "红色的鞋", "1"), Document("", " alone ", "2"), Document("", "no title", "3")]
    assert [document.whole for document in found] == ["鞋 红色的鞋", "alone", "no title"]
    assert count_texts(file) == 3


def test_a_text_file_holds_one_text_a_line_and_json_in_it_is_a_text(tmp_path):
    file = written(tmp_path / "texts.txt", "\ufeff first ", "", "  ", '{"text": "as it stands"}', "a\u2028b")
    assert list(read_corpus(file)) == [Document("", text) for text in ("first", '{"text": "as it stands"}', "a\u2028b")]


@pytest.mark.parametrize(("title", "text"), [("\ud83d", "whole"), ("whole", "\ude00")])
def test_half_a_character_is_refused_in_a_title_as_in_a_text(tmp_path, title, text):
    with pytest.raises(DataError, match="half a character"):
        list(read_corpus(written(tmp_path / "c.jsonl", json.dumps({"title": title, "text": text}))))


def test_reading_is_streaming(tmp_path):
    file = written(tmp_path / "c.jsonl", '{"text": "one"}', "broken")
    texts = read_corpus(file)
    assert next(texts) == Document("", "one")
    with pytest.raises(DataError, match=r"c\.jsonl:2: is not valid JSON"):
        next(texts)


def test_every_wrong_line_is_named(tmp_path):
    lines = ["{", "[1]", '{"title": "no text"}', '{"text": 3}', '{"text": "ok"}', '{"text": "\\ud800"}', b'{"text": "\xff"}']
    with pytest.raises(DataError) as caught:
        list(read_corpus(written(tmp_path / "c.jsonl", *lines)))
    said = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in said] == ["1", "2", "3", "4", "6", "7"]
    assert "its keys are 'title'; expected 'text', 'contents'" in said[2]
    for line, part in zip(
        said, ["not valid JSON", "is list", "'text'", "'text'", "half a character", "not UTF-8"], strict=True
    ):
        assert part in line


def test_reading_stops_at_the_twentieth_different_problem(tmp_path):
    lines = [json.dumps({f"a{number}": 1}) for number in range(30)]
    with pytest.raises(DataError) as caught:
        list(read_corpus(written(tmp_path / "c.jsonl", *lines)))
    said = str(caught.value).splitlines()
    assert len(said) == 21 and "c.jsonl:20: " in said[19] and said[20] == "and perhaps more"


def test_a_problem_of_every_line_is_told_once_with_the_keys_that_are_there(tmp_path):
    lines = [json.dumps({"docno": number, "words": "x"}) for number in range(2000)]
    with pytest.raises(DataError) as caught:
        list(read_corpus(written(tmp_path / "c.jsonl", *lines)))
    (said,) = str(caught.value).splitlines()
    assert "c.jsonl:1: has no text: its keys are 'docno', 'words'; expected 'text', " in said
    assert said.endswith("(and 1,999 more like it)")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "c.jsonl.gz",
            gzip.compress(b'{"docid": 7, "contents": "red"}\n# of whom\n{"docid": 8, "title": "t", "contents": "blue"}'),
        ),
        ("c.json", b'[{"docid": 7, "passage": "red"}, {"docid": 8, "title": "t", "passage": "blue"}]'),
        ("c.tsv", b"docid\ttitle\tbody\n7\t\tred\n8\tt\tblue\n"),
    ],
)
def test_a_corpus_of_others_is_read(tmp_path, name, content):
    assert list(read_corpus(written(tmp_path / name, content))) == [Document("", "red", "7"), Document("t", "blue", "8")]


def test_a_zipped_text_file_holds_one_text_a_line(tmp_path):
    file = written(tmp_path / "texts.txt.gz", gzip.compress("\ufeffone\n\ntwo\u2028three\n".encode()))
    assert [document.text for document in read_corpus(file)] == ["one", "two\u2028three"]


def test_a_corpus_is_a_file_or_the_folder_that_holds_it(tmp_path):
    file = written(tmp_path / "corpus.jsonl", json.dumps({"text": "x"}))
    assert find_corpus(tmp_path) == find_corpus(file) == file


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "no such file"), ("a.xlsx", r"a\.xlsx: is a zip archive"), ("folder", "holds no corpus")],
)
def test_what_is_no_corpus_is_refused(tmp_path, name, message):
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message):
        find_corpus(tmp_path / name)


@pytest.mark.parametrize("content", ["", "\n \n", '{"text": " "}'])
def test_a_corpus_without_a_text_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="holds no texts"):
        count_texts(written(tmp_path / "corpus.jsonl", content))
