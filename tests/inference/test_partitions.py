"""Tables of many days: columns that folders give and files have too, columns that came later, files that are no data."""

from __future__ import annotations

import uuid

import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from ebr.config import InferenceConfig
from ebr.data.files.dialects import Dialect
from ebr.data.tables.shard_rows import parse_shard
from ebr.data.tables.shards import open_source, read_shards
from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import DataError
from ebr.inference.command import InferenceResult, plan_inference
from ebr.model.compute.settings import ComputeSettings
from tests.embedding_runs import Run, write_table
from tests.inference.test_pipeline import rejects_of


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def source_of(folder, pattern="*", output_columns=None, **more):
    return open_source(folder, pattern, Dialect.of("|"), "text", output_columns, **more)


def rows_of(source):
    """([output cells of a row as text], [bad rows], [overruled]) of all shards."""
    parsed = [parse_shard(shard, source.schema) for shard in read_shards(source, 100)]
    cells = ["|".join(map(str, row.values())) for rows in parsed for row in rows.columns.to_pylist()]
    return cells, [bad for rows in parsed for bad in rows.bad], [said for rows in parsed for said in rows.overruled]


# ---------------------------------------------------------------- a column of the folder and of the file


@pytest.mark.parametrize("parquet", [False, True])
def test_of_a_column_that_folder_and_file_have_the_folder_is_right_and_what_differs_is_told(tmp_path, parquet):
    for day, cells in {"2026-01-01": ["2026-01-01", "2026-01-02"], "2026-01-02": ["2026-01-02", None]}.items():
        path = tmp_path / "in" / f"dt={day}" / "f"
        if parquet:
            write_parquet(path, dt=cells, text=["a", "b"])
        else:
            write_table(
                path, *[f"{cell or chr(92) + 'N'}|{text}" for cell, text in zip(cells, "ab", strict=True)], header="dt|text"
            )
    cells, bad, overruled = rows_of(source_of(tmp_path / "in"))
    assert (cells, bad) == (["2026-01-01|a", "2026-01-01|b", "2026-01-02|a", "2026-01-02|b"], [])
    line = 2 if parquet else 3
    assert overruled == [f"dt=2026-01-01/f:{line}: dt is '2026-01-02'", f"dt=2026-01-02/f:{line}: dt is None"]
    run = Run(tmp_path / "in", tmp_path / "out" / "v.txt")
    for done in (run.go(), run.go()):  # the second finds everything finished, and says it again
        assert (done.n_overruled, done.first_overruled) == (2, overruled[0])
    assert read_embeddings(run.out, "|").columns["dt"] == ["2026-01-01"] * 2 + ["2026-01-02"] * 2


@pytest.mark.parametrize(
    ("folder", "cells"),
    [
        ("k=01", [1]), ("k=1", [1.0]), ("k=true", [True]), ("k=2026-01-01", pa.array([0], pa.date32())),
        ("k=1970-01-01 00%3A00%3A00", pa.array([0], pa.timestamp("us"))), ("k=__HIVE_DEFAULT_PARTITION__", [""]),
        ("k=__HIVE_DEFAULT_PARTITION__", pa.nulls(1, pa.string())),
    ],
)  # fmt: skip
def test_the_same_value_spelt_otherwise_does_not_differ(tmp_path, folder, cells):
    write_parquet(tmp_path / folder / "f", k=cells, text=["a"])
    overruled = rows_of(source_of(tmp_path))[2]
    assert overruled == (["k=2026-01-01/f:1: k is '1970-01-01'"] if "2026" in folder else [])


def test_a_text_that_the_folder_gives_is_still_no_text_to_embed(tmp_path):
    write_table(tmp_path / "text=a" / "f", "1|a", header="id|text")
    with pytest.raises(DataError, match=r"no column 'text' \(description_column\); it has 'id'"):
        source_of(tmp_path)


# ---------------------------------------------------------------- columns that came later

NAMES = ["id", "text", "label", "score"]


def test_last_columns_that_old_part_files_lack_are_null(tmp_path):
    write_table(tmp_path / "dt=1" / "000000_0", "1|a", "2|b", "torn", "3|c", header=None)
    write_table(tmp_path / "dt=2" / "000000_0", "4|d|L", "5|e|L", header=None)
    write_table(tmp_path / "dt=3" / "000000_0", "6|f|M|7", "8|g", header=None)
    write_table(tmp_path / "dt=1" / "000001_0", "9|h", header=None)
    source = source_of(tmp_path, column_names=NAMES)
    cells, bad, _ = rows_of(source)
    assert cells == ["9|h|None|None|1", "4|d|L|None|2", "5|e|L|None|2", "6|f|M|7|3"]
    assert [(row.file, row.line, row.reason) for row in bad] == [  # in a file of several widths nobody knows which is right
        *[("dt=1/000000_0", line, f"{n} columns instead of 4") for line, n in [(1, 2), (2, 2), (3, 1), (4, 2)]],
        ("dt=3/000000_0", 2, "2 columns instead of 4"),
    ]
    assert [(file.name, names) for file, names in source.lacking()] == [
        ("dt=1/000001_0", ["label", "score"]), ("dt=2/000000_0", ["score"]),
    ]  # fmt: skip


