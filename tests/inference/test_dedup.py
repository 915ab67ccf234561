"""Each distinct text once: of a shard or of all files, and the store that shards leave their vectors in."""

from __future__ import annotations

import sqlite3
import threading
import time

import numpy as np
import pytest

from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import DataError
from ebr.inference.job import store as store_module
from ebr.inference.job.dedup import Dedup, DistinctEncoder, RowDigests
from ebr.inference.job.store import VectorStore, row_digest, text_digest
from ebr.inference.job.worker import _Turns
from ebr.model.compute.engine import TOO_LARGE
from tests.embedding_runs import Run, everything, write_table
from tests.shard_engines import FakeEngine, vectors_of

TEXTS = ["a", "b", "a", "c", "b", "a"]


def nothing(_n_texts):
    pass


def refuse(n_texts):
    raise AssertionError(f"{n_texts} texts encoded")


@pytest.fixture
def store(tmp_path):
    store = VectorStore(tmp_path / "state" / "vectors.sqlite")
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path):
    """Two tables of 12 rows, of three texts that both have and one of their own: 8 distinct texts less 3."""
    for name in "ab":
        write_table(
            tmp_path / "in" / f"{name}.csv", *[f"{name}{i}|{['x', 'y', 'z', f'own {name}'][i % 4]}|L" for i in range(12)]
        )
    return tmp_path / "in"


# ---------------------------------------------------------------- the store


@pytest.fixture
def holder(store):
    """Another process's connection, which is about to write: SQLite lets nobody wait who would switch the file's mode."""
    store.path.parent.mkdir()
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("CREATE TABLE theirs (a)")
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def test_a_store_that_another_process_opens_at_the_same_moment_is_waited_for(store, holder, monkeypatch):
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            holder.execute("COMMIT")

    monkeypatch.setattr(time, "sleep", wait)
    vectors = vectors_of(["a", "b"])
    store.add([b"1" * 16, b"2" * 16], vectors)
    assert len(waits) == 3
    assert {digest: known.vector.tolist() for digest, known in store.get([b"1" * 16, b"2" * 16]).items()} == {
        b"1" * 16: vectors[0].tolist(), b"2" * 16: vectors[1].tolist(),
    }  # fmt: skip


def test_a_store_that_stays_locked_beyond_all_patience_is_named(store, holder, monkeypatch):
    monkeypatch.setattr(store_module, "_PATIENCE_S", 0)
    with pytest.raises(DataError, match=r"vectors\.sqlite: cannot be used \(database is locked\)"):
        store.get([b"1" * 16])


def test_what_is_wrong_with_a_store_beside_a_lock_is_said_at_once(store, monkeypatch):
    class Failing(sqlite3.Connection):
        def execute(self, statement, *values):
            raise sqlite3.OperationalError("disk I/O error")

    connect = sqlite3.connect
    monkeypatch.setattr(store_module.sqlite3, "connect", lambda path, **how: connect(path, factory=Failing, **how))
    monkeypatch.setattr(time, "sleep", None)
    with pytest.raises(DataError, match=r"cannot be used \(disk I/O error\)"):
        store.get([b"1" * 16])


# ---------------------------------------------------------------- an encoder


@pytest.mark.parametrize(("dedup", "n_encoded"), [("shard", 3), ("global", 3), ("none", 6)])
def test_repeated_texts_are_encoded_once_and_all_rows_get_their_vector(store, dedup, n_encoded):
    engine = FakeEngine()
    encoder = DistinctEncoder(engine, Dedup(dedup), store)
    encoded = encoder.encode(TEXTS, RowDigests.of(TEXTS, None), nothing)
    assert engine.seen == (TEXTS if dedup == "none" else ["a", "b", "c"])
    assert encoded.vectors.tobytes() == vectors_of(TEXTS).tobytes()
    assert (encoded.n_encoded, encoded.n_reused, encoded.n_changed, encoded.unfit) == (n_encoded, 0, 0, {})


def test_global_dedup_asks_the_engine_for_what_no_shard_had(store):
    engine = FakeEngine()
    encoder = DistinctEncoder(engine, Dedup.GLOBAL, store)
    for texts in (["a", "b"], ["b", "c", "c"], ["c", "a"]):
        assert encoder.encode(texts, RowDigests.of(texts, None), nothing).vectors.tobytes() == vectors_of(texts).tobytes()
    assert engine.seen == ["a", "b", "c"]


