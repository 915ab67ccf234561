"""However many files there are, few are open at once: the usual limit of a process is 1,024."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ebr.data.training.examples import find_training_files, read_examples
from ebr.data.vectors.embeddings import read_embeddings
from ebr.data.vectors.formats import VectorFormat, join_parts, write_vectors
from tests.embedding_runs import Run, write_table

N_FILES = 30
FORMATS = [VectorFormat.TXT, VectorFormat.PARQUET, VectorFormat.NPY]


@contextmanager
def few_open_files():
    """Room for twelve more open files than there are now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(file.name) for file in Path("/dev/fd").iterdir()}
    free = (number for number in count() if number not in used)  # the limit is one of numbers, and low ones may be free
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, 12, None)), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_number_of_parts_is_joined_and_read_with_few_open_files(tmp_path, fmt):
    parts = []
    for number in range(N_FILES):
        part = tmp_path / "parts" / f"p-{number:02}.{fmt.value}"
        part.parent.mkdir(exist_ok=True)
        write_vectors(part, fmt, pa.table({"id": [str(number)]}), np.full((1, 2), number, np.float32), delimiter="|")
        parts.append(part)
    whole = tmp_path / f"whole.{fmt.value}"
    with few_open_files():
        join_parts(parts, whole, fmt)
        for path in (whole, tmp_path / "parts"):
            found = read_embeddings(path, "|")
            assert found.vectors[:, 0].tolist() == list(range(N_FILES))
            assert found.columns["id"] == [str(number) for number in range(N_FILES)]


@pytest.mark.parametrize("name", ["vectors.npy", "vectors.parquet", "parts"])
def test_tables_become_one_output_with_few_open_files(tmp_path, name):
    for number in range(N_FILES):
        write_table(tmp_path / "in" / f"{number:02}.txt", f"{number}|text {number}|a")
    run = Run(tmp_path / "in", tmp_path / name, output_format=None if "." in name else "npy")
    with few_open_files():
        assert run.go().n_rows == N_FILES
    assert read_embeddings(run.out, "|").columns["id"] == [str(number) for number in range(N_FILES)]


def test_training_files_are_read_with_few_open_files(tmp_path):
    for number in range(N_FILES):
        (tmp_path / f"{number:02}.jsonl").write_text(f'{{"query": "q{number}", "pos": ["p{number}"]}}\n', encoding="utf-8")
    with few_open_files():
        assert len(read_examples(find_training_files(str(tmp_path)))) == N_FILES
