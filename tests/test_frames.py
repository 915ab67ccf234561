"""Results as DataFrames and as HTML: the figures of the printed tables, and data that stays data."""

import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from ebr.data.evaluation.comparison import HEADLINES
from ebr.data.evaluation.queries import Query
from ebr.data.result_tables import Shown, Table
from ebr.data.text.cut_texts import CutTexts, cut_facts
from ebr.data.vectors.embeddings import write_embeddings
from ebr.inference.command import InferenceResult
from ebr.inference.job.pipeline import EmbeddedTables
from ebr.retrieval.evaluation.result import EvaluationResult, metrics_table
from ebr.retrieval.index.matches import Hits, Match
from ebr.retrieval.index.search import SearchResult
from ebr.retrieval.measures.measurement import Evaluation, compare
from ebr.retrieval.mining.report import MiningCounts
from ebr.retrieval.mining.rules import Reason
from ebr.retrieval.ranking import Ranking
from ebr.retrieval.report.write import DatasetReport, Measured, Report
from ebr.training.doctor.report import CheckReport, Fact, Finding, Severity
from ebr.training.loop.fit import TrainingRecord
from ebr.training.result import FinetuneResult
from ebr.visualization.project.quality import cluster_quality, quality_lines

EVIL = "<script>alert('a & b')</script>"
SAFE = "&lt;script&gt;alert(&#x27;a &amp; b&#x27;)&lt;/script&gt;"
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


def numbers(text):
    """Every number of a text with a point in it, as printed."""
    return [float(found) for found in re.findall(r"[-+]?\d+\.\d+", text)]


def evaluation(*scores, texts=("what is a", "what is b")):
    """Two queries, every headline metric with these scores."""
    found = {name: np.array(scores, np.float64) for name in HEADLINES}
    return Evaluation("set", ["q1", "q2"], 7, found, np.zeros((2, 10), int), np.zeros((2, 10), np.float32), queries=texts)


# ---------------------------------------------------------------- tables


def test_a_table_is_a_frame_of_its_columns():
    frame = Table.of([{"a": 1, "b": "x"}, {"a": 2, "c": None}], ("a", "b", "c")).to_frame()
    assert list(frame.columns) == ["a", "b", "c"]
    assert frame["a"].tolist() == [1, 2]
    assert frame["b"].isna().tolist() == [False, True]


def test_a_table_without_a_row_has_its_columns_all_the_same():
    table = Table.of([], ("file", "line"))
    assert list(table.to_frame().columns) == ["file", "line"]
    assert len(table) == len(table.to_frame()) == 0


def test_html_holds_no_markup_of_the_data():
    html = Table({EVIL: [EVIL]})._repr_html_()
    assert html.count(SAFE) == 2
    assert "<script" not in html


def test_html_formats_numbers_and_leaves_out_what_is_none():
    html = Table({"p": [0.123456, None, float("nan")], "n": [1234, 5, 6], "yes": [True, False, True]}, {"p": ".4f", "n": ","})
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html._repr_html_())
    assert cells == ["0.1235", "1,234", "True", "", "5", "False", "", "6", "True"]


def test_html_of_a_long_table_says_how_long_it_is():
    html = Table({"row": list(range(1234))})._repr_html_()
    assert html.count("<tr>") == 51
    assert "of 1,234 rows" in html


# ---------------------------------------------------------------- results that show themselves


class Found(Shown):
    def __init__(self, *parts):
        self.all = parts

    def summary(self):
        return "as text"

    def parts(self):
        return list(self.all)


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "map.png").write_bytes(PIXEL)
    return tmp_path / "map.png"


