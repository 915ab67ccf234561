r"""Tables: what a delimiter may be, which rows are good, which are not and why, and where each stands in its file."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ebr.data.tables import BadRow, Row, column_index, find_tables, join_cells, parse_delimiter, read_header, read_rows
from ebr.errors import ConfigError, DataError

QUICK = settings(deadline=None, max_examples=30, database=None)


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


def test_very_long_cell_of_a_comma_table_is_no_traceback(tmp_path):
    rows = read(tmp_path, b"id,text\n1," + b"x" * 200_000 + b"\n2,a\n", ",")[1]
    assert rows[1:] == [(3, ["2", "a"])]


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\0", "\x0b", "\x0c", "\x1c", "\r"])
def test_odd_character_stays_inside_its_cell(tmp_path, char):
    data = f"id\x01text\n1\x01a{char}b\n2\x01c\n".encode()
    assert read(tmp_path, data)[1] == [(2, ["1", f"a{char}b"]), (3, ["2", "c"])]


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
        BadRow(path, 2, "1 columns where the header has 2", b"1\n"),
        Row(3, ["2", "b"], b"2\x01b\n"),
        BadRow(path, 4, "3 columns where the header has 2", b"3\x01c\x01d\r\n"),
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
        (5, "1 columns where the header has 2"),
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


def test_tables_are_found_below_too_sorted_and_without_hidden_and_marker_files(tmp_path):
    for name in ("b.csv", "a/c.csv", "a/.partial.csv", "_SUCCESS.csv", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_tables(tmp_path, "*.csv")] == ["a/c.csv", "b.csv"]
    with pytest.raises(DataError, match=r"no file matches '\*\.tsv'; set file_pattern"):
        find_tables(tmp_path, "*.tsv")
    with pytest.raises(DataError, match=r"input_dir .*absent: no such folder"):
        find_tables(tmp_path / "absent", "*.csv")


# ---------------------------------------------------------------- round trip


chars = st.characters(codec="utf-8")
plain = st.text(chars.filter(lambda char: char not in "\n\x01\r"))
any_text = st.text(st.sampled_from("ab,\"\n\r'\0 \u2028北") | chars.filter(lambda char: char != "\ufeff"))


@QUICK
@given(st.lists(st.tuples(plain, plain, plain), min_size=1, max_size=5))
@example([("", "", "")])
@example([('"', "a\u2028b", "\0")])
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
