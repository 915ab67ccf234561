"""Shards: which rows they hold, that cutting changes nothing, what their digests stand for, and what becomes of bad rows."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ebr.data.files.dialects import Dialect
from ebr.data.tables.cells import BadRow, join_cells
from ebr.data.tables.cutting import Limits, cut
from ebr.data.tables.records import read_records
from ebr.data.tables.shard_rows import parse_shard
from ebr.data.tables.shards import count_rows, open_source, read_shards
from ebr.data.text.blank import is_blank
from ebr.errors import ConfigError, DataError

QUICK = settings(deadline=None, max_examples=50, database=None)


def source_of(folder, output_columns=None, *, delimiter="\x01", text="text", **more):
    return open_source(folder, "*", Dialect.of(delimiter), text, output_columns, **more)


def written(folder, data, name="t"):
    """The folder, with one file of these bytes."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder


def parsed(source, shard_rows=100, **limits):
    return [parse_shard(shard, source.schema) for shard in read_shards(source, shard_rows, **limits)]


def rows_of(source, shard_rows=100, **limits):
    """([(line, text, output cells, key, raw)], [bad rows]) of all shards, one after another."""
    good, bad = [], []
    for rows in parsed(source, shard_rows, **limits):
        cells = [tuple(row.values()) for row in rows.columns.to_pylist()] or [()] * len(rows.texts)
        places = [rows.origins.bad(row, "") for row in range(len(rows.texts))]
        lines, raws = [place.line for place in places], [place.raw for place in places]
        good += zip(lines, rows.texts, cells, rows.keys or [None] * len(rows.texts), raws, strict=True)
        bad += rows.bad
    return good, bad


def spans(source, shard_rows, **limits):
    """(first line, rows, payload) of each shard, of one file each."""
    shards = read_shards(source, shard_rows, **limits)
    return [(one.first_line, one.n_lines, one.payload) for shard in shards for one in shard.stretches]


# ---------------------------------------------------------------- opening


def test_source_says_what_there_is(tmp_path):
    written(tmp_path, b"id\x01text\n1\x01a\n", "dt=1/000000_0")
    written(tmp_path, gzip.compress(b"text\x01id\nb\x012\n"), "dt=2/000000_0")
    written(tmp_path, b"\n", "dt=3/000000_0")
    source = source_of(tmp_path, key_column="id")
    assert [file.name for file in source.files] == ["dt=1/000000_0", "dt=2/000000_0"]
    assert source.empty_files == (tmp_path / "dt=3/000000_0",)
    assert source.schema.columns == ("id", "text", "dt")
    assert source.n_bytes == 12 + (tmp_path / "dt=2/000000_0").stat().st_size
    assert count_rows(source) == 2
    good, bad = rows_of(source)
    assert [row[1:4] for row in good] == [("a", ("1", "a", "1"), "1"), ("b", ("2", "b", "2"), "2")]
    assert bad == []


