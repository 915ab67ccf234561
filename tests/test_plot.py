"""Pictures: every text inside the figure and literal, every label told apart, every file whole."""

import logging
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ebr.errors import ConfigError
from ebr.visualization.plot import MISSING_COLOUR, OTHER_COLOUR, PALETTE, draw_loss_curve, draw_maps, map_figure
from ebr.visualization.projection import Projection

ODD_LABELS = ["$x_1$ and $y", "a_b_c", "🎉 party", "W" * 200, "中" * 60, "", "tab\tnew\nline"]
MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def _projection(n_points, method="t-SNE"):
    coords = np.random.default_rng(0).normal(size=(n_points, 2)).astype(np.float32)
    return Projection(method, coords, {"perplexity": 30.0, "learning rate": "auto"})


def _figure(labels, n_maps=1, **options):
    options.setdefault("title", "vectors")
    return map_figure([_projection(len(labels)) for _ in range(n_maps)], labels, **options)


def _legend_texts(figure: Figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def _points(figure: Figure, panel=0) -> PathCollection:
    (points,) = figure.axes[panel].collections
    return points


def _counts_by_colour(figure: Figure):
    colours, counts = np.unique([to_hex(c).upper() for c in _points(figure).get_facecolors()], return_counts=True)
    return dict(zip(colours.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("n_maps", [1, 2])
@pytest.mark.parametrize("labels", [ODD_LABELS * 3, [f"{'W' * 40} {i}" for i in range(60)], ["one"]])
def test_every_text_lies_inside_the_figure_and_the_legend_right_of_the_points(labels, n_maps):
    figure = _figure(labels, n_maps, title="W" * 300, notes=["trustworthiness 0.9"] * n_maps)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.draw_without_rendering()
    (legend,) = figure.legends
    texts = [*legend.get_texts(), figure._suptitle, *(t for axes in figure.axes for t in (axes.title, axes.xaxis.label))]
    for text in texts:
        box = text.get_window_extent()
        assert box.width > 0
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text.get_text()
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert legend.get_window_extent().x0 > max(panel.x1 for panel in panels)
    assert min(panel.width for panel in panels) > 600  # a long legend widens the figure rather than squeeze the maps


def test_legend_names_each_label_with_its_count_the_largest_first():
    figure = _figure(["b", "a", "a", "", "b", "c", "b"] + ["d"] * 1200)
    assert _legend_texts(figure) == ["d (1,200)", "b (3)", "a (2)", "c (1)", "(no label) (1)"]
    expected = zip([*PALETTE[:4], MISSING_COLOUR], [1200, 3, 2, 1, 1], strict=True)
    assert _counts_by_colour(figure) == dict(expected)


def test_twenty_labels_keep_twenty_colours():
    figure = _figure([f"label {i:02}" for i in range(20)])
    assert len(_legend_texts(figure)) == 20
    assert _counts_by_colour(figure) == dict.fromkeys(PALETTE, 1)


def test_beyond_twenty_labels_the_nineteen_largest_are_named_and_the_rest_is_grey():
    labels = [f"big {i:02}" for i in range(19) for _ in range(3)] + [f"small {i}" for i in range(6)] + ["", ""]
    figure = _figure(labels)
    assert _legend_texts(figure) == [*(f"big {i:02} (3)" for i in range(19)), "other (6)", "(no label) (2)"]
    assert _counts_by_colour(figure) == {**dict.fromkeys(PALETTE[:19], 3), OTHER_COLOUR: 6, MISSING_COLOUR: 2}


def test_without_any_label_there_is_no_legend_and_one_colour():
    figure = _figure([""] * 9)
    assert not figure.legends
    assert _counts_by_colour(figure) == {PALETTE[0]: 9}


def test_each_point_has_the_colour_of_its_own_label():
    labels = ["a"] * 3 + ["b"] * 2 + [""]
    projection = _projection(6)
    points = _points(map_figure([projection], labels, title="x"))
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
    figure = map_figure([_projection(3), _projection(3, "UMAP")], list("aab"), title="x", notes=["trust 0.91", "trust 0.82"])
    assert [axes.get_title() for axes in figure.axes] == ["t-SNE", "UMAP"]
    assert figure.axes[1].get_xlabel() == "perplexity 30, learning rate auto\ntrust 0.82"
    assert not len(figure.axes[0].get_xticks()) and not len(figure.axes[0].get_yticks())


def test_both_axes_have_one_scale():
    projection = Projection("t-SNE", np.array([[0, 0], [100, 1]], dtype=np.float32))
    (axes,) = map_figure([projection], ["a", "b"], title="x").axes
    assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim())) == pytest.approx(106)


@pytest.mark.parametrize("n_points", [1, 2, 5])
def test_points_on_one_spot_are_drawn(n_points, tmp_path):
    spot = Projection("PCA instead of UMAP", np.zeros((n_points, 2), dtype=np.float32))
    draw_maps([spot], ["a"] * n_points, tmp_path / "spot.png", title="x")
    assert (tmp_path / "spot.png").stat().st_size > 1000


def test_many_points_are_smaller_and_more_transparent_than_few():
    few, many = _points(_figure(["a"] * 50)), _points(_figure(["a"] * 20_000))
    assert few.get_sizes()[0] > many.get_sizes()[0] and few.get_alpha() > many.get_alpha()


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_the_suffix_sets_the_format_and_equal_pictures_are_equal_files(suffix, tmp_path):
    for name in ("one", "two"):
        draw_maps([_projection(9)], list("aaabbbccc"), tmp_path / "new folder" / f"{name}{suffix}", title="x")
    one, two = sorted((tmp_path / "new folder").iterdir())
    assert one.read_bytes().startswith(MAGIC[suffix.lower()]) and one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", ["map.jpg", "map"])
def test_another_suffix_is_an_error_that_names_the_option(name, tmp_path):
    with pytest.raises(ConfigError, match=r"output_path: .*\.png, \.svg or \.pdf"):
        draw_maps([_projection(3)], list("abc"), tmp_path / name, title="x")
    with pytest.raises(ConfigError, match="output_path"):
        draw_loss_curve([], tmp_path / name)


def test_a_drawing_that_fails_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")

    def fail_half_way(figure, file, **_):
        file.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        draw_maps([_projection(3)], list("abc"), path, title="x")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_labels_that_no_font_has_are_one_warning_and_a_picture(tmp_path, caplog, recwarn):
    nobody_has_it = "\U000e1234"  # not assigned in any Unicode so far
    with caplog.at_level(logging.WARNING):
        draw_maps([_projection(3)], [nobody_has_it, "b", "c"], tmp_path / "map.png", title="x")
    assert len(caplog.records) == 1 and nobody_has_it in caplog.text
    assert not recwarn.list and (tmp_path / "map.png").exists()


def test_drawing_changes_no_global_setting(tmp_path):
    before = dict(mpl.rcParams)
    draw_maps([_projection(3)], list("abc"), tmp_path / "map.svg", title="x")
    assert dict(mpl.rcParams) == before


def test_lengths_that_differ_and_nothing_at_all_are_refused(tmp_path):
    for projections, labels in (([_projection(3)], ["a"]), ([], []), ([_projection(0)], [])):
        with pytest.raises(ValueError, match="points on the maps but"):
            map_figure(projections, labels, title="x")
    with pytest.raises(ValueError, match="shorter"):
        map_figure([_projection(1), _projection(1)], ["a"], title="x", notes=["only one"])


def _drawn_curves(history, path, monkeypatch):
    """The curves of the figure that is saved: label -> (n, 2) points, and the figure's axes."""
    seen = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kw: (seen.append(figure), save(figure, *args, **kw)))
    assert draw_loss_curve(history, path) is True
    axes = seen[0].axes
    return {line.get_label(): np.column_stack(line.get_data()).tolist() for ax in axes for line in ax.lines}, axes


