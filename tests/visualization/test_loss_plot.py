"""Curves of a run: what each record has, in the order of steps."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from ebr.errors import ConfigError
from ebr.visualization.loss_plot import draw_loss_curve


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
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_loss_curve_of_ndcg_alone_has_one_axis(tmp_path, monkeypatch):
    _, axes = _drawn_curves([{"step": 1, "ndcg_at_10": 0.5}], tmp_path / "loss.png", monkeypatch)
    assert [ax.get_ylabel() for ax in axes] == ["nDCG@10"]


@pytest.mark.parametrize("history", [[], [{"step": 1, "learning_rate": 0.1}], [{"loss": 1.0}], [{"step": 1, "loss": None}]])
def test_loss_curve_without_anything_to_draw_writes_no_file(history, tmp_path):
    assert draw_loss_curve(history, tmp_path / "loss.png") is False
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["loss.jpg", "loss"])
def test_another_suffix_is_an_error_that_names_the_option(name, tmp_path):
    with pytest.raises(ConfigError, match=r"output_path: .*\.png, \.svg or \.pdf"):
        draw_loss_curve([], tmp_path / name)
