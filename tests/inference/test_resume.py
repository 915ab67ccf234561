"""Stopped anywhere and started again, over inputs that changed or did not: the output is that of one undisturbed run, byte for
byte, and nothing is computed twice.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.data.files.write import read_manifest
from ebr.data.text.blank import is_blank
from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import DataError
from ebr.inference.job.ledger import Ledger
from ebr.inference.job.store import VectorStore
from tests.embedding_runs import Run, everything, forked, go_slowly, leftovers, n_steps_survived, write_table
from tests.shard_engines import FakeEngine, vectors_of

OUTPUTS = ["v.txt", "v.parquet", "v.npy", "folder"]


def rows_of(name, n_rows, *, n_texts=10**6):
    """Rows of a table; every fifth is bad."""
    return [f"{name}{i}|text {name}{i % n_texts}|L" if i % 5 != 4 else f"{name}{i}" for i in range(n_rows)]


@pytest.fixture
def folder(tmp_path):
    """Two tables: 24 rows, of which 20 are good, in 6 shards of 4."""
    write_table(tmp_path / "in" / "b.csv", *rows_of("b", 12))
    write_table(tmp_path / "in" / "d.csv", *rows_of("d", 12))
    return tmp_path / "in"


def fresh(run):
    """What an undisturbed run makes of the same tables elsewhere, and how often its engine was asked."""
    out = run.out.parent.with_name("fresh") / run.out.name
    shutil.rmtree(out.parent, ignore_errors=True)
    Run(**{**vars(run), "out": out}).go()
    return everything(out.parent)


def assert_as_if_undisturbed(run):
    assert everything(run.out.parent) == fresh(run)
    assert leftovers(run.out.parent) == []


# ---------------------------------------------------------------- the same command again


@pytest.mark.parametrize("dedup", ["shard", "global", "none"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_after_a_failure_only_the_rest_is_computed_and_the_output_is_the_same_to_the_byte(folder, tmp_path, name, dedup):
    run = Run(folder, tmp_path / "out" / name, dedup=dedup)
    before = FakeEngine(dies_at=14)
    with pytest.raises(RuntimeError, match="the engine died"):
        run.go(before)
    engine = FakeEngine()
    done = run.go(engine)
    assert done.n_kept >= 1  # of four shards computed: writing goes on behind the computing
    assert (done.n_rows, done.n_encoded) == (20, done.n_fresh)
    assert len(engine.seen) <= 20 - 3
    assert set(engine.seen) | set(before.seen) == {f"text {table}{i}" for table in "bd" for i in range(12) if i % 5 != 4}
    assert_as_if_undisturbed(run)


@pytest.mark.parametrize("dedup", ["shard", "global", "none"])
@pytest.mark.parametrize("dies_at", [None, 3, 6, 9])
def test_texts_that_get_no_vector_are_the_same_bad_rows_however_often_a_run_was_stopped(tmp_path, dedup, dies_at):
    tables = {"b": ["good", "lost", "large", "b", "lost", "c"], "d": ["large", "d", "lost", "e", "good", "f"]}
    for name, texts in tables.items():
        write_table(tmp_path / "in" / f"{name}.csv", *[f"{name}{i}|{text}|L" for i, text in enumerate(texts * 2)])
    unfit = {"too_large": ["large"], "lost": ["lost"]}
    run = Run(tmp_path / "in", tmp_path / "out" / "v.parquet", dedup=dedup)
    if dies_at:
        with pytest.raises(RuntimeError, match="the engine died"):
            run.go(FakeEngine(**unfit, batch=1, dies_at=dies_at))
    done = run.go(FakeEngine(**unfit))
    kept = [(name, text) for name, texts in tables.items() for text in texts * 2 if text not in ("lost", "large")]
    read = read_embeddings(run.out, "|")
    assert read.columns["text"] == [text for _, text in kept]
    assert read.vectors.tobytes() == vectors_of(read.columns["text"]).tobytes()
    manifest = read_manifest(run.out)
    assert (done.n_rows, done.n_rejected) == (manifest["n_rows"], manifest["n_rejected"]) == (14, 10)
    rejects = [json.loads(line) for line in done.rejects_path.read_text(encoding="utf-8").splitlines()]
    assert [(line["file"], line["line"], line["reason"].split()[0]) for line in rejects] == [
        (f"{name}.csv", line, "has" if text == "lost" else "does")
        for name, texts in tables.items()
        for line, text in enumerate(texts * 2, start=2)
        if text in ("lost", "large")
    ]
    assert run.go(FakeEngine(dies_at=1)).n_rejected == 10


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_finished_output_is_left_alone(folder, tmp_path, name):
    run = Run(folder, tmp_path / "out" / name)
    run.go()
    visible = [run.out.parent / name for name in everything(run.out.parent) if "rejects" not in name]
    times = {path: path.stat().st_mtime_ns for path in visible}
    engine = FakeEngine()
    done = run.go(engine)
    assert engine.seen == []
    assert (done.n_kept, done.n_shards, done.n_rows, done.n_rejected) == (6, 6, 20, 4)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert_as_if_undisturbed(run)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_deleted_by_hand_is_made_again(folder, tmp_path, name):
    run = Run(folder, tmp_path / "out" / name)
    run.go()
    for path in run.out.parent.glob("[!.]*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run.go().n_rows == 20
    assert_as_if_undisturbed(run)


@pytest.mark.parametrize("lost", ["v.npy", "v.rows.parquet", "v.npy.manifest.json"])
def test_a_single_file_of_an_output_deleted_by_hand_is_made_again(folder, tmp_path, lost):
    run = Run(folder, tmp_path / "out" / "v.npy")
    run.go()
    (tmp_path / "out" / lost).unlink()
    run.go()
    assert_as_if_undisturbed(run)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_changed_by_hand_is_made_again(folder, tmp_path, name):
    run = Run(folder, tmp_path / "out" / name)
    run.go()
    file = sorted(run.out.glob("part-*"))[2] if run.out.is_dir() else run.out
    file.write_bytes(file.read_bytes()[:-3])
    engine = FakeEngine()
    run.go(engine)
    assert len(engine.seen) == (3 if run.out.is_dir() else 20)
    assert_as_if_undisturbed(run)


# ---------------------------------------------------------------- kill -9


def kill_and_resume(run, moment):
    """Kill a run after so many seconds; whether it was still running. Then run it again."""
    process = forked(go_slowly, run, 0.004)
    process.join(moment)
    was_running = process.is_alive()
    process.kill()
    process.join()
    done = run.go()
    assert done.n_rows + done.n_rejected == 240
    return was_running


@pytest.mark.long
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    write_table(tmp_path / "in" / "b.csv", *rows_of("b", 120, n_texts=50))
    write_table(tmp_path / "in" / "d.csv", *rows_of("d", 120, n_texts=50))
    rng, wanted = random.Random(20), {}
    kinds = [(name, dedup) for name in ["v.txt", "folder"] for dedup in ["shard", "global"]]
    for name, dedup in kinds:
        run = Run(tmp_path / "in", tmp_path / f"{dedup} {name}" / name, dedup=dedup)
        started = time.perf_counter()
        go_slowly(run, 0.004)
        wanted[name, dedup] = everything(run.out.parent), time.perf_counter() - started
    n_running = 0
    for index in range(20):
        name, dedup = kinds[index % 4]
        content, seconds = wanted[name, dedup]
        run = Run(tmp_path / "in", tmp_path / f"out{index}" / name, dedup=dedup)
        n_running += kill_and_resume(run, seconds * (index + rng.random()) / 20)
        assert everything(run.out.parent) == content
        assert leftovers(run.out.parent) == []
    assert n_running >= 5


@pytest.mark.parametrize(("name", "dedup"), [("v.npy", "global"), ("folder", "shard")])
def test_a_kill_between_any_two_changes_of_the_disk_changes_nothing(tmp_path, name, dedup):
    write_table(tmp_path / "in" / "a.csv", *rows_of("a", 6))
    run = Run(tmp_path / "in", tmp_path / "out" / name, dedup=dedup)
    content = fresh(run)
    n_steps = 1
    while not n_steps_survived(run, n_steps):
        run.go()
        assert everything(run.out.parent) == content
        assert leftovers(run.out.parent) == []
        shutil.rmtree(run.out.parent)
        n_steps += 1
    assert n_steps > 20


@pytest.mark.parametrize(
    ("name", "then"), [("v.txt", "same"), ("v.txt", "reverted"), ("folder", "same"), ("folder", "reverted")]
)
def test_a_kill_at_any_step_over_a_finished_output_changes_nothing(tmp_path, name, then):
    """then: the tables are as the killed run had them, or as the run before it did."""
    run = Run(tmp_path / "in", tmp_path / "out" / name)
    old, new = rows_of("a", 8), [*rows_of("a", 5), "x|new|L", "6|more|L", "7|rows|L"]
    contents = {}
    for then_rows, key in [(old, "reverted"), (new, "same")]:
        write_table(tmp_path / "in" / "a.csv", *then_rows)
        contents[key] = fresh(run)
    n_steps, survived = 5, False
    while not survived:
        shutil.rmtree(run.out.parent, ignore_errors=True)
        write_table(tmp_path / "in" / "a.csv", *old)
        run.go()
        write_table(tmp_path / "in" / "a.csv", *new)
        survived = n_steps_survived(run, n_steps)
        write_table(tmp_path / "in" / "a.csv", *(new if then == "same" else old))
        run.go()
        assert everything(run.out.parent) == contents[then]
        assert leftovers(run.out.parent) == []
        n_steps += 2
    assert n_steps > 15


# ---------------------------------------------------------------- changed input


CHANGES = {
    "rows changed": (lambda folder: write_table(folder / "d.csv", *rows_of("d", 4), "x|new|L", *rows_of("d", 12)[5:]), 4),
    "appended": (lambda folder: write_table(folder / "d.csv", *rows_of("d", 12), "x|new|L"), 1),
    "added before": (lambda folder: write_table(folder / "a.csv", *rows_of("a", 4)), 4),
    "added between": (lambda folder: write_table(folder / "c.csv", *rows_of("c", 6)), 5),
    "removed": (lambda folder: (folder / "b.csv").unlink(), 0),
    "row inserted at the start": (lambda folder: write_table(folder / "d.csv", "x|new|L", *rows_of("d", 12)), 11),
    "bad rows mended": (lambda folder: write_table(folder / "b.csv", *[f"b{i}|text b{i}|L" for i in range(12)]), 8),
    "renamed": (lambda folder: (folder / "b.csv").rename(folder / "e.csv"), 10),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("change", CHANGES)
def test_of_a_changed_input_only_what_changed_is_computed(folder, tmp_path, name, change):
    run, (make, n_texts) = Run(folder, tmp_path / "out" / name), CHANGES[change]
    run.go()
    make(folder)
    engine = FakeEngine()
    run.go(engine)
    assert len(engine.seen) == n_texts
    assert_as_if_undisturbed(run)
    engine = FakeEngine()
    run.go(engine)
    assert engine.seen == []


@pytest.mark.parametrize("name", OUTPUTS)
def test_changes_of_several_days_add_up(folder, tmp_path, name):
    run = Run(folder, tmp_path / "out" / name, dtype="float32" if name in {"v.txt", "folder"} else "float16")
    run.go()
    for change in CHANGES:
        CHANGES[change][0](folder) if change != "removed" else None
        with pytest.raises(RuntimeError, match="the engine died"):
            write_table(folder / "e2.csv", f"e|{change} to e|L")
            run.go(FakeEngine(dies_at=1))
        run.go()
        assert_as_if_undisturbed(run)


def test_a_table_that_is_read_as_another_format_of_the_same_path_is_made_anew(folder, tmp_path):
    run = Run(folder, tmp_path / "out" / "vectors.bin", output_format="npy")
    run.go()
    changed = Run(folder, run.out, output_format="txt")
    engine = FakeEngine()
    changed.go(engine)
    assert len(engine.seen) == 20
    assert read_embeddings(run.out, "|").manifest["format"] == "txt"


# ---------------------------------------------------------------- incremental_key


DAY_1 = [f"k{i}|text {i}|L" for i in range(12)]
DAY_2 = [*DAY_1[6:9], "k0|other text|L", "k20|brand new|L", "k1|text 1|M", *DAY_1[9:11], "k21|text 3|L", *DAY_1[2:4]]
"""Rows 4, 5 and 11 are gone, the rest moved; k0 has another text, k1 another label; k20 and k21 are new."""


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("dedup", ["shard", "global"])
def test_only_rows_with_a_new_text_are_embedded_again(tmp_path, name, dedup):
    table = write_table(tmp_path / "in" / "a.csv", *DAY_1)
    run = Run(tmp_path / "in", tmp_path / "out" / name, key="id", dedup=dedup)
    run.go()
    write_table(table, *DAY_2)
    engine = FakeEngine()
    done = run.go(engine)
    assert sorted(engine.seen) == ["brand new", "other text", "text 3"]
    assert (done.n_encoded, done.n_reused, done.n_changed, done.n_rows) == (3, 8, 1, 11)
    assert_as_if_undisturbed(run)


@pytest.mark.parametrize("change", [{"shard_rows": 5}, {"output_format": "npy"}, {"columns": ["label", "id"]}])
def test_vectors_are_taken_over_into_another_layout(tmp_path, change):
    table = write_table(tmp_path / "in" / "a.csv", *DAY_1)
    run = Run(tmp_path / "in", tmp_path / "out" / "folder", key="id")
    run.go()
    write_table(table, *DAY_2)
    changed = Run(**{**vars(run), **change})
    engine = FakeEngine()
    done = changed.go(engine)
    assert sorted(engine.seen) == ["brand new", "other text", "text 3"]
    assert done.n_reused == 8
    assert_as_if_undisturbed(changed)


def test_vectors_less_exact_than_asked_are_not_taken_over(tmp_path):
    write_table(tmp_path / "in" / "a.csv", *DAY_1)
    run = Run(tmp_path / "in", tmp_path / "out" / "v.npy", key="id", dtype="float16")
    run.go()
    exact = Run(**{**vars(run), "dtype": "float32"})
    assert exact.go().n_reused == 0
    assert_as_if_undisturbed(exact)
    assert Run(**{**vars(run), "dtype": "float16"}).go().n_reused == 12


@pytest.mark.parametrize("key", [None, "id"])
def test_vectors_of_another_model_are_never_taken_over(tmp_path, key):
    write_table(tmp_path / "in" / "a.csv", *DAY_1)
    run = Run(tmp_path / "in", tmp_path / "out" / "v.txt", key=key, dedup="global")
    Run(**{**vars(run), "model": "another"}).go()
    with pytest.raises(RuntimeError, match="the engine died"):
        Run(**{**vars(run), "model": "third"}).go(FakeEngine(dies_at=12))
    engine = FakeEngine()
    done = run.go(engine)
    assert (done.n_kept, done.n_reused, len(engine.seen)) == (0, 0, 12)
    assert_as_if_undisturbed(run)


def test_keys_that_occur_twice_take_over_each_its_own_text(tmp_path):
    table = write_table(tmp_path / "in" / "a.csv", "k|one|L", "k|two|L", "m|one|L")
    run = Run(tmp_path / "in", tmp_path / "out" / "v.txt", key="id")
    run.go()
    write_table(table, "k|two|L", "m|two|L", "k|one|L", "k|three|L")
    engine = FakeEngine()
    done = run.go(engine)
    assert engine.seen == ["two", "three"]  # m never had it
    assert (done.n_reused, done.n_changed) == (2, 2)
    assert_as_if_undisturbed(run)


@pytest.mark.parametrize("name", ["v.txt", "folder"])
@pytest.mark.parametrize("n_calls", [1, 2])
def test_a_stop_while_the_store_is_filled_changes_nothing(tmp_path, monkeypatch, name, n_calls):
    table = write_table(tmp_path / "in" / "a.csv", *DAY_1)
    run = Run(tmp_path / "in", tmp_path / "out" / name, key="id")
    run.go()
    write_table(table, *DAY_2)
    with monkeypatch.context() as patched:
        add, calls = VectorStore.add, iter(range(1, 99))
        patched.setattr(VectorStore, "add", lambda *a, **k: add(*a, **k) if next(calls) < n_calls else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.go()
    engine = FakeEngine()
    assert run.go(engine).n_reused == 8
    assert sorted(engine.seen) == ["brand new", "other text", "text 3"]
    assert_as_if_undisturbed(run)


@pytest.mark.parametrize("name", ["v.txt", "folder"])
def test_a_stop_midway_and_then_another_layout_still_takes_vectors_over(tmp_path, name):
    table = write_table(tmp_path / "in" / "a.csv", *DAY_1)
    run = Run(tmp_path / "in", tmp_path / "out" / name, key="id")
    run.go()
    write_table(table, *DAY_2)
    for shard_rows in (2, 3):
        with pytest.raises(RuntimeError, match="the engine died"):
            Run(**{**vars(run), "shard_rows": shard_rows}).go(FakeEngine(dies_at=3))
    last, engine = Run(**{**vars(run), "shard_rows": 5}), FakeEngine()
    assert last.go(engine).n_reused == 8
    assert_as_if_undisturbed(last)


@pytest.mark.parametrize("name", ["v.txt", "folder"])
def test_a_stop_between_output_and_ledger_never_mixes_two_days(tmp_path, monkeypatch, name):
    """The output is of today and the ledger of yesterday: its rows must not be taken for yesterday's."""
    table = write_table(tmp_path / "in" / "a.csv", *DAY_1)
    run = Run(tmp_path / "in", tmp_path / "out" / name, key="id")
    run.go()
    write_table(table, *(row.replace("text", "other") for row in DAY_1))
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.go()
    write_table(table, *DAY_1)
    last = Run(**{**vars(run), "shard_rows": 5})
    last.go()
    assert_as_if_undisturbed(last)


