"""The leak check: every count by hand, planted copies always found, texts of another alphabet never."""

import gzip
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.data.evaluation.evaluation_set import EvaluationSet
from ebr.data.evaluation.leaks import LeakCheck, LeakedText, find_leaks
from ebr.data.text.normal_form import each_shingle, normal_form
from ebr.data.training.examples import Example
from ebr.data.training.text_table import TextTable
from ebr.retrieval.evaluation.leak_check import RecordedSource

PASSAGE = "red leather shoes for children, with laces and a soft sole"


def dataset_of(queries, documents, qrels=None):
    """Queries q0, … over documents d0, …; qrels by row, without them document i answers query i."""
    query_ids, doc_ids = [f"q{row}" for row in range(len(queries))], [f"d{row}" for row in range(len(documents))]
    by_row = qrels if qrels is not None else [{row: 1} for row in range(len(queries))]
    grades = {f"q{row}": {f"d{doc}": grade for doc, grade in wanted.items()} for row, wanted in enumerate(by_row)}
    return EvaluationSet("set", query_ids, list(queries), doc_ids, list(documents), grades, 0, 0, 0)


def leaks_of(examples, dataset, **options):
    return find_leaks(examples, dataset, TextTable.of(examples), **options)


def counts(check):
    return check.queries, check.answered, check.near_queries, check.documents, check.relevant


def test_each_count_by_hand():
    queries = ["red shoes", "blue lamp", "green cup", "a b c d e f g h i j"]
    documents = ["shoes that are red", "lamp, blue", "cup", "alphabet", "unrelated"]
    examples = [
        Example("red shoes", ("shoes that are red", "another")),  # query, answered, document, relevant
        Example("buy a lamp", ("blue lamp",), ("unrelated",)),  # a query as a positive: not answered; a document, not relevant
        Example("green cup", ("a green cup",)),  # the query alone
        Example("a b c d e f g h i j k", ("alphabet soup",)),  # 10 of 11 words: near
    ]
    check = leaks_of(examples, dataset_of(queries, documents))
    assert (check.n_train_texts, check.n_queries, check.n_documents) == (10, 4, 5)
    assert counts(check) == (3, 1, 1, 2, 1)
    assert check.is_leak
    assert check.examples == (
        LeakedText("answered", "red shoes", "shoes that are red"),
        LeakedText("query", "blue lamp", ""),
        LeakedText("query", "green cup", ""),
        LeakedText("near query", "a b c d e f g h i j", "a b c d e f g h i j k"),
    )


def test_nothing_shared_is_no_leak():
    check = leaks_of([Example("one", ("two",), ("three",))], dataset_of(["four"], ["five"]))
    assert check == LeakCheck(3, 1, 1, 0, 0, 0, 0, 0, ())
    assert not check.is_leak


def test_repeated_training_texts_are_counted_as_often_as_they_stand_there():
    assert leaks_of([Example("one", ("one", "two"), ("two",))] * 3, dataset_of(["four"], ["five"])).n_train_texts == 12


def test_no_training_texts_are_no_leak():
    assert leaks_of([], dataset_of(["four"], ["five"])) == LeakCheck(0, 1, 1, 0, 0, 0, 0, 0, ())


def test_shared_documents_alone_are_counted_and_are_no_leak():
    check = leaks_of([Example("one", ("five",))], dataset_of(["four"], ["five", "six"]))
    assert counts(check) == (0, 0, 0, 1, 1)
    assert not check.is_leak


@pytest.mark.parametrize("field", ["queries", "answered", "near_queries"])
def test_any_leaked_query_is_a_leak(field):
    none = dict.fromkeys(["queries", "answered", "near_queries"], 0)
    assert LeakCheck(1, 1, 1, **{**none, field: 1}, documents=0, relevant=0, examples=()).is_leak


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Red  Shoes\n", "red shoes"),
        ("ＲＥＤ　shoes", "red shoes"),
        ("straße", "STRASSE"),
        ("１２３ｋｇ", "123kg"),
        ("这是　什么", "这是 什么"),
        ("\u0390", "\u0390".upper()),  # folding the case takes this letter apart: it must be put together again
        ("half a \ud800 character", "HALF a \ud800 character"),
    ],
)
def test_case_width_and_white_space_make_no_difference(theirs, ours):
    assert counts(leaks_of([Example(theirs, (theirs,))], dataset_of([ours], [ours]))) == (1, 1, 0, 1, 1)