@pytest.mark.parametrize(
    ("files", "more", "error", "message"),
    [
        (
            {"a": b"id\x01txt\n"},
            {},
            DataError,
            "no column 'text' (description_column); it has 'id', 'txt'; did you mean 'txt'?",
        ),
        ({"a": b"text\n"}, {"output_columns": ["id"]}, DataError, "no column 'id' (output_columns)"),
        ({"a": b"text\n"}, {"key_column": "id"}, DataError, "no column 'id' (incremental_key)"),
        ({"a": b"id|text\n"}, {}, DataError, "is the delimiter right?"),
        ({"text=1/a": b"id\n"}, {}, DataError, "no column 'text' (description_column)"),
        ({"a": b"id\x01text\n", "b": b"text\n"}, {}, DataError, "b: its columns ['text'] differ from ['id', 'text'] of "),
        ({"d=1/a": b"text\n", "e/a": b"text\n"}, {}, DataError, "e/a: its columns ['text'] differ from ['text', 'd'] of "),
        ({"a": b"text\n"}, {"output_columns": ["text", "text"]}, DataError, "output_columns: text, text names a column twice"),
        ({"a": b"text\x01vector\n"}, {}, DataError, "output_columns: 'vector' is the name of the column that the run adds"),
        ({"a": b"x\n"}, {"column_names": ["text", "text"]}, ConfigError, "column_names: text, text names a column twice"),
        ({"a": b"x\n"}, {"column_names": ["txt"]}, DataError, "did you mean 'txt'?"),
        ({"a": b"text\x01text\n"}, {}, DataError, "a:1: column text occurs twice"),
        ({"a": b"", "b": b"\n"}, {}, DataError, ": all 2 files that match '*' are empty"),
    ],
)
def test_tables_that_do_not_fit_are_refused_before_a_row_is_read(tmp_path, files, more, error, message):
    for name, data in files.items():
        written(tmp_path, data, name)
    with pytest.raises(error) as caught:
        source_of(tmp_path, **more)
    assert message in str(caught.value)


def test_column_without_a_text_form_is_refused_only_where_it_is_needed(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "tags": [["x"]]}), tmp_path / "t")
    with pytest.raises(DataError, match=r"column 'tags' is list<.*, which has no text form"):
        source_of(tmp_path)
    assert rows_of(source_of(tmp_path, ["text"]))[0][0][2] == ("a",)


def test_header_alone_gives_no_shard(tmp_path):
    source = source_of(written(tmp_path, b"id\x01text\n"))
    assert (list(read_shards(source, 5)), count_rows(source)) == ([], 0)


# ---------------------------------------------------------------- cutting


def test_shard_holds_so_many_rows_and_no_blank_line_around_them(tmp_path):
    source = source_of(written(tmp_path, b"\nid\x01text\n\n1\x01a\r\n\n2\x01b\n3\x01c\n\r\n\n4\x01d\n\n5\x01e"))
    assert spans(source, 2) == [
        (4, 2, b"1\x01a\r\n\n2\x01b\n"),
        (7, 2, b"3\x01c\n\r\n\n4\x01d\n"),
        (12, 1, b"5\x01e"),
    ]
    assert count_rows(source) == 5


def test_shard_ends_before_it_has_too_many_bytes_and_has_one_row_at_least(tmp_path):
    source = source_of(written(tmp_path, b"text\naa\nbb\n" + b"c" * 9 + b"\nd\n\ne\nff\n"))
    assert spans(source, 100, max_bytes=6) == [
        (2, 2, b"aa\nbb\n"), (4, 1, b"c" * 9 + b"\n"), (5, 2, b"d\n\ne\n"), (8, 1, b"ff\n"),
    ]  # fmt: skip


def test_parquet_is_cut_by_rows_and_by_bytes_too(tmp_path):
    texts = ["aa", "bb", "c" * 9, "d", "e", "ff", "gg"]
    pq.write_table(pa.table({"id": pa.nulls(7), "text": texts}), tmp_path / "t", row_group_size=2)
    by_rows = spans(source_of(tmp_path), 3)
    assert [(line, n, table.column("text").to_pylist()) for line, n, table in by_rows] == [
        (1, 3, texts[:3]), (4, 3, texts[3:6]), (7, 1, texts[6:]),
    ]  # fmt: skip
    by_bytes = spans(source_of(tmp_path), 100, max_bytes=4)
    assert [table.column("text").to_pylist() for _, _, table in by_bytes] == [
        ["aa", "bb"], ["c" * 9], ["d", "e", "ff"], ["gg"],
    ]  # fmt: skip
    assert count_rows(source_of(tmp_path)) == 7


def test_shard_of_a_comma_table_ends_where_a_row_ends(tmp_path):
    source = source_of(written(tmp_path, b'text,id\n"a\nb",1\n"c\n\n""d""",2\ne,3\n'), delimiter=",")
    assert spans(source, 1) == [(2, 1, b'"a\nb",1\n'), (4, 1, b'"c\n\n""d""",2\n'), (7, 1, b"e,3\n")]


