"""What a file is by its first bytes: every reader knows the same ones, and names what it cannot read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import struct
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from ebr.cli import main
from ebr.data.evaluation.corpus import find_corpus, read_corpus
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.data.files.contents import TableKind, contents_of, looks_like_gbk, suffix_within
from ebr.data.files.dialects import Dialect
from ebr.data.tables.shard_rows import parse_shard
from ebr.data.tables.shards import count_rows, open_source, read_shards
from ebr.data.training.examples import read_examples
from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import DataError

ROWS = {"id": ["1", "2"], "text": ["red shoe", "红色跑鞋"]}
TEXT = "id\x01text\n1\x01red shoe\n2\x01红色跑鞋\n"


def stored(write, table):
    """The bytes that a writer of pyarrow makes of a table."""
    sink = pa.BufferOutputStream()
    write(table, sink)
    return sink.getvalue().to_pybytes()


def archive(opened, name, data):
    """A zip or tar archive of one file."""
    sink = io.BytesIO()
    with opened(sink) as file:
        if isinstance(file, zipfile.ZipFile):
            file.writestr(name, data)
        else:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def zipped(sink):
    return zipfile.ZipFile(sink, "w")


def tarred(sink):
    return tarfile.open(fileobj=sink, mode="w")


def database(tmp_path):
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("create table t (a)")
    return (tmp_path / "db").read_bytes()


TABLE = pa.table(ROWS)
ORC = stored(pa.orc.write_table, TABLE)
READ = {
    "parquet": stored(pq.write_table, TABLE),
    "orc": ORC,
    "feather": stored(lambda table, sink: pa.feather.write_feather(table, sink), TABLE),
    "bzip2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "utf-8 with a mark": TEXT.encode("utf-8-sig"),
    "utf-16": b"\xff\xfe" + TEXT.encode("utf-16-le"),
    "utf-16 big-endian": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "utf-32": b"\xff\xfe\0\0" + TEXT.encode("utf-32-le"),
    "utf-16 packed": gzip.compress(b"\xff\xfe" + TEXT.encode("utf-16-le")),
}


def source_of(folder, data, name="000000_0", **more):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return open_source(folder, "*", Dialect.of("\x01"), "text", None, **more)


def texts_of(source):
    return [text for shard in read_shards(source, 9) for text in parse_shard(shard, source.schema).texts]


@pytest.mark.parametrize("form", READ)
@pytest.mark.parametrize("name", ["000000_0", "t.csv"])
def test_a_table_reads_the_same_in_whatever_form_it_is_stored(tmp_path, form, name):
    source = source_of(tmp_path / "in", READ[form], name)
    assert (source.schema.columns, texts_of(source), count_rows(source)) == (("id", "text"), ROWS["text"], 2)


FOREIGN = {
    "zip": (archive(zipped, "t.csv", TEXT.encode()), "is a zip archive"),
    "npz": (archive(zipped, "v.npy", b"x"), "is a zip archive (.xlsx and .npz are such too); unpack it, or save the sheet"),
    "tar": (archive(tarred, "a.txt", TEXT.encode()), "is a tar archive; unpack it first"),
    "tar.gz": (gzip.compress(archive(tarred, "a.txt", TEXT.encode())), "within gzip, is a tar archive; unpack it first"),
    "tar.xz": (lzma.compress(archive(tarred, "a.txt", TEXT.encode())), "within xz, is a tar archive; unpack it first"),
    "gz.gz": (gzip.compress(gzip.compress(TEXT.encode())), "holds gzip packed with gzip; unpack it first"),
    "orc.gz": (gzip.compress(ORC), "holds orc packed with gzip; unpack it first"),
    "avro": (b"Obj\x01\x04\x14avro.codec\x08null\x16avro.schema", "is an Avro file; save it as Parquet, ORC or"),
    "snappy": (b"\xff\x06\0\0sNaPpY\x00", "is packed with snappy; unpack it, or pack it with gzip"),
    "sequence": (b"SEQ\x06\x19org.apache.hadoop.io.Text", "is a Hadoop SequenceFile"),
    "rcfile": (b"RCF\x01\0", "is a Hive RCFile"),
    "lzo": (b"\x89LZO\0\r\n\x1a\n\x10", "is packed with lzop"),
    "npy": (b"\x93NUMPY\x01\0", "is a NumPy array"),
    "pickle": (pickle.dumps({"a": list("text" * 50)}, 4), "is a Python pickle"),
    "arrow stream": (stored(lambda t, s: pa.ipc.new_stream(s, t.schema).write_table(t), TABLE), "is an Arrow stream"),
    "hadoop snappy": (struct.pack(">II", 40, 30) + TEXT.encode(), "holds NUL bytes and is no text"),
    "floats": (np.zeros(99, np.float64).tobytes(), "holds NUL bytes and is no text"),
    "utf-16 without a mark": (TEXT.encode("utf-16-le"), "if it is UTF-16, give the encoding as utf-16-le"),
    "utf-16 big-endian without a mark": ("id\x01text\n".encode("utf-16-be"), "give the encoding as utf-16-be"),
}


@pytest.mark.parametrize("form", FOREIGN)
@pytest.mark.parametrize("column_names", [None, ["id", "text"]])
def test_what_nothing_here_reads_is_named_and_never_taken_for_text(tmp_path, form, column_names):
    data, message = FOREIGN[form]
    with pytest.raises(DataError) as caught:
        source_of(tmp_path / "in", data, column_names=column_names)
    assert str(caught.value).startswith(f"{tmp_path / 'in' / '000000_0'}: ") and message in str(caught.value)


def test_a_database_is_named_and_so_is_snappy_of_hadoop_by_its_suffix(tmp_path):
    with pytest.raises(DataError, match="is an SQLite database"):
        source_of(tmp_path / "in", database(tmp_path))
    with pytest.raises(DataError, match="Hadoop's own form of snappy is not read: write the table with gzip"):
        source_of(tmp_path / "other", FOREIGN["hadoop snappy"][0], "000000_0.snappy")


def test_utf8_that_is_said_to_be_something_else_is_not_read_as_that(tmp_path):
    # Read as gb18030, 红色跑鞋 would be 绾㈣壊璺戦瀷, and no byte of it wrong.
    (tmp_path / "t").write_bytes(TEXT.encode())
    for encoding in "gb18030", "latin-1":
        with pytest.raises(DataError, match=rf"t: is UTF-8, not {encoding}; leave encoding out"):
            contents_of(tmp_path / "t", encoding)
    (tmp_path / "t").write_bytes("id\x01text\n1\x01隆隆隆\n".encode("gbk"))  # C2 A1 each: UTF-8 as well, but for few letters
    assert contents_of(tmp_path / "t", "gb18030").encoding == "gb18030"


def test_utf16_without_a_mark_asks_for_the_order_of_its_bytes(tmp_path):
    (tmp_path / "t").write_bytes(TEXT.encode("utf-16-le"))
    with pytest.raises(DataError, match=r"t: has no byte-order mark; give the encoding as utf-16-le or utf-16-be"):
        contents_of(tmp_path / "t", "utf-16")
    assert contents_of(tmp_path / "t", "utf-16-le").encoding == "utf-16-le"


@pytest.mark.parametrize(
    "data",
    [
        b"ORCID\x01text\n1\x01a\n",  # a column's name, and no ORC
        b"Obj\x01text\n1\x01a\n",
        b"x\x01text\n1\x01a\n",  # the two bytes before the second may begin a stream of zlib
        b"BZh9\x01text\n1\x01a\n",
        b"id\x01text\n1\x01a\0b\n",  # a NUL in a cell is dirt, and the row is read
    ],
)
def test_text_that_begins_like_something_else_is_text(tmp_path, data):
    assert len(texts_of(source_of(tmp_path / "in", data))) == 1


def test_a_header_with_nuls_is_no_header(tmp_path):
    with pytest.raises(DataError, match="000000_0:1: the header holds NUL bytes: this is no table of text; leave"):
        source_of(tmp_path / "in", b"id\x01te\0xt\n" + b"1\x01a\n" * 99)


def test_orc_of_old_hive_takes_its_names_from_column_names(tmp_path):
    data = stored(pa.orc.write_table, pa.table({"_col0": [1], "_col1": ["a"]}))
    with pytest.raises(DataError, match=r"its 2 columns have no names \(old Hive's ORC\); name each in column_names"):
        source_of(tmp_path / "in", data)
    source = source_of(tmp_path / "in", data, column_names=["text", "id"])
    [rows] = [parse_shard(shard, source.schema) for shard in read_shards(source, 9)]
    assert rows.columns.to_pylist() == [{"text": "1", "id": "a"}]


def test_orc_of_several_stripes_and_types_comes_as_text_in_order(tmp_path):
    n = 5000
    table = pa.table({"n": pa.array(range(n)), "text": [f"t{row}" for row in range(n)], "tags": [["x"]] * n})
    (tmp_path / "in").mkdir()
    pa.orc.write_table(table, tmp_path / "in" / "t", stripe_size=1024)
    source = open_source(tmp_path / "in", "*", Dialect.of("\x01"), "text", ["n"])
    shards = [parse_shard(shard, source.schema) for shard in read_shards(source, 999)]
    assert [text for rows in shards for text in rows.texts] == table["text"].to_pylist()
    assert [int(cell) for rows in shards for cell in rows.columns["n"].to_pylist()] == list(range(n))
    with pytest.raises(DataError, match=r"column 'tags' is list<.*, which has no text form"):
        open_source(tmp_path / "in", "*", Dialect.of("\x01"), "text", None)


@pytest.mark.parametrize(
    ("text", "encoding", "found"),
    [
        ("1|红色的跑步鞋，轻便", "gbk", True), ("é", "latin-1", False), ("größer café", "latin-1", False),
        ("Ünïcödé", "latin-1", False), ("红色", "utf-8", False), ("plain", "ascii", False), ("привет", "cp1251", False),
    ],
)  # fmt: skip
def test_gbk_is_told_by_its_common_characters(text, encoding, found):
    assert looks_like_gbk(text.encode(encoding)) is found


def test_the_header_of_a_gbk_file_asks_for_its_encoding_and_the_command_line_says_no_more(tmp_path, tiny_model, capsys):
    (tmp_path / "t.csv").write_bytes("编号,描述\n1,红鞋\n".encode("gbk"))
    arguments = ["infer", "--model_path", tiny_model, "--input_dir", str(tmp_path), "--delimiter", ",", "--dry_run"]
    assert main([*arguments, "--output_path", str(tmp_path.parent / "gbk.txt")]) == 2
    wanted = f"{tmp_path / 't.csv'}:1: the header is not UTF-8; it reads as GBK: set encoding gb18030"
    assert capsys.readouterr().err.strip().removeprefix("ebr: ") == wanted


# ---------------------------------------------------------------- every other reader

RECORDS = [{"query": "q", "pos": "red shoe"}]
LINE = json.dumps({"query": "q", "pos": "红色跑鞋"}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.jsonl.xz", lzma.compress(LINE.encode())),
        ("t.jsonl", bz2.compress(LINE.encode())),
        ("t.csv", b"\xff\xfe" + "query,pos\nq,红色跑鞋\n".encode("utf-16-le")),
        ("t.orc", stored(pa.orc.write_table, pa.table({"query": ["q"], "pos": ["红色跑鞋"]}))),
    ],
)
def test_training_records_are_read_in_the_same_forms(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    [example] = read_examples([tmp_path / name])
    assert (example.query, example.positives) == ("q", ("红色跑鞋",))


@pytest.mark.parametrize("form", ["zip", "tar.gz", "avro", "snappy"])
@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_training_files_and_corpora_name_what_they_cannot_read(tmp_path, form, name):
    data, message = FOREIGN[form]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_examples([tmp_path / name])
    assert message in str(caught.value)
    (tmp_path / "corpus.jsonl").write_bytes(data)
    with pytest.raises(DataError) as caught:
        find_corpus(tmp_path)
    assert message in str(caught.value)


def test_a_training_file_of_gbk_says_how_to_turn_it(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(LINE.encode("gbk"))
    with pytest.raises(DataError, match="it reads as GBK: iconv -f GB18030 -t UTF-8 turns the file"):
        read_examples([tmp_path / "t.jsonl"])


def test_a_broken_archive_of_csv_ends_the_reading(tmp_path):
    (tmp_path / "t.csv.bz2").write_bytes(bz2.compress(b"query,pos\n" + b"q,a\n" * 9)[:-4])
    with pytest.raises(DataError, match="the bzip2 archive is broken or cut short"):
        read_examples([tmp_path / "t.csv.bz2"])


def test_a_corpus_may_be_packed_and_is_known_by_the_suffix_within(tmp_path):
    file = tmp_path / "c.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "one"}\n'))
    assert [document.text for document in read_corpus(find_corpus(file))] == ["one"]
    for packed in (file, file.with_suffix(".DEFLATE"), tmp_path / "c.JSONL"):
        assert suffix_within(packed) == ".jsonl"
    (tmp_path / "c.txt").write_bytes(READ["parquet"])
    with pytest.raises(DataError, match=r"c\.txt: is a file of columns \(parquet\); give it as text"):
        find_corpus(tmp_path / "c.txt")


@pytest.mark.parametrize("name", ["queries.jsonl", "corpus.jsonl", "qrels.tsv"])
def test_an_evaluation_folder_names_what_it_cannot_read(evaluation_folder, name):
    (evaluation_folder / name).write_bytes(FOREIGN["zip"][0])
    with pytest.raises(DataError, match=rf"{name}: is a zip archive"):
        read_evaluation_set(evaluation_folder)


def test_an_evaluation_folder_may_be_packed_and_of_utf16(evaluation_folder):
    before = read_evaluation_set(evaluation_folder)
    queries, corpus = evaluation_folder / "queries.jsonl", evaluation_folder / "corpus.jsonl"
    queries.write_bytes(queries.read_text(encoding="utf-8").encode("utf-16"))
    (evaluation_folder / "corpus.jsonl.xz").write_bytes(lzma.compress(corpus.read_bytes()))
    corpus.unlink()
    after = read_evaluation_set(evaluation_folder)
    assert (after.queries, after.documents, after.qrels) == (before.queries, before.documents, before.qrels)


def test_kinds_are_told_apart(tmp_path):
    for form, kind in {"parquet": TableKind.PARQUET, "orc": TableKind.ORC, "feather": TableKind.ARROW}.items():
        (tmp_path / "t").write_bytes(READ[form])
        assert contents_of(tmp_path / "t").kind is kind


VECTORS = b"id\x01vector\n1\x010.5 1\n"


@pytest.mark.parametrize(
    "data", [gzip.compress(VECTORS), bz2.compress(VECTORS), b"\xff\xfe" + VECTORS.decode().encode("utf-16-le")]
)
def test_vector_files_of_text_are_read_in_the_same_forms(tmp_path, data):
    (tmp_path / "v.txt").write_bytes(data)
    found = read_embeddings(tmp_path / "v.txt")
    assert (found.vectors.tolist(), found.columns) == ([[0.5, 1.0]], {"id": ["1"]})


@pytest.mark.parametrize("form", ["tar.gz", "avro", "snappy", "hadoop snappy"])
def test_vector_files_name_what_they_cannot_read(tmp_path, form):
    data, message = FOREIGN[form]
    (tmp_path / "v.txt").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_embeddings(tmp_path / "v.txt")
    assert message in str(caught.value)
