"""A write that fails says where, whichever library wrote: here no file may grow beyond a limit, as on a disk that is full."""

from __future__ import annotations

import errno
import resource
from contextlib import contextmanager

import numpy as np
import pytest

from ebr.config import IndexConfig
from ebr.data.files.write import write_aside
from ebr.data.vectors.embeddings import write_embeddings
from ebr.errors import EBRError
from ebr.inference.job.ledger import Ledger, work_folder
from ebr.retrieval.index.command import build_index
from ebr.retrieval.mining.passages import embed_to_disk
from tests.embedding_runs import Run, write_table
from tests.inference.test_ledger import record


@contextmanager
def no_file_beyond(n_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def fails_at(path):
    """What is written in the block finds no room, and its error names a path."""
    with pytest.raises(OSError) as caught:
        yield
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))


@pytest.mark.parametrize(("what", "room"), [("rows.parquet", 500), ("index.faiss", 30_000)])
def test_index_without_room_names_its_folder_and_leaves_nothing(tmp_path, what, room):
    write_embeddings(tmp_path / "v.npy", {"id": [str(row) for row in range(2000)]}, np.eye(2000, 16, dtype=np.float32) + 1)
    config = IndexConfig(embeddings_path=tmp_path / "v.npy", index_path=tmp_path / "ix")
    with no_file_beyond(room), fails_at(tmp_path / "ix"):
        build_index(config, say=print)
    assert [path.name for path in tmp_path.glob("*ix*")] == []


@pytest.mark.parametrize(
    ("name", "room"), [("folder", 200), *((name, room) for name in ("v.txt", "v.npy", "v.parquet") for room in (200, 3000))]
)
def test_embedding_without_room_names_the_output_and_goes_on_when_there_is_some(tmp_path, name, room):
    write_table(tmp_path / "in" / "a.txt", *[f"{row}|text {row}|a" for row in range(200)])
    run = Run(tmp_path / "in", tmp_path / "out" / name, shard_rows=50, output_format=None if "." in name else "npy")
    with no_file_beyond(room), pytest.raises((OSError, EBRError), match=r"/out/\S+: .*File too large|'.*/out/\S+'"):
        run.go()
    assert run.go().n_rows == 200


def test_journal_without_room_is_named(tmp_path):
    ledger = Ledger(tmp_path / "v.txt", {"vectors": {}, "layout": {}})
    ledger.work_dir.mkdir()
    with no_file_beyond(10), fails_at(work_folder(tmp_path / "v.txt") / "parts.jsonl"):
        ledger.add(record("key"))


def test_scratch_vectors_without_room_name_their_folder(tmp_path):
    with no_file_beyond(10), fails_at(tmp_path):
        embed_to_disk("abc", lambda texts: np.zeros((len(texts), 8), np.float32), tmp_path, block=2, desc="", total=3)


def test_array_that_numpy_could_not_write_whole_is_named_though_numpy_says_no_reason(tmp_path):
    with (
        no_file_beyond(1000),
        pytest.raises(OSError, match="did not take all of it") as caught,
        write_aside(tmp_path / "a.npy") as aside,
    ):
        np.save(aside, np.zeros(1000))
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "a.npy"))
