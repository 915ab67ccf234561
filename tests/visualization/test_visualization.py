"""The verb that draws maps: rows in, picture, page, numbers and atlas out, and nothing computed twice."""

from __future__ import annotations

import base64
import json
import logging
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread

from ebr import VisualizationConfig, visualize_embeddings
from ebr.data.vectors import embeddings
from ebr.data.vectors.embeddings import write_embeddings
from ebr.errors import ConfigError, DataError
from ebr.visualization.command import plan_visualization
from ebr.visualization.map import files as map_files
from ebr.visualization.project import neighbours, projection, quality


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


def test_the_numbers_of_a_map_without_ids_run_it_again(here):
    from ebr.config.options import read_record

    result, _ = run(write(here / "v.parquet", blobs(20), id=None), here)
    visualize_embeddings(VisualizationConfig(**read_record(result.numbers)), say=lambda _: None)


# ---------------------------------------------------------------- where it goes

ATLAS = {"export": "atlas"}
OVERWRITING = {
    "numbers over vectors": ("emb.json", "emb.png", {}),
    "an atlas over vectors": ("emb.atlas.parquet", "emb.png", ATLAS),
    "numbers over a manifest": ("v.txt", "v.txt.manifest.png", {}),
    "a page into a folder": ("v.txt", "folder.html", {}),
    "numbers over something else": ("v.txt", "mine.png", {}),
    "a picture below a file": ("v.txt", "mine.json/map.png", {}),
}


@pytest.mark.parametrize("case", OVERWRITING)
def test_nothing_is_overwritten_that_no_map_made(here, case):
    source, output, options = OVERWRITING[case]
    (here / "mine.json").write_text('{"title": "my options"}')
    (here / "folder.html").mkdir()
    n_rows = 10
    if source.endswith(".json"):  # made elsewhere
        rows = [{"label": "a", "vector": vector} for vector in blobs(n_rows).tolist()]
        (here / source).write_text(json.dumps(rows), encoding="utf-8")
    else:
        write_embeddings(here / source, {"label": ["a"] * n_rows}, blobs(n_rows))
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"output_path .*(give another name|can be written to)"):
        run(here / source, here, output_path=here / output, **options)
    assert {path: path.read_bytes() for path in here.iterdir() if path.is_file()} == before


def test_an_output_in_a_folder_of_vectors_is_refused(here):
    (here / "parts").mkdir()
    np.save(here / "parts" / "a.npy", blobs(10))
    pq.write_table(pa.table({"label": ["a"] * 10}), here / "parts" / "a.rows.parquet")
    with pytest.raises(ConfigError, match=r"output_path .*: lies in embeddings_path .*parts; write elsewhere"):
        run(here / "parts", here, output_path=here / "parts" / "map.png")


def test_a_page_of_an_earlier_map_is_told_apart(here):
    path = write(here / "v.parquet", blobs(10))
    run(path, here)
    result, _ = run(path, here, page=False)
    assert f"{here / 'map.html'} is of an earlier map" in result.lines
    assert json.loads(result.numbers.read_text())["files"] == ["map.png", "map.json"]


def test_many_rows_have_a_page_only_where_it_is_asked_for(here, monkeypatch):
    monkeypatch.setattr(map_files, "PAGE_UP_TO", 9)
    path = write(here / "v.parquet", blobs(10))
    result, said = run(path, here)
    assert result.page is None and "no page: 10 rows; --page writes one all the same" in said
    assert run(path, here, page=True)[0].page.exists()


def test_a_title_of_broken_bytes_is_refused_before_anything_is_written(here):
    with pytest.raises(ConfigError, match="title: is not UTF-8"):
        run(write(here / "v.parquet", blobs(10)), here, title="a\udcff")
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


@pytest.mark.parametrize("change", [{"seed": 7}, {"max_points": 15}, {"method": "tsne"}, {"cache": False}, {}])
def test_other_vectors_and_settings_are_projected_anew(here, projected, change):
    run(write(here / "v.parquet", blobs(20)), here)
    path = here / "v.parquet" if change else write(here / "w.parquet", blobs(20, seed=1))
    run(path, here, **change)
    assert len(projected) == 2


def test_mode_is_a_setting_of_tsne_and_none_of_pca(here, projected):
    path = write(here / "v.parquet", blobs(20))
    for method in ("pca", "tsne"):
        for mode in ("reproducible", "fast"):
            run(path, here, method=method, mode=mode)
    assert projected == ["project_pca", "project_tsne", "project_tsne"]


