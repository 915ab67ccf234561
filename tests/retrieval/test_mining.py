"""Hard negatives: what is never mined, numbers that add up, files that training reads."""

import gc
import json
import os
import shutil
import weakref
from collections import Counter
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebr import cli
from ebr.config import FinetuneConfig, MiningConfig, TrainConfig
from ebr.data.files.write import hash_file, hash_files, manifest_path, read_manifest
from ebr.data.records.documents import Document
from ebr.data.text.normal_form import is_near, normal_form, shingles
from ebr.data.training.examples import read_examples
from ebr.data.training.files import Negative, Record
from ebr.errors import ConfigError, DataError, ModelError
from ebr.retrieval.mining import report as mining_report
from ebr.retrieval.mining import rules as mining
from ebr.retrieval.mining.command import mine_hard_negatives
from ebr.retrieval.mining.passages import Likenesses, Texts, blocks, distinct, embed_to_disk
from ebr.retrieval.mining.report import Tally, chosen_records, example_lines, examples_markdown
from ebr.retrieval.mining.rules import LeftOut, Mined, Reason, Rules, mine
from ebr.training.plan import plan_finetune
from ebr.workflow.finetuning import train_sentence_transformer

# ---------------------------------------------------------------- without a model


class TableEncoder:
    """Unit vectors of two dimensions by their cosine with the first axis; a query is the first axis itself."""

    def __init__(self, cosines):
        self.cosines = cosines
        self.n_at_once = []
        self.seen = Counter()

    def encode_queries(self, texts):
        return np.array([[1, 0]] * len(texts), np.float32)

    def encode_documents(self, texts):
        self.n_at_once.append(len(texts))
        self.seen.update(texts)
        return np.array([[self.cosines[text], (1 - self.cosines[text] ** 2) ** 0.5] for text in texts], np.float32)


class HashEncoder:
    """Unit vectors of four dimensions that depend on nothing but the text."""

    def encode_queries(self, texts):
        vectors = np.array([np.frombuffer(blake2b(text.encode()).digest(), np.uint8)[:4] for text in texts], np.float32) - 127.5
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_documents = encode_queries


@pytest.fixture
def scratch(tmp_path_factory):
    return lambda: tmp_path_factory.mktemp("scratch")


def record(query, positives, negatives=()):
    return Record(query, tuple(positives), tuple(negatives), {})


def documents(texts):
    """Texts as documents without a title; documents as they are."""
    return [text if isinstance(text, Document) else Document("", text) for text in texts]


def table_mine(scratch, cosines, records, candidates=None, **rules):
    candidates = None if candidates is None else documents(candidates)
    return list(mine(records, candidates, TableEncoder(cosines), Rules(**rules), scratch=scratch()))


def test_what_records_lead_to_is_no_negative_where_chains_have_one_answer(scratch):
    """a → b ← c: c is an answer to a, which no record of a says; whatever stands in another chain is mined as ever."""
    cosines = {"b": 0.9, "c": 0.8, "d": 0.7, "e": 0.6}
    records = [record("a", ["b"]), record("c", ["b"]), record("d", ["e"])]
    chains = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2}
    rules, candidates = Rules(), documents(["b", "c", "d", "e"])
    alone, *_ = mine(records, candidates, TableEncoder(cosines), rules, scratch=scratch())
    chained, *_ = mine(records, candidates, TableEncoder(cosines), rules, scratch=scratch(), chain_of=chains)
    assert names(alone.mined) == [("c", 2), ("d", 3), ("e", 4)]
    assert names(chained.mined) == [("d", 3), ("e", 4)] and reasons(chained)["c"] is Reason.POSITIVE


@pytest.mark.parametrize(("same_answer", "is_mined"), [("auto", False), ("chain", False), ("text", True)])
def test_mined_negatives_leave_chains_what_they_are(same_answer, is_mined, tiny_model, tmp_path):
    """Records of intents: with the wordings of an intent mined as its negatives, training would no longer see a chain."""
    wordings = [
        [f"{colour} {word}" for word in ("shoe", "shirt", "lamp")] for colour in ("red", "blue", "green", "small", "large")
    ]
    records = [{"anchor": a, "positive": b} for one in wordings for a, b in zip(one, [*one[1:], one[0]], strict=True)]
    path = tmp_path / "intents.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    output = tmp_path / "mined.json"
    mine_hard_negatives(
        MiningConfig(
            model_path=tiny_model, data_path=str(path), output_path=output, same_answer=same_answer, max_relative_score=1.0,
            near_duplicate=1.0, num_negatives=20,
        ),
        say=lambda line: None,
    )  # fmt: skip
    of_a_chain = {text: set(one) for one in wordings for text in one}
    found = {text for one in read_examples([output]) for text in one.negatives if text in of_a_chain[one.query]}
    assert bool(found) is is_mined


def names(negatives):
    return [(one.text, one.rank) for one in negatives]


def reasons(mined):
    return {one.text: one.reason for one in mined.left_out}


def test_negatives_are_the_best_candidates_that_nothing_speaks_against(scratch):
    cosines = {"right": 0.8, "too close": 0.77, "Right ": 0.8, "hard": 0.75, "harder": 0.76, "easy": 0.1, "easier": -0.5}
    candidates = ["easier", "easy", "hard", "harder", "too close", "right"]
    (mined,) = table_mine(scratch, cosines, [record("query", ["right"])], candidates, num_negatives=2)
    # 0.95 × 0.8 = 0.76, and 0.76 in float32 is below that.
    assert names(mined.mined) == [("harder", 3), ("hard", 4)]
    assert [one.score for one in mined.mined] == pytest.approx([0.76, 0.75])
    assert mined.positive_scores == pytest.approx([0.8]) and mined.limit == pytest.approx(0.76)
    assert reasons(mined) == {
        "right": Reason.POSITIVE,
        "too close": Reason.SCORE,
        "easy": Reason.SURPLUS,
        "easier": Reason.SURPLUS,
    }
    assert [one.rank for one in mined.left_out] == [1, 2, 5, 6]


def test_a_positive_of_the_query_in_any_row_is_no_negative_of_it(scratch):
    records = [record("Red shoe", ["a"]), record("lamp", ["b"]), record(" red  SHOE", ["C"])]
    first, lamp, third = table_mine(scratch, {"a": 0.9, "b": 0.5, "C": 0.8}, records)
    assert reasons(first) == {"a": Reason.POSITIVE, "C": Reason.POSITIVE}
    assert names(first.mined) == names(third.mined) == [("b", 3)]
    # Another query's positive is a fair negative, as long as it scores below the limit.
    assert names(lamp.mined) == [] and reasons(lamp) == {"a": Reason.SCORE, "b": Reason.POSITIVE, "C": Reason.SCORE}


