"""Training records: what is read, what is refused and how it is said, and a validation split without leakage."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.data.text.blank import is_blank
from ebr.data.training.answers import rows_without_negatives
from ebr.data.training.examples import Example, find_training_files, read_examples
from ebr.data.training.split import connected_groups, split_validation
from ebr.data.training.text_table import TextTable
from ebr.errors import DataError
from ebr.training.batches.collator import Collator

ROOT = Path(__file__).parents[2]

QUICK = settings(deadline=None, max_examples=30, database=None)

TWO = [Example("a", ("b",)), Example("c", ("d",), ("e", "f"))]
RECORDS = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d", "negative": ["e", "f"]}]


def split(examples, share, rng):
    return split_validation(examples, share, rng, TextTable.of(examples))


def groups_of(examples):
    return connected_groups(TextTable.of(examples).records(examples))


def lonely(examples, batch_size, neg_nums):
    return rows_without_negatives(examples, TextTable.of(examples), batch_size, neg_nums)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(*records):
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def read(tmp_path, text, name="t.jsonl"):
    return read_examples([write(tmp_path / name, text)])


def refusal(tmp_path, text, name="t.jsonl"):
    """The lines of the error, the folder's name taken out."""
    with pytest.raises(DataError) as caught:
        read(tmp_path, text, name)
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n")


@pytest.mark.parametrize(
    "text",
    [
        jsonl(*RECORDS),
        jsonl(*RECORDS) + "\n\n  \n",
        jsonl(*RECORDS).replace("\n", "\r\n"),
        "\ufeff" + jsonl(*RECORDS),
        json.dumps(RECORDS),
        "\n " + json.dumps(RECORDS, indent=2),
        "\ufeff" + json.dumps(RECORDS),
    ],
)
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_array_and_lines_read_the_same_whatever_the_suffix(tmp_path, text, name):
    assert read(tmp_path, text, name) == TWO


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\u3000"])
def test_separator_inside_a_text_splits_no_record(tmp_path, separator):
    (example,) = read(tmp_path, jsonl({"anchor": f"a{separator}b", "positive": "c"}))
    assert example.query == f"a{separator}b"


@pytest.mark.parametrize(("negative", "wanted"), [("n", ("n",)), (["n", "m"], ("n", "m")), ([], ()), (None, ())])
def test_negative_is_a_text_a_list_or_nothing(tmp_path, negative, wanted):
    (example,) = read(tmp_path, jsonl({"anchor": "a", "positive": "b", "negative": negative}))
    assert example.negatives == wanted


def test_texts_stay_as_they_were_written(tmp_path):
    (example,) = read(tmp_path, jsonl({"anchor": " a ", "positive": "b\n", "id": 7}))
    assert example == Example(" a ", ("b\n",))


