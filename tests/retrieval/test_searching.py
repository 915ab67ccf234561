"""Searching with texts: the model and the prompt that the index names, the user's own ids, a table or JSON lines."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import faiss
from ebr import IndexConfig, InferenceConfig, SearchConfig, build_index, open_index, run_batch_inference, search_index
from ebr.cli import main
from ebr.data.evaluation.queries import Query
from ebr.data.files.write import read_manifest, write_json
from ebr.errors import ConfigError, DataError, ModelError, ReaderGone
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role
from ebr.retrieval.index.search import Match, SearchResult, plan_search

TEXTS = {"007": "the red small shoe", "苹果": "这是一个大国", "7": "a large blue lamp", "b 2": "the green book"}


def silent(line):
    """Where lines for people go that nobody looks at."""


@pytest.fixture
def shop(tiny_model, tmp_path):
    """A folder with tables/, vectors.parquet and index/, made by infer and index."""
    (tmp_path / "tables").mkdir()
    rows = [f"{name}\x01{text}\x01{'甲乙'[row % 2]}" for row, (name, text) in enumerate(TEXTS.items())]
    table = "\n".join(["id\x01description\x01label", *rows]) + "\n"
    (tmp_path / "tables" / "part.csv").write_text(table, encoding="utf-8")
    embed(tiny_model, tmp_path)
    build_index(index_config(tmp_path), say=silent)
    return tmp_path


def embed(model, home, **options):
    files = {"input_dir": home / "tables", "output_path": home / "vectors.parquet"}
    config = InferenceConfig(model_path=model, precision="float32", **files, **options)
    run_batch_inference(config, say=silent)


def index_config(home, **options):
    files = {"embeddings_path": home / "vectors.parquet", "index_path": home / "index"}
    return IndexConfig(**files, output_columns=["label"], **options)


def cosines(model, query, prompt=""):
    engine = LocalEngine(load_encoder(model), Role.QUERY, prompt=prompt)
    documents = LocalEngine(load_encoder(model), Role.DOCUMENT).encode(list(TEXTS.values()))
    return dict(zip(TEXTS, (documents @ engine.encode([query])[0]).tolist(), strict=True))


def changed_sidecar(home, **changes):
    write_json(home / "index" / "ebr_manifest.json", {**read_manifest(home / "index"), **changes})


def test_a_text_finds_the_rows_that_the_model_finds(tiny_model, shop):
    (matches,) = open_index(shop / "index").search(["buy a red shoe"])
    truth = cosines(tiny_model, "buy a red shoe")
    assert [match.id for match in matches] == sorted(truth, key=truth.get, reverse=True)
    assert [match.score for match in matches] == pytest.approx(sorted(truth.values(), reverse=True), abs=1e-6)
    assert {match.id: match.columns["label"] for match in matches} == {"007": "甲", "苹果": "乙", "7": "甲", "b 2": "乙"}
    assert [match.id for match in open_index(shop / "index").search(["这是一个大国"], k=1)[0]] == ["苹果"]


def test_the_prompt_of_the_sidecar_stands_before_a_query(tiny_model, shop):
    changed_sidecar(shop, query_prompt="query: ")
    (matches,) = open_index(shop / "index").search(["a cup"])
    assert {match.id: match.score for match in matches} == pytest.approx(cosines(tiny_model, "a cup", "query: "), abs=1e-6)
    assert {match.id: match.score for match in matches} != pytest.approx(cosines(tiny_model, "a cup"), abs=1e-4)


def test_a_query_is_cut_where_the_sidecar_says(tiny_model, shop):
    long = "a cup " * 20
    changed_sidecar(shop, query_max_len=4)
    assert np.array_equal(open_index(shop / "index").encode([long]), open_index(shop / "index").encode(["a cup a"]))
    changed_sidecar(shop, query_max_len=None, max_seq_length=64)
    assert not np.array_equal(open_index(shop / "index").encode([long]), open_index(shop / "index").encode(["a cup a"]))


def test_truncated_vectors_are_searched_with_truncated_queries(tiny_model, shop):
    embed(tiny_model, shop, truncate_dim=8)
    build_index(index_config(shop), say=silent)
    opened = open_index(shop / "index")
    assert opened.dim == 8 and opened.encode(["a cup"]).shape == (1, 8)
    assert len(opened.search(["a cup"])[0]) == 4


def test_raw_inner_products_are_searched_with_raw_queries(tiny_model, shop):
    embed(tiny_model, shop, normalize_embeddings=False)
    build_index(index_config(shop, metric="inner_product"), say=silent)
    opened = open_index(shop / "index")
    assert opened.search(["a cup"]) and opened._engine.normalize_embeddings is False
    changed_sidecar(shop, normalized=True)
    assert open_index(shop / "index")._engine.normalize_embeddings is True


def test_another_model_is_refused(tiny_model, shop, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(tiny_model, device="cpu")
    next(model.parameters()).data.add_(0.01)
    model.save_pretrained(str(tmp_path / "other"))
    with pytest.raises(ModelError, match=r"is not the model that made the vectors of .*index \(its weights differ\)"):
        open_index(shop / "index", model_path=str(tmp_path / "other")).search(["a cup"])
    changed_sidecar(shop, model=None)
    with pytest.raises(ModelError, match="nothing says which model made the vectors"):
        open_index(shop / "index").search(["a cup"])
    assert open_index(shop / "index", model_path=tiny_model).search(["a cup"])


def test_a_model_of_another_dimension_is_refused(tiny_model, shop):
    vectors = np.eye(3, dtype=np.float32)
    from ebr.data.vectors.embeddings import write_embeddings

    write_embeddings(shop / "three.npy", {"id": list("abc")}, vectors)
    build_index(IndexConfig(embeddings_path=shop / "three.npy", index_path=shop / "three"), say=silent)
    with pytest.raises(ModelError, match="its vectors have 32 numbers, the index's 3"):
        open_index(shop / "three", model_path=tiny_model).search(["a cup"])
    with pytest.raises(DataError, match=r"queries of shape \(2, 32\): .* needs \(Q, 3\)"):
        open_index(shop / "three").search_vectors(np.ones((2, 32), np.float32))


@pytest.mark.parametrize(
    ("texts", "message"), [("a cup", "is one text"), (["a", " "], "number 2 is ' '"), (["a", None], "number 2 is None")]
)
def test_what_is_no_list_of_texts_is_refused(shop, texts, message):
    with pytest.raises(DataError, match=message):
        open_index(shop / "index").search(texts)


def test_no_texts_have_no_hits_and_k_is_at_least_one(shop):
    assert open_index(shop / "index").search([]) == []
    with pytest.raises(DataError, match="k is 0"):
        open_index(shop / "index").search_vectors(np.ones((1, 32), np.float32), 0)


def test_deleting_is_refused_with_the_reason_and_the_way_out(shop):
    with pytest.raises(DataError, match=r"rows cannot be deleted: .* take them out of the vectors and build the index anew"):
        open_index(shop / "index").delete(["007"])


def test_an_open_index_grows(tiny_model, shop):
    opened = open_index(shop / "index")
    (shop / "tables" / "part.csv").write_text("id\x01description\x01label\nn\x01a cup\x01丙\n", encoding="utf-8")
    embed(tiny_model, shop)
    grown = opened.add(shop / "vectors.parquet", say=silent)
    assert (len(opened), len(grown)) == (4, 5)
    assert grown.search(["a cup"], k=1)[0][0] == Match(1, pytest.approx(1, abs=1e-6), "n", {"label": "丙"})


# ---------------------------------------------------------------- without a sidecar


def write_bare(home, index):
    vectors = LocalEngine(load_encoder(read_manifest(home / "index")["model"]), Role.DOCUMENT).encode(list(TEXTS.values()))
    index.add(vectors)
    faiss.write_index(index, str(home / "bare.faiss"))
    return home / "bare.faiss"


def test_a_bare_file_is_opened_only_on_the_users_word_with_a_line_of_what_is_assumed(tiny_model, shop, caplog):
    path = write_bare(shop, faiss.IndexFlatIP(32))
    with pytest.raises(DataError, match="is a file without a sidecar"):
        open_index(path)
    with caplog.at_level(logging.WARNING):
        opened = open_index(path, model_path=tiny_model, trust_index=True)
    assert "no sidecar: assuming unit vectors (cosine), ids that are row numbers" in caplog.text
    (matches,) = opened.search(["buy a red shoe"])
    truth = cosines(tiny_model, "buy a red shoe")
    assert {list(TEXTS)[int(match.id)]: match.score for match in matches} == pytest.approx(truth, abs=1e-6)
    with pytest.raises(DataError, match="has no sidecar, so nothing says what would fit"):
        opened.add(shop / "vectors.parquet")
    with pytest.raises(ModelError, match="nothing says which model"):
        open_index(path, trust_index=True).search(["a cup"])


def test_a_bare_file_of_distances_or_of_anything_else_is_refused(shop):
    with pytest.raises(DataError, match="its metric is a distance"):
        open_index(write_bare(shop, faiss.IndexFlatL2(32)), trust_index=True)
    (shop / "junk").write_bytes(b"no index at all")
    with pytest.raises(DataError, match="cannot be read as a FAISS index"):
        open_index(shop / "junk", trust_index=True)


def test_trust_does_not_switch_the_checks_of_a_sidecar_off(shop):
    (shop / "index" / "rows.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"rows\.parquet: differs"):
        open_index(shop / "index", trust_index=True)


# ---------------------------------------------------------------- the shell


def test_the_shell_embeds_indexes_and_shows_a_table(tiny_model, shop, capsys):
    options = ["--embeddings_path", f"{shop}/vectors.parquet", "--index_path", f"{shop}/i", "--output_columns", "label"]
    assert main(["index", *options]) == 0
    assert "recall   1.0000 of the ten best" in capsys.readouterr().out
    assert main(["search", "--index_path", f"{shop}/i", "--k", "2", "这是一个大国"]) == 0
    out = capsys.readouterr().out
    header, first, _ = out.strip().split("\n")[-3:]
    assert header.split() == ["rank", "cosine", "id", "label"]
    assert first.split() == ["1", "1.0000", "苹果", "乙"]


def test_json_lines_are_all_that_stands_on_the_standard_output(shop, capsys):
    (shop / "q.jsonl").write_text('{"_id": "q7", "text": "大国"}\n{"text": "red"}\n', encoding="utf-8")
    options = ["--index_path", f"{shop}/index", "--k", "3", "--output_format", "jsonl", "--queries_path", f"{shop}/q.jsonl"]
    assert main(["search", *options]) == 0
    out = capsys.readouterr().out
    assert "大国" in out and not out.startswith("\n")
    hits = [json.loads(line) for line in out.rstrip("\n").split("\n")]
    assert [(hit["query_id"], hit["rank"]) for hit in hits] == [("q7", 1), ("q7", 2), ("q7", 3), ("2", 1), ("2", 2), ("2", 3)]
    assert set(hits[0]) == {"query_id", "query", "rank", "score", "scored_by", "id", "columns"}


def queries_file(home, n):
    (home / "q.tsv").write_text("".join(f"q{row}\ta red cup {row}\n" for row in range(n)))
    return {"queries_path": home / "q.tsv", "index_path": home / "index", "k": 1}


def test_hits_are_said_as_they_are_found(shop, monkeypatch):
    from ebr.retrieval.index.text_index import TextIndex

    steps, search = [], TextIndex.search
    monkeypatch.setattr(
        TextIndex, "search", lambda self, texts, *a, **o: steps.append(len(texts)) or search(self, texts, *a, **o)
    )
    say = lambda line: steps.append(json.loads(line)["query_id"])  # noqa: E731
    result = search_index(SearchConfig(**queries_file(shop, 50), output_format="jsonl"), say=say)
    names = [f"q{row}" for row in range(50)]
    assert steps == [16, *names[:16], 32, *names[16:48], 2, *names[48:]]
    assert [query.id for query in result.queries] == names and result.summary() == ""


@pytest.mark.parametrize("output_format", ["jsonl", "table"])
def test_a_reader_that_has_enough_ends_the_search_but_a_file_becomes_whole(shop, output_format):
    said = []

    def say(line):
        said.append(line)
        if len(said) == 3:
            raise ReaderGone

    config = SearchConfig(**queries_file(shop, 20), output_format=output_format)
    with pytest.raises(ReaderGone):
        search_index(config, say=say)
    said.clear()
    search_index(config.model_copy(update={"output_path": shop / "hits.jsonl"}), say=say)
    assert len(said) == 3 and len((shop / "hits.jsonl").read_text().splitlines()) == 20


def test_an_index_is_searched_from_another_folder(tiny_model, shop, tmp_path, monkeypatch):
    model = Path(tiny_model)
    monkeypatch.chdir(model.parent)
    (shop / "vectors.parquet").unlink()
    embed(model.name, shop)
    build_index(index_config(shop), say=silent)
    assert read_manifest(shop / "vectors.parquet")["model"] == read_manifest(shop / "index")["model"] == str(model.resolve())
    monkeypatch.chdir(tmp_path)
    assert open_index(shop / "index").search(["a cup"])
    monkeypatch.chdir(model.parent)
    relative = {**read_manifest(shop / "vectors.parquet"), "model": model.name}  # as earlier versions wrote it
    write_json(shop / "vectors.parquet.manifest.json", relative)
    build_index(index_config(shop), say=silent)
    assert read_manifest(shop / "index")["model"] == str(model.resolve())


def test_a_model_that_is_not_where_the_index_says_is_asked_for_by_its_option(shop):
    changed_sidecar(shop, model="gone/model")
    with pytest.raises(ModelError, match=r"model 'gone/model': .*index names it; give where it lies now with --model_path"):
        open_index(shop / "index").search(["a cup"])
    with pytest.raises(ModelError) as error:
        open_index(shop / "index", model_path="other/model").search(["a cup"])
    assert "names it" not in str(error.value)


def test_vectors_made_elsewhere_are_said_to_be_so_once(shop, caplog):
    np.save(shop / "v.npy", np.eye(8, dtype=np.float32))
    build_index(IndexConfig(embeddings_path=shop / "v.npy", index_path=shop / "j", id_column=None), say=silent)
    assert caplog.text.count("no manifest") == 1


def test_a_dry_run_says_what_would_be_searched(shop, capsys):
    assert main(["search", "--index_path", f"{shop}/index", "--dry_run", "a", "cup"]) == 0
    out = capsys.readouterr().out
    assert "queries 1, k 10, dense" in out and "4 rows, flat; model" in out
    assert plan_search(SearchConfig(query="a cup", index_path=shop / "index")).queries == (Query("1", "a cup"),)


def test_chinese_takes_two_columns_of_a_table():
    matches = (Match(1, 0.5, "苹果", {"name": "红\n鞋", "no": None}), Match(2, 0.25, "b", {"name": "x" * 99, "no": "7"}))
    table = SearchResult((Query("1", "鞋"),), (matches,)).table().split("\n")
    assert table[0] == "鞋"
    assert table[1] == "rank  cosine  id    name" + " " * 58 + "no"
    assert table[2] == "1     0.5000  苹果  红 鞋"
    assert table[3] == "2     0.2500  b     " + "x" * 59 + "…  7"


def test_the_shell_searches_by_words_and_by_both(shop, capsys):
    files = ["--embeddings_path", f"{shop}/vectors.parquet", "--index_path", f"{shop}/both"]
    assert main(["index", *files, "--lexical_column", "description"]) == 0
    out = capsys.readouterr().out
    assert "words   BM25 of description" in out and "words    BM25 of description: " in out
    (shop / "q.tsv").write_text("a\t大国\nb\tgreen\n", encoding="utf-8")
    asked = ["--index_path", f"{shop}/both", "--queries_path", f"{shop}/q.tsv", "--output_format", "jsonl"]
    found = {}
    for mode in ("dense", "lexical", "hybrid"):
        assert main(["search", *asked, "--mode", mode]) == 0
        found[mode] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(hit["query_id"], hit["id"], hit["scored_by"]) for hit in found["lexical"]] == [
        ("a", "苹果", "BM25"),
        ("b", "b 2", "BM25"),
    ]
    # Every row is near to some degree: the one that has the word as well stands before those that are as near or nearer by one.
    assert len(found["hybrid"]) == len(found["dense"]) == 8
    assert {hit["scored_by"] for hit in found["hybrid"]} == {"RRF"} and {hit["scored_by"] for hit in found["dense"]} == {
        "cosine"
    }
    for query_id in ("a", "b"):
        ranks = {hit["id"]: hit["rank"] for hit in found["dense"] if hit["query_id"] == query_id}
        (named,) = [hit["id"] for hit in found["lexical"] if hit["query_id"] == query_id]
        by_hand = {name: 1 / (60 + rank) + (1 / 61 if name == named else 0) for name, rank in ranks.items()}
        scores = {hit["id"]: hit["score"] for hit in found["hybrid"] if hit["query_id"] == query_id}
        assert scores == pytest.approx(by_hand)


# ---------------------------------------------------------------- options

REACH = {
    "query": "test_a_dry_run_says_what_would_be_searched",
    "queries_path": "test_json_lines_are_all_that_stands_on_the_standard_output",
    "index_path": "every test here",
    "k": "test_json_lines_are_all_that_stands_on_the_standard_output",
    "mode": "test_the_shell_searches_by_words_and_by_both",
    "model_path": "test_options_of_the_model_reach_the_loader",
    "trust_remote_code": "test_options_of_the_model_reach_the_loader",
    "pooling": "test_options_of_the_model_reach_the_loader",
    "base_model_path": "test_options_of_the_model_reach_the_loader",
    "trust_index": "test_a_bare_file_is_searched_through_the_config",
    "search_effort": "test_search_effort_is_what_the_index_looks_at",
    "output_format": "test_json_lines_are_all_that_stands_on_the_standard_output",
    "output_path": "test_hits_are_written_where_they_are_wanted",
    "min_precision": "test_thresholds.py",
    "evaluation_path": "test_thresholds.py",
}


def test_every_option_is_proved_to_reach_its_consumer():
    assert set(REACH) == set(SearchConfig.model_fields)
    for name in REACH.values():
        assert name == "every test here" or name in globals() or Path(__file__).with_name(name).is_file()


def test_options_of_the_model_reach_the_loader(shop, monkeypatch):
    from ebr.model.encoder import encoder

    seen = {}

    def load(name, **options):
        seen.update(options, name=name)
        raise RuntimeError("seen enough")

    monkeypatch.setattr(encoder, "load_encoder", load)
    with pytest.raises(RuntimeError, match="seen enough"):
        search_index(
            SearchConfig(
                query="a",
                index_path=shop / "index",
                model_path="m",
                trust_remote_code=True,
                pooling="mean",
                base_model_path="b",
            ),
            say=silent,
        )
    assert (seen["name"], seen["trust_remote_code"]) == ("m", True)
    assert (seen["pooling"], seen["base_model_path"]) == ("mean", "b")


def test_a_bare_file_is_searched_through_the_config(tiny_model, shop):
    path = write_bare(shop, faiss.IndexFlatIP(32))
    config = SearchConfig(query="a cup", index_path=path, model_path=tiny_model, trust_index=True, k=2)
    assert "without a sidecar" in "\n".join(plan_search(config).lines())
    assert len(search_index(config, say=silent).matches[0]) == 2
    with pytest.raises(DataError, match="without a sidecar"):
        search_index(SearchConfig(query="a cup", index_path=path, model_path=tiny_model), say=silent)


def test_search_effort_is_what_the_index_looks_at(shop, tmp_path, monkeypatch):
    from ebr.data.vectors.embeddings import write_embeddings
    from ebr.retrieval.index.faiss_index import FaissIndex

    vectors = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    write_embeddings(tmp_path / "v.npy", {"id": [str(row) for row in range(500)]}, vectors)
    build_index(IndexConfig(embeddings_path=tmp_path / "v.npy", index_path=tmp_path / "ivf", kind="ivf_pq_flat"), say=silent)
    efforts = []
    search = FaissIndex.search
    monkeypatch.setattr(FaissIndex, "search", lambda self, q, k, effort: efforts.append(effort) or search(self, q, k, effort))
    opened = open_index(tmp_path / "ivf")
    for effort in (None, 3):
        opened.search_vectors(vectors[:1], effort=effort)
    tuned = read_manifest(tmp_path / "ivf")["search_effort"]
    assert efforts == [tuned, {**tuned, "nprobe": 3}]
    with pytest.raises(ConfigError, match="search_effort: this index looks at every row"):
        search_index(SearchConfig(query="a", index_path=shop / "index", search_effort=3), say=silent)


def test_hits_are_written_where_they_are_wanted(shop):
    result = search_index(
        SearchConfig(query="红鞋", index_path=shop / "index", output_path=shop / "o" / "hits.jsonl"), say=silent
    )
    lines = (shop / "o" / "hits.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert lines == result.json_lines() and len(lines) == 4
    assert result.summary().endswith(f"hits written to {shop / 'o' / 'hits.jsonl'}")


def test_hits_are_never_written_over_the_queries_or_into_the_index(shop):
    (shop / "q.jsonl").write_text('{"text": "红鞋"}\n', encoding="utf-8")
    for output, message in {
        shop / "." / "q.jsonl": "is queries_path",
        shop / "index" / "rows.parquet": "lies in index_path",
        shop: "is a folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            search_index(SearchConfig(queries_path=shop / "q.jsonl", index_path=shop / "index", output_path=output), say=silent)
    assert (shop / "q.jsonl").read_text(encoding="utf-8") == '{"text": "红鞋"}\n'
    assert len(open_index(shop / "index")) == 4


@pytest.mark.parametrize("options", [{}, {"query": "a", "queries_path": "q.txt"}])
def test_nothing_to_search_for_or_two_things_are_refused(options):
    with pytest.raises(ConfigError, match="query, queries_path: give one of the two"):
        search_index(SearchConfig(**options), say=silent)
