"""Pictures: every text inside the figure and literal, every label told apart, every file whole."""

import logging
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from ebr.errors import ConfigError
from ebr.visualization.colours import GREYS, PALETTE, readable
from ebr.visualization.picture.columns import MapColumn
from ebr.visualization.picture.plot import SHARED_START, draw_maps, map_figure, method_text, settings_text
from ebr.visualization.project.projection import Projection

ODD_LABELS = ["$x_1$ and $y", "a_b_c", "🎉 party", "W" * 200, "中" * 60, "", "tab\tnew\nline"]
OTHER_COLOUR, MISSING_COLOUR = GREYS["light"]
MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def _projection(n_points, method="t-SNE"):
    coords = np.random.default_rng(0).normal(size=(n_points, 2)).astype(np.float32)
    return Projection(method, coords, {"perplexity": 30.0, "learning rate": "auto"})


def _column(labels, kind="categories"):
    return MapColumn("label", tuple(labels), kind)


def _figure(labels, n_maps=1, **options):
    options.setdefault("title", "vectors")
    return map_figure([_projection(len(labels)) for _ in range(n_maps)], _column(labels), **options)


def _legend_texts(figure: Figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def _points(figure: Figure, panel=0) -> PathCollection:
    (points,) = figure.axes[panel].collections
    return points


def _counts_by_colour(figure: Figure):
    colours, counts = np.unique([to_hex(c).upper() for c in _points(figure).get_facecolors()], return_counts=True)
    return dict(zip(colours.tolist(), counts.tolist(), strict=True))


LONG = [f"{'W' * 40} {i}" for i in range(60)]


@pytest.mark.parametrize(
    ("labels", "n_maps"), [(ODD_LABELS * 3, 1), (ODD_LABELS, 2), (LONG, 1), (["one"], 1), ([f"第{i}类" for i in range(40)], 2)]
)
def test_every_text_lies_inside_the_figure(labels, n_maps):
    marked = [(0, "W" * 300), (len(labels) - 1, "中" * 300)]
    figure = map_figure(
        [_projection(len(labels))] * n_maps,
        MapColumn("a column", tuple(labels)),
        title="W" * 300,
        notes=["trustworthiness 0.9 " * 9, "short"][:n_maps],
        warnings=["do not trust it " * 12] * n_maps,
        marked=marked,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.draw_without_rendering()
    for text in [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text.get_text()
    assert min(axes.get_window_extent().width for axes in figure.axes[:n_maps]) > 600  # what is long does not squeeze the maps


def test_the_legend_lies_right_of_the_points():
    figure = _figure(["a", "b", "W" * 200], 2)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 > max(axes.get_window_extent().x1 for axes in figure.axes)


def test_legend_names_each_label_with_its_count_the_largest_first():
    figure = _figure(["b", "a", "a", "", "b", "c", "b"] + ["d"] * 1200)
    assert _legend_texts(figure) == ["d (1,200)", "b (3)", "a (2)", "c (1)", "(no label) (1)"]
    assert _counts_by_colour(figure) == dict(zip([*PALETTE[:4], MISSING_COLOUR], [1200, 3, 2, 1, 1], strict=True))


def test_twelve_labels_stand_in_a_legend_and_thirteen_at_their_clusters():
    assert len(_legend_texts(_figure([f"label {i:02}" for i in range(12)]))) == 12
    labels = [f"label {i:02}" for i in range(13)] * 4
    figure = map_figure([Projection("t-SNE", _islands(13, 4))], _column(labels), title="x")
    assert not figure.legends
    assert _names(figure) == {f"label {i:02}" for i in range(13)}
    assert figure.axes[0].get_xlabel().split("\n")[-1] == "13 of 13 names shown"


def _islands(n_labels, n_each):
    """(n_labels * n_each, 2): row i belongs to island i % n_labels; the islands stand far apart."""
    rows = np.arange(n_labels * n_each)
    side = int(np.ceil(np.sqrt(n_labels)))
    where = np.stack([rows % n_labels % side, rows % n_labels // side], axis=1) * 100.0
    return (where + np.random.default_rng(0).normal(size=where.shape)).astype(np.float32)


def _names(figure, panel=0):
    return {text.get_text() for text in figure.axes[panel].texts}


def test_a_name_has_a_readable_shade_of_the_colour_of_its_points():
    coords = _islands(16, 5)
    figure = map_figure([Projection("t-SNE", coords)], _column([f"n{i}" for i in range(16)] * 5), title="x")
    points = _points(figure)
    colour_at = dict(zip(map(tuple, points.get_offsets().tolist()), map(to_hex, points.get_facecolors()), strict=True))
    names = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert names == {f"n{i}": readable(colour_at[tuple(coords[i].tolist())], "#FFFFFF") for i in range(16)}


def test_a_name_stands_nearer_to_its_own_cluster_than_to_any_other():
    coords = _islands(16, 5)
    figure = map_figure([Projection("t-SNE", coords)], _column([f"n{i}" for i in range(16)] * 5), title="x")
    axes = figure.axes[0]
    for text in axes.texts:
        place = axes.transData.inverted().transform(axes.transAxes.transform(text.get_position()))
        middles = np.stack([coords[i::16].mean(axis=0) for i in range(16)])
        assert np.linalg.norm(middles - place, axis=1).argmin() == int(text.get_text()[1:])


def test_names_never_overlap_and_those_without_room_are_counted():
    labels = [f"a rather long name {i:02}" for i in range(90)] * 2
    figure = map_figure([Projection("t-SNE", np.zeros((180, 2), np.float32))], _column(labels), title="x")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert 1 < len(boxes) < 90
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert figure.axes[0].get_xlabel().split("\n")[-1] == f"{len(boxes)} of 90 names shown"


def test_beyond_a_hundred_labels_the_smallest_are_grey_and_counted():
    labels = [f"big {i:03}" for i in range(100) for _ in range(3)] + [f"small {i}" for i in range(6)] + ["", ""]
    figure = _figure(labels)
    counts = _counts_by_colour(figure)
    assert (counts[OTHER_COLOUR], counts[MISSING_COLOUR]) == (6, 2)
    assert set(counts) == {*PALETTE, OTHER_COLOUR, MISSING_COLOUR}
    below = figure.axes[0].get_xlabel()
    assert below.endswith("in grey: 6 rows of smaller labels · in pale grey: 2 rows without a label")


def test_numbers_have_a_colour_bar_and_missing_ones_are_grey():
    texts = [str(i) for i in range(30)] + [""]
    figure = map_figure([_projection(31)], MapColumn("price", tuple(texts)), title="x")
    assert len(figure.axes) == 2
    assert figure.axes[1].get_ylabel() == "price"
    assert _counts_by_colour(figure)[MISSING_COLOUR] == 1
    assert len(_counts_by_colour(figure)) > 25


def test_a_dark_picture_has_dark_paper_and_light_words():
    figure = _figure(["a", "b"], theme="dark")
    assert sum(figure.get_facecolor()[:3]) < 0.4
    assert sum(mpl.colors.to_rgb(figure._suptitle.get_color())) > 2.5
    assert sum(mpl.colors.to_rgb(figure.axes[0].title.get_color())) > 2.5


def test_a_chinese_picture_speaks_chinese(caplog):
    figure = _figure(["甲", "甲", ""], language="zh", marked=[(0, "甲")])
    figure.draw_without_rendering()
    assert not caplog.records  # matplotlib warns where a family lacks the weight that is asked for
    assert figure._suptitle.get_text() == "vectors · 3 个点"
    assert figure.axes[0].get_xlabel() == "困惑度 30，学习率 auto"
    assert _legend_texts(figure) == ["甲 (2)", "（无标签）（1）"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"because": "4 points are too few"}, "原因 只有 4 个点"),
        ({"because": "one point is too few"}, "原因 只有一个点"),
        ({"because": "all vectors point the same way"}, "原因 所有向量方向相同"),
        ({"start": SHARED_START, "mode": "fast", "seed": 2024}, "初始位置 微调前的 PCA，模式 快速，随机种子 2024"),
        ({"learning rate": 13015, "placed by neighbours": 980000}, "学习率 13,015，按邻居放置 980,000"),
    ],
)
def test_settings_are_said_in_chinese(settings, said):
    assert settings_text(settings, "zh") == said


def test_a_method_that_was_not_possible_is_said_in_both_languages():
    assert method_text("PCA instead of t-SNE") == "PCA instead of t-SNE"
    assert (method_text("PCA instead of t-SNE", "zh"), method_text("UMAP", "zh")) == ("PCA（代替 t-SNE）", "UMAP")


def test_a_sample_says_of_how_many(caplog):
    assert _figure(["a"] * 3, n_all=9000)._suptitle.get_text() == "vectors · 3 of 9,000 points"
    assert _figure(["a"] * 3, n_all=9000, language="zh")._suptitle.get_text() == "vectors · 9,000 个点中的 3 个"


def _ink(text):
    """The pixels of a text, drawn as a map's title."""
    figure = map_figure([_projection(3)], _column("abc"), title=text)
    figure.draw_without_rendering()
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, 0]
    height = pixels.shape[0]
    return pixels[height - int(box.y1) : height - int(box.y0), int(box.x0) : int(box.x1)]


def test_chinese_is_drawn_and_not_as_boxes():
    # Characters that no font has are all one box: equal pictures. Those that are drawn differ.
    one, other = _ink("中" * 8), _ink("国" * 8)
    assert (one < 128).mean() > 0.05
    assert one.shape != other.shape or (one != other).mean() > 0.05


def test_what_moved_is_ringed_by_number_on_every_map_and_listed():
    figure = map_figure([_projection(9), _projection(9)], _column("abcabcabc"), title="x", marked=[(4, "four"), (7, "seven")])
    for axes in figure.axes[:2]:
        assert [text.get_text() for text in axes.texts] == ["1", "2"]
        rings = [line.get_xydata()[0] for line in axes.lines]
        np.testing.assert_array_equal(np.float32(rings), _projection(9).coords[[4, 7]])
    assert figure._supxlabel.get_text() == "neighbours changed most\n\u20071  four\n\u20072  seven"


def test_a_warning_stands_on_its_own_map_alone():
    figure = map_figure([_projection(9)] * 2, _column("abcabcabc"), title="x", warnings=["", "do not trust"])
    assert [_names(figure, panel) for panel in (0, 1)] == [set(), {"do not trust"}]


def test_without_any_label_there_is_no_legend_and_one_colour():
    figure = _figure([""] * 9)
    assert not figure.legends
    assert _counts_by_colour(figure) == {PALETTE[0]: 9}


def test_each_point_has_the_colour_of_its_own_label():
    labels = ["a"] * 3 + ["b"] * 2 + [""]
    projection = _projection(6)
    points = _points(map_figure([projection], _column(labels), title="x"))
    colours = {
        tuple(xy): to_hex(c).upper() for xy, c in zip(points.get_offsets().tolist(), points.get_facecolors(), strict=True)
    }
    assert [colours[tuple(xy)] for xy in projection.coords.tolist()] == [PALETTE[0]] * 3 + [PALETTE[1]] * 2 + [MISSING_COLOUR]


def test_points_are_drawn_mixed_by_seed_with_the_grey_ones_lowest():
    labels = ["a"] * 40 + [""] * 10 + ["b"] * 40
    first, second, other = (_figure(labels, seed=seed) for seed in (1, 1, 2))
    drawn = [to_hex(colour).upper() for colour in _points(first).get_facecolors()]
    assert drawn[:10] == [MISSING_COLOUR] * 10
    assert PALETTE[1] in drawn[10:30] and PALETTE[0] in drawn[-20:]
    np.testing.assert_array_equal(_points(first).get_offsets(), _points(second).get_offsets())
    assert not np.array_equal(_points(first).get_offsets(), _points(other).get_offsets())


def test_data_is_shown_literally_and_long_text_ends_in_an_ellipsis():
    figure = _figure(ODD_LABELS, title="org/model_v1 $a$")
    texts = _legend_texts(figure)
    assert {"$x_1$ and $y (1)", "a_b_c (1)", "tab new line (1)"} <= set(texts)
    assert "W" * 29 + "… (1)" in texts  # 29 columns and the ellipsis
    assert "中" * 14 + "… (1)" in texts  # 28 columns and the ellipsis
    assert not any(text.get_parse_math() for text in [*figure.legends[0].get_texts(), figure._suptitle])
    assert figure._suptitle.get_text() == "org/model_v1 $a$ · 7 points"


def test_a_panel_says_its_method_its_settings_and_its_note():
    figure = map_figure([_projection(3), _projection(3, "UMAP")], _column("aab"), title="x", notes=["trust 0.91", "trust 0.82"])
    assert [axes.get_title() for axes in figure.axes] == ["t-SNE", "UMAP"]
    assert figure.axes[1].get_xlabel() == "perplexity 30, learning rate auto\ntrust 0.82"
    assert not len(figure.axes[0].get_xticks()) and not len(figure.axes[0].get_yticks())


def test_both_axes_have_one_scale():
    projection = Projection("t-SNE", np.array([[0, 0], [100, 1]], dtype=np.float32))
    (axes,) = map_figure([projection], _column("ab"), title="x").axes
    assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim())) == pytest.approx(106)