def test_shards_of_a_large_file_are_those_of_its_lines(tmp_path):
    lines = [b"%d\x01%s\n" % (number, b"x" * (number % 97)) for number in range(150_000)]  # some 9 MB, that is many reads
    source = source_of(written(tmp_path, b"id\x01text\n" + b"".join(lines)))
    shards = list(read_shards(source, 7_000))
    assert [shard.stretches[0].payload for shard in shards] == [
        b"".join(lines[at : at + 7_000]) for at in range(0, 150_000, 7_000)
    ]
    assert [shard.stretches[0].first_line for shard in shards] == list(range(2, 150_002, 7_000))
    shares = [shard.read_share for shard in shards]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shares[10] == pytest.approx(11 / 22, abs=0.03)


def test_read_share_counts_the_files_before(tmp_path):
    written(tmp_path, b"text\n" + b"a\n" * 10, "a")
    written(tmp_path, b"text\n" + b"a\n" * 35, "b")
    assert [shard.read_share for shard in read_shards(source_of(tmp_path), 25)] == [0.25, 0.25 + 55 / 100, 1]


@pytest.mark.parametrize("data", [b"text\x01id\na\x011\n", None])
def test_file_with_other_columns_than_when_it_was_opened_is_refused(tmp_path, data):
    written(tmp_path, b"id\x01text\n1\x01a\n") if data else pq.write_table(
        pa.table({"text": ["a"], "x": ["b"]}), tmp_path / "t"
    )
    source = source_of(tmp_path)
    written(tmp_path, data) if data else pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t")
    with pytest.raises(DataError, match=r"t: its columns are not .* any more; it changed meanwhile: run again"):
        list(read_shards(source, 5))


@pytest.mark.parametrize("parquet", [False, True])
def test_file_that_vanished_is_named(tmp_path, parquet):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t") if parquet else written(tmp_path, b"text\na\n")
    source = source_of(tmp_path)
    (tmp_path / "t").unlink()
    for read in (lambda: list(read_shards(source, 5)), lambda: count_rows(source)):
        with pytest.raises(DataError, match=r"/t: cannot be read \(.*No such file"):
            read()


def test_archive_cut_short_is_named_after_the_rows_above(tmp_path):
    whole = gzip.compress(b"text\n" + b"".join(b"%d\n" % (number * 7919 % 1_000_003) for number in range(900_000)))
    shards = read_shards(source_of(written(tmp_path, whole[:-20])), 1000)
    assert next(shards).n_lines == 1000
    with pytest.raises(DataError, match="/t: the gzip archive is broken or cut short"):
        list(shards)


# ---------------------------------------------------------------- rows


def test_bad_rows_are_listed_in_their_place_with_their_bytes(tmp_path):
    data = b"id\x01text\n1\x01a\n2\n3\x01\xe9\n\x014\n5\x01\n6\x01\\N\n7\x01 \xe2\x80\xa8\t\r\n\\N\x018\n9\x01b\x01c\n10\x01d"
    good, bad = rows_of(source_of(written(tmp_path, data), key_column="id"))
    assert [(line, text, key) for line, text, _, key, _ in good] == [(2, "a", "1"), (11, "d", "10")]
    assert [raw for *_, raw in good] == [b"1\x01a\n", b"10\x01d"]
    assert bad == [
        BadRow("t", 3, "1 columns instead of 2", b"2\n"),
        BadRow("t", 4, "not UTF-8", b"3\x01\xe9\n"),
        BadRow("t", 5, "id is empty", b"\x014\n"),
        BadRow("t", 6, "text is empty", b"5\x01\n"),
        BadRow("t", 7, "text is empty", b"6\x01\\N\n"),
        BadRow("t", 8, "text is empty", b"7\x01 \xe2\x80\xa8\t\r\n"),
        BadRow("t", 9, "id is empty", b"\\N\x018\n"),
        BadRow("t", 10, "3 columns instead of 2", b"9\x01b\x01c\n"),
    ]