def test_a_shard_that_was_interrupted_counts_what_it_had_encoded_and_encodes_it_not_again(store):
    encoder, digests = DistinctEncoder(FakeEngine(), Dedup.GLOBAL, store), RowDigests.of(TEXTS, None)
    assert encoder.encode(TEXTS, digests, nothing, "shard 1").n_encoded == 3
    assert encoder.encode(TEXTS, digests, refuse, "shard 1").n_encoded == 3
    assert encoder.encode(TEXTS, digests, refuse, "shard 2").n_encoded == 0


def test_rows_of_the_run_before_are_taken_over_by_key_and_text(store):
    engine, before = FakeEngine(), RowDigests.of(["a", "b", "c"], ["k1", "k2", "k3"])
    store.add(before.rows, vectors_of(["a", "b", "c"]), keys=before.keys)
    texts, keys = ["a", "new", "c", "b"], ["k1", "k2", "k4", "k2"]
    encoded = DistinctEncoder(engine, Dedup.SHARD, store, incremental=True).encode(texts, RowDigests.of(texts, keys), nothing)
    assert engine.seen == ["new", "c"]
    assert (encoded.n_encoded, encoded.n_reused, encoded.n_changed) == (2, 2, 1)
    assert encoded.vectors.tobytes() == vectors_of(texts).tobytes()


@pytest.mark.parametrize("dedup", list(Dedup))
def test_every_row_of_a_text_that_is_too_large_is_told_and_the_store_never_has_it(store, dedup):
    encoder = DistinctEncoder(FakeEngine(too_large=["b"]), dedup, store)
    for _ in range(2):
        encoded = encoder.encode(TEXTS, RowDigests.of(TEXTS, None), nothing)
        assert encoded.unfit == {1: TOO_LARGE, 4: TOO_LARGE}
        assert np.isnan(encoded.vectors[[1, 4]]).all()
        assert encoded.vectors[[0, 2, 3, 5]].tobytes() == vectors_of(["a", "a", "c", "a"]).tobytes()
    assert text_digest("b") not in store.get([text_digest(text) for text in "abc"])


@pytest.mark.parametrize("options", [{"dedup": Dedup.GLOBAL}, {"dedup": Dedup.SHARD, "incremental": True}])
def test_an_encoder_that_needs_a_store_says_so(options):
    with pytest.raises(ValueError, match="a store is needed"):
        DistinctEncoder(FakeEngine(), **options)


def test_no_text_at_all_is_no_work(store):
    encoded = DistinctEncoder(FakeEngine(), Dedup.GLOBAL, store).encode([], RowDigests.of([], None), refuse)
    assert encoded.vectors.shape == (0, 5)


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("name", ["v.txt", "v.npy", "folder"])
def test_dedup_changes_how_often_a_text_is_encoded_and_nothing_else(folder, tmp_path, name):
    n_encoded, vectors = {}, {}
    for dedup in ("shard", "global", "none"):
        engine = FakeEngine()
        run = Run(folder, tmp_path / dedup / name, shard_rows=6, dedup=dedup)
        n_encoded[dedup] = run.go(engine).n_encoded
        read = read_embeddings(run.out, "|")
        vectors[dedup] = (read.vectors.tobytes(), read.columns)
        assert len(engine.seen) == n_encoded[dedup]
    assert n_encoded == {"shard": 16, "global": 5, "none": 24}  # 4 shards with 4 texts each
    assert vectors["shard"] == vectors["global"] == vectors["none"]


@pytest.mark.parametrize("shard_rows", [1, 5, 100])
def test_global_dedup_encodes_each_text_once_over_all_files(folder, tmp_path, shard_rows):
    engine = FakeEngine(batch=1)
    Run(folder, tmp_path / "out" / "v.txt", shard_rows=shard_rows, dedup="global").go(engine)
    assert engine.seen == ["x", "y", "z", "own a", "own b"]


def test_the_store_goes_when_the_output_is_finished(folder, tmp_path):
    run = Run(folder, tmp_path / "out" / "v.txt", dedup="global")
    with pytest.raises(RuntimeError, match="the engine died"):
        run.go(FakeEngine(dies_at=5))
    assert (tmp_path / "out" / ".v.txt.ebr" / "vectors.sqlite").exists()
    run.go()
    assert not list((tmp_path / "out" / ".v.txt.ebr").glob("vectors.sqlite*"))


