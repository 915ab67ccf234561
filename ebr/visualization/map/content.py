"""A map as a picture, as a page, as a table of numbers and as the file of an atlas: one content, four forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebr.config import VisualizationConfig
from ebr.data.result_tables import Table
from ebr.data.text.terminal_text import cut_text
from ebr.visualization.map.numbers import DrawnMap
from ebr.visualization.map.rows import MapRows

if TYPE_CHECKING:
    from ebr.visualization.colours import LabelGroup
    from ebr.visualization.picture.columns import MapColumn
    from ebr.visualization.project.alignment import Movement
    from ebr.visualization.project.neighbours import Neighbours
    from ebr.visualization.project.quality import ClusterQuality
    from ebr.visualization.project.trust import MapTrust

_MARKED = 10
_MOVED = {"en": "share of neighbours that changed, the most first", "zh": "变化的邻居比例，从大到小"}
_UNMOVED = {"en": "no row has other neighbours than before", "zh": "没有任何行的邻居发生变化"}
_MARKED_COLUMNS = 70
_ID_COLUMNS = 40
_CELL = 200
"""Characters of a cell that the page keeps."""
_MOST_DISTINCT = 0.5
"""A column of which more cells differ says what a row is, not what it has in common with others: no colours."""


@dataclass(frozen=True)
class MapPanel:
    """One map of the figure. title: what tells it from its neighbour beside its method; may be empty."""

    title: str
    map: DrawnMap


@dataclass(frozen=True)
class MapContent:
    """What is known of N rows and their maps.

    qualities: by the name of the vectors, one entry without a name where there is one model. neighbours: in the original
    space, of the newer model. movement: how much each row changed between two models; None where there is one.
    """

    rows: MapRows
    config: VisualizationConfig
    panels: Sequence[MapPanel]
    qualities: Mapping[str, ClusterQuality]
    neighbours: Neighbours | None
    movement: Movement | None = None

    @cached_property
    def title(self) -> str:
        """What was embedded, by which model."""
        model = (self.rows.manifest or {}).get("model")
        return self.config.title or (Path(model).name if model else self.config.embeddings_path.name)

    @cached_property
    def column(self) -> MapColumn:
        """The column that colours the points."""
        return self.rows.column(self.config.label_kind)

    @cached_property
    def panel_titles(self) -> list[str]:
        """What stands above each panel."""
        from ebr.visualization.picture.plot import method_text

        methods = [method_text(panel.map.projection.method, self.config.language) for panel in self.panels]
        return [
            f"{panel.title} · {method}" if panel.title else method for panel, method in zip(self.panels, methods, strict=True)
        ]

    @cached_property
    def other_columns(self) -> list[MapColumn]:
        """Every other that groups rows or counts something."""
        from ebr.visualization.colours import MOST_NAMED
        from ebr.visualization.picture.columns import MapColumn

        rows, columns = self.rows, []
        for name in (name for name in rows.columns if name not in (rows.label, rows.id, rows.text)):
            # Nobody asked for it by name, and beyond the labels that have a colour of their own a scale shows more.
            column = MapColumn(name, tuple(cell[:_CELL] for cell in rows.columns[name]), most_classes=MOST_NAMED)
            is_grouping = len(set(column.texts)) <= max(_MARKED, _MOST_DISTINCT * len(rows.ids))
            if column.numbers is not None or is_grouping:
                columns.append(column)
        return columns

    @cached_property
    def warnings(self) -> list[str]:
        """For each panel, why its neighbours are not to be trusted, or ''."""
        from ebr.visualization.project.trust import trust_warning

        return [trust_warning(panel.map.trust, self.config.language) for panel in self.panels]

    @cached_property
    def most_moved(self) -> list[int]:
        """The rows whose neighbours changed most; none where none has other neighbours than before."""
        if self.movement is None:
            return []
        return [int(row) for row in self.movement.most(_MARKED) if self.movement.neighbours_changed[row] > 0]

    def lines(self) -> list[str]:
        """The figures as a table for people, with what they mean."""
        from ebr.visualization.project.quality import quality_lines

        lines: list[str] = []
        for name, quality, trust in self._measured():
            lines += [*([name] if name else []), *quality_lines(quality, trust, self.config.language)]
        return lines + self.notes()

    def figures(self) -> Table:
        """The same figures: vectors (where there are two models), measure, name, map, value, n_rows, meaning."""
        from ebr.visualization.project.quality import quality_records

        rows = [
            {**({"vectors": name} if name else {}), **row}
            for name, quality, trust in self._measured()
            for row in quality_records(quality, trust, self.config.language)
        ]
        return Table.of(rows, value=",.3f", n_rows=",")

    def heads(self) -> list[str]:
        """Which rows were measured, a line for each model."""
        from ebr.visualization.project.quality import quality_head

        measured = [(name, quality_head(quality, self.config.language)) for name, quality, _ in self._measured()]
        return [f"{name}: {head}" if name else head for name, head in measured]

    def _measured(self) -> list[tuple[str, ClusterQuality, Mapping[str, MapTrust]]]:
        """By the name of the vectors, with how far their maps can be trusted: all panels of one model, one each of two."""
        trusts = [(title, panel.map.trust) for title, panel in zip(self.panel_titles, self.panels, strict=True)]
        share = len(trusts) // len(self.qualities)
        return [
            (name, quality, dict(trusts[place * share : (place + 1) * share]))
            for place, (name, quality) in enumerate(self.qualities.items())
        ]

    def notes(self) -> list[str]:
        """What is to be said beside the figures: maps that are not to be trusted, rows that changed most."""
        lines = [f"warning: {title}: {text}" for title, text in zip(self.panel_titles, self.warnings, strict=True) if text]
        if self.movement is not None:
            changed = self.movement.neighbours_changed
            lines += ["", (_MOVED if self.most_moved else _UNMOVED)[self.config.language]]
            ids = {row: cut_text(self.rows.ids[row], _ID_COLUMNS) for row in self.most_moved}
            lines += [f"{float(changed[row]):6.0%}  {ids[row]}  {text}" for row, text in self._marked()]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Every figure with the number of rows it stands on, and the settings that were really used."""
        record: dict[str, Any] = {
            "config": self.config.to_json(),
            "n_rows": len(self.rows.ids),
            "n_rows_of_the_file": self.rows.n_all,
            "notes": list(self.rows.notes),
            "quality": {name or "map": asdict(quality) for name, quality in self.qualities.items()},
            "maps": [
                {
                    "title": title,
                    "method": panel.map.projection.method,
                    "settings": panel.map.projection.settings,
                    **asdict(panel.map.trust),
                    "warning": warning,
                }
                for panel, title, warning in zip(self.panels, self.panel_titles, self.warnings, strict=True)
            ],
        }
        if self.neighbours is not None:
            record["neighbours"] = {
                "k": self.neighbours.indices.shape[1],
                "search": "exact" if self.neighbours.exact else "NN-descent",
            }
        if self.movement is not None:
            changed = self.movement.neighbours_changed
            record["moved_most"] = [{"id": self.rows.ids[row], "changed": float(changed[row])} for row in self.most_moved]
        return record

    def write_picture(self, path: Path) -> None:
        """The maps side by side: .png, .svg or .pdf."""
        from ebr.visualization.library_caches import settle_matplotlib_cache

        settle_matplotlib_cache()
        from ebr.visualization.picture.plot import draw_maps

        draw_maps(
            [panel.map.projection for panel in self.panels],
            self.column,
            path,
            title=self.title,
            notes=[panel.map.trust.note(self.config.language) for panel in self.panels],
            warnings=self.warnings,
            panel_titles=self.panel_titles,
            groups=self.label_groups,
            n_all=self.rows.n_all,
            marked=self._marked(),
            theme=self.config.theme,
            language=self.config.language,
            preferred_fonts=self.config.chinese_fonts,
            seed=self.config.seed,
        )

    def write_page(self, path: Path) -> None:
        """The maps as one file for the browser."""
        from ebr.visualization.page.page import PageContent, PagePanel, write_map_page

        groups = {column.name: self._groups(column) for column in self.other_columns if column.numbers is None}
        if self.label_groups is not None:
            groups[self.column.name] = self.label_groups
        labels = [] if self.rows.label is None else [self.column]
        panels = [
            PagePanel(title, _subtitle(panel.map, self.config), warning, panel.map.projection.coords)
            for panel, title, warning in zip(self.panels, self.panel_titles, self.warnings, strict=True)
        ]
        write_map_page(
            path,
            PageContent(
                title=self.title,
                n_all=self.rows.n_all,
                panels=panels,
                columns=[*labels, *self.other_columns],
                is_coloured=bool(labels),
                groups=groups,
                ids=self.rows.ids,
                texts=self.rows.texts,
                neighbours=None if self.neighbours is None else self.neighbours.indices,
                similarities=None if self.neighbours is None else self.neighbours.similarities,
                lines=self.lines(),
                moved=None if self.movement is None else self.movement.neighbours_changed,
                language=self.config.language,
                theme=self.config.theme,
            ),
        )

    def write_atlas(self, path: Path) -> None:
        """The Parquet that embedding-atlas opens: the last map's coordinates, and every column."""
        from ebr.visualization.map.atlas import write_atlas

        write_atlas(path, self.panels[-1].map.projection.coords, self.rows.columns, self.neighbours, text_column=self.rows.text)

    def _marked(self) -> list[tuple[int, str]]:
        return [(row, cut_text(self.rows.texts[row], _MARKED_COLUMNS)) for row in self.most_moved]

    @cached_property
    def label_groups(self) -> list[LabelGroup] | None:
        """The labels with their colours, on picture and page alike; None for a column of numbers."""
        return None if self.column.numbers is not None else self._groups(self.column)

    def _groups(self, column: MapColumn) -> list[LabelGroup]:
        from ebr.visualization.colours import colour_groups

        return colour_groups(column.texts, [panel.map.projection.coords for panel in self.panels], theme=self.config.theme)


def _subtitle(drawn: DrawnMap, config: VisualizationConfig) -> str:
    from ebr.visualization.picture.plot import settings_text

    return " · ".join([settings_text(drawn.projection.settings, config.language), drawn.trust.note(config.language)])