def test_bad_rows_of_parquet_are_listed_as_json(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"x\xe9")])
    text = pa.chunked_array([pa.array(["a", None, " \n", "b"]), broken, pa.array(["c", "北"])])
    pq.write_table(pa.table({"id": [1, 2, 3, None, 5, 6, 7], "text": text, "n": list("abcdefg")}), tmp_path / "t")
    good, bad = rows_of(source_of(tmp_path, ["n"], key_column="id"), 4)
    assert [(line, text, cells, key) for line, text, cells, key, _ in good] == [
        (1, "a", ("a",), "1"), (6, "c", ("f",), "6"), (7, "北", ("g",), "7"),
    ]  # fmt: skip
    assert json.loads(good[2][4]) == {"n": "g", "text": "北", "id": "7"}
    assert [(row.file, row.line, row.reason, json.loads(row.raw)["text"]) for row in bad] == [
        ("t", 2, "text is empty", None),
        ("t", 3, "text is empty", " \n"),
        ("t", 4, "id is empty", "b"),
        ("t", 5, "text is not UTF-8", "x\\xe9"),
    ]


def test_bom_and_the_last_line_without_an_end_are_read_without_a_header_line_too(tmp_path):
    source = source_of(written(tmp_path, b"\xef\xbb\xbf1\x01a\n2\x01b"), column_names=["id", "text"])
    assert [row[:3] for row in rows_of(source)[0]] == [(1, "a", ("1", "a")), (2, "b", ("2", "b"))]
    assert count_rows(source) == 2


def test_output_columns_choose_and_order(tmp_path):
    written(tmp_path, b"id\x01text\x01label\n1\x01a\x01x\n", "dt=__HIVE_DEFAULT_PARTITION__/t")
    assert rows_of(source_of(tmp_path, ["dt", "label", "id"]))[0][0][2] == (None, "x", "1")
    [rows] = parsed(source_of(tmp_path, []))
    assert (rows.texts, rows.columns.num_columns) == (["a"], 0)


def test_columns_are_strings_even_where_all_is_null(tmp_path):
    written(tmp_path, b"id\x01text\n\\N\x01a\n", "dt=__HIVE_DEFAULT_PARTITION__/t")
    [rows] = parsed(source_of(tmp_path))
    assert [str(kind) for kind in rows.columns.schema.types] == ["string"] * 3
    assert rows.columns.to_pylist() == [{"id": None, "text": "a", "dt": None}]


def test_shard_of_bad_rows_only_has_no_rows(tmp_path):
    [rows] = parsed(source_of(written(tmp_path, b"id\x01text\n1\n2\x01\n"), key_column="id"))
    assert (rows.texts, rows.keys, rows.origins.rows, len(rows.columns), len(rows.bad)) == ([], [], [], 0, 2)


def test_shards_travel_to_other_processes(tmp_path):
    written(tmp_path / "text", b"id\x01text\n1\x01a\n2\n")
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "parquet" / "t")
    for folder in "text", "parquet":
        source = source_of(tmp_path / folder)
        [shard] = read_shards(source, 5)
        here, there = parse_shard(shard, source.schema), parse_shard(*pickle.loads(pickle.dumps((shard, source.schema))))
        assert (here.texts, here.bad, here.columns) == (there.texts, there.bad, there.columns)
        assert here.origins.bad(0, "") == there.origins.bad(0, "")


# ---------------------------------------------------------------- digests


def digests(folder, shard_rows=2, output_columns=None, **more):
    return [shard.digest for shard in read_shards(source_of(folder, output_columns, **more), shard_rows)]


