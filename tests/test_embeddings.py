"""Vector files: every float32 reads back bit for bit, a changed file is refused, a failed write leaves what was there."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ebr.data.embeddings import format_vectors, parse_vectors, read_embeddings, vector_file
from ebr.data.files import hash_file, manifest_path
from ebr.errors import DataError

QUICK = settings(deadline=None, max_examples=30, database=None)

LARGEST = np.finfo(np.float32).max
SMALLEST = np.float32(1e-45)  # subnormal, one bit
VECTORS = np.array([[0.1, -0.0, LARGEST], [SMALLEST, -1 / 3, 1e-7]], dtype=np.float32)
ROWS = [["1", '北京 "大学"'], ["2", ""]]

finite = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def write(path, rows=ROWS, vectors=VECTORS, columns=("id", "title"), delimiter="\x01", **facts):
    with vector_file(path, columns, delimiter) as writer:
        writer.write(rows, vectors)
        writer.facts |= facts
    return path


def foreign(path, text):
    """A vector file without a manifest."""
    path.write_text(text.replace("|", "\x01"), encoding="utf-8")
    return path


@QUICK
@given(finite)
@example(VECTORS)
@example(-VECTORS)
def test_vector_text_names_the_same_float32_bit_for_bit(vectors):
    again = parse_vectors(format_vectors(vectors))
    assert again.dtype == np.float32
    assert again.shape == vectors.shape
    assert again.tobytes() == vectors.tobytes()


def test_vector_text_by_hand():
    assert format_vectors(np.array([[0.1, -0.0, 2]], dtype=np.float32)) == ["0.100000001 -0 2"]


def test_vectors_of_unequal_length_are_no_matrix():
    with pytest.raises(ValueError, match="same shape"):
        parse_vectors(["1 2", "1"])


@pytest.mark.parametrize("delimiter", ["\x01", ",", "\t"])
def test_what_is_written_is_read_back(tmp_path, delimiter):
    path = write(tmp_path / "v.txt", delimiter=delimiter, model="m")
    read = read_embeddings(path, "the manifest knows better")
    assert read.columns == {"id": ["1", "2"], "title": ['北京 "大学"', ""]}
    assert read.vectors.tobytes() == VECTORS.tobytes()
    assert read.manifest == {
        "kind": "embeddings",
        "delimiter": delimiter,
        "sha256": hash_file(path),
        "n_rows": 2,
        "dim": 3,
        "dtype": "float32",
        "columns": ["id", "title"],
        "model": "m",
    }


def test_chunks_are_appended(tmp_path):
    with vector_file(tmp_path / "v.txt", ["id"], "\x01") as writer:
        for index in range(3):
            writer.write([[str(index)]], VECTORS[:1] * np.float32(0.5**index))
    read = read_embeddings(tmp_path / "v.txt", "\x01")
    assert read.columns["id"] == ["0", "1", "2"]
    assert read.manifest["n_rows"] == 3
    assert read.vectors[:, 0].tolist() == [np.float32(0.1), np.float32(0.05), np.float32(0.025)]


def test_line_ends_in_cells_survive_a_comma_file(tmp_path):
    rows = [["1", 'two\nlines, "quoted"'], ["2", "a\rb"]]
    assert read_embeddings(write(tmp_path / "v.txt", rows, delimiter=","), ",").columns["title"] == [rows[0][1], rows[1][1]]


def test_changed_file_is_refused_until_its_manifest_is_gone(tmp_path, caplog):
    path = write(tmp_path / "v.txt")
    path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2"))
    with pytest.raises(
        DataError, match=r"v\.txt: differs from what its manifest recorded; .* or delete v\.txt\.manifest\.json$"
    ):
        read_embeddings(path, "\x01")
    manifest_path(path).unlink()
    assert read_embeddings(path, "\x01").vectors[0, 0] == np.float32(0.200000001)


def test_foreign_file_loads_with_one_line_of_what_is_assumed(tmp_path, caplog):
    path = foreign(tmp_path / "v.txt", "vector|id\n1 2|a\n3 4.5|b\n")
    with caplog.at_level(logging.INFO, logger="ebr"):
        read = read_embeddings(path, "\x01")
    assert (read.vectors.tolist(), read.columns, read.manifest) == ([[1, 2], [3, 4.5]], {"id": ["a", "b"]}, None)
    (message,) = caplog.messages
    assert "no manifest" in message
    assert r"assuming delimiter '\x01'" in message


def test_own_file_loads_silently(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="ebr"):
        read_embeddings(write(tmp_path / "v.txt"), "\x01")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id|vector\na|1 2\nb|1 nan\n", "v.txt:3: the vector holds nan or inf"),
        ("id|vector\na|1 -inf\n", "v.txt:2: the vector holds nan or inf"),
        ("id|vector\na|1 2\n\nb|1\n", "v.txt:4: the vector has 1 numbers where the first has 2"),
        ("id|vector\na|1 2\nb|1 2 3\n", "v.txt:3: the vector has 3 numbers where the first has 2"),
        ("id|vector\na|\n", "v.txt:2: the vector is empty"),
        ("id|vector\na|1 2\nb|one two\n", "v.txt:3: the vector is not numbers between spaces: 'one two'"),
        ("id|vector\na|[1, 2]\n", "v.txt:2: the vector is not numbers between spaces: '[1, 2]'"),
        ("id|vector\na|1 2\nb\n", "v.txt:3: 1 columns where the header has 2"),
        ("id|vector\n", "v.txt: holds no rows"),
        ("id|vectr\na|1\n", "v.txt: no column 'vector' (a vector file); it has 'id', 'vectr'; did you mean 'vectr'?"),
        ("", "v.txt: is empty; a table starts with a line of column names"),
    ],
)
def test_unreadable_vector_is_named_by_file_and_line(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        read_embeddings(foreign(tmp_path / "v.txt", text), "\x01")
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_absent_file_says_which_stage_makes_it(tmp_path):
    with pytest.raises(DataError, match="no such file; run the inference stage first"):
        read_embeddings(tmp_path / "v.txt", "\x01")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path / "v.txt")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(RuntimeError, match="engine died"), vector_file(path, ["id"], "\x01") as writer:
        writer.write([["9"]], VECTORS[:1])
        raise RuntimeError("engine died")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_failed_first_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), vector_file(tmp_path / "new" / "v.txt", ["id"], "\x01"):
        raise RuntimeError
    assert list((tmp_path / "new").iterdir()) == []


def test_rows_and_vectors_of_unequal_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match="longer"):
        write(tmp_path / "v.txt", rows=ROWS[:1])
    assert not (tmp_path / "v.txt").exists()


def test_manifest_is_json_beside_the_file(tmp_path):
    path = write(tmp_path / "v.txt")
    assert manifest_path(path) == tmp_path / "v.txt.manifest.json"
    assert json.loads(manifest_path(path).read_text(encoding="utf-8"))["n_rows"] == 2
