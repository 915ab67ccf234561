"""An index finds what exact search finds, says truthfully how much of it, and refuses what does not fit."""

import gc
import json
import shutil
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest

import faiss
from ebr import IndexConfig, build_index, open_index
from ebr.data.files.write import hash_file, read_manifest, write_json
from ebr.data.vectors import embeddings
from ebr.data.vectors.embeddings import write_embeddings
from ebr.errors import ConfigError, DataError, ModelError
from ebr.model.encoder.encoder import load_encoder
from ebr.retrieval.index import recall as index_recall
from ebr.retrieval.index import source as index_source
from ebr.retrieval.index.command import plan_index
from ebr.retrieval.index.faiss_index import FaissIndex, n_threads, threads
from ebr.retrieval.index.kinds import IndexSpec, Kind
from ebr.retrieval.index.recall import ExactNeighbours, Queries, found_rows, tune
from ebr.retrieval.index.store import RowsReader

DIM = 16
MODEL = {"model": "m", "model_sha256": "abc", "pooling": "mean", "prompt": "p: ", "max_seq_length": 64, "normalized": True}
KINDS = [kind.value for kind in Kind]


def clustered(n_rows, seed=0, dim=DIM):
    """Vectors of any length around 20 centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, dim))
    return (centres[rng.integers(20, size=n_rows)] + 0.6 * rng.standard_normal((n_rows, dim))).astype(np.float32)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def home(tmp_path):
    """A folder with write(name, vectors, …) and build(name, …)."""

    class Home:
        path = tmp_path
        index = tmp_path / "index"

        def write(self, vectors, name="vectors.npy", ids=None, facts=None, **columns):
            ids = [f"r{row}" for row in range(len(vectors))] if ids is None else ids
            write_embeddings(tmp_path / name, {"id": ids, **columns}, vectors, facts=MODEL if facts is None else facts)
            return tmp_path / name

        def config(self, name="vectors.npy", **options):
            return IndexConfig(**{"embeddings_path": tmp_path / name, "index_path": self.index, **options})

        def build(self, name="vectors.npy", say=lambda line: None, **options):
            return build_index(self.config(name, **options), say=say)

        @property
        def sidecar(self):
            return read_manifest(self.index)

        def spoil_sidecar(self, **changes):
            self.write_sidecar({**self.sidecar, **changes})

        def write_sidecar(self, record):
            write_json(self.index / "ebr_manifest.json", record)

    return Home()


def ids_of(found):
    return [[match.id for match in matches] for matches in found]


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "ivf_pq_flat"])
@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_scores_are_those_of_numpy_and_the_best_stands_first(home, kind, metric):
    vectors, queries = clustered(800), clustered(5, seed=1)
    home.write(vectors)
    home.build(kind=kind, metric=metric, min_recall=1)
    truth = unit(queries.astype(np.float64)) @ unit(vectors.astype(np.float64)).T
    if metric == "inner_product":
        truth = queries.astype(np.float64) @ vectors.astype(np.float64).T
    for row, matches in enumerate(open_index(home.index).search_vectors(queries, 10)):
        best = np.argsort(-truth[row])[:10]
        assert [match.rank for match in matches] == list(range(1, 11))
        assert sorted((match.score for match in matches), reverse=True) == [match.score for match in matches]
        # What was found scores as numpy scores that very row; most of it is what numpy finds.
        assert [match.score for match in matches] == pytest.approx(
            [truth[row][int(match.id[1:])] for match in matches], abs=2e-6
        )
        assert len({f"r{index}" for index in best} & {match.id for match in matches}) >= (10 if kind == "flat" else 8)


def test_vectors_of_length_one_are_a_copy_and_those_given_stay_as_they_are(home):
    queries = clustered(3)
    before = queries.copy()
    home.write(clustered(50))
    home.build()
    open_index(home.index).search_vectors(queries)
    assert np.array_equal(queries, before)
    scaled = index_source.scaled(queries, ["a", "b", "c"], "x")
    assert np.array_equal(queries, before) and not np.shares_memory(scaled, queries)
    assert np.linalg.norm(scaled, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)


def test_a_vector_of_zeros_has_no_cosine_but_an_inner_product(home):
    vectors = clustered(30)
    vectors[7] = 0
    home.write(vectors)
    with pytest.raises(DataError, match=r"vectors\.npy: the vector of 'r7' is all zeros and has no direction"):
        home.build()
    assert not home.index.exists()
    home.build(metric="inner_product")
    assert len(open_index(home.index)) == 30


@pytest.mark.parametrize("kind", KINDS)
def test_more_hits_than_rows_are_all_rows_each_once(home, kind):
    home.write(clustered(400))
    home.build(kind=kind, min_recall=0.01)
    assert home.sidecar["search_effort"].get("nprobe", 1) == 1 < home.sidecar["n_lists"] or "ivf" not in kind
    (matches,) = open_index(home.index).search_vectors(clustered(1, seed=5), 1000)
    assert {match.id for match in matches} == {f"r{row}" for row in range(400)}
    assert len(matches) == 400 and all(np.isfinite(match.score) for match in matches)


# ---------------------------------------------------------------- rows


def test_ids_are_the_users_own_texts_and_come_back_with_their_columns(home):
    vectors = clustered(4)
    home.write(vectors, ids=["007", "苹果", "7", "a b"], text=["零零七", None, "", "x\ny"], label=list("abcd"))
    home.build(output_columns=["text"])
    found = open_index(home.index).search_vectors(vectors, 1)
    assert [(one.id, one.columns) for (one,) in found] == [
        ("007", {"text": "零零七"}),
        ("苹果", {"text": None}),
        ("7", {"text": ""}),
        ("a b", {"text": "x\ny"}),
    ]
    assert pq.read_table(home.index / "rows.parquet").column_names == ["id", "text"]


def test_without_an_id_column_ids_are_row_numbers_and_a_column_called_id_may_be_kept(home):
    home.write(clustered(3), ids=["a", "b", "c"], name="v.npy")
    home.build("v.npy", id_column=None)
    found = open_index(home.index).search_vectors(clustered(3), 1)
    assert [(one.id, one.columns["id"]) for (one,) in found] == [("0", "a"), ("1", "b"), ("2", "c")]


def test_rows_are_read_across_groups(home):
    n_rows = 5000
    home.write(clustered(n_rows), text=[f"t{row}" for row in range(n_rows)])
    home.build(sample_queries=10)
    rows = RowsReader(home.index / "rows.parquet")
    assert rows.n_rows == n_rows
    for row in (0, 2047, 2048, 4095, 4096, 4999):
        assert rows.row(row) == (f"r{row}", {"text": f"t{row}"})
    assert [name for ids, _ in rows.groups() for name in ids] == [f"r{row}" for row in range(n_rows)]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a", "c", "b"], r"v\.npy: 'a', 'b' come twice; every row needs an id of its own"),
        (["a", "", "b", "c", "d"], r"v\.npy: row 2: 'id' is empty"),
        (["a", "b", "c", None, "d"], r"v\.npy: row 4: 'id' is null"),
    ],
)
def test_ids_that_name_no_row_or_two_are_refused(home, ids, message):
    home.write(clustered(5), ids=ids, name="v.npy")
    with pytest.raises(DataError, match=message):
        home.build("v.npy")
    assert not home.index.exists()


def test_the_same_id_in_two_blocks_is_refused(home):
    ids = [f"r{row}" for row in range(5000)]
    ids[4999] = "r3"
    home.write(clustered(5000), ids=ids)
    with pytest.raises(DataError, match="'r3' come twice"):
        home.build()


def test_a_missing_id_column_is_named_with_those_there_are(home):
    home.write(clustered(5), label=list("abcde"))
    with pytest.raises(DataError, match=r"no column 'sku' \(id_column\); it has 'id', 'label'"):
        home.build(id_column="sku")


# ---------------------------------------------------------------- recall


def brute_force_recall(index, vectors, queries, own_rows):
    """Mean share of the ten best by numpy that an open index finds."""
    shares = []
    for query, own in zip(queries, own_rows, strict=True):
        scores = unit(vectors.astype(np.float64)) @ unit(query[None].astype(np.float64))[0]
        if own is not None:
            scores[own] = -np.inf
        best = {f"r{row}" for row in np.argsort(-scores)[:10]}
        found = [match.id for match in index.search_vectors(query[None], 11)[0] if match.id != f"r{own}"][:10]
        shares.append(len(best & set(found)) / 10)
    return np.mean(shares), np.percentile(shares, 5)


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivf_pq", "ivf_pq_sq8", "hnsw"])
def test_recall_in_the_sidecar_is_what_is_measured_again(home, kind):
    vectors = clustered(1500)
    home.write(vectors)
    home.build(kind=kind, sample_queries=1500, min_recall=0.9, seed=3)
    # With as many queries as rows, the sample is every row; in the order of the seed, every second one is reported.
    reported = np.random.default_rng(3).permutation(1500)[::2]
    mean, low = brute_force_recall(open_index(home.index), vectors, vectors[reported], reported)
    recorded = home.sidecar["recall"]
    assert recorded["n_queries"] == 750
    assert (recorded["recall@10"], recorded["recall@10_p5"]) == pytest.approx((mean, low), abs=1e-9)
    assert mean == 1 or kind != "flat"
    assert mean < 0.9 or kind != "ivf_pq"


def test_queries_of_ones_own_measure_recall_in_the_place_of_rows(home):
    vectors, queries = clustered(1500), clustered(40, seed=8)
    home.write(vectors)
    home.write(queries, name="q.npy")
    home.build(kind="ivf", query_embeddings=home.path / "q.npy", min_recall=0.5, seed=3)
    reported = np.random.default_rng(3).permutation(40)[::2]
    mean, _ = brute_force_recall(open_index(home.index), vectors, queries[reported], [None] * 20)
    assert home.sidecar["recall"]["recall@10"] == pytest.approx(mean)
    assert home.sidecar["recall"]["queries"] == str(home.path / "q.npy")


def test_what_is_tuned_on_is_not_reported_on():
    tuning, reporting = Queries(np.zeros((101, 2), np.float32), None).halves()
    assert not set(tuning) & set(reporting) and len(tuning) + len(reporting) == 101


def test_rows_that_tie_with_the_tenth_are_as_good_as_it():
    vectors = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    exact = ExactNeighbours(Queries(vectors[:1], np.array([0])))
    exact.update(0, vectors[:5])
    exact.update(5, vectors[5:])
    last_ten_alike, none_alike = np.arange(10, 20)[None], np.arange(30, 40)[None]
    assert exact.recall(last_ten_alike, np.array([0])) == [1]
    assert exact.recall(none_alike, np.array([0])) == [0]
    assert 0 not in exact.rows[0][np.isfinite(exact.scores[0])]


def test_exact_neighbours_by_blocks_are_those_of_all_at_once():
    vectors = unit(clustered(500))
    whole, parts = (ExactNeighbours(Queries(vectors[:20], np.arange(20))) for _ in range(2))
    whole.update(0, vectors)
    for start in range(0, 500, 37):
        parts.update(start, vectors[start : start + 37])
    assert np.array_equal(whole.rows, parts.rows)
    assert np.array_equal(whole.rows[3, :5], [row for row in np.argsort(-(vectors @ vectors[3])) if row != 3][:5])


def test_effort_is_the_least_cost_that_reaches_the_target_beyond_its_error():
    vectors = unit(clustered(3000))
    index = FaissIndex.make(IndexSpec(Kind.IVF, 3000, DIM, 64))
    index.train(vectors, seed=0)
    index.add(vectors)
    queries = Queries(unit(clustered(200, seed=4)), None)
    exact = ExactNeighbours(queries)
    exact.update(0, vectors)
    tuning, _ = queries.halves()
    steps = index.knobs["nprobe"]
    recalls = [exact.recall(found_rows(index, queries, tuning, {"nprobe": step}), tuning) for step in steps]
    means = [each.mean() for each in recalls]
    safe = [each.mean() - each.std(ddof=1) / 10 for each in recalls]

    def tuned(min_recall):
        return tune(index, exact, lambda effort: effort["nprobe"], min_recall=min_recall)

    assert safe[2] > safe[1] and means[2] > safe[2] > means[1]
    assert tuned(safe[2] - 1e-9).effort == {"nprobe": steps[2]}
    # The mean alone would do, but less its error it does not.
    assert tuned(means[2]).effort["nprobe"] > steps[2]
    assert tuned(safe[2]).reached and tuned(safe[2]).recall == means[2]
    assert tuned(1.0).reached == (max(safe) == 1)


def test_a_target_out_of_reach_is_said_loudly(home):
    home.write(clustered(1500, dim=DIM))
    result = home.build(kind="pq", min_recall=0.999)
    assert "warning: recall@10 of 0.999 was not reached with kind pq" in result.summary()
    assert home.sidecar["recall"]["reached"] is False
    assert "warning" not in home.build(kind="flat", min_recall=0.999).summary()
    assert home.sidecar["recall"]["reached"] is True


@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_a_handful_of_rows_is_an_index_too(home, n_rows):
    home.write(clustered(n_rows))
    result = home.build()
    assert (result.quality is None) == (n_rows == 1)
    assert ids_of(open_index(home.index).search_vectors(clustered(n_rows), 1)) == [[f"r{row}"] for row in range(n_rows)]
    assert ("not measured" in result.summary()) == (n_rows == 1)


# ---------------------------------------------------------------- memory, streams, seeds


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_memory_is_within_a_tenth_of_the_file(home, kind):
    home.write(clustered(3000, dim=64))
    result = home.build(kind=kind, sample_queries=10, min_recall=0.01)
    assert result.file_bytes == (home.index / "index.faiss").stat().st_size == home.sidecar["memory"]["file_bytes"]
    assert result.spec.predicted_bytes == pytest.approx(result.file_bytes, rel=0.1)


def test_vectors_are_streamed_and_let_go(home, monkeypatch):
    home.write(clustered(10_000))
    alive, most = [], 0
    read_batches = embeddings.read_batches

    def watched(*args, **options):
        nonlocal most
        for batch in read_batches(*args, **options):
            alive.append(weakref.ref(batch.vectors))
            gc.collect()
            most = max(most, sum(ref() is not None and len(ref()) for ref in alive))
            yield batch

    monkeypatch.setattr(embeddings, "read_batches", watched)
    home.build(kind="ivf", sample_queries=20, metric="inner_product")
    assert len(alive) == 1 + 3 + 3  # a look, and two passes of three blocks
    assert most <= 2 * 4096


@pytest.mark.parametrize("kind", ["ivf", "pq", "ivf_pq_flat"])
def test_the_same_seed_gives_the_same_index_and_another_one_another(home, kind):
    home.write(clustered(2000))
    hashes = []
    with threads(1):
        for seed in (1, 1, 2):
            home.build(kind=kind, seed=seed)
            hashes.append((hash_file(home.index / "index.faiss"), home.sidecar["recall"]["recall@10"]))
    assert hashes[0] == hashes[1]
    assert hashes[0][0] != hashes[2][0]


def test_threads_are_given_back_even_after_an_error():
    before = n_threads()
    with pytest.raises(RuntimeError), threads(before + 3):
        assert n_threads() == before + 3
        raise RuntimeError
    assert n_threads() == before


# ---------------------------------------------------------------- the folder


def test_a_failed_build_leaves_the_old_index_whole(home, monkeypatch):
    home.write(clustered(50))
    home.build()
    before = {file.name: file.read_bytes() for file in home.index.iterdir()}
    monkeypatch.setattr(FaissIndex, "write", lambda self, path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        home.build(kind="hnsw")
    assert {file.name: file.read_bytes() for file in home.index.iterdir()} == before
    assert sorted(path.name for path in home.path.iterdir() if path.name.startswith(".")) == []


def test_what_is_no_index_is_not_written_over(home):
    home.write(clustered(50))
    home.index.mkdir()
    home.build()  # an empty folder may be filled
    home.build(kind="hnsw")  # and an index replaced
    with pytest.raises(ConfigError, match="is a embeddings of ebr; give a new folder"):
        write_json(home.index / "ebr_manifest.json", {"kind": "embeddings"})
        home.build()
    (home.path / "mine").mkdir()
    (home.path / "mine" / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds other files; give a new folder"):
        home.build(index_path=home.path / "mine")
    with pytest.raises(ConfigError, match="is a file; an index is a folder"):
        home.build(index_path=home.path / "mine" / "notes.txt")


def test_an_index_folder_with_anything_else_in_it_is_not_replaced(home):
    home.write(clustered(60))
    home.build()
    (home.index / "notes.txt").write_text("mine")
    for options in ({}, {"add": True}):
        with pytest.raises(ConfigError, match=r"holds notes.txt beside the index"):
            home.build(**options)
    assert (home.index / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="is the working folder"):
        home.build(index_path=".")


@pytest.mark.parametrize(
    "changes", [{"search_effort": {}}, {"search_effort": {"nprobe": 0}}, {"index_kind": "hnsw"}, {"index_kind": "flat"}]
)
def test_a_sidecar_of_another_kind_or_without_its_effort_is_refused(home, changes):
    home.write(clustered(200))
    home.build(kind="ivf")
    home.spoil_sidecar(**changes)
    with pytest.raises(DataError, match=r"does not fit kind ivf|is not of the kind"):
        open_index(home.index)


def test_a_graph_finds_every_row_though_many_are_equal(home):
    vectors = clustered(400)
    vectors[:200] = vectors[0]
    home.write(vectors)
    home.build(kind="hnsw")
    (matches,) = open_index(home.index).search_vectors(clustered(1, seed=3), 400)
    assert sorted(match.id for match in matches) == sorted(f"r{row}" for row in range(400))


def test_damaged_old_vectors_do_not_stand_in_the_way_of_new_ones(home):
    home.write(clustered(60))
    home.build()
    home.write(clustered(20, seed=1), name="more.npy", ids=[f"n{row}" for row in range(20)])
    data = bytearray((home.path / "vectors.npy").read_bytes())
    data[-1] ^= 1
    (home.path / "vectors.npy").write_bytes(bytes(data))
    built = home.build("more.npy", add=True)
    assert (built.n_rows, built.quality) == (80, None)


def test_ids_of_another_column_are_not_mixed_in(home):
    home.write(clustered(60))
    home.build()
    home.write(clustered(20, seed=1), name="more.npy", ids=[f"n{row}" for row in range(20)])
    with pytest.raises(ConfigError, match=r"id_column none: .* has its ids from id"):
        home.build("more.npy", add=True, id_column=None, output_columns=[])


def test_a_query_that_is_no_number_is_refused(home):
    home.write(clustered(60))
    home.build()
    with pytest.raises(DataError, match="query 2: its vector holds nan or inf"):
        open_index(home.index).search_vectors(np.array([[1.0] * DIM, [np.nan] * DIM], np.float32))


def swap_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def write_l2(home):
    index = faiss.IndexFlatL2(DIM)
    index.add(clustered(50))
    faiss.write_index(index, str(home.index / "index.faiss"))
    home.spoil_sidecar(files={**home.sidecar["files"], "index.faiss": hash_file(home.index / "index.faiss")})


def cut_short(home):
    path = home.index / "index.faiss"
    path.write_bytes(path.read_bytes()[:200])
    home.spoil_sidecar(files={**home.sidecar["files"], "index.faiss": hash_file(path)})


BROKEN = {
    "a changed index": (lambda home: swap_byte(home.index / "index.faiss"), "index.faiss: differs from what"),
    "changed rows": (lambda home: swap_byte(home.index / "rows.parquet"), "rows.parquet: differs from what"),
    "no index": (lambda home: (home.index / "index.faiss").unlink(), "index.faiss: is missing"),
    "no rows": (lambda home: (home.index / "rows.parquet").unlink(), "rows.parquet: is missing"),
    "another dimension": (lambda home: home.spoil_sidecar(dim=17), "has vectors of 16 numbers, where dim is 17"),
    "another metric": (lambda home: home.spoil_sidecar(metric="euclid"), "cannot be used .*'euclid'"),
    "a distance": (write_l2, "its metric is a distance, where metric cosine is an inner product"),
    "a file cut short": (cut_short, "cannot be read as a FAISS index"),
    "another count": (lambda home: home.spoil_sidecar(n_rows=51), "has 50 vectors, where n_rows is 51"),
    "other columns": (lambda home: home.spoil_sidecar(columns=["x"]), r"has the columns \['text'\], where columns are \['x'\]"),
    "no sidecar": (lambda home: (home.index / "ebr_manifest.json").unlink(), "no ebr_manifest.json, so nothing says"),
    "a sidecar of something else": (
        lambda home: home.spoil_sidecar(kind="model"),
        "manifest is that of 'model', not of an index",
    ),
    "half a sidecar": (
        lambda home: write_json(home.index / "ebr_manifest.json", {"kind": "index"}),
        "cannot be used .KeyError",
    ),
    "nothing": (lambda home: shutil.rmtree(home.index), "no such folder; build it with"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_index_that_does_not_fit_its_sidecar_is_one_clear_error(home, fault):
    home.write(clustered(50), text=["t"] * 50)
    home.build()
    assert len(open_index(home.index)) == 50
    spoil, message = BROKEN[fault]
    spoil(home)
    with pytest.raises(DataError, match=message) as caught:
        open_index(home.index)
    assert "\n" not in str(caught.value)


def test_the_sidecar_says_what_a_search_needs(home):
    path = home.write(
        clustered(50), facts={**MODEL, "query_prompt": "q: ", "query_max_len": 32, "config": {"truncate_dim": 16}}
    )
    home.build(metric="inner_product")
    sidecar = home.sidecar
    assert {name: sidecar[name] for name in MODEL} == MODEL
    assert (sidecar["query_prompt"], sidecar["query_max_len"], sidecar["truncate_dim"]) == ("q: ", 32, 16)
    assert (sidecar["metric"], sidecar["dim"], sidecar["n_rows"], sidecar["index_kind"]) == ("inner_product", 16, 50, "flat")
    manifest_sha256 = hash_file(path.with_name("vectors.npy.manifest.json"))
    assert sidecar["embeddings"] == [{"path": str(path), "n_rows": 50, "cut": None, "manifest_sha256": manifest_sha256}]
    assert sidecar["files"] == {name: hash_file(home.index / name) for name in ("index.faiss", "rows.parquet")}
    assert json.loads(json.dumps(sidecar, allow_nan=False)) == sidecar


# ---------------------------------------------------------------- adding


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_pq_flat"])
def test_rows_added_are_found_like_those_built_at_once(home, kind):
    vectors = clustered(1200)
    home.write(vectors[:800], name="a.npy", text=[f"t{row}" for row in range(800)])
    home.write(
        vectors[800:], name="b.npy", ids=[f"r{row}" for row in range(800, 1200)], text=[f"t{r}" for r in range(800, 1200)]
    )
    home.write(vectors, text=[f"t{row}" for row in range(1200)])
    home.build("a.npy", kind=kind)
    result = home.build("b.npy", add=True)
    assert (result.n_added, result.n_rows, home.sidecar["n_rows"], home.sidecar["index_kind"]) == (400, 1200, 1200, kind)
    added = open_index(home.index)
    assert [fact["n_rows"] for fact in home.sidecar["embeddings"]] == [800, 400]
    assert home.sidecar["recall"]["n_rows"] == 1200  # measured anew: all the vectors are there
    home.build(kind=kind, index_path=home.path / "whole")
    whole = open_index(home.path / "whole")
    queries = clustered(20, seed=6)
    ours, theirs = added.search_vectors(queries), whole.search_vectors(queries)
    if kind == "flat":
        assert ours == theirs
    same = [len(set(a) & set(b)) for a, b in zip(ids_of(ours), ids_of(theirs), strict=True)]
    assert np.mean(same) >= 8.5
    assert all(match.columns == {"text": "t" + match.id[1:]} for matches in ours for match in matches)


def test_recall_of_before_stays_when_the_old_vectors_are_gone(home):
    home.write(clustered(600), name="a.npy")
    home.write(clustered(100, seed=2), name="b.npy", ids=[f"b{row}" for row in range(100)])
    home.build("a.npy", kind="ivf")
    before = home.sidecar["recall"]
    (home.path / "a.npy").unlink()
    result = home.build("b.npy", add=True)
    assert result.quality is None and "not measured" in result.summary()
    assert home.sidecar["recall"] == before and before["n_rows"] == 600 and home.sidecar["n_rows"] == 700
    assert ids_of(open_index(home.index).search_vectors(clustered(100, seed=2)[:1], 1)) == [["b0"]]


def test_old_vectors_that_changed_are_not_measured_with(home):
    home.write(clustered(600), name="a.npy")
    home.write(clustered(100, seed=2), name="b.npy", ids=[f"b{row}" for row in range(100)])
    home.build("a.npy", kind="ivf")
    home.write(clustered(600, seed=7), name="a.npy")
    assert home.build("b.npy", add=True).quality is None


ADDED = {
    "ids it has": ({"ids": ["new", "r1", "r2"]}, {}, "'r1', 'r2' are in the index, or come twice; leave them out"),
    "another model": ({"facts": {**MODEL, "model_sha256": "xyz"}}, {}, "model_sha256 'xyz', not 'abc'"),
    "another prompt": ({"facts": {**MODEL, "prompt": ""}}, {}, "prompt '', not 'p: '"),
    "another length": ({"facts": {**MODEL, "passage_max_len": 32}}, {}, "passage_max_len 32, not None"),
    "other scaling": ({"facts": {**MODEL, "normalized": False}}, {}, "normalized False, not True"),
    "no known model": ({"facts": {}}, {}, "model_sha256 None, not 'abc'"),
    "another dimension": ({"dim": 8}, {}, "8 numbers a vector, where .* has 16"),
    "another metric": ({}, {"metric": "inner_product"}, "metric inner_product: .* is cosine"),
    "another kind": ({}, {"kind": "hnsw"}, "kind hnsw: .* is flat"),
    "other columns": ({"label": ["x", "y", "z"]}, {}, "its columns label are not none of"),
}


@pytest.mark.parametrize("fault", ADDED)
def test_rows_that_do_not_fit_are_not_added(home, fault):
    home.write(clustered(50))
    home.build()
    before = {file.name: file.read_bytes() for file in home.index.iterdir()}
    given, options, message = ADDED[fault]
    vectors = clustered(3, seed=1, dim=given.get("dim", DIM))
    home.write(vectors, name="more.npy", **{"ids": ["x", "y", "z"], **{k: v for k, v in given.items() if k != "dim"}})
    with pytest.raises((DataError, ConfigError), match=message):
        home.build("more.npy", add=True, **options)
    assert {file.name: file.read_bytes() for file in home.index.iterdir()} == before


def test_what_was_said_once_of_vectors_made_elsewhere_holds_for_those_added(home, tiny_model):
    texts = ["the red small shoe", "a large blue lamp", "the green book", "buy a cup"]
    vectors = load_encoder(tiny_model, pooling="cls").encode_document(texts)
    for name, rows in {"a.npy": vectors[:2], "b.npy": vectors[2:]}.items():
        np.save(home.path / name, rows)
    said = {"model_path": tiny_model, "pooling": "cls", "base_model_path": tiny_model}
    home.build("a.npy", id_column=None, **said)
    home.build("b.npy", id_column=None, add=True)
    assert [home.sidecar[name] for name in ("model", "pooling", "base_model_path")] == [tiny_model, "cls", tiny_model]
    (matches,) = open_index(home.index).search([texts[3]])
    assert (matches[0].id, round(matches[0].score, 4)) == ("3", 1.0)
    with pytest.raises(DataError, match=r"does not fit .*: pooling 'mean', not 'cls'"):
        home.build("b.npy", id_column=None, add=True, pooling="mean")


def test_rows_that_another_run_added_meanwhile_are_not_lost(home, monkeypatch):
    home.write(clustered(50))
    home.write(clustered(3, seed=1), name="b.npy", ids=list("xyz"))
    home.build()
    write = FaissIndex.write
    monkeypatch.setattr(FaissIndex, "write", lambda self, path: (home.spoil_sidecar(n_rows=51), write(self, path)))
    with pytest.raises(DataError, match="changed while rows were added to it; add them again"):
        home.build("b.npy", add=True)
    assert home.sidecar["n_rows"] == 51


def test_row_numbers_go_on_where_they_stopped(home):
    home.write(clustered(5), name="a.npy")
    home.write(clustered(3, seed=1), name="b.npy")
    home.build("a.npy", id_column=None, output_columns=[])
    home.build("b.npy", id_column=None, output_columns=[], add=True)
    assert ids_of(open_index(home.index).search_vectors(clustered(3, seed=1), 1)) == [["5"], ["6"], ["7"]]


def test_an_index_that_has_outgrown_its_lists_says_so(home):
    home.write(clustered(100), name="a.npy")
    home.write(clustered(400, seed=1), name="b.npy", ids=[f"b{row}" for row in range(400)])
    home.build("a.npy", kind="ivf")
    said = []
    home.build("b.npy", add=True, say=said.append)
    assert said[-1].startswith("warning: its lists were learned from 100 rows and now hold 500")


# ---------------------------------------------------------------- options


def test_the_plan_says_what_would_be_built(home):
    home.write(clustered(1000), text=["t"] * 1000)
    lines = "\n".join(plan_index(home.config(memory_budget="8MB")).lines())
    for words in (
        "1,000 rows of 16, cosine",
        "flat (Flat): 1,000 rows of 16 are few",
        "64 kB predicted, of 8.00 MB",
        "kept: text",
    ):
        assert words in lines
    assert "warning: kind flat takes more than memory_budget" in "\n".join(
        plan_index(home.config(kind="flat", memory_budget="1kB")).lines()
    )
    assert not home.index.exists()


def test_queries_of_another_model_are_refused(home):
    home.write(clustered(50))
    home.write(clustered(20), name="q.npy", facts={**MODEL, "model_sha256": "xyz"})
    home.write(clustered(20, dim=8), name="short.npy")
    with pytest.raises(DataError, match="made by another model than"):
        home.build(query_embeddings=home.path / "q.npy")
    with pytest.raises(DataError, match=r"8 numbers a vector, where .* has 16"):
        home.build(query_embeddings=home.path / "short.npy")


@pytest.mark.parametrize("what", [{"spelling_sha256": "s2"}, {"architecture": {"0": {"class": "B"}}}])
def test_queries_of_the_same_weights_that_are_read_or_computed_otherwise_are_refused(home, what):
    facts = {**MODEL, "spelling_sha256": "s1", "architecture": {"0": {"class": "A"}}}
    home.write(clustered(50), facts=facts)
    home.write(clustered(20), name="q.npy", facts={**facts, **what})
    with pytest.raises(DataError, match=r"query_embeddings .*q\.npy: made by another model than .*; embed them with the same"):
        home.build(query_embeddings=home.path / "q.npy")
    # Vectors of before record neither, and those made elsewhere nothing.
    for known in (MODEL, {}):
        home.write(clustered(20), name="q.npy", facts=known)
        home.build(query_embeddings=home.path / "q.npy")


@pytest.mark.parametrize("column", ["text", "label"])
def test_the_words_of_one_column_are_indexed(home, column):
    home.write(clustered(4), text=["red", "blue", None, ""], label=["blue", "green", "green", "red"])
    home.build(lexical_column=column)
    texts = {"text": ["red", "blue", "", ""], "label": ["blue", "green", "green", "red"]}[column]
    (found,) = open_index(home.index).search(["blue"], mode="lexical")
    assert [match.id for match in found] == [f"r{texts.index('blue')}"]
    assert home.sidecar["lexical"]["column"] == column and home.sidecar["lexical"]["n_words"] == len(set(texts) - {""})


def test_a_column_whose_name_begins_another_is_not_mistaken_for_it(home):
    home.write(clustered(2), **{"text.zh": ["苹果", "台灯"], "text": ["apple", "lamp"]})
    home.build(lexical_column="text")
    assert ids_of(open_index(home.index).search(["lamps", "台灯"], mode="lexical")) == [["r1"], []]


REACH = {
    "embeddings_path": "every test here",
    "delimiter": "test_a_text_file_made_elsewhere_is_read_with_its_delimiter",
    "vector_column": "test_the_column_of_the_vectors_may_be_named",
    "id_column": "test_without_an_id_column_ids_are_row_numbers_and_a_column_called_id_may_be_kept",
    "output_columns": "test_ids_are_the_users_own_texts_and_come_back_with_their_columns",
    "index_path": "test_what_is_no_index_is_not_written_over",
    "lexical_column": "test_the_words_of_one_column_are_indexed",
    "add": "test_rows_added_are_found_like_those_built_at_once",
    "kind": "test_predicted_memory_is_within_a_tenth_of_the_file",
    "model_path": "test_model_options_of_vectors_made_elsewhere_are_recorded",
    "pooling": "test_model_options_of_vectors_made_elsewhere_are_recorded",
    "base_model_path": "test_model_options_of_vectors_made_elsewhere_are_recorded",
    "metric": "test_scores_are_those_of_numpy_and_the_best_stands_first",
    "memory_budget": "test_memory_budget_decides_what_auto_builds",
    "min_recall": "test_min_recall_decides_the_effort",
    "query_embeddings": "test_queries_of_ones_own_measure_recall_in_the_place_of_rows",
    "sample_queries": "test_so_many_queries_are_sampled",
    "seed": "test_the_same_seed_gives_the_same_index_and_another_one_another",
}


def test_every_option_is_proved_to_reach_its_consumer():
    assert set(REACH) == set(IndexConfig.model_fields)
    for name in REACH.values():
        assert name == "every test here" or name in globals()


def test_a_text_file_made_elsewhere_is_read_with_its_delimiter(home):
    (home.path / "v.txt").write_text("sku|vector\n苹果|1 0\n007|0 1\n", encoding="utf-8")
    home.build("v.txt", delimiter="|", id_column="sku")
    assert ids_of(open_index(home.index).search_vectors(np.eye(2, dtype=np.float32), 1)) == [["苹果"], ["007"]]
    assert home.sidecar["model_sha256"] is None and home.sidecar["embeddings"][0]["manifest_sha256"] is None


def test_the_column_of_the_vectors_may_be_named(home, caplog):
    text = "id,a_emb,b_emb\nx,[1 0],[0 1]\ny,[0 1],[1 0]\n"
    for name in ("v.csv", "q.csv"):
        (home.path / name).write_text(text, encoding="utf-8")
    home.build("v.csv", vector_column="b_emb", query_embeddings=home.path / "q.csv")
    assert ids_of(open_index(home.index).search_vectors(np.eye(2, dtype=np.float32), 1)) == [["y"], ["x"]]
    assert sum("no manifest" in message for message in caplog.messages) == 2  # one a file, however often it is read


def test_model_options_of_vectors_made_elsewhere_are_recorded(home, tiny_model):
    np.save(home.path / "plain.npy", clustered(20))
    home.build("plain.npy", id_column=None, model_path=tiny_model, pooling="cls", base_model_path=tiny_model)
    assert (home.sidecar["model"], home.sidecar["pooling"], home.sidecar["base_model_path"]) == (tiny_model, "cls", tiny_model)
    with pytest.raises(ConfigError, match="pooling cls: is only read with model_path"):
        home.build("plain.npy", id_column=None, pooling="cls")
    with pytest.raises(ModelError, match="no such folder"):
        home.build("plain.npy", id_column=None, model_path="./nowhere at all")
    home.write(clustered(20))
    with pytest.raises(ConfigError, match="was pooled by mean; leave it out"):
        home.build(pooling="cls")


def test_memory_budget_decides_what_auto_builds(home, monkeypatch):
    from ebr.retrieval.index import kinds as index_kinds

    monkeypatch.setattr(index_kinds, "_EXACT_NUMBERS", 0)
    home.write(clustered(2000))
    kinds = [plan_index(home.config(memory_budget=budget)).spec.kind for budget in ("1MB", "120kB", "80kB")]
    assert kinds == [Kind.IVF_PQ_FLAT, Kind.IVF_PQ_FP16, Kind.IVF_PQ_SQ8]


def test_free_memory_is_what_auto_counts_with(home, monkeypatch):
    from ebr.retrieval.index import plan as index_planning

    monkeypatch.setattr(index_planning, "free_host_bytes", lambda: 1234)
    home.write(clustered(20))
    assert plan_index(home.config(kind="flat")).budget == 617


def test_min_recall_decides_the_effort(home):
    home.write(clustered(3000))
    efforts = []
    for min_recall in (0.5, 0.99):
        home.build(kind="ivf", min_recall=min_recall)
        efforts.append(home.sidecar["search_effort"]["nprobe"])
    assert efforts[0] < efforts[1]


def test_so_many_queries_are_sampled(home):
    home.write(clustered(300))
    home.build(sample_queries=30)
    assert home.sidecar["recall"]["n_queries"] == 15
    home.build(sample_queries=1000)
    assert home.sidecar["recall"]["n_queries"] == 150


def test_shapes_that_disagree_are_refused_in_words():
    index = FaissIndex.make(IndexSpec(Kind.FLAT, 1, 4, 0))
    with pytest.raises(ValueError, match=r"vectors \(1, 3\) for an index of dim 4"):
        index.add(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="k is 0"):
        index.search(np.ones((1, 4), np.float32), 0)
    assert index_recall.CUT == 10
