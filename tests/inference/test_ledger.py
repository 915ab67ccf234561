"""The state beside an output: who writes it, what was settled, and which parts count."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from ebr.data.files.write import write_json
from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import DataError, Interrupted
from ebr.inference.job import output as output_module
from ebr.inference.job.ledger import Ledger, open_ledger
from ebr.inference.job.parts import PartRecord
from ebr.inference.job.store import VectorStore
from tests.embedding_runs import Run, everything, forked, leftovers, write_table
from tests.shard_engines import FakeEngine


@pytest.fixture
def run(tmp_path):
    write_table(tmp_path / "in" / "a.csv", *[f"{i}|text {i}|L" for i in range(16)])
    return Run(tmp_path / "in", tmp_path / "out" / "v.txt")


def state_of(run):
    return run.out.with_name(f".{run.out.name}.ebr")


def record(key, index=0, n_rows=4):
    files = {f"part-{index:06d}-{key[:12]}.txt": "0" * 64}
    return PartRecord(index, key, n_rows, 0, n_rows, 0, 0, 5, 64, files, 100, [])


# ---------------------------------------------------------------- two runs at once


def test_a_second_run_on_an_output_is_told_which_process_writes_it(run):
    told = []

    def run_again():
        with pytest.raises(DataError) as caught:
            run.go()
        told.append(str(caught.value))

    engine = FakeEngine()
    engine.at_text["text 5"] = run_again
    run.go(engine)
    where = re.escape(f"output_path {run.out}")
    assert re.match(
        rf"{where}: another run is writing it \(process {os.getpid()} on \S+, since [\d: -]+\); wait for it, or give another "
        rf"output_path; if it is over, as after its machine was lost, delete {re.escape(str(state_of(run) / 'lock'))}$",
        told[0],
    )
    assert run.go().n_kept == 4
    assert leftovers(run.out.parent) == []


def die_at_the_sixth_text(run):
    engine = FakeEngine()
    engine.at_text["text 5"] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    run.go(engine)


def test_a_lock_that_a_lost_machine_left_is_gone_once_its_file_is_deleted(run):
    with open_ledger(run.out, run.recipe()):  # as if elsewhere, and for ever
        with pytest.raises(DataError, match="another run is writing it"):
            run.go()
        (state_of(run) / "lock").unlink()
        assert run.go().n_rows == 16


def without_locks(monkeypatch, number):
    """A file system that has no locks, as it says."""

    def refused(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(fcntl, "lockf", refused)


NO_LOCKS = pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])


@NO_LOCKS
def test_a_run_goes_on_where_there_are_no_locks_and_says_so(run, monkeypatch, caplog, number):
    without_locks(monkeypatch, number)
    assert run.go().n_rows == 16
    assert caplog.messages == [
        f"{state_of(run) / 'lock'}: its file system has no locks ({os.strerror(number)}); "
        f"see to it that no other run writes {run.out} meanwhile"
    ]
    assert leftovers(run.out.parent) == []


@pytest.mark.parametrize(
    ("pid", "host", "refused"),
    [(os.getppid(), socket.gethostname(), True), (os.getpid(), socket.gethostname(), False), (os.getppid(), "elsewhere", False),
     (2**22 + 1, socket.gethostname(), False)],
    ids=["alive", "itself", "of another machine", "gone"],
)  # fmt: skip
def test_without_locks_a_run_that_lives_on_this_machine_still_keeps_others_out(run, monkeypatch, caplog, pid, host, refused):
    without_locks(monkeypatch, errno.ENOLCK)
    note = state_of(run) / "running.json"
    write_json(note, {"pid": pid, "host": host, "since": "2026-01-01"})
    if refused:
        with pytest.raises(DataError, match=rf"another run is writing it \(process {pid} on .* delete {note}$"):
            run.go()
        assert note.exists()
    else:
        assert run.go().n_rows == 16
        assert f"no other run (process {pid} on {host}, since 2026-01-01) writes" in caplog.text


def test_a_lock_that_fails_otherwise_is_named(run, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError) as caught:
        run.go()
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(state_of(run) / "lock"))


@NO_LOCKS
def test_workers_cannot_share_vectors_without_locks_and_are_told_at_once(run, monkeypatch, number):
    without_locks(monkeypatch, number)
    run.dedup = "global"
    with pytest.raises(DataError, match=r"vectors\.sqlite: no locks on its file system .*; write to another disk"):
        run.go()


@pytest.mark.long
def test_a_killed_run_leaves_no_lock_and_its_half_written_files_go(run):
    process = forked(die_at_the_sixth_text, run)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    half = [
        state_of(run) / "parts" / ".partial-1-ab" / "part.txt",
        state_of(run) / "joined" / "v.txt",
        state_of(run) / "rejects" / ".abc.partial-1.jsonl",
        state_of(run) / ".run.partial-1.json",
        run.out.parent / ".v.txt.manifest.partial-1.json",
        run.out.parent / ".v.txt.rejects.partial-1.jsonl",
    ]
    for path in half:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert (state_of(run) / "running.json").exists()
    assert run.go().n_rows == 16
    assert leftovers(run.out.parent) == []
    assert [path for path in half if path.exists()] == []


@pytest.mark.parametrize("name", ["w.txt", "v.txt.txt", "folder"])
def test_runs_with_outputs_in_one_folder_leave_each_other_alone(run, monkeypatch, name):
    join, other = output_module.join_parts, Run(run.folder, run.out.with_name(name))

    def join_meanwhile(*args):
        with monkeypatch.context() as patched:
            patched.setattr(output_module, "join_parts", join)
            other.go()
        join(*args)

    monkeypatch.setattr(output_module, "join_parts", join_meanwhile)
    run.go()
    assert read_embeddings(run.out, "|").vectors.tobytes() == read_embeddings(other.out, "|").vectors.tobytes()


# ---------------------------------------------------------------- the recipe and what was settled


def test_another_recipe_makes_everything_anew_and_names_what_changed(run):
    run.go()
    for options, names in [
        ({"model": "m2"}, ["model"]),
        ({"shard_rows": 5, "dedup": "none"}, ["dedup", "model", "shard_rows"]),
    ]:
        changed, engine = Run(**{**vars(run), **options}), FakeEngine()
        with changed.ledger() as ledger:
            assert ledger.changed == names
            assert ledger.settings is None
        changed.go(engine)
        assert len(engine.seen) == 16
        with changed.ledger() as ledger:
            assert ledger.changed == []
            assert ledger.settings == {"token_budget": 64}


def test_an_option_that_is_new_and_none_differs_from_one_that_was_not_there(tmp_path):
    before, now = {"vectors": {"a": 1}, "layout": {"t": (1, 2)}}, {"vectors": {"a": 1, "b": None}, "layout": {"t": (1, 2)}}
    ledger = Ledger(tmp_path / "v.txt", before)
    (tmp_path / ".v.txt.ebr").mkdir()
    ledger.begin({})
    assert Ledger(tmp_path / "v.txt", now).changed == ["b"]
    assert Ledger(tmp_path / "v.txt", before).changed == []


def test_the_first_run_of_an_output_changes_nothing_by_name(run):
    with run.ledger() as ledger:
        assert (ledger.changed, ledger.settings, ledger.finished) == ([], None, None)


def test_a_budget_that_was_lowered_holds_for_the_rest_and_for_the_run_that_goes_on(run):
    engine = FakeEngine(token_budget=32, dies_at=14)
    with pytest.raises(RuntimeError, match="the engine died"):
        run.go(engine)
    with run.ledger() as ledger:
        assert ledger.settings == {"token_budget": 32}
        ledger.remember_budget(48)
        assert ledger.settings == {"token_budget": 32}
    run.go(FakeEngine(token_budget=16))
    with run.ledger() as ledger:
        assert ledger.settings == {"token_budget": 16}
        assert ledger.finished.settings == {"token_budget": 16}


def test_a_new_recipe_in_a_folder_removes_half_a_run_and_keeps_what_is_finished(run, tmp_path):
    run.out = tmp_path / "out" / "folder"
    run.go()
    finished = everything(run.out)
    with pytest.raises(RuntimeError, match="the engine died"):
        Run(**{**vars(run), "shard_rows": 3}).go(FakeEngine(dies_at=9))
    assert len(everything(run.out)) > len(finished)
    last = Run(**{**vars(run), "shard_rows": 2})
    with last.ledger() as ledger:
        ledger.begin({})
    assert everything(run.out) == finished


def test_a_record_that_cannot_be_read_says_what_to_delete(run):
    run.go()
    (state_of(run) / "run.json").write_text("{")
    with pytest.raises(DataError, match=rf"run\.json: cannot be read \(.*\); delete {re.escape(str(state_of(run)))} to embed"):
        run.go()


# ---------------------------------------------------------------- the journal


def test_a_line_that_a_kill_cut_short_does_not_count_and_harms_none_after_it(run):
    with run.ledger() as ledger:
        ledger.begin({"token_budget": 64})
        ledger.add(record("a" * 64))
        journal = state_of(run) / "parts.jsonl"
        with journal.open("ab") as file:
            file.write(b'{"index": 1, "key": "bbb')
        ledger.add(record("c" * 64, index=2))
    with run.ledger() as ledger:
        assert ledger.record_of("a" * 64) == record("a" * 64)
        assert ledger.record_of("c" * 64) == record("c" * 64, index=2)
    assert len(journal.read_bytes().splitlines()) == 3


def test_the_last_record_of_a_part_counts(run):
    with run.ledger() as ledger:
        ledger.begin({})
        ledger.add(record("a" * 64))
        ledger.add(record("a" * 64, index=7))
    with run.ledger() as ledger:
        assert ledger.record_of("a" * 64).index == 7


def test_a_finished_output_keeps_the_state_of_its_own_parts_only(run):
    run.key = "id"
    write_table(run.folder / "a.csv", *[f"{i}|text {i}|L" if i % 4 else "bad" for i in range(16)])
    run.go()
    assert len(list((state_of(run) / "digests").iterdir())) == len(list((state_of(run) / "rejects").iterdir())) == 4
    write_table(run.folder / "a.csv", *[f"{i}|text {i}|L" for i in range(8)])
    run.go()
    assert len(list((state_of(run) / "digests").iterdir())) == 2
    assert list((state_of(run) / "rejects").iterdir()) == []
    assert len((state_of(run) / "parts.jsonl").read_text().splitlines()) == 2


def test_a_part_that_moved_keeps_its_content_under_the_name_of_its_new_place():
    moved = record("a" * 64, index=3).moved(12)
    assert (moved.index, moved.name, list(moved.files)) == (12, "part-000012-aaaaaaaaaaaa", ["part-000012-aaaaaaaaaaaa.txt"])
    assert json.loads(json.dumps(moved.to_json()))["files"] == moved.files


# ---------------------------------------------------------------- what is there stays readable, and honest


def test_a_folder_stays_readable_while_its_parts_get_new_places(tmp_path, monkeypatch):
    write_table(tmp_path / "in" / "b.csv", *[f"{i}|text {i}|L" for i in range(8)])
    run = Run(tmp_path / "in", tmp_path / "out" / "v")
    run.go()
    before = read_embeddings(run.out, "|").columns
    write_table(tmp_path / "in" / "a.csv", "new|first|L")

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(output_module, "write_embeddings_manifest", stop)
        with pytest.raises(Interrupted):
            run.go()
    assert read_embeddings(run.out, "|").columns == before
    run.go()
    assert read_embeddings(run.out, "|").columns["id"] == ["new", *before["id"]]
    assert len(list(run.out.glob("part-*"))) == 3


def test_new_vectors_never_lie_beside_the_rows_of_before(run, monkeypatch):
    run.out = run.out.with_suffix(".npy")
    run.go()
    write_table(run.folder / "a.csv", *[f"{i}|another text {i}|L" for i in range(16)])
    moved = Path.replace

    def stop_after_the_vectors(self, target):
        moved(self, target)
        if Path(target) == run.out:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop_after_the_vectors)
        with pytest.raises(Interrupted):
            run.go()
    assert run.out.is_file()
    assert not run.out.with_suffix(".rows.parquet").exists()
    run.go()
    assert read_embeddings(run.out).columns["text"][3] == "another text 3"


def test_two_names_of_one_output_take_one_lock(run, tmp_path):
    run.go()
    (tmp_path / "alias").symlink_to(run.out.parent)
    with open_ledger(run.out, run.recipe()), pytest.raises(DataError, match="another run is writing it"):
        with open_ledger(tmp_path / "alias" / run.out.name, run.recipe()):
            pass


def test_a_hidden_file_of_the_users_survives_the_sweep(run, tmp_path):
    run.out = tmp_path / "folder"
    run.out.mkdir()
    (run.out / ".my.partial-notes").touch()
    run.go()
    assert (run.out / ".my.partial-notes").exists()


def test_a_state_of_another_version_says_what_to_delete(run):
    run.go()
    path = state_of(run) / "run.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"keys"', '"kez"'), encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json: is of another version of ebr; delete"):
        run.go()


def test_rejects_that_were_lost_are_made_again(run):
    write_table(run.folder / "a.csv", "1|good|L", "2|ragged")
    run.go()
    shutil.rmtree(state_of(run) / "rejects")
    done = run.go()
    assert (done.n_kept, done.n_rejected) == (0, 1)
    assert "ragged" not in done.rejects_path.read_text(encoding="utf-8")  # base64
    assert json.loads(done.rejects_path.read_text(encoding="utf-8"))["line"] == 3


def test_on_bad_row_fail_also_stops_at_rows_that_were_rejected_before(run):
    write_table(run.folder / "a.csv", "1|good|L", "2|ragged")
    run.go()
    run.fail_on_bad_row = True
    with pytest.raises(DataError, match=r"a\.csv:3: 2 columns instead of 3; mend the row"):
        run.go()


def test_a_damaged_store_is_named(tmp_path):
    (tmp_path / "vectors.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match=r"is damaged .*; delete it"):
        VectorStore(tmp_path / "vectors.sqlite").get([b"x" * 16])