@pytest.mark.parametrize("n_points", [1, 2, 5])
def test_points_on_one_spot_are_drawn(n_points, tmp_path):
    spot = Projection("PCA instead of UMAP", np.zeros((n_points, 2), dtype=np.float32))
    draw_maps([spot], _column(["a"] * n_points), tmp_path / "spot.png", title="x")
    assert (tmp_path / "spot.png").stat().st_size > 1000


def test_many_points_are_smaller_and_more_transparent_than_few():
    few, many = _points(_figure(["a"] * 50)), _points(_figure(["a"] * 20_000))
    assert few.get_sizes()[0] > many.get_sizes()[0]
    assert few.get_facecolors()[:, 3].mean() > many.get_facecolors()[:, 3].mean()


def test_a_dense_core_is_fainter_than_what_lies_apart():
    coords = np.concatenate([np.random.default_rng(0).normal(size=(3000, 2)) * 0.1, [[9.0, 9.0]]]).astype(np.float32)
    points = _points(map_figure([Projection("t-SNE", coords)], _column(["core"] * 3000 + ["apart"]), title="x"))
    opacity = dict(zip(map(tuple, points.get_offsets().tolist()), points.get_facecolors()[:, 3], strict=True))
    assert opacity[(9.0, 9.0)] > 2 * np.median(points.get_facecolors()[:, 3])


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_the_suffix_sets_the_format_and_equal_pictures_are_equal_files(suffix, tmp_path):
    for name in ("one", "two"):
        draw_maps([_projection(9)], _column("aaabbbccc"), tmp_path / "new folder" / f"{name}{suffix}", title="x")
    one, two = sorted((tmp_path / "new folder").iterdir())
    assert one.read_bytes().startswith(MAGIC[suffix.lower()]) and one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", ["map.jpg", "map"])