def test_what_the_first_attempt_encoded_the_second_finds_in_the_store(folder, tmp_path):
    run = Run(folder, tmp_path / "out" / "v.txt", dedup="global", shard_rows=4)
    first, second = FakeEngine(dies_at=5), FakeEngine()
    with pytest.raises(RuntimeError, match="the engine died"):
        run.go(first)
    done = run.go(second)
    assert (done.n_kept, done.n_encoded) == (3, 1)
    assert (first.seen[:5], second.seen) == (["x", "y", "z", "own a", "own b"], ["own b"])
    Run(folder, tmp_path / "fresh" / "v.txt", dedup="global", shard_rows=4).go()
    assert everything(tmp_path / "out") == everything(tmp_path / "fresh")


def test_turns_keep_their_order_and_one_that_fails_holds_nobody_up():
    turns, order = _Turns(), []
    assert [turns.take() for _ in range(4)] == [0, 1, 2, 3]

    def go(turn):
        with turns.over_at_the_end(turn):
            if turn != 1:  # the second never gets as far as its turn
                with turns.mine(turn):
                    order.append(turn)

    threads = [threading.Thread(target=go, args=[turn]) for turn in (3, 2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert order == [0, 2, 3]


# ---------------------------------------------------------------- the store


def test_a_store_gives_back_what_was_put_in_and_the_first_vector_stays(store):
    store.add([b"1", b"2"], vectors_of(["a", "b"]), shard="first")
    store.add([b"2", b"3"], vectors_of(["other", "c"]), shard="second")
    known = store.get([b"1", b"2", b"3", b"4"])
    assert {digest: one.shard for digest, one in known.items()} == {b"1": "first", b"2": "first", b"3": "second"}
    assert np.stack([known[digest].vector for digest in (b"1", b"2", b"3")]).tobytes() == vectors_of(["a", "b", "c"]).tobytes()


def test_a_store_is_asked_for_more_than_a_statement_takes(store):
    digests = [text_digest(str(i)) for i in range(2001)]
    store.add(digests, np.arange(2001, dtype=np.float32)[:, None], keys=digests[:1500])
    known = store.get(digests)
    assert [known[digest].vector.item() for digest in digests] == list(range(2001))
    assert store.known_keys(digests) == set(digests[:1500])


def test_a_transaction_that_fails_leaves_nothing_behind(store):
    def keys():
        yield b"k"
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        store.add([b"1"], vectors_of(["a"]), keys=keys())
    assert store.get([b"1"]) == {}
    assert store.known_keys([b"k"]) == set()
    store.add([b"1"], vectors_of(["a"]))
    assert len(store.get([b"1"])) == 1


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    store = VectorStore(tmp_path / "vectors.sqlite")
    store.add([b"1"], vectors_of(["a"]))
    store._opened.execute("PRAGMA max_page_count = 4")
    with pytest.raises(DataError, match=r"vectors\.sqlite: cannot be used \(database or disk is full\); make room on the disk"):
        store.add([b"%d" % i for i in range(9999)], np.zeros((9999, 5), np.float32))
    assert len(store.get([b"1", b"2"])) == 1
    store.close()


def test_a_store_is_not_opened_before_it_is_needed(tmp_path):
    VectorStore(tmp_path / "vectors.sqlite").close()
    assert list(tmp_path.iterdir()) == []


def test_two_stores_on_one_file_see_what_the_other_wrote(tmp_path):
    one, two = VectorStore(tmp_path / "v.sqlite"), VectorStore(tmp_path / "v.sqlite")
    one.add([b"1"], vectors_of(["a"]))
    assert len(two.get([b"1"])) == 1
    two.add([b"2"], vectors_of(["b"]))
    assert len(one.get([b"1", b"2"])) == 2
    one.close()
    two.close()
    assert sqlite3.connect(tmp_path / "v.sqlite").execute("SELECT COUNT(*) FROM vectors").fetchone() == (2,)


def test_digests_tell_texts_keys_and_rows_apart():
    digests = RowDigests.of(["a", "a", "k"], ["k", "m", "a"])
    assert digests.texts[0] == digests.texts[1] == digests.keys[2] != digests.texts[2]
    assert len(set(digests.rows)) == 3
    assert row_digest(text_digest("k"), text_digest("a")) == digests.rows[0]
    table = digests.table(np.array([False, True, False]))
    assert table.shape == (3, 33) and table[:, 32].tolist() == [0, 1, 0]
    assert text_digest("\ud800") != text_digest("\ud801")