@pytest.mark.parametrize(
    ("positive", "near", "other"),
    [
        ("one two three four five six seven eight nine ten", "ten nine eight seven six five four three two one!", "one two"),
        (
            "退款会在三个工作日内原路退回您的账户",
            "退款会在三个工作日内原路退回您的账户。",
            "退款会在五个工作日内原路退回您的账户",
        ),
        ("退款会在三个工作日内原路退回您的账户", "　退款会在三个工作日内原路退回您的账户吧", "退款会在三个工作日后原路退回"),
    ],
)
def test_what_is_nearly_a_positive_is_left_out_in_any_writing(scratch, positive, near, other):
    cosines = {positive: 0.9, near.strip(): 0.5, other: 0.4}
    (mined,) = table_mine(scratch, cosines, [record("问", [positive])], [near, other])
    assert names(mined.mined) == [(other, 2)]
    assert reasons(mined) == {near.strip(): Reason.NEAR_POSITIVE}


def test_the_query_itself_is_left_out_also_nearly(scratch):
    cosines = {"p": 0.9, "Buy a shoe": 0.8, "a shoe: buy": 0.7, "buy": 0.6}
    (mined,) = table_mine(scratch, cosines, [record("buy a shoe", ["p"])], ["Buy a shoe", "a shoe: buy", "buy"])
    assert names(mined.mined) == [("buy", 3)]
    assert reasons(mined) == {"Buy a shoe": Reason.QUERY, "a shoe: buy": Reason.QUERY}
    # Without a word in them, only equal texts are near.
    (mined,) = table_mine(scratch, {"p": 0.9, "！！": 0.8, "?": 0.7}, [record("!!", ["p"])], ["！！", "?"])
    assert names(mined.mined) == [("?", 2)] and reasons(mined) == {"！！": Reason.QUERY}


@pytest.mark.parametrize("document", [Document("A title of some length", "Buy  a shoe"), Document("buy a SHOE", "A long body")])
def test_a_document_is_the_query_when_its_title_or_its_text_alone_is(scratch, document):
    cosines = {"p": 0.9, document.whole: 0.8, "other": 0.5}
    (mined,) = table_mine(scratch, cosines, [record("buy a shoe", ["p"])], [document, Document("", "other")])
    assert names(mined.mined) == [("other", 2)]
    assert reasons(mined) == {document.whole: Reason.QUERY}


@pytest.mark.parametrize("key", ["query_id", "qid", "_id", "id"])
def test_a_document_under_the_querys_own_id_is_the_query_whatever_it_says(scratch, key):
    cosines = {"p": 0.9, "cut short": 0.8, "other": 0.5}
    candidates = [Document("", "cut short", "17"), Document("", "other", "18"), Document("", "p", "19")]
    records = [
        *(Record("a long query", ("p",), (), {key: 17}), Record("of no id", ("p",), (), {})),
        Record("of its positive's id", ("p",), (), {key: "19"}),
    ]
    named, nameless, positive = table_mine(scratch, cosines, records, candidates)
    assert names(named.mined) == [("other", 3)]
    assert reasons(named) == {"p": Reason.POSITIVE, "cut short": Reason.QUERY}
    assert names(nameless.mined) == names(positive.mined) == [("cut short", 2), ("other", 3)]
    assert reasons(positive) == {"p": Reason.POSITIVE}


def test_the_limit_is_of_the_records_lowest_positive(scratch):
    records = [record("q", ["high", "low"]), record("q", ["high"])]
    both, one = table_mine(scratch, {"high": 0.9, "low": 0.4, "a": 0.8, "b": 0.3}, records, ["a", "b"])
    assert names(both.mined) == [("b", 2)] and names(one.mined) == [("a", 1), ("b", 2)]
    assert both.limit == pytest.approx(0.38) and one.limit == pytest.approx(0.855)


@pytest.mark.parametrize(
    ("score", "relative", "limit"), [(0.8, 0.5, 0.4), (-0.4, 0.5, -0.6), (0, 0.5, 0), (-0.4, 1, -0.4), (0.3, 1, 0.3)]
)
def test_the_limit_lies_below_the_positive_whatever_its_sign(score, relative, limit):
    assert Rules(max_relative_score=relative).limit([0.9, score]) == pytest.approx(limit)


def test_the_records_own_negatives_stay_with_score_and_rank(scratch):
    cosines = {"p": 0.9, "own": 0.5, "Own": 0.5, "far": 0.1, "elsewhere": 0.2, "new": 0.4}
    records = [record("q", ["p"], ["Own", "elsewhere"])]
    (mined,) = table_mine(scratch, cosines, records, ["own", "new", "far"], top_k=2)
    assert mined.kept == (Negative("Own", pytest.approx(0.5), 1), Negative("elsewhere", pytest.approx(0.2), None))
    assert names(mined.mined) == [("new", 2)] and reasons(mined) == {"own": Reason.ANNOTATED}
    assert names(mined.negatives) == [("Own", 1), ("elsewhere", None), ("new", 2)]


def test_the_records_own_negatives_go_when_they_are_not_wanted(scratch):
    cosines = {"p": 0.9, "own": 0.5}
    (mined,) = table_mine(scratch, cosines, [record("q", ["p"], ["own", "unheard of"])], ["own"], keep_negatives=False)
    assert mined.kept == () and names(mined.mined) == [("own", 1)] and mined.contradictions == ()


def test_an_own_negative_that_is_a_positive_of_the_query_elsewhere_is_not_kept(scratch):
    records = [record("q", ["p"], ["Other", "n"]), record("q", ["other"])]
    first, _ = table_mine(scratch, {"p": 0.9, "other": 0.8, "Other": 0.8, "n": 0.1}, records)
    assert names(first.kept) == [("n", None)] and first.contradictions == ("Other",)


def test_a_document_is_a_positive_when_its_title_or_its_text_alone_is_one(scratch):
    cosines = {
        **{"long text": 0.9, "Title": 0.9, "T  long  TEXT": 0.8, "title other": 0.7, "Title 2 third": 0.6, "title": 0.5},
        "t long text!": 0.4,
    }
    candidates = [
        *(Document("T", " long  TEXT"), Document("title", "other"), Document("Title 2", "third")),
        *(Document("", "title"), Document("", "t long text!")),
    ]
    records = [record("q", ["long text"]), record("q", ["Title"]), record("else", ["long text"])]
    first, second, other = table_mine(scratch, cosines, records, candidates, max_relative_score=1)
    right = {"T  long  TEXT": Reason.POSITIVE, "title other": Reason.POSITIVE, "title": Reason.POSITIVE}
    assert reasons(first) == reasons(second) == right
    # A title that only begins like a positive is another one, and so is a text without a title.
    assert names(first.mined) == [("Title 2 third", 3), ("t long text!", 5)]
    assert reasons(other) == {"T  long  TEXT": Reason.POSITIVE}