def test_an_answer_of_another_example_with_that_query_counts_and_that_of_another_query_does_not():
    dataset = dataset_of(["red shoes"], ["a pair of shoes", "a lamp"], [{0: 1, 1: 0}])
    apart = [Example("red shoes", ("something else",)), Example("Red Shoes", ("a pair of shoes",))]
    assert leaks_of(apart, dataset).answered == 1
    crossed = [Example("red shoes", ("a lamp",)), Example("blue shoes", ("a pair of shoes",))]
    assert counts(leaks_of(crossed, dataset)) == (1, 0, 0, 2, 1)


def test_a_negative_of_the_query_is_not_its_answer():
    check = leaks_of([Example("red shoes", ("else",), ("a pair of shoes",))], dataset_of(["red shoes"], ["a pair of shoes"]))
    assert counts(check) == (1, 0, 0, 1, 1)


def test_documents_of_grade_zero_and_those_the_corpus_lacks_answer_nothing():
    dataset = dataset_of(["red shoes"], ["a pair of shoes", "x"], [{0: 0, 7: 1}])
    assert counts(leaks_of([Example("red shoes", ("a pair of shoes",))], dataset)) == (1, 0, 0, 1, 0)


def test_of_two_leaked_answers_the_one_that_is_judged_first_is_shown():
    dataset = dataset_of(["red shoes"], ["a pair of shoes", "a box of shoes", "a lamp"], [{2: 1, 1: 1, 0: 1}])
    check = leaks_of([Example("red shoes", ("a pair of shoes", "a box of shoes"))], dataset)
    assert counts(check) == (1, 1, 0, 2, 2)
    assert check.examples == (LeakedText("answered", "red shoes", "a box of shoes"),)


def test_queries_with_the_same_text_all_count():
    dataset = dataset_of(["Red shoes", "red shoes"], ["one", "two"])
    check = leaks_of([Example("RED SHOES", ("two",))], dataset)
    assert counts(check) == (2, 1, 0, 1, 1)
    assert [example.where for example in check.examples] == ["answered", "query"]


def test_a_document_is_found_without_its_title():
    dataset = dataset_of(["shoes"], [f"Shoe of the year {PASSAGE}"])
    assert counts(leaks_of([Example("shoes", (PASSAGE.upper(),))], dataset)) == (1, 1, 0, 1, 1)
    assert counts(leaks_of([Example("shoes", (f"Shoe of the year {PASSAGE}",))], dataset)) == (1, 1, 0, 1, 1)


def test_a_chinese_document_is_found_without_its_title():
    text = "现代网球起源于英格兰伯明翰的草地网球运动场。"
    dataset = dataset_of(["网球起源于哪里？"], [f"网球 {text}"])
    assert counts(leaks_of([Example("问", (text,))], dataset)) == (0, 0, 0, 1, 1)


def test_a_short_text_or_the_smaller_half_is_not_taken_for_a_document_without_its_title():
    short = dataset_of(["q"], ["help, i lost my card"])
    assert leaks_of([Example("x", ("i lost my card",))], short).documents == 0
    # What stands before the passage is longer than the passage.
    behind = dataset_of(
        ["q"], [f"{'the shop has many things, some of them new and some of them old, and here is one '}{PASSAGE}"]
    )
    assert leaks_of([Example("x", (PASSAGE,))], behind).documents == 0


def test_word_order_and_punctuation_make_a_query_near():
    check = leaks_of([Example("shoes, red!", ("x",))], dataset_of(["red shoes"], ["y"]))
    assert counts(check) == (0, 0, 1, 0, 0)
    assert check.examples == (LeakedText("near query", "red shoes", "shoes, red!"),)


