"""rank_texts and compare_models: whose prompt goes where, who stands first, and how the table lines up."""

import shutil
import unicodedata

import numpy as np
import pytest

import ebr
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.errors import DataError, ModelError
from ebr.model.compute.local_engine import RetrievalEncoder
from ebr.model.encoder.encoder import load_encoder, save_encoder
from ebr.model.encoder.prompts import set_prompts
from ebr.retrieval.evaluation.command import compare_models
from ebr.retrieval.measures.measurement import evaluate_encoder
from ebr.retrieval.ranking import Ranking, rank_texts

QUERIES = ["buy a red shoe", "一个人"]
DOCUMENTS = ["the green lamp", "the red shoe", "一个人 of the 国", "the blue cup"]


@pytest.fixture(scope="module")
def prompted(tiny_model, tmp_path_factory):
    """The tiny model, saved with one prompt for queries and another for documents."""
    folder = tmp_path_factory.mktemp("prompted") / "prompted"
    model = load_encoder(tiny_model, device="cpu")
    set_prompts(model, prompt=None, query_prompt="query: ", passage_prompt="passage: ")
    save_encoder(model, folder)
    return folder


def ranking_of(queries, documents, scores):
    """A Ranking as rank_texts would make it of these scores, without a model."""
    scores = np.array(scores, np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")
    nothing = np.empty((0, 1), np.float32)
    return Ranking(tuple(queries), tuple(documents), nothing, nothing, scores, order, None)


def columns(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def test_each_role_gets_its_own_prompt(prompted):
    ranking = rank_texts(prompted, QUERIES, DOCUMENTS)
    model = load_encoder(str(prompted), device="cpu")
    queries = model.encode(["query: " + text for text in QUERIES], prompt="")
    documents = model.encode(["passage: " + text for text in DOCUMENTS], prompt="")
    np.testing.assert_allclose(ranking.query_vectors, queries, atol=1e-6)
    np.testing.assert_allclose(ranking.document_vectors, documents, atol=1e-6)
    np.testing.assert_allclose(ranking.scores, queries @ documents.T, atol=1e-6)
    assert np.abs(model.encode(QUERIES, prompt="") - queries).max() > 1e-3, (
        "the prompt must matter for this test to mean anything"
    )


def test_scores_stand_in_the_order_given_and_the_order_is_by_falling_cosine(prompted):
    ranking = rank_texts(prompted, QUERIES, DOCUMENTS)
    assert ranking.scores.shape == (2, 4)
    assert ranking.scores.dtype == np.float32
    assert ranking.order.tolist() == np.argsort(-ranking.scores, axis=1).tolist()
    assert ranking.order.tolist() != [[0, 1, 2, 3]] * 2, "the model must reorder for this test to mean anything"


def test_the_same_document_twice_ties_and_the_first_stands_first(prompted):
    ranking = rank_texts(prompted, ["red"], ["the lamp", "the red shoe", "the lamp"])
    assert ranking.scores[0, 0] == ranking.scores[0, 2]
    order = ranking.order[0].tolist()
    assert order.index(0) < order.index(2)


def test_table_shows_each_query_and_its_best_documents():
    ranking = ranking_of(["red", "blue"], ["a red cup", "a blue cup", "a cup"], [[0.9, -0.25, 0.5], [0.125, 0.75, 0.5]])
    assert ranking.table(k=2).split("\n") == [
        "rank  document     cosine",
        "",
        "red",
        "   1  a red cup    0.9000",
        "   2  a cup        0.5000",
        "",
        "blue",
        "   1  a blue cup   0.7500",
        "   2  a cup        0.5000",
    ]


def test_table_of_more_than_there_is_shows_all():
    rows = ranking_of(["red"], ["a", "b"], [[0.1, 0.2]]).table(k=9).split("\n")[3:]
    assert [row.split()[:2] for row in rows] == [["1", "b"], ["2", "a"]]


@pytest.mark.parametrize("k", [0, -1])
def test_table_of_nothing_is_refused(k):
    with pytest.raises(ValueError, match="at least 1"):
        ranking_of(["red"], ["a"], [[0.1]]).table(k=k)


def test_chinese_and_english_rows_end_in_the_same_column():
    documents = ["merge two tables", "按照共同的列连接两张表", "全角：ＡＢ", "café au lait", "连" * 90, "a" * 90]
    table = ranking_of(["合并"], documents, [np.linspace(0.9, 0.1, 6)]).table(k=6)
    header, _, _, *rows = table.split("\n")
    assert {columns(row) for row in rows} == {columns(header)}
    assert len({len(row) for row in rows}) > 1, "with the same number of characters, any padding would do"


def test_a_combining_mark_takes_no_column():
    decomposed = unicodedata.normalize("NFD", "café")
    rows = ranking_of(["x"], [decomposed, "cafe"], [[0.2, 0.1]]).table().split("\n")[3:]
    assert [len(row) for row in rows] == [len(rows[1]) + 1, len(rows[1])]


def test_a_long_text_is_cut_at_72_columns_and_a_text_of_72_is_not():
    documents = ["a" * 72, "b" * 73, "连" * 36, "接" * 37, "two\nlines\tof text"]
    rows = ranking_of(["q" * 73], documents, [np.linspace(0.9, 0.1, 5)]).table().split("\n")[2:]
    assert rows[0] == "q" * 71 + "…"
    assert [row[6:-9].rstrip() for row in rows[1:]] == [
        "a" * 72,
        "b" * 71 + "…",
        "连" * 36,
        "接" * 35 + "…",
        "two lines of text",
    ]


@pytest.mark.parametrize(
    ("queries", "documents", "message"),
    [
        ([], DOCUMENTS, "queries: is empty"),
        (QUERIES, [], "documents: is empty"),
        ("red shoe", DOCUMENTS, r"queries: is one text; give a list of texts, like \['red shoe'\]"),
        (QUERIES, ["a", None], "documents: number 2 is None, not a text"),
    ],
)
def test_what_cannot_be_ranked_is_refused_before_any_model_is_sought(queries, documents, message):
    with pytest.raises(DataError, match=message):
        rank_texts("./no/such/model", queries, documents)


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(ModelError, match="no/such/model"):
        rank_texts("./no/such/model", QUERIES, DOCUMENTS)


def test_model_folder_is_what_plain_transformers_can_open(prompted, tiny_decoder):
    assert rank_texts(prompted, ["red"], ["shoe"]).model_folder == prompted
    embedded = rank_texts("all-MiniLM-L6-v2", ["red"], ["shoe"]).model_folder
    assert (embedded / "model.safetensors").is_file()
    assert rank_texts(tiny_decoder, ["red"], ["shoe"]).model_folder is None, "no pooling is written there"


def test_model_folder_of_an_adapter_needs_its_base_in_place(tiny_model, tmp_path):
    from peft import LoraConfig, TaskType

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_model, base)
    model = load_encoder(str(base), device="cpu")
    model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, r=2, target_modules=["query"]))
    save_encoder(model, adapter)
    assert rank_texts(adapter, ["red"], ["shoe"]).model_folder == adapter
    (adapter / "ebr_manifest.json").write_text(f'{{"base_model": "{tiny_model}"}}', encoding="utf-8")
    shutil.rmtree(base)
    assert rank_texts(adapter, ["red"], ["shoe"]).model_folder is None