def test_digest_changes_with_the_rows_of_its_shard_and_with_no_other(tmp_path):
    before = digests(written(tmp_path, b"id\x01text\n1\x01a\n2\x01b\n3\x01c\n"))
    assert digests(written(tmp_path, b"id\x01text\n1\x01a\n2\x01b\n3\x01d\n"))[0] == before[0]
    assert digests(written(tmp_path, b"id\x01text\n1\x01a\n2\x01b\n3\x01d\n"))[1] != before[1]


def test_digest_changes_with_all_that_rows_depend_on(tmp_path):
    row = b"1\x01a\n"
    found = [
        digests(written(tmp_path / "0", b"id\x01text\n" + row)),
        digests(written(tmp_path / "1", b"it\x01text\n" + row)),  # the names of columns
        digests(written(tmp_path / "2", b"\nid\x01text\n" + row)),  # the line
        digests(written(tmp_path / "3", b"id\x01text\n" + row, "u")),  # the file
        digests(written(tmp_path / "4", b"id\x01text\n" + row, "d=1/t")),  # the columns of folders
        digests(written(tmp_path / "5", b"text\n" + row), delimiter="|"),  # the delimiter
        digests(written(tmp_path / "6", b"text\n" + row)),
    ]
    assert len({digest for [digest] in found}) == len(found)


