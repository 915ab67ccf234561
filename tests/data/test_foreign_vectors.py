"""Vector files as others write them: the same rows whatever the spelling, or one line that says what is wrong."""

import bz2
import gzip
import json
import lzma
import pickle
from uuid import UUID
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from ebr.data.vectors.embeddings import iterate_embeddings, read_embeddings
from ebr.errors import DataError

ROWS = [[1.0, -2.5, 0.001], [0.5, 0.0, 3e5]]
IDS = ["甲", "乙"]
SUFFIXES = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}


def table(path, vectors, *, delimiter="\x01", name="vector", quote=""):
    cells = [delimiter.join([row_id, f"{quote}{vector}{quote}"]) for row_id, vector in zip(IDS, vectors, strict=True)]
    path.write_text("\n".join([f"id{delimiter}{name}", *cells]) + "\n", encoding="utf-8")
    return path


def between(mark, brackets=("", "")):
    return [brackets[0] + mark.join(map(str, row)) + brackets[1] for row in ROWS]


TEXTS = {
    "a JSON list": {"vectors": map(json.dumps, ROWS)},
    "pgvector": {"vectors": between(",", "[]")},
    "an array of Postgres": {"vectors": between(",", "{}")},
    "a tuple of Python": {"vectors": between(", ", "()")},
    "a list of Hive": {"vectors": between("\x02")},
    "commas": {"vectors": between(",")},
    "semicolons": {"vectors": between(";")},
    "bars": {"vectors": between("|")},
    "tabs": {"vectors": between("\t")},
    "numpy": {"vectors": [str(np.array(row)) for row in ROWS]},
    "numpy, over two lines": {"vectors": [f"[{a}  {b}\n  {c}]" for a, b, c in ROWS], "delimiter": ",", "quote": '"'},
    "a JSON list over two lines": {
        "vectors": [f"[{a},{b},\n {c}]".replace(",", ",\n") for a, b, c in ROWS],
        "delimiter": ",",
        "quote": '"',
    },
    "quoted in a .csv": {"vectors": map(json.dumps, ROWS), "delimiter": ",", "quote": '"', "file": "v.csv"},
    "in a .tsv": {"vectors": map(json.dumps, ROWS), "delimiter": "\t", "file": "v.tsv"},
    "a column embedding": {"vectors": between(" "), "name": "embedding"},
    "a column text_embedding": {"vectors": between(" "), "name": "text_embedding"},
}


@pytest.mark.parametrize("case", TEXTS)
def test_vectors_in_text_are_read_however_they_are_spelled(tmp_path, case):
    options = {"delimiter": "\x01", "file": "v.txt", **TEXTS[case]}
    path = table(tmp_path / options.pop("file"), **options)
    # A .csv and a .tsv say themselves what stands between their columns.
    read = read_embeddings(path) if path.suffix != ".txt" else read_embeddings(path, options["delimiter"])
    assert read.vectors.tolist() == np.float32(ROWS).tolist()
    assert read.columns == {"id": IDS}


@pytest.mark.parametrize("prefix", ["", "dim_", "emb"])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_for_each_number_is_read_in_the_order_of_the_numbers(tmp_path, prefix, first, suffix):
    numbers = np.arange(24, dtype=np.float32).reshape(2, 12)
    names = [f"{prefix}{first + place}" for place in range(12)]
    order = [*range(11, -1, -1)]  # the columns stand the other way round: _10 is not before _2
    columns = {"id": IDS, "n1": [5, 6]} | {names[place]: numbers[:, place].tolist() for place in order}
    path = tmp_path / f"v.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = read_embeddings(path)
    assert read.vectors.tolist() == numbers.tolist()
    assert read.columns == {"id": IDS, "n1": ["5", "6"]}
    assert read_embeddings(path, vector_column=prefix).vectors.tolist() == numbers.tolist() if prefix else True