@pytest.mark.parametrize("name", ["v.parquet", "v.txt", "v.npy"])
def test_a_redraw_does_not_read_the_vectors(here, monkeypatch, name):
    path = write(here / name, blobs(20), other=[f"o{row % 4}" for row in range(20)])
    first, _ = run(path, here)
    kept = first.page.read_bytes()
    monkeypatch.setattr(embeddings.VerifiedEmbeddings, "read", None)
    again, _ = run(path, here)
    assert again.page.read_bytes() == kept
    run(path, here, title="other", label_column="other", theme="dark", output_path=here / "map.svg")


def test_columns_that_changed_are_read_again_and_the_same_vectors_are_not_projected_again(here, projected):
    run(write(here / "v.parquet", blobs(20)), here)
    result, _ = run(write(here / "v.parquet", blobs(20), text=[f"new {row}" for row in range(20)]), here)
    assert "new 19" in result.page.read_text(encoding="utf-8") and "the text of row 19" not in result.page.read_text()
    assert projected == ["project_pca"]


def test_a_file_that_its_manifest_does_not_know_is_refused_although_its_columns_are_kept(here):
    path = write(here / "v.txt", blobs(20))
    run(path, here)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DataError, match=r"v.txt: differs from what its manifest recorded"):
        run(path, here)


def test_vectors_that_change_between_two_readings_are_refused(here, monkeypatch):
    path = write(here / "v.npy", blobs(20))
    (here / "v.npy.manifest.json").unlink()
    run(path, here)
    real = embeddings.VerifiedEmbeddings.read
    monkeypatch.setattr(
        embeddings.VerifiedEmbeddings, "read", lambda *a, **k: np.save(path, blobs(20, seed=1)) or real(*a, **k)
    )
    with pytest.raises(DataError, match=r"v.npy: changed while it was read; draw the map again"):
        run(path, here, method="tsne")


def test_other_columns_are_measured_ahead(here, monkeypatch):
    path = write(here / "v.parquet", blobs(20), other=[f"o{row % 4}" for row in range(20)])
    run(path, here)
    monkeypatch.setattr(quality, "cluster_quality", None)
    result, _ = run(path, here, label_column="other")
    assert result.lines[0].startswith("20 labelled rows, 4 labels")


def test_one_search_finds_the_neighbours_of_both_projections_and_of_the_page(here, monkeypatch):
    asked, real = [], neighbours.neighbours_of_unit_rows
    monkeypatch.setattr(neighbours, "neighbours_of_unit_rows", lambda rows, k, **how: asked.append(k) or real(rows, k, **how))
    result, _ = run(write(here / "v.parquet", blobs(60)), here, method="both")
    assert asked == [59]  # three times the perplexity, which is a third of the others
    assert json.loads(result.numbers.read_text())["neighbours"] == {"k": 10, "search": "exact"}