@pytest.mark.parametrize("lines", [["1|a", "b|L"], ["a", "b"]])
def test_rows_torn_apart_are_not_taken_for_those_of_an_older_table(tmp_path, lines):
    write_table(tmp_path / "f", *lines, header=None)  # no file has all columns, or no row has a text
    assert len(rows_of(source_of(tmp_path, column_names=NAMES[:3]))[1]) == 2
    write_table(tmp_path / "g", "1|a|L", header=None)
    assert len(rows_of(source_of(tmp_path, column_names=NAMES[:3]))[1]) == (0 if "|" in lines[0] else 2)


@pytest.mark.parametrize("columns", [None, ["label", "id"]])
def test_columns_that_old_files_of_columns_lack_are_null_by_name(tmp_path, columns):
    write_parquet(tmp_path / "dt=1" / "f", text=["a"], id=[1])
    write_parquet(tmp_path / "dt=2" / "f", id=[2], label=["L"], text=["b"])
    wanted = columns or ["id", "label", "text", "dt"]
    rows = [{"id": 1, "label": None, "text": "a", "dt": 1}, {"id": 2, "label": "L", "text": "b", "dt": 2}]
    assert rows_of(source_of(tmp_path, output_columns=columns))[0] == [
        "|".join(str(row[name]) for name in wanted) for row in rows
    ]


def test_columns_that_old_orc_without_names_lacks_are_null_and_names_too_many_are_refused(tmp_path):
    pa.orc.write_table(pa.table({"_col0": ["1"], "_col1": ["a"]}), tmp_path / "a")
    with pytest.raises(DataError, match="a: has 2 columns, column_names 3; name each once"):
        source_of(tmp_path, column_names=NAMES[:3])
    pa.orc.write_table(pa.table({"_col0": ["2"], "_col1": ["b"], "_col2": ["L"]}), tmp_path / "b")
    assert rows_of(source_of(tmp_path, column_names=NAMES[:3]))[0] == ["1|a|None", "2|b|L"]


@pytest.mark.parametrize(
    ("older", "newer", "more", "message"),
    [
        ({"text": ["a"], "lable": ["L"]}, {"text": ["b"], "id": [1], "label": ["L"]}, {}, "its columns .* differ from"),
        ({"text": ["a"]}, {"text": ["b"], "id": [1]}, {"key_column": "id"}, r"no column 'id' \(incremental_key\)"),
        ({"id": [1]}, {"text": ["b"], "id": [1]}, {}, r"no column 'text' \(description_column\)"),
        ({"text": ["a"]}, {"text": ["b"], "id": [1]}, {"output_columns": ["ID"]}, r"no column 'ID' \(output_columns\)"),
    ],
)
def test_what_an_older_table_cannot_explain_is_refused_as_before(tmp_path, older, newer, more, message):
    write_parquet(tmp_path / "a", **older)
    write_parquet(tmp_path / "b", **newer)
    with pytest.raises(DataError, match=message):
        source_of(tmp_path, **more)


def test_columns_that_came_later_change_no_old_row(tmp_path):
    write_table(tmp_path / "in" / "dt=1" / "f", "1|a", header="id|text")
    run = Run(tmp_path / "in", tmp_path / "out" / "v.txt", columns=["id", "text"])
    run.go()
    write_table(tmp_path / "in" / "dt=2" / "f", "2|b|L")
    assert run.go().n_kept == 1
    assert Run(run.folder, run.out).go().n_rows == 2
    assert read_embeddings(run.out, "|").columns["label"] == [None, "L"]


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(1), pa.string()])
def test_of_text_kept_as_bytes_only_the_rows_that_are_none_are_left_out(tmp_path, kind):
    cells = pa.array([b"a", b"\xff", None], pa.binary())
    text = cells.view(pa.string()) if kind == pa.string() else cells.cast(kind)
    write_parquet(tmp_path / "in" / "f", id=["1", "2", "3"], text=text)
    done = Run(tmp_path / "in", tmp_path / "out" / "v.txt").go()
    assert done.n_rows == 1
    assert [reject[:3] for reject in rejects_of(done)] == [("f", 2, "text is not UTF-8"), ("f", 3, "text is empty")]
    assert b'"text": "\\\\xff"' in rejects_of(done)[0][3]


