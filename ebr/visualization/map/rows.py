"""The rows of a map: vectors, what is said of each, and which of them are projected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ebr.config import VisualizationConfig
from ebr.config.visualization import LABEL_COLUMN
from ebr.data.files.dialects import parse_delimiter
from ebr.errors import DataError
from ebr.visualization.map.vectors import MapVectors, Rows, VectorTable, read_vector_table

if TYPE_CHECKING:
    from ebr.visualization.map.cache import MapCache
    from ebr.visualization.picture.columns import MapColumn

_ID = "id"
_ROWS_LOOKED_AT = 1000


@dataclass(frozen=True)
class MapRows:
    """N rows: vectors (N, D); before (N, D') of the same rows by another model, or None; cells by column, '' = missing.

    ids: of the rows; their numbers in the file, from 0, where it has no ids. label, id, text: the columns that play these
    parts; None where the file has none that could. n_all: the rows of which these are a sample, N where they
    are all. notes: what was left out of the files or assumed of them, a line each.
    """

    vectors: MapVectors
    before: MapVectors | None
    columns: Mapping[str, Sequence[str]]
    ids: list[str]
    label: str | None
    id: str | None
    text: str | None
    manifest: Mapping[str, Any] | None
    n_all: int
    before_manifest: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> Sequence[str]:
        """The cells that colour the points; where no column does, '' of each row."""
        return self.columns[self.label] if self.label is not None else [""] * len(self.ids)

    def column(self, kind: Literal["auto", "categories", "numbers"] = "auto") -> MapColumn:
        """The column that colours the points; one without a name where none does."""
        from ebr.visualization.picture.columns import MapColumn

        return MapColumn(self.label or "", tuple(self.labels), kind)

    @property
    def texts(self) -> Sequence[str]:
        """What is shown of each row."""
        return self.columns[self.text] if self.text is not None else self.labels

    def take(self, rows: Rows) -> MapRows:
        """Some of the rows."""
        if len(rows) == len(self.vectors):
            return self
        return replace(
            self,
            vectors=self.vectors.take(rows),
            before=None if self.before is None else self.before.take(rows),
            columns={name: [cells[row] for row in rows] for name, cells in self.columns.items()},
            ids=[self.ids[row] for row in rows],
        )


def read_map_rows(config: VisualizationConfig, cache: MapCache | None = None) -> MapRows:
    """Read the rows, those of the model before too, and give the columns their parts; vectors wait until they are needed.

    Raises DataError naming what is missing, a row whose vector holds nan or inf, or when no row is left.
    """
    delimiter = parse_delimiter(config.delimiter)
    after = read_vector_table(
        config.embeddings_path, delimiter, cache, option="embeddings_path", vector_column=config.vector_column
    )
    columns = _clean(after.columns)
    # The default asks for labels where there are some; a name that was chosen has to be there.
    has_labels = config.label_column != LABEL_COLUMN or LABEL_COLUMN in {*columns, *after.left_out}
    label = _column(config, "label_column", after) if has_labels else None
    id_column = _column(config, "id_column", after) if config.id_column else _ID if _ID in columns else None
    text = _column(config, "text_column", after) or _longest(columns, (label, id_column))
    ids = columns[id_column] if id_column is not None else [str(row) for row in range(len(after.vectors))]
    rows = MapRows(after.vectors, None, columns, ids, label, id_column, text, after.manifest, len(ids))
    if config.label_kind == "numbers" and rows.column("numbers").numbers is None:
        raise DataError(f"{config.embeddings_path}: column {label!r} holds no number (label_kind numbers); leave it at auto")
    if config.before_path is None:
        return rows
    before = read_vector_table(config.before_path, delimiter, cache, option="before_path", vector_column=config.vector_column)
    return replace(_matched(rows, before, config), before_manifest=before.manifest)


def _clean(columns: Mapping[str, Sequence[str | None]]) -> dict[str, list[str]]:
    return {name: [(cell or "").strip() for cell in cells] for name, cells in columns.items()}


def _column(config: VisualizationConfig, option: str, table: VectorTable) -> str | None:
    """The column that an option names; None where it names none. Raises DataError when it is not there."""
    name: str | None = getattr(config, option)
    if name is None:
        return None
    if name in table.left_out:
        raise DataError(
            f"{config.embeddings_path}: column {name!r} ({option}) is no text: {table.left_out[name]}; choose another"
        )
    if name not in table.columns:
        there = ", ".join(map(repr, table.columns)) or "none beside the vectors"
        raise DataError(f"{config.embeddings_path}: no column {name!r} ({option}); it has {there}")
    return name


def _longest(columns: Mapping[str, Sequence[str]], taken: Sequence[str | None]) -> str | None:
    """The column with the longest cells on average, by its first rows, beside those that play another part."""
    mean_length = {
        name: float(np.mean([len(cell) for cell in cells[:_ROWS_LOOKED_AT]]))
        for name, cells in columns.items()
        if name not in taken
    }
    return max(mean_length, key=lambda name: mean_length[name]) if mean_length else None


def _matched(rows: MapRows, before: VectorTable, config: VisualizationConfig) -> MapRows:
    """The rows that both files hold, in the order of the newer."""
    id_column = rows.id or config.id_column or _ID
    if rows.id is None and id_column not in before.columns:
        return _matched_by_order(rows, before, config)
    old_ids = _clean(before.columns).get(id_column)
    if rows.id is None or old_ids is None:
        lacks = config.embeddings_path if rows.id is None else config.before_path
        raise DataError(f"{lacks}: no column {id_column!r} (id_column), by which the rows of the other file would be matched")
    for path, ids in ((config.before_path, old_ids), (config.embeddings_path, rows.ids)):
        if len(set(ids) - {""}) < len(ids) - ids.count(""):
            raise DataError(
                f"{path}: ids stand twice in its column {id_column!r} (id_column), so rows cannot be matched by them"
            )
    place = {cell: row for row, cell in enumerate(old_ids) if cell}
    kept = np.array([row for row, cell in enumerate(rows.ids) if cell in place], dtype=np.int64)
    if not len(kept):
        raise DataError(
            f"before_path {config.before_path}: no id of its column {id_column!r} stands in {config.embeddings_path}"
        )
    left_out = len(rows.vectors) + len(old_ids) - 2 * len(kept)
    note = f"{left_out:,} rows stand in only one of the two files, or have no id, and are left out"
    taken = replace(rows.take(kept), n_all=len(kept))
    old_rows = np.array([place[cell] for cell in taken.ids], dtype=np.int64)
    return replace(taken, before=before.vectors.take(old_rows), notes=(note,) if left_out else ())


def _matched_by_order(rows: MapRows, before: VectorTable, config: VisualizationConfig) -> MapRows:
    if len(before.vectors) != len(rows.vectors):
        raise DataError(
            f"before_path {config.before_path}: {len(before.vectors):,} rows, but embeddings_path {len(rows.vectors):,}; "
            f"without a column {config.id_column or _ID!r} in both (id_column) only their order could match them"
        )
    return replace(rows, before=before.vectors, notes=("neither file has ids: rows are matched by their order",))
