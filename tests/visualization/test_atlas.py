"""The export for embedding-atlas: x, y, neighbours as records of row numbers, and the data's own columns as text."""

import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebr.errors import DataError
from ebr.visualization.map import atlas
from ebr.visualization.map.atlas import atlas_command, write_atlas
from ebr.visualization.project.neighbours import Neighbours, nearest_neighbours

COORDS = np.array([[0.5, -1], [2, 3], [4, 5.25]])
COLUMNS = {"id": ["a", "b", "c"], "label": ["水果", "", "Ünïcode"], "text": ["one", "<script>", 'it\'s "three"\n']}
NEAR = Neighbours(np.array([[1, 2], [0, 2], [1, 0]], np.int32), np.array([[0.75, 0.5], [0.75, 0.25], [0.25, -1]], np.float32))
RECORD = pa.struct([pa.field("ids", pa.list_(pa.int32())), pa.field("distances", pa.list_(pa.float32()))])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "my maps" / "map.atlas.parquet"


def test_the_schema_is_the_one_that_embedding_atlas_documents(path):
    write_atlas(path, COORDS, COLUMNS, NEAR)
    assert pq.read_schema(path).remove_metadata() == pa.schema(
        [("x", pa.float32()), ("y", pa.float32()), ("neighbors", RECORD)] + [(name, pa.string()) for name in COLUMNS]
    )


def test_points_neighbours_and_columns_read_back_row_by_row(path):
    write_atlas(path, COORDS, COLUMNS, NEAR)
    assert pq.read_table(path).to_pylist() == [
        {"x": 0.5, "y": -1, "neighbors": {"ids": [1, 2], "distances": [0.25, 0.5]}, "id": "a", "label": "水果", "text": "one"},
        {"x": 2, "y": 3, "neighbors": {"ids": [0, 2], "distances": [0.25, 0.75]}, "id": "b", "label": None, "text": "<script>"},
        {
            "x": 4,
            "y": 5.25,
            "neighbors": {"ids": [1, 0], "distances": [0.75, 2]},
            "id": "c",
            "label": "Ünïcode",
            "text": 'it\'s "three"\n',
        },
    ]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_atlas_reads_records_as_dictionaries_of_lists(path):
    # It loads by pandas and hands the table on as Arrow.
    write_atlas(path, COORDS, COLUMNS, NEAR)
    frame = pytest.importorskip("pandas").read_parquet(path)
    first = frame["neighbors"][0]
    assert list(first["ids"]) == [1, 2] and list(first["distances"]) == [0.25, 0.5]
    handed_on = pa.Table.from_pandas(frame).schema.field("neighbors").type
    assert set(handed_on) == set(RECORD)  # an older pyarrow sorts them


def test_neighbours_of_an_exact_search_are_row_numbers_from_zero_nearest_first(path):
    vectors = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]])
    write_atlas(path, np.zeros((4, 2)), {}, nearest_neighbours(vectors, 2))
    records = pq.read_table(path)["neighbors"].to_pylist()
    assert [record["ids"] for record in records] == [[2, 3], [3, 2], [0, 3], [1, 2]]
    assert records[0]["distances"] == pytest.approx([1 - 1 / np.sqrt(1.01), 1 - 0.1 / np.sqrt(1.01)], abs=1e-5)


def test_rows_are_written_group_by_group_and_stay_in_order(path, monkeypatch):
    monkeypatch.setattr(atlas, "_GROUP_ROWS", 4)
    coords = np.arange(20.0).reshape(10, 2)
    near = nearest_neighbours(np.random.default_rng(0).normal(size=(10, 3)), 3)
    write_atlas(path, coords, {"id": [str(row) for row in range(10)]}, near)
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    table = pq.read_table(path)
    assert table["id"].to_pylist() == [str(row) for row in range(10)]
    np.testing.assert_array_equal(np.column_stack([table["x"], table["y"]]), coords)
    np.testing.assert_array_equal([record["ids"] for record in table["neighbors"].to_pylist()], near.indices)


def test_columns_of_the_data_never_collide_with_ours_in_any_case(path):
    # DuckDB takes X and x for one name. "x" would become x_1, but the data has that one too.
    columns = {"x": ["1"], "x_1": ["2"], "Y": ["3"], "Neighbors": ["4"], "__row_index__": ["5"], "label": ["6"], "Label": ["7"]}
    write_atlas(path, np.zeros((1, 2)), columns, text_column="Y")
    row = pq.read_table(path).to_pylist()[0]
    assert row == {
        "x": 0,
        "y": 0,
        "x_2": "1",
        "x_1": "2",
        "Y_1": "3",
        "Neighbors_1": "4",
        "__row_index___1": "5",
        "label": "6",
        "Label_1": "7",
    }
    assert atlas_command(path).endswith("--text Y_1")


def test_the_command_names_what_the_file_has_and_is_quoted_for_a_shell(path):
    write_atlas(path, COORDS, COLUMNS, NEAR, text_column="text")
    expected = ["embedding-atlas", str(path), "--x", "x", "--y", "y", "--neighbors", "neighbors", "--text", "text"]
    assert shlex.split(atlas_command(path)) == expected and f"'{path}'" in atlas_command(path)
    write_atlas(path, COORDS, {"$(rm -rf ~)": ["", "", ""]}, text_column="$(rm -rf ~)")
    assert atlas_command(path).endswith("--x x --y y --text '$(rm -rf ~)'")


@pytest.mark.parametrize("n_rows", [0, 1])
def test_no_row_and_a_row_without_neighbours_are_files_too(path, n_rows):
    near = nearest_neighbours(np.ones((n_rows, 3)), 10)
    write_atlas(path, np.zeros((n_rows, 2)), {"id": ["a"] * n_rows}, near)
    assert pq.read_table(path)["neighbors"].to_pylist() == [{"ids": [], "distances": []}] * n_rows


def test_lengths_that_differ_are_refused_and_leave_the_old_file(path):
    write_atlas(path, COORDS, COLUMNS, NEAR)
    with pytest.raises(ValueError, match="2 points but 3 rows of column 'id'"):
        write_atlas(path, COORDS[:2], COLUMNS)
    with pytest.raises(ValueError, match="2 points but 3 rows of neighbours"):
        write_atlas(path, COORDS[:2], {}, NEAR)
    assert pq.read_table(path).num_rows == 3


def test_a_place_that_cannot_be_written_or_a_file_that_is_no_parquet_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be written"):
        write_atlas(tmp_path / "file" / "map.parquet", COORDS, COLUMNS)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        atlas_command(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        atlas_command(Path(tmp_path / "absent.parquet"))
