"""The rows of a map: vectors, what is said of each, and which of them are projected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ebr.config import VisualizationConfig
from ebr.data.tables import parse_delimiter
from ebr.errors import DataError
from ebr.workflow.map_vectors import MapVectors, Rows, VectorTable, read_vector_table

if TYPE_CHECKING:
    from ebr.visualization.map_cache import MapCache

_ROWS_LOOKED_AT = 1000


@dataclass(frozen=True)
class MapRows:
    """N rows: vectors (N, D); before (N, D') of the same rows by another model, or None; cells by column, '' = missing.

    ids: of the rows; their numbers in the file, from 0, where it has no ids. label, id, text: the columns that play these
    parts; id and text are None where the file has none that could. notes: what was left out of the files, a line each.
    """

    vectors: MapVectors
    before: MapVectors | None
    columns: Mapping[str, Sequence[str]]
    ids: Sequence[str]
    label: str
    id: str | None
    text: str | None
    manifest: Mapping[str, Any] | None
    before_manifest: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> Sequence[str]:
        """The cells that colour the points."""
        return self.columns[self.label]

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
    from ebr.visualization.columns import MapColumn

    delimiter = parse_delimiter(config.delimiter)
    after = read_vector_table(config.embeddings_path, delimiter, cache)
    columns = _clean(after.columns)
    label = _required(config, "label_column", columns)
    id_column = _required(config, "id_column", columns) if _is_asked(config, "id_column", columns) else None
    text = _required(config, "text_column", columns) if config.text_column else _longest(columns, (label, id_column))
    ids = columns[id_column] if id_column is not None else [str(row) for row in range(len(after.vectors))]
    if config.label_kind == "numbers" and MapColumn(label, tuple(columns[label]), "numbers").numbers is None:
        raise DataError(f"{config.embeddings_path}: column {label!r} holds no number (label_kind numbers); leave it at auto")
    rows = MapRows(after.vectors, None, columns, ids, label, id_column, text, after.manifest)
    if config.before_path is None:
        return rows
    before = read_vector_table(config.before_path, delimiter, cache)
    return replace(_matched(rows, before, config, id_column), before_manifest=before.manifest)


def _clean(columns: Mapping[str, Sequence[str | None]]) -> dict[str, list[str]]:
    return {name: [(cell or "").strip() for cell in cells] for name, cells in columns.items()}


def _is_asked(config: VisualizationConfig, option: str, known: Mapping[str, object]) -> bool:
    """Whether a column has to be there: one that was named, or the default where the file has it."""
    return option in config.model_fields_set or getattr(config, option) in known


def _required(config: VisualizationConfig, option: str, known: Mapping[str, object]) -> str:
    name: str = getattr(config, option)
    if name not in known:
        there = ", ".join(map(repr, known)) or "none beside the vectors"
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


def _matched(rows: MapRows, before: VectorTable, config: VisualizationConfig, id_column: str | None) -> MapRows:
    """The rows that both files hold, in the order of the newer."""
    if id_column is None or id_column not in before.columns:
        if len(before.vectors) != len(rows.vectors):
            raise DataError(
                f"before_path {config.before_path}: {len(before.vectors):,} rows, but embeddings_path {len(rows.vectors):,}; "
                f"without a column {config.id_column!r} in both (id_column) only their order could match them"
            )
        return replace(rows, before=before.vectors)
    place = {cell: row for row, cell in enumerate(_clean(before.columns)[id_column])}
    if len(place) < len(before.vectors) or len(set(rows.ids)) < len(rows.vectors):
        twice = config.before_path if len(place) < len(before.vectors) else config.embeddings_path
        raise DataError(f"{twice}: ids stand twice in its column {id_column!r} (id_column), so rows cannot be matched by them")
    kept = np.array([row for row, cell in enumerate(rows.ids) if cell in place], dtype=np.int64)
    if not len(kept):
        raise DataError(
            f"before_path {config.before_path}: no id of its column {id_column!r} stands in {config.embeddings_path}"
        )
    left_out = len(rows.vectors) + len(place) - 2 * len(kept)
    taken = rows.take(kept)
    notes = (f"{left_out:,} rows stand in only one of the two files and are left out",) if left_out else ()
    return replace(
        taken, before=before.vectors.take(np.array([place[cell] for cell in taken.ids], dtype=np.int64)), notes=notes
    )
