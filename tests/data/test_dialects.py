r"""Tables as other tools write them: quotes under any delimiter, Spark's \", Hive's ESCAPED BY, NULL as a word, encodings."""

from __future__ import annotations

import base64
import csv
import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ebr.config import InferenceConfig
from ebr.data.files.dialects import Dialect, parse_dialect
from ebr.data.tables import records
from ebr.data.tables.cells import read_all_cells, read_cells
from ebr.data.tables.records import find_records
from ebr.data.tables.shard_rows import parse_shard
from ebr.data.tables.shards import read_shards
from ebr.errors import ConfigError
from ebr.inference.command import plan_inference, run_batch_inference

QUICK = settings(deadline=None, max_examples=80, database=None)
HIVE = Dialect("\x01", escape="\\")
SPARK = Dialect(",", quote='"', escape="\\")


def planned(model, folder, data, name="000000_0", **options):
    """The plan of a run over one file with these bytes; delimiter | unless it is given."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    options = {"delimiter": "|", "description_column": "text", **options}
    return plan_inference(
        InferenceConfig(model_path=model, input_dir=folder, output_path=folder.parent / "v.parquet", **options)
    )


def rows_of(plan):
    """([cells of each good row], [(line, reason, bytes) of each bad one])."""
    parsed = [parse_shard(shard, plan.source.schema) for shard in read_shards(plan.source, 3)]
    cells = [tuple(row.values()) for rows in parsed for row in rows.columns.to_pylist()]
    return cells, [(bad.line, bad.reason, bad.raw) for rows in parsed for bad in rows.bad]


# ---------------------------------------------------------------- what the tools write


@pytest.mark.parametrize(
    ("data", "options", "rows"),
    [
        # hive -e and beeline print the word.
        ("id|text|label\n1|NULL|x\n2|shoe|NULL\n", {"null_values": "NULL"}, [("2", "shoe", None)]),
        ("id|text|label\n1|null|x\n2|a NULL b|\\N\n", {"null_values": ["NULL", "null"]}, [("2", "a NULL b", None)]),
        # Spreadsheets: a quoted TSV, and the semicolon of countries with a decimal comma.
        ('id\ttext\n1\t"red\tshoe"\n2\t"say ""hi"""\n3\t"two\nlines"\n4\tplain\n', {"delimiter": "\\t", "quote": '"'},
         [("1", "red\tshoe"), ("2", 'say "hi"'), ("3", "two\nlines"), ("4", "plain")]),
        ('"id";"text"\r\n1;"a; b"\r\n2;c\r\n', {"delimiter": ";", "quote": '"'}, [("1", "a; b"), ("2", "c")]),
        ("id|text\n'1'|'it''s | here'\n", {"quote": "'"}, [("1", "it's | here")]),
        ('id,text\n1,5" pipe\n2,"open\n', {"delimiter": ",", "quote": ""}, [("1", '5" pipe'), ("2", '"open')]),
        # Spark: a backslash before a quote, itself before a quote, and left alone elsewhere.
        ('id,text\n1,"5\\" disk, big"\n2,"C:\\new \\\\"\n3,x\\y\n4,"\\"a\\"\nb"\n', {"delimiter": ",", "escape": "\\"},
         [("1", '5" disk, big'), ("2", "C:\\new \\"), ("3", "x\\y"), ("4", '"a"\nb')]),
        ('id,text\n1,"a ""b"""\n', {"delimiter": ",", "escape": '"'}, [("1", 'a "b"')]),
        # Hive's ESCAPED BY: \N alone is null, \\N is a text of two characters.
        ("id|text|label\n1|a \\| b|\\N\n2|c\\\\|\\\\N\n3|d\\ne\\x\\\\|z\\\n", {"escape": "\\\\"},
         [("1", "a | b", None), ("2", "c\\", "\\N"), ("3", "d\nex\\", "z\\")]),
    ],
)  # fmt: skip
def test_a_table_of_another_tool_is_read_as_it_was_meant(tiny_model, tmp_path, data, options, rows):
    assert rows_of(planned(tiny_model, tmp_path / "in", data.encode(), **options))[0] == rows


