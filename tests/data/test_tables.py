r"""Tables: what a delimiter may be, which rows are good, which are not and why, and where each stands in its file."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ebr.data.files.dialects import Dialect, parse_delimiter
from ebr.data.tables import records
from ebr.data.tables.cells import (
    BadRow,
    Row,
    column_index,
    join_cells,
    read_all_cells,
    read_cells,
    read_header,
    read_rows,
    split_record,
)
from ebr.data.tables.records import find_records, read_records
from ebr.errors import ConfigError, DataError

COMMA = Dialect.of(",")
QUICK = settings(deadline=None, max_examples=50, database=None)
TORN = "csv cannot read it ({} lines): a quote that never closes, or text after a closing one"


def read(tmp_path, data, delimiter="\x01"):
    """(header, [(line, cells or reason)]) of a table with these bytes."""
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    header = read_header(path, delimiter)
    return header, [
        (row.line, row.cells if isinstance(row, Row) else row.reason) for row in read_rows(path, delimiter, len(header))
    ]


# ---------------------------------------------------------------- delimiters


@pytest.mark.parametrize(
    ("typed", "delimiter"),
    [
        ("\\001", "\x01"), ("\\x01", "\x01"), ("\\u0001", "\x01"), ("\x01", "\x01"), ("\\t", "\t"), ("\t", "\t"), (",", ","),
        ("|", "|"), (";", ";"), ("\\", "\\"), ("‖", "‖"),
    ],
)  # fmt: skip
def test_delimiter_is_one_character_however_it_is_typed(typed, delimiter):
    assert parse_delimiter(typed) == delimiter


@pytest.mark.parametrize("typed", ["", "ab", "\\001\\001", "\n", "\\n", "\r", "\\r"])
def test_delimiter_that_is_no_single_character_is_refused_as_it_was_typed(typed):
    with pytest.raises(ConfigError, match=r"^delimiter: must be one character, like \\001, \\t or , \(got ") as caught:
        parse_delimiter(typed)
    assert repr(typed) in str(caught.value)


@pytest.mark.parametrize("typed", [*"0123456789e+-. ", "\\x20"])
def test_delimiter_that_stands_in_a_vector_is_refused(typed):
    with pytest.raises(ConfigError, match="also stands inside the vectors"):
        parse_delimiter(typed)


# ---------------------------------------------------------------- good tables


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_a_bom_and_a_last_line_without_an_end_change_nothing(tmp_path, end, bom, last):
    data = bom + end.join([b"id\x01text", b"1\x01a", b"2\x01b"]) + (end if last else b"")
    assert read(tmp_path, data) == (["id", "text"], [(2, ["1", "a"]), (3, ["2", "b"])])


def test_stray_quote_swallows_nothing_under_001(tmp_path):
    data = b'id\x01text\n1\x01a "quote\n2\x01"b\n3\x01c,d\n'
    assert read(tmp_path, data)[1] == [(2, ["1", 'a "quote']), (3, ["2", '"b']), (4, ["3", "c,d"])]


def test_comma_tables_quote_delimiter_quote_and_line_end(tmp_path):
    data = b'id,text\n1,"a,b"\n2,"say ""hi"""\n3,"two\nlines\r\nand a third"\n4,plain\n'
    assert read(tmp_path, data, ",")[1] == [
        (2, ["1", "a,b"]),
        (3, ["2", 'say "hi"']),
        (4, ["3", "two\nlines\r\nand a third"]),
        (7, ["4", "plain"]),
    ]


def test_quoted_header_of_a_comma_table(tmp_path):
    assert read(tmp_path, b'"id","long, name"\n1,a\n', ",")[0] == ["id", "long, name"]


def test_quote_inside_an_unquoted_cell_opens_nothing(tmp_path):
    data = b'id,text\n1,5" pipe\n2,a\n3,b\n'
    assert read(tmp_path, data, ",")[1] == [(2, ["1", '5" pipe']), (3, ["2", "a"]), (4, ["3", "b"])]


@pytest.mark.parametrize("delimiter", ["\x01", ","])
def test_cell_of_10_mb_is_a_cell(tmp_path, delimiter):
    data = f"id{delimiter}text\n1{delimiter}{'x' * 10_000_000}\n2{delimiter}a\n".encode()
    assert read(tmp_path, data, delimiter)[1] == [(2, ["1", "x" * 10_000_000]), (3, ["2", "a"])]


