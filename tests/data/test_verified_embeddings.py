"""A vector file is hashed once in a command, however often it is read; one that changed since is refused all the same."""

import os

import numpy as np
import pytest

from ebr.config import IndexConfig, VisualizationConfig
from ebr.data.files import write
from ebr.data.files.write import hash_file
from ebr.data.vectors.embeddings import find_embeddings, write_embeddings
from ebr.data.vectors.formats import files_of, format_of
from ebr.errors import DataError
from ebr.retrieval.index.command import build_index
from ebr.visualization.command import visualize_embeddings
from tests.embedding_runs import Run, write_table
from tests.hashed import noting_hashes

NAMES = ["v.txt", "v.parquet", "v.npy"]


def silent(line):
    """Where lines for people go that nobody looks at."""


def vectors(path, seed=0, prefix="r"):
    rows = np.random.default_rng(seed).normal(size=(40, 8)).astype(np.float32)
    labels = [f"label {row % 4}" for row in range(40)]
    write_embeddings(path, {"id": [f"{prefix}{row}" for row in range(40)], "label": labels}, rows)
    return path


def digests(path):
    return [hash_file(file) for file in files_of(path, format_of(path, None))]


@pytest.mark.parametrize("name", NAMES)
def test_building_an_index_hashes_each_file_once(tmp_path, monkeypatch, name):
    first, second = vectors(tmp_path / name), vectors(tmp_path / f"more-{name}", seed=1, prefix="s")
    expected, more = digests(first), digests(second)
    taken = noting_hashes(monkeypatch, write)
    options = {"index_path": tmp_path / "index", "kind": "flat", "id_column": "id", "output_columns": []}
    build_index(IndexConfig(embeddings_path=first, query_embeddings=second, **options), say=silent)
    assert [taken[digest] for digest in [*expected, *more]] == [1] * len([*expected, *more])
    taken.clear()
    build_index(IndexConfig(embeddings_path=second, add=True, **options), say=silent)
    assert [taken[digest] for digest in [*expected, *more]] == [1] * len([*expected, *more])


@pytest.mark.parametrize("has_manifest", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_map_hashes_each_file_once_whether_it_is_drawn_for_the_first_time_or_again(tmp_path, monkeypatch, name, has_manifest):
    monkeypatch.setenv("EBR_CACHE_DIR", str(tmp_path / "cache"))
    path = vectors(tmp_path / name)
    expected = digests(path)
    if not has_manifest:
        (tmp_path / f"{name}.manifest.json").unlink()
    taken = noting_hashes(monkeypatch, write)
    for seed in (0, 0, 1):
        taken.clear()
        config = VisualizationConfig(
            embeddings_path=path, output_path=tmp_path / "map.png", label_column="label", method="pca", page=False, seed=seed
        )  # fmt: skip
        visualize_embeddings(config, say=silent)
        assert [taken[digest] for digest in expected] == [1] * len(expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_brought_up_to_date_hashes_what_it_finds_once(tmp_path, monkeypatch, name):
    table, run = tmp_path / "in" / "a.csv", Run(tmp_path / "in", tmp_path / "out" / name, key="id")
    write_table(table, *(f"{row}|text {row}|l" for row in range(9)))
    run.go()
    before = digests(run.out)
    write_table(table, *(f"{row}|text {row}|l" for row in range(9)), "9|another|l")
    taken = noting_hashes(monkeypatch, write)
    run.go()
    assert digests(run.out)[0] != before[0]
    assert taken[before[0]] == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_changed_between_two_readings_is_refused(tmp_path, name):
    path = vectors(tmp_path / name)
    files = find_embeddings(path)
    files.read()
    for file in files_of(path, files.format):
        content, stat = file.read_bytes(), file.stat()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        with pytest.raises(DataError, match=f"{file.name}: differs from what its manifest recorded"):
            files.read()
        with pytest.raises(DataError, match=f"{file.name}: differs from what its manifest recorded"):
            files.fingerprint()
        file.write_bytes(content)
    files.read()
