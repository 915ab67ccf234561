"""Pictures as files: .png, .svg or .pdf by the suffix, written aside and renamed into place; and texts made fit for them."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ebr.config.visualization import PICTURES
from ebr.data.files.write import write_aside
from ebr.data.text.terminal_text import in_order
from ebr.errors import ConfigError

_UNDRAWABLE = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, line and paragraph separators


def picture_format(path: Path) -> str:
    """png, svg or pdf. Raises ConfigError for another suffix."""
    suffix = path.suffix.lower()
    if suffix not in PICTURES:
        raise ConfigError(f"output_path: {path} ends in {suffix or 'no suffix'!r}; a picture is .png, .svg or .pdf")
    return suffix[1:]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a whole file or none; equal figures make equal files."""
    file_format = picture_format(path)
    # A date or a random id inside the file would make equal pictures differ.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(file_format)
    with mpl.rc_context({"svg.hashsalt": "ebr"}), quiet_about_glyphs(), write_aside(path) as aside:
        figure.savefig(aside, format=file_format, metadata=metadata)


@contextmanager
def quiet_about_glyphs() -> Iterator[None]:
    """choose_fonts has said once what cannot be shown; matplotlib would say it again for every character."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def shortened(text: str, columns: int) -> str:
    """Text on one line in so many columns, an East Asian wide character being two; what is cut ends in an ellipsis."""
    # Not str.isprintable(): it rejects joiners, and every character that is younger than this Python.
    text = "".join(" " if unicodedata.category(c) in _UNDRAWABLE else c for c in text)
    text = in_order(" ".join(text.split()))
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text]
    if sum(widths) <= columns:
        return text
    fits = int(np.searchsorted(np.cumsum(widths), columns - 1, side="right"))
    return text[:fits].rstrip() + "…"