def test_lines_of_a_quoted_cell_of_10_mb_are_no_rows(tmp_path):
    cell = "looks,like a row\n" * 588_236
    rows = read(tmp_path, f'id,text\n1,"{cell}"\n2,a\n'.encode(), ",")[1]
    assert rows == [(2, ["1", cell]), (588_239, ["2", "a"])]


def test_quote_that_never_closes_takes_the_lines_up_to_the_limit_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_QUOTED", 12)
    rows = read(tmp_path, b'id,text\n1,"ab\n2,cd\n3,ef\n4,gh\n5,ij\n', ",")[1]
    # The quote stands at byte 10: its 12 bytes end within the third row.
    assert rows == [(2, TORN.format(3)), (5, ["4", "gh"]), (6, ["5", "ij"])]


def test_quote_that_never_closes_takes_a_small_file_to_its_end(tmp_path):
    rows = read(tmp_path, b'id,text\n1,a\n2,"b\n3,c\n', ",")[1]
    assert rows == [
        (2, ["1", "a"]),
        (3, TORN.format(2)),
    ]


def test_text_after_a_closing_quote_spoils_its_line_only(tmp_path):
    rows = read(tmp_path, b'id,text\n1,"a"b,"c\n2,"d"\n', ",")[1]
    assert rows == [
        (2, TORN.format(1)),
        (3, ["2", "d"]),
    ]


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\0", "\x0b", "\x0c", "\x1c", "\r"])
@pytest.mark.parametrize("delimiter", ["\x01", "\t", ","])
def test_odd_character_stays_inside_its_cell(tmp_path, char, delimiter):
    data = f"id{delimiter}text\n1{delimiter}a{char}b\n2{delimiter}c\n".encode()
    assert read(tmp_path, data, delimiter)[1] == [(2, ["1", f"a{char}b"]), (3, ["2", "c"])]


def test_only_one_cr_goes_with_the_line_end(tmp_path):
    assert read(tmp_path, b"id\x01text\n1\x01a\r\r\n2\x01\r\n")[1] == [(2, ["1", "a\r"]), (3, ["2", ""])]


@pytest.mark.parametrize("delimiter", ["\x01", ","])
def test_null_is_none_and_not_the_text_of_it(tmp_path, delimiter):
    data = rf"id{delimiter}text".encode() + rf"{chr(10)}\N{delimiter}a\N{chr(10)}".encode()
    assert read(tmp_path, data, delimiter)[1] == [(2, [None, "a\\N"])]


def test_empty_lines_are_skipped_and_counted(tmp_path):
    data = b"\n\r\nid\x01text\n\n1\x01a\n\n\n2\x01b\n\n"
    assert read(tmp_path, data) == (["id", "text"], [(5, ["1", "a"]), (8, ["2", "b"])])


def test_header_is_stripped_and_cells_are_not(tmp_path):
    assert read(tmp_path, b" id \x01text\t\n 1 \x01 a\n") == (["id", "text"], [(2, [" 1 ", " a"])])


def test_header_alone_is_a_table_without_rows(tmp_path):
    assert read(tmp_path, b"id\x01text\n") == (["id", "text"], [])


# ---------------------------------------------------------------- bad rows


def test_ragged_row_is_named_with_its_line_and_its_bytes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"id\x01text\n1\n2\x01b\n3\x01c\x01d\r\n")
    assert list(read_rows(path, "\x01", 2)) == [
        BadRow(path, 2, "1 columns instead of 2", b"1\n"),
        Row(3, ["2", "b"], b"2\x01b\n"),
        BadRow(path, 4, "3 columns instead of 2", b"3\x01c\x01d\r\n"),
    ]


@pytest.mark.parametrize("delimiter", ["\x01", ","])
def test_latin_1_row_is_named_and_its_neighbours_are_read(tmp_path, delimiter):
    path = tmp_path / "t.csv"
    path.write_bytes(f"id{delimiter}text\n1{delimiter}é\n2{delimiter}b\n".encode("latin-1"))
    bad, good = read_rows(path, delimiter, 2)
    assert bad == BadRow(path, 2, "not UTF-8", f"1{delimiter}é\n".encode("latin-1"))
    assert good.cells == ["2", "b"]


