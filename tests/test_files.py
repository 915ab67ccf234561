"""A file that exists is a file that is whole: written aside, swapped in, or not at all."""

from __future__ import annotations

import hashlib

import pytest

from ebr.data.files import (
    FOLDER_MANIFEST,
    hash_file,
    hash_files,
    manifest_path,
    read_json,
    read_manifest,
    write_aside,
    write_folder_aside,
    write_json,
)


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
