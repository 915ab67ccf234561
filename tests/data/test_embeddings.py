"""Finished vectors: every format through one reader; a changed file is refused, a foreign one loads with one line."""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebr.data.files.write import hash_file, manifest_path
from ebr.data.vectors.embeddings import iterate_embeddings, read_embeddings, write_embeddings, write_embeddings_manifest
from ebr.data.vectors.formats import VectorFormat, files_of, suffix_of, write_vectors
from ebr.errors import ConfigError, DataError

TXT, PARQUET, NPY = VectorFormat.TXT, VectorFormat.PARQUET, VectorFormat.NPY
FORMATS = [TXT, PARQUET, NPY]

LARGEST = np.finfo(np.float32).max
SMALLEST = np.float32(1e-45)  # subnormal, one bit
VECTORS = np.array([[0.1, -0.0, LARGEST], [SMALLEST, -1 / 3, 1e-7]], dtype=np.float32)
COLUMNS = {"id": ["1", None], "title": ['北京 "大学"', ""]}


def write(path, fmt=TXT, columns=COLUMNS, vectors=VECTORS, **options):
    path = path.with_suffix(suffix_of(fmt))
    write_embeddings(path, columns, vectors, **options)
    return path


def write_folder(folder, fmt=TXT, n_parts=3, **facts):
    """A finished folder: part p holds rows 2p and 2p + 1, whose vectors are [row, 1]."""
    folder.mkdir(exist_ok=True)
    files = {}
    for part in range(n_parts):
        rows = range(2 * part, 2 * part + 2)
        columns = pa.table({"id": pa.array([str(row) for row in rows], pa.string())})
        path = folder / f"part-{part}{suffix_of(fmt)}"
        written = write_vectors(path, fmt, columns, np.float32([[row, 1] for row in rows]), delimiter="|")
        files |= {file.name: hash_file(file) for file in written}
    recorded = {"delimiter": "|", "dtype": "float32", "dim": 2, "n_rows": 2 * n_parts, "columns": ["id"], "facts": {}} | facts
    write_embeddings_manifest(folder, fmt, files=files, **recorded)
    return folder


def foreign(path, text):
    """A vector file without a manifest."""
    path.write_text(text.replace("|", "\x01"), encoding="utf-8")
    return path


def check_rows(read, n_rows=6):
    assert read.columns == {"id": [str(row) for row in range(n_rows)]}
    assert read.vectors.tolist() == [[row, 1] for row in range(n_rows)]


def assumption(caplog, path, **options):
    """(what was read, the one line that was logged)."""
    with caplog.at_level(logging.INFO, logger="ebr"):
        read = read_embeddings(path, **options)
    (message,) = caplog.messages
    assert message.startswith(f"{path}: no manifest, so it was made elsewhere or not finished: assuming ")
    assert read.manifest is None
    return read, message.partition("assuming ")[2]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("delimiter", ["\x01", ",", "\t"])
def test_what_is_written_is_read_back_silently(tmp_path, fmt, delimiter, caplog):
    path = write(tmp_path / "v", fmt, delimiter=delimiter, facts={"model": "m"})
    with caplog.at_level(logging.INFO, logger="ebr"):
        read = read_embeddings(path, "the manifest knows better")
    assert caplog.messages == []
    assert read.columns == COLUMNS
    assert read.vectors.dtype == np.float32
    assert read.vectors.tobytes() == VECTORS.tobytes()
    assert read.manifest == {
        "kind": "embeddings",
        "format": fmt.value,
        "delimiter": delimiter,
        "dtype": "float32",
        "dim": 3,
        "n_rows": 2,
        "columns": ["id", "title"],
        "files": {file.name: hash_file(file) for file in files_of(path, fmt)},
        "model": "m",
    }


def test_manifest_is_json_beside_the_file_and_in_the_folder(tmp_path):
    path = write(tmp_path / "v")
    assert manifest_path(path) == tmp_path / "v.txt.manifest.json"
    assert json.loads(manifest_path(path).read_text(encoding="utf-8"))["n_rows"] == 2
    assert manifest_path(write_folder(tmp_path / "out")) == tmp_path / "out" / "ebr_manifest.json"


def test_facts_cannot_replace_what_is_recorded(tmp_path):
    with pytest.raises(ValueError, match="facts: dim, n_rows is recorded already"):
        write(tmp_path / "v", facts={"n_rows": 3, "dim": 1, "model": "m"})


