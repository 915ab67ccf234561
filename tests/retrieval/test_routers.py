"""Models of other makers whose queries and documents part ways, by route_mappings, in front or behind; or refused."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Router

from ebr import IndexConfig, InferenceConfig, SearchConfig, build_index, open_index, run_batch_inference, search_index
from ebr.config import EvaluationConfig
from ebr.data.files.write import read_json, read_manifest, write_json
from ebr.errors import ModelError
from ebr.inference.workers import computing
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.loaded import LoadedModel
from ebr.model.encoder.routes import document_side
from ebr.model.files.identity import fingerprint
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.retrieval.index.search import plan_search

DOCUMENTS = ["the red small shoe", "这是一个大国", "a large blue lamp", "the green book", "a small cup"]
QUERY = "buy a red shoe please now"
MAPPINGS = {("query", "text"): "query_text", ("document", "text"): "doc_text"}


def silent(line):
    """Where lines for people go that nobody looks at."""


def turned(seed):
    weight = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(seed)))[0]
    return Dense(32, 32, bias=False, activation_function=torch.nn.Identity(), init_weight=weight)


@pytest.fixture(scope="module")
def routers(tiny_model, tmp_path_factory):
    """Folders of models that are routed by mappings, the queries' route first: with towers in front, with maps behind."""
    home = tmp_path_factory.mktemp("routers")
    towers = [SentenceTransformer(tiny_model, device="cpu") for _ in range(2)]
    towers[0].max_seq_length, towers[1].max_seq_length = 4, 30
    front = Router(
        {"query_text": [towers[0][0], towers[0][1], turned(0)], "doc_text": [towers[1][0], towers[1][1], turned(1)]},
        route_mappings=MAPPINGS,
    )
    behind = Router({"query_text": [turned(0)], "doc_text": [turned(1)]}, route_mappings=MAPPINGS)
    plain = SentenceTransformer(tiny_model, device="cpu")
    for name, modules in {"front": [front], "behind": [plain[0], plain[1], behind, Normalize()]}.items():
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(home / name))
    return {name: str(home / name) for name in ("front", "behind")}


def embedded(model, home, documents=DOCUMENTS, **options):
    (home / "tables").mkdir(exist_ok=True)
    rows = ["id\x01description", *(f"{row}\x01{text}" for row, text in enumerate(documents))]
    (home / "tables" / "part.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    files = {"input_dir": home / "tables", "output_path": home / "v.npy"}
    run_batch_inference(InferenceConfig(model_path=model, **files, **{"precision": "float32", **options}), say=silent)
    return np.load(home / "v.npy")


def indexed(model, home, **options):
    embedded(model, home, **options)
    build_index(IndexConfig(embeddings_path=home / "v.npy", index_path=home / "index"), say=silent)
    return home / "index"


@pytest.mark.parametrize("engine", ["local", "processes"])
@pytest.mark.parametrize("kind", ["front", "behind"])
def test_documents_take_the_route_that_the_mappings_say(routers, kind, engine, tmp_path):
    stock = SentenceTransformer(routers[kind], device="cpu")
    workers = {} if engine == "local" else {"num_workers": 1}
    found = embedded(routers[kind], tmp_path, engine=engine, **workers)
    np.testing.assert_allclose(found, stock.encode_document(DOCUMENTS, normalize_embeddings=True), atol=1e-5)
    assert np.abs(found - stock.encode_query(DOCUMENTS, normalize_embeddings=True)).max() > 0.1


@pytest.mark.parametrize("kind", ["front", "behind"])
def test_the_document_side_is_the_encoder_of_the_documents(routers, kind):
    stock = SentenceTransformer(routers[kind], device="cpu")
    side = document_side(load_encoder(routers[kind], device="cpu"))
    np.testing.assert_allclose(side.encode(DOCUMENTS), stock.encode_document(DOCUMENTS), atol=1e-5)


@pytest.mark.parametrize("kind", ["front", "behind"])
def test_an_index_is_searched_by_the_route_prompt_and_length_of_queries(routers, kind, tmp_path):
    stock = SentenceTransformer(routers[kind], device="cpu")
    (found,) = open_index(indexed(routers[kind], tmp_path)).encode([QUERY])
    np.testing.assert_allclose(found, stock.encode_query(QUERY, normalize_embeddings=True), atol=1e-5)
    record = read_manifest(tmp_path / "index")
    whole = load_encoder(routers[kind], device="cpu")
    assert (record["model_sha256"], record["whole_model_sha256"]) == (fingerprint(document_side(whole)), fingerprint(whole))


def test_a_router_without_a_route_for_documents_is_refused(tiny_model, tmp_path):
    one = SentenceTransformer(tiny_model, device="cpu")
    routes = Router({"a": [turned(0)], "b": [turned(1)]}, default_route="a")
    SentenceTransformer(modules=[one[0], one[1], routes], device="cpu").save_pretrained(str(tmp_path / "model"))
    with pytest.raises(ModelError, match=r"Router without a route for texts of the task 'document' \(No route found"):
        embedded(str(tmp_path / "model"), tmp_path)
    assert not (tmp_path / "v.npy").exists()


def test_one_of_documents_alone_embeds_them(tiny_model, tmp_path):
    one = SentenceTransformer(tiny_model, device="cpu")
    routes = Router({"document": [one[0], one[1], turned(1)]}, default_route="document")
    SentenceTransformer(modules=[routes], device="cpu").save_pretrained(str(tmp_path / "model"))
    stock = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    found = embedded(str(tmp_path / "model"), tmp_path)
    np.testing.assert_allclose(found, stock.encode_document(DOCUMENTS, normalize_embeddings=True), atol=1e-5)


def test_settings_are_chosen_on_the_model_that_workers_load(routers, tmp_path, monkeypatch):
    tried, choose = [], computing.choose_settings

    def noting(model, *args, **options):
        tried.append((fingerprint(model), options["model_sha256"]))
        return choose(model, *args, **options)

    monkeypatch.setattr(computing, "choose_settings", noting)
    embedded(routers["behind"], tmp_path, precision="auto", engine="processes", num_workers=1)
    assert tried == [(fingerprint(load_encoder(routers["behind"], device="cpu")),) * 2]


def test_lengths_of_routes_are_told_as_they_are_kept(routers):
    found = LoadedModel.of(load_encoder(routers["front"], device="cpu"))
    assert (found.max_seq_length, found.query_max_len, found.passage_max_len) == (30, 4, None)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", ["front", "behind"])
def test_thresholds_are_found_by_the_whole_model(routers, kind, given, evaluation_folder, tmp_path):
    model = routers[kind]
    config = {"models": [model], "eval_dataset": evaluation_folder, "output_dir": tmp_path / "out", "baselines": False}
    evaluate_retrieval(EvaluationConfig(**config), say=silent)
    report = read_json(tmp_path / "out" / "report.json")
    point = next(one for one in report["thresholds"][model]["points"] if one["precision"] == 0.5)
    point |= {"threshold": 0.3, "recall": 0.5, "n_hits": 3}
    write_json(tmp_path / "out" / "report.json", report)
    options = {"model_path": model} if given else {}
    config = SearchConfig(
        index_path=indexed(model, tmp_path), query=QUERY, min_precision=0.5, evaluation_path=tmp_path / "out", **options
    )
    assert plan_search(config).floor.threshold == 0.3
    lines = []
    search_index(config, say=lines.append)
    assert any("from cosine 0.3000 on" in line for line in lines), json.dumps(lines)