def test_another_suffix_is_an_error_that_names_the_option(name, tmp_path):
    with pytest.raises(ConfigError, match=r"output_path: .*\.png, \.svg or \.pdf"):
        draw_maps([_projection(3)], _column("abc"), tmp_path / name, title="x")


def test_a_drawing_that_fails_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")

    def fail_half_way(figure, file, **_):
        file.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        draw_maps([_projection(3)], _column("abc"), path, title="x")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_labels_that_no_font_has_are_one_warning_and_a_picture(tmp_path, caplog, recwarn):
    nobody_has_it = "\U000e1234"  # not assigned in any Unicode so far
    with caplog.at_level(logging.WARNING):
        draw_maps([_projection(3)], _column([nobody_has_it, "b", "c"]), tmp_path / "map.png", title="x")
    assert len(caplog.records) == 1 and nobody_has_it in caplog.text
    assert not recwarn.list and (tmp_path / "map.png").exists()


def test_drawing_changes_no_global_setting(tmp_path):
    before = dict(mpl.rcParams)
    draw_maps([_projection(3)], _column("abc"), tmp_path / "map.svg", title="x")
    assert dict(mpl.rcParams) == before


def test_lengths_that_differ_and_nothing_at_all_are_refused():
    for projections, labels in (([_projection(3)], ["a"]), ([], []), ([_projection(0)], [])):
        with pytest.raises(ValueError, match="points on the maps but"):
            map_figure(projections, _column(labels), title="x")


@pytest.mark.parametrize(("n_points", "is_raster"), [(100_000, False), (100_001, True)])
def test_beyond_a_hundred_thousand_points_a_drawing_holds_one_image(n_points, is_raster):
    assert _points(_figure(["a"] * n_points)).get_rasterized() is is_raster


def test_marks_that_turn_a_text_round_are_shown_and_not_obeyed():
    figure = _figure(["lab\u202e14"] * 3 + ["b"] * 2, n_maps=1, title="a\u202eb")
    assert _legend_texts(figure)[0] == "lab\ufffd14 (3)"
    assert not [text for text in figure.findobj(Text) if "\u202e" in text.get_text()]
