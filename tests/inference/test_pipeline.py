"""Tables in, vectors out, with an engine that needs no model: every row in its place, every row left out listed."""

from __future__ import annotations

import base64
import errno
import json
import os
import signal
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import DataError, Interrupted
from ebr.inference.job import output as output_module
from ebr.inference.job import worker as worker_module
from ebr.inference.job.worker import ShardWorker
from tests import embedding_runs
from tests.embedding_runs import Run, everything, leftovers, write_table
from tests.shard_engines import FakeEngine, vectors_of

OUTPUTS = ["v.txt", "v.parquet", "v.npy", "folder"]


@pytest.fixture
def folder(tmp_path):
    write_table(tmp_path / "in" / "b.csv", *[f"b{i}|text b{i}|B" for i in range(7)])
    write_table(tmp_path / "in" / "a" / "a.csv", *[f"a{i}|文 a{i}!|A" for i in range(3)])
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "v.txt"


TEXTS = [f"文 a{i}!" for i in range(3)] + [f"text b{i}" for i in range(7)]


def rejects_of(done):
    lines = [json.loads(line) for line in done.rejects_path.read_text(encoding="utf-8").splitlines()]
    return [(line["file"], line["line"], line["reason"], base64.b64decode(line["raw_base64"])) for line in lines]


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize("shard_rows", [1, 2, 3, 4096])
def test_rows_keep_their_order_over_files_and_shards(folder, tmp_path, out, shard_rows):
    engine = FakeEngine()
    done = Run(folder, tmp_path / "out" / out, shard_rows=shard_rows).go(engine)
    read = read_embeddings(tmp_path / "out" / out, "|")
    assert read.columns["id"] == ["a0", "a1", "a2", *(f"b{i}" for i in range(7))]
    assert read.columns["text"] == TEXTS
    assert read.vectors.tobytes() == vectors_of(TEXTS).tobytes()
    assert (done.n_files, done.n_rows, done.n_rejected, done.dim, done.rejects_path) == (2, 10, 0, 5, None)
    assert sorted(engine.seen) == sorted(TEXTS)
    assert len(engine.threads) == 1
    assert leftovers(tmp_path / "out") == []


def test_shard_size_changes_neither_vectors_nor_rejects(tmp_path):
    write_table(tmp_path / "in" / "a.csv", *[f"{i}|text {i}|L" if i % 4 else f"{i}" for i in range(20)])
    done = [Run(tmp_path / "in", tmp_path / str(n) / "v.txt", shard_rows=n).go() for n in (1, 3, 4096)]
    assert len({each.output_path.read_bytes() for each in done}) == 1
    assert len({each.rejects_path.read_bytes() for each in done}) == 1


def test_a_folder_holds_one_part_a_shard_in_the_order_of_its_manifest(folder, tmp_path):
    Run(folder, tmp_path / "out", shard_rows=3).go()
    parts = sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    manifest = json.loads((tmp_path / "out" / "ebr_manifest.json").read_text())
    assert [name[:11] for name in parts] == ["part-000000", "part-000001", "part-000002", "part-000003"]
    assert list(manifest["files"]) == parts
    assert manifest["n_shards"] == 4


def test_manifest_counts_rows_and_changes_with_its_inputs(tmp_path, out):
    write_table(tmp_path / "in" / "a.csv", "1|good|A", "2")
    run = Run(tmp_path / "in", out, facts={"model_sha256": "abc"})
    run.go()
    manifest = read_embeddings(out, "|").manifest
    assert {key: manifest[key] for key in ("n_rows", "n_rejected", "dim", "model_sha256", "columns", "delimiter")} == {
        "n_rows": 1, "n_rejected": 1, "dim": 5, "model_sha256": "abc", "columns": ["id", "text", "label"], "delimiter": "|",
    }  # fmt: skip
    write_table(tmp_path / "in" / "a.csv", "1|good|B", "2")
    run.go()
    assert read_embeddings(out, "|").manifest["inputs_sha256"] != manifest["inputs_sha256"]


# ---------------------------------------------------------------- columns


def test_chosen_columns_go_out_in_the_order_chosen(tmp_path, out):
    write_table(tmp_path / "in" / "a.csv", "1|good|A")
    write_table(tmp_path / "in" / "b.csv", "fine|2|B|more", header="text|id|label|extra")
    Run(tmp_path / "in", out, columns=["label", "id"]).go()
    assert read_embeddings(out, "|").columns == {"label": ["A", "B"], "id": ["1", "2"]}
    assert out.read_text().splitlines()[0] == "label|id|vector"


