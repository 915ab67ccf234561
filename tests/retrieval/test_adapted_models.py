"""A model whose queries go through a map, in every verb that loads one: right, or refused with a word; never a wrong vector."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ebr import IndexConfig, InferenceConfig, SearchConfig, build_index, open_index, run_batch_inference, search_index
from ebr.cli import main
from ebr.config import EvaluationConfig, ExtendConfig, FinetuneConfig, MergeConfig, MiningConfig
from ebr.data.files.write import read_manifest, write_json
from ebr.data.vectors.embeddings import read_embeddings
from ebr.errors import ConfigError, ModelError
from ebr.model.compute.local_engine import RetrievalEncoder
from ebr.model.compute.packed_weights import packed_forward
from ebr.model.compute.settings import apply_settings, settings_of
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.lengths import kept_length
from ebr.model.vocabulary.command import extend_vocabulary
from ebr.retrieval.evaluation.command import compare_models, evaluate_retrieval
from ebr.retrieval.mining.command import mine_hard_negatives
from ebr.retrieval.ranking import rank_texts
from ebr.training.plan import load_for_training
from ebr.workflow.merging import merge_adapter
from tests.adapted import adapt, write_records
from tests.lora_adapters import save_tuned

DOCUMENTS = ["the red small shoe", "这是一个大国", "a large blue lamp", "the green book", "a small cup"]
QUERIES = ["buy a red shoe", "query the lamp"]


def silent(line):
    """Where lines for people go that nobody looks at."""


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """The folder of an adapted model, with another query prompt than its base has."""
    home = tmp_path_factory.mktemp("adapted")
    return str(adapt(tiny_model, write_records(home / "records.json"), home / "model", query_prompt="query ")[0].model_path)


@pytest.fixture(scope="module")
def indexes(tiny_model, made, tmp_path_factory):
    """By the model that embedded the documents: its vectors, and an index of them."""
    home = tmp_path_factory.mktemp("indexes")
    (home / "tables").mkdir()
    (home / "tables" / "part.csv").write_text(
        "\n".join(["id\x01description", *(f"{row}\x01{text}" for row, text in enumerate(DOCUMENTS))]) + "\n", encoding="utf-8"
    )
    return {name: indexed(home, name, model) for name, model in (("base", tiny_model), ("adapted", made))}


def indexed(home, name, model):
    vectors = home / f"{name}.parquet"
    config = {"input_dir": home / "tables", "output_path": vectors}
    run_batch_inference(InferenceConfig(model_path=model, precision="float32", **config), say=silent)
    build_index(IndexConfig(embeddings_path=vectors, index_path=home / name), say=silent)
    return home / name


def scores(index, query, **options):
    (matches,) = open_index(index, **options).search([query])
    return {int(match.id): match.score for match in matches}


def truth(model, query):
    """Cosines of a query with the documents, by plain sentence-transformers."""
    plain = SentenceTransformer(model, device="cpu")
    return dict(enumerate((plain.encode_document(DOCUMENTS) @ plain.encode_query(query)).tolist()))


def test_vectors_of_documents_and_what_is_recorded_of_them_are_the_base_s(indexes):
    base, adapted = (read_embeddings(path.with_suffix(".parquet")).vectors for path in indexes.values())
    assert np.array_equal(base, adapted)
    ours, theirs = (read_manifest(path) for path in indexes.values())
    for name in ("model_sha256", "architecture", "spelling_sha256", "pooling", "prompt", "max_seq_length"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("of", ["base", "adapted"])
def test_an_index_of_either_is_searched_with_mapped_queries_and_their_own_prompt(indexes, made, tiny_model, of):
    for query in QUERIES:
        found = scores(indexes[of], query, model_path=made)
        assert found == pytest.approx(truth(made, query), abs=1e-5)
        assert found != pytest.approx(truth(tiny_model, query), abs=1e-3)
        # To search with the base undoes the adaptation, its prompt of queries too.
        assert scores(indexes[of], query, model_path=tiny_model) == pytest.approx(truth(tiny_model, query), abs=1e-5)


def test_the_length_that_documents_were_embedded_with_holds_for_queries_of_that_very_model(indexes, made, tiny_model, tmp_path):
    vectors = tmp_path / "v.parquet"
    config = {"input_dir": indexes["base"].parent / "tables", "output_path": vectors, "max_seq_length": 4}
    run_batch_inference(InferenceConfig(model_path=made, precision="float32", **config), say=silent)
    build_index(IndexConfig(embeddings_path=vectors, index_path=tmp_path / "index"), say=silent)
    query = "buy a red shoe and a blue lamp"
    for model, wanted in ((made, 4), (tiny_model, 64)):
        plain = SentenceTransformer(model, device="cpu")
        plain.max_seq_length = wanted
        (found,) = open_index(tmp_path / "index", model_path=model).encode([query])
        np.testing.assert_allclose(found, plain.encode_query(query, normalize_embeddings=True), atol=1e-5)


def test_the_whole_model_is_recorded_only_where_it_differs_from_its_document_side(indexes, made):
    base, adapted = (read_manifest(indexes[name].with_suffix(".parquet")) for name in ("base", "adapted"))
    assert "whole_model_sha256" not in base
    assert adapted["whole_model_sha256"] == read_manifest(Path(made))["model_sha256"] != adapted["model_sha256"]


def test_rows_of_one_are_added_to_an_index_of_the_other(tiny_model, made, tmp_path):
    for name, model in (("first", tiny_model), ("second", made)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.csv").write_text(f"id\x01description\n{name}\x01a red cup\n", encoding="utf-8")
        vectors = tmp_path / f"{name}.parquet"
        config = InferenceConfig(model_path=model, precision="float32", input_dir=tmp_path / name, output_path=vectors)
        run_batch_inference(config, say=silent)
        build_index(IndexConfig(embeddings_path=vectors, index_path=tmp_path / "index", add=name == "second"), say=silent)
    assert len(open_index(tmp_path / "index")) == 2


def test_another_base_is_not_accepted(indexes, made, tmp_path):
    from tests.whole_models import save_encoder_of

    other = save_encoder_of(made, tmp_path / "other", pooling="cls")
    data = write_records(tmp_path / "records.json")
    folder = adapt(other, data, tmp_path / "adapted")[0].model_path
    with pytest.raises((ModelError, ConfigError), match=r"is not the model that made the vectors|pool"):
        open_index(indexes["base"], model_path=str(folder)).search(["a"])
    assert main(["search", "a", f"--index_path={indexes['base']}", f"--model_path={folder}"]) == 2


def test_infer_says_that_it_embeds_documents(indexes, made, tmp_path):
    lines = []
    config = {"input_dir": indexes["base"].parent / "tables", "output_path": tmp_path / "v.parquet"}
    run_batch_inference(InferenceConfig(model_path=made, **config), say=lines.append)
    assert any("all texts are taken for documents" in line for line in lines)


def test_evaluations_rank_by_mapped_queries(made, tiny_model, evaluation_folder, tmp_path):
    config = {
        "models": [tiny_model, made],
        "eval_dataset": evaluation_folder,
        "output_dir": tmp_path / "out",
        "baselines": False,
    }
    result = evaluate_retrieval(EvaluationConfig(**config), say=silent)
    base, adapted = (one.evaluation for one in result.report.main.measured)
    documents = [json.loads(line)["text"] for line in (evaluation_folder / "corpus.jsonl").read_text().splitlines()]
    for one, model in ((base, tiny_model), (adapted, made)):
        plain = SentenceTransformer(model, device="cpu")
        wanted = plain.encode_query(list(one.queries)) @ plain.encode_document(documents).T
        np.testing.assert_allclose(one.similarities, -np.sort(-wanted, axis=1), atol=1e-5)
    compared = compare_models(tiny_model, made, evaluation_folder, say=silent)
    assert {one.metric: one.tuned for one in compared.changes}["ndcg@10"] == pytest.approx(adapted.mean("ndcg@10"))


def test_rankings_and_mining_take_the_route_of_queries(made, pairs_file, tmp_path, monkeypatch):
    ranking = rank_texts(made, QUERIES, DOCUMENTS)
    assert ranking.scores[0].tolist() == pytest.approx(list(truth(made, QUERIES[0]).values()), abs=1e-5)
    assert ranking.model_folder is None, "the transformer alone would not be this model"
    asked = {}
    encode = RetrievalEncoder.encode_queries

    def noting(self, texts):
        asked.update(zip(texts, vectors := encode(self, texts), strict=True))
        return vectors

    monkeypatch.setattr(RetrievalEncoder, "encode_queries", noting)
    mine_hard_negatives(
        MiningConfig(
            model_path=made, data_path=str(pairs_file), output_path=tmp_path / "mined.jsonl", top_k=5, num_negatives=1
        ),
        say=silent,
    )
    plain = SentenceTransformer(made, device="cpu")
    np.testing.assert_allclose(np.stack(list(asked.values())), plain.encode_query(list(asked)), atol=1e-5)


@pytest.mark.parametrize("how", ["packed", "bfloat16"])
def test_other_ways_to_compute_keep_the_map(made, how):
    from dataclasses import replace

    plain, model = SentenceTransformer(made, device="cpu"), load_encoder(made, device="cpu")
    wanted = {"packed_weights": True} if how == "packed" else {"precision": "bfloat16"}
    applied = apply_settings(model, replace(settings_of(model), **wanted))
    assert (packed_forward(model) is not None) == applied.packed_weights
    found = RetrievalEncoder(model, show_progress=False).encode_queries(QUERIES)
    assert (found * plain.encode_query(QUERIES)).sum(1).min() > (0.99999 if how == "packed" else 0.999)
    assert kept_length(model, "query") == kept_length(model, "document") == 64


# ---------------------------------------------------------------- thresholds


@pytest.fixture
def thresholds(made, tiny_model, evaluation_folder, tmp_path):
    """A folder with an evaluation of each, whose threshold of precision 0.5 is 0.2 for the base and 0.3 for the adapted."""
    config = {
        "models": [tiny_model, made],
        "eval_dataset": evaluation_folder,
        "output_dir": tmp_path / "out",
        "baselines": False,
    }
    evaluate_retrieval(EvaluationConfig(**config), say=silent)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for threshold, record in zip((0.2, 0.3), report["thresholds"].values(), strict=True):
        point = next(one for one in record["points"] if one["precision"] == 0.5)
        point |= {"threshold": threshold, "recall": 0.5, "n_hits": 3}
    write_json(tmp_path / "out" / "report.json", report)
    return tmp_path / "out"


@pytest.mark.parametrize("of", ["base", "adapted"])
def test_thresholds_are_those_of_the_model_that_queries_go_through(indexes, made, thresholds, of):
    config = SearchConfig(
        index_path=indexes[of], query="a red shoe", model_path=made, min_precision=0.5, evaluation_path=thresholds
    )
    lines = []
    search_index(config, say=lines.append)
    assert any("from cosine 0.3000 on" in line for line in lines)


@pytest.mark.parametrize("of", ["base", "adapted"])
def test_thresholds_of_the_base_are_those_of_a_search_with_the_base(indexes, tiny_model, thresholds, of):
    config = SearchConfig(
        index_path=indexes[of], query="a red shoe", model_path=tiny_model, min_precision=0.5, evaluation_path=thresholds
    )
    lines = []
    search_index(config, say=lines.append)
    assert any("from cosine 0.2000 on" in line for line in lines)


def bare(made, folder):
    """The model where no manifest says that it has a map."""
    (shutil.copytree(made, folder) / "ebr_manifest.json").unlink()
    return str(folder)


@pytest.mark.parametrize("of", ["base", "adapted"])
def test_thresholds_of_a_model_whose_manifest_is_gone_are_found_by_its_weights(indexes, made, thresholds, of, tmp_path):
    config = SearchConfig(
        index_path=indexes[of],
        query="a red shoe",
        model_path=bare(made, tmp_path / "bare"),
        min_precision=0.5,
        evaluation_path=thresholds,
    )
    lines = []
    search_index(config, say=lines.append)
    assert any("from cosine 0.3000 on" in line for line in lines)


def test_thresholds_of_the_base_are_never_taken_for_mapped_queries(indexes, made, thresholds, tmp_path):
    given = {"index_path": indexes["base"], "query": "a red shoe", "min_precision": 0.5, "evaluation_path": thresholds}
    report = json.loads((thresholds / "report.json").read_text())
    for part in ("thresholds", "model_facts"):
        report[part].pop(made)
    write_json(thresholds / "report.json", report)
    for model in (made, bare(made, tmp_path / "bare")):
        with pytest.raises(ConfigError, match="has no thresholds of the model"):
            search_index(SearchConfig(model_path=model, **given), say=silent)


# ---------------------------------------------------------------- refused


def test_what_would_move_the_base_under_the_map_is_refused(made, tiny_model, pairs_file, tmp_path, capsys):
    told = "modules of its own for queries"
    for kind in ("lora", "full"):
        with pytest.raises(ModelError, match=told):
            load_for_training(
                FinetuneConfig(model_name=made, data_path=str(pairs_file), finetune_type=kind, output_dir=tmp_path)
            )
    with pytest.raises(ModelError, match=told):
        extend_vocabulary(ExtendConfig(model_name=made, data_path=str(pairs_file), output_path=tmp_path / "out"), say=silent)
    save_tuned(tiny_model, tmp_path / "adapter")
    with pytest.raises(ModelError, match=told):
        merge_adapter(
            MergeConfig(base_model_path=made, lora_adapter_path=tmp_path / "adapter", output_path=tmp_path / "out"), say=silent
        )
    with pytest.raises(ModelError, match=told):
        merge_adapter(
            MergeConfig(base_model_path=tiny_model, adapters=[made], weight=0.5, output_path=tmp_path / "out"), say=silent
        )
    for command in (
        ["finetune", f"--model_name={made}", f"--data_path={pairs_file}", f"--output_dir={tmp_path / 'tuned'}"],
        ["check", f"--model_name={made}", f"--data_path={pairs_file}"],
        [
            "merge",
            f"--base_model_path={made}",
            f"--lora_adapter_path={tmp_path / 'adapter'}",
            f"--output_path={tmp_path / 'out'}",
        ],
        ["extend", f"--model_name={made}", f"--data_path={pairs_file}", f"--output_path={tmp_path / 'out'}"],
    ):
        assert main(command) == 2, command
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