def test_an_empty_cell_among_the_numbers_is_named_by_its_line(tmp_path):
    (tmp_path / "v.csv").write_text("id,x0,x1\na,1,2\nb,,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"v\.csv:3: the vector is no list of numbers"):
        read_embeddings(tmp_path / "v.csv")


TENSOR = pa.fixed_shape_tensor(pa.float32(), [3])
ARROWS = {
    "a tensor": pa.ExtensionArray.from_storage(TENSOR, pa.FixedSizeListArray.from_arrays(np.float32(ROWS).reshape(-1), 3)),
    "a large list": pa.array(ROWS, pa.large_list(pa.float64())),
    "JSON": pa.array(map(json.dumps, ROWS)),
    "decimals": pa.array(ROWS, pa.list_(pa.float64())).cast(pa.list_(pa.decimal128(20, 6))),
}


@pytest.mark.parametrize("case", ARROWS)
@pytest.mark.parametrize("name", ["vector", "embeddings"])
def test_vectors_in_parquet_are_read_however_they_are_stored(tmp_path, case, name):
    pq.write_table(pa.table({"id": IDS, name: ARROWS[case]}), tmp_path / "v.parquet")
    read = read_embeddings(tmp_path / "v.parquet")
    np.testing.assert_array_equal(read.vectors, np.float32(ROWS))
    assert read.columns == {"id": IDS}


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64"])
def test_whole_numbers_are_vectors(tmp_path, kind):
    numbers = np.array([[1, 2], [3, 100]], dtype=kind)
    pq.write_table(
        pa.table({"vector": pa.array(numbers.tolist(), pa.list_(pa.from_numpy_dtype(kind)))}), tmp_path / "v.parquet"
    )
    np.save(tmp_path / "v.npy", numbers)
    for name in ("v.parquet", "v.npy"):
        assert read_embeddings(tmp_path / name).vectors.tolist() == [[1, 2], [3, 100]]


def test_columns_that_are_no_text_are_left_out_with_a_line(tmp_path, caplog):
    columns = {
        "id": pa.array([b"a", b"\xe7\x94\xb2"]),
        "tags": pa.array([["x"], ["y"]]),
        "box": pa.array([{"w": 1}, {"w": 2}]),
        "image": pa.array([b"ok", b"\xff\xd8"]),
        "vector": pa.array(ROWS),
    }
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    assert read_embeddings(tmp_path / "v.parquet").columns == {"id": ["a", "甲"]}
    assert caplog.messages[1] == (
        f"{tmp_path}/v.parquet: left out, for they are no text: 'tags' (list<element: string>), "
        "'box' (struct<w: int64>), 'image' (binary, not UTF-8)"
    )
    del columns["vector"]
    np.save(tmp_path / "n.npy", np.float32(ROWS))
    pq.write_table(pa.table(columns), tmp_path / "n.rows.parquet")
    assert read_embeddings(tmp_path / "n.npy").columns == {"id": ["a", "甲"]}


@pytest.mark.parametrize("name", ["v.parquet", "v.arrow", "v.npy"])
def test_ids_of_16_bytes_that_are_uuids_are_written_as_such(tmp_path, name):
    ids = [UUID(int=2**127 + 7), None]
    columns = {"id": pa.array([ids[0].bytes, None], pa.uuid()), "vector": pa.array(ROWS, pa.list_(pa.float32()))}
    if name == "v.arrow":
        pa.feather.write_feather(pa.table(columns), tmp_path / name)
    else:
        beside = {"id": columns["id"]} if name == "v.npy" else columns
        np.save(tmp_path / "v.npy", np.float32(ROWS))
        pq.write_table(pa.table(beside), (tmp_path / name).with_suffix(".rows.parquet" if name == "v.npy" else ".parquet"))
    assert read_embeddings(tmp_path / name).columns == {"id": ["80000000-0000-0000-0000-000000000007", None]}


def test_an_archive_of_arrays_has_one_matrix_and_columns(tmp_path, caplog):
    arrays = {"embeddings": np.float64(ROWS), "ids": np.array(IDS), "score": np.array([0.5, np.nan]), "tokens": np.eye(2)}
    np.savez(tmp_path / "v.npz", **arrays, config=np.array(7))
    read = read_embeddings(tmp_path / "v.npz")
    np.testing.assert_array_equal(read.vectors, np.float32(ROWS))
    assert read.columns == {"ids": IDS, "score": ["0.5", None]}
    assert read_embeddings(tmp_path / "v.npz", vector_column="tokens").vectors.tolist() == [[1, 0], [0, 1]]
    assert [len(batch.vectors) for batch in iterate_embeddings(tmp_path / "v.npz", batch_rows=1)] == [1, 1]
    assert "left out, for they are no text: 'tokens' (of shape (2, 2)), 'config' (of shape ())" in caplog.text


def test_an_archive_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    np.savez(tmp_path / "v.npz", vectors=np.float32(ROWS), labels=np.array([Trap(), None], dtype=object))
    assert read_embeddings(tmp_path / "v.npz").columns == {}
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"p\.npz: cannot be read as npz"):
        read_embeddings(tmp_path / "p.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("arrays", "asked", "message"),
    [
        (
            {"a": np.eye(2), "b": np.eye(3)},
            None,
            r"has several matrices \('a' of shape \(2, 2\), 'b' .*name .* --vector_column",
        ),
        ({"a": np.arange(2)}, None, r"has no matrix \('a' of shape \(2,\)\)"),
        ({"a": np.eye(2)}, "b", r"no array 'b' \(vector_column\); it has 'a' of shape \(2, 2\)"),
        ({"a": np.arange(2)}, "a", r"is int64 of shape \(2,\); it must be a matrix of numbers"),
        ({}, None, r"has no matrix \(no array\)"),
    ],
)
def test_an_archive_without_a_certain_matrix_is_refused(tmp_path, arrays, asked, message):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_embeddings(tmp_path / "v.npz", vector_column=asked)


