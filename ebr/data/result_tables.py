"""Tables of results: a DataFrame where one is asked for, HTML where a notebook shows them; text is each result's own."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ebr.data.text.terminal_text import cut_text, in_order

if TYPE_CHECKING:
    import pandas

DataFrame: TypeAlias = "pandas.DataFrame"

_MOST_ROWS = 50
_CELL_COLUMNS = 100
_PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}
_MOST_WIDTH, _DENSITY = 1000, 2
"""Pixels of the page that a picture takes at most; of PNG, so many of its own for one of the page."""


@dataclass(frozen=True)
class Table:
    """Named columns of plain values, all of one length. formats: of numbers in HTML, by column, as format() takes them."""

    columns: Mapping[str, Sequence[Any]]
    formats: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], names: Sequence[str] = (), **formats: str) -> Table:
        """A row for each record. names: the columns that come first, also without a record; what a record lacks is None."""
        records = list(records)
        keys = dict.fromkeys([*names, *(name for record in records for name in record)])
        return cls({name: [record.get(name) for record in records] for name in keys}, formats)

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values()), ()))

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows."""
        return (dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True))

    def first(self, n_rows: int) -> Table:
        """The first rows."""
        return replace(self, columns={name: values[:n_rows] for name, values in self.columns.items()})

    def without(self, name: str) -> Table:
        """The same without a column."""
        return replace(self, columns={other: values for other, values in self.columns.items() if other != name})

    def to_frame(self) -> DataFrame:
        """The same as a pandas DataFrame, its rows numbered from 0."""
        import pandas  # half a second, which no command needs

        return pandas.DataFrame({name: pandas.Series(list(values)) for name, values in self.columns.items()})

    def _repr_html_(self) -> str:
        """The first rows, long texts cut."""
        rows = list(zip(*self.columns.values(), strict=True))
        formats = [self.formats.get(name, "") for name in self.columns]
        head = "".join(
            f"<th{_RIGHT if any(map(_is_number, values)) else _LEFT}>{_text(name)}</th>"
            for name, values in self.columns.items()
        )
        body = "".join(f"<tr>{''.join(map(_cell, row, formats))}</tr>" for row in rows[:_MOST_ROWS])
        more = f"<p>… of {len(rows):,} rows; to_frame() has them all</p>" if len(rows) > _MOST_ROWS else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


_LEFT, _RIGHT = ' style="text-align: left"', ' style="text-align: right"'


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object, form: str) -> str:
    is_number = _is_number(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        text = ""
    else:
        text = format(value, form) if is_number else str(value)
    return f"<td{_RIGHT if is_number else _LEFT}>{_text(text)}</td>"


def _text(text: str) -> str:
    return escape(cut_text(text, _CELL_COLUMNS))


Fact: TypeAlias = "tuple[str, str]"
"""A name and what there is to say under it; a name may come more than once."""
Part: TypeAlias = "Table | Sequence[Fact] | Path | str"
"""A table, a list of facts, a picture's file (.png, .svg), or lines of text."""


def fact_lines(facts: Iterable[Fact], columns: int) -> list[str]:
    """The facts as text, what is said of each beginning behind so many columns."""
    return [f"{name:<{columns}}{text}" for name, text in facts]


class Shown:
    """A result that shows itself in a notebook: tables and pictures there, its summary wherever there is only text."""

    def summary(self) -> str:
        """The result as text."""
        raise NotImplementedError

    def text(self) -> str:
        """What is shown where there is only text."""
        return self.summary()

    def parts(self) -> Sequence[Part]:
        """What is shown, in order; pictures that are not there, or of another kind, are left out."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """All of it, pictures included."""
        return "\n".join(_as_html(part) for part in self.parts() if not isinstance(part, Path) or _kind(part))

    def _ipython_display_(self) -> None:
        """The pictures by themselves, for in a notebook of somebody else they are not shown within HTML; then the rest."""
        from IPython.display import display

        parts = self.parts()
        for path in (part for part in parts if isinstance(part, Path) and _kind(part)):
            data = path.read_text(encoding="utf-8") if path.suffix.lower() == ".svg" else _base64(path)
            display({"text/plain": str(path), _kind(path): data}, metadata={_kind(path): {"width": _width(path)}}, raw=True)
        html = "\n".join(_as_html(part) for part in parts if not isinstance(part, Path))
        display({"text/plain": self.text(), "text/html": html}, raw=True)


def _as_html(part: Part) -> str:
    if isinstance(part, Table):
        return part._repr_html_()
    if isinstance(part, Path):
        return f'<img alt="{escape(part.name)}" width="{_width(part)}" src="data:{_kind(part)};base64,{_base64(part)}">'
    if isinstance(part, str):
        return f"<pre>{_safe(part)}</pre>" if "\n" in part else f"<p>{_safe(part)}</p>"
    rows = "".join(f"<tr><th{_LEFT}>{_safe(name)}</th><td{_LEFT}>{_safe(text)}</td></tr>" for name, text in part)
    return f"<table><tbody>{rows}</tbody></table>"


def _safe(text: str) -> str:
    return escape(in_order(text))


def _kind(path: Path) -> str:
    """The media type of a picture that a notebook can show and that is there; '' of any other."""
    return _PICTURES.get(path.suffix.lower(), "") if path.is_file() else ""


def _width(path: Path) -> int:
    """Pixels of the page for a picture: the width of a PNG stands in its bytes 16 to 19."""
    is_png = path.suffix.lower() == ".png"
    return min(_MOST_WIDTH, int.from_bytes(path.read_bytes()[16:20], "big") // _DENSITY) if is_png else _MOST_WIDTH


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
