"""The cache of maps: what was stored comes back bit for bit; what could change a map is a miss; nothing breaks a run."""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

from ebr.visualization.map import cache as map_cache
from ebr.visualization.map.cache import MapCache, default_folder, digest_of, key_of

VECTORS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
SETTINGS = {"method": "t-SNE", "perplexity": 30.0, "seed": 42, "start": None}
ARRAYS = {
    "coords": np.arange(12, dtype=np.float32).reshape(6, 2),
    "indices": np.arange(6, dtype=np.int32),
    "none": np.empty((0, 3)),
}
FACTS = {"method": "t-SNE", "settings": {"perplexity": 30.0, "rows": 6}, "trust": {"value": 0.1 + 0.2, "reason": "标签"}}


@pytest.fixture
def cache(tmp_path):
    return MapCache(tmp_path / "maps")


def _files(cache):
    return sorted(path.name for path in cache.folder.iterdir())


# ---------------------------------------------------------------- keys


def test_equal_vectors_and_settings_have_one_key_whatever_the_order_of_settings():
    turned = dict(reversed(SETTINGS.items()))
    assert key_of(VECTORS.copy(), turned) == key_of(VECTORS, SETTINGS) == key_of(digest_of(VECTORS), SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_any_other_setting_is_another_key(name):
    assert key_of(VECTORS, SETTINGS | {name: "other"}) != key_of(VECTORS, SETTINGS)
    assert key_of(VECTORS, {key: value for key, value in SETTINGS.items() if key != name}) != key_of(VECTORS, SETTINGS)


def test_one_changed_float_another_dtype_shape_or_order_is_another_key():
    one = VECTORS.copy()
    one[49, 7] = np.nextafter(one[49, 7], np.float32(9))
    others = [one, VECTORS.astype(np.float64), VECTORS.view(np.int32), VECTORS.reshape(25, 16), VECTORS[::-1], VECTORS[:-1]]
    assert len({digest_of(array) for array in [VECTORS, *others]}) == 7


def test_rows_mapped_from_a_file_or_read_in_blocks_have_the_key_of_rows_in_memory(tmp_path, monkeypatch):
    np.save(tmp_path / "v.npy", VECTORS)
    expected = digest_of(VECTORS)
    monkeypatch.setattr(map_cache, "_BLOCK_BYTES", 7 * VECTORS[:1].nbytes)  # 50 rows in blocks of 7
    assert digest_of(np.load(tmp_path / "v.npy", mmap_mode="r")) == digest_of(np.asfortranarray(VECTORS)) == expected


def test_another_version_of_a_library_or_of_ours_is_another_key(monkeypatch):
    makers = map_cache._makers()
    assert {"ebr", "format", "openTSNE", "umap-learn", "scikit-learn"} <= set(makers)
    before = key_of(VECTORS, SETTINGS)
    for name in ("openTSNE", "ebr", "format"):
        monkeypatch.setattr(map_cache, "_makers", lambda name=name: makers | {name: "other"})
        assert key_of(VECTORS, SETTINGS) != before


def test_keys_are_equal_in_another_process():
    code = "import numpy as np; from ebr.visualization.map.cache import key_of; print(key_of(np.eye(3), {'b': 1, 'a': 2}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == key_of(np.eye(3), {"a": 2, "b": 1})


# ---------------------------------------------------------------- entries


def test_what_was_stored_comes_back_bit_for_bit(cache):
    assert cache.load("k") is None
    cache.store("k", ARRAYS, FACTS)
    found = cache.load("k")
    assert found.facts == FACTS and list(found.arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    assert _files(cache) == ["k.npz"]
    assert cache.load("other") is None


def test_facts_need_no_arrays(cache):
    cache.store("k", {}, FACTS)
    assert cache.load("k").arrays == {}


def test_a_later_entry_replaces_the_first(cache):
    cache.store("k", ARRAYS, {"run": 1})
    cache.store("k", {}, {"run": 2})
    assert cache.load("k").facts == {"run": 2}


def test_nothing_is_pickled_and_nothing_is_unpickled(cache, tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        cache.store("k", {"objects": np.array([{}, None], dtype=object)}, {})
    assert _files(cache) == []  # not even half of it
    cache.store("k", ARRAYS, {})
    with np.load(cache.folder / "k.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["coords"], ARRAYS["coords"])
    # A file that somebody put there, whose array would run code when unpickled.
    proof = tmp_path / "ran"
    evil = np.array([_Runs(str(proof))], dtype=object)
    with zipfile.ZipFile(cache.folder / "k.npz", "w") as archive:
        archive.writestr("facts.json", '{"key": "k", "arrays": ["coords"], "facts": {}}')
        with archive.open("coords.npy", "w") as file:
            np.lib.format.write_array(file, evil, allow_pickle=True)
    pickle.loads(pickle.dumps(evil))
    assert proof.exists()  # the trap works
    proof.rmdir()
    assert cache.load("k") is None and not proof.exists()


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_broken_entry_is_a_miss_with_one_line_and_is_computed_again(cache, caplog):
    cache.store("k", ARRAYS, FACTS)
    path = cache.folder / "k.npz"
    whole = path.read_bytes()
    spot = whole.index(ARRAYS["coords"].tobytes()) + 5
    flipped = whole[:spot] + bytes([whole[spot] ^ 1]) + whole[spot + 1 :]
    for broken in (flipped, whole[:-30], whole[: len(whole) // 2], b"", b"PK\x03\x04", b"no zip at all"):
        path.write_bytes(broken)
        with caplog.at_level(logging.WARNING):
            assert cache.load("k") is None
        assert "broken, so it is computed again" in caplog.messages[-1] and len(caplog.messages) == 1
        caplog.clear()
        assert cache.load("k") is None and not caplog.messages  # it is gone, so said once
        cache.store("k", ARRAYS, FACTS)
        assert cache.load("k").facts == FACTS


def test_no_flipped_byte_changes_what_is_loaded(cache):
    cache.store("k", {"coords": ARRAYS["coords"]}, {"a": 1})
    path = cache.folder / "k.npz"
    whole = path.read_bytes()
    n_missed = 0
    for spot in range(0, len(whole), 3):
        path.write_bytes(whole[:spot] + bytes([whole[spot] ^ 0x55]) + whole[spot + 1 :])
        found = cache.load("k")  # a flip in a date or a version harms nothing
        n_missed += found is None
        if found is not None:
            assert found.facts == {"a": 1}
            np.testing.assert_array_equal(found.arrays["coords"], ARRAYS["coords"])
    assert n_missed > len(whole) / 6


def test_an_entry_under_another_name_is_a_miss(cache):
    cache.store("k", ARRAYS, FACTS)
    (cache.folder / "k.npz").rename(cache.folder / "other.npz")
    assert cache.load("other") is None


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "maps").write_text("a file is in the way")
    cache = MapCache(tmp_path / "maps")
    cache.store("k", ARRAYS, FACTS)
    assert "not kept for the next time" in caplog.text
    assert cache.load("k") is None


def test_two_at_once_store_and_load_one_key(cache):
    big = {"coords": np.random.default_rng(0).normal(size=(20_000, 2))}
    failures = []

    def store_and_load():
        try:
            for _ in range(6):
                cache.store("k", big, FACTS)
                np.testing.assert_array_equal(cache.load("k").arrays["coords"], big["coords"])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=store_and_load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and _files(cache) == ["k.npz"]


# ---------------------------------------------------------------- what is kept


def test_entries_used_longest_ago_go_first(tmp_path):
    array = {"coords": np.zeros(1000)}  # 8,000 bytes, and some hundred around them
    cache = MapCache(tmp_path, most_bytes=30_000)
    for age, key in enumerate("abc"):
        cache.store(key, array, {})
        os.utime(tmp_path / f"{key}.npz", times=(time.time() - 100 + age,) * 2)
    assert cache.load("a") is not None  # now the last that was used
    cache.store("d", array, {})
    assert _files(cache) == ["a.npz", "c.npz", "d.npz"]


def test_the_newest_entry_stays_even_when_it_alone_is_too_large(tmp_path):
    cache = MapCache(tmp_path, most_bytes=10)
    cache.store("a", ARRAYS, {})
    cache.store("b", ARRAYS, {})
    assert _files(cache) == ["b.npz"]


def test_what_a_killed_run_left_is_removed_and_what_is_being_written_is_not(cache):
    cache.store("k", ARRAYS, {})
    old, new = cache.folder / ".k.partial-1-ab.npz", cache.folder / ".k.partial-2-cd.npz"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, times=(time.time() - 2 * 24 * 3600,) * 2)
    cache.sweep()
    assert _files(cache) == [new.name, "k.npz"]


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EBR_CACHE_DIR", str(tmp_path))
    assert MapCache().folder == default_folder() == tmp_path / "maps"
    monkeypatch.delenv("EBR_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "ebr" / "maps"