def test_suffix_names_the_format_and_a_format_may_stand_without(tmp_path):
    write_embeddings(tmp_path / "v.dat", COLUMNS, VECTORS, output_format="npy")
    assert np.load(tmp_path / "v.dat").tobytes() == VECTORS.tobytes()
    assert read_embeddings(tmp_path / "v.dat").columns == COLUMNS
    with pytest.raises(ConfigError, match="contradicts"):
        write_embeddings(tmp_path / "v.txt", COLUMNS, VECTORS, output_format="npy")
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        write_embeddings(tmp_path, COLUMNS, VECTORS)


def test_float16_reads_back_as_the_nearest_float32(tmp_path):
    vectors = np.float32([[0.1, -2, 3]])
    read = read_embeddings(write(tmp_path / "v", NPY, {}, vectors, dtype="float16"))
    assert read.manifest["dtype"] == "float16"
    assert read.vectors.tolist() == vectors.astype(np.float16).tolist()


def test_line_ends_in_cells_survive_a_comma_file(tmp_path):
    cells = ['two\nlines, "quoted"', "a\rb"]
    assert read_embeddings(write(tmp_path / "v", TXT, {"title": cells}, delimiter=",")).columns["title"] == cells


def test_row_that_text_cannot_hold_is_refused_and_the_old_file_stays(tmp_path):
    path = write(tmp_path / "v")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(DataError, match=r"v\.txt: row 2: title holds the delimiter '\\x01'"):
        write(tmp_path / "v", columns={"title": ["a", "b\x01c"]})
    broken = VECTORS.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="nan or inf"):
        write(path, vectors=broken)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("fmt", FORMATS)
def test_changed_file_is_refused_until_its_manifest_is_gone(tmp_path, fmt):
    for number in range(len(files_of(tmp_path / "v", fmt))):
        path = write(tmp_path / "v", fmt, vectors=VECTORS)
        changed = files_of(path, fmt)[number]
        whole = changed.read_bytes()
        other = write(tmp_path / "other", fmt, {"id": ["1", "2"], "title": ["", "x"]}, VECTORS / 2)
        changed.write_bytes(files_of(other, fmt)[number].read_bytes())
        with pytest.raises(DataError) as caught:
            read_embeddings(path)
        assert str(caught.value) == (
            f"{changed}: differs from what its manifest recorded; delete it and embed again, "
            f"or delete {path.name}.manifest.json"
        )
        manifest_path(path).unlink()
        assert len(read_embeddings(path).vectors) == 2
        changed.write_bytes(whole)


@pytest.mark.parametrize("fmt", FORMATS)
def test_file_renamed_with_its_manifest_is_still_its_own(tmp_path, fmt):
    path = write(tmp_path / "v", fmt)
    renamed = tmp_path / f"w{suffix_of(fmt)}"
    manifest_path(path).rename(manifest_path(renamed))
    for old, new in zip(files_of(path, fmt), files_of(renamed, fmt), strict=True):
        old.rename(new)
    assert read_embeddings(renamed).columns == COLUMNS


def test_rows_that_are_missing_beside_a_matrix_are_named(tmp_path):
    path = write(tmp_path / "v", NPY)
    (tmp_path / "v.rows.parquet").unlink()
    with pytest.raises(DataError, match=r"v\.npy: v\.rows\.parquet of its manifest is missing; put it back or embed again"):
        read_embeddings(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "index"}, "its manifest is that of 'index', not of embeddings; delete"),
        ({"format": "avro"}, r"its manifest cannot be used \(ValueError: 'avro'.*; delete .* as made elsewhere"),
        ({"files": None}, r"its manifest cannot be used \(TypeError"),
        ({"n_rows": None}, r"its manifest cannot be used \(TypeError"),
        ({"files": {}}, "every file of its manifest is missing"),
        ({"n_rows": 3}, "holds 2 rows where its manifest says 3; embed again"),
        ({"dim": 2}, "its vectors have 3 numbers, not 2 like the rest; embed again"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(tmp_path, change, message):
    path = write(tmp_path / "v")
    record = json.loads(manifest_path(path).read_text(encoding="utf-8")) | change
    manifest_path(path).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DataError, match=rf"v\.txt: {message}"):
        read_embeddings(path)


def test_absent_file_says_which_stage_makes_it(tmp_path):
    with pytest.raises(DataError, match="no such file; run the inference stage first"):
        read_embeddings(tmp_path / "v.txt")
    with pytest.raises(DataError, match="no such file"):
        iterate_embeddings(tmp_path / "v.txt")  # before the first batch is asked for