def test_files_are_read_in_the_order_given(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", jsonl({"anchor": name, "positive": "p"})) for name in "ba"]
    assert [example.query for example in read_examples(files)] == ["b", "a"]


BAD = {
    '{"positive": "b"}': "'anchor' is missing; give a text",
    '{"anchor": "a"}': "'positive' is missing; give a text",
    '{"anchor": "a", "positive": null}': "'positive' is missing; give a text",
    '{"anchor": " ", "positive": "b"}': "'anchor' is empty; give a text or remove the record",
    '{"anchor": "a", "positive": ""}': "'positive' is empty; give a text or remove the record",
    '{"anchor": 3, "positive": "b"}': "'anchor' is int, not a text; put it in quotes",
    '{"anchor": "a", "positive": {"t": "b"}}': "'positive' is dict, not a text; give a text",
    '{"anchor": "a", "positive": []}': "'positive' is empty; every record needs at least one positive text",
    '{"anchor": "a", "positive": "b", "negative": ""}': "'negative' is empty; leave it out or give a text",
    '{"anchor": "a", "positive": "b", "negative": ["n", 3]}': "'negative'[1] is int, not a text; put it in quotes",
    '{"anchor": "a", "positive": "b", "negative": [" "]}': "'negative'[0] is empty; give a text or take it out of the list",
    '{"anchor": "a", "positive": "b", "negative": {"t": "n"}}': "'negative' is dict, not a text; give a text",
    '{"anchor": "a", "positives": "b"}': "has 'positives'; the field is 'positive'",
    '{"anchor": "a", "positive": "b", "negatives": ["n"]}': "has 'negatives'; the field is 'negative'",
    '"a"': "is str, not an object like {…}",
    '{"anchor": "a\\ud83d", "positive": "b"}': "'anchor' holds half a character (a lone "
    r"\ud800–\udfff escape); repair the text",
}


@pytest.mark.parametrize(("record", "problem"), BAD.items())
def test_wrong_record_is_named_by_line_and_by_index_with_how_to_mend_it(tmp_path, record, problem):
    good = jsonl(RECORDS[0])
    head = "1 wrong record; nothing was read:"
    assert refusal(tmp_path, f"{good}\n\n{record}\n{good}") == [head, f"  t.jsonl:3: {problem}"]
    assert refusal(tmp_path, f"[{good}, {record}]", "t.json") == [head, f"  t.json: record 2: {problem}"]


def test_line_that_is_no_json_is_named_with_the_two_forms_there_are(tmp_path):
    _, problem = refusal(tmp_path, jsonl(RECORDS[0]) + "\n{'anchor': 1}")
    assert problem.startswith("  t.jsonl:2: is not valid JSON (")
    assert problem.endswith("); write one object a line, or one array a file")


def test_broken_array_is_one_problem(tmp_path):
    _, problem = refusal(tmp_path, "[{}, ", "t.json")
    assert problem.startswith("  t.json: is not valid JSON (")


def test_byte_that_is_not_utf8_is_named_with_its_line(tmp_path):
    problems = refusal(tmp_path, '{"anchor": "a", "positive": "b"}\n{"anchor": "é"}'.encode("latin-1"))
    assert problems[1] == "  t.jsonl:2: is not UTF-8 (byte 0xe9); save the file as UTF-8"


def test_all_problems_of_all_files_stand_in_one_report(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", "{\n" + jsonl({"anchor": "a"}, RECORDS[0])),
        write(tmp_path / "b.json", json.dumps([7, RECORDS[1], {"positive": "p"}])),
        write(tmp_path / "c.jsonl", b"\xff"),
    ]
    with pytest.raises(DataError) as caught:
        read_examples(files)
    head, *problems = str(caught.value).replace(f"{tmp_path}/", "").split("\n  ")
    assert head == "5 wrong records; nothing was read:"
    assert [problem.split(" ")[0].strip(":") for problem in problems] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "b.json",
        "b.json",
        "c.jsonl:1",
    ]


def test_long_report_is_cut_after_30_and_says_how_many_more(tmp_path):
    lines = refusal(tmp_path, jsonl(*[{"anchor": "a"}] * 33))
    assert lines[0] == "33 wrong records; nothing was read:"
    assert lines[30] == "  t.jsonl:30: 'positive' is missing; give a text"
    assert lines[31:] == ["  … and 3 more"]


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_file_without_records_is_an_error(tmp_path, text):
    with pytest.raises(DataError, match=r"t\.jsonl: no records"):
        read(tmp_path, text)


def test_folder_gives_its_own_files_sorted_and_not_those_below(tmp_path):
    for name in ("b.json", "a.jsonl", "c.JSON", "notes.txt", "below/d.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "[]")
    assert [file.name for file in find_training_files(str(tmp_path))] == ["a.jsonl", "b.json", "c.JSON"]


def test_glob_and_single_file_are_found(tmp_path):
    for name in ("x1.json", "x2.json", "y.json", "x3.txt"):
        write(tmp_path / name, "[]")
    assert [file.name for file in find_training_files(str(tmp_path / "x*"))] == ["x1.json", "x2.json"]
    assert find_training_files(str(tmp_path / "y.json")) == [tmp_path / "y.json"]


def test_nothing_to_read_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"^data_path .*: holds no \.json, \.jsonl, \.csv, \.tsv or \.parquet file$"):
        find_training_files(str(tmp_path))
    with pytest.raises(DataError, match=r"^data_path .*absent: is no file, folder or glob that matches"):
        find_training_files(str(tmp_path / "absent"))


def test_nothing_to_read_names_the_option_that_the_user_typed(tmp_path):
    with pytest.raises(DataError, match=r"^--train_dataset .*: holds no \.json, \.jsonl, \.csv, \.tsv or \.parquet file$"):
        find_training_files(str(tmp_path), option="--train_dataset")
    with pytest.raises(DataError, match=r"^--train_dataset .*absent: is no file, folder or glob"):
        find_training_files(str(tmp_path / "absent"), option="--train_dataset")


# ---------------------------------------------------------------- query / pos / neg


TRIPLETS = [{"query": "a", "pos": ["b"]}, {"query": "c", "pos": ["d"], "neg": ["e", "f"]}]


@pytest.mark.parametrize(
    "text",
    [
        jsonl(*TRIPLETS),
        jsonl(*TRIPLETS).replace("\n", "\r\n") + "\r\n\r\n",
        "\ufeff" + jsonl(*TRIPLETS),
        json.dumps(TRIPLETS),
        "\ufeff\n" + json.dumps(TRIPLETS, indent=2),
    ],
)
def test_triplets_are_read_from_lines_and_from_an_array(tmp_path, text):
    assert read(tmp_path, text) == TWO


@pytest.mark.parametrize(("pos", "wanted"), [("p", ("p",)), (["p"], ("p",)), (["p", "q"], ("p", "q"))])
def test_pos_is_a_text_or_a_list_of_them(tmp_path, pos, wanted):
    (example,) = read(tmp_path, jsonl({"query": "a", "pos": pos}))
    assert example == Example("a", wanted)


@pytest.mark.parametrize(("neg", "wanted"), [("n", ("n",)), (["n", "m"], ("n", "m")), ([], ()), (None, ())])
def test_neg_is_a_text_a_list_or_nothing(tmp_path, neg, wanted):
    (example,) = read(tmp_path, jsonl({"query": "a", "pos": ["b"], "neg": neg}))
    assert example == Example("a", ("b",), wanted)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\u3000"])
def test_separator_inside_a_triplet_splits_no_record(tmp_path, separator):
    record = {"query": f"甲{separator}乙", "pos": [f"丙{separator}丁"], "neg": [f"{separator}戊"]}
    (example,) = read(tmp_path, jsonl(record))
    assert example == Example(f"甲{separator}乙", (f"丙{separator}丁",), (f"{separator}戊",))


def test_chinese_texts_and_escapes_of_them_are_the_same(tmp_path):
    record = {"query": "打印机脱机", "pos": ["重启打印服务", "檢查無線網路"], "neg": ["墨盒可打印兩百頁 🖨"]}
    wanted = [Example("打印机脱机", ("重启打印服务", "檢查無線網路"), ("墨盒可打印兩百頁 🖨",))]
    assert read(tmp_path, jsonl(record)) == read(tmp_path, json.dumps(record)) == wanted


def test_texts_of_a_triplet_stay_as_they_were_written_and_twice_stays_twice(tmp_path):
    (example,) = read(tmp_path, jsonl({"query": " a ", "pos": ["b\n", "b\n"], "neg": "\tc"}))
    assert example == Example(" a ", ("b\n", "b\n"), ("\tc",))


@pytest.mark.parametrize(
    "extra",
    [
        {"pos_scores": None, "neg_scores": []},
        {"prompt": "Represent this:", "type": "normal"},
        {"id": 7, "pos_id": ["x"], "neg_id": None},
        {"title": None, "anchor": None, "negative": None, "hard_neg": None},
    ],
)
def test_other_keys_of_a_triplet_are_passed_over(tmp_path, extra):
    assert read(tmp_path, jsonl({**TRIPLETS[1], **extra})) == TWO[1:]


# ---------------------------------------------------------------- teacher scores


def test_scores_of_a_triplet_stand_beside_its_texts(tmp_path):
    record = {"query": "a", "pos": ["b", "c"], "neg": ["d"], "pos_scores": [0.9, -3], "neg_scores": [1e-3], "neg_ranks": [4]}
    (example,) = read(tmp_path, jsonl(record))
    assert example == Example("a", ("b", "c"), ("d",), (0.9, -3.0), (0.001,))
    assert all(type(score) is float for score in example.positive_scores)


def test_scores_of_a_pair_stand_beside_its_texts(tmp_path):
    record = {"anchor": "a", "positive": "b", "negative": ["d", "e"], "positive_score": 0.9, "negative_scores": [0.2, 0.1]}
    (example,) = read(tmp_path, jsonl(record))
    assert example == Example("a", ("b",), ("d", "e"), (0.9,), (0.2, 0.1))


@pytest.mark.parametrize("score", [2, [2]])
def test_one_text_may_have_its_score_bare_or_in_a_list(tmp_path, score):
    pair = {"anchor": "a", "positive": "b", "negative": "d", "positive_score": score, "negative_scores": score}
    triplet = {"query": "a", "pos": "b", "neg": ["d"], "pos_scores": score, "neg_scores": score}
    wanted = [Example("a", ("b",), ("d",), (2.0,), (2.0,))]
    assert read(tmp_path, jsonl(pair)) == read(tmp_path, jsonl(triplet)) == wanted


@pytest.mark.parametrize("none", [{}, {"pos_scores": None, "neg_scores": None}, {"pos_scores": [], "neg_scores": []}])
def test_no_score_null_and_an_empty_list_are_the_same(tmp_path, none):
    assert read(tmp_path, jsonl({"query": "a", "pos": ["b"], "neg": ["c"], **none})) == [Example("a", ("b",), ("c",))]


SCORED = '{"query": "a", "pos": ["b", "c"], "neg": ["d"], '
BAD_SCORES = {
    SCORED + '"pos_scores": [1.0]}': "'pos_scores' has 1 score for 2 texts; give one for each, or none",
    SCORED + '"pos_scores": 1.0}': "'pos_scores' has 1 score for 2 texts; give one for each, or none",
    SCORED + '"neg_scores": [1, 2, 3]}': "'neg_scores' has 3 scores for 1 text; give one for each, or none",
    '{"query": "a", "pos": "b", "neg_scores": [1]}': "'neg_scores' has 1 score for 0 texts; give one for each, or none",
    SCORED + '"pos_scores": [1, "2"]}': "'pos_scores'[1] is str, not a number; give a number, or leave the scores out",
    SCORED + '"pos_scores": [null, 2]}': "'pos_scores'[0] is NoneType, not a number; give a number, or leave the scores out",
    SCORED + '"neg_scores": true}': "'neg_scores' is bool, not a number; give a number, or leave the scores out",
    SCORED + '"neg_scores": [NaN]}': "'neg_scores'[0] is not a finite number; give one, or leave the scores out",
    SCORED + '"neg_scores": -Infinity}': "'neg_scores' is not a finite number; give one, or leave the scores out",
    SCORED + '"neg_scores": [1' + "0" * 400 + "]}": "'neg_scores'[0] is not a finite number; give one, or leave the scores out",
}


@pytest.mark.parametrize(("record", "problem"), BAD_SCORES.items())
def test_wrong_score_is_named_by_line_and_place(tmp_path, record, problem):
    text = jsonl(TRIPLETS[1]) + "\n" + record
    assert refusal(tmp_path, text) == ["1 wrong record; nothing was read:", f"  t.jsonl:2: {problem}"]


def test_wrong_score_of_a_pair_is_named_by_its_own_key(tmp_path):
    good = {"anchor": "a", "positive": "b", "negative": ["c"]}
    wrong = [{**good, "positive_score": [1, 2]}, {**good, "negative_scores": ["0.5"]}]
    assert refusal(tmp_path, jsonl(*wrong))[1:] == [
        "  t.jsonl:1: 'positive_score' has 2 scores for 1 text; give one for each, or none",
        "  t.jsonl:2: 'negative_scores'[0] is str, not a number; give a number, or leave the scores out",
    ]


def test_negative_that_a_split_takes_away_takes_its_score_along():
    ring = [Example(f"q{i}", (f"p{i}",), (f"p{(i + 1) % 10}", f"n{i}"), (0.9,), (i / 10, -i / 10)) for i in range(10)]
    sides = split(ring, 0.3, rng())
    assert all(sides)
    assert any(len(one.negatives) == 1 for side in sides for one in side)
    for one in (*sides[0], *sides[1]):
        number = int(one.query[1:])
        score_of = {f"p{(number + 1) % 10}": number / 10, f"n{number}": -number / 10}
        assert one.negative_scores == tuple(score_of[text] for text in one.negatives)
        assert one.positive_scores == (0.9,)


BAD_TRIPLETS = {
    '{"pos": ["b"]}': "'query' is missing; give a text",
    '{"query": null, "pos": ["b"]}': "'query' is missing; give a text",
    '{"query": " ", "pos": ["b"]}': "'query' is empty; give a text or remove the record",
    '{"query": 3, "pos": ["b"]}': "'query' is int, not a text; put it in quotes",
    '{"query": ["a"], "pos": ["b"]}': "'query' is list, not a text; give a text",
    '{"query": "a"}': "'pos' is missing; every record needs at least one positive text",
    '{"query": "a", "pos": null}': "'pos' is missing; every record needs at least one positive text",
    '{"query": "a", "pos": []}': "'pos' is empty; every record needs at least one positive text",
    '{"query": "a", "pos": "\\u3000"}': "'pos' is empty; every record needs at least one positive text",
    '{"query": "a", "pos": true}': "'pos' is bool, not a text; put it in quotes",
    '{"query": "a", "pos": {"text": "b"}}': "'pos' is dict, not a text; give a text",
    '{"query": "a", "pos": [""]}': "'pos'[0] is empty; give a text or take it out of the list",
    '{"query": "a", "pos": ["b", "c", "\\t"]}': "'pos'[2] is empty; give a text or take it out of the list",
    '{"query": "a", "pos": ["b", null]}': "'pos'[1] is empty; give a text or take it out of the list",
    '{"query": "a", "pos": ["b", 3.5]}': "'pos'[1] is float, not a text; put it in quotes",
    '{"query": "a", "pos": [["b"]]}': "'pos'[0] is list, not a text; give a text",
    '{"query": "a", "pos": ["b", "\\ud83d"]}': "'pos'[1] holds half a character (a lone "
    r"\ud800–\udfff escape); repair the text",
    '{"query": "a", "pos": ["b"], "neg": ""}': "'neg' is empty; leave it out or give a text",
    '{"query": "a", "pos": ["b"], "neg": 0}': "'neg' is int, not a text; put it in quotes",
    '{"query": "a", "pos": ["b"], "neg": ["n", " "]}': "'neg'[1] is empty; give a text or take it out of the list",
    '{"query": "a", "pos": ["b"], "neg": [{"text": "n"}]}': "'neg'[0] is dict, not a text; give a text",
    '{"query": "a", "anchor": "a", "positive": "b"}': "has both 'anchor' and 'query', which mean the same; keep one of them",
    '{"query": "a", "positives": ["b"]}': "has 'positives'; the field is 'pos'",
    '{"query": "a", "pos": ["b"], "negatives": ["n"]}': "has 'negatives'; the field is 'neg'",
    '["a", "b"]': "is list, not an object like {…}",
    "null": "is NoneType, not an object like {…}",
}


@pytest.mark.parametrize(("record", "problem"), BAD_TRIPLETS.items())
def test_wrong_triplet_is_named_by_line_and_by_index_with_how_to_mend_it(tmp_path, record, problem):
    good = jsonl(TRIPLETS[1])
    head = "1 wrong record; nothing was read:"
    assert refusal(tmp_path, f"{good}\n\n{record}\n{good}") == [head, f"  t.jsonl:3: {problem}"]
    assert refusal(tmp_path, f"[{good}, {record}]", "t.json") == [head, f"  t.json: record 2: {problem}"]


def test_all_wrong_lines_of_all_files_are_reported_at_once_and_a_separator_in_a_text_counts_no_line(tmp_path):
    above = jsonl({"query": "a\u2028b\x85c", "pos": ["d\u2029e"]})
    files = [
        write(tmp_path / "a.jsonl", "\ufeff" + above + '\n{"query": "中文", "pos": []}\n' + above + '\n{"query": "a"'),
        write(tmp_path / "b.jsonl", jsonl({"pos": "p"}, TRIPLETS[0], {"anchor": "a", "positives": "p"})),
    ]
    with pytest.raises(DataError) as caught:
        read_examples(files)
    head, *problems = str(caught.value).replace(f"{tmp_path}/", "").split("\n  ")
    assert head == "4 wrong records; nothing was read:"
    assert [problem.split(": ")[0] for problem in problems] == ["a.jsonl:2", "a.jsonl:4", "b.jsonl:1", "b.jsonl:3"]


@pytest.mark.parametrize("text", ["", "\ufeff\n", "[]"])
def test_file_without_triplets_is_an_error(tmp_path, text):
    with pytest.raises(DataError, match=r"t\.jsonl: no records"):
        read(tmp_path, text)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="["), min_size=1).filter(
    lambda text: not is_blank(text)
)