def test_one_escaped_quote_takes_no_good_line_along_and_without_the_option_the_row_says_so(tiny_model, tmp_path):
    lines = ["id,text", '0,"a 5\\" disk"', *(f"{row},good" for row in range(1, 60))]
    data = "\n".join(lines).encode()
    good, bad = rows_of(planned(tiny_model, tmp_path / "in", data, delimiter=",", escape="\\"))
    assert (len(good), bad) == (60, [])
    good, bad = rows_of(planned(tiny_model, tmp_path / "in", data, delimiter=","))
    assert bad[0][1].endswith('; it holds \\": set escape \\\\')


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ("id|text\n1|NULL\n", "note    000000_0:2: text is the word NULL; if it means null, set null_values NULL"),
        (
            'id|text\n1|a\n2|"b"\n',
            "note    000000_0:3: text stands in quotes: '\"b\"'; if they are not its own, set quote '\"'",
        ),
    ],
)
def test_what_looks_as_if_it_were_written_otherwise_is_told_by_the_plan(tiny_model, tmp_path, data, note):
    assert note in planned(tiny_model, tmp_path / "in", data.encode()).lines(count=False)
    told = planned(tiny_model, tmp_path / "in", data.encode(), null_values="NULL", quote='"').lines(count=False)
    assert not [line for line in told if line.startswith("note")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quote": "ab"}, "quote: must be one ASCII sign, like \", or '' for none (got 'ab')"),
        ({"escape": "北"}, "escape: must be one ASCII sign, like \\, or '' for none (got '北')"),
        ({"quote": "|"}, "quote: is the delimiter too; give another character"),
        ({"escape": "|"}, "escape: is the delimiter too; give another character"),
        ({"encoding": "klingon"}, "encoding: no encoding 'klingon'; known are utf-8, gb18030, big5, utf-16, latin-1, …"),
        ({"encoding": "base64"}, "encoding: no encoding 'base64'; known are utf-8, gb18030, big5, utf-16, latin-1, …"),
        ({"delimiter": "‖", "quote": '"'}, "quote: needs an ASCII delimiter (got '‖')"),
    ],
)
def test_an_option_that_cannot_be_is_refused(tiny_model, tmp_path, options, message):
    with pytest.raises(ConfigError) as caught:
        planned(tiny_model, tmp_path / "in", b"id|text\n", **options)
    assert str(caught.value) == message


def test_names_of_encodings_are_pythons_and_older_names_of_gb18030_mean_it():
    assert [parse_dialect(",", encoding=name).encoding for name in ("UTF8", "utf-8-sig", "GBK", "gb2312", "gb18030")] == [
        "utf-8", "utf-8", "gb18030", "gb18030", "gb18030",
    ]  # fmt: skip


# ---------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "big5", "utf-16", "utf-16-be", "utf-32-le", "latin-1"])
def test_a_table_of_another_encoding_is_read_line_by_line(tiny_model, tmp_path, encoding):
    text = "café" if encoding == "latin-1" else "红色跑鞋" if encoding.startswith(("gb", "utf")) else "紅色跑鞋"
    table = f"id|text\r\n1|{text}\n\n2|\n3|b|c\n4|{text}\n"
    cells, bad = rows_of(planned(tiny_model, tmp_path / "in", table.encode(encoding), encoding=encoding))
    assert cells == [("1", text), ("4", text)]
    own = {"gbk": "gb18030", "utf-16": "utf-16-le"}.get(encoding, encoding)
    assert bad == [(4, "text is empty", "2|\n".encode(own)), (5, "3 columns instead of 2", "3|b|c\n".encode(own))]


def test_a_character_whose_second_byte_is_a_delimiter_or_a_quote_splits_nothing(tiny_model, tmp_path):
    # 乗 is 81 5c, 亅 81 7c: a backslash and a bar to whoever looks at bytes.
    table = 'id|text\n1|"乗|亅"\n2|乗\n'.encode("gb18030")
    assert b"\x81\\" in table and b"\x81|" in table
    plan = planned(tiny_model, tmp_path / "in", table, encoding="gb18030", quote='"', escape="\\")
    assert rows_of(plan) == ([("1", "乗|亅"), ("2", "乗")], [])


@pytest.mark.parametrize(
    ("encoding", "broken"), [("gb18030", b"2|\xff\x81\n"), ("utf-16-le", "2|".encode("utf-16-le") + b"\x00\xd8\n\0")]
)
def test_a_row_that_its_encoding_cannot_read_is_rejected_with_its_own_bytes(tiny_model, tmp_path, encoding, broken):
    data = "id|text\n1|好\n".encode(encoding) + broken + "3|好\n".encode(encoding)
    cells, bad = rows_of(planned(tiny_model, tmp_path / "in", data, encoding=encoding))
    assert (cells, bad) == ([("1", "好"), ("3", "好")], [(3, f"not {encoding}", broken)])