def test_digest_of_parquet_does_not_depend_on_how_it_was_written(tmp_path):
    columns = {"id": [1, 2, 3, 4, 5], "text": ["a", None, "", "d", "e"]}
    found = []
    for number, (size, kind, codec) in enumerate(
        [(5, pa.string(), "snappy"), (2, pa.large_string(), "zstd"), (1, pa.binary(), "none")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        table = pa.table({"id": columns["id"], "text": pa.array(columns["text"], pa.string()).cast(kind)})
        pq.write_table(table, folder / "t", row_group_size=size, compression=codec)
        found.append(digests(folder, 3))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 2


@pytest.mark.parametrize("texts", [["a", "", "bc"], ["ab", None, "c"], [None, "ab", "c"], ["a", "b", "d"]])
def test_digest_of_parquet_changes_with_cells_their_bounds_and_nulls(tmp_path, texts):
    found = []
    for cells in (["ab", "", "c"], texts):
        pq.write_table(pa.table({"text": pa.array(cells, pa.string())}), tmp_path / "t")
        found.append(digests(tmp_path, 3))
    assert found[0] != found[1]


def test_digest_of_parquet_leaves_out_columns_that_nothing_reads(tmp_path):
    found = []
    for other in "x", "y":
        pq.write_table(pa.table({"text": ["a"], "other": [other]}), tmp_path / "t")
        found.append((digests(tmp_path, output_columns=["text"]), digests(tmp_path)))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


# ---------------------------------------------------------------- properties


chars = st.sampled_from("ab\"',\n\r\0\\N \u2028\x85北") | st.characters(codec="utf-8")
cell = st.text(chars, max_size=5).filter(lambda text: text != "\\N") | st.none()
plain_cell = cell.filter(lambda text: text is None or not set(text) & set("\n\r\x01"))


@QUICK
@given(
    st.lists(st.sampled_from(["a", "bcd", '"', ",", "\n", "\r\n", "\n\n\n"]), max_size=40).map("".join),
    st.integers(1, 9),
    st.builds(Limits, st.integers(1, 4), st.sampled_from([1, 5, 12, 1000])),
)
@example("a\nb\n\n\n\n\nbcd\n", 2, Limits(3, 1000))  # blank stretches within a piece
@example("a\nb\n\n\n\n\nbcd\n", 2, Limits(3, 5))  # and after one that has no room for the next row
@example("a\n\n\n\n", 2, Limits(3, 1000))  # and at the end
def test_pieces_are_the_same_however_few_bytes_are_read_at_a_time(text, block_bytes, limits):
    for delimiter in ",", "|":
        few, many = (
            list(cut(read_records(Path("t"), io.BytesIO(text.encode()), Dialect.of(delimiter), n_bytes), limits))
            for n_bytes in (block_bytes, 1000)
        )
        assert few == many


def check_rows(tmp_path_factory, rows, delimiter, shard_rows, max_bytes):
    """Write rows, read them back in shards; a row without text must be among the bad, with its line."""
    folder, line, expected, lines_bad = tmp_path_factory.mktemp("rows"), 2, [], []
    text = join_cells(["id", "text", "x"], delimiter) + "\n"
    for cells in rows:
        record = join_cells(cells, delimiter) + "\n"
        if cells[1] is not None and not is_blank(cells[1]):
            expected.append((line, cells[1], tuple(cells), None, record.encode()))
        else:
            lines_bad.append(line)
        text, line = text + record, line + record.count("\n")
    source = source_of(written(folder, text.encode()), delimiter=delimiter)
    good, bad = rows_of(source, shard_rows, max_bytes=max_bytes)
    assert good == expected
    assert [(row.line, row.reason) for row in bad] == [(line, "text is empty") for line in lines_bad]
    assert count_rows(source) == len(rows)


@QUICK
@given(st.lists(st.tuples(plain_cell, plain_cell, plain_cell), max_size=9), st.integers(1, 4), st.sampled_from([1, 20, 1000]))
def test_cells_written_under_001_come_back_in_every_shard_size(tmp_path_factory, rows, shard_rows, max_bytes):
    check_rows(tmp_path_factory, rows, "\x01", shard_rows, max_bytes)


@QUICK
@given(st.lists(st.tuples(cell, cell, cell), max_size=9), st.integers(1, 4), st.sampled_from([1, 20, 1000]))
@example([("a\nb", 'c"d', "e\rf"), (None, "\n,", "")], 1, 1)
def test_cells_written_under_commas_come_back_in_every_shard_size(tmp_path_factory, rows, shard_rows, max_bytes):
    check_rows(tmp_path_factory, rows, ",", shard_rows, max_bytes)


@QUICK
@given(st.lists(st.sampled_from([b"a", b'"', b",", b"\n", b"\r", b"\xe9", b"\\N", b'a,"b"\n', b"c,d\n"]), max_size=30))
@example([b'"', b"\n", b"a", b'"', b",", b"\n", b"\n", b"c,d\n"])
def test_rows_good_and_bad_do_not_depend_on_the_size_of_shards(tmp_path_factory, pieces):
    for delimiter in ",", "|":
        folder = written(tmp_path_factory.mktemp("any"), b"".join(pieces))
        try:
            source = source_of(folder, delimiter=delimiter, column_names=["id", "text"])
        except DataError as error:
            assert "are empty" in str(error)
            return
        whole = rows_of(source, 1000)
        for shard_rows, max_bytes in (1, 1000), (2, 1000), (1000, 7):
            assert rows_of(source, shard_rows, max_bytes=max_bytes) == whole
        assert count_rows(source) == len(whole[0]) + len(whole[1])


@QUICK
@given(*[st.lists(st.tuples(plain_cell, plain_cell), min_size=1, max_size=3)] * 2)
@example([("", "a")], [(None, "a")])
def test_digests_are_equal_exactly_when_the_rows_are(tmp_path_factory, one, other):
    for as_parquet in False, True:
        found = []
        for rows in (one, other, one):
            folder = tmp_path_factory.mktemp("digest")
            if as_parquet:
                pq.write_table(
                    pa.table(
                        {
                            "id": pa.array([row[0] for row in rows], pa.string()),
                            "text": pa.array([row[1] for row in rows], pa.string()),
                        }
                    ),
                    folder / "t",
                )
            else:
                written(folder, "".join(join_cells(row, "\x01") + "\n" for row in [("id", "text"), *rows]).encode())
            found.append(digests(folder, 10))
        assert found[0] == found[2]
        assert (found[0] == found[1]) == (one == other)