def test_same_columns_in_another_order_are_put_in_order(tmp_path, out):
    write_table(tmp_path / "in" / "a.csv", "1|good|A")
    write_table(tmp_path / "in" / "b.csv", "B|fine|2", header="label|text|id")
    Run(tmp_path / "in", out).go()
    assert read_embeddings(out, "|").columns == {"id": ["1", "2"], "text": ["good", "fine"], "label": ["A", "B"]}


def test_nulls_and_folders_of_partitions_go_out_as_cells(tmp_path, out):
    write_table(tmp_path / "in" / "dt=2026-01-01" / "000000_0", "\\N|good|A", header="id|text|label")
    Run(tmp_path / "in", out).go()
    assert read_embeddings(out, "|").columns == {"id": [None], "text": ["good"], "label": ["A"], "dt": ["2026-01-01"]}


# ---------------------------------------------------------------- rows left out


@pytest.mark.parametrize("name", ["v.txt", "v.npy", "folder"])
def test_rejected_rows_are_listed_with_file_line_reason_and_bytes_and_counted(tmp_path, name):
    write_table(tmp_path / "in" / "a.csv", "1|good|A", "2| |A", b"3|\xff|A", "4|two", "5|\\N|A")
    write_table(tmp_path / "in" / "b.csv", "6||B", "7|good|B")
    done = Run(tmp_path / "in", tmp_path / "out" / name, shard_rows=2).go()
    assert done.rejects_path == tmp_path / "out" / f"{name}.rejects.jsonl"
    assert rejects_of(done) == [
        ("a.csv", 3, "text is empty", b"2| |A\n"),
        ("a.csv", 4, "not UTF-8", b"3|\xff|A\n"),
        ("a.csv", 5, "2 columns instead of 3", b"4|two\n"),
        ("a.csv", 6, "text is empty", b"5|\\N|A\n"),
        ("b.csv", 2, "text is empty", b"6||B\n"),
    ]
    assert (done.n_rows, done.n_rejected) == (2, 5)
    assert done.first_rejects[0] == "a.csv:3: text is empty"
    assert read_embeddings(tmp_path / "out" / name, "|").columns["id"] == ["1", "7"]


def test_only_the_first_five_rejects_are_told(tmp_path, out):
    write_table(tmp_path / "in" / "a.csv", "0|good|A", *["1|" for _ in range(9)])
    done = Run(tmp_path / "in", out, shard_rows=2).go()
    assert [line.split(":")[1] for line in done.first_rejects] == ["3", "4", "5", "6", "7"]
    assert done.n_rejected == 9


def test_rejects_of_the_run_before_go_when_there_are_none(tmp_path, out):
    table = write_table(tmp_path / "in" / "a.csv", "1|good|A", "2")
    assert Run(tmp_path / "in", out).go().rejects_path.exists()
    write_table(table, "1|good|A")
    assert Run(tmp_path / "in", out).go().rejects_path is None
    assert sorted(everything(out.parent)) == ["v.txt", "v.txt.manifest.json"]


UNFIT = ["fine", "a|b", "line\nbreak", "\\N", "also fine"]


def test_rows_that_text_cannot_hold_are_rejected_with_their_bytes(tmp_path, out):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": UNFIT}), tmp_path / "in" / "t.parquet")
    done = Run(tmp_path / "in", out, shard_rows=2).go()
    assert [(line, json.loads(raw)["text"]) for _, line, _, raw in rejects_of(done)] == list(enumerate(UNFIT, 1))[1:4]
    assert [reason.split(":")[0] for _, _, reason, _ in rejects_of(done)] == [
        "text holds the delimiter '|'",
        "text holds a line break",
        "text holds \\N, which means null",
    ]
    assert read_embeddings(out, "|").columns["text"] == ["fine", "also fine"]
    assert Run(tmp_path / "in", out.with_suffix(".parquet")).go().n_rejected == 0