def test_of_documents_with_one_whole_every_title_and_text_counts(scratch):
    candidates = [Document("", "a b c"), Document("a", "b c"), Document("a b", "c")]
    cosines = {"a b c": 0.5, "b c": 0.9, "c": 0.9, "b": 0.9}
    results = table_mine(scratch, cosines, [record(text, [text]) for text in ("b c", "c", "b")], candidates)
    assert [names(one.mined) for one in results] == [[], [], [("a b c", 1)]]


def test_an_own_negative_is_known_in_the_document_that_holds_it(scratch):
    cosines = {"p": 0.9, "text": 0.5, "title text": 0.5, "head p": 0.4}
    candidates = [Document("title", "text"), Document("head", "p")]
    (mined,) = table_mine(scratch, cosines, [record("q", ["p"], ["text", "head p"])], candidates)
    assert reasons(mined) == {"title text": Reason.ANNOTATED, "head p": Reason.POSITIVE} and names(mined.mined) == []
    # A document whose text is the positive is no negative, not even one of the record's own.
    assert names(mined.kept) == [("text", None)] and mined.contradictions == ("head p",)


def test_a_positives_score_is_the_same_number_as_in_the_search(scratch):
    class Wide:
        def encode_queries(self, texts):
            rng = [np.random.default_rng(list(text.encode())) for text in texts]
            return np.stack([one.normal(size=384).astype(np.float32) / 20 for one in rng])

        encode_documents = encode_queries

    records = [record(f"query {i}", [f"positive {i}"]) for i in range(30)]
    for mined in mine(records, None, Wide(), Rules(), scratch=scratch()):
        (found,) = [one.score for one in mined.left_out if one.reason is Reason.POSITIVE]
        assert mined.positive_scores == (found,)


def test_nothing_lies_in_the_folder_while_texts_and_vectors_do(scratch):
    folder = scratch()
    seen = []

    class Looking(TableEncoder):
        def encode_documents(self, texts):
            seen.append(list(folder.iterdir()))
            return super().encode_documents(texts)

    mined = mine(
        [record("q", ["p"])] * 3, documents("abc"), Looking(dict.fromkeys("pabc", 0.5)), Rules(), scratch=folder, block=1
    )
    for _ in mined:
        seen.append(list(folder.iterdir()))
    assert seen == [[]] * 7


def test_the_candidates_of_a_query_are_judged_once_and_let_go_after_its_last_record(scratch, monkeypatch):
    judged, n_alive = [], []
    real = mining._Judge.judged

    def watched(self, *arguments):
        judged.append(weakref.ref(found := real(self, *arguments)))
        return found

    monkeypatch.setattr(mining._Judge, "judged", watched)
    records = [record(query, ["p"]) for query in "aabcab"]
    for _ in mine(records, None, TableEncoder({"p": 0.9}), Rules(), scratch=scratch()):
        gc.collect()
        n_alive.append(sum(one() is not None for one in judged))
    # While the last record of a query is looked at, it is there; then only those that come again.
    assert len(judged) == 3 and n_alive == [1, 1, 2, 3, 2, 1]


def test_skip_top_counts_ranks(scratch):
    cosines = {"p": 0.9, "a": 0.5, "b": 0.4, "c": 0.3}
    (mined,) = table_mine(scratch, cosines, [record("q", ["p"])], ["p", "a", "b", "c"], skip_top=2)
    assert reasons(mined) == {"p": Reason.POSITIVE, "a": Reason.SKIPPED}
    assert names(mined.mined) == [("b", 3), ("c", 4)]


def test_a_record_without_any_negative_is_still_there(scratch):
    (mined,) = table_mine(scratch, {"p": 0.9}, [record("q", ["p"])])
    assert mined.negatives == () and reasons(mined) == {"p": Reason.POSITIVE}


def test_candidates_of_one_normal_form_count_once_by_their_first_spelling_and_are_encoded_once(scratch):
    encode = TableEncoder({"p": 0.9, "Twice": 0.5, "once": 0.4})
    candidates = ["Twice", "twice", "once", " Twice ", "ｔｗｉｃｅ"]
    (mined,) = mine([record("q", ["p"])], documents(candidates), encode, Rules(top_k=100), scratch=scratch())
    assert names(mined.mined) == [("Twice", 1), ("once", 2)]
    assert encode.seen == {"Twice": 1, "once": 1, "p": 1}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_of_positives_with_equal_scores_the_order_of_the_records_does_not_choose(scratch, order):
    records = [record("q", ["p"]), record("1", ["B"]), record("2", ["a", "b"])]
    cosines = {"p": 0.9, "a": 0.5, "b": 0.5, "B": 0.5}
    results = table_mine(scratch, cosines, [records[i] for i in order], num_negatives=3)
    # Sorted: B, a, b, p; B stands for b.
    assert names(results[order.index(0)].mined) == [("B", 2), ("a", 3)]


def test_no_more_than_a_block_is_encoded_at_once_and_candidates_are_read_as_they_are_needed(scratch):
    encode = TableEncoder({f"{i}": i / 100 for i in range(25)} | {"p": 0.9})
    asked = []

    def candidates():
        for i in range(25):
            asked.append((i, sum(encode.n_at_once)))
            yield Document("", f"{i}")

    list(mine([record("q", ["p"])], candidates(), encode, Rules(), scratch=scratch(), block=10))
    assert encode.n_at_once == [10, 10, 5, 1]
    # When the 11th candidate is asked for, the first ten are encoded and gone.
    assert asked[9:12] == [(9, 0), (10, 10), (11, 10)]


def test_no_candidate_at_all_is_refused(scratch):
    with pytest.raises(DataError, match="no candidates"):
        table_mine(scratch, {"p": 0.9}, [record("q", ["p"])], [])


# ---------------------------------------------------------------- properties

TEXTS = st.sampled_from(
    [
        *("red shoe", "Red  shoe", "shoe red", "blue shoe", "a red shoe", "lamp", "ＬＡＭＰ", "!!", "??"),
        *(
            "退款三天到账",
            "退款三天到账。",
            "退款五天到账",
            "三天到账退款",
            "到账",
            "退款",
            "one two three",
            "three two one",
            "one two",
        ),
    ]
)
RECORDS = st.lists(
    st.builds(record, TEXTS, st.lists(TEXTS, min_size=1, max_size=3, unique=True), st.lists(TEXTS, max_size=2)),
    min_size=1,
    max_size=8,
)
RULES = st.builds(
    Rules,
    num_negatives=st.integers(1, 4),
    top_k=st.integers(1, 20),
    skip_top=st.integers(0, 2),
    max_relative_score=st.floats(0.05, 1),
    near_duplicate=st.sampled_from([0.4, 0.6, 0.9, 1.0]),
    keep_negatives=st.booleans(),
)
CANDIDATES = st.none() | st.lists(TEXTS, min_size=1)


def hash_mine(tmp_path_factory, records, candidates, rules, block=1024):
    candidates = None if candidates is None else documents(candidates)
    return list(mine(records, candidates, HashEncoder(), rules, scratch=tmp_path_factory.mktemp("scratch"), block=block))