def test_what_is_no_array_in_an_archive_is_left_out(tmp_path):
    np.savez(tmp_path / "v.npz", vectors=np.float32(ROWS), id=IDS)
    with ZipFile(tmp_path / "v.npz", "a") as archive:
        archive.writestr("notes.txt", "of 2026")
    assert read_embeddings(tmp_path / "v.npz").columns == {"id": IDS}
    with ZipFile(tmp_path / "sheet.npz", "w") as archive:  # a spreadsheet under another name
        archive.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(DataError, match=r"sheet\.npz: has no matrix \('xl/workbook\.xml' of bytes that are no array\)"):
        read_embeddings(tmp_path / "sheet.npz")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["v.csv", "v.txt", "v.parquet", "v.npy", "v.npz", "part-00000"])
def test_packed_files_are_read_as_what_they_hold(tmp_path, name, pack):
    plain, packed = tmp_path / name, tmp_path / f"{name}{SUFFIXES[pack]}"
    if plain.suffix == ".parquet":
        pq.write_table(pa.table({"id": IDS, "vector": ROWS}), plain)
    elif plain.suffix == ".npy":
        np.save(plain, np.float32(ROWS))
        pq.write_table(pa.table({"id": IDS}), tmp_path / "v.rows.parquet")
    elif plain.suffix == ".npz":
        np.savez(plain, vectors=np.float32(ROWS), id=IDS)
    else:
        table(plain, between(" "), delimiter="," if plain.suffix == ".csv" else "\x01")
    packed.write_bytes(pack(plain.read_bytes()))
    plain.unlink()
    batches = list(iterate_embeddings(packed, batch_rows=1))
    np.testing.assert_array_equal([batch.vectors[0] for batch in batches], np.float32(ROWS))
    assert [batch.columns for batch in batches] == [{"id": [one]} for one in IDS]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="archive is broken or cut short"):
        read_embeddings(packed)


def test_columns_beside_a_packed_matrix_are_no_vectors_of_their_own(tmp_path):
    for number, name in enumerate(["a.npy", "B.NPY"]):
        np.save(tmp_path / "plain", np.float32(ROWS)[[number]])
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / "plain.npy").read_bytes()))
        pq.write_table(pa.table({"id": [IDS[number]]}), tmp_path / f"{name[0]}.rows.parquet")
    (tmp_path / "plain.npy").unlink()
    assert read_embeddings(tmp_path).columns == {"id": IDS[::-1]}


@pytest.mark.parametrize("name", ["v.orc", "v.arrow", "part-00000"])
def test_orc_and_arrow_are_read_as_parquet_is(tmp_path, name):
    columns = pa.table({"id": IDS, "tags": [["x"]] * 2, "embedding": pa.array(ROWS, pa.list_(pa.float32()))})
    if name == "v.arrow":
        with pa.ipc.new_file(tmp_path / name, columns.schema) as file:
            file.write_table(columns)
    else:
        orc.write_table(columns, tmp_path / name)
    read = read_embeddings(tmp_path / name)
    np.testing.assert_array_equal(read.vectors, np.float32(ROWS))
    assert read.columns == {"id": IDS}
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    with pytest.raises(DataError, match=name):
        read_embeddings(tmp_path / name)


def test_json_lines_hold_a_list_under_a_key(tmp_path):
    lines = [{"id": row_id, "embedding": row, "meta": {"n": 1}} for row_id, row in zip(IDS, [[1, 2, 3], ROWS[1]], strict=True)]
    path = tmp_path / "v.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    read = read_embeddings(path)
    np.testing.assert_array_equal(read.vectors, np.float32([[1, 2, 3], ROWS[1]]))
    assert read.columns == {"id": IDS}
    path.write_text('{"embedding": [1, 2]}\n{"embedding": [1, 2', encoding="utf-8")
    with pytest.raises(DataError, match=r"v\.jsonl: cannot be read as JSON lines"):
        read_embeddings(path)
    path.write_text('{"embedding": [1, 2]}\n{"id": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="row 2: the vector is empty"):
        read_embeddings(path)


@pytest.mark.parametrize("content", ["id,vector\n甲,1 2\n".encode("utf-16"), b"%PDF-1.4"])
def test_what_is_no_text_is_not_read_as_text(tmp_path, content):
    (tmp_path / "v.csv").write_bytes(content)
    if content.startswith(b"%"):
        with pytest.raises(DataError, match=r"v\.csv: is a PDF document"):
            read_embeddings(tmp_path / "v.csv")
    else:
        assert read_embeddings(tmp_path / "v.csv").columns == {"id": ["甲"]}


def test_two_columns_that_may_be_the_vector_are_told_by_name(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text("id,title_emb,body_emb\n甲,1 2,3 4\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"'title_emb', 'body_emb' may all hold the vectors; name one with --vector_column"):
        read_embeddings(path)
    read = read_embeddings(path, vector_column="body_emb")
    assert (read.vectors.tolist(), read.columns) == ([[3, 4]], {"id": ["甲"], "title_emb": ["1 2"]})
    with pytest.raises(DataError, match=r"no column 'body_em' \(vector_column\).*did you mean 'body_emb'"):
        read_embeddings(path, vector_column="body_em")
    with pytest.raises(DataError, match=r"'body_emb' \(label_column\) holds the vectors themselves"):
        read_embeddings(path, columns={"body_emb": "label_column"}, vector_column="body_emb")