# ---------------------------------------------------------------- folders and batches


@pytest.mark.parametrize("fmt", FORMATS)
def test_folder_of_parts_reads_as_one(tmp_path, fmt, caplog):
    folder = write_folder(tmp_path / "out", fmt)
    for name in (".partial-1.txt", "_SUCCESS", ".part-0.txt.crc", "rejects.jsonl"):
        (folder / name).write_text("x", encoding="utf-8")
    check_rows(read_embeddings(folder))
    assert caplog.messages == []


@pytest.mark.parametrize("fmt", FORMATS)
def test_batches_are_the_same_rows(tmp_path, fmt):
    batches = list(iterate_embeddings(write_folder(tmp_path / "out", fmt), batch_rows=1))
    assert [batch.columns["id"] for batch in batches] == [[str(row)] for row in range(6)]
    assert [batch.vectors.tolist() for batch in batches] == [[[row, 1]] for row in range(6)]
    assert batches[0].manifest["n_rows"] == 6


def test_order_of_the_parts_is_that_of_the_manifest(tmp_path):
    folder = write_folder(tmp_path / "out")
    record = json.loads(manifest_path(folder).read_text(encoding="utf-8"))
    record["files"] = dict(reversed(record["files"].items()))
    manifest_path(folder).write_text(json.dumps(record), encoding="utf-8")
    assert read_embeddings(folder).columns["id"] == ["4", "5", "2", "3", "0", "1"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_part_that_is_missing_changed_or_strange_is_named(tmp_path, fmt):
    folder = write_folder(tmp_path / "out", fmt)
    part, strange = folder / f"part-1{suffix_of(fmt)}", folder / f"part-9{suffix_of(fmt)}"
    strange.write_bytes(part.read_bytes())
    with pytest.raises(DataError, match=rf"out: {strange.name} is not in its manifest; move it out of the folder"):
        read_embeddings(folder)
    strange.rename(folder / "_old")
    content = part.read_bytes()
    part.unlink()
    with pytest.raises(DataError, match=rf"out: {part.name} of its manifest is missing; put it back or embed again"):
        read_embeddings(folder)
    part.write_bytes(content[::-1])
    batches = iterate_embeddings(folder)
    assert next(batches).columns["id"] == ["0", "1"]
    with pytest.raises(DataError, match=rf"{part.name}: differs from what its manifest recorded.* delete ebr_manifest\.json"):
        next(batches)


def test_rows_that_are_missing_from_a_folder_are_counted(tmp_path):
    with pytest.raises(DataError, match="out: holds 6 rows where its manifest says 7"):
        read_embeddings(write_folder(tmp_path / "out", n_rows=7))


# ---------------------------------------------------------------- made elsewhere


def test_foreign_text_loads_with_one_line_of_what_is_assumed(tmp_path, caplog):
    read, line = assumption(caplog, foreign(tmp_path / "v.txt", "vector|id\n1 2|a\n+3   4.5 |\\N\n"))
    assert (read.vectors.tolist(), read.columns) == ([[1, 2], [3, 4.5]], {"id": ["a", None]})
    assert line == r"txt, delimiter '\x01' and the vector in the column 'vector'"


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("size", [-1, 2])
def test_foreign_parquet_may_hold_any_list_of_floats(tmp_path, caplog, kind, size):
    columns = {
        "vector": pa.array([[np.float16(1), np.float16(2)], [np.float16(3), np.float16(4.5)]], pa.list_(kind, size)),
        "n": pa.array([7, None]),
        "label": pa.array(["a", "a"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    read, line = assumption(caplog, tmp_path / "v.parquet")
    assert (read.vectors.tolist(), read.columns) == ([[1, 2], [3, 4.5]], {"n": ["7", None], "label": ["a", "a"]})
    assert line == "parquet, the vector in the column 'vector'"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_foreign_npy_may_hold_any_floats_in_any_order(tmp_path, caplog, dtype, order):
    np.save(tmp_path / "v.npy", np.array([[1, 2], [3, 4.5], [5, 6]], dtype=dtype, order=order))
    read, line = assumption(caplog, tmp_path / "v.npy")
    assert (read.vectors.tolist(), read.columns) == ([[1, 2], [3, 4.5], [5, 6]], {})
    assert read.vectors.dtype == np.float32
    assert line.startswith("npy, one vector a row")


@pytest.mark.parametrize("fmt", FORMATS)
def test_foreign_folder_reads_in_the_order_of_names_with_one_line(tmp_path, caplog, fmt):
    folder = write_folder(tmp_path / "out", fmt)
    manifest_path(folder).unlink()
    (folder / "_SUCCESS").touch()
    read, line = assumption(caplog, folder, delimiter="|")
    check_rows(read)
    assert line.startswith(f"3 files in the order of their names, {fmt.value}, ")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no vector files; name one file, or a folder of files of one format"),
        (["a.txt", "b.npy"], r"holds vector files of several formats \(npy, txt\); name one file"),
    ],
)
def test_foreign_folder_of_no_or_several_formats_is_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        read_embeddings(tmp_path)


def test_foreign_files_that_do_not_fit_together_are_refused(tmp_path):
    foreign(tmp_path / "a.txt", "id|vector\n1|1 2\n")
    foreign(tmp_path / "b.txt", "id|vector\n1|1 2 3\n")
    with pytest.raises(DataError, match=r"b\.txt: its vectors have 3 numbers, not 2 like the rest"):
        read_embeddings(tmp_path)
    foreign(tmp_path / "b.txt", "name|vector\n1|1 2\n")
    assert read_embeddings(tmp_path, columns={}).vectors.tolist() == [[1, 2], [1, 2]]
    with pytest.raises(DataError, match=r"b\.txt: no column 'id' \(id_column\)"):
        read_embeddings(tmp_path, columns={"id": "id_column"})


def test_a_column_of_some_foreign_files_is_null_in_the_others_with_a_line(tmp_path, caplog):
    foreign(tmp_path / "a.txt", "id|vector\n1|1 2\n")
    foreign(tmp_path / "b.txt", "name|vector\n1|1 2\n")
    assert read_embeddings(tmp_path).columns == {"id": ["1", None], "name": [None, "1"]}
    assert caplog.messages[1:] == [f"{tmp_path}: null in the files that lack them: 'id' (1 of 2 files), 'name' (1 of 2 files)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id|vector\na|1 2\nb|1 nan\n", "v.txt:3: the vector holds nan or inf"),
        ("id|vector\na|1 -inf\n", "v.txt:2: the vector holds nan or inf"),
        ("id|vector\na|1 2\n\nb|1\n", "v.txt:4: the vector has 1 numbers where the first has 2"),
        ("id|vector\na|1 2\nb|1 2 3\n", "v.txt:3: the vector has 3 numbers where the first has 2"),
        ("id|vector\n" + "a|1 2\n" * 300 + "b|1\n", "v.txt:302: the vector has 1 numbers where the first has 2"),
        ("id|vector\n" + "a|1 2\n" * 256 + "b|1\n" * 256, "v.txt:258: the vector has 1 numbers where the first has 2"),
        ("id|vector\na|\n", "v.txt:2: the vector is empty"),
        ("id|vector\na|\\N\n", r"v.txt:2: the vector is no list of numbers: '\\N'"),
        ("id|vector\na|1 2\nb|one two\n", "v.txt:3: the vector is no list of numbers: 'one two'"),
        ("id|vector\na|[1, 2\n", "v.txt:2: the vector is no list of numbers: '[1, 2'"),
        ("id|vector\na|[[1, 2]]\n", "v.txt:2: the vector is no list of numbers: '[[1, 2]]'"),
        ("id|vector\na|[1, null]\n", "v.txt:2: the vector is no list of numbers: '[1, null]'"),
        ("id|vector\na|[]\n", "v.txt:2: the vector is empty"),
        ("id|vector\na|0,5 1,5\n", "v.txt:2: the vector is no list of numbers: '0,5 1,5'"),
        ("id|vector\na|0,5, 1,5\n", "v.txt:2: the vector is no list of numbers: '0,5, 1,5'"),
        ("id|vector\na|0,5;1,5\n", "v.txt:2: the vector is no list of numbers: '0,5;1,5'"),
        ("id|vector\na|[1 ... 2]\n", "v.txt:2: the vector is no list of numbers: '[1 ... 2]'"),
        ("id|vector\na|1 2\nb\n", "v.txt:3: 1 columns instead of 2"),
        ("id|vector\n", "v.txt: holds no rows"),
        ("id|vectr\na|1\n", "v.txt: no column 'vector' (vector_column); it has 'id', 'vectr'; did you mean 'vectr'?"),
        ("", "v.txt: is empty; a table starts with a line of column names"),
    ],
)
def test_unreadable_vector_is_named_by_file_and_line(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        read_embeddings(foreign(tmp_path / "v.txt", text))
    assert str(caught.value) == f"{tmp_path}/{message}"
