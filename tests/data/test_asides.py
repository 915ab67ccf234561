"""What a killed run leaves: the next one finds it, puts back what was moved away and removes the rest; of nobody else."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

import pytest

from ebr.data.files.write import write_aside, write_files_aside, write_folder_aside, write_json
from ebr.errors import DataError, ModelError

DAYS = 24 * 3600


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed(action):
    """Run an action in a copy of this process that die ends on the way, as a kill would: no block is left in order."""
    if (child := os.fork()) == 0:
        with suppress(BaseException):
            action()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def die(*_):
    os._exit(9)


def write(folder, text="new"):
    with write_folder_aside(folder) as aside:
        (aside / "weights").write_text(text)


def write_and_die(folder):
    with write_folder_aside(folder) as aside:
        (aside / "weights").write_text("half")
        die()


def in_two_steps(monkeypatch):
    """As where the system cannot exchange two names."""
    from ebr.data.files import asides

    monkeypatch.setattr(asides, "_exchange", lambda first, second: False)


def die_between_the_renames(folder):
    """Kill a run that has moved the old folder away, and not yet the new one into its place."""
    replace = Path.replace

    def step(self, target):
        if Path(target) == folder:
            die()
        return replace(self, target)

    Path.replace = step
    write(folder)


@pytest.fixture
def folder(tmp_path):
    old = tmp_path / "model"
    old.mkdir()
    (old / "weights").write_text("old")
    return old


def aged(path, seconds):
    """Make a path, and all below it, as old as so many seconds."""
    for one in (*path.rglob("*"), path):
        then = one.stat().st_mtime - seconds
        os.utime(one, (then, then))
    return path


def leftover(folder, name, text="half"):
    path = folder.with_name(name)
    path.mkdir()
    (path / "weights").write_text(text)
    return path


# ---------------------------------------------------------------- the next run


def test_folder_of_a_killed_run_is_removed_by_the_next(tmp_path, folder):
    killed(lambda: write_and_die(folder))
    assert len(names(tmp_path)) == 2
    write(folder)
    assert names(tmp_path) == ["model"]
    assert (folder / "weights").read_text() == "new"


def test_file_of_a_killed_run_is_removed_by_the_next_and_what_only_looks_alike_stays(tmp_path):
    def write_half():
        with write_aside(tmp_path / "mined.jsonl") as aside:
            aside.write_text("half")
            die()

    killed(write_half)
    assert len(names(tmp_path)) == 1
    alike = [".mined.partial-notes.jsonl", ".mined.partial-1234.txt", ".other.partial-1-abcdef01.jsonl"]
    for name in alike:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    write_json(tmp_path / "mined.jsonl", {})
    assert names(tmp_path) == sorted([*alike, "mined.jsonl"])


@pytest.mark.parametrize("next_run", ["write", "read"])
def test_folder_that_a_killed_run_had_moved_away_is_put_back(tmp_path, folder, monkeypatch, next_run):
    in_two_steps(monkeypatch)
    killed(lambda: die_between_the_renames(folder))
    assert not folder.exists()
    if next_run == "write":
        with pytest.raises(ValueError), write_folder_aside(folder):
            raise ValueError
    else:
        from ebr.model.origin import resolve_model

        with pytest.raises(ModelError, match=r"the folder holds no modules\.json"):
            resolve_model(str(folder))
    assert (folder / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_index_that_a_killed_run_had_moved_away_is_there_for_a_search(tmp_path):
    from ebr.retrieval.index.store import read_sidecar

    leftover(tmp_path / "index", ".index.old-12345")  # as versions before named it
    with pytest.raises(DataError, match=r"no ebr_manifest\.json"):  # and not: no such folder
        read_sidecar(tmp_path / "index")
    assert names(tmp_path) == ["index"]


def test_folder_is_there_at_every_moment_where_the_system_exchanges_names(tmp_path, folder, monkeypatch):
    probe = (tmp_path / "a", tmp_path / "b")
    for path in probe:
        path.mkdir()
    from ebr.data.files import asides

    if not asides._exchange(*probe):
        pytest.skip("this file system cannot exchange names")
    seen = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (seen.append(folder.exists()), replace(self, target))[1])
    write(folder)
    assert (folder / "weights").read_text() == "new"
    assert seen == []


def test_run_killed_after_the_exchange_leaves_the_new_folder_and_the_next_removes_the_old(tmp_path, folder, monkeypatch):
    from ebr.data.files import asides

    monkeypatch.setattr(asides, "remove", die)
    killed(lambda: write(folder))
    monkeypatch.undo()
    assert (folder / "weights").read_text() == "new"
    write(folder, "newer")
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["model", "model.old-1.partial-2"])
def test_folder_is_swapped_in_two_steps_where_it_must_be(tmp_path, monkeypatch, name):
    in_two_steps(monkeypatch)
    leftover(tmp_path / name, f".{name}.old-12345")
    for text in ("first", "second"):
        write(tmp_path / name, text)
        assert (tmp_path / name / "weights").read_text() == text
    assert names(tmp_path) == [name]


def test_file_that_is_mounted_by_itself_is_written_into(tmp_path, monkeypatch):
    (tmp_path / "out.json").write_text("1")
    number = (tmp_path / "out.json").stat().st_ino

    def busy(*_):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "replace", busy)
    write_json(tmp_path / "out.json", 2)
    assert (tmp_path / "out.json").read_text() == "2\n"
    assert (tmp_path / "out.json").stat().st_ino == number
    assert names(tmp_path) == ["out.json"]


# ---------------------------------------------------------------- of nobody else


def test_two_runs_with_one_process_number_do_not_share_a_name(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with write_folder_aside(folder) as first:
        (first / "weights").write_text("first")
        write(folder, "second")
        assert (folder / "weights").read_text() == "second"
        assert (first / "weights").read_text() == "first"
    assert (folder / "weights").read_text() == "first"
    assert names(tmp_path) == ["model"]


def test_what_a_living_process_writes_is_never_removed_however_old(tmp_path, folder):
    with write_folder_aside(folder) as aside, write_aside(tmp_path / "out.txt") as file:
        (aside / "weights").write_text("first")
        file.write_text("first")
        aged(aside, 9 * DAYS)
        aged(file, 9 * DAYS)

        def another():
            write(folder, "second")
            write_json(tmp_path / "out.txt", {})
            die()

        killed(another)
        assert (aside / "weights").read_text() == file.read_text() == "first"
    assert (folder / "weights").read_text() == (tmp_path / "out.txt").read_text() == "first"


@pytest.mark.parametrize("name", [".model.partial-00000000-12345678", ".model.partial-12345"])
def test_leftover_of_another_machine_or_an_older_version_goes_once_it_is_quiet_for_a_day(tmp_path, folder, name):
    aged(left := leftover(folder, name), DAYS / 2)
    write(folder)
    assert left.exists()
    aged(left, DAYS)
    write(folder)
    assert names(tmp_path) == ["model"]


def test_without_locks_everything_works_and_nothing_is_removed(tmp_path, folder, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    killed(lambda: write_and_die(folder))
    monkeypatch.setattr(fcntl, "flock", no_locks)
    (left,) = set(names(tmp_path)) - {"model"}
    write(folder)
    assert (folder / "weights").read_text() == "new"
    assert names(tmp_path) == sorted([left, "model"])
    in_two_steps(monkeypatch)
    killed(lambda: die_between_the_renames(folder))
    write(folder, "newest")
    assert (folder / "weights").read_text() == "newest"


def test_name_that_another_run_took_for_a_leftover_before_it_was_locked_is_not_written_to(folder, monkeypatch):
    from ebr.data.files import asides

    lock, taken = asides.lock, []

    def too_late(path):
        if not taken:
            taken.append(path)
            path.rmdir()
        return lock(path)

    monkeypatch.setattr(asides, "lock", too_late)
    write(folder)
    assert (folder / "weights").read_text() == "new"
    assert taken and not taken[0].exists()


# ---------------------------------------------------------------- on the disk


@pytest.mark.parametrize("what", ["file", "files", "folder"])
def test_folder_is_flushed_after_a_name_in_it_has_changed(tmp_path, monkeypatch, what):
    flushed, fsync = [], os.fsync

    def noted(handle):
        flushed.append((os.fstat(handle).st_ino, "out" in names(tmp_path)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    if what == "file":
        write_json(tmp_path / "out", {})
    elif what == "files":
        with write_files_aside(tmp_path) as aside:
            (aside / "out").touch()
    else:
        with write_folder_aside(tmp_path / "out") as aside:
            (aside / "sub").mkdir()
            inner = (aside / "sub").stat().st_ino
        assert (inner, False) in flushed
    assert flushed[-1] == (tmp_path.stat().st_ino, True)
