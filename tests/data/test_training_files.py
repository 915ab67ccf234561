"""Training records of either format: read, turned, written, read back."""

import datetime
import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.data.text.blank import is_blank
from ebr.data.training.examples import Example, find_training_files, read_examples
from ebr.data.training.files import (
    Negative,
    Record,
    RecordFormat,
    as_format,
    read_training_records,
    to_object,
    training_file,
)
from ebr.errors import DataError

PAIRS, TRIPLETS = RecordFormat.PAIRS, RecordFormat.TRIPLETS


def lines(path, *records):
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def test_the_keys_say_the_format_and_other_keys_are_kept(tmp_path):
    pairs = lines(
        tmp_path / "p.jsonl", {"anchor": "a", "positive": "b", "id": 7}, {"anchor": "c", "positive": "d", "negative": "e"}
    )
    assert read_training_records([pairs]) == (
        PAIRS,
        [Record("a", ("b",), (), {"id": 7}), Record("c", ("d",), ("e",), {})],
    )
    triplets = lines(tmp_path / "t.jsonl", {"query": "q", "pos": ["x", "y"], "neg": "n", "type": "qa", "prompt": "p: "})
    assert read_training_records([triplets]) == (TRIPLETS, [Record("q", ("x", "y"), ("n",), {"type": "qa", "prompt": "p: "})])


def user(text):
    return [{"role": "user", "content": text}]


PASSAGES = {"positive_passages": [{"docid": "1", "title": "T", "text": "x"}], "negative_passages": [{"text": "n"}]}


@pytest.mark.parametrize(
    ("record", "form", "wanted"),
    [
        ({"query": "q", "positive": "x", "id": 1}, PAIRS, Record("q", ("x",), (), {"id": 1})),
        ({"anchor": "q", "pos": ["x", "y"], "id": 1}, TRIPLETS, Record("q", ("x", "y"), (), {"id": 1})),
        (
            {"anchor": "q", "positive": "x", "negative_2": "m", "negative_1": "n", "scores": [3, 2, 1]},
            PAIRS,
            Record("q", ("x",), ("n", "m"), {}),
        ),
        (
            {"sentence1": "q", "sentence2": "x", "label": 1, "set": "s"},
            PAIRS,
            Record("q", ("x",), (), {"label": 1, "set": "s"}),
        ),
        ({"query_id": "7", "query": "q", **PASSAGES}, TRIPLETS, Record("q", ("T x",), ("n",), {"query_id": "7"})),
        ({"query": "q", "response": "x", "rejected_response": ["n"]}, PAIRS, Record("q", ("x",), ("n",), {})),
        (
            {"messages": user("q"), "positive_messages": [user("x")], "negative_messages": [user("n")], "channel": "c"},
            PAIRS,
            Record("q", ("x",), ("n",), {"channel": "c"}),
        ),
    ],
)
def test_a_record_of_another_tool_is_written_as_what_it_is_nearest_to_with_its_other_keys(tmp_path, record, form, wanted):
    path = lines(tmp_path / "x.jsonl", record)
    assert read_training_records([path]) == (form, [wanted])
    with training_file(tmp_path / "y.jsonl") as append:
        append(to_object(wanted, form, [0.5] * len(wanted.positives), [Negative(text, 0.1, 1) for text in wanted.negatives]))
    (before,), (after,) = read_examples([path]), read_examples([tmp_path / "y.jsonl"])
    assert (after.query, after.positives, after.negatives) == (before.query, before.positives, before.negatives)
    assert read_training_records([tmp_path / "y.jsonl"]) == (form, [wanted])


def test_pairs_of_which_one_has_several_positives_are_triplets_and_none_is_lost(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"anchor": "a", "positive": "x"}, {"query": "b", "positive": ["y", "z"]})
    assert read_training_records([path]) == (TRIPLETS, [Record("a", ("x",), (), {}), Record("b", ("y", "z"), (), {})])