def test_line_numbers_are_right_after_bad_rows_and_quoted_line_ends(tmp_path):
    data = b'id,text\n1,"a\nb"\n\xff,c\n2\n3,"d\n\n\ne"\n4,f'
    assert read(tmp_path, data, ",")[1] == [
        (2, ["1", "a\nb"]),
        (4, "not UTF-8"),
        (5, "1 columns instead of 2"),
        (6, ["3", "d\n\n\ne"]),
        (10, ["4", "f"]),
    ]


# ---------------------------------------------------------------- refused tables


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "t.csv: is empty; a table starts with a line of column names"),
        (b"\n\n", "t.csv: is empty; a table starts with a line of column names"),
        (b"id\x01text\x01id\x01text\n", "t.csv:1: column id, text occurs twice; rename one"),
        (b"id\x01id \n", "t.csv:1: column id occurs twice; rename one"),
        (b"\nid\x01id\n", "t.csv:2: column id occurs twice; rename one"),
        ("id\x01größe\n".encode("latin-1"), "t.csv:1: the header is not UTF-8; save the file as UTF-8"),
    ],
)
def test_table_without_a_usable_header_is_refused(tmp_path, data, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, data)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_absent_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"t\.csv: cannot be read \(No such file or directory\)"):
        read_header(tmp_path / "t.csv", ",")


def test_missing_column_names_the_option_the_columns_and_the_near_miss(tmp_path):
    header = ["id", "descripton", "label"]
    assert column_index(tmp_path, header, "label", "label_column") == 2
    with pytest.raises(DataError) as caught:
        column_index(tmp_path, header, "description", "description_column")
    assert str(caught.value) == (
        f"{tmp_path}: no column 'description' (description_column); it has 'id', 'descripton', 'label'; "
        "did you mean 'descripton'?"
    )


def test_single_column_raises_the_question_of_the_delimiter(tmp_path):
    with pytest.raises(DataError, match="the line has one column only: is the delimiter right"):
        column_index(tmp_path, ["id|text|label|and|more"], "description", "description_column")


def test_single_column_with_a_plain_name_is_a_table_of_one_column(tmp_path):
    with pytest.raises(DataError, match=r"it has 'text'$"):
        column_index(tmp_path, ["text"], "id", "output_columns")


# ---------------------------------------------------------------- records


def stretches(data, delimiter, block_bytes):
    """[(line, bytes)] of the records of data that is read so many bytes at a time."""
    found, offset = [], 0
    for block in read_records("t.csv", io.BytesIO(data), Dialect.of(delimiter), block_bytes):
        assert block.offset == offset
        offset += len(block.data)
        assert [block.line_of(index) for index in range(len(block))] == block.lines()
        found += zip(block.lines(), block.raws(), strict=True)
    return found


@QUICK
@given(st.lists(st.sampled_from(["a", '"', '""', ",", "\n", "\r", "\r\n", "北"]), max_size=30), st.integers(1, 9))
@example(['"', "\n", '""', "\n", '"', "\n", "a"], 2)
def test_records_are_the_same_however_few_bytes_are_read_at_a_time(pieces, block_bytes):
    data = "".join(pieces).encode()
    for delimiter in ",", "\x01":
        assert stretches(data, delimiter, block_bytes) == stretches(data, delimiter, 1000)


@QUICK
@given(st.lists(st.sampled_from(["a", '"', '""', ",", "\n", "x,y"]), max_size=30).map("".join))
@example('a,"b\n""c",d\n"",""\n')
def test_comma_tables_read_as_by_the_csv_module(text):
    ours = []
    for raw in find_records(text.encode(), COMMA, 1).raws():
        try:
            ours.append(split_record(raw, COMMA))
        except ValueError:
            ours.append(None)
    theirs, reader = [], csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error:
            cells = None
        if cells != []:
            theirs.append(cells)
    assert ours == theirs


