"""Look: vectors in; a map, an interactive page and their numbers out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ebr.config import VisualizationConfig
from ebr.data.files.places import check_place
from ebr.data.files.write import write_json
from ebr.data.result_tables import DataFrame, Fact, Part, Shown, Table, fact_lines
from ebr.data.speech import Say, speak
from ebr.errors import require_extra
from ebr.visualization.map.content import MapContent, MapPanel
from ebr.visualization.map.files import MapFiles, check_map_files, map_files
from ebr.visualization.map.numbers import METHODS, Coords, DrawnMap, MapNumbers
from ebr.visualization.map.rows import MapRows, read_map_rows
from ebr.visualization.map.vectors import Rows

if TYPE_CHECKING:
    from ebr.visualization.map.cache import MapCache

_COLUMNS_NAMED = 10
_MEASURED_AHEAD, _MEASURED_AHEAD_UP_TO = 4, 200_000
"""Columns beside the label column whose groups are measured too, and the rows up to which that takes seconds."""
_WORDS = {"en": ("before", "after"), "zh": ("微调前", "微调后")}


@dataclass(frozen=True)
class VisualizationPlan:
    """Which rows a map would show, and which of them (M,) are projected; the others are placed by their neighbours."""

    config: VisualizationConfig
    rows: MapRows
    projected: Rows

    def lines(self) -> list[str]:
        """The plan, for people."""
        rows, config = self.rows, self.config
        dim = rows.vectors.shape[1]
        before = [] if rows.before is None else [f"before  {config.before_path}: vectors of {rows.before.shape[1]}"]
        files = map_files(config, len(rows.ids))
        labels = (
            rows.column(config.label_kind).doubt if rows.label is not None else f"none, so all have one colour{_others(rows)}"
        )
        shown = [f"shown   {self._shown()}"] if rows.n_all > len(self.projected) else []
        page = [f"no page: {len(rows.ids):,} rows; --page writes one all the same"] if self._lacks_page(files) else []
        return [
            f"input   {config.embeddings_path}: {rows.n_all:,} vectors of {dim}, {len({*rows.labels} - {''})} labels",
            *before,
            *(f"warning: {note}" for note in rows.notes),
            *([f"labels  {labels}"] if labels else []),
            *shown,
            f"output  {config.output_path}",
            *page,
        ]

    def _shown(self) -> str:
        n_projected, n_all = len(self.projected), self.rows.n_all
        is_drawn_by_label = self.rows.label is not None and self.rows.column(self.config.label_kind).numbers is None
        how = "every label in proportion" if is_drawn_by_label else "at random"
        sample = f"a sample of {n_projected:,} of {n_all:,} rows, {how} (max_points)"
        if len(self.rows.ids) == n_projected:
            return sample
        return f"all rows; {sample} is projected, the rest placed by its neighbours in it"

    def _lacks_page(self, files: MapFiles) -> bool:
        return files.page is None and self.config.page is None


def _others(rows: MapRows) -> str:
    names = [repr(name) for name in rows.columns if name != rows.id]
    return f"; name a column with --label_column: {', '.join(names[:_COLUMNS_NAMED])}" if names else ""


@dataclass(frozen=True)
class VisualizationResult(Shown):
    """What was drawn and its numbers. picture, page and atlas are None where they were not asked for."""

    picture: Path | None
    page: Path | None
    numbers: Path
    atlas: Path | None
    lines: list[str]
    figures: Table
    """Those of the lines: vectors (where two models are compared), measure, name, map, value, n_rows, meaning."""
    heads: list[str]
    """What the lines say before the figures, and behind them."""
    notes: list[str]

    def summary(self) -> str:
        """The metrics with what they mean, and where the files are."""
        return "\n".join([*self.lines, *fact_lines(self._files(), 9)])

    def parts(self) -> list[Part]:
        """The picture, where it is one that a notebook can show; the figures; where the files are."""
        picture: list[Part] = [] if self.picture is None else [self.picture]
        notes = ["\n".join(self.notes).strip()] if self.notes else []
        return [*picture, *self.heads, self.figures.without("measure"), *notes, self._files()]

    def to_frame(self) -> DataFrame:
        """The figures as a DataFrame."""
        return self.figures.to_frame()

    def _files(self) -> list[Fact]:
        made = {"picture": self.picture, "page": self.page, "numbers": self.numbers, "atlas": self.atlas}
        files = [(name, str(path)) for name, path in made.items() if path is not None]
        if self.atlas is not None:
            from ebr.visualization.map.atlas import atlas_command

            files.append(("open it", atlas_command(self.atlas)))
        return files


def plan_visualization(config: VisualizationConfig) -> VisualizationPlan:
    """Read the rows and check columns and outputs, and draw nothing."""
    require_extra("maps", "a map")
    config.check()
    config = config.model_copy(update={"output_path": check_place(config.output_path)})
    check_map_files(config)
    return VisualizationPlan(config, *_chosen(read_map_rows(config, _cache(config)), config))


def visualize_embeddings(config: VisualizationConfig, *, say: Say = speak) -> VisualizationResult:
    """Draw vectors as a map, and measure their clusters in the original space and how far the map can be trusted.

    Raises EBRError subclasses that say what to mend.
    """
    plan = plan_visualization(config)
    config = plan.config
    for line in plan.lines():
        say(line)
    content = _content(plan, say)
    files = map_files(config, len(plan.rows.ids))
    # The numbers vouch for the rest: those of another run never stand beside this one's picture, nor this one's files alone.
    write_json(files.numbers, {"config": config.to_json(), "maps": [], "files": []})
    if files.picture is not None:
        content.write_picture(files.picture)
    if files.page is not None:
        content.write_page(files.page)
    if files.atlas is not None:
        content.write_atlas(files.atlas)
    write_json(files.numbers, content.to_json() | {"files": [path.name for path in files.written()]})
    stale = [f"{path} is of an earlier map" for path in files.left_over()]
    lines, notes = [*content.lines(), *stale], [*content.notes(), *stale]
    return VisualizationResult(
        files.picture, files.page, files.numbers, files.atlas, lines, content.figures(), content.heads(), notes
    )


def _cache(config: VisualizationConfig) -> MapCache | None:
    from ebr.visualization.map.cache import MapCache

    return MapCache() if config.cache else None


def _content(plan: VisualizationPlan, say: Say) -> MapContent:
    """Everything that takes long: the rows projected and measured."""
    rows, config, cache = plan.rows, plan.config, _cache(plan.config)
    after = MapNumbers(rows.vectors, plan.projected, config, cache, say)
    before = None if rows.before is None else MapNumbers(rows.before, plan.projected, config, cache, say)
    content = _single(rows, after, config) if before is None else _compared(rows, before, after, config)
    if cache is not None and len(rows.ids) <= _MEASURED_AHEAD_UP_TO:
        # Small beside the projection, and then a map by another label column is drawn as fast as one with another title.
        for column in content.other_columns[:_MEASURED_AHEAD]:
            for numbers in (after, *([] if before is None else [before])):
                numbers.quality(column)
    return content


def _chosen(rows: MapRows, config: VisualizationConfig) -> tuple[MapRows, Rows]:
    """The rows that are drawn, and which of them are projected."""
    from ebr.visualization.project.sampling import stratified_sample

    n_rows, way = len(rows.ids), config.over_max_points
    if n_rows <= config.max_points or way == "project":
        return rows, np.arange(n_rows)
    has_numbers = rows.column(config.label_kind).numbers is not None
    sample = stratified_sample([""] * n_rows if has_numbers else rows.labels, config.max_points, seed=config.seed)
    return (rows, sample) if way == "place" else (rows.take(sample), np.arange(len(sample)))


def _single(rows: MapRows, numbers: MapNumbers, config: VisualizationConfig) -> MapContent:
    panels = [MapPanel("", numbers.map(method)) for method in METHODS[config.method]]
    files = map_files(config, len(rows.ids))
    neighbours = None if files.page is None and files.atlas is None else numbers.neighbours()
    return MapContent(rows, config, panels, {"": numbers.quality(rows.column(config.label_kind))}, neighbours)


def _compared(rows: MapRows, before: MapNumbers, after: MapNumbers, config: VisualizationConfig) -> MapContent:
    """Two models' maps of the same rows: begun at the same places, the newer turned and scaled onto the older."""
    from ebr.visualization.project.alignment import movement, procrustes_align

    method = "tsne" if config.method == "both" else config.method
    start = before.map("pca").projection.coords
    older, newer = before.map(method, start), after.map(method, start)
    aligned = procrustes_align(older.projection.coords, newer.projection.coords)
    maps = (_begun_together(older, older.projection.coords), _begun_together(newer, aligned))
    words, near = _WORDS[config.language], after.neighbours()
    models = [(manifest or {}).get("model") for manifest in (rows.before_manifest, rows.manifest)]
    names = [f"{word}: {Path(model).name}" if model else word for word, model in zip(words, models, strict=True)]
    column = rows.column(config.label_kind)
    return MapContent(
        rows,
        config,
        [MapPanel(name, one) for name, one in zip(names, maps, strict=True)],
        {word: numbers.quality(column) for word, numbers in zip(words, (before, after), strict=True)},
        near,
        movement(older.projection.coords, aligned, before.neighbours(), near),
    )


def _begun_together(one: DrawnMap, coords: Coords) -> DrawnMap:
    """One of two maps as it is drawn, its settings telling where both began; a PCA began nowhere, and its axes were turned."""
    from ebr.visualization.picture.plot import SHARED_START

    kept = {name: value for name, value in one.projection.settings.items() if not name.startswith("variance on")}
    settings = {name: SHARED_START if name == "start" else value for name, value in kept.items()}
    return replace(one, projection=replace(one.projection, coords=coords, settings=settings))