def test_compare_models_gives_the_metrics_of_each(tiny_model, prompted, evaluation_folder):
    said = []
    comparison = compare_models(tiny_model, prompted, evaluation_folder, say=said.append)
    dataset = read_evaluation_set(evaluation_folder)
    for change in comparison.changes:
        for path, found in ((tiny_model, change.base), (str(prompted), change.tuned)):
            encoder = RetrievalEncoder(load_encoder(path), show_progress=False)
            assert found == pytest.approx(evaluate_encoder(encoder, dataset).mean(change.metric))
    ndcg = comparison.changes[0]
    assert ndcg.base != ndcg.tuned, "the two models must differ for this test to mean anything"
    assert said == [
        f"base {tiny_model}: nDCG@10 {ndcg.base:.4f} on evaluation",
        f"tuned {prompted}: nDCG@10 {ndcg.tuned:.4f} on evaluation",
    ]
    assert "(10 queries, 30 documents)" in comparison.table()


def test_compare_models_seeks_both_before_it_evaluates_one(tiny_model, evaluation_folder):
    said = []
    with pytest.raises(ModelError, match="no/such/model"):
        compare_models(tiny_model, "./no/such/model", evaluation_folder, say=said.append)
    assert said == []
    with pytest.raises(DataError, match=r"corpus\.jsonl"):
        compare_models(tiny_model, tiny_model, evaluation_folder / "absent", say=said.append)


def test_they_stand_on_the_face_of_the_package():
    assert (ebr.rank_texts, ebr.compare_models) == (rank_texts, compare_models)
    assert {"rank_texts", "compare_models"} <= set(ebr.__all__)


def test_trust_in_remote_code_reaches_the_loader(monkeypatch, tiny_model, evaluation_folder):
    asked = []

    def remember(name, **options):
        asked.append(options)
        return load_encoder(name, **options)

    monkeypatch.setattr("ebr.model.encoder.encoder.load_encoder", remember)
    rank_texts(tiny_model, ["red"], ["shoe"], trust_remote_code=True)
    compare_models(tiny_model, tiny_model, evaluation_folder, trust_remote_code=True, say=lambda line: None)
    assert [options["trust_remote_code"] for options in asked] == [True, True, True]
