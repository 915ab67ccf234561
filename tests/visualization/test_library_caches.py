"""Caches of other libraries: where they cannot write to their own places, they write to ours."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ebr.data.files.write import cache_home
from ebr.visualization import library_caches
from ebr.visualization.project import neighbours, projection


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """An install and a home that take no files, and a cache of ours that does."""
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EBR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", "/nowhere at all")
    ours = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).is_relative_to(tmp_path) and ours(path, mode))
    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(config=SimpleNamespace(CACHE_DIR="")))
    yield tmp_path / "cache"
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):  # set by the code, not by the fixture
        os.environ.pop(name, None)


class Compiled(Exception):
    """What stands in for numba's work, after it has chosen its folder."""


def compiling(*_, **__):
    raise Compiled(os.environ.get("NUMBA_CACHE_DIR"), sys.modules["numba"].config.CACHE_DIR)


def test_umap_and_nn_descent_compile_into_our_cache(read_only, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=compiling, __spec__=None))
    monkeypatch.setitem(sys.modules, "pynndescent", SimpleNamespace(NNDescent=compiling, __spec__=None))
    monkeypatch.setattr(library_caches, "_folder_of", lambda package: Path("/usr"))
    vectors = np.random.default_rng(0).normal(size=(20, 4))
    expected = str(read_only / "numba")
    for draw in (lambda: projection.project_umap(vectors), lambda: neighbours.nearest_neighbours(vectors, 3, exact_up_to=5)):
        with pytest.raises(Compiled) as caught:
            draw()
        assert caught.value.args == (expected, expected)
    assert (read_only / "numba").stat().st_mode & 0o777 == 0o700


def test_what_a_user_set_and_what_can_be_written_stay(read_only, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "mine")
    monkeypatch.setenv("MPLCONFIGDIR", "mine too")
    library_caches.settle_numba_cache("umap")
    library_caches.settle_matplotlib_cache()
    assert (os.environ["NUMBA_CACHE_DIR"], os.environ["MPLCONFIGDIR"]) == ("mine", "mine too")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setenv("MPLCONFIGDIR", "")
    monkeypatch.setattr(os, "access", lambda *_: True)
    library_caches.settle_numba_cache("umap")
    library_caches.settle_matplotlib_cache()
    assert (os.environ["NUMBA_CACHE_DIR"], os.environ["MPLCONFIGDIR"]) == ("", "")


def test_matplotlib_keeps_its_fonts_in_our_cache(read_only):
    library_caches.settle_matplotlib_cache()
    assert os.environ["MPLCONFIGDIR"] == str(read_only / "matplotlib")


def test_a_cache_that_others_may_write_to_is_not_used(read_only, tmp_path):
    (read_only / "numba").mkdir(parents=True, mode=0o777)
    (read_only / "numba").chmod(0o777)  # whatever the umask
    library_caches.settle_numba_cache("umap")
    assert Path(os.environ["NUMBA_CACHE_DIR"]).is_dir()
    assert Path(os.environ["NUMBA_CACHE_DIR"]) != read_only / "numba"


def test_without_a_home_our_cache_lies_among_temporary_files(monkeypatch, tmp_path):
    monkeypatch.delenv("EBR_CACHE_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")))
    assert cache_home() == tmp_path / f"ebr-{os.getuid()}"
