"""Thresholds: worked out by hand, as scikit-learn has them, stored with the model, and what a search makes of them."""

import json

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from ebr import IndexConfig, InferenceConfig, SearchConfig, build_index, run_batch_inference, search_index
from ebr.cli import main
from ebr.config import EvaluationConfig, FinetuneConfig
from ebr.data.evaluation.calibration import PRECISIONS, Calibration, OperatingPoint
from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.files.write import read_manifest, write_json
from ebr.errors import ConfigError
from ebr.model.card import read_report
from ebr.retrieval.evaluation.command import evaluate_retrieval
from ebr.retrieval.index.search import plan_search
from ebr.retrieval.measures.measurement import evaluate_ranking
from ebr.retrieval.measures.thresholds import calibrate
from ebr.workflow.finetuning import train_sentence_transformer


def silent(line):
    """Where lines for people go that nobody looks at."""


def dataset_of(qrels, n_documents):
    queries, documents = list(qrels), [f"d{row}" for row in range(n_documents)]
    return EvaluationSet("by hand", queries, queries, documents, documents, qrels, 0, 0, 0)


def calibrated(rows, similarities, qrels, n_documents):
    dataset = dataset_of(qrels, n_documents)
    ranking = np.array(rows), np.array(similarities, np.float32)
    return calibrate(evaluate_ranking(*ranking, dataset, k=len(rows[0])), dataset, "cosine")


# Two queries, three documents found for each, in one order: 0.9 right, 0.8 right, 0.7 wrong, 0.6 right, 0.6 unjudged, 0.5 bad.
# Precision there: 1/1, 2/2, 2/3, 3/5 (both at 0.6), 3/6. Relevant: 5, of which d4 was not found and "gone" is in no corpus.
ROWS, SIMILARITIES = [[0, 1, 2], [3, 0, 1]], [[0.9, 0.7, 0.6], [0.8, 0.6, 0.5]]
QRELS = {"q0": {"d0": 1, "d1": 0, "d2": 2, "gone": 1}, "q1": {"d3": 1, "d1": 0, "d4": 1}}


def test_thresholds_are_those_of_a_case_by_hand():
    found = calibrated(ROWS, SIMILARITIES, QRELS, 5)
    points = {one.precision: (one.threshold, one.recall, one.n_hits) for one in found.points}
    assert points == {
        0.5: (pytest.approx(0.5), 3 / 5, 6),
        0.6: (pytest.approx(0.6), 3 / 5, 5),
        0.7: (pytest.approx(0.8), 2 / 5, 2),
        0.8: (pytest.approx(0.8), 2 / 5, 2),
        0.9: (pytest.approx(0.8), 2 / 5, 2),
        0.95: (pytest.approx(0.8), 2 / 5, 2),
    }
    assert (found.similarity, found.depth, found.dataset) == ("cosine", 3, "by hand")
    assert found.line() == "precision 0.9 from cosine 0.8000 on: recall 0.4000 (2 hits)"


def test_precision_that_sank_and_rose_again_is_taken_where_recall_is_highest():
    # Wrong, right, right, right, right: precision 0, 1/2, 2/3, 3/4, 4/5.
    found = calibrated([[0, 1, 2, 3, 4]], [[0.9, 0.8, 0.7, 0.6, 0.5]], {"q": dict.fromkeys(["d1", "d2", "d3", "d4"], 1)}, 5)
    assert [one.threshold for one in found.points] == [pytest.approx(0.5)] * 4 + [None] * 2
    assert found.point(0.9).line("cosine") == "precision 0.9 is reached at no cosine"


def test_empty_places_and_a_query_without_hits_count_as_nothing_found():
    found = calibrated([[0, -1], [-1, -1]], [[-0.5, 0], [0, 0]], {"q0": {"d0": 1}, "q1": {"d0": 1}}, 1)
    assert found.point(0.95) == OperatingPoint(0.95, -0.5, 0.5, 1)
    nothing = calibrated([[-1]], [[0.0]], {"q": {"d0": 1}}, 1)
    assert {one.threshold for one in nothing.points} == {None}


def test_thresholds_are_those_of_the_curve_of_scikit_learn():
    rng = np.random.default_rng(0)
    qrels = {f"q{row}": {f"d{one}": 1 for one in rng.choice(200, 12, replace=False)} for row in range(40)}
    relevant = np.array([[f"d{row}" in grades for row in range(200)] for grades in qrels.values()])
    similarities = np.round(rng.normal(size=(40, 200)) + 2 * relevant, 2).astype(np.float32)  # with ties
    order = np.argsort(-similarities, axis=1, kind="stable")
    found = calibrated(order, np.take_along_axis(similarities, order, axis=1), qrels, 200)
    precision, recall, thresholds = precision_recall_curve(relevant.ravel(), similarities.ravel())
    for point in found.points:
        first = np.flatnonzero(precision[:-1] >= point.precision)[0]
        assert (point.threshold, point.recall) == (thresholds[first], pytest.approx(recall[first]))


