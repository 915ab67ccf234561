"""The curves of a training run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ebr.visualization.colours import PALETTE
from ebr.visualization.figures import picture_format, save_figure

_MARKED_UP_TO = 40  # records on a curve: beyond, dots would run together


def draw_loss_curve(history: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw training loss, evaluation loss and nDCG@10 (right axis) over the steps into path; False, and no file, without any.

    history: records with "step" and any of "loss", "eval_loss", "ndcg_at_10"; what is missing, None or not finite is left out.
    Raises ConfigError for another suffix than .png, .svg, .pdf.
    """
    picture_format(path)
    loss, eval_loss, ndcg = (_curve(history, key) for key in ("loss", "eval_loss", "ndcg_at_10"))
    if not (len(loss) or len(eval_loss) or len(ndcg)):
        return False
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    lines = [
        axes.plot(*curve.T, color=colour, marker="o" if len(curve) <= _MARKED_UP_TO else "", markersize=4, label=text)[0]
        for curve, colour, text in ((loss, PALETTE[0], "training loss"), (eval_loss, PALETTE[3], "evaluation loss"))
        if len(curve)
    ]
    axes.set(xlabel="step", ylabel="loss" if lines else "")
    if len(ndcg):
        lines.append(_draw_ndcg(axes.twinx() if lines else axes, ndcg))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top"]].set_visible(False)
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines), frameon=False)
    save_figure(figure, path)
    return True


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """(n, 2) steps and values, by step, of the records that have both."""
    pairs = [(record.get("step"), record.get(key)) for record in history]
    known = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
    known = known[np.isfinite(known).all(axis=1)]
    return known[np.argsort(known[:, 0], kind="stable")]


def _draw_ndcg(axes: Axes, ndcg: NDArray[np.float64]) -> Line2D:
    best_step, best = ndcg[ndcg[:, 1].argmax()]
    text = f"nDCG@10, best {best:.3f} at step {best_step:,.0f}"
    axes.set_ylabel("nDCG@10")
    axes.spines[["top"]].set_visible(False)
    return axes.plot(*ndcg.T, color=PALETTE[2], linestyle="--", marker="D", markersize=5, label=text)[0]
