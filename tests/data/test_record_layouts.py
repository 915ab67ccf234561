"""Records in the layouts of others: read where their meaning is plain, else refused with the key and the right one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.data.records.layouts import RecordFormat, layout_of
from ebr.data.training.examples import Example, parse_record
from ebr.errors import DataError

PAIRS, TRIPLETS = RecordFormat.PAIRS, RecordFormat.TRIPLETS


def refusal(record):
    with pytest.raises(DataError) as caught:
        parse_record(record)
    return str(caught.value)


def user(text):
    return [{"role": "user", "content": text}]


# ---------------------------------------------------------------- what is read

ONE = Example("a", ("b",))
TAUGHT = Example("a", ("b",), ("m", "n"))
READ = {
    "ours, pairs": ({"anchor": "a", "positive": "b", "negative": ["m", "n"]}, TAUGHT, PAIRS),
    "ours, triplets": ({"query": "a", "pos": ["b"], "neg": ["m", "n"]}, TAUGHT, TRIPLETS),
    "a query and a positive": ({"query": "a", "positive": "b"}, ONE, PAIRS),
    "an anchor and pos": ({"anchor": "a", "pos": ["b"]}, ONE, TRIPLETS),
    "a mix of all": ({"query": "a", "positive": "b", "neg": ["m", "n"]}, TAUGHT, PAIRS),
    "the other mix of all": ({"anchor": "a", "pos": "b", "negative": ["m", "n"]}, TAUGHT, TRIPLETS),
    "a pair with several positives": ({"anchor": "a", "positive": ["b", "c"]}, Example("a", ("b", "c")), PAIRS),
    "an n-tuple": ({"anchor": "a", "positive": "b", "negative_1": "m", "negative_2": "n"}, TAUGHT, PAIRS),
    "an n-tuple out of order": ({"negative_2": "n", "query": "a", "pos": "b", "negative_1": "m"}, TAUGHT, TRIPLETS),
    "an n-tuple from nought": ({"anchor": "a", "positive": "b", "negative_0": "m", "negative_1": "n"}, TAUGHT, PAIRS),
    "an n-tuple without the dash": ({"query": "a", "positive": "b", "negative1": "m", "negative2": "n"}, TAUGHT, PAIRS),
    "an n-tuple of neg": ({"query": "a", "pos": "b", "neg_1": "m", "neg2": "n"}, TAUGHT, TRIPLETS),
    "an n-tuple with a gap": (
        {"anchor": "a", "positive": "b", "negative_1": "m", "negative_2": None, "negative_3": "n"}, TAUGHT, PAIRS,
    ),
    "sentences": ({"sentence1": "a", "sentence2": "b"}, ONE, PAIRS),
    "sentences of one meaning": ({"sentence1": "a", "sentence2": "b", "label": 1}, ONE, PAIRS),
    "sentences scored 1": ({"sentence1": "a", "sentence2": "b", "score": 1.0}, ONE, PAIRS),
    "sentences that are true": ({"sentence1": "a", "sentence2": "b", "label": True}, ONE, PAIRS),
    "a labelled pair that belongs together": ({"anchor": "a", "positive": "b", "label": "1"}, ONE, PAIRS),
    "a pair with a topic": ({"anchor": "a", "positive": "b", "label": "billing"}, ONE, PAIRS),
    "Tevatron": (
        {
            "query_id": "7",
            "query": "a",
            "positive_passages": [{"docid": "1", "title": "B", "text": "b"}, {"docid": "2", "title": "", "text": "c"}],
            "negative_passages": [{"docid": "3", "title": None, "text": "m"}, {"docid": "4", "text": "n"}],
        },
        Example("a", ("B b", "c"), ("m", "n")),
        TRIPLETS,
    ),
    "Tevatron, plain texts": ({"query": "a", "positive_passages": ["b"], "negative_passages": ["m", "n"]}, TAUGHT, TRIPLETS),
    "ms-swift of old": ({"query": "a", "response": "b", "rejected_response": ["m", "n"]}, TAUGHT, PAIRS),
    "ms-swift of old, without negatives": ({"query": "a", "response": "b", "label": 1}, ONE, PAIRS),
    "ms-swift": (
        {"messages": user("a"), "positive_messages": [user("b")], "negative_messages": [user("m"), user("n")], "images": []},
        TAUGHT,
        PAIRS,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "wanted", "form"), READ.values(), ids=READ)
def test_a_plain_record_of_any_tool_is_read_and_is_nearest_to_one_format_of_ours(record, wanted, form):
    assert parse_record(record) == wanted
    assert layout_of(record).format is form


def test_numbered_negatives_are_in_the_order_of_their_numbers():
    record = {"anchor": "a", "positive": "b", **{f"negative_{number}": str(number) for number in (10, 9, 2, 1, 11)}}
    assert parse_record(record).negatives == ("1", "2", "9", "10", "11")


@given(st.permutations(["anchor", "positive", "negative_1", "negative_2", "negative_10", "id"]))
def test_the_order_of_the_keys_changes_nothing(keys):
    assert parse_record({key: key for key in keys}) == Example(
        "anchor", ("positive",), ("negative_1", "negative_2", "negative_10")
    )


def test_null_is_as_good_as_not_there():
    record = {"anchor": None, "query": "a", "positive": "b", "neg": None, "negative_1": "m", "negative": None, "label": None}
    assert parse_record(record) == Example("a", ("b",), ("m",))
    assert refusal({"query": "a", "pos": None, "id": 7}).startswith("'pos' is missing")


BESIDE = ["neg_scores", "negative_scores", "neg_ranks", "negative_ranks", "neg_id", "neg_ids", "negative_id", "negative_ids"]
BESIDE += [
    "pos_id",
    "positive_ids",
    "pos_docid",
    "neg_doc_ids",
    "negative_document_ids",
    "negative_1_id",
    "neg_scores_reranker",
    "prompt",
    "type",
    "id",
]
BESIDE += ["title", "purpose", "position", "posted_at", "question_id", "source"]


@pytest.mark.parametrize("key", BESIDE)
def test_what_stands_beside_the_texts_is_passed_over(key):
    record = {"query": "a", "pos": ["b"], "neg": ["m", "n"], key: [1, 2]}
    example = parse_record(record)
    assert (example.query, example.positives, example.negatives) == ("a", ("b",), ("m", "n"))


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("positives", ["positive_score", "positive_scores", "pos_score", "pos_scores"])
@pytest.mark.parametrize("negatives", ["negative_scores", "neg_scores", "neg_score"])
def test_scores_are_read_by_either_spelling_whatever_that_of_the_texts(positives, negatives):
    record = {"query": "a", "positive": "b", "neg": ["m", "n"], positives: [3], negatives: [2, 1]}
    assert parse_record(record) == Example("a", ("b",), ("m", "n"), (3.0,), (2.0, 1.0))


def test_scores_as_sentence_transformers_mines_them_are_the_positives_then_those_of_the_negatives():
    record = {"anchor": "a", "positive": "b", "negative_1": "m", "negative_2": "n", "scores": [3, 2, 1]}
    assert parse_record(record) == Example("a", ("b",), ("m", "n"), (3.0,), (2.0, 1.0))
    assert parse_record({**record, "scores": None}) == TAUGHT
    assert refusal({**record, "scores": [3, 2]}) == "'scores' has 2 scores for 3 texts; give one for each, or none"
    both = "has both 'scores' and 'negative_scores', which mean the same; keep one of them"
    assert refusal({**record, "negative_scores": [2, 1]}) == both


def test_a_mined_list_whose_scores_alone_tell_positives_from_negatives_is_refused():
    record = {"anchor": "a", "positive": ["b", "m", "n"], "scores": [0.9, 0.5, 0.4]}
    assert "negatives among them if a labeled list was mined" in refusal(record)
    example = parse_record({"query": "a", "pos": ["b", "c"], "neg": ["m"], "scores": [3, 2, 1]})
    assert (example.positive_scores, example.negative_scores) == ((3.0, 2.0), (1.0,))


# ---------------------------------------------------------------- what is refused

PAIR = {"anchor": "a", "positive": "b"}
TRIPLET = {"query": "a", "pos": ["b"]}
OTHER = "; rename it if it is something else"
MISSPELT = [
    (PAIR, "negatives", "negative", ""),
    (PAIR, "negs", "negative", ""),
    (PAIR, "Negative", "negative", ""),
    (PAIR, "NEG", "negative", ""),
    (PAIR, " negative", "negative", ""),
    (PAIR, "neg ", "negative", ""),
    (PAIR, "hard_neg", "negative", OTHER),
    (PAIR, "hard_negatives", "negative", OTHER),
    (PAIR, "hardNegatives", "negative", OTHER),
    (PAIR, "hard_negative_1", "negative", OTHER),
    (PAIR, "Negative_1", "negative", OTHER),
    (PAIR, "negative_texts", "negative", OTHER),
    (PAIR, "my_neg_list", "negative", OTHER),
    (PAIR, "Negative_Passages", "negative_passages", ""),
    (TRIPLET, "negatives", "neg", ""),
    (TRIPLET, "Neg", "neg", ""),
    (TRIPLET, "hard_neg", "neg", OTHER),
    (TRIPLET, "neg_instruct", "neg", OTHER),
    (TRIPLET, "positives", "pos", ""),
    (TRIPLET, "Pos", "pos", ""),
    (TRIPLET, "pos_1", "pos", OTHER),
    (TRIPLET, "pos2", "pos", OTHER),
    (TRIPLET, "pos_texts", "pos", OTHER),
    (PAIR, "positives", "positive", ""),
    (PAIR, "Positive", "positive", ""),
    (PAIR, "positive ", "positive", ""),
    (PAIR, "positive_1", "positive", OTHER),
    (PAIR, "other_positive", "positive", OTHER),
    (PAIR, "true_pos", "positive", OTHER),
    (PAIR, "anchors", "anchor", ""),
    (PAIR, "Anchor", "anchor", ""),
    (TRIPLET, "queries", "query", ""),
    (TRIPLET, "Query", "query", ""),
    (TRIPLET, "Pos_Scores", "pos_scores", ""),
    (PAIR, "Label", "label", ""),
    (PAIR, "Messages", "messages", ""),
]


@pytest.mark.parametrize(("record", "key", "right", "more"), MISSPELT, ids=[repr(row[1]) for row in MISSPELT])
@pytest.mark.parametrize("value", ["x", ["x"]], ids=["text", "list"])
def test_a_key_that_may_hold_texts_and_is_not_known_is_refused_with_the_right_one(record, key, right, more, value):
    assert refusal({**record, key: value}) == f"has {key!r}; the field is {right!r}{more}"


@given(st.text(st.characters(codec="ascii", categories=["Lu", "Ll", "Nd", "Pc"])), st.text("_x1", max_size=3))
def test_no_key_with_neg_in_it_loses_its_texts_in_silence(before, behind):
    key = f"{before}neg{behind}"
    try:
        assert "lost" in parse_record({**PAIR, key: "lost"}).negatives
    except DataError as error:
        assert key in str(error)


@pytest.mark.parametrize(
    ("record", "key", "other"),
    [
        ({**PAIR, "query": "c"}, "anchor", "query"),
        ({**PAIR, "pos": "c"}, "positive", "pos"),
        ({**PAIR, "negative": "m", "neg": "n"}, "negative", "neg"),
        ({**PAIR, "negative": "m", "negative_1": "n"}, "negative", "negative_1"),
        ({**TRIPLET, "neg": ["m"], "neg2": "n", "neg1": "o"}, "neg", "neg1"),
        ({**TRIPLET, "response": "c"}, "pos", "response"),
        ({**TRIPLET, "positive_passages": ["c"]}, "pos", "positive_passages"),
        ({**TRIPLET, "negative_passages": ["c"], "rejected_response": "d"}, "rejected_response", "negative_passages"),
        ({**PAIR, "positive_score": 1, "pos_scores": [2]}, "positive_score", "pos_scores"),
    ],
)
def test_of_two_keys_that_mean_the_same_neither_is_lost(record, key, other):
    assert refusal(record) == f"has both {key!r} and {other!r}, which mean the same; keep one of them"


NEITHER = "a record has 'anchor' and 'positive', or 'query' and 'pos'"
NEEDED = "every record needs at least one positive text"
UNKNOWN = [
    ({"text": "a", "label": 1}, f"has 'text', 'label'; {NEITHER}"),
    ({"premise": "a", "hypothesis": "b"}, f"has 'premise', 'hypothesis'; {NEITHER}"),
    ({}, f"has nothing; {NEITHER}"),
    ({"query": "a", "answer": "b"}, f"'pos' is missing; {NEEDED}; the record has 'query', 'answer'"),
    ({"anchor": "a", "answer": "b"}, "'positive' is missing; give a text; the record has 'anchor', 'answer'"),
    ({"question": "a", "positive": "b"}, "'anchor' is missing; give a text; the record has 'question', 'positive'"),
    ({"question": "a", "pos": ["b"]}, "'query' is missing; give a text; the record has 'question', 'pos'"),
    ({"sentence1": "a"}, "'sentence2' is missing; give a text"),
    ({"sentence2": "a"}, "'sentence1' is missing; give a text"),
    ({"response": "b"}, "'query' is missing; give a text"),
    ({"messages": user("a")}, "'positive_messages' is missing; give a text"),
]


@pytest.mark.parametrize(("record", "problem"), UNKNOWN)
def test_a_record_whose_layout_is_not_known_is_refused_with_the_keys_that_it_has(record, problem):
    assert refusal(record) == problem


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("pair", [{"sentence1": "a", "sentence2": "b"}, {"query": "a", "response": "b"}, PAIR, TRIPLET])
@pytest.mark.parametrize(
    ("judgement", "mend"),
    [
        ({"label": 0}, "leave the record out, or give its text as a negative of the query"),
        ({"label": False}, "leave the record out, or give its text as a negative of the query"),
        ({"label": "0"}, "leave the record out, or give its text as a negative of the query"),
        ({"score": 0.8}, "keep the pairs that belong together without 'score', or call a teacher's score 'positive_score'"),
        ({"similarity_score": 4.2}, "keep the pairs that belong together without 'similarity_score', or call"),
        ({"label": 2}, "keep the pairs that belong together without 'label', or call a teacher's score 'positive_score'"),
        ({"score": float("nan")}, "keep the pairs that belong together without 'score'"),
        ({"labels": [1, 0, 0]}, "give the texts that belong to the query as 'positive' and the others as 'negative'"),
    ],
)
def test_a_pair_that_a_label_or_a_score_does_not_call_positive_is_never_trained_on(pair, judgement, mend):
    ((key, value),) = judgement.items()
    assert refusal({**pair, **judgement}).startswith(
        f"{key!r} is {value}, and only texts that belong together (1) are trained on as a pair; {mend}"
    )


@pytest.mark.parametrize("label", ["entailment", "neutral", "contradiction"])
def test_sentences_need_a_number_for_a_label(label):
    assert refusal({"sentence1": "a", "sentence2": "b", "label": label}).startswith(f"'label' is {label}, and only")


# ---------------------------------------------------------------- wrapped texts


NO_TEXT = "'text' must be a string, and 'title' too where it is given"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"positive_passages": []}, f"'positive_passages' is empty; {NEEDED}"),
        ({"positive_passages": [{"docid": "1"}]}, f"'positive_passages'[0]: {NO_TEXT}"),
        ({"positive_passages": [{"title": 3, "text": "b"}]}, f"'positive_passages'[0]: {NO_TEXT}"),
        ({"positive_passages": [{"title": " ", "text": "\u200b"}]}, "'positive_passages'[0] is empty; give a text or take it"),
        ({"positive_passages": [["b"]]}, "'positive_passages'[0] is list, not a text; give a text"),
        ({"positive_passages": {"text": "b"}}, "'positive_passages' is dict, not a text; give a text"),
        ({"negative_passages": [{"text": "n"}, 3]}, "'negative_passages'[1] is int, not a text; put it in quotes"),
    ],
)
def test_a_wrong_passage_is_named_by_its_place(change, problem):
    assert refusal({"query": "a", "positive_passages": [{"text": "b"}], **change}).startswith(problem)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"messages": "a"}, '\'messages\' is no list of messages; write [{"role": "user", "content": "…"}]'),
        ({"messages": []}, "'messages' is no list of messages"),
        ({"messages": [{"role": "user"}]}, "'messages' is missing; give a text"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *user("a")]},
            "'messages' has messages of system, user; leave one, and give an instruction as query_prompt or passage_prompt",
        ),
        ({"positive_messages": user("b")}, "'positive_messages'[0] is no list of messages"),
        ({"positive_messages": [user("")]}, "'positive_messages'[0] is empty; give a text or take it out of the list"),
        ({"negative_messages": [user("m"), user("n") * 2]}, "'negative_messages'[1] has messages of user, user; leave one"),
        ({"images": ["a.jpg"]}, "has 'images', and only texts are read; leave such records out"),
        ({"positive_images": [["a.jpg"]]}, "has 'positive_images'; the field is 'positive'"),
    ],
)
def test_a_conversation_is_read_where_it_is_one_message(change, problem):
    assert refusal({"messages": user("a"), "positive_messages": [user("b")], **change}).startswith(problem)


# ---------------------------------------------------------------- lists that are written as text

LISTS = ["['a', 'b']", '["a", "b"]', '["a"]', "['中文']", " [ 'a' ,\n \"it's\" ] ", "['a' 'b']", r"['\d']", '["a\\"b"]']
TEXTS = [
    "[1, 2]",
    "[]",
    "[1] says: 'a'",
    "['a', 1]",
    "[a, b]",
    "['a'",
    "['a'] and ['b']",
    "[x for x in 'ab']",
    "[['a']]",
    "['a']s",
    "[" * 5000 + "]" * 5000,
]


@pytest.mark.parametrize("text", LISTS)
def test_a_list_written_as_text_is_refused_wherever_a_text_is_read(text):
    said = "is a list written as text; write it as a JSON list"
    assert refusal({"anchor": text, "positive": "b"}) == f"'anchor' {said}"
    assert refusal({"anchor": "a", "positive": text}) == f"'positive' {said}"
    assert refusal({"query": "a", "pos": text}) == f"'pos' {said}"
    assert refusal({"query": "a", "pos": ["b"], "neg": ["m", text]}) == f"'neg'[1] {said}"
    assert refusal({"anchor": "a", "positive": "b", "negative_1": text}) == f"'negative_1' {said}"


@pytest.mark.parametrize("text", TEXTS, ids=[text[:20] for text in TEXTS])
def test_a_text_in_brackets_that_is_no_list_of_texts_is_a_text(text):
    assert parse_record({"query": text, "pos": [text], "neg": text}) == Example(text, (text,), (text,))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_every_list_of_texts_is_known_in_either_writing(texts):
    for text in (json.dumps(texts), json.dumps(texts, ensure_ascii=False), repr(texts)):
        assert "is a list written as text" in refusal({"anchor": "a", "positive": text})