def test_a_query_that_is_both_near_and_equal_counts_as_equal():
    examples = [Example("shoes red", ("x",)), Example("red shoes", ("x",))]
    assert counts(leaks_of(examples, dataset_of(["red shoes"], ["y"]))) == (1, 0, 0, 0, 0)


@pytest.mark.parametrize(("shared", "is_near"), [(9, True), (8, False)])
def test_nine_of_ten_words_are_near_and_eight_of_nine_are_not(shared, is_near):
    query = " ".join(f"w{index}" for index in range(shared + 1))
    check = leaks_of([Example(" ".join(query.split()[1:]), ("x",))], dataset_of([query], ["y"]))
    assert check.near_queries == is_near


def test_a_threshold_that_is_met_exactly_survives_the_rounding_of_floats():
    # 0.28 * 25 is 7.000000000000001. The seven last words of the order are shared: just one of the nineteen looked up.
    words = [f"w{index}" for index in range(10, 35)]
    check = leaks_of([Example(" ".join(words[-7:]), ("x",))], dataset_of([" ".join(words)], ["y"]), near_duplicate=0.28)
    assert check.near_queries == 1


def test_a_query_that_lacks_two_of_twenty_words_is_near_whatever_the_words_are():
    rng = np.random.default_rng(0)
    training = [[f"w{number}" for number in rng.choice(300, 20, replace=False)] for _ in range(100)]
    check = leaks_of(
        [Example(" ".join(words), ("x",)) for words in training],
        dataset_of([" ".join(words[2:]) for words in training], ["y"] * 100),
    )
    assert check.near_queries == 100


def test_chinese_is_compared_by_pairs_of_characters():
    # Ten characters are 9 pairs; with an eleventh they are 10, of which 9 are shared: 0.9. One character changed costs 2 pairs.
    query = "北京大学在什么地方呢"
    assert leaks_of([Example(query + "啊", ("x",))], dataset_of([query], ["y"])).near_queries == 1
    assert leaks_of([Example("北京大学在什么国家呢", ("x",))], dataset_of([query], ["y"])).near_queries == 0
    # As words between spaces these would share nothing; as single characters they would be equal.
    assert leaks_of([Example("上海", ("x",))], dataset_of(["海上"], ["y"])).near_queries == 0
    assert leaks_of([Example(query + "？", ("x",))], dataset_of([query], ["y"])).near_queries == 1


def test_chinese_and_words_stand_side_by_side():
    assert sorted(each_shingle("买iphone手机壳 5 个")) == ["5", "iphone", "个", "买", "手机", "机壳"]


def test_the_nearest_training_text_is_shown():
    words = [f"w{index}" for index in range(20)]
    examples = [
        Example(" ".join(words[:18]), ("x",)),
        Example(" ".join(words[:19]), ("x",)),
        Example(" ".join(words[1:19]), ("x",)),
    ]
    check = leaks_of(examples, dataset_of([" ".join(words)], ["y"]))
    assert check.examples[0].document == " ".join(words[:19])


def test_at_most_ten_examples_are_shown_the_worst_first():
    queries = [f"query number{row}" for row in range(12)]
    documents = [f"document number{row}" for row in range(12)]
    examples = [Example(f"number{row} query", ("x",)) for row in range(4)]
    examples += [Example(queries[row], ("x",)) for row in range(4, 9)]
    examples += [Example(queries[row], (documents[row],)) for row in range(9, 12)]
    check = leaks_of(examples, dataset_of(queries, documents))
    assert [example.where for example in check.examples] == ["answered"] * 3 + ["query"] * 5 + ["near query"] * 2
    assert counts(check) == (8, 3, 4, 3, 3)


def test_training_records_of_every_layout_in_one_folder_are_looked_at(tmp_path):
    (tmp_path / "a.json").write_text('[{"anchor": "q1", "positive": "p1"}]')
    (tmp_path / "b.csv").write_text("query,pos\nq2,p2\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"query": "q3", "positive_passages": [{"title": "p", "text": "3"}]}'))
    files, examples = RecordedSource(str(tmp_path)).read()
    assert [file.name for file in files] == ["a.json", "b.csv", "c.jsonl.gz"]
    assert examples == [Example("q1", ("p1",)), Example("q2", ("p2",)), Example("q3", ("p 3",))]


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="near_duplicate"):
        leaks_of([], dataset_of(["a"], ["b"]), near_duplicate=threshold)


