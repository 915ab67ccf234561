"""The verb that draws maps: rows in, picture, page, numbers and atlas out, and nothing computed twice."""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebr import VisualizationConfig, visualize_embeddings
from ebr.data.embeddings import write_embeddings
from ebr.errors import ConfigError, DataError
from ebr.visualization import projection
from ebr.workflow import plan_visualization


def blobs(n_rows, n_labels=3, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_labels, dim)) * 4
    return (centres[np.arange(n_rows) % n_labels] + rng.normal(size=(n_rows, dim))).astype(np.float32)


def write(path, vectors, **columns):
    n_rows = len(vectors)
    base = {
        "id": [f"r{row}" for row in range(n_rows)],
        "label": [f"kind {row % 3}" for row in range(n_rows)],
        "text": [f"the text of row {row}" for row in range(n_rows)],
    }
    write_embeddings(path, {name: cells for name, cells in {**base, **columns}.items() if cells is not None}, vectors)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    monkeypatch.setenv("EBR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def run(path, here, **options):
    said = []
    base = {"embeddings_path": path, "output_path": here / "map.png", "method": "pca"}
    return visualize_embeddings(VisualizationConfig(**{**base, **options}), say=said.append), said


@pytest.fixture
def projected(monkeypatch):
    """Every projection that is computed, by its name."""
    calls = []
    for name in ("project_tsne", "project_umap", "project_pca"):
        real = getattr(projection, name)
        monkeypatch.setattr(projection, name, lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k))
    return calls


# ---------------------------------------------------------------- what is made


def test_a_map_is_a_picture_a_page_and_their_numbers(here):
    result, _ = run(write(here / "v.parquet", blobs(40)), here)
    assert (result.picture, result.page, result.atlas) == (here / "map.png", here / "map.html", None)
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    assert "the text of row 39" in result.page.read_text(encoding="utf-8")
    numbers = json.loads(result.numbers.read_text(encoding="utf-8"))
    assert numbers["n_rows"] == 40
    assert [one["method"] for one in numbers["maps"]] == ["PCA"]
    assert numbers["quality"]["map"]["n_labels"] == 3
    assert {path.name for path in here.iterdir()} == {
        "cache",
        "map.html",
        "map.json",
        "map.png",
        "v.parquet",
        "v.parquet.manifest.json",
    }
    summary = result.summary()
    assert all(str(path) in summary for path in (result.picture, result.page, result.numbers))