def displayed(result, monkeypatch):
    """What a notebook gets to show."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data))
    result._ipython_display_()
    return shown


def test_a_notebook_gets_the_picture_as_a_picture_and_the_rest_as_html_with_the_text_beside_it(picture, monkeypatch):
    first, second = displayed(Found([("name", EVIL)], picture, EVIL, f"{EVIL}\ntwo"), monkeypatch)
    assert base64.b64decode(first["image/png"]) == PIXEL
    assert second["text/plain"] == "as text"
    assert second["text/html"].count(SAFE) == 3
    assert "<script" not in second["text/html"]


def test_html_alone_holds_the_picture_too(picture):
    html = Found(picture)._repr_html_()
    assert f'src="data:image/png;base64,{base64.b64encode(PIXEL).decode()}"' in html


@pytest.mark.parametrize("name", ["gone.png", "map.pdf"])
def test_a_picture_that_cannot_be_shown_is_left_out(picture, tmp_path, monkeypatch, name):
    (tmp_path / "map.pdf").write_bytes(b"%PDF")
    assert len(displayed(Found(tmp_path / name, "text"), monkeypatch)) == 1
    assert Found(tmp_path / name, "text")._repr_html_() == "<p>text</p>"


# ---------------------------------------------------------------- evaluation


def test_a_comparison_has_in_its_frame_what_its_table_prints():
    comparison = compare(evaluation(0.25, 0.5), evaluation(0.5, 1.0), seed=1)
    frame = comparison.to_frame().set_index("metric")
    for metric, name in HEADLINES.items():
        (line,) = [line for line in comparison.table().splitlines() if line.startswith(f"{name} ") and "[" in line]
        row = frame.loc[metric]
        found = [row[column] for column in ("base", "tuned", "difference", "low", "high", "p")]
        assert numbers(line) == pytest.approx(found, abs=5e-5)
    assert comparison.verdict() in comparison._repr_html_()
    assert "+0.3750" in comparison._repr_html_()


def test_a_comparison_has_a_row_for_each_query():
    frame = compare(evaluation(0.25, 0.5), evaluation(0.5, 1.0), seed=1).per_query.to_frame()
    assert frame["query_id"].tolist() == ["q1", "q2"]
    assert frame["query"].tolist() == ["what is a", "what is b"]
    assert frame["ndcg@10_base"].tolist() == [0.25, 0.5]
    assert frame["ndcg@10_tuned"].tolist() == [0.5, 1.0]


def evaluated(tmp_path):
    base, tuned, bm25 = evaluation(0.25, 0.5), evaluation(0.5, 1.0), evaluation(0.0, 1.0)
    facts = {"cut": cut_facts([CutTexts(), CutTexts()])}
    measured = [Measured("base", base, None, [], facts), Measured(EVIL, tuned, None, [], facts)]
    main = DatasetReport("set", {}, measured, {"BM25": bm25.means()}, [], {"base": base, EVIL: tuned, "BM25": bm25})
    report = Report(main, None, None, "nothing known", {})
    return EvaluationResult(report, tmp_path / "report.html", tmp_path / "report.json", [], "nothing known", 1.0)


def test_an_evaluation_has_in_its_frame_what_its_table_prints(tmp_path):
    result = evaluated(tmp_path)
    frame = result.to_frame()
    assert frame["model"].tolist() == ["base", EVIL, "BM25"]
    assert "nothing known" in result._repr_html_()
    assert "<script" not in result._repr_html_()
    for row, line in zip(frame.itertuples(index=False), metrics_table(result.report.main)[1:], strict=True):
        assert numbers(line) == pytest.approx(list(row)[1:], abs=5e-5)


def test_an_evaluation_has_a_row_for_each_query_and_way_of_ranking(tmp_path):
    frame = evaluated(tmp_path).per_query.to_frame()
    assert len(frame) == 6
    assert frame.groupby("model", sort=False)["ndcg@10"].mean().to_dict() == {"base": 0.375, EVIL: 0.75, "BM25": 0.5}
    assert frame["query"].tolist() == ["what is a", "what is b"] * 3


# ---------------------------------------------------------------- search


MATCHES = [Match(1, 0.91234, "7", {"label": EVIL, "rank": "gold"}), Match(2, 0.5, "8", {"label": None, "rank": "tin"})]


def test_hits_are_lists_of_matches_and_a_frame_with_a_row_for_each():
    hits = Hits([MATCHES, []], ["shoes", "hats"])
    assert hits == [MATCHES, []]
    frame = hits.to_frame()
    assert list(frame.columns) == ["query", "rank", "score", "scored_by", "id", "label", "columns.rank"]
    assert frame["query"].tolist() == ["shoes", "shoes"]
    assert frame["rank"].tolist() == [1, 2]
    assert frame["columns.rank"].tolist() == ["gold", "tin"]
    assert "0.9123" in hits.summary()
    assert "0.9123" in hits._repr_html_()
    assert "<script" not in hits._repr_html_()


def test_hits_of_vectors_are_numbered():
    assert Hits([MATCHES]).to_frame()["query"].tolist() == ["query 1"] * 2


def test_a_search_has_its_query_ids_in_its_frame():
    result = SearchResult((Query("a", "shoes"), Query("b", "hats")), (tuple(MATCHES), ()))
    frame = result.to_frame()
    assert frame[["query_id", "query", "id"]].values.tolist() == [["a", "shoes", "7"], ["a", "shoes", "8"]]
    assert list(SearchResult((), ()).to_frame().columns) == ["query_id", "query", "rank", "score", "scored_by", "id"]


def test_a_ranking_has_every_document_of_each_query_in_its_frame():
    scores = np.array([[0.25, 0.75], [0.5, 0.125]], np.float32)
    order = np.argsort(-scores, axis=1)
    nothing = np.empty((0, 1), np.float32)
    frame = Ranking(("x", "y"), (EVIL, "b"), nothing, nothing, scores, order, None).to_frame()
    assert frame.values.tolist() == [["x", 1, "b", 0.75], ["x", 2, EVIL, 0.25], ["y", 1, EVIL, 0.5], ["y", 2, "b", 0.125]]
    assert list(frame.columns) == ["query", "rank", "document", "cosine"]


# ---------------------------------------------------------------- maps, training, inference, mining


def test_cluster_figures_have_in_their_frame_what_their_lines_print():
    rng = np.random.default_rng(1)
    quality = cluster_quality(rng.normal(size=(30, 4)), [f"label {row % 3}" for row in range(30)])
    frame = quality.to_frame().set_index("name")
    lines = quality_lines(quality)[2:]
    assert len(lines) == len(frame)
    for line, (name, row) in zip(lines, frame.iterrows(), strict=True):
        assert line.startswith(name)
        value, n_rows, meaning = re.split(r"\s{2,}", line[len(name) :].strip(), maxsplit=2)
        assert float(value.replace(",", "")) == pytest.approx(row["value"], abs=5e-4)
        assert (int(n_rows), meaning) == (row["n_rows"], row["meaning"])


HISTORY = [
    {"loss": 1.5, "learning_rate": 1e-4, "grad_norm": 3.0, "epoch": 0.5, "step": 1},
    {"loss": 1.0, "learning_rate": 5e-5, "grad_norm": 2.0, "epoch": 1.0, "step": 2},
    {"eval_loss": 0.7, "epoch": 1.0, "step": 2},
    {"train_runtime": 3.0, "train_loss": 1.25, "epoch": 1.0, "step": 2},
]


def test_the_training_log_has_a_row_for_each_step(tmp_path):
    record = TrainingRecord(HISTORY, [], 2, 2, False, 10, 100, 3.0)
    frame = FinetuneResult(tmp_path / "model", record, None, None).to_frame()
    assert list(frame.columns) == ["step", "epoch", "loss", "learning_rate", "grad_norm", "eval_loss"]
    assert frame["loss"].tolist() == [1.5, 1.0]
    assert frame["eval_loss"].tolist()[1] == 0.7
    assert frame["eval_loss"].isna().tolist() == [True, False]


def test_a_finetuning_shows_its_loss_curve_and_base_against_tuned(picture, monkeypatch):
    record = TrainingRecord(HISTORY, [], 2, 2, False, 10, 100, 3.0)
    comparison = compare(evaluation(0.25, 0.5), evaluation(0.5, 1.0), seed=1)
    curve, rest = displayed(FinetuneResult(picture.parent / EVIL, record, comparison, picture), monkeypatch)
    assert "image/png" in curve
    assert "nDCG@10" in rest["text/html"]
    assert "<script" not in rest["text/html"]


def embedded(tmp_path, rejects):
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_embeddings(tmp_path / "vectors.parquet", {"id": ["1", "2", "3"], "label": ["a", None, EVIL]}, vectors)
    path = tmp_path / "vectors.parquet.rejects.jsonl" if rejects else None
    if path:
        path.write_text("".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects), encoding="utf-8")
    done = EmbeddedTables(
        output_path=tmp_path / "vectors.parquet", rejects_path=path, n_files=1, n_shards=1, n_kept=0, n_rows=3,
        n_rejected=len(rejects), n_fresh=3, n_encoded=3, n_reused=0, n_changed=0, first_rejects=[], dim=2,
        n_cut=0, n_overruled=0, first_overruled="",
    )  # fmt: skip
    return InferenceResult(done, "", SimpleNamespace(describe=lambda: "float32"), 1.0)


def test_embeddings_are_a_frame_of_ids_columns_and_vectors(tmp_path):
    frame = embedded(tmp_path, []).to_frame()
    assert list(frame.columns) == ["id", "label", "vector"]
    assert frame["id"].tolist() == ["1", "2", "3"]
    assert frame["label"].isna().tolist() == [False, True, False]
    np.testing.assert_array_equal(np.stack(frame["vector"]), np.arange(6, dtype=np.float32).reshape(3, 2))
    assert frame["vector"][0].dtype == np.float32


def test_rejects_are_a_frame_with_the_rows_as_text(tmp_path):
    raw = {"甲\x01\u2028".encode(): "甲\x01\u2028", b"\xff": "\ufffd"}
    reason = f"{EVIL}\u2028"  # a line separator to Python, and none to JSON lines
    rejects = [
        {"file": "a.csv", "line": line, "reason": reason, "raw_base64": base64.b64encode(row).decode()}
        for line, row in enumerate(raw, start=2)
    ]
    result = embedded(tmp_path, rejects)
    frame = result.rejects.to_frame()
    assert list(frame.columns) == ["file", "line", "reason", "row"]
    assert frame["line"].tolist() == [2, 3]
    assert frame["row"].tolist() == list(raw.values())
    assert "<script" not in result._repr_html_()
    assert len(embedded(tmp_path, []).rejects) == 0


def test_mining_has_in_its_tables_what_it_prints():
    counts = MiningCounts(
        n_records=4, n_looked_at=10, n_mined=5, left_out={reason: int(reason is Reason.SCORE) * 5 for reason in Reason},
        records_by_mined={0: 1, 1: 1, 2: 2}, n_kept=0, n_contradictions=0, mean_positive=0.75, mean_mined=0.5,
    )  # fmt: skip
    rows = [*counts.candidates().records(), *counts.records().records()]
    printed = {f"{next(iter(row.values()))} {row['count']:,} {row['share']:.1%}" for row in rows}
    assert {" ".join(line.split()) for line in counts.table().splitlines() if line.endswith("%")} == printed


def test_a_check_has_a_row_for_each_finding():
    finding = Finding("few-records", Severity.WARNING, EVIL, "why", "do this")
    report = CheckReport.of([finding], [Fact("n_records", 3, "3 of them")])
    assert report.to_frame().values.tolist() == [["few-records", "warning", EVIL, "why", "do this"]]
    html = report._repr_html_()
    assert "n records" in html
    assert "<script" not in html