def test_a_precision_between_two_is_the_next_higher():
    points = tuple(OperatingPoint(precision, precision / 2, 0.1, 3) for precision in PRECISIONS)
    calibration = Calibration("x", "cosine", 100, points)
    assert [calibration.point(asked).precision for asked in (0.1, 0.5, 0.85, 0.9)] == [0.5, 0.5, 0.9, 0.9]
    assert calibration.point(0.96) is None
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


# ---------------------------------------------------------------- in a search


@pytest.fixture
def tuned(tiny_model, pairs_file, evaluation_folder, tmp_path):
    """What a fine-tuning with an evaluation set returns."""
    options = {"max_steps": 2, "max_seq_length": 16, "report_to": ["none"], "query_prompt": "query: "}
    files = {"data_path": str(pairs_file), "output_dir": tmp_path / "saved", "eval_dataset": evaluation_folder}
    return train_sentence_transformer(FinetuneConfig(model_name=tiny_model, **files, **options), say=silent)


def indexed(model, evaluation_folder, home, *, metric="cosine", kind="auto", **options):
    """An index of the documents of the evaluation set."""
    (home / "tables").mkdir(exist_ok=True)
    documents = [json.loads(line) for line in (evaluation_folder / "corpus.jsonl").read_text().splitlines()]
    lines = ["id\x01description", *(f"{one['_id']}\x01{one['text']}" for one in documents)]
    (home / "tables" / "part.csv").write_text("\n".join(lines) + "\n")
    files = {"input_dir": home / "tables", "output_path": home / "vectors.npy"}
    run_batch_inference(InferenceConfig(model_path=str(model), precision="float32", **files, **options), say=silent)
    vectors = home / "vectors.npy"
    build_index(IndexConfig(embeddings_path=vectors, index_path=home / "index", metric=metric, kind=kind), say=silent)
    return home / "index"


def search(index, **options):
    lines = []
    queries = {"queries_path": index.parent / "queries.txt"}
    queries["queries_path"].write_text("buy a small red shoe\nbuy a blue cup\n")
    return search_index(SearchConfig(index_path=index, k=30, **queries, **options), say=lines.append), lines


def refused(pattern, index, **options):
    with pytest.raises(ConfigError, match=pattern) as caught:
        plan_search(SearchConfig(index_path=index, query="a cup", **options))
    assert "\n" not in str(caught.value)


def test_a_search_leaves_out_what_lies_below_the_threshold_stored_with_the_model(tuned, evaluation_folder, tmp_path):
    index = indexed(tuned.model_path, evaluation_folder, tmp_path)
    report = read_report(tuned.model_path)
    (name,) = [name for name in report["thresholds"] if name.startswith(str(tuned.model_path))]
    # Where some hits are left out and some are not; what was measured of random weights need not reach 0.9.
    everything = search(index)[0].matches
    middle = float(np.median([match.score for matches in everything for match in matches]))
    report["thresholds"][name]["points"][4] = {"precision": 0.9, "threshold": middle, "recall": 0.25, "n_hits": 8}
    write_json(tuned.model_path / "report.json", report)
    found, lines = search(index, min_precision=0.9)
    assert found.matches == tuple(tuple(match for match in matches if match.score >= middle) for matches in everything)
    assert 0 < sum(map(len, found.matches)) < 60
    assert f"floor   precision 0.9 from cosine {middle:.4f} on: recall 0.2500 (8 hits), on evaluation" in "\n".join(lines)
    assert search(index, min_precision=0.85)[0].matches == found.matches


def test_scores_of_codes_alone_are_held_against_no_threshold(tuned, evaluation_folder, tmp_path):
    index = indexed(tuned.model_path, evaluation_folder, tmp_path, kind="pq")
    refused("an index of kind pq scores by short codes", index, min_precision=0.5)


def test_thresholds_are_stored_before_and_after_and_told(tuned, evaluation_folder):
    report, record = read_report(tuned.model_path), json.loads((tuned.model_path / "evaluation.json").read_text())
    before, after = report["thresholds"].values()
    assert record["thresholds"] == {"base": before, "tuned": after}
    assert [one["precision"] for one in after["points"]] == list(PRECISIONS)
    assert after["depth"] == 30
    told = Calibration.from_json(after).line()
    assert f"threshold   tuned: {told}" in tuned.summary()
    assert told in (tuned.model_path / "README.md").read_text()
    assert "Similarity thresholds" in (tuned.model_path / "report.html").read_text()


