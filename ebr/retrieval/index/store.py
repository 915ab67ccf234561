"""An index on disk: a folder of the FAISS file, the rows that its hits show, BM25 if there is one, and the sidecar of all."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ebr.data.files.asides import recover
from ebr.data.files.write import FOLDER_MANIFEST, hash_file, read_manifest
from ebr.data.vectors.batch import Columns
from ebr.errors import ConfigError, DataError, first_line
from ebr.retrieval.index.kinds import Kind, Metric

if TYPE_CHECKING:
    from ebr.retrieval.measures.lexical import LexicalIndex

INDEX_FILE = "index.faiss"
ROWS_FILE = "rows.parquet"
LEXICAL_FOLDER = "bm25"
LEXICAL_FILES = tuple(
    f"{LEXICAL_FOLDER}/{name}.index.{suffix}"
    for name, suffix in [
        ("data.csc", "npy"),
        ("indices.csc", "npy"),
        ("indptr.csc", "npy"),
        ("vocab", "json"),
        ("params", "json"),
    ]
)
ID = "id"
KIND = "index"
_GROUP_ROWS = 2048
_GROUPS_KEPT = 64
_TRIED_TEXTS = 100

Cells = dict[str, str | None]


@dataclass(frozen=True)
class Sidecar:
    """What the manifest of an index records, as far as a search depends on it; `facts` is all of it."""

    kind: Kind
    metric: Metric
    dim: int
    n_rows: int
    columns: tuple[str, ...]
    lexical_column: str | None
    """Whose words BM25 knows; None for an index of vectors only."""
    effort: dict[str, int]
    files: dict[str, str]
    facts: dict[str, Any]


def read_sidecar(folder: Path) -> Sidecar:
    """The sidecar of an index. Raises DataError when there is none, or it is of something else, or cannot be used."""
    if not folder.exists():
        recover(folder, is_folder=True)
    if not folder.exists():
        raise DataError(f"index_path {folder}: no such folder; build it with: ebr index --index_path {folder}")
    facts = read_manifest(folder)
    if facts is None:
        raise DataError(
            f"index_path {folder}: no {FOLDER_MANIFEST}, so nothing says what its vectors are, or that it is whole; "
            "build it with ebr index, or give trust_index and model_path to open a FAISS file as it is"
        )
    if facts.get("kind") != KIND:
        raise DataError(
            f"index_path {folder}: its manifest is that of {facts.get('kind')!r}, not of an index; give another folder"
        )
    try:
        lexical = facts.get("lexical")  # indexes of before have none
        names = [INDEX_FILE, ROWS_FILE, *(LEXICAL_FILES if lexical else ())]
        return Sidecar(
            kind=Kind(facts["index_kind"]),
            metric=Metric(facts["metric"]),
            dim=int(facts["dim"]),
            n_rows=int(facts["n_rows"]),
            columns=tuple(map(str, facts["columns"])),
            lexical_column=str(lexical["column"]) if lexical else None,
            effort={str(name): int(value) for name, value in facts["search_effort"].items()},
            files={name: str(facts["files"][name]) for name in names},
            facts=facts,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / FOLDER_MANIFEST}: cannot be used ({type(error).__name__}: {error}); build the index anew"
        ) from None


def check_files(folder: Path, sidecar: Sidecar) -> None:
    """Compare the files with the hashes of the sidecar. Raises DataError naming the one that is absent or changed."""
    for name, digest in sidecar.files.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file}: is missing; put it back, or build the index anew")
        if hash_file(file) != digest:
            raise DataError(f"{file}: differs from what {FOLDER_MANIFEST} recorded; put it back, or build the index anew")


class Shape(Protocol):
    """What an index in memory says of itself."""

    @property
    def n_rows(self) -> int:
        """Its vectors."""

    @property
    def dim(self) -> int:
        """Their numbers."""

    @property
    def is_inner_product(self) -> bool:
        """Whether it scores by inner product."""

    @property
    def knobs(self) -> dict[str, list[int]]:
        """What can be turned when searching."""


def check_index(file: Path, index: Shape, sidecar: Sidecar, rows: RowsReader | None = None) -> None:
    """Compare an index, and its rows, with its sidecar. Raises DataError naming what does not fit."""
    mend = f"{FOLDER_MANIFEST} is of another index; build it anew"
    if not index.is_inner_product:
        raise DataError(f"{file}: its metric is a distance, where metric {sidecar.metric.value} is an inner product; {mend}")
    if index.dim != sidecar.dim:
        raise DataError(f"{file}: has vectors of {index.dim} numbers, where dim is {sidecar.dim}; {mend}")
    if index.n_rows != sidecar.n_rows:
        raise DataError(f"{file}: has {index.n_rows:,} vectors, where n_rows is {sidecar.n_rows:,}; {mend}")
    kind = sidecar.kind
    turned = {"nprobe": kind.has_lists, "efSearch": kind.has_graph, "k_factor": kind.refined}
    wanted = {name for name, is_there in turned.items() if is_there}
    if set(index.knobs) != wanted:
        raise DataError(f"{file}: is not of the kind {kind.value} that the sidecar says; {mend}")
    if set(sidecar.effort) != wanted or min(sidecar.effort.values(), default=1) < 1:
        raise DataError(
            f"{file.parent / FOLDER_MANIFEST}: search_effort {sidecar.effort} does not fit kind {kind.value}; {mend}"
        )
    if rows is not None and rows.n_rows != sidecar.n_rows:
        raise DataError(f"{rows.path}: has {rows.n_rows:,} rows, where n_rows is {sidecar.n_rows:,}; {mend}")
    if rows is not None and tuple(rows.columns) != sidecar.columns:
        raise DataError(f"{rows.path}: has the columns {rows.columns}, where columns are {list(sidecar.columns)}; {mend}")


def open_lexical(folder: Path, sidecar: Sidecar, rows: RowsReader) -> LexicalIndex | None:
    """BM25 of an index whose files were checked; None when it has none. Raises DataError when it is of other rows or words."""
    if sidecar.lexical_column is None:
        return None
    from ebr.retrieval.measures.lexical import LexicalIndex  # with scipy, which a search by vectors does without

    lexical = LexicalIndex.load(folder / LEXICAL_FOLDER)
    if lexical.n_documents != sidecar.n_rows:
        raise DataError(
            f"{folder / LEXICAL_FOLDER}: has {lexical.n_documents:,} rows, where n_rows is {sidecar.n_rows:,}; "
            f"{FOLDER_MANIFEST} is of another index; build it anew"
        )
    # Words that are cut differently now, by another version, would be looked for in vain.
    for text in islice(rows.texts(sidecar.lexical_column), _TRIED_TEXTS):
        if unknown := lexical.unknown_words(text):
            raise DataError(
                f"{folder / LEXICAL_FOLDER}: lacks {unknown[0]!r}, a word of its own rows as this version of EBR cuts them "
                f"(made with {sidecar.facts['lexical'].get('versions')}); build the index anew"
            )
    return lexical


def no_words(folder: Path, sidecar: Sidecar | None) -> ConfigError:
    """The error of a search by words in an index without BM25, with the command that mends it."""
    vectors = [str(one["path"]) for one in sidecar.facts["embeddings"]] if sidecar else []
    path = vectors[0] if len(vectors) == 1 else "VECTORS"
    return ConfigError(
        f"mode: lexical and hybrid read words, and the index {folder} holds vectors only; build it anew with the column of its "
        f"texts: ebr index --embeddings_path {path} --index_path {folder} --lexical_column COLUMN"
    )


def check_replaceable(folder: Path) -> None:
    """Refuse to write an index over what is none. Raises ConfigError."""
    if folder.is_file():
        raise ConfigError(f"index_path {folder}: is a file; an index is a folder")
    if not folder.name:
        raise ConfigError(f"index_path {folder}: is the working folder; give a folder of its own")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    kind = (read_manifest(folder) or {}).get("kind")
    if kind != KIND:
        what = "holds other files" if kind is None else f"is a {kind} of ebr"
        raise ConfigError(f"index_path {folder}: {what}; give a new folder")
    # The folder is replaced as a whole.
    ours = {INDEX_FILE, ROWS_FILE, FOLDER_MANIFEST, LEXICAL_FOLDER, *LEXICAL_FILES}
    strangers = sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*")} - ours)
    if strangers:
        raise ConfigError(f"index_path {folder}: holds {', '.join(strangers[:3])} beside the index; move that out of it")


class RowsWriter:
    """The ids and columns of the rows of an index, written as they come."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        # The id stands first; a column that is kept may be called id too, where the ids are another column's.
        first = next(name for name in (ID, f"_{ID}", f"__{ID}", f"___{ID}") if name not in columns)
        self._names = [first, *columns]
        self._schema = pa.schema([pa.field(name, pa.string()) for name in self._names])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, ids: Sequence[str], columns: Mapping[str, Sequence[str | None]]) -> None:
        """Append rows."""
        cells = [list(ids), *(list(columns[name]) for name in self._names[1:])]
        table = pa.Table.from_arrays([pa.array(column, pa.string()) for column in cells], schema=self._schema)
        self._writer.write_table(table, row_group_size=_GROUP_ROWS)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