@QUICK
@given(st.lists(st.builds(Example, texts, st.lists(texts, min_size=1).map(tuple), st.lists(texts).map(tuple)), min_size=1))
def test_what_is_written_as_triplets_is_read_back(tmp_path_factory, examples):
    records = [{"query": e.query, "pos": list(e.positives), "neg": list(e.negatives)} for e in examples]
    assert read(tmp_path_factory.mktemp("t"), jsonl(*records)) == examples


def test_sample_data_reads_whole():
    examples = read_examples([ROOT / "datasets" / "sample_data.jsonl"])
    assert len(examples) == 36
    assert examples[0].query == "打印机显示脱机如何恢复"
    assert [len(part) for part in (examples[0].positives, examples[0].negatives)] == [2, 1]
    assert sum(not example.negatives for example in examples) == 6


# ---------------------------------------------------------------- batches of one

LONELY = [
    Example("q", ("p",), ("n",)),  # 0: taught by n
    Example("q", ("r",), ("p ",)),  # 1: its one negative is right for the same query in 0
    Example("s", ("p",)),  # 2: none to draw
    Example("t", ("u", "v"), (" v", "u")),  # 3: its negatives are its own positives
    Example("t", ("u",), ("v", "p")),  # 4: v is right for t, p is right for another query only
    Example(" q\n", ("n ",)),  # 5: the query of 0 with white space, so that n is right for 0 too
]


