"""Training records: what is read, what is refused and how it is said, and a validation split without leakage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr.data.examples import Example, connected_groups, find_training_files, read_pairs, split_validation
from ebr.errors import DataError

QUICK = settings(deadline=None, max_examples=30, database=None)

TWO = [Example("a", ("b",)), Example("c", ("d",), ("e", "f"))]
RECORDS = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d", "negative": ["e", "f"]}]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(*records):
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def read(tmp_path, text, name="t.jsonl"):
    return read_pairs([write(tmp_path / name, text)])


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
    assert [example.query for example in read_pairs(files)] == ["b", "a"]


BAD = {
    '{"positive": "b"}': "'anchor' is missing; give a text",
    '{"anchor": "a"}': "'positive' is missing; give a text",
    '{"anchor": "a", "positive": null}': "'positive' is missing; give a text",
    '{"anchor": " ", "positive": "b"}': "'anchor' is empty; give a text or remove the record",
    '{"anchor": "a", "positive": ""}': "'positive' is empty; give a text or remove the record",
    '{"anchor": 3, "positive": "b"}': "'anchor' is int, not a text; put it in quotes",
    '{"anchor": "a", "positive": ["b"]}': "'positive' is list, not a text; put it in quotes",
    '{"anchor": "a", "positive": "b", "negative": ""}': "'negative' is empty; leave it out or give a text",
    '{"anchor": "a", "positive": "b", "negative": ["n", 3]}': "'negative' is int, not a text; put it in quotes",
    '{"anchor": "a", "positive": "b", "negative": {"t": "n"}}': "'negative' is dict, not a text; put it in quotes",
    '{"query": "a", "pos": ["b"]}': "has 'query' and 'pos'; this reader wants 'anchor', 'positive' and optionally 'negative'",
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
        read_pairs(files)
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
    with pytest.raises(DataError, match=r"^data_path .*: holds no \.json or \.jsonl file$"):
        find_training_files(str(tmp_path))
    with pytest.raises(DataError, match=r"^data_path .*absent: is no file, folder or glob that matches"):
        find_training_files(str(tmp_path / "absent"))


# ---------------------------------------------------------------- validation split


def unrelated(n):
    return [Example(f"q{i}", (f"p{i}",)) for i in range(n)]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_groups_by_hand():
    examples = [
        Example("a", ("b",)),  # 0: with 3 by "b"
        Example("c", ("d",)),  # 1: with 4, for white space at the ends does not make another text
        Example("e", ("f",)),  # 2: alone
        Example("g", ("h",), ("b",)),  # 3: with 0 by its negative, with 5 by "h"
        Example(" d ", ("i",)),  # 4
        Example("j", ("h",)),  # 5: with 0 only through 3
    ]
    assert sorted(connected_groups(examples)) == [[0, 3, 5], [1, 4], [2]]


words = st.sampled_from("abcdefghijklmnopqrstuvwxyz")
examples_of = st.lists(
    st.builds(Example, words, st.tuples(words), st.lists(words, max_size=1).map(tuple)), min_size=1, max_size=30
)


@QUICK
@given(examples_of, st.floats(0, 0.99), st.integers(0, 9))
def test_split_shares_no_text_and_loses_no_record(examples, share, seed):
    try:
        train, validation = split_validation(examples, share, rng(seed))
    except DataError:
        # Only where the smallest group is more than half of all.
        assert min(map(len, connected_groups(examples))) > len(examples) / 2
        return
    assert {text for e in train for text in e.texts()}.isdisjoint(text for e in validation for text in e.texts())
    assert sorted(map(str, train + validation)) == sorted(map(str, examples))
    assert train
    assert bool(validation) == (share > 0)


@pytest.mark.parametrize(
    ("n", "share", "wanted"), [(100, 0.1, 10), (100, 0.15, 15), (7, 0.5, 4), (5, 0.01, 1), (100, 0.6, 60), (2, 0.9, 1)]
)
def test_share_is_met_to_the_record_when_records_are_unrelated(n, share, wanted):
    train, validation = split_validation(unrelated(n), share, rng())
    assert (len(train), len(validation)) == (n - wanted, wanted)


def test_both_sides_keep_the_order_of_the_file():
    examples = unrelated(40)
    for side in split_validation(examples, 0.5, rng()):
        assert side == sorted(side, key=examples.index)


def test_share_zero_holds_nothing_out():
    assert split_validation(unrelated(3), 0, rng()) == (unrelated(3), [])


@pytest.mark.parametrize("n", [1, 5])
def test_records_that_all_hang_together_cannot_be_split(n):
    with pytest.raises(DataError, match=rf"validation_split 0.1: the {n} records hang together .* set validation_split to 0"):
        split_validation([Example("same", (f"p{i}",)) for i in range(n)], 0.1, rng())


def test_group_larger_than_wanted_is_held_out_when_none_is_smaller():
    pairs = [Example(f"q{i // 3}", (f"p{i}",)) for i in range(9)]
    train, validation = split_validation(pairs, 0.1, rng())
    assert (len(train), len(validation)) == (6, 3)


def test_same_generator_same_split_other_generator_another():
    first, again, other = (split_validation(unrelated(50), 0.2, rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
