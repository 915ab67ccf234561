"""What looks as if a table were written otherwise than it is read; told before the work, for no row of it is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ebr.data.files.contents import TableKind
from ebr.data.tables.cells import Cells, first_records, read_cells
from ebr.data.tables.files import TableFile
from ebr.data.tables.shards import TableSource

_FILES = 16
_ROWS = 1000


def doubts_of(source: TableSource) -> list[str]:
    """A line for each kind of doubt about the first rows of the first text files; nothing where all is as it should be."""
    found: dict[str, str] = {}
    texts = [file for file in source.files if file.kind is TableKind.TEXT]
    needed = frozenset(source.schema.needed())
    for file in texts[:_FILES]:
        for line, cells in _first_rows(file, source.has_header):
            for option, doubt in _doubts(file, cells, needed):
                found.setdefault(option, f"{file.name}:{line}: {doubt}")
    return list(found.values())


def _first_rows(file: TableFile, has_header: bool) -> Iterator[tuple[int, Cells]]:
    with file.open() as stream:
        records = first_records(file.path, stream, file.dialect)
    if records is None:
        return
    rows = zip(records.lines()[:_ROWS], records.raws()[:_ROWS], strict=True)
    for line, raw in list(rows)[has_header:]:
        try:
            yield line, read_cells(raw, file.dialect, len(file.columns))
        except ValueError:
            continue


def _doubts(file: TableFile, cells: Cells, needed: Collection[str]) -> Iterator[tuple[str, str]]:
    for name, cell in zip(file.columns, cells, strict=True):
        if cell is None or name not in needed:
            continue
        if cell == "NULL":
            yield "null_values", f"{name} is the word NULL; if it means null, set null_values NULL"
        if not file.dialect.quote and len(cell) > 1 and cell[0] == cell[-1] == '"':
            yield "quote", f"{name} stands in quotes: {cell[:40]!r}; if they are not its own, set quote '\"'"