@pytest.mark.parametrize("dedup", ["shard", "global", "none"])
def test_texts_too_large_for_the_device_are_rejected_and_the_rest_is_kept(tmp_path, out, dedup):
    write_table(tmp_path / "in" / "a.csv", "1|a|A", "2|huge|A", "3|c|A", "4|huge|A", "5|a|A", "6|huge|A", "7|x")
    done = Run(tmp_path / "in", out, dedup=dedup).go(FakeEngine(too_large=["huge"]))
    why = "does not fit in the device's memory, even alone; lower max_seq_length"
    assert [(line, reason, raw) for _, line, reason, raw in rejects_of(done)] == [
        (3, why, b"2|huge|A\n"),
        (5, why, b"4|huge|A\n"),
        (7, why, b"6|huge|A\n"),
        (8, "2 columns instead of 3", b"7|x\n"),
    ]
    read = read_embeddings(out, "|")
    assert read.columns["id"] == ["1", "3", "5"]
    assert read.vectors.tobytes() == vectors_of(["a", "c", "a"]).tobytes()


@pytest.mark.parametrize("name", ["v.txt", "folder"])
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("9", "1 columns instead of 3"),
        ("9| |B", "text is empty"),
        ("9|huge|B", "does not fit in the device's memory"),
    ],
)
def test_a_bad_row_can_end_the_run_and_once_mended_it_goes_on(tmp_path, name, bad, why):
    rows = [f"{i}|text {i}|A" for i in range(20)]
    table = write_table(tmp_path / "in" / "a.csv", *rows[:9], bad, *rows[10:])
    run = Run(tmp_path / "in", tmp_path / "out" / name, fail_on_bad_row=True)
    with pytest.raises(DataError, match=rf"^a\.csv:11: {why}.*; mend the row, or set on_bad_row reject") as caught:
        run.go(FakeEngine(too_large=["huge"]))
    assert str(caught.value).endswith("2 shards (8 rows) are finished and kept; run the same command again to go on")
    assert [path for path in everything(tmp_path / "out") if not path.startswith("folder/part-")] == []
    write_table(table, *rows)
    engine = FakeEngine()
    assert run.go(engine).n_kept == 2
    assert sorted(engine.seen) == sorted(f"text {i}" for i in range(8, 20))
    Run(tmp_path / "in", tmp_path / "fresh" / name).go()
    assert read_embeddings(run.out, "|").vectors.tobytes() == vectors_of([f"text {i}" for i in range(20)]).tobytes()


@pytest.mark.parametrize(
    ("rows", "why"), [(["1||A", "2"], r"the first reason: a\.csv:2: text is empty"), ([], "the tables hold no rows")]
)
def test_no_usable_row_is_an_error_and_writes_nothing(tmp_path, out, rows, why):
    write_table(tmp_path / "in" / "a.csv", *rows)
    with pytest.raises(DataError, match=f"^no row could be embedded; {why}$"):
        Run(tmp_path / "in", out).go()
    assert everything(out.parent) == {}


def test_a_shard_without_a_good_row_leaves_an_empty_part(tmp_path):
    write_table(tmp_path / "in" / "a.csv", "1", "2", "3|good|A", "4|fine|A", "5", "6")
    for name in OUTPUTS:
        run = Run(tmp_path / "in", tmp_path / "out" / name, shard_rows=2)
        run.go()
        assert read_embeddings(run.out, "|").columns["id"] == ["3", "4"]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_vectors_that_are_no_numbers_are_refused(folder, out, broken):
    class Broken(FakeEngine):
        def compute(self, texts, on_batch=None):
            return super().compute(texts, on_batch) * (broken if "text b5" in texts else 1)

    with pytest.raises(DataError, match=r"the model gave nan or inf for the row 'b4 \| text b4 \| B'"):
        Run(folder, out).go(Broken())
    assert everything(out.parent) == {}


# ---------------------------------------------------------------- whatever goes wrong


def assert_goes_on(run, n_kept):
    """The same run finishes, and as if nothing had been."""
    assert run.go().n_kept >= n_kept
    fresh = run.out.parent.parent / "fresh" / run.out.name
    Run(**{**vars(run), "out": fresh}).go()
    assert everything(run.out.parent) == everything(fresh.parent)
    assert leftovers(run.out.parent) == []