@settings(max_examples=200, deadline=None)
@given(records=RECORDS, candidates=CANDIDATES, rules=RULES)
def test_a_mined_text_is_never_a_positive_of_its_query_nor_the_query_nor_above_the_limit(
    tmp_path_factory, records, candidates, rules
):
    right = {}
    for one in records:
        right.setdefault(normal_form(one.query), set()).update(one.positives)
    for one, mined in zip(records, hash_mine(tmp_path_factory, records, candidates, rules), strict=True):
        forbidden = {one.query, *right[normal_form(one.query)]}
        positives = HashEncoder().encode_documents([text.strip() for text in one.positives])
        lowest = float((positives @ HashEncoder().encode_queries([one.query])[0]).min())
        assert {normal_form(text) for text in right[normal_form(one.query)]}.isdisjoint(
            normal_form(negative.text) for negative in mined.negatives
        )
        for negative in mined.mined:
            assert normal_form(negative.text) not in set(map(normal_form, forbidden))
            assert not any(is_near(shingles(negative.text), shingles(text), rules.near_duplicate) for text in forbidden)
            assert negative.score <= lowest - (1 - rules.max_relative_score) * abs(lowest) + 1e-6
            assert rules.skip_top < negative.rank <= rules.top_k
        assert len(mined.mined) <= rules.num_negatives
        forms = [normal_form(negative.text) for negative in mined.mined]
        assert len(set(forms)) == len(forms)
        assert set(forms).isdisjoint(normal_form(negative.text) for negative in mined.kept)


TITLED = st.lists(st.builds(Document, st.just("") | TEXTS, st.just("") | TEXTS).filter(lambda one: one.whole), min_size=1)


@settings(max_examples=200, deadline=None)
@given(records=RECORDS, candidates=TITLED, rules=RULES)
def test_no_document_is_mined_whose_whole_title_or_text_is_a_positive_of_the_query(
    tmp_path_factory, records, candidates, rules
):
    names_of = {}
    for one in candidates:
        parts = {one.whole, one.title, one.text} - {""}
        names_of.setdefault(normal_form(one.whole), set()).update(map(normal_form, parts))
    for one, mined in zip(records, hash_mine(tmp_path_factory, records, candidates, rules), strict=True):
        same = [other for other in records if normal_form(other.query) == normal_form(one.query)]
        right = {normal_form(text) for other in same for text in other.positives}
        for negative in mined.mined:
            assert names_of[normal_form(negative.text)].isdisjoint(right)
        # And none is called a positive that is not.
        for left in mined.left_out:
            if left.reason is Reason.POSITIVE:
                assert names_of[normal_form(left.text)] & right


@settings(max_examples=100, deadline=None)
@given(records=RECORDS, candidates=CANDIDATES, rules=RULES)
def test_the_numbers_add_up(tmp_path_factory, records, candidates, rules):
    tally = Tally(rules.num_negatives)
    results = hash_mine(tmp_path_factory, records, candidates, rules)
    for mined in results:
        tally.add(mined)
        assert sorted(one.rank for one in (*mined.mined, *mined.left_out)) == list(
            range(1, len(mined.mined) + len(mined.left_out) + 1)
        )
    n_candidates = len({normal_form(text) for text in (candidates or [text for one in records for text in one.positives])})
    counts = tally.counts()
    assert counts.n_looked_at == len(records) * min(rules.top_k, n_candidates)
    assert counts.n_looked_at == counts.n_mined + sum(counts.left_out.values())
    assert counts.n_mined == sum(len(mined.mined) for mined in results)
    assert counts.n_mined == sum(n * count for n, count in counts.records_by_mined.items())
    assert counts.n_records == len(records) == sum(counts.records_by_mined.values())
    if rules.keep_negatives:
        assert counts.n_kept + counts.n_contradictions == sum(len(one.negatives) for one in records)


@settings(max_examples=60, deadline=None)
@given(records=RECORDS, candidates=CANDIDATES, rules=RULES, block=st.integers(1, 5), data=st.data())
def test_neither_the_order_of_the_records_nor_the_size_of_a_block_matters(
    tmp_path_factory, records, candidates, rules, block, data
):
    expected = hash_mine(tmp_path_factory, records, candidates, rules)
    assert hash_mine(tmp_path_factory, records, candidates, rules, block) == expected
    order = data.draw(st.permutations(range(len(records))))
    assert hash_mine(tmp_path_factory, [records[i] for i in order], candidates, rules, block) == [expected[i] for i in order]


# ---------------------------------------------------------------- texts on the disk


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_texts_come_back_by_their_row(tmp_path_factory, texts):
    stored = Texts(tmp_path_factory.mktemp("texts"))
    for row, text in enumerate(texts):
        stored.append(text)
        assert stored[row] == text
    assert [stored[row] for row in range(len(stored))] == texts
    stored.close()