def test_row_is_lonely_when_every_negative_is_right_for_its_query():
    assert lonely(LONELY[:5], batch_size=1, neg_nums=2) == [1, 2, 3]


def test_positive_of_another_record_with_the_query_makes_a_row_lonely_whatever_the_white_space():
    assert lonely(LONELY, batch_size=1, neg_nums=1) == [0, 1, 2, 3, 5]


def test_without_negatives_to_draw_every_row_is_lonely():
    assert lonely(LONELY, batch_size=1, neg_nums=0) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("neg_nums", [0, 2])
def test_no_row_is_lonely_in_company(batch_size, neg_nums):
    assert lonely(LONELY, batch_size, neg_nums) == []


few = st.sampled_from(["a", "b", " B", "c"])


@QUICK
@given(
    st.lists(st.builds(Example, few, st.lists(few, min_size=1, max_size=2).map(tuple), st.lists(few, max_size=3).map(tuple))),
    st.sampled_from([0, 4]),
)
def test_lonely_rows_are_those_that_the_batch_maker_leaves_one_candidate(examples, neg_nums):
    maker = Collator(examples, [], TextTable.of(examples).ids, [], neg_nums, seed=0)
    alone = []
    for row in range(len(examples)):
        drawn = maker.draw(row)
        candidates = np.array([maker.ids[text] for text in (drawn.positive, *drawn.negatives)])
        if maker.false_negative_mask([row], candidates).sum() == 1:
            alone.append(row)
    assert lonely(examples, 1, neg_nums) == alone


