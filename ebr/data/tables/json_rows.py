"""Rows of columns as one JSON object each: what stands for the bytes of a row where there are none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import overload

import pyarrow as pa


class JsonRows(Sequence[bytes]):
    """Rows of a table of text, each as one JSON object, made when asked for."""

    def __init__(self, cells: pa.Table) -> None:
        self._cells = cells

    def __len__(self) -> int:
        return len(self._cells)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> JsonRows: ...
    def __getitem__(self, index: int | slice) -> bytes | JsonRows:
        if isinstance(index, slice):
            return JsonRows(self._cells[index])
        cells = {name: self._cells.column(name)[index].cast(pa.binary()).as_py() for name in self._cells.column_names}
        texts = {name: None if cell is None else cell.decode(errors="backslashreplace") for name, cell in cells.items()}
        return json.dumps(texts, ensure_ascii=False).encode()