def test_vectors_are_mapped_and_distinct_texts_keep_their_order(tmp_path):
    vectors = embed_to_disk("abc", HashEncoder().encode_queries, tmp_path, block=2, desc="", total=3)
    assert isinstance(vectors, np.memmap) and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, HashEncoder().encode_queries("abc"))
    assert embed_to_disk([], HashEncoder().encode_queries, tmp_path, block=2, desc="", total=0).shape == (0, 0)
    assert list(distinct(["b", "A", "a ", "B", "c"])) == ["b", "A", "c"]
    assert list(blocks("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]


class CountedTexts:
    """Texts by row that are made when asked for, and how often they were."""

    def __init__(self, text_of):
        self.text_of = text_of
        self.n_read = Counter()

    def __getitem__(self, row):
        self.n_read[row] += 1
        return self.text_of(row)


def test_shingles_are_kept_by_how_many_there_are_those_read_last(tmp_path):
    texts = CountedTexts(lambda row: f"{row} a b c")
    kept = Likenesses(texts, most=11)  # two texts of 4 words, and one for each text
    for row in (0, 1, 0, 2, 0, 1):
        assert kept[row] == (f"{row} a b c", f"{row} a b c", {f"{row}", "a", "b", "c"})
    assert texts.n_read == {0: 1, 1: 2, 2: 1}


@pytest.mark.parametrize(
    ("text_of", "is_kept"),
    [
        (lambda row: f"short text {row}", True),
        (lambda row: "".join(chr(0x4E00 + i) for i in range(201)), False),  # 200 pairs of neighbours
        (lambda row: "the same again " * 300, False),  # three words, 4,500 characters
    ],
)
def test_of_long_texts_fewer_are_kept(text_of, is_kept):
    texts = CountedTexts(text_of)
    kept = Likenesses(texts, most=1000)
    for row in [*range(10), 0]:
        kept[row]
    assert texts.n_read[0] == (1 if is_kept else 2)


# ---------------------------------------------------------------- what people read


def some_mined(**changes):
    values = {
        "positive_scores": (0.8,),
        "limit": 0.76,
        "kept": (Negative("had before", 0.2, None),),
        "mined": (Negative("新的负例", 0.7, 4), Negative("another", 0.6, 5)),
        "left_out": (
            LeftOut("the positive", 0.8, 1, Reason.POSITIVE),
            LeftOut("nearly\nthe positive", 0.79, 2, Reason.NEAR_POSITIVE),
            LeftOut("close", 0.78, 3, Reason.SCORE),
            LeftOut("too many", 0.1, 6, Reason.SURPLUS),
        ),
        "contradictions": ("x",),
    }
    return Mined(**{**values, **changes})


def test_the_table_says_what_became_of_every_candidate():
    tally = Tally(3)
    tally.add(some_mined())
    tally.add(some_mined(mined=(), positive_scores=(0.4, 0.3)))
    counts = tally.counts()
    assert (counts.n_looked_at, counts.n_mined, counts.n_kept, counts.n_contradictions) == (10, 2, 2, 2)
    assert counts.records_by_mined == {0: 1, 1: 0, 2: 1, 3: 0}
    assert counts.mean_positive == pytest.approx(0.5) and counts.mean_mined == pytest.approx(0.65)
    lines = counts.table().splitlines()
    for line in (
        "kept as negatives 2 20.0%",
        "nearly a positive of the query 2 20.0%",
        "more than num_negatives 2 20.0%",
        "among the first skip_top 0 0.0%",
        "all that were looked at 10 100.0%",
        "0 new negatives 1 50.0%",
        "all records 2 100.0%",
    ):
        assert line in [" ".join(one.split()) for one in lines]
    # Aligned: every row is as wide as its head.
    assert len({len(line) for line in lines if line.endswith(("%", "share"))}) == 1
    assert lines[-1] == "mean cosine with the query: positives 0.5000, new negatives 0.6500"
    assert json.loads(json.dumps(counts.to_json()))["left_out"]["near_positive"] == 2
    tally = Tally(1)
    tally.add(some_mined(mined=()))
    assert tally.counts().to_json()["mean_mined"] is None


def test_the_table_stays_short_and_the_record_whole():
    tally = Tally(60)
    for n in (0, 1, 10, 11, 59, 60, 60):
        tally.add(some_mined(mined=(Negative("x", 0.5, 1),) * n))
    counts = tally.counts()
    table = counts.table()
    rows = [" ".join(line.split()[:2]) + " " + line.split()[-2] for line in table.splitlines() if "new negatives  " in line]
    assert [row.split()[0] for row in rows] == ["0", "1–9", "10–19", "20–29", "30–39", "40–49", "50–59", "60"]
    assert [int(row.split()[-1]) for row in rows] == [1, 1, 2, 0, 0, 0, 1, 2]
    assert len(counts.to_json()["records_by_mined"]) == 61
    tally = Tally(7)
    tally.add(some_mined())
    assert [line.split()[0] for line in tally.counts().table().splitlines() if " new negative" in line][:-1] == list("01234567")


@pytest.mark.parametrize("most", range(1, 70))
def test_every_record_is_in_one_row_of_the_table(most):
    tally = Tally(most)
    for n in range(most + 1):
        tally.add(some_mined(mined=(Negative("x", 0.5, 1),) * n))
    lines = tally.counts().table().splitlines()
    rows = lines[next(i for i, line in enumerate(lines) if line.startswith("records")) + 1 : -3]
    assert len(rows) <= 8 and sum(int(row.split()[-2]) for row in rows) == most + 1


def test_a_mean_of_nothing_is_a_dash():
    tally = Tally(2)
    tally.add(some_mined(mined=()))
    assert tally.counts().table().endswith("positives 0.8000, new negatives –")


def test_no_example_steers_the_terminal():
    mined = some_mined(mined=(Negative("\x1b]0;owned\x07 text", 0.5, 1),), left_out=())
    for columns in (None, 40):
        lines = example_lines(record("q\x1b[2J", ["p\x00"]), mined, columns=columns)
        assert all(line.isprintable() or "\ufffd" in line for line in lines) and "\x1b" not in "".join(lines)
        assert lines[0] == "query     q\ufffd[2J"
    assert "\x1b" not in examples_markdown([(0, record("q\x1b", ["p"]), mined)], "T")


def test_an_example_shows_texts_on_one_line_with_scores_ranks_and_suspects_but_not_the_positive_itself():
    lines = example_lines(record("the\nquery", ["the positive"]), some_mined())
    assert lines == [
        "query     the query",
        "positive  0.8000            the positive",
        "had       0.2000            had before",
        "new       0.7000  rank 4    新的负例",
        "new       0.6000  rank 5    another",
        "left out  0.7900  rank 2    nearly the positive (nearly a positive of the query)",
        "left out  0.7800  rank 3    close (scores too near the positive)",
    ]
    cut = example_lines(record("查询很长很长", ["the positive"]), some_mined(mined=()), columns=8)
    assert cut[0] == "query     查询很…" and cut[1].endswith("  the pos…") and "no new negative" in cut
    many = some_mined(left_out=(LeftOut("x", 0.7, 1, Reason.QUERY),) * 9)
    assert example_lines(record("q", ["p"]), many)[-1] == "… and 4 more left out for such reasons"


def test_examples_are_chosen_by_seed_and_shown_in_order():
    assert chosen_records(5, 20, 1) == [0, 1, 2, 3, 4]
    chosen = chosen_records(1000, 20, 1)
    assert len(set(chosen)) == 20 and chosen == sorted(chosen) == chosen_records(1000, 20, 1) != chosen_records(1000, 20, 2)
    page = examples_markdown([(41, record("q", ["p"]), some_mined())], "Title")
    assert page.startswith("# Title\n") and "## Record 42" in page and "    new       0.7000  rank 4    新的负例\n" in page


# ---------------------------------------------------------------- the verb


@pytest.fixture
def base(tiny_model, pairs_file, tmp_path):
    return {"model_path": tiny_model, "data_path": str(pairs_file), "output_path": tmp_path / "out" / "mined.jsonl"}


def run(base, **changes):
    return mine_hard_negatives(MiningConfig(**{**base, **changes}), say=lambda _: None)


def loaded(path):
    text = Path(path).read_text(encoding="utf-8")
    return json.loads(text) if str(path).endswith(".json") else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_mined_pairs_are_read_by_finetune(base, suffix, tmp_path, pairs_file):
    result = run(base, output_path=tmp_path / "out" / f"mined{suffix}", max_relative_score=1)
    examples = read_examples([result.path])
    before = read_examples([pairs_file])
    assert [(one.query, one.positives) for one in examples] == [(one.query, one.positives) for one in before]
    assert all(after.negatives[:1] == one.negatives for after, one in zip(examples, before, strict=True))
    assert sum(len(one.negatives) for one in examples) == 30 + result.counts.n_mined > 30
    for row in loaded(result.path):
        assert len(row["negative"]) == len(row["negative_scores"]) == len(row["negative_ranks"])
        # The own negative of a record is no candidate: it is a positive of nobody.
        assert row["negative_ranks"][0] is None
        assert all(score <= row["positive_score"] for score in row["negative_scores"][1:])
        assert row["negative_scores"][1:] == sorted(row["negative_scores"][1:], reverse=True)
    plan = plan_finetune(
        FinetuneConfig(model_name=base["model_path"], data_path=str(result.path), output_dir="saved", validation_split=0.2)
    )
    # Though many a mined negative is another record's positive, records can be held out.
    assert (len(plan.train), len(plan.validation)) == (24, 6)


def test_mined_triplets_are_read_by_train(base, triplets_file):
    result = run(base, data_path=str(triplets_file), max_relative_score=1, num_negatives=3)
    before, after = read_examples([triplets_file]), read_examples([result.path])
    assert [(one.query, one.positives) for one in after] == [(one.query, one.positives) for one in before]
    assert all(new.negatives[: len(old.negatives)] == old.negatives for new, old in zip(after, before, strict=True))
    config = TrainConfig(
        model_name_or_path=base["model_path"],
        train_dataset=str(result.path),
        output_dir="saved",
        finetune_type="lora",
        batch_size=4,
    )
    assert len(plan_finetune(config).train) > 20
    keys = ["query", "pos", "neg", "pos_scores", "neg_scores", "neg_ranks"]
    assert all(list(row) == keys and len(row["pos"]) == len(row["pos_scores"]) for row in loaded(result.path))


FOREIGN = {
    "n-tuples.csv": "query,positive,negative_1,negative_2\nred shoe,the red shoe,blue,green\nlamp,a lamp,blue,\n",
    "swift.jsonl": '{"query": "red shoe", "response": "the red shoe"}\n{"query": "lamp", "response": "a lamp"}',
    "tevatron.json": json.dumps(
        {
            "data": [
                {"query": query, "positive_passages": [{"title": "", "text": text}], "negative_passages": []}
                for query, text in (("red shoe", "the red shoe"), ("lamp", "a lamp"))
            ]
        }
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_records_of_other_tools_are_planned_by_both_front_ends_and_mined(base, name, tmp_path):
    path = tmp_path / name
    path.write_text(FOREIGN[name], encoding="utf-8")
    common = {"output_dir": tmp_path / "saved", "finetune_type": "lora", "validation_split": 0}
    pairs = plan_finetune(FinetuneConfig(model_name=base["model_path"], data_path=str(path), **common))
    options = {"model_name_or_path": base["model_path"], "train_dataset": str(path), "batch_size": 2}
    triplets = plan_finetune(TrainConfig(**common, **options))
    assert pairs.train == triplets.train == read_examples([path])
    result = run(base, data_path=str(path), max_relative_score=1)
    mined = read_examples([result.path])
    assert [(one.query, one.positives) for one in mined] == [("red shoe", ("the red shoe",)), ("lamp", ("a lamp",))]
    assert all(after.negatives[: len(one.negatives)] == one.negatives for after, one in zip(mined, pairs.train, strict=True))
    assert result.format.value == ("triplets" if name.startswith("tevatron") else "pairs")


@pytest.mark.long
def test_train_mine_train(base, triplets_file, tmp_path):
    options = {"model_name_or_path": base["model_path"], "finetune_type": "lora", "batch_size": 8, "max_steps": 1}
    options |= {"report_to": ["none"], "query_prompt": "query ", "passage_prompt": "passage "}
    for round_, train_dataset in enumerate([triplets_file, tmp_path / "mined" / "0.jsonl"]):
        config = TrainConfig(**options, train_dataset=str(train_dataset), output_dir=tmp_path / f"run{round_}")
        final = train_sentence_transformer(config, say=lambda _: None).model_path
        result = run(
            base, model_path=str(final), data_path=str(triplets_file), output_path=tmp_path / "mined" / f"{round_}.jsonl"
        )
        manifest = read_manifest(result.path)
        # Mined with the prompts that the model was tuned with.
        assert manifest["prompts"] == {"query": "query ", "document": "passage "}
        assert manifest["model_sha256"] == read_manifest(final)["model_sha256"]


def test_scores_are_cosines_of_the_model_with_its_prompts(base, tiny_model):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(tiny_model, device="cpu")
    for row in loaded(run(base, query_prompt="query ", passage_prompt="passage ", max_relative_score=1).path)[:5]:
        (query,) = model.encode(["query " + row["anchor"]], normalize_embeddings=True)
        passages = model.encode(["passage " + text for text in [row["positive"], *row["negative"]]], normalize_embeddings=True)
        assert passages @ query == pytest.approx([row["positive_score"], *row["negative_scores"]], abs=2e-5)


def test_records_change_their_format_when_asked_and_other_keys_stay(base, tmp_path):
    path = tmp_path / "triplets.jsonl"
    path.write_text(json.dumps({"query": "buy a red shoe", "pos": ["the red shoe", "a shoe: red"], "id": "x1", "type": "t"}))
    pairs = loaded(run(base, data_path=str(path), output_format="pairs").path)
    assert [(row["anchor"], row["positive"], row["id"], row["type"]) for row in pairs] == [
        ("buy a red shoe", "the red shoe", "x1", "t"),
        ("buy a red shoe", "a shoe: red", "x1", "t"),
    ]
    again = run(base, data_path=str(base["output_path"]), output_path=tmp_path / "back.json", output_format="triplets")
    (row,) = loaded(again.path)
    assert (row["query"], row["pos"], row["id"]) == ("buy a red shoe", ["the red shoe", "a shoe: red"], "x1")
    assert len(row["pos_scores"]) == 2 and "positive_score" not in row


def test_negatives_come_from_the_corpus(base, evaluation_folder):
    result = run(base, corpus=evaluation_folder, max_relative_score=1)
    corpus = {json.loads(line)["text"] for line in (evaluation_folder / "corpus.jsonl").read_text().splitlines()}
    assert read_manifest(result.path)["corpus_sha256"] == hash_file(evaluation_folder / "corpus.jsonl")
    mined = [text for row in loaded(result.path) for text in row["negative"][1:]]
    assert mined and set(mined) <= corpus
    # The corpus is the positives here, in another order; top_k is larger than it.
    assert result.counts.n_looked_at == 30 * 30
    assert result.counts.left_out[Reason.POSITIVE] + result.counts.left_out[Reason.NEAR_POSITIVE] >= 30


def test_the_same_run_gives_the_same_bytes_and_a_manifest_that_runs_it_again(base, pairs_file):
    first = run(base)
    mined, page = first.path.read_bytes(), first.examples_path.read_bytes()
    manifest = read_manifest(first.path)
    assert manifest["kind"] == "mined" and manifest["sha256"] == hash_file(first.path)
    assert manifest["counts"] == first.counts.to_json() and len(manifest["model_sha256"]) == 64
    assert manifest["data_sha256"] == hash_files([pairs_file]) and manifest["corpus_sha256"] is None
    again = mine_hard_negatives(MiningConfig.from_dict(manifest["config"]), say=lambda _: None)
    assert (again.path.read_bytes(), again.examples_path.read_bytes()) == (mined, page)
    assert sorted(path.name for path in first.path.parent.iterdir()) == [
        "mined.jsonl",
        "mined.jsonl.examples.md",
        "mined.jsonl.manifest.json",
    ]


def test_the_shell_mines_and_says_what_it_did(base, capsys):
    flags = [f"--{name}={value}" for name, value in base.items()]
    assert cli.main(["mine", *flags, "--dry_run"]) == 0
    assert "candidates  30 positives of the records" in capsys.readouterr().out
    assert not base["output_path"].parent.exists()
    assert cli.main(["mine", *flags]) == 0
    said = capsys.readouterr().out
    assert "all that were looked at" in said and "kept      30 negatives" in said and said.count("\nquery  ") == 3
    page = base["output_path"].with_name("mined.jsonl.examples.md").read_text(encoding="utf-8")
    assert page.count("## Record") == 20


def test_records_without_a_new_negative_are_said(base):
    result = run(base, max_relative_score=1e-6)
    n = result.counts.records_by_mined[0]
    assert n > 0 and f"{n:,} records got no new negative; they are in the file without one" in result.summary()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("link", ["itself", "symlink", "hard link"])
def test_an_input_is_never_the_output(base, pairs_file, tmp_path, link):
    output = pairs_file if link == "itself" else tmp_path / "link.json"
    if link == "symlink":
        output.symlink_to(pairs_file)
    if link == "hard link":
        os.link(pairs_file, output)
    before = pairs_file.read_bytes()
    with pytest.raises(ConfigError, match="mined in place"):
        run(base, output_path=output)
    assert pairs_file.read_bytes() == before


def test_the_corpus_is_never_overwritten_either(base, tmp_path):
    for name in ("corpus.jsonl", "mined.jsonl.examples.md"):
        corpus = tmp_path / "out" / name
        corpus.parent.mkdir(exist_ok=True)
        corpus.write_text('{"text": "x"}')
        output = corpus if name == "corpus.jsonl" else base["output_path"]
        with pytest.raises(ConfigError, match="mined in place"):
            run(base, corpus=corpus, output_path=output)


def test_an_input_named_like_the_outputs_manifest_is_not_overwritten(base, pairs_file, tmp_path):
    data = tmp_path / "out" / "mined.jsonl.manifest.json"
    data.parent.mkdir()
    shutil.copy(pairs_file, data)
    with pytest.raises(ConfigError, match="mined in place"):
        run(base, data_path=str(data))
    assert data.read_bytes() == pairs_file.read_bytes()


@pytest.fixture
def land(pairs_file, tmp_path, monkeypatch):
    """A folder with records in data/, a link to it, and a place beside it to work from."""
    for folder in ("data", "seat", "other"):
        (tmp_path / folder).mkdir()
    shutil.copy(pairs_file, tmp_path / "data" / "pairs.json")
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path / "seat")
    return tmp_path


FOUND = ["../data", "../link", "../seat/../data", "../data/*.json", "../link/*.json", "../d*/*.json", "../l*k/*.json*"]
FOUND += ["../*/../data/*.json", "../[d]ata/?*.json", "ABSOLUTE/data/*.json", "ABSOLUTE/link"]


@pytest.mark.parametrize("data_path", FOUND)
@pytest.mark.parametrize("folder", ["../data", "../link", "../other/../data", "ABSOLUTE/link"])
def test_an_output_that_the_next_run_would_read_is_refused(base, land, data_path, folder):
    data_path, folder = (text.replace("ABSOLUTE", str(land)) for text in (data_path, folder))
    with pytest.raises(ConfigError, match="looks for records"):
        run(base, data_path=data_path, output_path=Path(folder) / "mined.json")


def test_an_output_in_a_folder_that_the_glob_will_find_is_refused(base, land):
    with pytest.raises(ConfigError, match="looks for records"):
        run(base, data_path="../*/*.json", output_path=Path("../new/mined.json"))


@pytest.mark.parametrize(
    ("data_path", "output_path"),
    [
        ("../data", "../data/sub/mined.json"),
        ("../data/*.json", "../data/mined.jsonl"),
        ("../data/*.json", "../data/sub/mined.json"),
        ("../data/p*.json", "../data/mined.json"),
        ("../d*/*.json", "mined.json"),
        ("../data/pairs.json", "../data/mined.json"),
    ],
)
def test_an_output_that_the_next_run_would_not_read_is_fine(base, land, data_path, output_path):
    assert run(base, data_path=data_path, output_path=Path(output_path)).path.is_file()


@pytest.mark.parametrize("ending", ["", ".manifest.json", ".examples.md"])
@pytest.mark.parametrize("content", ["precious", "{}", "# Mined for other.jsonl\n"])
def test_what_was_not_mined_is_not_overwritten(base, ending, content):
    path = base["output_path"].with_name(base["output_path"].name + ending)
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ConfigError, match="not mined by ebr; delete or move it"):
        run(base)
    assert path.read_text() == content and list(path.parent.iterdir()) == [path]


def test_a_foreign_page_is_not_overwritten_though_the_file_was_mined(base):
    page = run(base).examples_path
    page.write_text("my notes")
    with pytest.raises(ConfigError, match="not mined by ebr"):
        run(base)
    assert page.read_text() == "my notes"


def test_files_that_differ_in_their_suffix_have_a_page_each(base):
    pages = {
        run(base, output_path=base["output_path"].with_suffix(suffix)).examples_path.name for suffix in (".json", ".jsonl")
    }
    assert pages == {"mined.json.examples.md", "mined.jsonl.examples.md"}


def test_a_name_that_steers_the_terminal_can_be_mined_to_twice(base):
    output = base["output_path"].with_name("\x1b退.jsonl")
    run(base, output_path=output)
    assert run(base, output_path=output).examples_path.read_text(encoding="utf-8").startswith("# Mined for \ufffd退.jsonl\n")


@pytest.mark.parametrize("stop", ["page", "data", "manifest"])
@pytest.mark.parametrize("is_first", [True, False])
def test_wherever_a_run_is_killed_no_manifest_is_wrong_and_the_next_run_goes_on(base, monkeypatch, stop, is_first):
    output = base["output_path"]
    if not is_first:
        run(base)
    name = {"page": "mined.jsonl.examples.md", "data": "mined.jsonl", "manifest": "mined.jsonl.manifest.json"}[stop]
    replace = Path.replace

    def killed(path, target):
        if Path(target).name == name:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(base, num_negatives=1)
    monkeypatch.undo()
    assert manifest_path(output).exists() == (stop == "page" and not is_first)
    if manifest_path(output).exists():
        assert read_manifest(output)["sha256"] == hash_file(output)
    assert output.exists() == (stop == "manifest" or not is_first)
    result = run(base, num_negatives=2)
    assert read_manifest(output)["sha256"] == hash_file(result.path)


def test_only_the_unfinished_file_lies_beside_the_output_while_mining_runs(base, monkeypatch):
    seen = []

    def watched(*arguments, **settings):
        for one in mine(*arguments, **settings):
            seen.append(sorted(path.suffix for path in base["output_path"].parent.iterdir()))
            yield one

    monkeypatch.setattr(mining, "mine", watched)
    run(base)
    assert seen == [[".jsonl"]] * 30


def test_an_output_that_cannot_be_written_is_refused(base, tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a folder"):
        run(base, output_path=tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match="no folder that can be written to"):
        run(base, output_path=tmp_path / "file" / "mined.jsonl")
    with pytest.raises(ConfigError, match=r"must end in \.jsonl or \.json"):
        run(base, output_path=tmp_path / "mined.txt")
    with pytest.raises(ConfigError, match="skip_top 5: passes over all top_k 5"):
        run(base, skip_top=5, top_k=5)


def test_a_wrong_model_or_corpus_is_said_before_anything_is_computed(base, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        run(base, model_path="./nowhere")
    (tmp_path / "c.jsonl").write_text('{"text": "fine"}\n{"txt": 1}')
    with pytest.raises(DataError, match=r"c\.jsonl:2: has no text: its keys are 'txt'; expected 'text',"):
        run(base, corpus=tmp_path / "c.jsonl")
    assert not base["output_path"].parent.exists()


def test_an_interrupted_run_leaves_what_was_there(base, monkeypatch):
    result = run(base)
    before = {path: path.read_bytes() for path in result.path.parent.iterdir()}

    def broken(*_, **__):
        yield some_mined()
        raise KeyboardInterrupt

    monkeypatch.setattr(mining, "mine", broken)
    with pytest.raises(KeyboardInterrupt):
        run(base, num_negatives=1)
    assert {path: path.read_bytes() for path in result.path.parent.iterdir()} == before


# ---------------------------------------------------------------- every option reaches its consumer


def observe(monkeypatch, config):
    """Everything that a run is made of, by name."""
    from ebr.model.compute import local_engine as engines
    from ebr.model.encoder import encoder

    seen = {}
    real_load, real_mine, real_chosen = encoder.load_encoder, mine, chosen_records

    def load(name, **settings):
        seen.update({"load.name": name, **{f"load.{key}": value for key, value in settings.items()}})
        return real_load(name, **{**settings, "trust_remote_code": False, "base_model_path": None})

    class Engine(engines.RetrievalEncoder):
        def __init__(self, model, **settings):
            super().__init__(model, **settings)
            seen["batch_size"] = (self.queries.batch_size, self.documents.batch_size)
            seen["query_prompt"], seen["passage_prompt"] = self.queries.prompt, self.documents.prompt

    def recorded(records, candidates, encode, rules, **settings):
        candidates = None if candidates is None else list(candidates)
        seen.update({f"rules.{key}": value for key, value in asdict(rules).items()})
        seen.update({"records": records, "candidates": candidates, "by_words_too": settings["by_words_too"]})
        seen["chain_of"] = settings["chain_of"]
        return real_mine(records, candidates, encode, rules, **settings)

    def chosen(n_records, n_examples, seed):
        seen["seed"] = seed
        return real_chosen(n_records, n_examples, seed)

    monkeypatch.setattr(encoder, "load_encoder", load)
    monkeypatch.setattr(engines, "RetrievalEncoder", Engine)
    monkeypatch.setattr(mining, "mine", recorded)
    monkeypatch.setattr(mining_report, "chosen_records", chosen)
    result = mine_hard_negatives(config, say=lambda _: None)
    monkeypatch.undo()
    return {key: repr(value) for key, value in {**seen, "path": result.path, "format": result.format}.items()}


CHANGES = {
    "model_path": ("MODEL", {"load.name"}),
    "trust_remote_code": (True, {"load.trust_remote_code"}),
    "pooling": ("cls", {"load.pooling"}),
    "base_model_path": ("BASE", {"load.base_model_path"}),
    "data_path": ("SUBSET", {"records"}),
    "corpus": ("CORPUS", {"candidates"}),
    "output_path": ("elsewhere/mined.json", {"path"}),
    "output_format": ("triplets", {"format"}),
    "num_negatives": (1, {"rules.num_negatives"}),
    "teacher": ("hybrid", {"by_words_too"}),
    "same_answer": ("chain", {"chain_of"}),
    "top_k": (7, {"rules.top_k"}),
    "skip_top": (3, {"rules.skip_top"}),
    "max_relative_score": (0.5, {"rules.max_relative_score"}),
    "near_duplicate": (0.5, {"rules.near_duplicate"}),
    "keep_negatives": (False, {"rules.keep_negatives"}),
    "max_seq_length": (16, {"load.max_seq_length"}),
    "prompt": ("both: ", {"query_prompt", "passage_prompt"}),
    "query_prompt": ("q: ", {"query_prompt"}),
    "passage_prompt": ("p: ", {"passage_prompt"}),
    "batch_size": (3, {"batch_size"}),
    "seed": (7, {"seed"}),
}


def test_no_option_is_left_out():
    assert set(CHANGES) == set(MiningConfig.model_fields)


@pytest.mark.parametrize("option", CHANGES)
def test_the_option_changes_its_consumer_and_nothing_else(base, option, pairs_file, tmp_path, monkeypatch):
    value, expected = CHANGES[option]
    if value == "MODEL":
        value = str(shutil.copytree(base["model_path"], tmp_path / "copy"))
    if value == "SUBSET":
        value = str(tmp_path / "subset.json")
        Path(value).write_text(json.dumps(json.loads(pairs_file.read_text())[:10]))
    if value == "CORPUS":
        value = tmp_path / "texts.txt"
        value.write_text("the red shoe\nthe blue lamp\n")
    if option == "output_path":
        value = tmp_path / value
    first, second = (observe(monkeypatch, MiningConfig(**{**base, **changes})) for changes in ({}, {option: value}))
    assert {name for name in first if first[name] != second[name]} == expected


def test_prompts_are_those_saved_with_the_model_when_none_is_given(base, tmp_path, monkeypatch):
    model = Path(shutil.copytree(base["model_path"], tmp_path / "with prompts"))
    settings_file = model / "config_sentence_transformers.json"
    saved = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({**saved, "prompts": {"query": "find: ", "document": "text: "}}))
    seen = observe(monkeypatch, MiningConfig(**{**base, "model_path": str(model)}))
    assert (seen["query_prompt"], seen["passage_prompt"]) == ("'find: '", "'text: '")
    seen = observe(monkeypatch, MiningConfig(**{**base, "model_path": str(model), "prompt": "", "query_prompt": "q: "}))
    assert (seen["query_prompt"], seen["passage_prompt"]) == ("'q: '", "''")
