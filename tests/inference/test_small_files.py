"""Thousands of small files share shards: the same rows, vectors and rejects as of one large file, however the run went."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebr.data.files.write import read_manifest
from ebr.data.tables.shards import read_shards
from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import DataError
from ebr.inference.job.ledger import work_folder
from ebr.inference.workers.spec import Placement
from tests.embedding_runs import Run, everything, leftovers, write_table
from tests.inference.test_pipeline import rejects_of
from tests.inference.test_resume import OUTPUTS, assert_as_if_undisturbed
from tests.shard_engines import Builder, FakeEngine, vectors_of

N_FILES, SHARD_ROWS = 60, 160  # room for 20 rows of small files in a shard


def rows_of(number):
    """Three rows of a file; the last is bad in every fifth."""
    return [f"{number}-{row}|text {number} {row}|L" if row < 2 or number % 5 else "torn" for row in range(3)]


def write_small(folder, numbers=range(N_FILES)):
    for number in numbers:
        path = folder / f"dt={number // 20}" / f"{number:03d}"
        if number % 2:
            write_table(path, *rows_of(number))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            good = [row.split("|") if "|" in row else [None, None, None] for row in rows_of(number)]
            pq.write_table(pa.table(dict(zip(("id", "text", "label"), map(list, zip(*good, strict=True)), strict=True))), path)
    return folder


@pytest.fixture
def run(tmp_path):
    return Run(write_small(tmp_path / "in"), tmp_path / "out" / "v.txt", shard_rows=SHARD_ROWS)


@pytest.mark.parametrize("name", OUTPUTS)
def test_many_small_files_give_what_one_large_one_gives(run, tmp_path, name):
    run.out = run.out.with_name(name)
    done = run.go()
    assert (done.n_files, done.n_rows, done.n_rejected) == (N_FILES, 3 * N_FILES - 12, 12)
    assert done.n_shards == read_manifest(run.out)["n_shards"] < N_FILES / 3
    rows = [row for number in range(N_FILES) for row in rows_of(number) if row != "torn"]
    write_table(tmp_path / "one" / "f", *rows)
    one = Run(tmp_path / "one", tmp_path / "large" / name, shard_rows=SHARD_ROWS)
    one.go()
    ours, theirs = read_embeddings(run.out, "|"), read_embeddings(one.out, "|")
    assert {key: ours.columns[key] for key in ("id", "text", "label")} == theirs.columns
    assert ours.vectors.tobytes() == theirs.vectors.tobytes()
    assert ours.columns["dt"] == [str(int(row.split("-")[0]) // 20) for row in ours.columns["id"]]
    assert [reject[:2] for reject in rejects_of(done)] == [
        (f"dt={number // 20}/{number:03d}", 4 if number % 2 else 3) for number in range(0, N_FILES, 5)
    ]


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("dedup", ["shard", "global"])
def test_stopped_anywhere_and_resumed_it_is_as_if_undisturbed(run, name, dedup):
    run.out, run.dedup = run.out.with_name(name), dedup
    for dies_at in (1, 40, 41, 90):
        with pytest.raises(RuntimeError, match="the engine died"):
            run.go(FakeEngine(dies_at=dies_at))
    run.go()
    assert_as_if_undisturbed(run)
    engine = FakeEngine()
    assert run.go(engine).n_kept == len(list(read_shards(run.source(), SHARD_ROWS)))
    assert engine.seen == []


def test_processes_make_the_same_of_shared_shards(run):
    run.go(build=Builder(), places=[Placement("cpu")] * 2, start_method="forkserver")
    assert_as_if_undisturbed(run)


CHANGES = {
    "changed": lambda folder: write_table(folder / "dt=1" / "031", "x|new|L"),
    "appended": lambda folder: write_small(folder, [N_FILES]),
    "added before": lambda folder: write_table(folder / "dt=0" / "!", "x|new|L"),
    "added between": lambda folder: write_table(folder / "dt=1" / "030a", "x|new|L"),
    "removed": lambda folder: (folder / "dt=1" / "031").unlink(),
    "grown large": lambda folder: write_table(folder / "dt=1" / "031", *[f"{i}|new {i}|L" for i in range(2 * SHARD_ROWS)]),
}


@pytest.mark.parametrize("name", ["v.txt", "folder"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_small_file_is_local(run, name, change):
    run.out = run.out.with_name(name)
    run.go()
    CHANGES[change](run.folder)
    engine = FakeEngine()
    done = run.go(engine)
    assert_as_if_undisturbed(run)
    assert done.n_kept >= done.n_shards / 2
    assert len([text for text in engine.seen if "new" not in text]) < N_FILES


def test_over_changed_small_files_a_key_takes_its_vector_over(run):
    run.key = "id"
    run.go()
    CHANGES["added before"](run.folder)
    engine = FakeEngine()
    run.go(engine)
    assert engine.seen == ["new"]
    assert_as_if_undisturbed(run)


def test_a_bad_row_of_a_later_file_of_a_shard_is_told_by_that_file(run):
    run.fail_on_bad_row = True
    with pytest.raises(DataError, match=r"^dt=0/000:3: text is empty"):
        run.go()
    (run.folder / "dt=0" / "000").unlink()
    with pytest.raises(DataError, match=r"^dt=0/005:4: 1 columns instead of 3"):
        run.go()


def test_large_files_and_parts_of_them_stand_alone(tmp_path):
    for name, n_rows in {"a": 3, "b": 11, "c": 165, "d": 3, "e": 3}.items():
        write_table(tmp_path / "in" / name, *[f"{name}{row}|text|L" for row in range(n_rows)])
    shards = list(read_shards(Run(tmp_path / "in", tmp_path / "v.txt").source(), SHARD_ROWS))
    found = [[(one.file, one.n_lines) for one in shard.stretches] for shard in shards]
    assert found[:4] == [[("a", 3)], [("b", 11)], [("c", 160)], [("c", 5)]]
    assert [one for shard in found[4:] for one in shard] == [("d", 3), ("e", 3)]
    alone = list(read_shards(Run(tmp_path / "in", tmp_path / "v.txt").source(), SHARD_ROWS, shared=False))
    assert [shard.digest for shard in alone[:4]] == [shard.digest for shard in shards[:4]]
    assert all(len(shard.stretches) == 1 for shard in alone)


def test_shards_of_small_files_keep_to_the_limits_whatever_the_files(tmp_path):
    rng = random.Random(7)
    for number in range(150):
        write_table(tmp_path / "in" / f"{number:03d}", *[f"{number}|{'x' * rng.randint(1, 60)}|L"] * rng.randint(1, 6))
    source = Run(tmp_path / "in", tmp_path / "v.txt").source()
    shards = list(read_shards(source, SHARD_ROWS, max_bytes=8000))
    assert [one.file for shard in shards for one in shard.stretches] == [file.name for file in source.files]
    for shard in shards:
        assert len(shard.stretches) == 1 or (shard.n_lines <= 20 and sum(one.n_bytes for one in shard.stretches) <= 1000)
    assert shards[-1].read_share == 1
    assert len({shard.digest for shard in shards}) == len(shards) < 100


@pytest.mark.parametrize("name", ["v.txt", "folder"])
def test_an_output_of_an_earlier_version_keeps_its_parts_and_goes_on(run, name):
    run.out = run.out.with_name(name)
    alone = len(list(read_shards(run.source(), SHARD_ROWS, shared=False)))
    state = work_folder(run.out) / "run.json"
    with pytest.raises(RuntimeError, match="the engine died"):
        run.go(FakeEngine(dies_at=1))
    record = json.loads(state.read_text())
    del record["shared_shards"]  # as an earlier version leaves it
    state.write_text(json.dumps(record))
    assert run.go().n_shards == alone
    write_small(run.folder, [N_FILES])
    engine = FakeEngine()
    done = run.go(engine)
    assert (done.n_kept, done.n_shards, len(engine.seen)) == (alone, alone + 1, 2)
    assert leftovers(run.out.parent) == []
    rows = [f"text {number} {row}" for number in range(N_FILES + 1) for row in range(3) if row < 2 or number % 5]
    assert read_embeddings(run.out, "|").vectors.tobytes() == vectors_of(rows).tobytes()
    run.dedup = "none"  # everything anew: as this version has it
    assert run.go().n_shards < alone / 3
    assert_as_if_undisturbed(run)
    assert everything(run.out.parent)
