"""A file that exists is a file that is whole: written aside, swapped in, or not at all."""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ebr.data.files import asides
from ebr.data.files.write import (
    FOLDER_MANIFEST,
    as_os_error,
    free_bytes,
    hash_file,
    hash_files,
    manifest_path,
    read_json,
    read_manifest,
    size_of,
    write_aside,
    write_folder_aside,
    write_json,
)
from ebr.errors import DataError
from tests.conftest import REPO


def tree(folder):
    """Every file below a folder, hidden ones too, with its text."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_file_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "a" / "b" / "out.txt"
    with write_aside(path) as aside:
        aside.write_text("half")
        assert not path.exists()
        assert (aside.parent, aside.suffix) == (path.parent, ".txt")
        aside.write_text("whole")
    assert tree(tmp_path) == {"a/b/out.txt": "whole"}


def test_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with write_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"out.txt": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(error), write_aside(path) as aside:
        aside.write_text("half")
        raise error
    assert tree(tmp_path) == {"out.txt": "old"}


def test_error_before_anything_is_written_leaves_no_file(tmp_path):
    with pytest.raises(ValueError), write_aside(tmp_path / "out.txt"):
        raise ValueError
    assert tree(tmp_path) == {}


def with_a_limit(action, n_bytes=100_000):
    """Run an action in a process that may write no file larger than so many bytes; returns what it printed."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({n_bytes}, resource.RLIM_INFINITY))\n{action}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


WRITERS = {
    "safetensors": "from safetensors.torch import save_file; save_file({'a': torch.zeros(10**6)}, f'{aside}/a')",
    "torch": "torch.save({'a': torch.zeros(10**6)}, f'{aside}/a')",
    "tokenizers": (
        "from tokenizers import Tokenizer, models; "
        "Tokenizer(models.WordLevel({f'word {n}': n for n in range(20_000)}, unk_token='word 0')).save(f'{aside}/a')"
    ),
    "python": "(aside / 'a').write_text('a' * 10**6)",
    "pyarrow": "import pyarrow; sink = pyarrow.OSFile(f'{aside}/a', 'wb'); sink.write(b'a' * 10**6)",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_file_that_does_not_fit_is_an_os_error_that_says_where_whichever_library_wrote(tmp_path, writer):
    said = with_a_limit(f"""
import torch
from pathlib import Path
from ebr.data.files.write import write_folder_aside
try:
    with write_folder_aside(Path({str(tmp_path)!r}) / "model") as aside:
        {WRITERS[writer]}
except OSError as error:
    print(type(error).__name__, error.filename, error.strerror)
""")
    assert said.startswith(f"OSError {tmp_path / 'model'} "), said
    assert tree(tmp_path) == {}


_FAISS = "Error in void faiss::write_index(const Index*, IOWriter*, int) at index_write.cpp:499: Error: 'ret' failed:"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),
        (Exception('I/O error: Read-only file system (os error 30) at path "/a/.tmp1"'), errno.EROFS),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), errno.EIO),
        (RuntimeError("[enforce fail at inline_container.cc:471] . PytorchStreamWriter failed writing file"), errno.EIO),
        (RuntimeError("basic_ios::clear: iostream error"), errno.EIO),
        (RuntimeError(f"{_FAISS} write error in /a/b: 307155 != 768000 (No space left on device)"), errno.ENOSPC),
        (RuntimeError(f"{_FAISS} could not open /a/b for writing: Read-only file system"), errno.EROFS),
        (OSError("192000 requested and 38384 written"), errno.EIO),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), errno.ENOSPC),
        (DataError("a.parquet: cannot be read ([Errno 24] Too many open files)"), None),
        (RuntimeError("CUDA out of memory"), None),
        (ValueError("no such option"), None),
    ],
)
def test_failed_writes_are_told_from_other_errors(error, number):
    found = as_os_error(error)
    assert (found and found.errno) == number


def test_error_that_says_where_or_has_no_number_stays_as_it_is(tmp_path):
    for error in (OSError(errno.ENOSPC, "full", "elsewhere"), OSError("odd")):
        with pytest.raises(OSError) as caught, write_aside(tmp_path / "out.txt"):
            raise error
        assert caught.value is error


def test_copy_or_rename_that_fails_names_what_was_to_be_written(tmp_path):
    for error in (OSError(errno.ENOSPC, "full", "source", None, "target"), OSError(errno.EXDEV, "other", "a", None, "b")):
        with pytest.raises(OSError) as caught, write_aside(tmp_path / "out.txt"):
            raise error
        assert (caught.value.errno, caught.value.filename) == (error.errno, str(tmp_path / "out.txt"))