# ---------------------------------------------------------------- validation split


def unrelated(n):
    return [Example(f"q{i}", (f"p{i}",)) for i in range(n)]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_file_that_is_still_being_written_is_passed_over(tmp_path):
    write(tmp_path / "whole.jsonl", jsonl(*RECORDS))
    write(tmp_path / ".half.partial-1-ab.jsonl", jsonl(*RECORDS))
    assert [file.name for file in find_training_files(str(tmp_path))] == ["whole.jsonl"]


def test_groups_by_hand():
    examples = [
        Example("a", ("b",)),  # 0: with 3 by "b"
        Example("c", ("d",)),  # 1: with 4, for neither white space nor case makes another text
        Example("e", ("f",)),  # 2: alone
        Example("g", ("h",), ("b",)),  # 3: not with 0, whose "b" is only its negative; with 5 by "h"
        Example(" D ", ("i",)),  # 4
        Example("j", ("h",)),  # 5: with 3
    ]
    assert sorted(groups_of(examples)) == [[0], [1, 4], [2], [3, 5]]


words = st.sampled_from("abcdefghijklmnopqrstuvwxyz")
examples_of = st.lists(
    st.builds(Example, words, st.tuples(words), st.lists(words, max_size=1).map(tuple)), min_size=1, max_size=30
)