def test_loss_curve_draws_what_each_record_has_in_the_order_of_steps(tmp_path, monkeypatch):
    history = [
        {"step": 20, "loss": 0.5, "learning_rate": 1e-4},
        {"step": 10, "loss": 0.9},
        {"step": 15, "loss": float("nan"), "eval_loss": None},
        {"step": 10, "eval_loss": 0.8, "ndcg_at_10": 0.71},
        {"step": 20, "eval_loss": 0.7, "ndcg_at_10": 0.64},
        {"loss": 3.0},
    ]
    curves, axes = _drawn_curves(history, tmp_path / "loss.png", monkeypatch)
    assert curves == {
        "training loss": [[10, 0.9], [20, 0.5]],
        "evaluation loss": [[10, 0.8], [20, 0.7]],
        "nDCG@10, best 0.710 at step 10": [[10, 0.71], [20, 0.64]],
    }
    assert [ax.get_ylabel() for ax in axes] == ["loss", "nDCG@10"]
    assert (tmp_path / "loss.png").read_bytes().startswith(MAGIC[".png"])


def test_loss_curve_of_ndcg_alone_has_one_axis(tmp_path, monkeypatch):
    _, axes = _drawn_curves([{"step": 1, "ndcg_at_10": 0.5}], tmp_path / "loss.png", monkeypatch)
    assert [ax.get_ylabel() for ax in axes] == ["nDCG@10"]


@pytest.mark.parametrize("history", [[], [{"step": 1, "learning_rate": 0.1}], [{"loss": 1.0}], [{"step": 1, "loss": None}]])
def test_loss_curve_without_anything_to_draw_writes_no_file(history, tmp_path):
    assert draw_loss_curve(history, tmp_path / "loss.png") is False
    assert not list(tmp_path.iterdir())