def full_disk(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/file")


@pytest.mark.parametrize("name", ["v.txt", "folder"])
def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(folder, tmp_path, monkeypatch, name):
    run = Run(folder, tmp_path / "out" / name, shard_rows=2)
    with monkeypatch.context() as patched:
        write, n_parts = worker_module.write_vectors, iter(range(99))
        patched.setattr(worker_module, "write_vectors", lambda *a, **k: (full_disk if next(n_parts) >= 3 else write)(*a, **k))
        with pytest.raises(DataError, match=r"^/disk/file: No space left on device; mend that\. .* finished and kept"):
            run.go()
    assert_goes_on(run, 1)


@pytest.mark.parametrize("n_flushes", range(4, 34, 5))
def test_a_disk_that_fills_at_any_flush_leaves_a_state_that_goes_on(folder, tmp_path, monkeypatch, n_flushes):
    run = Run(folder, tmp_path / "out" / "v.txt", shard_rows=2, dedup="global")
    with monkeypatch.context() as patched:
        flush, count = os.fsync, iter(range(999))
        patched.setattr(os, "fsync", lambda file: (full_disk if next(count) >= n_flushes else flush)(file))
        with pytest.raises(DataError, match="No space left on device; mend that"):
            run.go()
    assert_goes_on(run, 0)


def test_a_disk_that_fills_while_parts_are_joined_leaves_the_old_output(folder, tmp_path, monkeypatch):
    run = Run(folder, tmp_path / "out" / "v.txt")
    run.go()
    before = everything(run.out.parent)
    write_table(folder / "c.csv", "c|more|C")
    with monkeypatch.context() as patched:
        patched.setattr(output_module, "join_parts", full_disk)
        with pytest.raises(DataError, match=r"No space left on device; mend that\. 4 shards \(11 rows\) are finished and kept"):
            run.go()
    assert everything(run.out.parent) == before
    assert_goes_on(run, 4)


def test_an_input_that_vanishes_is_named_and_what_is_finished_is_kept(folder, tmp_path):
    last = write_table(folder / "z" / "c.csv", *[f"c{i}|text c{i}|C" for i in range(4)])
    run = Run(folder, tmp_path / "out" / "v.txt", shard_rows=1)
    content, engine = last.read_bytes(), FakeEngine()
    engine.at_text[TEXTS[0]] = last.unlink  # ten shards before the file is opened
    with pytest.raises(DataError, match=r"z/c\.csv: cannot be read \(No such file or directory\)\n\d shards? .* finished"):
        run.go(engine)
    last.write_bytes(content)
    assert_goes_on(run, 1)


@pytest.fixture
def listening_to_ctrl_c():
    """What a shell starts in the background does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening_to_ctrl_c")
def test_ctrl_c_says_what_is_kept_and_stops_the_other_shards_at_their_next_batch(folder, tmp_path, monkeypatch):
    workers, engine = [], FakeEngine(batch=1)
    monkeypatch.setattr(embedding_runs, "ShardWorker", lambda *args: workers.append(ShardWorker(*args)) or workers[-1])

    def press():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert workers[0]._stopped.wait(30)

    engine.at_text["text b2"] = press
    run = Run(folder, tmp_path / "out" / "v.txt", shard_rows=2)
    with pytest.raises(Interrupted, match=r"^interrupted; \d shards? \(\d rows\) (is|are) finished and kept; run the same"):
        run.go(engine)
    assert "text b3" not in engine.seen  # of the same shard
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("shard", "compute"))]
    assert_goes_on(run, 1)


@pytest.mark.parametrize("dedup", ["shard", "global"])
def test_an_interrupt_that_arises_in_another_thread_ends_the_run_as_well(folder, tmp_path, dedup):
    def interrupt():
        raise KeyboardInterrupt

    engine = FakeEngine(batch=1)
    engine.at_text["text b4"] = interrupt
    run = Run(folder, tmp_path / "out" / "v.txt", shard_rows=2, dedup=dedup)
    with pytest.raises(Interrupted, match=r"interrupted; 4 shards \(7 rows\) are finished and kept"):
        run.go(engine)
    assert "text b5" not in engine.seen
    assert_goes_on(run, 4)


def test_no_thread_writes_any_more_when_the_reader_of_parts_gave_up(folder, tmp_path, monkeypatch):
    engine, release = FakeEngine(batch=1), threading.Event()
    engine.at_text["text b0"] = lambda: release.wait(30)

    def fail(_ledger, _record):
        threading.Timer(0.05, release.set).start()
        raise RuntimeError("in the middle")

    monkeypatch.setattr("ebr.inference.job.ledger.Ledger.add", fail)
    run = Run(folder, tmp_path / "out" / "v.txt", shard_rows=3, dedup="global")  # which keeps the shards in their order
    with pytest.raises(RuntimeError, match="in the middle"):
        run.go(engine)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("shard", "compute"))]
    assert "text b1" not in engine.seen