def with_fewer_negatives(example):
    for n in range(len(example.negatives) + 1):
        for kept in combinations(example.negatives, n):
            yield replace(example, negatives=kept)


def test_negatives_that_are_others_positives_do_not_stand_in_the_way_of_a_split():
    ring = [Example(f"q{i}", (f"p{i}",), (f"p{(i + 1) % 10}", f"n{i}", "of all")) for i in range(10)]
    train, validation = split(ring, 0.2, rng())
    assert (len(train), len(validation)) == (8, 2)
    held, kept = ({text for e in side for text in (e.query, *e.positives)} for side in (validation, train))
    for side, others in ((train, held), (validation, kept)):
        for e in side:
            number = e.query.removeprefix("q")
            neighbour = f"p{(int(number) + 1) % 10}"
            assert (neighbour in e.negatives) == (neighbour not in others)
            assert f"n{number}" in e.negatives
            # Training has the more to learn from it.
            assert ("of all" in e.negatives) == (side is train)


@pytest.mark.parametrize("again", [str.upper, str.title, lambda text: f" {text}\n", lambda text: text.replace("1", "１")])
def test_texts_that_differ_in_case_width_or_white_space_stay_on_one_side(again):
    whole = unrelated(20)
    whole += [Example(again(one.query), ("another",)) for one in whole[:5]]
    whole += [Example(f"r{i}", (f"s{i}",), (again(f"p{i}"),)) for i in range(20)]
    train, validation = split(whole, 0.4, rng())
    ids = TextTable.of(whole).ids
    of_train, of_validation = ({ids[text] for one in side for text in one.texts()} for side in (train, validation))
    assert of_train.isdisjoint(of_validation)
    # Five queries stand twice, with one answer for all; only negatives are ever left out.
    assert len(train) + len(validation) == len(whole)
    assert any(not one.negatives for one in [*train, *validation] if one.query.startswith("r"))


