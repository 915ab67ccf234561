import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.errors import DataError

CORPUS = [
    {"_id": "d1", "title": "Tea", "text": "is hot"},
    {"_id": "d2", "text": "no title"},
    {"_id": "d3", "title": None, "text": ""},
]
QUERIES = [{"_id": "q1", "text": "tea"}, {"_id": "q2", "text": "title"}, {"_id": "train7", "text": "not judged"}]
BEIR = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td2\t1\n"
TREC = "q1 0 d1 2\nq1 0 d2 0\nq2\tQ0 d2  1\n"
GRADES = {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}


def jsonl(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_set(folder, corpus=None, queries=None, qrels=BEIR, qrels_name="qrels.tsv"):
    for name, text in {
        "corpus.jsonl": jsonl(CORPUS) if corpus is None else corpus,
        "queries.jsonl": jsonl(QUERIES) if queries is None else queries,
        qrels_name: qrels,
    }.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def complaint(folder, **files):
    with pytest.raises(DataError) as caught:
        read_evaluation_set(write_set(folder, **files))
    return str(caught.value)


def test_a_document_is_title_space_text_and_stands_beside_its_id(tmp_path):
    dataset = read_evaluation_set(write_set(tmp_path))
    assert dict(zip(dataset.doc_ids, dataset.documents, strict=True)) == {"d1": "Tea is hot", "d2": "no title", "d3": ""}
    assert dataset.name == tmp_path.name


def test_a_folder_whose_name_says_nothing_is_called_by_the_one_above(tmp_path):
    (tmp_path / "shop" / "eval").mkdir(parents=True)
    assert read_evaluation_set(write_set(tmp_path / "shop" / "eval")).name == "shop/eval"


@pytest.mark.parametrize(
    ("qrels_name", "qrels"),
    [
        ("qrels.tsv", BEIR),
        ("qrels/test.tsv", BEIR),
        ("qrels.trec", TREC),
        ("qrels.txt", TREC),
        ("qrels.tsv", TREC.replace(" ", "\t").replace("\t\t", "\t")),
        ("qrels.txt", BEIR),
        ("qrels.tsv", BEIR.split("\n", 1)[1]),
        ("qrels.tsv", BEIR.replace("\n", "\r\n")),
        ("qrels.tsv", "\ufeff" + BEIR),
    ],
    ids=["beir", "beir-test", "trec", "trec-txt", "trec-in-tsv", "beir-in-txt", "no-header", "crlf", "bom"],
)
def test_qrels_are_recognised_by_their_content(tmp_path, qrels_name, qrels):
    assert read_evaluation_set(write_set(tmp_path, qrels=qrels, qrels_name=qrels_name)).qrels == GRADES


def test_beir_ids_may_hold_spaces(tmp_path):
    corpus = jsonl([{"_id": "d 1", "text": "a"}])
    dataset = read_evaluation_set(write_set(tmp_path, corpus=corpus, qrels="q1\td 1\t1\n"))
    assert dataset.qrels == {"q1": {"d 1": 1}}


def test_only_queries_with_a_positive_grade_stay_and_the_rest_is_counted(tmp_path):
    qrels = "q1\td1\t0\nq1\td2\t-1\nq2\td2\t1\nq2\tgone\t2\nq2\tlost\t0\nq1\tdropped with q1\t0\nelsewhere\td1\t1\n"
    dataset = read_evaluation_set(write_set(tmp_path, qrels=qrels))
    assert dataset.query_ids == ["q2"]
    assert dataset.queries == ["title"]
    assert dataset.qrels == {"q2": {"d2": 1, "gone": 2, "lost": 0}}
    assert (dataset.n_unjudged_queries, dataset.n_unknown_queries, dataset.n_missing_documents) == (2, 1, 2)


def test_texts_may_hold_unicode_line_separators_and_files_a_byte_order_mark(tmp_path):
    corpus = "\ufeff" + jsonl([{"_id": "d1", "text": "one\u2028two\u0085three"}])
    dataset = read_evaluation_set(write_set(tmp_path, corpus=corpus))
    assert dataset.documents == ["one\u2028two\u0085three"]


def test_blank_lines_are_skipped_but_counted_as_lines(tmp_path):
    message = complaint(tmp_path, queries='\n{"_id": "q1", "text": "a"}\n \r\nnonsense\n')
    assert message.startswith(f"{tmp_path}/queries.jsonl:4: is not valid JSON")


def test_a_number_as_id_is_read_as_its_digits(tmp_path):
    queries = jsonl([{"_id": 12, "text": "a"}])
    assert read_evaluation_set(write_set(tmp_path, queries=queries, qrels="12\td1\t1\n")).query_ids == ["12"]


@pytest.mark.parametrize(
    ("files", "where", "what"),
    [
        ({"corpus": '{"_id": "d1", "text": "a"\n'}, "corpus.jsonl:1", "not valid JSON"),
        ({"corpus": '{"a": 1}\n[1]\n'}, "corpus.jsonl:2", "is list, not an object with an id and a text"),
        ({"corpus": '{"nr": "d1", "text": "a"}\n'}, "corpus.jsonl:1", "has no id: its keys are 'nr', 'text'; expected '_id',"),
        ({"corpus": '{"_id": "d1", "words": "a"}\n'}, "corpus.jsonl:1", "has no text: its keys are '_id', 'words'; expected"),
        ({"corpus": '{"_id": "", "text": "a"}\n'}, "corpus.jsonl:1", "'_id'"),
        ({"corpus": '{"_id": true, "text": "a"}\n'}, "corpus.jsonl:1", "'_id'"),
        ({"corpus": '{"_id": "d1", "title": "a"}\n'}, "corpus.jsonl:1", "'text'"),
        ({"corpus": '{"_id": "d1", "title": 5, "text": "a"}\n'}, "corpus.jsonl:1", "'title'"),
        ({"corpus": jsonl([*CORPUS, CORPUS[1]])}, "corpus.jsonl:4", "'d2' was used on line 2"),
        ({"corpus": b'{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": "\xff"}\n'}, "corpus.jsonl:2", "not UTF-8"),
        ({"queries": '{"_id": "q1", "text": " "}\n'}, "queries.jsonl:1", "'text'"),
        ({"queries": jsonl([QUERIES[0], QUERIES[0]])}, "queries.jsonl:2", "'q1' was used on line 1"),
        ({"qrels": BEIR + "q1\td3\n"}, "qrels.tsv:5", "three columns"),
        ({"qrels": BEIR + "q1\t\t1\n"}, "qrels.tsv:5", "three columns"),
        ({"qrels": "q1\td1\n"}, "qrels.tsv:1", "has two columns, 'q1', 'd1'; expected query-id, corpus-id and score"),
        ({"qrels": "q1|d1|1\n"}, "qrels.tsv:1", "has one column, 'q1|d1|1'; expected"),
        ({"qrels": "docid\tsession\tgrade\nd1\tq1\t1\n"}, "qrels.tsv:1", "'session', 'grade'; expected query-id, corpus-id"),
        ({"qrels": "q1\td1\thigh\n"}, "qrels.tsv:1", "'high' is not a whole number"),
        ({"qrels": '{"qid": "q1", "docid": "d1"}\n'}, "qrels.tsv:1", "its keys are 'qid', 'docid'; expected query-id"),
        ({"qrels": '{"qid": "q1", "docid": null, "rel": 1}\n'}, "qrels.tsv:1", "the document's id is None"),
        ({"qrels": BEIR + "q1\td3\t0.5\n"}, "qrels.tsv:5", "'0.5' is not a whole number"),
        ({"qrels": BEIR + "q1\td1\t1\n"}, "qrels.tsv:5", "judged twice, as 2 and as 1"),
        ({"qrels": TREC + "q1 0 d3\n", "qrels_name": "qrels.trec"}, "qrels.trec:4", "four columns"),
        ({"qrels": TREC + "q1 0 d3 yes\n", "qrels_name": "qrels.trec"}, "qrels.trec:4", "'yes' is not a whole number"),
    ],
)
def test_a_wrong_line_is_named_with_file_line_and_problem(tmp_path, files, where, what):
    message = complaint(tmp_path, **files)
    assert f"{tmp_path / where}: " in message
    assert what in message.split(where, 1)[1].split("\n")[0]


def test_wrong_lines_of_all_files_come_in_one_error(tmp_path):
    message = complaint(tmp_path, corpus="{\n", queries="{\n[\n", qrels=BEIR + "q1\td3\tx\n")
    places = [line.rsplit("/", 1)[1].split(": ")[0] for line in message.split("\n")]
    assert places == ["corpus.jsonl:1", "queries.jsonl:1", "queries.jsonl:2", "qrels.tsv:5"]


def test_the_list_of_wrong_lines_ends_after_twenty(tmp_path):
    corpus = "".join(f'{{"k{number}": 1}}\n' for number in range(25))
    lines = complaint(tmp_path, corpus=corpus).split("\n")
    assert len(lines) == 21
    assert lines[-1] == "and 5 more"
    assert len(complaint(tmp_path, corpus="".join(corpus.splitlines(keepends=True)[:20])).split("\n")) == 20


def test_what_is_wrong_with_every_document_is_told_once(tmp_path):
    message = complaint(tmp_path, corpus=jsonl([{"nr": number, "words": "x"} for number in range(500)]))
    assert message.count("\n") == 0
    assert "corpus.jsonl:1: has no id: its keys are 'nr', 'words'" in message and "(and 499 more like it)" in message


def test_a_missing_folder_names_what_is_expected(tmp_path):
    with pytest.raises(
        DataError, match=r"nowhere: there is no such folder; .*corpus\.jsonl, queries\.jsonl and one of qrels\.tsv"
    ):
        read_evaluation_set(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "called"), [("corpus.jsonl",) * 2, ("queries.jsonl",) * 2, ("qrels.tsv", "qrels")])