def test_a_page_alone_and_a_picture_alone(here):
    path = write(here / "v.parquet", blobs(12))
    alone, _ = run(path, here, output_path=here / "only.html")
    assert (alone.picture, alone.page) == (None, here / "only.html")
    assert not (here / "only.png").exists()
    picture, _ = run(path, here, output_path=here / "p.svg", page=False)
    assert (picture.page, (here / "p.html").exists()) == (None, False)
    assert (here / "p.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_an_atlas_holds_every_row_and_says_how_to_open_it(here):
    result, _ = run(write(here / "v.parquet", blobs(30)), here, export="atlas")
    table = pq.read_table(result.atlas)
    assert table.num_rows == 30
    assert {"x", "y", "id", "label", "text"} <= set(table.column_names)
    assert "embedding-atlas" in result.summary()


def test_the_numbers_run_the_map_again(here):
    from ebr.config.options import read_record

    result, _ = run(write(here / "v.parquet", blobs(20)), here, title="标题")
    again = VisualizationConfig(**read_record(result.numbers))
    assert (again.title, again.method, again.output_path) == ("标题", "pca", here / "map.png")


def test_a_plan_draws_nothing(here):
    path = write(here / "v.parquet", blobs(20))
    plan = plan_visualization(VisualizationConfig(embeddings_path=path, output_path=here / "map.png"))
    assert plan.lines()[0] == f"input   {path}: 20 vectors of 12, 3 labels"
    assert not (here / "map.png").exists()


# ---------------------------------------------------------------- nothing is computed twice


@pytest.mark.parametrize(
    "change",
    [
        {"title": "other"},
        {"label_column": "text"},
        {"theme": "dark"},
        {"output_path": "x.svg"},
        {"language": "zh"},
        {"page": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_redraw_projects_nothing(here, projected, change, monkeypatch):
    monkeypatch.chdir(here)
    path = write(here / "v.parquet", blobs(20))
    run(path, here)
    assert projected == ["project_pca"]
    run(path, here, **change)
    assert projected == ["project_pca"]


@pytest.mark.parametrize(
    "change", [{"seed": 7}, {"mode": "fast"}, {"max_points": 15}, {"method": "tsne"}, {"cache": False}, {}]
)
def test_other_vectors_and_settings_are_projected_anew(here, projected, change):
    run(write(here / "v.parquet", blobs(20)), here)
    path = here / "v.parquet" if change else write(here / "w.parquet", blobs(20, seed=1))
    run(path, here, **change)
    assert len(projected) == 2


def test_a_redraw_is_the_first_map_bit_for_bit(here):
    path = write(here / "v.parquet", blobs(40))
    first, _ = run(path, here, method="tsne")
    kept = first.picture.read_bytes(), first.page.read_bytes(), first.numbers.read_bytes()
    second, _ = run(path, here, method="tsne")
    assert (second.picture.read_bytes(), second.page.read_bytes(), second.numbers.read_bytes()) == kept
    assert first.lines == second.lines


def test_a_format_changes_neither_coordinates_nor_key(here, projected):
    vectors = blobs(20)
    run(write(here / "v.parquet", vectors), here)
    run(write(here / "v.npy", vectors), here)
    assert projected == ["project_pca"]


# ---------------------------------------------------------------- too many rows


def test_beyond_max_points_a_sample_is_drawn(here):
    result, said = run(write(here / "v.parquet", blobs(90)), here, max_points=30)
    assert "a sample of 30 of 90 rows, every label in proportion (max_points)" in said
    assert json.loads(result.numbers.read_text())["n_rows"] == 30
    assert result.lines[0].startswith("30 labelled rows, 3 labels")


def test_beyond_max_points_the_rest_is_placed_among_its_neighbours(here):
    vectors = blobs(90)
    result, _ = run(
        write(here / "v.parquet", vectors), here, max_points=30, over_max_points="place", export="atlas", method="tsne"
    )
    table = pq.read_table(result.atlas)
    points = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    assert len(points) == 90
    # Three far clusters: each row lies nearer to the middle of its own on the map than to any other.
    labels = np.arange(90) % 3
    middles = np.stack([np.median(points[labels == one], axis=0) for one in range(3)])
    nearest = np.linalg.norm(points[:, None] - middles[None], axis=2).argmin(axis=1)
    assert (nearest == labels).mean() > 0.95


def test_beyond_max_points_all_may_be_projected(here):
    result, _ = run(write(here / "v.parquet", blobs(90)), here, max_points=30, over_max_points="project")
    assert json.loads(result.numbers.read_text())["n_rows"] == 90


# ---------------------------------------------------------------- before and after


def pair(here, n_rows=60):
    """The same rows twice, in another order the second time; row r5 moves from its cluster into another."""
    after = blobs(n_rows)
    before = after.copy()
    after[5] = after[6]
    order = np.random.default_rng(3).permutation(n_rows)
    ids = [f"r{row}" for row in range(n_rows)]
    old = write(here / "old.parquet", before[order], id=[ids[row] for row in order], label=None, text=None)
    return old, write(here / "new.parquet", after)


def test_before_and_after_lie_side_by_side_and_name_what_moved(here):
    old, new = pair(here)
    result, _ = run(new, here, before_path=old, method="tsne")
    numbers = json.loads(result.numbers.read_text())
    assert [one["title"] for one in numbers["maps"]] == ["before · t-SNE", "after · t-SNE"]
    assert list(numbers["quality"]) == ["before", "after"]
    assert numbers["moved_most"][0] == {"id": "r5", "changed": 1.0}
    assert any("r5" in line and "the text of row 5" in line for line in result.lines)


def test_a_model_against_itself_moves_nothing(here):
    path = write(here / "v.parquet", blobs(40))
    result, _ = run(path, here, before_path=path, method="tsne", export="atlas")
    assert {one["changed"] for one in json.loads(result.numbers.read_text())["moved_most"]} == {0.0}


def test_rows_of_one_file_alone_are_left_out(here):
    old = write(here / "old.parquet", blobs(30)[:20])
    result, said = run(write(here / "new.parquet", blobs(30)), here, before_path=old)
    assert "warning: 10 rows stand in only one of the two files and are left out" in said
    assert json.loads(result.numbers.read_text())["n_rows"] == 20


def test_without_ids_equal_counts_are_matched_by_order_and_others_refused(here):
    new = write(here / "new.parquet", blobs(20), id=None)
    run(new, here, before_path=write(here / "old.parquet", blobs(20), id=None))
    with pytest.raises(DataError, match=r"before_path .*: 19 rows, but embeddings_path 20; without a column 'id'"):
        run(new, here, before_path=write(here / "less.parquet", blobs(19), id=None))


def test_ids_that_stand_twice_are_refused(here):
    new = write(here / "new.parquet", blobs(20))
    with pytest.raises(DataError, match=r"old.parquet: ids stand twice in its column 'id' \(id_column\)"):
        run(new, here, before_path=write(here / "old.parquet", blobs(20), id=["r1"] * 20))


def test_before_and_after_share_one_sample(here):
    with pytest.raises(ConfigError, match="over_max_points place: not with before_path"):
        run(here / "a", here, before_path=here / "b", over_max_points="place")


# ---------------------------------------------------------------- odd rows


def test_a_missing_column_is_named_with_those_that_are_there(here):
    path = write(here / "v.parquet", blobs(10))
    for option in ("label_column", "id_column", "text_column"):
        with pytest.raises(DataError, match=rf"v.parquet: no column 'nix' \({option}\); it has 'id', 'label', 'text'"):
            run(path, here, **{option: "nix"})
    assert not (here / "map.png").exists()


def test_names_are_no_numbers(here):
    with pytest.raises(DataError, match=r"column 'label' holds no number \(label_kind numbers\); leave it at auto"):
        run(write(here / "v.parquet", blobs(10)), here, label_kind="numbers")


def test_rows_without_ids_have_numbers(here):
    result, _ = run(write(here / "v.parquet", blobs(10), id=None), here)
    assert result.page.exists()


def test_a_vector_of_nan_is_one_sentence_with_its_row(here):
    vectors = blobs(20)
    vectors[7, 3] = np.nan
    np.save(here / "v.npy", vectors)
    pq.write_table(pa.table({"label": [f"kind {row % 3}" for row in range(20)]}), here / "v.rows.parquet")
    with pytest.raises(DataError, match=r"v.npy: row 8: the vector holds nan"):
        run(here / "v.npy", here)
    assert not (here / "map.png").exists()


ODD = {
    "one point": (1, {}),
    "two points": (2, {}),
    "three points": (3, {}),
    "five points": (5, {}),
    "one label": (20, {"label": ["same"] * 20}),
    "all labels different": (20, {"label": [f"n{row}" for row in range(20)]}),
    "missing labels": (20, {"label": [None, "a", ""] * 6 + ["b", "b"]}),
    "no label at all": (20, {"label": [""] * 20}),
    "signs": (20, {"label": ["$x_1$ & <b>", "a_b_c^2", "😀 \\alpha", "\n\t", "x" * 200] * 4}),
    "numbers": (20, {"label": [str(row / 7) for row in range(20)]}),
    "numbers with gaps": (20, {"label": [str(row / 7) if row % 4 else None for row in range(20)]}),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_rows_end_in_a_map(here, case):
    n_rows, columns = ODD[case]
    result, _ = run(write(here / "v.parquet", blobs(n_rows), **columns), here, method="tsne")
    assert result.picture.stat().st_size > 5000
    assert json.loads(result.numbers.read_text())["n_rows"] == n_rows


@pytest.mark.parametrize("kind", ["constant", "zero", "duplicates"])
def test_vectors_that_hardly_differ_end_in_a_map(here, kind):
    vectors = {"constant": np.ones((20, 12)), "zero": np.zeros((20, 12)), "duplicates": np.repeat(blobs(4), 10, axis=0)}[kind]
    result, _ = run(write(here / "v.parquet", vectors.astype(np.float32)), here, method="tsne")
    assert result.picture.stat().st_size > 5000


# ---------------------------------------------------------------- in a notebook


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_notebook_shows_the_picture_and_the_table(here, monkeypatch, capsys, suffix):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda one, **_: shown.append(one))
    result, _ = run(write(here / "v.parquet", blobs(20)), here, output_path=here / f"map{suffix}", page=False)
    result._ipython_display_()
    data = shown[0].data
    assert capsys.readouterr().out == result.summary() + "\n"
    assert "<svg" in data if suffix == ".svg" else data == result.picture.read_bytes()