def test_bytes_that_are_no_text_are_told_with_what_to_do_about_their_column(tmp_path):
    write_parquet(tmp_path / "in" / "f", text=["a", "b"], image=[b"\xff\xd8", b"\xff\xd8"])
    with pytest.raises(DataError, match="f:1: image is not UTF-8; if it is no text, leave it out of output_columns"):
        Run(tmp_path / "in", tmp_path / "out" / "v.txt").go()
    assert Run(tmp_path / "in", tmp_path / "out" / "v.txt", columns=["text"]).go().n_rows == 2


@pytest.mark.parametrize("write", [pq.write_table, pa.feather.write_feather])
def test_uuids_are_written_as_such(tmp_path, write):
    ids = [uuid.UUID(int=1), None, uuid.UUID("f81d4fae-7dec-11d0-a765-00a0c91e6bf6")]
    write(pa.table({"id": pa.array([one and one.bytes for one in ids], pa.uuid()), "text": ["a", "b", "c"]}), tmp_path / "f")
    assert rows_of(source_of(tmp_path, output_columns=["id"]))[0] == [str(one) for one in ids]
    cells, bad, _ = rows_of(source_of(tmp_path, output_columns=["id"], key_column="id"))
    assert (cells, [row.reason for row in bad]) == ([str(ids[0]), str(ids[2])], ["id is empty"])


# ---------------------------------------------------------------- which files

LEFT = [
    "f._COPYING_", "f.tmp", "FlumeData.1.TMP", "f.inprogress", "part-0-0.inprogress.0a1b-2c", "f.in-progress", "f.pending",
    "f.csv.partial", "f.crdownload", "f.filepart", "f.temp", "dt=1_$folder$", "f~", "+tmp/f", "x.tmp/f",
]  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_a_tool_is_still_writing_is_no_data(tmp_path, name):
    write_table(tmp_path / "k=x.tmp" / "f", "1|a")
    write_table(tmp_path / name, "2|b")
    source = source_of(tmp_path)
    assert [file.name for file in source.files] == ["k=x.tmp/f"]
    told = [path.relative_to(tmp_path).as_posix() for path in source.unfinished_files]
    assert told == ([] if name in {"dt=1_$folder$", "f~", "+tmp/f"} else [name])


def test_unfinished_files_are_read_by_who_names_them_and_alone_they_are_told(tmp_path):
    write_table(tmp_path / "f.tmp", "1|a|L")
    with pytest.raises(
        DataError, match=r"no file matches '\*' but what is still being written, like .*f\.tmp; set file_pattern"
    ):
        source_of(tmp_path)
    assert rows_of(source_of(tmp_path, "*.tmp"))[0] == ["1|a|L"]


def test_one_file_is_read_alone_whatever_lies_beside_it(tmp_path):
    write_table(tmp_path / "dt=1" / "_f.csv", "1|a|L")
    write_table(tmp_path / "dt=1" / "g", "not a table")
    run = Run(tmp_path / "dt=1" / "_f.csv", tmp_path / "dt=1" / "v.txt")
    assert run.go().n_rows == 1
    assert read_embeddings(run.out, "|").columns == {"id": ["1"], "text": ["a"], "label": ["L"]}
    with pytest.raises(DataError, match="absent: no such folder or file"):
        source_of(tmp_path / "absent")


# ---------------------------------------------------------------- what is told


def test_the_plan_tells_what_is_left_out_and_which_columns_came_later_and_the_summary_what_the_folders_overruled(
    tiny_model, tmp_path
):
    write_table(tmp_path / "in" / "dt=1" / "f", "1|a|1", header="id|text|dt")
    write_table(tmp_path / "in" / "dt=2" / "f", "2|b|3|L", "3|c|3|L", header="id|text|dt|label")
    write_table(tmp_path / "in" / "dt=2" / "g._COPYING_", "2|b")
    config = InferenceConfig(
        model_path=tiny_model,
        input_dir=tmp_path / "in",
        output_path=tmp_path / "v.txt",
        delimiter="|",
        description_column="text",
    )
    lines = plan_inference(config).lines(count=False)
    assert f"left    1 file still being written, like {tmp_path / 'in/dt=2/g._COPYING_'}" in lines
    assert "note    older than others, 1 table: columns that came later are null, in dt=1/f label" in lines
    settings = ComputeSettings("float32", compiled=False, attention="padded", token_budget=64, n_threads=1, device="cpu")
    done = Run(tmp_path / "in", tmp_path / "out" / "v.txt").go()
    told = "folders  2 cells of their columns say something else, like dt=2/f:2: dt is '3': the folder's value was taken"
    assert told in InferenceResult(done, "", settings, 0.0).summary().splitlines()