def test_texts_without_words_are_compared_as_they_are():
    check = leaks_of([Example("?!", ("…",))], dataset_of(["?!", "!!", ""], ["…", "", ""]))
    assert counts(check)[:3] == (1, 1, 0)


LATIN = st.text(st.sampled_from(string.ascii_letters + string.digits + " ,.-"), min_size=1, max_size=40)
ANY = st.text(min_size=1, max_size=60).filter(lambda text: text.strip())
GREEK = st.text(st.sampled_from("αβγδεζηθικλμ北京大学地方 "), min_size=1, max_size=40)
FORMS = [str, str.upper, str.title, lambda text: f"  {text}\n", lambda text: text.replace(" ", "\u3000 ")]


@given(st.lists(ANY, min_size=1, max_size=5), st.lists(ANY, max_size=5), st.sampled_from(FORMS), st.data())
def test_a_planted_copy_is_always_found(queries, others, form, data):
    dataset = dataset_of(queries, [f"document {row}" for row in range(len(queries))])
    place = data.draw(st.integers(0, len(queries) - 1))
    examples = [Example(other, ("x",)) for other in others]
    examples.insert(data.draw(st.integers(0, len(others))), Example(form(queries[place]), (form(f"document {place}"),)))
    check = leaks_of(examples, dataset)
    # Upper case is no promise for every script: İ has no lower-case letter of its own.
    if normal_form(form(queries[place])) == normal_form(queries[place]):
        assert check.queries >= 1 and check.answered >= 1 and check.documents >= 1 and check.relevant >= 1 and check.is_leak


@given(st.lists(LATIN, min_size=1, max_size=5), st.lists(GREEK.filter(str.strip), max_size=8))
def test_texts_of_disjoint_alphabets_never_leak(queries, training):
    dataset = dataset_of(queries, [f"document {row}" for row in range(len(queries))])
    if all(query.strip(" ,.-") for query in queries):
        assert counts(leaks_of([Example(text, (text,)) for text in training], dataset)) == (0, 0, 0, 0, 0)


@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=14), min_size=1, max_size=8),
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=14), max_size=12),
    st.sampled_from([0.3, 0.5, 0.8, 0.9, 1.0]),
)
def test_near_queries_are_exactly_those_that_brute_force_finds(queries, training, threshold):
    def text(numbers):
        return " ".join(f"w{number}" for number in numbers)

    check = leaks_of(
        [Example(text(numbers), ("unrelated",)) for numbers in training],
        dataset_of([text(numbers) for numbers in queries], ["y"] * len(queries)),
        near_duplicate=threshold,
    )
    expected = sum(
        any(len({*a} & {*b}) / len({*a} | {*b}) >= threshold for b in training) for a in queries if a not in training
    )
    assert check.near_queries == expected
    assert check.queries == sum(numbers in training for numbers in queries)


def test_real_sets_that_were_filtered_have_no_leak_and_their_own_queries_are_one():
    from ebr.data.evaluation.evaluation_set import read_evaluation_set
    from ebr.data.training.examples import read_examples
    from tests.conftest import SHARED_DATA

    folder = SHARED_DATA / "en_esci"
    if not folder.is_dir():
        pytest.skip("needs the data set en_esci beside the project")
    dataset = read_evaluation_set(folder / "eval")
    examples = read_examples([folder / "train.jsonl"])
    assert leaks_of(examples, dataset).queries == 0
    row_of = {doc_id: row for row, doc_id in enumerate(dataset.doc_ids)}
    answers = [next(row_of[doc] for doc, grade in dataset.qrels[query].items() if grade > 0) for query in dataset.query_ids]
    planted = [Example(query, (dataset.documents[row],)) for query, row in zip(dataset.queries, answers, strict=True)]
    check = leaks_of(planted, dataset)
    assert (check.queries, check.answered) == (len(dataset.queries), len(dataset.queries))
    assert not re.search("near", check.examples[0].where)
