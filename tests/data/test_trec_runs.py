import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.data.evaluation.trec_runs import write_run
from ebr.errors import DataError
from ebr.retrieval.measures.metrics import score_run
from tests.trec import read_run

DOC_IDS = ["d0", "d1", "d2", "文三"]


def write(path, rows, scores, query_ids=None, doc_ids=DOC_IDS, tag="ours"):
    rows = np.array(rows, np.int64)
    write_run(path, query_ids or [f"q{index}" for index in range(len(rows))], doc_ids, rows, np.array(scores, np.float32), tag)
    return path


def test_a_run_is_six_columns_with_ranks_from_one(tmp_path):
    path = write(tmp_path / "runs" / "run.trec", [[2, 0], [3, -1]], [[0.75, 0.5], [0.1, 0]])
    assert path.read_bytes().decode() == "q0 Q0 d2 1 0.75 ours\nq0 Q0 d0 2 0.5 ours\nq1 Q0 文三 1 0.1 ours\n"
    assert [file.name for file in path.parent.iterdir()] == ["run.trec"]


def test_reading_gives_back_documents_and_scores(tmp_path):
    path = write(tmp_path / "run.trec", [[2, 0, 1], [3, -1, -1]], [[0.75, 0.5, -2], [8, 0, 0]])
    assert read_run(path) == {"q0": {"d2": 0.75, "d0": 0.5, "d1": -2}, "q1": {"文三": 8}}


def test_equal_scores_are_written_in_the_order_trec_eval_takes(tmp_path):
    # Rows come lower row first; trec_eval takes equal scores by document id, descending.
    path = write(tmp_path / "run.trec", [[3, 0, 1, 2]], [[0.9, 0.5, 0.5, 0.5]])
    ranks = {line.split()[2]: int(line.split()[3]) for line in path.read_text(encoding="utf-8").splitlines()}
    assert ranks == {"文三": 1, "d2": 2, "d1": 3, "d0": 4}


def test_neighbouring_float32_scores_stay_apart_and_exact(tmp_path):
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    run = read_run(write(tmp_path / "run.trec", [[0, 1]], [[high, low]]))["q0"]
    assert (np.float32(run["d0"]), np.float32(run["d1"])) == (high, low)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.one_of(FLOATS, st.sampled_from([0.25, 0.5])), min_size=3, max_size=3), min_size=1, max_size=4))
def test_round_trip_keeps_every_score_and_every_metric(tmp_path_factory, scores):
    scores = np.sort(np.array(scores, np.float32), axis=1)[:, ::-1]
    rows = np.tile([2, 0, 3], (len(scores), 1))
    run = read_run(write(tmp_path_factory.mktemp("runs") / "run.trec", rows, scores))
    expected = {
        f"q{index}": {DOC_IDS[row]: score for row, score in zip(rows[index], scores[index], strict=True)}
        for index in range(len(rows))
    }
    assert {query: {doc: np.float32(score) for doc, score in found.items()} for query, found in run.items()} == expected
    qrels = {query_id: {"d0": 1, "文三": 2} for query_id in expected}
    measured, again = score_run(expected, qrels), score_run(run, qrels)
    assert all((measured[name] == again[name]).all() for name in measured)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"doc_ids": ["d0", "my doc"]}, "document id 'my doc'"),
        ({"doc_ids": ["d0", ""]}, "document id ''"),
        ({"query_ids": ["q\t1"]}, "query id 'q\t1'"),
        ({"tag": "our model"}, "tag 'our model'"),
    ],
)
def test_names_that_would_split_columns_are_refused(tmp_path, options, named):
    with pytest.raises(DataError, match=f"the {named} is empty or has white space"):
        write(tmp_path / "run.trec", [[0, 1]], [[1, 0.5]], **options)
    assert list(tmp_path.iterdir()) == []


def test_an_ideographic_space_splits_no_column(tmp_path):
    path = write(tmp_path / "run.trec", [[0]], [[1]], doc_ids=["中\u3000文"])
    assert read_run(path) == {"q0": {"中\u3000文": 1}}


def test_scores_that_cannot_be_ordered_are_refused_where_a_document_has_them(tmp_path):
    with pytest.raises(DataError, match="nan or infinite"):
        write(tmp_path / "run.trec", [[0, 1]], [[1, np.nan]])
    assert read_run(write(tmp_path / "run.trec", [[0, -1]], [[1, np.nan]])) == {"q0": {"d0": 1}}


@pytest.mark.parametrize("rows", [[[0, 1]], [[0], [1]], [0, 1]])
def test_shapes_that_disagree_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="1 queries need as many rows and scores"):
        write_run(tmp_path / "run.trec", ["q0"], DOC_IDS, np.array(rows), np.zeros((1, 3), np.float32), "ours")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "run.trec", [[0]], [[1]])
    with pytest.raises(IndexError):
        write(path, [[1], [99]], [[1], [1]])
    assert read_run(path) == {"q0": {"d0": 1}}
    assert list(tmp_path.iterdir()) == [path]
