"""A query that stands in the corpus under its own id is ranked against the others, by every way of ranking alike."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ebr.config import EvaluationConfig, FinetuneConfig
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.retrieval.evaluation.evidence import measure_encoder, report_on
from ebr.retrieval.measures.compression import compress_table
from ebr.retrieval.measures.measurement import compare, evaluate_encoder, evaluate_ranking
from ebr.retrieval.report.page import report_html
from ebr.retrieval.report.write import Report, report_json
from ebr.training.plan import plan_finetune
from tests.trec import read_run

# Eight documents d0 … d7, the even ones also the queries under the same ids, each judged with its neighbour.
WORDS = ["red", "blue", "green", "lamp"]
DOCUMENTS = [f"{word} {word}{ending}" for word in WORDS for ending in ("one", "two")]
DATASET = EvaluationSet(
    name="twins",
    query_ids=["d0", "d2", "d4", "d6"],
    queries=DOCUMENTS[::2],
    doc_ids=[f"d{row}" for row in range(8)],
    documents=DOCUMENTS,
    qrels={f"d{row}": {f"d{row + 1}": 1} for row in (0, 2, 4, 6)},
    n_unjudged_queries=0,
    n_unknown_queries=0,
    n_missing_documents=0,
)
PERFECT = {"ndcg@10": 1, "mrr@10": 1, "recall@1": 1}


class Twins:
    """Each pair of documents leans the same way, and away from all others."""

    def encode_queries(self, texts):
        return self.encode_documents(texts)

    def encode_documents(self, texts):
        rows = np.full((len(texts), 5), -0.1)
        for row, text in enumerate(texts):
            rows[row, WORDS.index(text.split()[0])] = 1
            rows[row, 4] = 0.2 if text.endswith("two") else 0
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def report_of(dataset, k=100):
    measured = measure_encoder("twins", Twins(), dataset, k=k, seed=0, facts={})
    return report_on(dataset, [measured], k=k, seed=0, baselines=True, facts={})


@pytest.mark.parametrize("k", [10, 100])
def test_the_query_is_no_candidate_of_its_own_ranking(k):
    report = report_of(DATASET, k)
    assert set(report.rankings) == {"twins", "BM25", "BM25 + twins"}
    for name, ranking in report.rankings.items():
        means = ranking.means()
        assert {metric: means[metric] for metric in PERFECT} == PERFECT, name
        assert all(own not in rows for own, rows in zip((0, 2, 4, 6), ranking.rows.tolist(), strict=True)), name
        assert (ranking.rows.shape, ranking.similarities.shape) == ((4, 8), (4, 8)), name
    # Of the seven others one is judged.
    assert report.measured[0].evaluation.mean("unjudged@10") == pytest.approx(6 / 7)
    assert report.facts["n_own_documents"] == 4


def test_what_is_left_out_makes_room_for_the_next_best():
    evaluation = evaluate_encoder(Twins(), DATASET, k=1)
    assert evaluation.rows.tolist() == [[1], [3], [5], [7]]


def test_smaller_vectors_are_ranked_by_the_same_rule():
    encoder = Twins()
    table = compress_table(encoder.encode_queries(DATASET.queries), encoder.encode_documents(DOCUMENTS), DATASET, k=10)
    assert table[0].ndcg == evaluate_encoder(encoder, DATASET, k=10).mean("ndcg@10") == 1


@pytest.mark.parametrize(("grade", "ndcg"), [(0, 1 / np.log2(3)), (2, 1)])
def test_a_query_that_is_judged_for_itself_stays_a_document_like_any_other(grade, ndcg):
    judged = replace(DATASET, qrels=DATASET.qrels | {"d0": {"d0": grade, "d1": 1}})
    evaluation = evaluate_encoder(Twins(), judged)
    assert evaluation.scores["ndcg@10"].tolist() == pytest.approx([ndcg, 1, 1, 1])
    assert judged.own_rows().tolist() == [-1, 2, 4, 6]
    assert judged.n_own_documents == 3


def test_a_set_whose_ids_differ_is_ranked_whole():
    others = replace(DATASET, query_ids=["q0", "q1", "q2", "q3"], qrels={f"q{row}": {f"d{2 * row + 1}": 1} for row in range(4)})
    evaluation = evaluate_encoder(Twins(), others)
    assert evaluation.rows[:, 0].tolist() == [0, 2, 4, 6]
    assert (others.n_own_documents, others.notes()) == (0, [])


def test_a_ranking_that_came_from_elsewhere_follows_the_rule_too():
    rows = np.array([[0, 1], [2, -1], [4, 5], [7, 6]])
    found = evaluate_ranking(rows, np.array([[3, 2], [3, 0], [3, -2], [-1, -2]], np.float32), DATASET, k=10)
    assert found.rows.tolist() == [[1, -1], [-1, -1], [5, -1], [7, -1]]
    assert found.similarities.tolist() == [[2, 0], [0, 0], [-2, 0], [-1, 0]]
    assert found.scores["recall@1"].tolist() == [1, 0, 1, 1]


def test_what_is_not_found_stands_behind_documents_of_negative_similarity_in_a_merger():
    # d1 leans away from d0, yet words and model find it; an empty place must not count as a rank before it.
    rankings = report_of(DATASET).rankings
    assert (rankings["twins"].similarities[:, 1:7] < 0).all()
    # First by words and by the model; the others by the model alone, at its ranks 2 … 7.
    assert rankings["BM25 + twins"].similarities[0].tolist() == pytest.approx(
        [2 / 61, *(1 / (60 + rank) for rank in range(2, 8)), 0]
    )


def test_a_comparison_is_of_rankings_by_one_rule():
    before, after = evaluate_encoder(Twins(), DATASET), evaluate_encoder(Twins(), DATASET)
    assert compare(before, after, seed=0).change("ndcg@10").base == 1
    judged = replace(DATASET, qrels=DATASET.qrels | {"d0": {"d0": 1, "d1": 1}})
    with pytest.raises(ValueError, match="judgements"):
        compare(before, evaluate_encoder(Twins(), judged), seed=0)


@pytest.mark.parametrize(
    ("language", "said"), [("en", "Left out of the ranking of 4 queries: "), ("zh", "在4 条查询的排序中略去")]
)
def test_the_report_says_for_how_many_queries(language, said):
    report = Report(report_of(DATASET), report_of(DATASET), None, "", {})
    assert report_html(report, language).count(said) == 2  # of the set, and of the set of forgetting
    assert report_json(report)["dataset"]["n_own_documents"] == 4
    (note,) = DATASET.notes()
    assert "own id is left out of the ranking of 4 queries" in note


@pytest.fixture
def folder(tmp_path):
    """The set on disk."""
    corpus = zip(DATASET.doc_ids, DOCUMENTS, strict=True)
    queries = zip(DATASET.query_ids, DATASET.queries, strict=True)
    for name, records in {"corpus": corpus, "queries": queries}.items():
        lines = [json.dumps({"_id": record_id, "text": text}) + "\n" for record_id, text in records]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "qrels.tsv").write_text("".join(f"{one}\t{two}\t1\n" for one, of in DATASET.qrels.items() for two in of))
    return tmp_path


def test_run_files_and_the_lines_of_an_evaluation_follow_the_rule(folder, tiny_model, tmp_path):
    said = []
    config = EvaluationConfig(models=[tiny_model], eval_dataset=folder, output_dir=tmp_path / "out", save_runs=True)
    result = evaluate_retrieval(config, say=said.append)
    note = f"note: {folder.name}: the document under the query's own id is left out of the ranking of 4 queries"
    assert [line for line in said if line.startswith(note)] and note in result.summary()
    assert len(result.runs) == 3
    for path in result.runs:
        assert all(query_id not in ranking for query_id, ranking in read_run(path).items()), path


def test_a_fine_tuning_says_it_before_it_begins(folder, tiny_model, pairs_file, tmp_path):
    config = FinetuneConfig(model_name=tiny_model, data_path=str(pairs_file), output_dir=tmp_path / "out", eval_dataset=folder)
    assert any("left out of the ranking of 4 queries" in line for line in plan_finetune(config).lines())
