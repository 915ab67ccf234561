"""The map as one page of HTML that opens offline: pan, zoom, hover, search, select; its points are drawn by WebGL.

Whatever comes from data travels as JSON that no HTML parser can leave, and reaches the page as text content only; plotly
gets numbers and colours, no text. The page's Content-Security-Policy names its two scripts by hash and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ebr.config.options import Language
from ebr.data.files.write import write_aside
from ebr.data.text.terminal_text import in_order
from ebr.visualization.colours import GREYS, PAPER, LabelGroup, Theme, palette, readable
from ebr.visualization.picture.columns import MapColumn
from ebr.visualization.words import words

MOST_CHARACTERS = 300
"""Of a text, or of a value of a column: what is longer is cut, ends in an ellipsis, and the page says so."""
MOST_MOVED = 50
"""Rows in the list of what moved most."""

_SCRIPTS = ("map_data.js", "map_panel.js", "map_glide.js", "map_names.js", "map_side.js", "map_point.js", "map_page.js")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")
_FORBIDDEN_IN_HTML = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_NO_GROUP = 65_535


@dataclass(frozen=True)
class PagePanel:
    """One map of the page. coords: (N, 2). warning: why its neighbours are not to be trusted; empty when they are."""

    title: str
    subtitle: str
    warning: str
    coords: NDArray[np.float32]


@dataclass(frozen=True)
class PageContent:
    """What a page shows: one or two maps of the same N rows, linked, and what is known of each row.

    columns: what to colour by; the first one is shown at the start. groups: the colours of each column of categories, by its
    name; a column that is not there must hold numbers. ids, texts: one a row. neighbours, similarities: (N, k) rows nearest in
    the original space, nearest first (-1: none there), and their cosines; both or neither. lines: the table of the figures, as
    printed. moved: (N,) how far each row moved between two maps, in any unit: the rows that moved most are listed. n_all: of
    how many rows these are a sample; None: of N. is_coloured: by the first column at the start; False: all in one colour.
    Raises ValueError when lengths disagree, a coordinate is not finite, or a column can be coloured in no way.
    """

    title: str
    panels: Sequence[PagePanel]
    columns: Sequence[MapColumn]
    groups: Mapping[str, Sequence[LabelGroup]]
    ids: Sequence[str]
    texts: Sequence[str]
    neighbours: NDArray[np.int32] | None = None
    similarities: NDArray[np.float32] | None = None
    lines: Sequence[str] = field(default_factory=tuple)
    moved: NDArray[np.float32] | None = None
    n_all: int | None = None
    is_coloured: bool = True
    language: Language = "en"
    theme: Theme = "light"

    def __post_init__(self) -> None:
        if not 1 <= len(self.panels) <= 2:
            raise ValueError(f"a page shows one map or two, not {len(self.panels)}")
        sizes = {f"map {panel.title!r}": len(panel.coords) for panel in self.panels}
        sizes |= {f"column {column.name!r}": len(column.texts) for column in self.columns} | {"texts": len(self.texts)}
        sizes |= {} if self.neighbours is None else {"neighbours": len(self.neighbours)}
        sizes |= {} if self.moved is None else {"moved": len(self.moved)}
        wrong = [f"{size:,} in {name}" for name, size in sizes.items() if size != len(self.ids)]
        if wrong or not self.ids:
            raise ValueError(f"{len(self.ids):,} ids but {', '.join(wrong) or 'at least one point is needed'}")
        if not all(np.isfinite(panel.coords).all() for panel in self.panels):
            raise ValueError("a coordinate is not finite")
        if (self.neighbours is None) != (self.similarities is None) or (
            self.neighbours is not None and self.similarities is not None and self.neighbours.shape != self.similarities.shape
        ):
            raise ValueError("neighbours and similarities are given together, in one shape")
        if len({column.name for column in self.columns}) < len(self.columns):
            raise ValueError("two columns share a name")
        for column in self.columns:
            if column.name not in self.groups and column.numbers is None:
                raise ValueError(f"column {column.name!r} has neither groups nor numbers")


def write_map_page(path: Path, content: PageContent) -> None:
    """Write the page whole or not at all."""
    page = map_page(content)
    with write_aside(path) as aside:
        aside.write_text(page, encoding="utf-8", newline="\n")


def map_page(content: PageContent) -> str:
    """The whole page. Equal contents give equal pages; characters that UTF-8 cannot hold become U+FFFD."""
    plotly, plotly_hash = _plotly()
    script = _own_script()
    return _environment().get_template("map_page.html").render(
        language={"en": "en", "zh": "zh-CN"}[content.language],
        theme=content.theme,
        title=_FORBIDDEN_IN_HTML.sub("\ufffd", in_order(content.title)),
        t=words("page", content.language),
        hashes=[plotly_hash, _csp_hash(script)],
        plotly=Markup(plotly),
        script=Markup(script),
        data=escaped_json(_page_data(content)),
    )  # fmt: skip


def escaped_json(value: object) -> Markup:
    """JSON that may stand inside a <script> element: no character of it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = _LONE_SURROGATES.sub("\ufffd", text)
    return Markup(text)


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("ebr.visualization.page", "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


@cache
def _plotly() -> tuple[str, str]:
    from plotly.offline import get_plotlyjs

    script = str(get_plotlyjs())
    if re.search(r"</script|<!--|\r", script, re.IGNORECASE):
        raise RuntimeError("plotly's script holds characters that end a <script> element or change inside it")
    return script, _csp_hash(script)


@cache
def _own_script() -> str:
    """Our files as one: each sees what the ones before it declare, and nothing leaks to the page's global names."""
    folder = Path(__file__).parent / "templates"
    parts = "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();'.replace("\r\n", "\n")


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _page_data(content: PageContent) -> dict[str, Any]:
    data: dict[str, Any] = {
        "words": words("page", content.language),
        "language": content.language,
        "title": in_order(content.title),
        "n": len(content.ids),
        "n_all": content.n_all or len(content.ids),
        "panels": [_panel_data(panel) for panel in content.panels],
        "start": 0 if content.is_coloured else -1,
        "columns": [_column_data(column, content.groups.get(column.name)) for column in content.columns],
        "ids": list(content.ids),  # whole: they are exported
        "texts": [_cut(text) for text in content.texts],
        "n_cut": sum(len(text) > MOST_CHARACTERS for text in content.texts),
        "most_characters": MOST_CHARACTERS,
        "lines": [in_order(line) for line in content.lines],
        "swaps": _theme_swaps(),
        "inks": {theme: {colour: readable(colour, ground) for colour in palette(theme)} for theme, ground in PAPER.items()},
    }
    if content.neighbours is not None and content.similarities is not None and content.neighbours.size:
        data["neighbours"] = _base64(content.neighbours, "<i4")
        # A cosine to 0.00003 takes two bytes, not four.
        steps = np.round((np.nan_to_num(np.clip(content.similarities, -1, 1), nan=-1.0) + 1) * 32_767)
        data["similarities"] = _base64(steps, "<u2")
        data["k"] = int(content.neighbours.shape[1])
    if content.moved is not None:
        moved = np.nan_to_num(np.asarray(content.moved, dtype=np.float64), nan=0.0, posinf=0.0)
        rows = np.argsort(-moved, kind="stable")[:MOST_MOVED]
        data["moved"] = [[int(row), float(moved[row])] for row in rows if moved[row] > 0]
    return data


def _theme_swaps() -> dict[str, dict[str, str]]:
    """For each theme, what stands in for a colour of the other one."""
    light, dark = ((*palette(theme), *GREYS[theme]) for theme in ("light", "dark"))
    swaps = {"dark": zip(light, dark, strict=True), "light": zip(dark, light, strict=True)}
    return {theme: {old: new for old, new in pairs if old != new} for theme, pairs in swaps.items()}


def _panel_data(panel: PagePanel) -> dict[str, Any]:
    coords = np.asarray(panel.coords, dtype=np.float32)
    words = {"title": panel.title, "subtitle": panel.subtitle, "warning": panel.warning}
    return {name: in_order(text) for name, text in words.items()} | {
        "x": _base64(coords[:, 0], "<f4"),
        "y": _base64(coords[:, 1], "<f4"),
    }


def _column_data(column: MapColumn, groups: Sequence[LabelGroup] | None) -> dict[str, Any]:
    """Categories as a list of values and one code a row, and the group of each value; numbers as float64."""
    if groups is None:
        return {
            "name": in_order(column.name),
            "numbers": _base64(column.numbers, "<f8"),
            "written": [_cut(text) for text in column.texts],
        }
    codes = np.full(len(column.texts), _NO_GROUP, dtype=np.int64)
    for i, group in enumerate(groups):
        codes[group.rows] = i
    if len(groups) > 0 and bool((codes == _NO_GROUP).any()):
        raise ValueError(f"column {column.name!r}: {int((codes == _NO_GROUP).sum()):,} rows are in no group")
    places = {text: i for i, text in enumerate(dict.fromkeys(column.texts))}
    values = np.fromiter((places[text] for text in column.texts), dtype=np.int64, count=len(column.texts))
    listed = [{"text": _cut(g.text), "colour": g.colour, "kind": g.kind, "count": len(g.rows)} for g in groups]
    coded = {"values": [_cut(text) for text in places], "value_of": _codes(values, len(places))}
    # Without any group (no row has a label) all points have the page's own colour.
    return {
        "name": in_order(column.name),
        "groups": listed,
        "group_of": _codes(codes if groups else 0 * codes, len(groups)),
    } | coded


def _codes(codes: NDArray[np.int64], n_different: int) -> dict[str, str]:
    kind = "u1" if n_different <= 2**8 else "u2" if n_different <= 2**16 else "u4"
    return {"type": kind, "data": _base64(codes, f"<{kind}")}


def _base64(array: Any, dtype: str) -> str:  # noqa: ANN401
    return base64.b64encode(np.ascontiguousarray(array, dtype=np.dtype(dtype)).tobytes()).decode("ascii")


def _cut(text: str) -> str:
    text = in_order(text)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1].rstrip() + "…"