def test_layouts_that_are_nearest_to_one_format_may_stand_side_by_side(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"anchor": "a", "positive": "x"}, {"sentence1": "b", "sentence2": "y"})
    assert read_training_records([path]) == (PAIRS, [Record("a", ("x",), (), {}), Record("b", ("y",), (), {})])
    path = lines(tmp_path / "x.jsonl", {"query": "a", "pos": "x"}, {"query": "b", "response": "y"})
    with pytest.raises(DataError, match=r"l:2: has 'query' and 'response', but the records before have 'query' and 'pos'"):
        read_training_records([path])


def test_a_labelled_list_is_no_list_of_positives_for_mining_either(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"anchor": "a", "positive": ["x", "n"], "scores": [0.9, 0.5]})
    with pytest.raises(DataError, match="negatives among them"):
        read_training_records([path])


def test_what_json_has_no_form_for_is_written_as_text(tmp_path):
    with training_file(tmp_path / "x.jsonl") as append:
        append({"anchor": "a", "day": datetime.date(2026, 1, 2), "price": Decimal("1.50")})
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"anchor": "a", "day": "2026-01-02", "price": "1.50"}


def test_scores_of_before_are_forgotten(tmp_path):
    old = {
        "query": "q",
        "pos": ["x"],
        "neg": ["n"],
        "pos_scores": [1],
        "neg_scores": [0.5],
        "neg_ranks": [1],
        "negative_ranks": [2],
    }
    assert read_training_records([lines(tmp_path / "t.jsonl", old)])[1][0].rest == {}


def test_mixed_formats_are_one_error_that_names_where_the_second_begins(tmp_path):
    first = lines(tmp_path / "a.jsonl", {"anchor": "a", "positive": "b"})
    second = lines(tmp_path / "b.jsonl", {"anchor": "a", "positive": "b"}, *[{"query": "q", "pos": "p"}] * 40)
    with pytest.raises(DataError) as caught:
        read_training_records([first, second])
    assert len(str(caught.value).splitlines()) == 2
    assert "b.jsonl:2: has 'query' and 'pos', but the records before have 'anchor' and 'positive'" in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a", "label": 1}, "has 'text', 'label'; a record has 'anchor' and 'positive', or 'query' and 'pos'"),
        ({}, "has nothing"),
        ({"anchor": "a"}, "'positive' is missing"),
        ({"query": "a", "pos": []}, "'pos' is empty"),
        ({"query": "a", "positives": "b"}, "has 'positives'; the field is 'pos'"),
        ({"positive": "b"}, "'anchor' is missing"),
    ],
)
def test_wrong_records_say_what_is_wrong(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        read_training_records([lines(tmp_path / "x.jsonl", record)])


def test_pairs_of_one_query_become_one_triplet():
    records = [
        Record("Red shoe", ("p1",), ("n1",), {"id": 1}),
        Record("lamp", ("p2",), (), {}),
        Record(" red  shoe", ("p3",), ("n1", "n2"), {"id": 2}),
        Record("red shoe", ("p1 ",), (), {}),
    ]
    assert as_format(records, PAIRS, TRIPLETS) == [
        Record("Red shoe", ("p1", "p3"), ("n1", "n2"), {"id": 1}),
        Record("lamp", ("p2",), (), {}),
    ]


def test_a_triplet_becomes_one_pair_for_each_positive():
    record = Record("q", ("a", "b"), ("n",), {"id": 1})
    assert as_format([record], TRIPLETS, PAIRS) == [
        Record("q", ("a",), ("n",), {"id": 1}),
        Record("q", ("b",), ("n",), {"id": 1}),
    ]
    assert as_format([record], TRIPLETS, TRIPLETS) == [record]


def test_an_object_has_its_texts_scores_ranks_and_whatever_else_stood_in_the_record():
    negatives = [Negative("n", 0.1234567, None), Negative("m", 0.5, 3)]
    assert to_object(Record("q", ("a", "b"), ("n",), {"id": 1}), TRIPLETS, [0.9, 0.8], negatives) == {
        "query": "q",
        "pos": ["a", "b"],
        "neg": ["n", "m"],
        "pos_scores": [0.9, 0.8],
        "neg_scores": [0.123457, 0.5],
        "neg_ranks": [None, 3],
        "id": 1,
    }
    assert to_object(Record("q", ("a",), (), {}), PAIRS, [0.9], negatives[1:]) == {
        "anchor": "q",
        "positive": "a",
        "negative": ["m"],
        "positive_score": 0.9,
        "negative_scores": [0.5],
        "negative_ranks": [3],
    }


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="["), min_size=1).filter(
    lambda text: not is_blank(text)
)
groups = st.lists(
    st.tuples(texts, st.lists(texts, min_size=1, max_size=3), st.lists(texts, max_size=2)), min_size=1, max_size=4
)


