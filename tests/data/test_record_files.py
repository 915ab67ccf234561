"""Files of training records as other tools write them: the same records whatever the file, or what is wrong and where."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.data.records.files import each_record
from ebr.data.text.blank import is_blank
from ebr.data.training.examples import Example, find_training_files, read_examples
from ebr.errors import DataError

QUICK = settings(deadline=None, max_examples=40, database=None)

RECORDS = [
    {
        "query": "电子发票，在哪里下载？",
        "pos": ['say "yes"', "two\nlines"],
        "neg": ["a,b\tc"],
        "pos_scores": [2.0, 1.5],
        "id": "7",
    },
    {"query": "b", "pos": ["c"], "neg": [], "pos_scores": [1.0], "id": None},
]
WANTED = [
    Example("电子发票，在哪里下载？", ('say "yes"', "two\nlines"), ("a,b\tc",), (2.0, 1.5)),
    Example("b", ("c",), (), (1.0,)),
]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(tmp_path, content, name):
    return read_examples([write(tmp_path / name, content)])


def refusal(tmp_path, content, name):
    """The lines of the error, the folder's name taken out."""
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, name)
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n  ")


def lines_of(records):
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def table(records, delimiter):
    """As tools write it: lists as JSON, null as nothing, \\r\\n at the end of a row."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    for record in records:
        lists = {key: json.dumps(value, ensure_ascii=False) for key, value in record.items() if isinstance(value, list)}
        writer.writerow({**record, **lists})
    return stream.getvalue()


def parquet(rows, **columns):
    """rows: objects; columns: those whose type matters."""
    stream = io.BytesIO()
    whole = pa.Table.from_pylist(rows)
    for name, column in columns.items():
        whole = whole.append_column(name, column)
    pq.write_table(whole, stream)
    return stream.getvalue()


# ---------------------------------------------------------------- the same records from every file

PLAIN = {
    "lines.jsonl": lines_of(RECORDS),
    "array.json": json.dumps(RECORDS),
    "data.json": json.dumps({"data": RECORDS}),
    "data-with-facts.json": json.dumps({"version": 2, "data": RECORDS, "tags": ["a"]}, indent=2),
    "one-key.json": json.dumps({"train": RECORDS}, indent=1),
    "one-key-in-one-line.jsonl": "\n" + json.dumps({"rows": RECORDS}) + "\n",
    "bom.json": "\ufeff" + json.dumps({"data": RECORDS}, indent=2),
    "table.csv": table(RECORDS, ","),
    "bom.csv": "\ufeff" + table(RECORDS, ","),
    "blank-lines.csv": "\n" + table(RECORDS, ",") + "\r\n\n",
    "blanks-in-the-header.csv": table(RECORDS, ",").replace("query,pos", " query , pos"),
    "table.tsv": table(RECORDS, "\t"),
    "TABLE.TSV": table(RECORDS, "\t"),
    "table.parquet": parquet(RECORDS),
    "parquet-by-its-content": parquet(RECORDS),
}


@pytest.mark.parametrize("name", PLAIN)
def test_records_are_the_same_whatever_the_file(tmp_path, name):
    assert read(tmp_path, PLAIN[name], name) == WANTED


@pytest.mark.parametrize("name", [name for name in PLAIN if "parquet" not in name])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_a_gzipped_file_is_read_like_the_file_itself_and_known_without_its_suffix(tmp_path, name, suffix):
    content = PLAIN[name]
    assert read(tmp_path, gzip.compress(content.encode()), name + suffix) == WANTED


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="["), min_size=1).filter(
    lambda one: not is_blank(one)
)
# A \r outside of quotes ends a line in some tools: the writer quotes it, and what it quotes comes back.
rows = st.lists(st.tuples(texts, st.lists(texts, min_size=1), st.lists(texts)), min_size=1, max_size=5)


@QUICK
@given(rows, st.sampled_from([".csv", ".tsv", ".csv.gz", ".parquet", ".json"]))
def test_whatever_text_is_written_by_the_standard_writers_is_read_back(tmp_path_factory, found, suffix):
    records = [{"query": query, "pos": pos, "neg": neg} for query, pos, neg in found]
    content = {
        ".csv": lambda: table(records, ","),
        ".tsv": lambda: table(records, "\t"),
        ".csv.gz": lambda: gzip.compress(table(records, ",").encode()),
        ".parquet": lambda: parquet(records),
        ".json": lambda: json.dumps({"data": records}),
    }[suffix]()
    wanted = [Example(query, tuple(pos), tuple(neg)) for query, pos, neg in found]
    assert read(tmp_path_factory.mktemp("t"), content, f"t{suffix}") == wanted


def test_a_folder_gives_files_of_every_kind(tmp_path):
    names = ["a.json", "b.jsonl", "c.csv", "d.tsv", "e.parquet", "f.JSONL.GZ", "g.csv.gz", "h.json.gz", "i.tsv.gz"]
    for name in [*names, "notes.txt", ".hidden.csv", "b.jsonl.manifest.json", "x.csv.bak", "y.gz"]:
        write(tmp_path / name, "")
    assert [file.name for file in find_training_files(str(tmp_path))] == names


def test_lines_are_read_one_after_another(tmp_path):
    file = write(tmp_path / "t.jsonl.gz", gzip.compress(lines_of([RECORDS[1]] * 100_000).encode())[:-9])
    found = each_record(file)
    assert next(found) == (f"{file}:1", RECORDS[1])
    where, last = list(found)[-1]
    assert where == str(file) and str(last).startswith("the gzip archive is broken or cut short")


# ---------------------------------------------------------------- JSON


def test_an_object_over_several_lines_is_one_record(tmp_path):
    assert read(tmp_path, json.dumps(RECORDS[1], indent=2), "t.json") == WANTED[1:]


NEITHER = "a record has 'anchor' and 'positive', or 'query' and 'pos'"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"data": [7, RECORDS[1]]}, "t.json: record 1: is int, not an object like {…}"),
        ({"data": [{"query": "a"}]}, "t.json: record 1: 'pos' is missing; every record needs at least one positive text"),
        ({"train": RECORDS, "test": RECORDS}, f"t.json:1: has 'train', 'test'; {NEITHER}"),
        ({"train": RECORDS, "version": 1}, f"t.json:1: has 'train', 'version'; {NEITHER}"),
        ({"data": ["a", "b"]}, f"t.json:1: has 'data'; {NEITHER}"),
        ({"pos": [{"text": "a"}]}, "t.json:1: 'query' is missing; give a text"),
    ],
)  # fmt: skip
def test_an_object_is_taken_apart_only_where_it_plainly_holds_the_records(tmp_path, value, problem):
    head, found = refusal(tmp_path, json.dumps(value), "t.json")
    assert head == "1 wrong record; nothing was read:"
    assert found.startswith(problem)


def test_a_key_that_stands_twice_in_an_object_loses_neither_value(tmp_path):
    twice = '{"query": "a", "pos": ["b"], "neg": ["m"], "neg": ["n"]}'
    said = "has the key 'neg' twice in one object; give its values as a list"
    assert refusal(tmp_path, f"{lines_of(RECORDS)}\n{twice}", "t.jsonl")[1:] == [f"t.jsonl:3: {said}"]
    assert refusal(tmp_path, f"[{twice}]", "t.json")[1:] == [f"t.json: {said}"]


def test_lines_behind_an_object_of_records_are_records_too(tmp_path):
    assert read(tmp_path, json.dumps({"data": RECORDS}) + "\n" + lines_of(RECORDS), "t.jsonl") == WANTED * 2


def test_every_line_that_is_not_utf8_is_named_and_the_others_are_looked_at(tmp_path):
    content = b'{"query": "\xff"}\n{"query": "a", "pos": []}\n{"query": "\xe9"}\n'
    assert refusal(tmp_path, content, "t.jsonl")[1:] == [
        "t.jsonl:1: is not UTF-8 (byte 0xff); save the file as UTF-8",
        "t.jsonl:2: 'pos' is empty; every record needs at least one positive text",
        "t.jsonl:3: is not UTF-8 (byte 0xe9); save the file as UTF-8",
    ]


def test_a_byte_that_is_not_utf8_is_named_in_an_array_with_its_line(tmp_path):
    assert refusal(tmp_path, b'[\n{"query":\n "\xe9"}]', "t.json")[1:] == [
        "t.json:3: is not UTF-8 (byte 0xe9); save the file as UTF-8"
    ]


# ---------------------------------------------------------------- tables


def test_an_empty_cell_is_null_and_numbers_are_read_where_they_are_scores(tmp_path):
    content = 'anchor,positive,negative_1,negative_2,scores,label\n1,2,3,,"[0.5, 0.25]",1\n[1],(2),,,,1.0\n4,5,,,,true\n'
    assert read(tmp_path, content, "t.csv") == [
        Example("1", ("2",), ("3",), (0.5,), (0.25,)),
        Example("[1]", ("(2)",)),
        Example("4", ("5",)),
    ]


def test_a_row_is_named_by_the_line_it_begins_on(tmp_path):
    content = 'query,pos\na,"two\nlines"\n\n,b\nc,"[""d"", "" ""]"\n"e\ne",\nf\ng,h,i\n'
    assert refusal(tmp_path, content, "t.csv")[1:] == [
        "t.csv:5: 'query' is missing; give a text",
        "t.csv:6: 'pos'[1] is empty; give a text or take it out of the list",
        "t.csv:7: 'pos' is missing; every record needs at least one positive text",
        "t.csv:9: has 1 cells, and the header 2; put a cell with ',' in quotes",
        "t.csv:10: has 3 cells, and the header 2; put a cell with ',' in quotes",
    ]


def test_a_list_as_python_prints_it_is_no_list_in_a_table(tmp_path):
    said = "is a list written as text; write it as a JSON list"
    assert refusal(tmp_path, "query,pos\na,\"['b', 'c']\"\n", "t.csv")[1:] == [f"t.csv:2: 'pos' {said}"]


def test_a_quote_that_never_closes_is_named_where_its_row_begins(tmp_path):
    (problem,) = refusal(tmp_path, 'query,pos\na,b\nc,"d\ne,f\n', "t.csv")[1:]
    assert problem.startswith("t.csv:3: is no row of a table (")
    assert problem.endswith('); is a quote (") left open or not doubled?')


def test_text_behind_a_closing_quote_is_named_and_the_rows_below_are_looked_at(tmp_path):
    problems = refusal(tmp_path, 'query\tpos\n"a" b\tc\nd\te\nf\t\n', "t.tsv")[1:]
    assert [problem.split(": ")[0] for problem in problems] == ["t.tsv:2", "t.tsv:4"]


def test_a_quote_within_a_cell_is_a_character(tmp_path):
    assert read(tmp_path, 'query\tpos\n5" screen\tit\'s 5"\n', "t.tsv") == [Example('5" screen', ("it's 5\"",))]


def test_a_line_that_is_not_utf8_is_named_and_the_rows_below_are_looked_at(tmp_path):
    assert refusal(tmp_path, b"query,pos\na,b\n\xff,b\n,c\n", "t.csv")[1:] == [
        "t.csv:3: is not UTF-8 (byte 0xff); save the file as UTF-8",
        "t.csv:4: 'query' is missing; give a text",
    ]


def test_a_cell_may_be_longer_than_csv_allows_by_default_and_the_limit_stays_as_it_was(tmp_path):
    before, long = csv.field_size_limit(), "x" * 200_000
    assert read(tmp_path, f'query,pos\na,"{long}"\n', "t.csv") == [Example("a", (long,))]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "name", "problem"),
    [
        ("how to pay,by card\nhow to return,by post\n", "t.csv", "t.csv:1: has 'how to pay', 'by card'; a record has"),
        ("\nquery;positive\na;b\n", "t.csv", "t.csv:2: has 'query;positive'; "),
        ("query,pos,query\na,b,c\n", "t.csv", "t.csv:1: column 'query' occurs twice; rename one"),
        (b"query,\xff\na,b\n", "t.csv", "t.csv:1: is not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("Query,Pos\na,b\n", "t.csv", "t.csv:1: has 'Query'; the field is 'query'"),
        (parquet([{"text": "a"}]), "t.parquet", "t.parquet: has 'text'; a record has"),
    ],
)
def test_wrong_column_names_are_one_problem_however_many_rows_there_are(tmp_path, content, name, problem):
    head, found = refusal(tmp_path, content, name)
    assert head == "1 wrong record; nothing was read:"
    assert found.startswith(problem)


def test_a_line_of_one_column_asks_for_the_delimiter(tmp_path):
    assert refusal(tmp_path, "query;pos\na;b\n", "t.csv")[1].endswith("the line has one column only: is the delimiter right?")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
@pytest.mark.parametrize("content", ["", "\n\r\n", "query{}pos\n"])
def test_a_table_without_rows_has_no_records_and_that_is_said(tmp_path, name, content):
    content = content.format("\t" if name == "t.tsv" else ",")
    with pytest.raises(DataError, match=f"{name}: no records"):
        read(tmp_path, gzip.compress(content.encode()) if name.endswith(".gz") else content, name)


# ---------------------------------------------------------------- Parquet


def test_a_row_of_parquet_is_named_by_its_number(tmp_path):
    content = parquet([{"query": "a", "pos": ["b"]}, {"query": None, "pos": ["b"]}, {"query": "c", "pos": []}])
    assert refusal(tmp_path, content, "t.parquet")[1:] == [
        "t.parquet: row 2: 'query' is missing; give a text",
        "t.parquet: row 3: 'pos' is empty; every record needs at least one positive text",
    ]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_is_read_from_columns_of_every_kind_of_text(tmp_path, kind):
    positives = pa.array(["中", "c"]).cast(pa.string() if pa.types.is_dictionary(kind) else kind)
    positives = positives.dictionary_encode() if pa.types.is_dictionary(kind) else positives
    content = parquet([{"anchor": "a"}, {"anchor": "b"}], positive=positives)
    assert read(tmp_path, content, "t.parquet") == [Example("a", ("中",)), Example("b", ("c",))]


def test_columns_of_structs_are_the_passages_of_tevatron(tmp_path):
    rows = [{"query": "a", "positive_passages": [{"docid": "1", "title": "B", "text": "b"}], "negative_passages": None}]
    assert read(tmp_path, parquet(rows), "t.parquet") == [Example("a", ("B b",))]


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_text_of_parquet_that_is_not_utf8_is_named_by_its_row(tmp_path, kind):
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"ax\xe9b")]
    )
    content = parquet([{"query": "a"}, {"query": "b"}, {"query": ""}], pos=broken.view(kind))
    assert refusal(tmp_path, content, "t.parquet")[1:] == [
        "t.parquet: row 2: holds text that is not UTF-8; write the file anew in UTF-8",
        "t.parquet: row 3: 'query' is empty; give a text or remove the record",
    ]


def test_a_parquet_file_cut_short_is_one_problem(tmp_path):
    (problem,) = refusal(tmp_path, parquet(RECORDS)[:-9], "t.parquet")[1:]
    assert problem.startswith("t.parquet: cannot be read (")


def test_values_that_json_lacks_stay_with_their_record(tmp_path):
    facts = {"day": datetime.date(2026, 1, 2), "price": decimal.Decimal("1.50"), "vector": [0.5]}
    ((where, record),) = each_record(write(tmp_path / "t.parquet", parquet([{"query": "a", "pos": ["b"], **facts}])))
    assert where == f"{tmp_path}/t.parquet: row 1"
    assert record == {"query": "a", "pos": ["b"], **facts}


# ---------------------------------------------------------------- reports


def test_wrong_records_of_every_kind_of_file_stand_in_one_report(tmp_path):
    files = [
        write(tmp_path / "a.csv", "query,pos\na,\n"),
        write(tmp_path / "b.jsonl.gz", gzip.compress(b'{"query": "a"}\n{"query": "a", "pos": "b"}')),
        write(tmp_path / "c.parquet", parquet([{"query": "", "pos": "b"}])),
        write(tmp_path / "d.json.gz", b"\x1f\x8bno"),
        write(tmp_path / "e.json", json.dumps({"data": [{"pos": "b"}]})),
    ]
    with pytest.raises(DataError) as caught:
        read_examples([*files, tmp_path / "gone.csv"])
    head, *problems = str(caught.value).replace(f"{tmp_path}/", "").split("\n  ")
    assert head == "6 wrong records; nothing was read:"
    assert [problem.split(": ")[:2][0] for problem in problems] == [
        "a.csv:2", "b.jsonl.gz:1", "c.parquet", "d.json.gz", "e.json", "gone.csv",
    ]  # fmt: skip