def test_a_missing_file_is_named(tmp_path, name, called):
    (write_set(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=f"it lacks {called};"):
        read_evaluation_set(tmp_path)


def test_a_set_with_nothing_to_evaluate_is_refused(tmp_path):
    assert "holds no documents" in complaint(tmp_path, corpus="\n")
    assert "no query of queries.jsonl has a positive grade" in complaint(tmp_path, qrels="q1\td1\t0\nother\td1\t1\n")


@pytest.mark.parametrize("grade", ["4294967297", "1001", "-1001", "1_0", "1.5", "1.0.0", "٣", "+", "9" * 5000])
def test_a_grade_that_trec_eval_would_count_wrong_is_refused(tmp_path, grade):
    assert "qrels.tsv:2: the grade" in complaint(tmp_path, qrels=f"query-id\tcorpus-id\tscore\nq1\td1\t{grade}\n")


@pytest.mark.parametrize("grade", ["1000", "+2", "-1000", "1.0", "-1.00", "3."])
def test_other_grades_are_whole_numbers(tmp_path, grade):
    dataset = read_evaluation_set(write_set(tmp_path, qrels=f"q1\td2\t1\nq1\td1\t{grade}\n"))
    assert dataset.qrels["q1"]["d1"] == int(float(grade))


@pytest.mark.parametrize("broken", [r"n\ud800", r"n\u0000"])
@pytest.mark.parametrize("key", ["_id", "text", "title"])
def test_half_characters_and_nul_are_refused_by_line(tmp_path, key, broken):
    # trec_eval would end an id at a NUL, and the whole process at half a character.
    record = {"_id": '"d1"', "text": '"a"', "title": '"b"'} | {key: f'"{broken}"'}
    line = "{" + ", ".join(f'"{name}": {value}' for name, value in record.items()) + "}\n"
    assert f"corpus.jsonl:1: '{key}' holds a NUL or half a character" in complaint(tmp_path, corpus=line)


# --- as others write them

JSON_LINES = '{"query-id": "q1", "corpus-id": "d1", "score": 2}\n{"query-id": "q1", "corpus-id": "d2", "score": 0.0}\n'
JSON_LINES += '{"query-id": "q2", "corpus-id": "d2", "score": 1}\n'


@pytest.mark.parametrize(
    ("qrels_name", "qrels"),
    [
        ("qrels.tsv", BEIR.replace("query-id\tcorpus-id\tscore", "qid\tdocid\tlabel")),
        ("qrels.tsv", BEIR.replace("query-id\tcorpus-id\tscore", "Anfrage\tDokument\tNote")),
        ("qrels.tsv", "score\tcorpus-id\tquery-id\n2\td1\tq1\n0\td2\tq1\n1\td2\tq2\n"),
        ("qrels.tsv", "topic\titer\tdocno\trel\tjudge\nq1\t0\td1\t2\tA\nq1\t0\td2\t0\tA\nq2\t0\td2\t1\tB\n"),
        ("qrels.trec", "qid iteration docid grade\n" + TREC),
        ("qrels.tsv", BEIR.replace("\t", " ")),
        ("qrels.csv", BEIR.replace("\t", ",")),
        ("qrels.csv", BEIR.replace("\t", '","').replace("\n", '"\n').replace("q", '"q')),
        ("qrels.tsv", BEIR.replace("\t2\n", "\t2.0\n").replace("\t0\n", "\t0.0\n")),
        ("qrels.tsv", BEIR + "q1\td1\t2\nq1\td1\t2.0\n"),
        ("qrels.tsv", "# judged in May\n#\n" + BEIR + "# the end\n"),
        ("qrels.tsv.gz", gzip.compress(BEIR.encode())),
        ("qrels/dev.tsv.bz2", bz2.compress(BEIR.encode())),
        ("qrels.jsonl.xz", lzma.compress(JSON_LINES.encode())),
        ("qrels.tsv.zst", pa.compress(BEIR.encode(), "zstd", asbytes=True)),
        ("qrels/dev.tsv", BEIR),
        ("qrels/validation.jsonl", JSON_LINES),
        ("qrels/judged-in-may.tsv", BEIR),
        ("qrels.jsonl", JSON_LINES),
        ("qrels.jsonl.gz", gzip.compress(JSON_LINES.encode())),
        ("qrels.txt", JSON_LINES),
        ("qrels.json", json.dumps(GRADES)),
        ("qrels.json", json.dumps(GRADES, indent=2)),
        ("qrels/test.json", f"[{JSON_LINES.strip()}]".replace("}\n{", "},\n{")),
    ],
)
def test_qrels_of_others_are_read(tmp_path, qrels_name, qrels):
    dataset = read_evaluation_set(write_set(tmp_path, qrels=qrels, qrels_name=qrels_name))
    assert dataset.qrels == GRADES
    assert (dataset.n_unknown_queries, dataset.n_missing_documents) == (0, 0)
    is_usual = qrels_name in {"qrels.tsv", "qrels.trec", "qrels.txt"}
    assert dataset.notes() == ([] if is_usual else [f"read from corpus.jsonl, queries.jsonl, {qrels_name}"])


def test_of_several_splits_test_counts_before_dev_and_dev_before_train(tmp_path):
    for split in ("train", "dev", "test"):
        write_set(tmp_path, qrels="q2\td2\t1\n", qrels_name=f"qrels/{split}.tsv")
        assert read_evaluation_set(tmp_path).found_in[2] == f"qrels/{split}.tsv"


def test_nothing_says_which_of_two_unknown_splits_is_meant(tmp_path):
    for name in ("may", "june"):
        write_set(tmp_path, qrels_name=f"qrels/{name}.tsv")
    with pytest.raises(DataError, match=r"it lacks qrels; .* it holds .*qrels/june\.tsv, qrels/may\.tsv"):
        read_evaluation_set(tmp_path)


def test_an_id_may_begin_like_a_comment_and_a_query_be_called_like_a_column(tmp_path):
    queries = jsonl([{"_id": "#1", "text": "a"}, {"_id": "topic", "text": "b"}])
    dataset = read_evaluation_set(write_set(tmp_path, queries=queries, qrels="topic\td1\t1\n#1\td2\t1\n#2\td2\t1\n"))
    assert dataset.qrels == {"#1": {"d2": 1}, "topic": {"d1": 1}}


@pytest.mark.parametrize(
    ("id_key", "text_key"),
    [
        ("id", "contents"),
        ("docid", "passage"),
        ("doc_id", "body"),
        ("pid", "content"),
        ("Doc-ID", "Text"),
        ("docno", "segment"),
    ],
)
def test_documents_of_others_are_read_by_their_keys(tmp_path, id_key, text_key):
    corpus = jsonl([{id_key: one["_id"], "url": "x", "title": one.get("title"), text_key: one["text"]} for one in CORPUS])
    dataset = read_evaluation_set(write_set(tmp_path, corpus=corpus))
    assert (dataset.doc_ids, dataset.documents) == (["d1", "d2", "d3"], ["Tea is hot", "no title", ""])
    assert dataset.notes() == [f"read from corpus.jsonl ({', '.join(sorted([id_key, text_key]))}), queries.jsonl, qrels.tsv"]


@pytest.mark.parametrize(("id_key", "text_key"), [("id", "query"), ("qid", "question"), ("query_id", "text")])
def test_queries_of_others_are_read_by_their_keys(tmp_path, id_key, text_key):
    queries = jsonl([{id_key: one["_id"], text_key: one["text"]} for one in QUERIES])
    assert read_evaluation_set(write_set(tmp_path, queries=queries)).queries == ["tea", "title"]


def test_of_several_keys_the_one_of_beir_counts(tmp_path):
    corpus = jsonl([{"id": 9, "contents": "no", "_id": "d1", "text": "yes"}])
    dataset = read_evaluation_set(write_set(tmp_path, corpus=corpus))
    assert (dataset.doc_ids, dataset.documents) == (["d1"], ["yes"])


def test_files_of_every_format_are_found(tmp_path):
    pq.write_table(pa.Table.from_pylist(CORPUS), tmp_path / "corpus.parquet")
    (tmp_path / "queries.tsv").write_text("qid\tquery\nq1\ttea\nq2\t[1]\n")
    judgements = pa.table({"query-id": ["q1", "q1", "q2"], "corpus-id": ["d1", "d2", "d2"], "score": [2.0, 0.0, 1.0]})
    (tmp_path / "qrels").mkdir()
    pq.write_table(judgements, tmp_path / "qrels" / "test.parquet")
    dataset = read_evaluation_set(tmp_path)
    assert (dataset.qrels, dataset.queries, dataset.documents) == (GRADES, ["tea", "[1]"], ["Tea is hot", "no title", ""])
    assert dataset.found_in == ("corpus.parquet", "queries.tsv (qid, query)", "qrels/test.parquet")


def test_a_line_too_long_for_qrels_is_named(tmp_path):
    long = "文" * 200_000
    message = complaint(tmp_path, qrels_name="qrels.csv", qrels=BEIR.replace("\t", ",") + f"q2,{long},1\n")
    assert "qrels.csv:5: expected three columns like the lines before" in message
    message = complaint(tmp_path, qrels_name="qrels.tsv", qrels=f"{long}\n")
    assert f"qrels.tsv:1: has one column, '{'文' * 40}'; expected" in message


def test_ids_that_do_not_agree_are_shown(tmp_path):
    message = complaint(tmp_path, qrels="Q1\td1\t1\n")
    assert message.endswith("check that the query ids agree: qrels.tsv begins with 'Q1', queries.jsonl with 'q1'")
    message = complaint(tmp_path, qrels="q1\tD1\t1\n")
    assert message.endswith("check that the document ids agree: qrels.tsv begins with 'D1', corpus.jsonl with 'd1'")


def test_a_broken_archive_is_said(tmp_path):
    message = complaint(tmp_path, qrels_name="qrels.tsv.gz", qrels=gzip.compress(BEIR.encode())[:-9])
    assert "qrels.tsv.gz: the gzip archive is broken or cut short" in message