@QUICK
@given(examples_of, st.floats(0, 0.99), st.integers(0, 9))
def test_split_shares_no_text_and_loses_no_record(examples, share, seed):
    try:
        train, validation = split(examples, share, rng(seed))
    except DataError:
        # Only where the smallest group is more than half of all.
        assert min(map(len, groups_of(examples))) > len(examples) / 2
        return
    assert {text for e in train for text in e.texts()}.isdisjoint(text for e in validation for text in e.texts())
    # An example is what it was, less negatives of its own.
    assert sorted((e.query, e.positives) for e in train + validation) == sorted((e.query, e.positives) for e in examples)
    assert Counter(map(str, train + validation)).keys() <= {str(part) for e in examples for part in with_fewer_negatives(e)}
    assert train
    assert bool(validation) == (share > 0)


@pytest.mark.parametrize(
    ("n", "share", "wanted"), [(100, 0.1, 10), (100, 0.15, 15), (7, 0.5, 4), (5, 0.01, 1), (100, 0.6, 60), (2, 0.9, 1)]
)
def test_share_is_met_to_the_record_when_records_are_unrelated(n, share, wanted):
    train, validation = split(unrelated(n), share, rng())
    assert (len(train), len(validation)) == (n - wanted, wanted)


def test_both_sides_keep_the_order_of_the_file():
    examples = unrelated(40)
    for side in split(examples, 0.5, rng()):
        assert side == sorted(side, key=examples.index)


def test_share_zero_holds_nothing_out():
    assert split(unrelated(3), 0, rng()) == (unrelated(3), [])


@pytest.mark.parametrize("n", [1, 5])
def test_records_that_all_hang_together_cannot_be_split(n):
    with pytest.raises(DataError, match=rf"validation_split 0.1: the {n} records hang together .* set validation_split to 0"):
        split([Example("same", (f"p{i}",)) for i in range(n)], 0.1, rng())


def test_group_larger_than_wanted_is_held_out_when_none_is_smaller():
    pairs = [Example(f"q{i // 3}", (f"p{i}",)) for i in range(9)]
    train, validation = split(pairs, 0.1, rng())
    assert (len(train), len(validation)) == (6, 3)


def test_same_generator_same_split_other_generator_another():
    first, again, other = (split(unrelated(50), 0.2, rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