def test_pairs_that_are_joined_lose_the_lists_that_ran_beside_one_pairs_texts():
    rest = {"pos_id": [1], "neg_id": [7, 8], "neg_note": "a text", "id": 5, "tags": ["x"]}
    first = Record("q", ("a",), ("m", "n"), rest)
    assert as_format([first], PAIRS, TRIPLETS) == [first]
    (joined,) = as_format([first, Record("q", ("b",), ("n",), {"pos_id": [2]})], PAIRS, TRIPLETS)
    # The negatives are those of the first pair: what ran beside them still fits.
    assert joined.rest == {"neg_id": [7, 8], "neg_note": "a text", "id": 5, "tags": ["x"]}
    (joined,) = as_format([first, Record("q", ("a",), ("o",), {})], PAIRS, TRIPLETS)
    assert joined.rest == {"pos_id": [1], "neg_note": "a text", "id": 5, "tags": ["x"]}


def test_a_triplet_that_becomes_pairs_loses_the_list_that_ran_beside_its_positives():
    record = Record("q", ("a", "b"), ("n",), {"pos_id": [1, 2], "neg_id": [3]})
    assert [pair.rest for pair in as_format([record], TRIPLETS, PAIRS)] == [{"neg_id": [3]}] * 2


def test_a_list_that_ran_beside_other_negatives_is_not_written():
    record = Record("q", ("a",), ("n",), {"pos_id": [1], "neg_id": [3]})
    same, more, other = (
        to_object(record, TRIPLETS, [0.9], [Negative(text, 0.1, 1) for text in texts]) for texts in ("n", "nm", "m")
    )
    assert same["neg_id"] == [3] and "neg_id" not in more and "neg_id" not in other
    assert same["pos_id"] == more["pos_id"] == other["pos_id"] == [1]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@given(written=groups)
def test_what_is_written_is_what_training_reads(tmp_path_factory, suffix, written):
    for form in (PAIRS, TRIPLETS):
        path = tmp_path_factory.mktemp("written") / f"file{suffix}"
        with training_file(path) as append:
            for query, positives, negatives in written:
                kept = positives if form is TRIPLETS else positives[:1]
                record = Record(query, tuple(kept), (), {"id": 1})
                append(to_object(record, form, [0.5] * len(kept), [Negative(text, 0.1, 1) for text in negatives]))
        n = 1 if form is PAIRS else None
        assert read_examples([path]) == [
            Example(query, tuple(right[:n]), tuple(wrong), (0.5,) * len(right[:n]), (0.1,) * len(wrong))
            for query, right, wrong in written
        ]
        assert path.read_bytes().endswith(b"\n")


def test_half_a_character_in_an_unchecked_key_is_written_as_it_came(tmp_path):
    with training_file(tmp_path / "x.jsonl") as append:
        append({"anchor": "退", "id": "\ud800"})
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"anchor": "退", "id": "\ud800"}


def test_a_manifest_beside_a_training_file_is_no_training_file(tmp_path):
    for name in ("mined.jsonl", "mined.jsonl.manifest.json"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in find_training_files(str(tmp_path))] == ["mined.jsonl"]
    assert [path.name for path in find_training_files(str(tmp_path / "*.json*"))] == ["mined.jsonl"]