def test_an_evaluation_elsewhere_is_read_where_it_is_of_the_same_model(tiny_model, evaluation_folder, tmp_path):
    index, out = indexed(tiny_model, evaluation_folder, tmp_path), tmp_path / "out"
    refused("no evaluation lies beside the model .*; measure it with ebr evaluate", index, min_precision=0.5)
    refused("evaluation_path .*: holds no report.json", index, min_precision=0.5, evaluation_path=tmp_path)
    config = {"models": [tiny_model], "eval_dataset": evaluation_folder, "output_dir": out, "baselines": False}
    result = evaluate_retrieval(EvaluationConfig(**config), say=silent)
    calibration = result.report.main.measured[0].thresholds
    assert f"threshold {tiny_model}: {calibration.line()}" in result.summary()
    set_point(out, 0.5, 0.2)
    assert plan_search(SearchConfig(index_path=index, query="a", min_precision=0.5, evaluation_path=out)).floor.threshold == 0.2
    set_point(out, 0.5, None)
    set_point(out, 0.6, None)
    refused(r"precision 0.6 is reached at no cosine on evaluation", index, min_precision=0.6, evaluation_path=out)
    refused(r"has thresholds up to 0.95; ask for less", index, min_precision=0.99, evaluation_path=out)
    refused("is read for min_precision only", index, evaluation_path=out)
    refused("the scores of mode hybrid are no similarities", index, min_precision=0.5, evaluation_path=out, mode="hybrid")
    # What makes other similarities is refused by its name.
    for change, told in (
        ({"query_prompt": "q: "}, "query prompt '', here 'q: '"),
        ({"truncate_dim": 8}, "truncate_dim None, here 8"),
        ({"max_seq_length": 8}, "passage_max_len 64, here 8"),
        ({"model_sha256": "0"}, "has no thresholds of the model"),
    ):
        before = read_manifest(index)
        write_json(index / "ebr_manifest.json", {**before, **change})
        refused(told, index, min_precision=0.7, evaluation_path=out)
        write_json(index / "ebr_manifest.json", before)
    (out / "report.json").write_text("[]")
    refused("cannot be read", index, min_precision=0.7, evaluation_path=out)
    assert main(["search", "a cup", f"--index_path={index}", "--min_precision=0.7"]) == 2


def set_point(out, precision, threshold):
    report = json.loads((out / "report.json").read_text())
    (record,) = report["thresholds"].values()
    point = next(one for one in record["points"] if one["precision"] == precision)
    point |= {"threshold": threshold, "recall": 0.5, "n_hits": 3}
    write_json(out / "report.json", report)


def test_scores_of_another_kind_are_refused(tiny_model, evaluation_folder, tmp_path):
    out = tmp_path / "out"
    config = {"models": [tiny_model], "eval_dataset": evaluation_folder, "output_dir": out, "baselines": False}
    evaluate_retrieval(EvaluationConfig(**config), say=silent)
    set_point(out, 0.5, 0.2)
    given = {"min_precision": 0.5, "evaluation_path": out}
    index = indexed(tiny_model, evaluation_folder, tmp_path, metric="inner_product", normalize_embeddings=False)
    refused("the hits of inner_product have other scores .* by cosine", index, **given)
    # Of unit vectors the inner product is the cosine.
    index = indexed(tiny_model, evaluation_folder, tmp_path, metric="inner_product")
    assert plan_search(SearchConfig(index_path=index, query="a cup", **given)).floor.threshold == 0.2


def test_inner_products_of_a_model_that_is_made_for_them_have_thresholds_of_their_own(tiny_model, evaluation_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(tiny_model, device="cpu")
    dot = SentenceTransformer(modules=list(model)[:2], similarity_fn_name="dot", device="cpu")
    dot.save_pretrained(str(tmp_path / "dot"))
    config = {"models": [str(tmp_path / "dot")], "eval_dataset": evaluation_folder, "output_dir": tmp_path / "out"}
    result = evaluate_retrieval(EvaluationConfig(**config, baselines=False), say=silent)
    assert result.report.main.measured[0].thresholds.similarity == "dot"
    set_point(tmp_path / "out", 0.5, 3.0)
    given = {"min_precision": 0.5, "evaluation_path": tmp_path / "out"}
    index = indexed(tmp_path / "dot", evaluation_folder, tmp_path, metric="inner_product", normalize_embeddings=False)
    assert plan_search(SearchConfig(index_path=index, query="a cup", **given)).floor.threshold == 3.0
    refused("by dot; build the index with the metric", indexed(tmp_path / "dot", evaluation_folder, tmp_path), **given)
