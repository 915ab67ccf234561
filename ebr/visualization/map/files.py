"""Where a map goes: its picture, page, numbers and atlas, and what of them may not be written."""

from __future__ import annotations

from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path

from ebr.config import VisualizationConfig
from ebr.config.visualization import PAGE
from ebr.data.files.write import described, manifest_path, read_json
from ebr.errors import ConfigError

PAGE_UP_TO = 200_000
"""Rows up to which a page is written unasked: 45 MB; larger ones try a browser's patience."""


@dataclass(frozen=True)
class MapFiles:
    """What is written; None for what was not asked for."""

    picture: Path | None
    page: Path | None
    atlas: Path | None
    numbers: Path

    def written(self) -> list[Path]:
        """Those that are."""
        return [path for path in (self.picture, self.page, self.atlas, self.numbers) if path is not None]

    def left_over(self) -> list[Path]:
        """What an earlier map wrote beside these, and this one does not."""
        siblings = (self.numbers.with_suffix(PAGE), _atlas(self.numbers))
        return [path for path in siblings if path not in self.written() and path.exists()]


def map_files(config: VisualizationConfig, n_rows: int) -> MapFiles:
    """The files of a map of so many rows."""
    output = config.output_path
    is_page = output.suffix.lower() == PAGE
    wants_page = n_rows <= PAGE_UP_TO if config.page is None else config.page
    return MapFiles(
        picture=None if is_page else output,
        page=output.with_suffix(PAGE) if is_page or wants_page else None,
        atlas=_atlas(output) if config.export == "atlas" else None,
        numbers=output.with_suffix(".json"),
    )


def _atlas(output: Path) -> Path:
    return output.with_suffix(".atlas.parquet")


def check_map_files(config: VisualizationConfig) -> None:
    """Refuse an output that cannot be written, or would replace what no map made. Raises ConfigError."""
    files = map_files(config, 1)
    for path in files.written():
        if path.is_dir():
            raise ConfigError(f"output_path {config.output_path}: {path} is a folder; give another name")
    for option, source in (("embeddings_path", config.embeddings_path), ("before_path", config.before_path)):
        if source is not None:
            _keep_apart(config, files, option, source)
    if files.numbers.exists() and not _is_of_a_map(files.numbers):
        raise ConfigError(
            f"output_path {config.output_path}: its numbers would replace {files.numbers}, of no map; give another name"
        )
    drawn = [path for path in (files.picture, files.page, files.atlas) if path is not None and path.exists()]
    if drawn and not files.numbers.exists():
        raise ConfigError(
            f"output_path {config.output_path}: {drawn[0]} is there already and of no map; delete it, or give another name"
        )


def _keep_apart(config: VisualizationConfig, files: MapFiles, option: str, source: Path) -> None:
    names = [
        name for path in (source, described(source)) for name in (path, manifest_path(path), path.with_suffix(".rows.parquet"))
    ]
    read = {path.resolve() for path in names}
    for path in files.written():
        if path.resolve() in read:
            raise ConfigError(f"output_path {config.output_path}: {path} would replace {option}; give another name")
    if source.is_dir() and source.resolve() in config.output_path.resolve().parents:
        raise ConfigError(f"output_path {config.output_path}: lies in {option} {source}; write elsewhere")


def _is_of_a_map(path: Path) -> bool:
    try:
        record = read_json(path)
    except (JSONDecodeError, UnicodeDecodeError):
        return False
    return isinstance(record, dict) and "maps" in record
