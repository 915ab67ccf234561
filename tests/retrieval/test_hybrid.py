"""Words and vectors together: an index that knows words finds by them what the report's BM25 finds, and fuses as it does."""

import json

import numpy as np
import pytest

from ebr import IndexConfig, SearchConfig, build_index, open_index, search_index
from ebr.data.files.write import hash_file, read_manifest, write_json
from ebr.data.vectors.embeddings import write_embeddings
from ebr.data.vectors.exact_search import exact_search, unit_rows
from ebr.errors import ConfigError, DataError
from ebr.retrieval.index.matches import Mode
from ebr.retrieval.index.search import plan_search
from ebr.retrieval.index.store import LEXICAL_FILES
from ebr.retrieval.index.text_index import TextIndex
from ebr.retrieval.measures import lexical
from ebr.retrieval.measures.lexical import LexicalIndex, reciprocal_rank_fusion

DIM = 8
WORDS = "red blue green shoe lamp book cup small large old".split()


def silent(line):
    """Where lines for people go that nobody looks at."""


def texts_of(n_rows, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(n_rows)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with build(texts, …), whose index takes the vector of a query from `queries` instead of from a model."""

    class Home:
        path, index = tmp_path, tmp_path / "index"

        def __init__(self):
            self.queries = {}

        def write(self, texts, vectors=None, *, first=0, name="v.npy"):
            if vectors is None:
                vectors = np.random.default_rng(7 + first).standard_normal((len(texts), DIM)).astype(np.float32)
            ids = [f"r{row}" for row in range(first, first + len(texts))]
            write_embeddings(tmp_path / name, {"id": ids, "text": texts}, vectors, facts={"model": "m"})
            return vectors

        def build(self, texts, vectors=None, **options):
            vectors = self.write(texts, vectors)
            self.result = build_index(self.config(**{"lexical_column": "text", **options}), say=silent)
            return vectors

        def config(self, name="v.npy", **options):
            return IndexConfig(embeddings_path=tmp_path / name, index_path=self.index, **options)

        def search(self, text, k=10, mode="hybrid"):
            (found,) = open_index(self.index).search([text], k, mode=mode)
            return [(match.id, match.score) for match in found]

        def spoil_sidecar(self, **changes):
            write_json(self.index / "ebr_manifest.json", {**read_manifest(self.index), **changes})

    home = Home()
    monkeypatch.setattr(TextIndex, "encode", lambda self, texts: np.stack([home.queries[text] for text in texts]))
    return home


def ranked(scores, rows):
    return [(f"r{row}", pytest.approx(score)) for score, row in zip(scores.tolist(), rows.tolist(), strict=True) if row >= 0]


# ---------------------------------------------------------------- what is found


def test_hybrid_is_rank_fusion_by_hand(home):
    # By vectors r0, r1, r2; by words r2, which is shorter, before r1; r0 shares no word.
    home.build(["old lamp", "red shoe and book", "red shoe"], np.array([[3, 0], [2, 1], [1, 2]], np.float32))
    home.queries["red shoe"] = np.array([1, 0], np.float32)
    assert [name for name, _ in home.search("red shoe", mode="dense")] == ["r0", "r1", "r2"]
    assert [name for name, _ in home.search("red shoe", mode="lexical")] == ["r2", "r1"]
    assert home.search("red shoe") == [
        ("r2", pytest.approx(1 / 63 + 1 / 61)),
        ("r1", pytest.approx(1 / 62 + 1 / 62)),
        ("r0", pytest.approx(1 / 61)),
    ]


def test_by_words_is_the_reports_bm25_and_no_model_is_loaded(home):
    texts = texts_of(300)
    home.build(texts)
    for query in ("red shoe", "large old book cup", "Shoes, LAMPS"):
        scores, rows = LexicalIndex(texts).search([query], 20)
        # The model 'm' is nowhere, and home.queries has no vector of the query.
        assert home.search(query, 20, mode="lexical") == ranked(scores[0], rows[0])


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_hybrid_fuses_as_deep_as_the_report_whatever_k_is(home, kind):
    texts = texts_of(400)
    vectors = home.build(texts, kind=kind, min_recall=1)
    home.queries["red shoe"] = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
    _, by_words = LexicalIndex(texts).search(["red shoe"], 100)
    _, dense = exact_search(unit_rows(home.queries["red shoe"][None]), unit_rows(vectors), 100)
    scores, rows = reciprocal_rank_fusion([by_words, dense], 30)
    # A graph may miss a row far down, and move those behind it by a rank.
    same = ranked(scores[0], rows[0]) if kind == "flat" else home.search("red shoe", 30)
    for k in (1, 5, 30):
        assert home.search("red shoe", k) == same[:k]
    assert len(home.search("red shoe", 150)) == 150


def test_deeper_than_a_hundred_is_as_deep_as_k(home):
    texts = texts_of(400)
    vectors = home.build(texts)
    home.queries["red"] = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
    _, by_words = LexicalIndex(texts).search(["red"], 250)
    _, dense = exact_search(unit_rows(home.queries["red"][None]), unit_rows(vectors), 250)
    scores, rows = reciprocal_rank_fusion([by_words, dense], 250)
    assert home.search("red", 250) == ranked(scores[0], rows[0])


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_equal_vectors_stand_in_the_order_of_the_rows(home, kind):
    home.build(["old lamp"] * 120, np.tile(np.arange(1, DIM + 1, dtype=np.float32), (120, 1)), kind=kind)
    home.queries["unknown"] = np.ones(DIM, np.float32)
    names = [name for name, _ in home.search("unknown", 120)]
    assert names == [f"r{row}" for row in range(120)]


def test_chinese_is_found_by_its_words_and_by_a_part_of_a_name(home):
    home.build(["他在北京大学工作", "欧几里得撰写了几何原本", "蓝色的台灯", "a red lamp"])
    home.queries["欧几里得是谁"] = np.ones(DIM, np.float32)
    assert home.search("欧几里得是谁", mode="lexical")[0][0] == "r1"
    assert home.search("台灯", mode="lexical") == [("r2", pytest.approx(home.search("台灯", mode="lexical")[0][1]))]
    assert len(home.search("欧几里得是谁")) == 4


def test_a_query_without_a_known_word_finds_by_its_vector_alone(home):
    home.build(texts_of(50))
    home.queries["?"] = home.queries["zebra"] = np.ones(DIM, np.float32)
    dense = [name for name, _ in home.search("zebra", mode="dense")]
    assert home.search("zebra") == [(name, pytest.approx(1 / (60 + rank))) for rank, name in enumerate(dense, start=1)]
    assert home.search("zebra", mode="lexical") == home.search("?", mode="lexical") == []


def test_more_hits_than_rows_are_all_rows_or_all_that_share_a_word(home):
    home.build(["red", "blue", "red cup"])
    home.queries["red"] = np.ones(DIM, np.float32)
    assert {name for name, _ in home.search("red", 1000)} == {"r0", "r1", "r2"}
    assert [name for name, _ in home.search("red", 1000, mode="lexical")] == ["r0", "r2"]


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_a_hit_says_what_its_score_is(home, metric):
    home.build(["red", "blue"], metric=metric)
    home.queries["red"] = np.ones(DIM, np.float32)
    opened = open_index(home.index)
    said = {mode: opened.search(["red"], mode=mode) for mode in Mode}
    assert [said[mode][0][0].scored_by for mode in Mode] == [metric, "BM25", "RRF"]
    assert [said[mode].summary().split("\n")[1].split()[1] for mode in Mode] == [metric, "BM25", "RRF"]
    assert said[Mode.HYBRID][0][0].to_json()["scored_by"] == "RRF"
    assert opened.search_vectors(np.ones((1, DIM), np.float32))[0][0].scored_by == metric


def test_where_nothing_is_found_that_is_said(home):
    home.build(["red", "blue"])
    assert open_index(home.index).search(["zebra"], mode="lexical").summary() == "zebra\nno hits"
    result = search_index(SearchConfig(query="zebra", index_path=home.index, mode="lexical"), say=silent)
    assert result.matches == ((),) and result.cut.n_texts == 0


# ---------------------------------------------------------------- on disk


def test_an_index_opened_again_finds_the_same_and_keeps_what_is_opened(home):
    home.build(texts_of(80))
    home.queries["red shoe"] = np.ones(DIM, np.float32)
    opened = open_index(home.index)
    before = [opened.search(["red shoe"], mode=mode) for mode in Mode]
    home.build(["other"] * 3)
    # Its files were replaced, and are mapped: what was opened still searches what it had.
    assert [opened.search(["red shoe"], mode=mode) for mode in Mode] == before
    home.build(texts_of(80))
    assert [open_index(home.index).search(["red shoe"], mode=mode) for mode in Mode] == before


def test_the_sidecar_has_the_hash_of_every_file_and_says_what_bm25_is_of(home):
    home.build(["red cup", "blue cup"])
    sidecar = read_manifest(home.index)
    files = {path.relative_to(home.index).as_posix(): path for path in home.index.rglob("*") if path.is_file()}
    assert sidecar["files"] == {name: hash_file(path) for name, path in files.items() if name != "ebr_manifest.json"}
    assert set(LEXICAL_FILES) < set(files)
    words = sidecar["lexical"]
    assert (words["column"], words["n_words"], set(words["versions"])) == ("text", 3, {"bm25s", "rjieba"})
    assert words["file_bytes"] == sum(files[name].stat().st_size for name in LEXICAL_FILES)
    assert "words    BM25 of text: 3 different ones" in home.result.summary()


@pytest.mark.parametrize("name", LEXICAL_FILES)
def test_a_changed_file_is_refused_and_so_is_a_missing_one(home, name):
    home.build(["red cup", "blue cup"])
    content = bytearray((home.index / name).read_bytes())
    content[-1] ^= 1
    (home.index / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: differs from what ebr_manifest.json recorded"):
        open_index(home.index)
    (home.index / name).unlink()
    with pytest.raises(DataError, match=f"{name}: is missing; put it back, or build the index anew"):
        open_index(home.index)


def test_bm25_of_other_rows_is_refused(home):
    home.build(["red cup"] * 3)
    words = {name: (home.index / name).read_bytes() for name in LEXICAL_FILES}
    home.build(["red cup"] * 4)
    for name, content in words.items():
        (home.index / name).write_bytes(content)
    hashes = {name: hash_file(home.index / name) for name in LEXICAL_FILES}
    home.spoil_sidecar(files={**read_manifest(home.index)["files"], **hashes})
    with pytest.raises(DataError, match="bm25: has 3 rows, where n_rows is 4"):
        home.search("red", mode="lexical")


def test_words_that_are_cut_differently_now_are_refused(home, monkeypatch):
    home.build(["", "红色的台灯", "red cups"])
    assert home.search("台灯", mode="lexical")
    monkeypatch.setattr(lexical, "_singular", lambda word: word)
    with pytest.raises(DataError, match=r"bm25: lacks 'cups', a word of its own rows .*rjieba.*build the index anew"):
        home.search("台灯", mode="hybrid")


def test_a_sidecar_without_the_hashes_of_bm25_cannot_be_used(home):
    home.build(["red cup"])
    files = read_manifest(home.index)["files"]
    home.spoil_sidecar(files={name: files[name] for name in ("index.faiss", "rows.parquet")})
    with pytest.raises(DataError, match=r"cannot be used \(KeyError: .*build the index anew"):
        open_index(home.index)


def test_built_anew_without_the_option_an_index_knows_no_words(home):
    home.build(["red cup"])
    home.build(["red cup"], lexical_column=None)
    assert sorted(path.name for path in home.index.iterdir()) == ["ebr_manifest.json", "index.faiss", "rows.parquet"]
    assert home.result.lexical is None and "words" not in home.result.summary()


def test_a_strange_file_beside_the_words_is_not_swept_away(home):
    home.build(["red cup"])
    (home.index / "bm25" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds bm25/notes\.txt beside the index"):
        home.build(["red cup"])
    assert (home.index / "bm25" / "notes.txt").read_text() == "mine"


# ---------------------------------------------------------------- adding


def test_rows_added_are_found_like_those_built_at_once(home):
    texts = texts_of(60)
    home.build(texts[:40])
    home.write(texts[40:], first=40, name="more.npy")
    build_index(home.config("more.npy", add=True), say=silent)
    scores, rows = LexicalIndex(texts).search(["red shoe"], 60)
    assert home.search("red shoe", 60, mode="lexical") == ranked(scores[0], rows[0])
    opened = open_index(home.index)
    home.write(["zebra"], first=60, name="more.npy")
    assert opened.add(home.path / "more.npy", say=silent).search(["zebras"], mode="lexical")[0][0].id == "r60"


def test_an_index_of_vectors_learns_the_words_of_all_rows_when_some_are_added(home):
    home.build(["red", "blue"], lexical_column=None)
    home.write(["green"], first=2, name="more.npy")
    build_index(home.config("more.npy", add=True, lexical_column="text"), say=silent)
    assert [home.search(word, mode="lexical")[0][0] for word in ("red", "green")] == ["r0", "r2"]


def test_rows_are_not_added_under_the_words_of_another_column(home):
    for name, ids in (("v.npy", ["a", "b"]), ("more.npy", ["c", "d"])):
        cells = {"id": ids, "text": ["red", "blue"], "title": ["cup", "shoe"]}
        write_embeddings(home.path / name, cells, np.eye(2, DIM, dtype=np.float32), facts={"model": "m"})
    build_index(home.config(lexical_column="text"), say=silent)
    with pytest.raises(ConfigError, match=r"^lexical_column title: index_path .* has the words of text; give that"):
        build_index(home.config("more.npy", add=True, lexical_column="title"), say=silent)


def test_a_search_by_vectors_opens_no_words(home, monkeypatch):
    home.build(["red", "blue"])
    opened = open_index(home.index)
    monkeypatch.setattr(opened, "_open_lexical", lambda: pytest.fail("BM25 was opened"))
    assert len(opened.search_vectors(np.eye(opened.dim, dtype=np.float32)[:1], 2)[0]) == 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("mode", ["lexical", "hybrid"])
def test_an_index_without_words_says_how_to_get_them(home, mode):
    home.build(["red cup"], lexical_column=None)
    command = rf"ebr index --embeddings_path {home.path / 'v.npy'} --index_path {home.index} --lexical_column COLUMN"
    config = SearchConfig(query="red", index_path=home.index, mode=mode)
    said = []
    for search in (
        lambda: open_index(home.index).search(["red"], mode=mode),
        lambda: search_index(config, say=said.append),
        lambda: plan_search(config).lines(),
    ):
        with pytest.raises(ConfigError, match=f"holds vectors only; build it anew .*: {command}$"):
            search()
    assert said == []


def test_an_index_of_before_is_one_of_vectors(home):
    home.build(["red cup"], lexical_column=None)
    old = read_manifest(home.index)
    del old["lexical"]
    write_json(home.index / "ebr_manifest.json", old)
    home.queries["red"] = np.ones(DIM, np.float32)
    assert home.search("red", mode="dense")
    with pytest.raises(ConfigError, match="holds vectors only"):
        home.search("red")


def test_a_bare_file_knows_no_words(home):
    home.build(["red cup"])
    (home.index / "ebr_manifest.json").unlink()
    with pytest.raises(ConfigError, match="holds vectors only"):
        open_index(home.index, trust_index=True).search(["red"], mode="hybrid")
    config = SearchConfig(query="red", index_path=home.index, mode="lexical", trust_index=True)
    with pytest.raises(ConfigError, match="holds vectors only"):
        plan_search(config).lines()


def test_a_column_whose_texts_are_not_kept_is_refused(home):
    home.write(["red cup"])
    for options in (
        {"lexical_column": "title"},
        {"lexical_column": "id"},
        {"lexical_column": "text", "output_columns": ["id"]},
    ):
        with pytest.raises(ConfigError, match=r"lexical_column \w+: is not among the columns that are kept"):
            build_index(home.config(**options), say=silent)
    assert not home.index.exists()


def test_a_column_without_a_word_is_refused_and_what_was_there_stays(home):
    home.build(["red cup"])
    with pytest.raises(DataError, match="no text of 'text' has a word"):
        home.build(["", "?!"])
    assert home.search("red", mode="lexical")[0][0] == "r0"


@pytest.mark.parametrize(
    "options",
    [{"search_effort": 3}, {"model_path": "m"}, {"pooling": "mean"}, {"base_model_path": "b"}, {"trust_remote_code": True}],
)
def test_what_a_search_by_words_would_not_read_is_refused(home, options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: mode lexical reads no vectors"):
        plan_search(SearchConfig(query="red", index_path=home.index, mode="lexical", **options))


def test_efforts_modes_and_numbers_that_make_no_sense_are_refused(home):
    home.build(["red cup"])
    opened = open_index(home.index)
    with pytest.raises(ConfigError, match="search_effort: mode lexical reads no vectors"):
        opened.search(["red"], effort=3, mode="lexical")
    with pytest.raises(ConfigError, match="mode 'both': is none of dense, lexical, hybrid"):
        opened.search(["red"], mode="both")
    with pytest.raises(DataError, match="k is 0"):
        opened.search(["red"], 0, mode="lexical")


def test_a_plan_says_what_a_search_goes_by(home):
    home.build(["red cup"])
    lines = {
        mode: plan_search(SearchConfig(query="red", index_path=home.index, mode=mode)).lines()
        for mode in ("dense", "lexical", "hybrid")
    }
    # The model is named by where it was when the index was built.
    model = read_manifest(home.index)["model"]
    assert [line[1].split("; ")[1] for line in lines.values()] == [
        f"model {model}",
        "BM25 of text",
        f"model {model} and BM25 of text",
    ]
    said = []
    search_index(SearchConfig(query="red", index_path=home.index, mode="lexical"), say=said.append)
    assert said[0] == f"{home.index}: 1 row of {DIM}; BM25 of text"


def test_hits_of_several_queries_come_as_they_are_asked(home):
    home.build(["red", "blue", "green"])
    (home.path / "q.tsv").write_text("a\tblue\nb\tzebra\nc\tred\n")
    config = SearchConfig(
        queries_path=home.path / "q.tsv", index_path=home.index, mode="lexical", output_path=home.path / "hits.jsonl"
    )
    search_index(config, say=silent)
    hits = [json.loads(line) for line in (home.path / "hits.jsonl").read_text().splitlines()]
    assert [(hit["query_id"], hit["id"], hit["rank"], hit["scored_by"]) for hit in hits] == [
        ("a", "r1", 1, "BM25"),
        ("c", "r0", 1, "BM25"),
    ]
