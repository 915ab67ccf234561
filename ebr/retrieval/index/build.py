"""Vectors in, index out: two passes over the vectors, of which never more are held than a block and two samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ebr.data.progress import progress_bar
from ebr.data.vectors.batch import Vectors, sample_rows
from ebr.retrieval.index.faiss_index import FaissIndex
from ebr.retrieval.index.kinds import IndexSpec
from ebr.retrieval.index.recall import ExactNeighbours, Queries
from ebr.retrieval.index.source import Block, Gathered, SeenIds, VectorSource
from ebr.retrieval.index.store import RowsReader, RowsWriter


@dataclass(frozen=True)
class Samples:
    """What the first pass leaves: the rows to learn from, and the queries to measure with (None: not measured)."""

    training: Vectors
    queries: Queries | None


def blocks_of(sources: Sequence[VectorSource], first_row: int = 0) -> Iterator[Block]:
    """The blocks of several sources, one behind the other, numbered from first_row on."""
    for source in sources:
        for block in source.blocks():
            yield replace(block, first_row=first_row + block.first_row)
        first_row += source.n_rows


def take_samples(
    old: Sequence[VectorSource],
    new: VectorSource,
    n_training: int,
    queries: Vectors | None,
    n_queries: int,
    *,
    seed: int,
    existing: RowsReader | None = None,
    measurable: bool = True,
) -> Samples:
    """The first pass: check every new id, and keep seeded samples of rows.

    old: the sources of the rows that the index has already. queries: (Q, D) to measure with; None = n_queries of the rows.
    existing: the rows that the index has. measurable: False = no queries are needed.
    Raises DataError naming ids that come twice, or that the index has.
    """
    rng = np.random.default_rng(seed)
    n_old = sum(source.n_rows for source in old)
    n_rows = n_old + new.n_rows
    training = Gathered(n_old + sample_rows(new.n_rows, n_training, rng), new.dim)
    drawn = Gathered(sample_rows(n_rows, n_queries if queries is None and measurable else 0, rng), new.dim)
    seen = SeenIds()
    for ids, _ in existing.groups() if existing else ():
        seen.add(ids, existing.path if existing else "", "come twice; build the index anew")
    again = (
        "come twice; every row needs an id of its own"
        if existing is None
        else "are in the index, or come twice; leave them out"
    )
    with progress_bar(total=n_rows, desc="read", unit="row") as bar:
        for block in blocks_of([*old, new]):
            if block.first_row >= n_old:
                seen.add(block.ids, new.path, again)
            training.take(block)
            drawn.take(block)
            bar.update(len(block.ids))
    if queries is not None:
        return Samples(training.vectors, Queries(queries, None))
    # In a seeded order of their own: rows often lie sorted, and the halves of the queries should be alike.
    order = rng.permutation(len(drawn.rows))
    own = Queries(drawn.vectors[order], drawn.rows[order])
    return Samples(training.vectors, own if measurable and n_rows > 1 else None)


def fill(
    index: FaissIndex, old: Sequence[VectorSource], new: VectorSource, rows_file: Path, queries: Queries | None,
    existing: RowsReader | None = None,
) -> ExactNeighbours | None:  # fmt: skip
    """The second pass: add the new rows to the index, write all ids and columns, and find the queries' exact neighbours.

    old: the sources of the rows that the index has, to be searched exactly too; they are in it and not added again.
    Returns None without queries.
    """
    n_old = index.n_rows
    exact = ExactNeighbours(queries) if queries is not None else None
    writer = RowsWriter(rows_file, new.columns)
    try:
        for ids, columns in existing.groups() if existing else ():
            writer.write(ids, columns)
        first_row = n_old - sum(source.n_rows for source in old)
        with progress_bar(total=new.n_rows + n_old - first_row, desc="add", unit="row") as bar:
            for block in blocks_of([*old, new], first_row):
                if block.first_row >= n_old:
                    index.add(block.vectors)
                    writer.write(block.ids, block.columns)
                if exact is not None:
                    exact.update(block.first_row, block.vectors)
                bar.update(len(block.ids))
    finally:
        writer.close()
    return exact


def learn(spec: IndexSpec, samples: Samples, *, seed: int) -> FaissIndex:
    """An empty index that has learned its lists and codes."""
    index = FaissIndex.make(spec)
    index.train(samples.training if spec.n_training else samples.training[:0], seed=seed)
    return index
