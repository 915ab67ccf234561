import json

import pytest

from ebr.data.evaluation_set import read_evaluation_set
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
    assert message.startswith(f"{tmp_path}/queries.jsonl:4: not JSON")


def test_a_number_as_id_is_read_as_its_digits(tmp_path):
    queries = jsonl([{"_id": 12, "text": "a"}])
    assert read_evaluation_set(write_set(tmp_path, queries=queries, qrels="12\td1\t1\n")).query_ids == ["12"]


@pytest.mark.parametrize(
    ("files", "where", "what"),
    [
        ({"corpus": '{"_id": "d1", "text": "a"\n'}, "corpus.jsonl:1", "not JSON"),
        ({"corpus": "[1]\n"}, "corpus.jsonl:1", "'_id'"),
        ({"corpus": '{"id": "d1", "text": "a"}\n'}, "corpus.jsonl:1", "'_id'"),
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
        ({"qrels": BEIR.replace("\t", " ")}, "qrels.tsv:1", "separated by tabs"),
        ({"qrels": BEIR + "q1\td3\t0.5\n"}, "qrels.tsv:5", "'0.5' is not a whole number"),
        ({"qrels": BEIR + "q1\td1\t1\n"}, "qrels.tsv:5", "judged twice"),
        ({"qrels": TREC + "q1 0 d3\n", "qrels_name": "qrels.trec"}, "qrels.trec:4", "four columns"),
        ({"qrels": TREC + "q1 0 d3 yes\n", "qrels_name": "qrels.trec"}, "qrels.trec:4", "'yes' is not a whole number"),
    ],
)
def test_a_wrong_line_is_named_with_file_line_and_problem(tmp_path, files, where, what):
    message = complaint(tmp_path, **files)
    assert f"{tmp_path / where}: " in message
    assert what in message.split(where, 1)[1].split("\n")[0]


def test_wrong_lines_of_all_files_come_in_one_error(tmp_path):
    message = complaint(tmp_path, corpus="{\n", queries="{\n{\n", qrels=BEIR + "q1\td3\tx\n")
    places = [line.rsplit("/", 1)[1].split(": ")[0] for line in message.split("\n")]
    assert places == ["corpus.jsonl:1", "queries.jsonl:1", "queries.jsonl:2", "qrels.tsv:5"]


def test_the_list_of_wrong_lines_ends_after_twenty(tmp_path):
    lines = complaint(tmp_path, corpus="{\n" * 25).split("\n")
    assert len(lines) == 21
    assert lines[-1] == "and 5 more"
    assert len(complaint(tmp_path, corpus="{\n" * 20).split("\n")) == 20


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


@pytest.mark.parametrize("grade", ["4294967297", "1001", "-1001", "1_0", "1.0", "٣", "+"])
def test_a_grade_that_trec_eval_would_count_wrong_is_refused(tmp_path, grade):
    assert "qrels.tsv:2: the grade" in complaint(tmp_path, qrels=f"query-id\tcorpus-id\tscore\nq1\td1\t{grade}\n")


@pytest.mark.parametrize("grade", ["1000", "+2", "-1000"])
def test_other_grades_are_whole_numbers(tmp_path, grade):
    dataset = read_evaluation_set(write_set(tmp_path, qrels=f"q1\td2\t1\nq1\td1\t{grade}\n"))
    assert dataset.qrels["q1"]["d1"] == int(grade)


@pytest.mark.parametrize("broken", [r"n\ud800", r"n\u0000"])
@pytest.mark.parametrize("key", ["_id", "text", "title"])
def test_half_characters_and_nul_are_refused_by_line(tmp_path, key, broken):
    # trec_eval would end an id at a NUL, and the whole process at half a character.
    record = {"_id": '"d1"', "text": '"a"', "title": '"b"'} | {key: f'"{broken}"'}
    line = "{" + ", ".join(f'"{name}": {value}' for name, value in record.items()) + "}\n"
    assert f"corpus.jsonl:1: '{key}' holds a NUL or half a character" in complaint(tmp_path, corpus=line)