def test_free_bytes_are_those_of_the_nearest_folder_that_is_there(tmp_path, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return SimpleNamespace(total=100, free=7)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert free_bytes(tmp_path / "a" / "b") == 7
    assert asked == [tmp_path]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, free=0))
    assert free_bytes(tmp_path) is None


def test_size_of_a_folder_is_that_of_all_its_files(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_bytes(b"123")
    (tmp_path / "a" / "b" / "y").write_bytes(b"4567")
    assert (size_of(tmp_path / "a"), size_of(tmp_path / "a" / "x"), size_of(tmp_path / "none")) == (7, 3, 0)


def test_aside_is_hidden_from_whoever_lists_tables(tmp_path):
    with write_aside(tmp_path / "out.csv") as aside:
        assert aside.name.startswith(".")
        aside.touch()


# ---------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """A finished folder with two files."""
    old = tmp_path / "model"
    old.mkdir()
    (old / "weights").write_text("old")
    (old / "only_old").write_text("x")
    return old


def test_folder_is_swapped_whole(tmp_path, folder):
    with write_folder_aside(folder) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "weights").write_text("new")
        assert tree(folder) == {"weights": "old", "only_old": "x"}
    assert tree(tmp_path) == {"model/sub/weights": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_new_folder_is_made_with_its_parents(tmp_path):
    with write_folder_aside(tmp_path / "a" / "model") as aside:
        (aside / "weights").write_text("new")
        assert not (tmp_path / "a" / "model").exists()
    assert tree(tmp_path) == {"a/model/weights": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_keeps_the_old_folder_and_leaves_nothing_else(tmp_path, folder, error):
    with pytest.raises(error), write_folder_aside(folder) as aside:
        (aside / "weights").write_text("half")
        raise error
    assert tree(tmp_path) == {"model/weights": "old", "model/only_old": "x"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_swap_that_fails_half_way_puts_the_old_folder_back(tmp_path, folder, monkeypatch):
    replace = type(folder).replace

    def fail_on_new(self, target):
        if ".partial-" in self.name:
            raise OSError("disk full")
        return replace(self, target)

    monkeypatch.setattr(type(folder), "replace", fail_on_new)
    monkeypatch.setattr(asides, "_exchange", lambda first, second: False)
    with pytest.raises(OSError, match="disk full"), write_folder_aside(folder) as aside:
        (aside / "weights").write_text("new")
    assert tree(tmp_path) == {"model/weights": "old", "model/only_old": "x"}


def test_leftover_of_a_killed_run_does_not_leak_into_the_new_folder(tmp_path):
    with write_folder_aside(tmp_path / "model") as aside:
        name = aside.name
    (tmp_path / name).mkdir()
    (tmp_path / name / "stale").write_text("x")
    with write_folder_aside(tmp_path / "model") as aside:
        (aside / "weights").write_text("new")
    assert tree(tmp_path) == {"model/weights": "new"}


# ---------------------------------------------------------------- JSON, manifests, hashes


def test_json_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"名": [1, None]})
    assert read_json(path) == {"名": [1, None]}
    assert "名" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert read_json(path) == {"名": [1, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_manifest_lies_in_a_folder_and_beside_a_file(tmp_path):
    file = tmp_path / "v.txt"
    file.touch()
    assert manifest_path(tmp_path) == tmp_path / FOLDER_MANIFEST
    assert manifest_path(file) == tmp_path / "v.txt.manifest.json"
    assert read_manifest(file) is None
    write_json(manifest_path(file), {"kind": "embeddings"})
    assert read_manifest(file) == {"kind": "embeddings"}
    write_json(manifest_path(file), [1])
    assert read_manifest(file) is None


def test_hash_of_a_file_is_its_sha256_beyond_one_chunk(tmp_path):
    path = tmp_path / "big"
    data = b"x" * (1 << 20) + b"y"
    path.write_bytes(data)
    assert hash_file(path) == hashlib.sha256(data).hexdigest()


def test_hash_of_files_sees_names_contents_and_order(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    a.write_text("1")
    b.write_text("2")
    c.write_text("1")
    hashes = [hash_files(files) for files in ([a, b], [b, a], [a], [c], [a, c])]
    assert len(set(hashes)) == 5
    assert hash_files([a, b]) == hashes[0]
    b.write_text("3")
    assert hash_files([a, b]) != hashes[0]