class RowsReader:
    """The ids and columns of any rows, read in groups as they are asked for; the last few groups are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)}); build the index anew") from None
        metadata = self._file.metadata
        self.n_rows = int(metadata.num_rows)
        self.columns = list(self._file.schema_arrow.names)[1:]
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._kept: OrderedDict[int, list[pa.ChunkedArray]] = OrderedDict()

    def row(self, row: int) -> tuple[str, Cells]:
        """The id and the columns of one row, from 0."""
        group = bisect_right(self._starts, row) - 1
        cells = [column[row - self._starts[group]].as_py() for column in self._group(group)]
        return str(cells[0]), dict(zip(self.columns, cells[1:], strict=True))

    def _group(self, group: int) -> list[pa.ChunkedArray]:
        if group not in self._kept:
            self._kept[group] = self._file.read_row_group(group).columns
            if len(self._kept) > _GROUPS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]

    def texts(self, column: str) -> Iterator[str]:
        """One column of all rows in their order, null as an empty text."""
        for group in range(len(self._starts) - 1):
            yield from (text or "" for text in self._file.read_row_group(group, [column]).column(column).to_pylist())

    def groups(self) -> Iterator[tuple[list[str], Columns]]:
        """All rows in their order, as (ids, columns) of some at a time."""
        for group in range(len(self._starts) - 1):
            ids, *columns = [column.to_pylist() for column in self._file.read_row_group(group).columns]
            yield [str(name) for name in ids], dict(zip(self.columns, columns, strict=True))