def test_a_deleted_output_of_a_keyed_run_is_made_again(tmp_path):
    write_table(tmp_path / "in" / "a.csv", *DAY_1)
    run = Run(tmp_path / "in", tmp_path / "out" / "v.txt", key="id")
    run.go()
    run.out.unlink()
    assert run.go().n_rows == 12
    assert_as_if_undisturbed(run)


def test_a_row_without_its_key_is_rejected(tmp_path):
    write_table(tmp_path / "in" / "a.csv", "|good|L", "\\N|good|L", "k|good|L")
    done = Run(tmp_path / "in", tmp_path / "out" / "v.txt", key="id").go()
    assert done.first_rejects == ["a.csv:2: id is empty", "a.csv:3: id is empty"]


# ---------------------------------------------------------------- any table, any moment


CELLS = st.text(st.characters(exclude_characters="|\n\r", exclude_categories=["Cs"]), max_size=8)
TEXTS = st.one_of(st.sampled_from(["", " ", "\\N", "same", "same", "文"]), CELLS)
ROWS = st.one_of(TEXTS.map("k|{}|L".format), CELLS.filter(bool), TEXTS.map("\\N|{}|x".format))
TABLES = st.lists(st.lists(ROWS, max_size=12), min_size=1, max_size=3)


def expected(tables):
    """(texts of the good rows, (file, line) of the bad ones), in order."""
    texts, bad = [], []
    for number, rows in enumerate(tables):
        for line, row in enumerate(rows, start=2):
            cells = row.split("|")
            if len(cells) == 3 and not is_blank(cells[1]) and cells[1] != "\\N":
                texts.append(cells[1])
            else:
                bad.append((f"{number}.csv", line))
    return texts, bad