@pytest.mark.parametrize(
    ("before", "method"),
    [({"method": "tsne", "page": False}, "tsne"), ({"method": "both"}, "umap"), ({"method": "umap"}, "both")],
)
def test_beyond_the_exact_search_a_page_does_not_depend_on_what_was_drawn_before(here, monkeypatch, before, method):
    exact = neighbours.nearest_neighbours

    def found_about(vectors, k, **how):
        """As NN-descent does: of a wider search, the first ten are others."""
        indices, similarities, _ = vars(exact(vectors, k, **how)).values()
        return neighbours.Neighbours(np.roll(indices, k // 2, axis=1), similarities, exact=False)

    def drawn_by_them(vectors, *, neighbours=None, **_):
        return projection.Projection("map", neighbours.indices[:, :2].astype(np.float32), {})

    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 20)
    monkeypatch.setattr(neighbours, "nearest_neighbours", found_about)
    monkeypatch.setattr(projection, "project_tsne", drawn_by_them)
    monkeypatch.setattr(projection, "project_umap", drawn_by_them)
    path = write(here / "v.parquet", blobs(60))
    fresh, _ = run(path, here, method=method, output_path=here / "map.html")
    expected = fresh.page.read_bytes()
    monkeypatch.setenv("EBR_CACHE_DIR", str(here / "another cache"))
    run(path, here, **before)
    again, _ = run(path, here, method=method, output_path=here / "map.html")
    assert again.page.read_bytes() == expected


def test_ids_of_classes_are_measured_as_the_same_classes_by_name(here):
    numbers = [str(1000 + row % 15) for row in range(60)]
    path = write(here / "v.parquet", blobs(60, 15), number=numbers, name=[f"c{one}" for one in numbers])
    (by_number, said), (by_name, _) = (run(path, here, label_column=column) for column in ("number", "name"))
    assert by_number.lines == by_name.lines
    assert [line for line in said if "--label_kind numbers" in line] == [
        "labels  'number' holds 15 different whole numbers, taken for classes; if they measure something: --label_kind numbers"
    ]


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
    assert "shown   a sample of 30 of 90 rows, every label in proportion (max_points)" in said
    numbers = json.loads(result.numbers.read_text())
    assert (numbers["n_rows"], numbers["n_rows_of_the_file"]) == (30, 90)
    assert '"n_all":90' in result.page.read_text(encoding="utf-8")
    assert result.lines[0].startswith("30 labelled rows, 3 labels")


def test_a_sample_by_a_column_of_numbers_reaches_from_the_least_to_the_largest(here):
    path = write(here / "v.parquet", blobs(300), label=[f"{row / 7:.4f}" for row in range(300)])
    result, said = run(path, here, max_points=100, export="atlas")
    assert "shown   a sample of 100 of 300 rows, at random (max_points)" in said
    values = np.array(pq.read_table(result.atlas)["label"].to_pylist(), float)
    assert values.min() < 30 / 7 and values.max() > 270 / 7
    assert result.lines[0] == "100 rows with a number"
    assert json.loads(result.numbers.read_text())["quality"]["map"]["silhouette"]["reason"].startswith(
        "the column holds numbers"
    )


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
    assert json.loads(result.numbers.read_text())["moved_most"] == []
    assert "no row has other neighbours than before" in result.lines


def test_rows_of_one_file_alone_are_left_out(here):
    old = write(here / "old.parquet", blobs(30)[:20])
    result, said = run(write(here / "new.parquet", blobs(30)), here, before_path=old)
    assert "warning: 10 rows stand in only one of the two files, or have no id, and are left out" in said
    assert json.loads(result.numbers.read_text())["n_rows"] == 20


def test_without_ids_equal_counts_are_matched_by_order_and_others_refused(here):
    new = write(here / "new.parquet", blobs(20), id=None)
    _, said = run(new, here, before_path=write(here / "old.parquet", blobs(20), id=None))
    assert "warning: neither file has ids: rows are matched by their order" in said
    with pytest.raises(DataError, match=r"before_path .*: 19 rows, but embeddings_path 20; without a column 'id'"):
        run(new, here, before_path=write(here / "less.parquet", blobs(19), id=None))


@pytest.mark.parametrize("lacks", ["old", "new"])
def test_ids_in_one_file_alone_match_nothing(here, lacks):
    files = {
        name: write(here / f"{name}.parquet", blobs(20), **({"id": None} if name == lacks else {})) for name in ("old", "new")
    }
    with pytest.raises(DataError, match=rf"{lacks}.parquet: no column 'id' \(id_column\), by which"):
        run(files["new"], here, before_path=files["old"])


def test_rows_without_an_id_are_no_pair(here):
    ids = [f"r{row}" for row in range(19)]
    old = write(here / "old.parquet", blobs(20), id=["", *ids])
    result, said = run(write(here / "new.parquet", np.roll(blobs(20), -1, axis=0), id=[*ids, None]), here, before_path=old)
    assert any(line.startswith("warning: 2 rows stand in only one") for line in said)
    numbers = json.loads(result.numbers.read_text())
    assert (numbers["n_rows"], numbers["moved_most"]) == (19, [])


def test_a_missing_file_is_named_by_its_option(here):
    new = write(here / "new.parquet", blobs(20))
    with pytest.raises(DataError, match=r"before_path .*nix: no such file"):
        run(new, here, before_path=here / "nix")


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


def test_a_bare_matrix_is_drawn_in_one_colour(here):
    np.save(here / "v.npy", blobs(40))
    result, said = run(here / "v.npy", here)
    assert "labels  none, so all have one colour" in said
    assert result.lines[0] == "0 labelled rows, 0 labels; 40 rows without a label are left out"
    assert not [line for line in result.lines if "undefined" in line]
    colours = imread(result.picture)[..., :3].reshape(-1, 3)
    coloured = colours[np.ptp(colours, axis=1) > 0.5]
    assert len(coloured) and (np.diff(coloured, axis=1) > 0).all()  # shades of one blue


@pytest.mark.parametrize("cache", [True, False])
def test_a_table_without_labels_begins_in_one_colour_and_offers_its_columns(here, cache):
    path = write(here / "v.parquet", blobs(40), label=None, topic=[f"t{row % 4}" for row in range(40)])
    result, said = run(path, here, cache=cache, max_points=30)
    assert "labels  none, so all have one colour; name a column with --label_column: 'text', 'topic'" in said
    assert [line for line in said if "at random" in line]
    data = json.loads(re.search(r'<script[^>]* id="data">(.*?)</script>', result.page.read_text(encoding="utf-8"))[1])
    assert (data["start"], [column["name"] for column in data["columns"]]) == (-1, ["topic"])
    run(here / "v.parquet", here, label_column="topic")


@pytest.mark.parametrize("label_column", ["label", None])
def test_numbers_of_a_map_in_one_colour_run_it_again(here, label_column):
    path = write(here / "v.parquet", blobs(20), **({"label": None} if label_column else {}))
    result, _ = run(path, here, label_column=label_column)
    again = VisualizationConfig.from_dict(json.loads(result.numbers.read_text())["config"])
    assert visualize_embeddings(again, say=lambda _: None).lines == result.lines
    assert result.lines[0] == "0 labelled rows, 0 labels; 20 rows without a label are left out"


def test_lists_records_and_bytes_beside_the_vectors_do_not_keep_a_map_from_being_drawn(here, caplog):
    columns = {
        "embedding": pa.array(blobs(12).tolist()),
        "label": pa.array(["a", "b"] * 6),
        "tags": pa.array([["x"]] * 12),
        "box": pa.array([{"w": 1}] * 12),
        "image": pa.array([b"\xff\xd8"] * 12),
    }
    pq.write_table(pa.table(columns), here / "v.parquet")
    for cache in (True, True, False):  # the second time from the cache
        result, _ = run(here / "v.parquet", here, cache=cache)
        assert result.lines[0] == "12 labelled rows, 2 labels"
        with pytest.raises(DataError, match=r"column 'tags' \(label_column\) is no text: list<.*string>; choose another"):
            run(here / "v.parquet", here, cache=cache, label_column="tags")


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
    "numbers of any size": (20, {"label": [f"{'-' * (row % 2)}1.{row}e308" for row in range(20)]}),
    "names that cannot be seen": (40, {"label": [chr(1 + row % 20) for row in range(40)]}),
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
def test_a_notebook_shows_the_picture_and_the_table(here, monkeypatch, suffix):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    result, _ = run(write(here / "v.parquet", blobs(20)), here, output_path=here / f"map{suffix}", page=False)
    result._ipython_display_()
    picture, table = shown
    if suffix == ".svg":
        assert "<svg" in picture["image/svg+xml"]
    else:
        assert base64.b64decode(picture["image/png"]) == result.picture.read_bytes()
    assert table["text/plain"] == result.summary()
    assert table["text/html"].count("<tr>") == 1 + len(result.to_frame()) + 2  # head, figures, picture and numbers


def test_of_two_models_each_map_stands_with_the_vectors_that_it_is_of(here):
    old, new = write(here / "old.parquet", blobs(20)), write(here / "new.parquet", np.roll(blobs(20), 3, axis=0))
    result, _ = run(new, here, before_path=old, method="pca")
    trust = result.to_frame().query("measure == 'trustworthiness'")
    assert [map_name.split()[0] for map_name in trust["map"]] == trust["vectors"].tolist() == ["before", "after"]
    printed = [line.split()[0] for line in result.lines if line.startswith(("before", "after", "trustworthiness"))]
    assert printed == ["before", "trustworthiness,", "after", "trustworthiness,"]


def test_a_map_has_in_its_frame_what_it_prints(here):
    result, _ = run(write(here / "v.parquet", blobs(20)), here)
    frame = result.to_frame()
    assert {"silhouette", "trustworthiness", "chance_overlap"} <= set(frame["measure"])
    for row in frame.itertuples():
        name = f"{row.name}, {row.map}" if row.map else row.name
        (line,) = [line for line in result.lines if line.startswith(f"{name}  ")]
        value = "-" if row.value is None or row.value != row.value else f"{row.value:,.3f}"
        assert line.split(name)[1].split() == [value, f"{row.n_rows:,}", *row.meaning.split()]
