"""Files of queries: whatever form they have, the ids are the file's; what is no list of queries is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebr.data.evaluation.queries import Query, read_queries
from ebr.errors import DataError

SHOES = [Query("1048585", "shoes for running"), Query("q7", "红鞋, 42")]
RECORDS = [{"_id": "1048585", "text": "shoes for running"}, {"_id": "q7", "text": "红鞋, 42"}]


def parquet(columns, names=None):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, names=names), sink)
    return sink.getvalue()


FORMS = {
    "array.json": json.dumps(RECORDS),
    "lines.json": "\n".join(map(json.dumps, RECORDS)),
    "indented.json": json.dumps(RECORDS, indent=2),
    "wrapped.json": json.dumps({"queries": RECORDS}),
    "mapping.json": json.dumps({one["_id"]: one["text"] for one in RECORDS}),
    "q.jsonl": "\ufeff" + "\n\n".join(json.dumps(one, ensure_ascii=False) for one in RECORDS),
    "named.jsonl": "\n".join(json.dumps({"qid": one["_id"], "question": one["text"]}) for one in RECORDS),
    "marco.tsv": "1048585\tshoes for running\r\nq7\t红鞋, 42\r\n",
    "header.tsv": "query_id\ttext\n1048585\tshoes for running\n\nq7\t红鞋, 42\n",
    "spreadsheet.tsv": '_id\tquery\n1048585\tshoes for running\nq7\t"红鞋, 42"\n',
    "turned.tsv": "Query\tQuery ID\tlanguage\nshoes for running\t1048585\ten\n红鞋, 42\tq7\tzh\n",
    "header.csv": 'id,text\n1048585,shoes for running\nq7,"红鞋, 42"\n',
    "plain.csv": '1048585,shoes for running\nq7,"红鞋, 42"\n',
    "german.csv": 'id;text\n1048585;shoes for running\nq7;"红鞋, 42"\n',
    "other.csv": 'topic,query\n1048585,shoes for running\nq7,"红鞋, 42"\n',
    "unnamed.csv": 'qid,words\n1048585,shoes for running\nq7,"红鞋, 42"\n',
    "q.parquet": parquet({"text": ["shoes for running", "红鞋, 42"], "id": ["1048585", "q7"]}),
    "bytes.parquet": parquet({"text": [b"shoes for running", "红鞋, 42".encode()], "_id": ["1048585", "q7"]}),
    "000000_0": "1048585\tshoes for running\nq7\t红鞋, 42\n",
    "utf16.tsv": "1048585\tshoes for running\nq7\t红鞋, 42\n".encode("utf-16"),
    "queries.dev": "\n".join(map(json.dumps, RECORDS)),
}


def content(name):
    return FORMS[name] if isinstance(FORMS[name], bytes) else FORMS[name].encode()


@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_queries_gives_its_own_ids_and_texts(tmp_path, name):
    (tmp_path / name).write_bytes(content(name))
    assert read_queries(tmp_path / name) == SHOES


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".deflate", zlib.compress)],
)
@pytest.mark.parametrize("name", ["header.csv", "q.jsonl"])
def test_a_packed_file_is_read_like_the_plain_one(tmp_path, name, suffix, pack):
    (tmp_path / (name + suffix)).write_bytes(pack(content(name)))
    assert read_queries(tmp_path / (name + suffix)) == SHOES
    (tmp_path / (name + suffix)).write_bytes(pack(content(name))[:-9])
    with pytest.raises(DataError, match="archive is broken or cut short"):
        read_queries(tmp_path / (name + suffix))


@pytest.mark.parametrize("name", ["array.json", "q.jsonl", "marco.tsv", "q.parquet"])
def test_what_comes_in_is_known_by_its_content(monkeypatch, name):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content(name))))
    assert read_queries(Path("-")) == SHOES


def test_what_comes_in_may_be_packed_and_is_called_by_its_name(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(content("q.jsonl")))))
    assert read_queries(Path("-")) == SHOES
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"7\tred\n7\tblue\n")))
    with pytest.raises(DataError, match=r"^standard input:2: the id '7' comes twice, first at standard input:1"):
        read_queries(Path("-"))


def test_lines_are_queries_whose_ids_are_the_numbers_of_the_lines(tmp_path, monkeypatch):
    text = '\ufeffred shoe, "42"\r\n\n 红鞋\u2028子 \n[solved] why\n'
    wanted = [Query("1", 'red shoe, "42"'), Query("3", "红鞋\u2028子"), Query("4", "[solved] why")]
    for name in ("q.txt", "queries", "q.small"):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        assert read_queries(tmp_path / name) == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert read_queries(Path("-")) == wanted


def test_records_without_an_id_have_their_number_and_numbers_are_ids_too(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": 8, "text": "b"}\n\n{"_id": null, "text": "c"}\n"d"\n')
    assert read_queries(tmp_path / "q.jsonl") == [Query("8", "b"), Query("3", "c"), Query("4", "d")]
    (tmp_path / "q.parquet").write_bytes(parquet({"query": ["a", "b"], "id": pa.array([7.0, None])}))
    assert read_queries(tmp_path / "q.parquet") == [Query("7", "a"), Query("2", "b")]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("q.txt", b'{"_id": 7, "text": "red shoe"}\n', r"q\.txt: looks like JSON; name it \.json"),
        ("q.txt", b"7\tred shoe\n8\tblue lamp\n", r"q\.txt: looks like a table of ids and texts; name it \.tsv"),
        ("q.xml", b"red\n", r"q\.xml: \.xml is no form of queries, or holds something else; give \.txt"),
        ("topics", b"<topics>\n<top>\n", "looks like XML"),
        ("q.xlsx", b"PK\x03\x04\0\0", "is a zip archive"),
        ("q", b"red\0shoe\n", r"q:1: holds a NUL"),
        ("q", b"\0\0\0" * 99, "holds NUL bytes and is no text"),
        ("q.txt", b"red\n\xb5\n", r"q\.txt:2: is not UTF-8 \(byte 0xb5\)"),
        ("q.parquet", b"red\n", "parquet is no form of queries, or holds something else"),
        ("q.parquet", b"PAR1red", "cannot be read"),
        ("q.parquet", parquet([["x"], ["y"]], names=["text", "text"]), r"q\.parquet: column 'text' occurs twice; rename one"),
        ("q.parquet", parquet({"a": ["x"], "b": ["y"]}), "row 1: names no text to search for, only 'a', 'b'"),
        ("q.csv", b"shop,lang,hits\na,en,7\n", r"q\.csv:1: names no column with the texts, only 'shop', 'lang', 'hits'"),
        ("q.csv", b"keyword_no,words\n1,red\n2,blue\n", r"q\.csv:1: is 'keyword_no' the name of a column\?"),
        ("q.csv", b"id,text\n1,red, blue\n", r"q\.csv:2: has 3 cells, and the first row 2"),
        ("q.csv", b'id,text\n1,"red\n', r"q\.csv:2: is no row of a table"),
        ("q.tsv", b"1\tred\n2\t \n", r"q\.tsv:2: the text to search for is empty"),
        ("q.tsv", b"1\tred\n1\tblue\n", r"q\.tsv:2: the id '1' comes twice, first at .*q\.tsv:1"),
        ("q.json", b'[{"text": 7}]', r"q\.json: record 1: the text to search for is int, not a text"),
        ("q.json", b"[7]", r"q\.json: record 1: is int; give an object with 'text'"),
        ("q.json", b'[{"text": "a"}', r"q\.json: is not valid JSON"),
        ("q.jsonl", b'{"text": "a"}\n{"text": ""}\n', r"q\.jsonl:2: the text to search for is empty"),
        ("q.jsonl", b'{"text": "a"}\nred\n', r"q\.jsonl:2: is not valid JSON"),
        (
            "q.jsonl",
            b'{"_id": "a", "words": "b", "n": 1}\n',
            r"q\.jsonl:1: names no text to search for, only '_id', 'words', 'n'",
        ),
        ("q.jsonl", b'{"_id": [1], "text": "x"}\n', r"q\.jsonl:1: the id \[1\] is list"),
        ("q.jsonl", b'{"text": "\\ud800"}\n', r"q\.jsonl:1: holds a NUL or half a character"),
        ("q.txt", b"\n \n", "holds no queries"),
        ("q.csv", b"id,text\n", "holds no queries"),
        ("none.txt", None, r"none\.txt: cannot be read \(No such file"),
    ],
)
def test_what_is_no_query_is_named_with_its_line(tmp_path, name, raw, message):
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_queries(tmp_path / name)