@settings(deadline=None, max_examples=25, database=None)
@given(TABLES, st.integers(1, 6), st.integers(1, 20), st.sampled_from(OUTPUTS), st.sampled_from(["shard", "global", "none"]))
def test_any_table_stopped_anywhere_keeps_every_row_and_its_order(tables, shard_rows, dies_at, name, dedup):
    texts, bad = expected(tables)
    with tempfile.TemporaryDirectory() as folder:
        for number, rows in enumerate(tables):
            write_table(Path(folder) / "in" / f"{number}.csv", *rows)
        run = Run(Path(folder) / "in", Path(folder) / "out" / name, shard_rows=shard_rows, dedup=dedup)
        try:
            run.go(FakeEngine(batch=1, dies_at=dies_at))
        except (RuntimeError, DataError):
            pass
        if not texts:
            with pytest.raises(DataError, match="no row could be embedded"):
                run.go()
            return
        done = run.go()
        read = read_embeddings(run.out, "|")
        assert read.columns["text"] == texts
        assert read.vectors.tobytes() == vectors_of(texts).tobytes()
        assert done.n_rows + done.n_rejected == sum(map(len, tables))
        lines = done.rejects_path.read_text(encoding="utf-8").split("\n")[:-1] if done.rejects_path else []
        assert [(line["file"], line["line"]) for line in map(json.loads, lines)] == bad
        assert_as_if_undisturbed(run)