def test_gbk_read_as_utf8_is_told_by_its_looks(tiny_model, tmp_path):
    row = "1|红色的跑步鞋\n".encode("gbk")
    _, bad = rows_of(planned(tiny_model, tmp_path / "in", b"id|text\n" + row + "2|é\n".encode("latin-1")))
    assert bad == [
        (2, "not UTF-8; it reads as GBK: set encoding gb18030", row),
        (3, "not UTF-8", "2|é\n".encode("latin-1")),
    ]


def test_rejects_of_a_run_hold_the_bytes_of_the_file(tiny_model, tmp_path):
    table = "id|text\n1|红鞋\n2|红\0|鞋\n".encode("utf-16")
    plan = planned(tiny_model, tmp_path / "in", table)
    run_batch_inference(plan.config, say=lambda _: None)
    [line] = (tmp_path / "v.parquet.rejects.jsonl").read_text(encoding="utf-8").splitlines()
    reject = json.loads(line)
    assert (reject["line"], reject["reason"]) == (3, "3 columns instead of 2")
    assert base64.b64decode(reject["raw_base64"]) == "2|红\0|鞋\n".encode("utf-16-le")


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize(
    ("option", "value"), [("null_values", "NULL"), ("quote", "'"), ("escape", "\\"), ("encoding", "gb18030")]
)
def test_an_option_of_reading_makes_another_output_and_what_is_as_it_was_makes_the_same(tiny_model, tmp_path, option, value):
    data = b"id|text\n1|a\n2|NULL\n"
    plain = planned(tiny_model, tmp_path / "in", data)
    other = planned(tiny_model, tmp_path / "in", data, **{option: value})
    digests = [[shard.digest for shard in read_shards(plan.source, 9)] for plan in (plain, other)]
    assert digests[0] != digests[1]
    # As it was before there were these options: outputs of then are gone on with.
    assert digests[0] == ["29c11ab39d5df34a576c7c76c25b82d8d59ab193a464bd3e84f6d0bdca5a0e46"]
    said = []
    run_batch_inference(plain.config, say=lambda _: None)
    run_batch_inference(other.config, say=said.append)
    assert any(f"made with another {option}: everything is embedded anew" in line for line in said)


# ---------------------------------------------------------------- equalities

CELL = st.text(st.sampled_from(["a", '"', "\\", "|", ",", ";", "\n", "\r", "北", "N", "n"]), max_size=6)
TABLE = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6)


@QUICK
@given(TABLE, st.sampled_from(["|", ";", "\t"]))
def test_what_csv_writes_under_any_delimiter_is_read_back(rows, delimiter):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    check(text.getvalue(), Dialect(delimiter, quote='"'), rows)


@QUICK
@given(TABLE)
@example([("\\", '"'), ('\\"', "a")])
def test_what_spark_writes_is_read_back(rows):
    def written(cell):
        return '"' + cell.replace("\\", "\\\\").replace('"', '\\"') + '"'

    check("".join(",".join(map(written, row)) + "\n" for row in rows), SPARK, rows)


@QUICK
@given(TABLE)
@example([("\\N", "\\")])
def test_what_hive_escapes_is_read_back(rows):
    def written(cell):
        for plain, escaped in {"\\": "\\\\", "\x01": "\\\x01", "\n": "\\n", "\r": "\\r"}.items():
            cell = cell.replace(plain, escaped)
        return cell

    rows = [(f"{one}\x01", two) for one, two in rows]
    check("".join("\x01".join(map(written, row)) + "\n" for row in rows), HIVE, rows)


def check(text, dialect, rows):
    data = text.encode()
    found = find_records(data, dialect, 1).raws()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_are_paired", lambda *_: False)
        assert find_records(data, dialect, 1).raws() == found
    # Within quotes too \\N is null; of Hive an escaped one is a text.
    wanted = [[None if cell == "\\N" and dialect.quote else cell for cell in row] for row in rows]
    assert [read_cells(raw, dialect, 2) for raw in found] == wanted
    assert read_all_cells(found, dialect, 2) in (None, wanted)