@QUICK
@given(
    st.lists(st.sampled_from(["a", '"', '""', ",", "\n", "\r\n", "\r", '","', '"\n"', "é", "\\N"]), max_size=30).map("".join)
)
@example('a,"b\n""c",d\n"","\n"\r\n"e')
@example('"a","b')
@example('"a"b,"c\nd"\n')
@example("a\r\r\n")
def test_shortcuts_through_well_formed_tables_change_nothing(text):
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        shortcut = find_records(data, COMMA, 1).raws()
        patch.setattr(records, "_are_paired", lambda data, quotes, delimiter: False)
        assert find_records(data, COMMA, 1).raws() == shortcut
    for dialect in COMMA, Dialect.of("|"):
        raws = find_records(data, dialect, 1).raws()
        for n_columns in 1, 2:
            together = read_all_cells(raws, dialect, n_columns)
            assert together in (None, one_by_one(raws, dialect, n_columns))


def one_by_one(raws, dialect, n_columns):
    """The cells of all records; of bad ones, the reason."""
    rows = []
    for raw in raws:
        try:
            rows.append(read_cells(raw, dialect, n_columns))
        except ValueError as error:
            rows.append(str(error))
    return rows


def test_shortcuts_are_taken():
    raws = [b'1,"a ""b"", c"\r\n', b'2,"d\ne"\n', b'"","f"']
    data = b"".join(raws)
    quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == ord('"'))
    assert records._are_paired(data, quotes, b",")
    assert read_all_cells(raws, COMMA, 2) == [["1", 'a "b", c'], ["2", "d\ne"], ["", "f"]]
    assert read_all_cells([b"1\x01\\N\r\n", b'"\x012'], Dialect.of("\x01"), 2) == [["1", None], ['"', "2"]]


def test_records_that_csv_would_run_together_are_read_one_by_one():
    assert read_all_cells([b'"a\n', b'b"\n'], COMMA, 1) is None


def test_long_record_is_read_in_few_steps(monkeypatch):
    reads = []
    stream = io.BytesIO(b"x" * 100_000 + b"\n")
    monkeypatch.setattr(records, "find_records", lambda data, *_, **rest: reads.append(data) or find_records(data, *_, **rest))
    assert sum(map(len, read_records("t.csv", stream, Dialect.of("\x01"), 10))) == 1
    assert len(reads) < 20  # each twice as long as the one before, not 10,000 of 10 bytes more


def test_record_over_a_gibibyte_is_refused(monkeypatch):
    monkeypatch.setattr(records, "_LONGEST_RECORD", 10)
    with pytest.raises(DataError, match=r"t\.csv:2: a row over 1 GiB"):
        stretches(b"a\n" + b"x" * 30, "\x01", 4)


def test_numbers_of_lines_are_counted_over_blank_lines_and_stretches():
    lines = [line for line, _ in stretches(b"a\n\n\nb\n" * 50, "\x01", 7)]
    assert lines == sorted([*np.arange(1, 200, 4).tolist(), *np.arange(4, 201, 4).tolist()])


# ---------------------------------------------------------------- round trip


chars = st.characters(codec="utf-8")
plain = st.text(chars.filter(lambda char: char not in "\n\x01\r")).filter(lambda text: text != "\\N") | st.none()
any_text = st.text(st.sampled_from("ab,\"\n\r'\0 \u2028北") | chars).filter(lambda text: text != "\\N") | st.none()


@QUICK
@given(st.lists(st.tuples(plain, plain, plain), min_size=1, max_size=5))
@example([("", "", "")])
@example([('"', "a\u2028b", "\0")])
@example([(None, None, None)])
def test_cells_joined_by_001_are_read_back(tmp_path_factory, rows):
    check_round_trip(tmp_path_factory, rows, "\x01")


@QUICK
@given(st.lists(st.tuples(any_text, any_text, any_text), min_size=1, max_size=5))
@example([("", "", "")])
@example([("a\nb", 'c"d', "e\rf")])
def test_cells_joined_by_commas_are_read_back_line_ends_included(tmp_path_factory, rows):
    check_round_trip(tmp_path_factory, rows, ",")


def check_round_trip(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    path.write_text("".join(join_cells(row, delimiter) + "\n" for row in [("x", "y", "z"), *rows]), "utf-8", newline="\n")
    assert [getattr(row, "cells", row) for row in read_rows(path, delimiter, 3)] == [list(row) for row in rows]
