"""Batches: a draw is a pure function of seed, epoch and row, noise stays where it belongs, and no right answer repels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ebr.data.training.examples import Example
from ebr.data.training.text_table import TextTable
from ebr.model.encoder.batching import Tokens
from ebr.model.encoder.text_reader import Prepared
from ebr.training.batches.collator import Collator, Noise

TRAIN = [
    Example("q0", ("p0", "p1", "p2"), ("n0", "n1", "n2", "n3", "n1")),
    Example("q1", ("p3",), ("n4",)),
    Example("q2", ("p4", "p5")),
]
VALIDATION = [Example("v0", ("w0", "w1", "w2"), ("x0", "x1", "x2")), Example("v1", ("w3",))]
LONG = "one two three four five six"
NOISE = Noise("char_delete", 0.5, frozenset({"anchor", "positive"}))


class Letters:
    """A reader whose tokens are the letters of prompt and text; without tokens, it hands the texts through."""

    def __init__(self, prompt, *, prompt_length=None, has_tokens=True):
        self.prompt, self.prompt_length, self.has_tokens = prompt, prompt_length, has_tokens

    def prepare(self, texts):
        whole = [self.prompt + text for text in texts]
        lengths = np.array([len(text) for text in whole])
        if not self.has_tokens:
            return Prepared(whole, None, lengths, None)
        letters = np.array([ord(letter) for text in whole for letter in text])
        return Prepared([], Tokens(letters, None, np.concatenate([[0], np.cumsum(lengths)])), lengths, self.prompt_length)


READERS = [{"query": Letters("Q "), "document": Letters("D ")}]


def maker(train=TRAIN, validation=(), *, epoch=0, seed=7, n_negatives=2, noise=None, readers=READERS, source_of=None):
    ids = TextTable.of([*train, *validation]).ids
    return Collator(train, validation, ids, readers, n_negatives, seed, noise, epoch, source_of)


def made(batches, rows):
    """The batch of these rows."""
    return batches([{"row": row} for row in rows])["batch"]


def texts_of(prepared):
    """What a reader read, prompts and all."""
    tokens = prepared.tokens
    if tokens is None:
        return prepared.texts
    starts = zip(tokens.offsets, tokens.offsets[1:], strict=False)
    return ["".join(map(chr, tokens.ids[start:end])) for start, end in starts]


def read(batch):
    """The texts that are embedded, by their place in the batch."""
    placed = {}
    for group in batch.groups:
        placed.update(zip(group.places.tolist(), texts_of(group.prepared), strict=True))
    return [placed[place] for place in range(len(placed))]


def draws(batches, rows=(0, 1, 2)):
    return [batches.draw(row) for row in rows]


def told(drawn):
    """Draws to compare: nan, the score of what has none, is not equal to itself."""
    return [repr(one) for one in drawn]


def test_draw_depends_on_seed_epoch_and_row_alone():
    first, again = maker(noise=NOISE, epoch=3), maker(noise=NOISE, epoch=3)
    wanted = told(draws(first))
    assert told(draws(again, [2, 1, 0, 1, 0]))[:3] == wanted[::-1]
    again.epoch = 9
    draws(again)
    again.epoch = 3
    assert told(draws(again)) == wanted


def test_epoch_and_seed_each_change_the_draws():
    many = [Example(f"q{i}", tuple(f"p{i}{j}" for j in range(5)), tuple(f"n{i}{j}" for j in range(9))) for i in range(20)]
    first, later, other = (told(draws(maker(many, epoch=e, seed=s), range(20))) for e, s in ((0, 7), (1, 7), (0, 8)))
    assert first != later
    assert first != other


@pytest.mark.parametrize("start", [0, 5])
def test_every_positive_is_used_once_in_as_many_epochs_as_there_are(start):
    used = [maker(epoch=epoch).draw(0).positive for epoch in range(start, start + 3)]
    assert sorted(used) == ["p0", "p1", "p2"]


def test_rows_do_not_all_start_at_their_first_positive():
    many = [Example(f"q{i}", tuple("abcd")) for i in range(40)]
    assert {drawn.positive for drawn in draws(maker(many), range(40))} == set("abcd")


@pytest.mark.parametrize("n_negatives", [0, 1, 2, 4, 9])
def test_negatives_are_distinct_and_as_many_as_wanted_or_as_there_are(n_negatives):
    for epoch in range(10):
        counts = []
        for row, example in enumerate(TRAIN):
            negatives = maker(n_negatives=n_negatives, epoch=epoch).draw(row).negatives
            assert len(set(negatives)) == len(negatives)
            assert set(negatives) <= set(example.negatives)
            counts.append(len(negatives))
        assert counts == [min(n_negatives, 4), min(n_negatives, 1), 0]


def test_over_the_epochs_every_negative_has_its_turn():
    seen = {text for epoch in range(20) for text in maker(epoch=epoch).draw(0).negatives}
    assert seen == {"n0", "n1", "n2", "n3"}


# ---------------------------------------------------------------- noise

NOISY = [Example(f"{LONG} q{i}", (f"{LONG} p{i}",), (f"{LONG} n{i}",)) for i in range(400)]


def touched(drawn, example):
    """Which fields of a drawn example differ from the example."""
    pairs = {"anchor": (drawn.query, example.query), "positive": (drawn.positive, example.positives[0])}
    pairs["negative"] = (drawn.negatives, example.negatives)
    return {name for name, (now, before) in pairs.items() if now != before}


@pytest.mark.parametrize(
    "fields", [{"anchor"}, {"positive"}, {"negative"}, {"anchor", "positive"}, {"anchor", "positive", "negative"}]
)
def test_noise_touches_the_named_fields_and_no_other(fields):
    batches = maker(NOISY, noise=Noise("random_delete", 0.5, frozenset(fields)))
    seen = [touched(batches.draw(row), example) for row, example in enumerate(NOISY)]
    # A record has its lot or not; random_delete then drops at least one word of each field.
    assert all(fields_touched in (set(), fields) for fields_touched in seen)
    assert fields in seen


@pytest.mark.parametrize("prob", [0.0, 0.1, 0.5, 1.0])
def test_noise_comes_with_its_probability(prob):
    batches = maker(NOISY, noise=Noise("random_delete", prob, frozenset({"anchor"})))
    share = sum(bool(touched(batches.draw(row), example)) for row, example in enumerate(NOISY)) / len(NOISY)
    # Binomial(400, p): sd of the share at most 0.025.
    assert share == pytest.approx(prob, abs=0.1)
    if prob in (0.0, 1.0):
        assert share == prob


def test_noise_is_drawn_afresh_each_epoch():
    anchors = {
        maker(NOISY, noise=Noise("random_delete", 1.0, frozenset({"anchor"})), epoch=epoch).draw(0).query for epoch in range(5)
    }
    assert len(anchors) > 1
    assert NOISY[0].query not in anchors


def test_noise_does_not_change_what_is_drawn():
    quiet, noisy = maker(), maker(noise=Noise("char_delete", 1.0, frozenset({"anchor"})))
    assert [(d.positive, d.negatives) for d in draws(quiet)] == [(d.positive, d.negatives) for d in draws(noisy)]


def test_validation_rows_are_drawn_as_in_epoch_0_and_without_noise():
    everything = Noise("char_delete", 1.0, frozenset({"anchor", "positive", "negative"}))
    rows = range(len(TRAIN), len(TRAIN) + len(VALIDATION))
    wanted = draws(maker(validation=VALIDATION), rows)
    for epoch in range(6):
        assert told(draws(maker(validation=VALIDATION, epoch=epoch, noise=everything), rows)) == told(wanted)
    assert [drawn.query for drawn in wanted] == ["v0", "v1"]
    assert set(wanted[0].negatives) < {"x0", "x1", "x2"}


# ---------------------------------------------------------------- a batch


TWO = [Example("a", ("b",), ("c",)), Example("d", ("e",), ("f",))]


def test_batch_holds_queries_then_positives_then_negatives_each_with_its_prompt():
    given = maker(TWO)([{"row": 1}, {"row": 0}])
    assert set(given) == {"label", "batch"}
    assert read(given["batch"]) == ["Q d", "Q a", "D e", "D b", "D f", "D c"]


def test_label_is_the_rows_in_the_order_of_the_batch():
    given = maker()([{"row": 2}, {"row": 0}])
    assert given["label"].dtype == torch.int64
    assert given["label"].tolist() == given["batch"].rows == [2, 0]


def test_owners_say_which_query_each_candidate_was_drawn_for():
    examples = [Example("a", ("b",), ("c", "d")), Example("e", ("f",)), Example("g", ("h",), ("i",))]
    batch = made(maker(examples), [2, 1, 0])
    # h, f and b; then i, and c and d in the order drawn.
    assert batch.owners.dtype == np.int64
    assert batch.owners.tolist() == [0, 1, 2, 0, 2, 2]


@pytest.mark.parametrize("epoch", range(6))
def test_scores_follow_the_texts_and_are_nan_where_the_data_has_none(epoch):
    examples = [
        Example("a", ("p1", "p2", "p3"), ("n4", "n5", "n6", "n5"), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0, 5.0)),
        Example("b", ("q",), ("m7",), (), (7.0,)),
        Example("c", ("p8",), ("r",), (8.0,)),
    ]
    batch = made(maker(examples, epoch=epoch, n_negatives=3), [1, 0, 2])
    assert batch.scores.dtype == np.float32
    # The last letter of a text is its score, where it has one.
    for text, score in zip(read(batch)[3:], batch.scores.tolist(), strict=True):
        assert score == int(text[-1]) if text[-1].isdigit() else math.isnan(score)
    assert len(batch.scores) == 3 + 1 + 3 + 1


def test_keys_of_candidates_are_of_the_texts_before_noise():
    everything = Noise("random_delete", 1.0, frozenset({"anchor", "positive", "negative"}))
    batches = maker(NOISY, noise=everything)
    batch = made(batches, [3, 9])
    plain = [*(NOISY[row].positives[0] for row in (3, 9)), *(NOISY[row].negatives[0] for row in (3, 9))]
    assert batch.candidates.dtype == np.int64
    assert batch.candidates.tolist() == [batches.ids[text] for text in plain]
    assert not {f"D {text}" for text in plain} & set(read(batch))


SOURCES = [{"query": Letters(f"Q{n} "), "document": Letters(f"D{n} ")} for n in range(2)]


def test_every_text_of_a_row_is_read_by_the_reader_of_its_source():
    validation = [Example("g", ("h",))]
    batches = maker(TWO, validation, readers=SOURCES, source_of=[1, 0, 1])
    assert read(made(batches, [1, 0])) == ["Q0 d", "Q1 a", "D0 e", "D1 b", "D0 f", "D1 c"]
    assert read(made(batches, [2])) == ["Q1 g", "D1 h"]


def test_plain_tokens_of_all_roles_and_sources_are_one_group():
    (group,) = made(maker(TWO, readers=SOURCES, source_of=[1, 0]), [0, 1]).groups
    # One source's texts after another's, queries first; lengths with the prompt of three letters.
    assert sorted(group.places.tolist()) == [0, 1, 2, 3, 4, 5]
    assert group.prepared.lengths.tolist() == group.prepared.tokens.lengths.tolist() == [4] * 6
    assert (group.prepared.texts, group.prepared.prompt_length) == ([], None)


@pytest.mark.parametrize("how", [{"prompt_length": 3}, {"has_tokens": False}])
def test_one_reader_with_a_prompt_to_leave_out_or_without_tokens_keeps_all_groups_apart(how):
    readers = [{"query": Letters("Q0 "), "document": Letters("D0 ", **how)}, SOURCES[1]]
    batch = made(maker(TWO, readers=readers, source_of=[1, 0]), [0, 1])
    groups = {(group.role, group.source): (group.places.tolist(), texts_of(group.prepared)) for group in batch.groups}
    assert groups == {
        ("query", 1): ([0], ["Q1 a"]),
        ("query", 0): ([1], ["Q0 d"]),
        ("document", 1): ([2, 4], ["D1 b", "D1 c"]),
        ("document", 0): ([3, 5], ["D0 e", "D0 f"]),
    }


# ---------------------------------------------------------------- which candidates may repel


def mask(*examples, noise=None):
    return mask_of(maker(examples, noise=noise), range(len(examples)))


def mask_of(batches, rows, others=()):
    """The mask of a batch of rows beside the candidates of other batches, each a list of rows."""
    mask = batches.false_negative_mask(rows, np.concatenate([made(batches, group).candidates for group in (rows, *others)]))
    assert mask.dtype == torch.bool
    return mask.int().tolist()


def test_strangers_may_all_repel():
    assert mask(Example("a", ("b",), ("c",)), Example("d", ("e",))) == [[1, 1, 1], [1, 1, 1]]


def test_positive_of_the_same_query_does_not_repel():
    # Candidates: b (of a), c (of a again), e.
    assert mask(Example("a", ("b",)), Example("a", ("c",)), Example("d", ("e",))) == [[1, 0, 1], [0, 1, 1], [1, 1, 1]]


def test_same_positive_text_in_another_place_does_not_repel():
    assert mask(Example("a", ("b",)), Example("d", ("b",)), Example("f", ("g",))) == [[1, 0, 1], [0, 1, 1], [1, 1, 1]]


def test_negative_that_is_a_positive_of_the_query_does_not_repel():
    # Candidates: b, e, then the negative b, which is right for a and wrong for d.
    assert mask(Example("a", ("b",)), Example("d", ("e",), ("b",))) == [[1, 1, 0], [1, 1, 1]]


def test_text_of_the_same_chain_does_not_repel_and_may_be_learned_but_for_the_query_itself():
    # a - b - c - d is one chain, x - y another; candidates: b, c, d, y, then a, which is the first query itself.
    told = [Example("a", ("b",)), Example("b", ("c",)), Example("c", ("d",)), Example("x", ("y",), ("a",))]
    batches = maker(told)
    by_text = [[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert mask_of(batches, range(4)) == by_text
    by_chain = replace(batches, same_answer="chain")
    assert mask_of(by_chain, range(4)) == [[1, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1]]
    candidates = made(by_chain, range(4)).candidates
    further = by_chain.further_positives(range(4), candidates, by_chain.false_negative_mask(range(4), candidates))
    assert further.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 0, 1], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


def test_positive_that_was_not_drawn_is_right_all_the_same():
    # a has b and c; whichever is drawn, neither may repel a from another place.
    assert mask(Example("a", ("b", "c")), Example("d", ("b",)), Example("e", ("c",)))[0] == [1, 0, 0]


def test_mask_is_judged_by_the_texts_before_noise():
    everything = Noise("random_delete", 1.0, frozenset({"anchor", "positive", "negative"}))
    examples = [Example("a x y", ("b x y",)), Example("a x y", ("c x y",)), Example("d x y", ("e x y",), ("b x y",))]
    assert mask(*examples, noise=everything) == mask(*examples) == [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]]


def test_mask_has_a_row_a_query_and_a_column_a_passage_of_the_batch():
    batches = maker([Example("a", ("b",), ("c", "d")), Example("e", ("f",)), Example("g", ("h",), ("i",))])
    rows = [2, 0]
    # h, b, then i, c and d in the order drawn.
    assert len(made(batches, rows).candidates) == 5
    assert mask_of(batches, rows) == [[1] * 5] * 2


# Right answers: a: b and c; d: e; f: g; h: i; j: c.
CROWD = [
    Example("a", ("b",), ("x",)),
    Example("d", ("e",), ("b",)),
    Example("a", ("c",), ("e",)),
    Example("f", ("g",), ("x", "y")),
    Example("h", ("i",)),
    Example("j", ("c",), ("g",)),
]


def test_candidates_of_other_batches_come_after_own_positives_and_own_negatives_in_their_order():
    batches = maker(CROWD)
    # Own rows 0, 1: b e | x b; then rows 2, 3: c g | e and x, y; then rows 4, 5: i c | g.
    own = [[1, 1, 1, 0], [1, 1, 1, 1]]
    first = [[0, 1, 1, 1, 1], [1, 1, 0, 1, 1]]
    second = [[1, 0, 1], [1, 1, 1]]
    assert mask_of(batches, [0, 1]) == own
    assert mask_of(batches, [0, 1], [[2, 3]]) == [a + b for a, b in zip(own, first, strict=True)]
    assert mask_of(batches, [0, 1], [[2, 3], [4, 5]]) == [a + b + c for a, b, c in zip(own, first, second, strict=True)]
    assert mask_of(batches, [0, 1], [[4, 5], [2, 3]]) == [a + c + b for a, b, c in zip(own, first, second, strict=True)]


def test_own_place_is_counted_within_the_own_batch_whatever_else_follows():
    # Row 2 as the only one of its batch: a's own c may attract; b, in another batch, may not repel it, nor may c of row 5.
    # c | e; then b e | x b; then i c | g.
    assert mask_of(maker(CROWD), [2], [[0, 1], [4, 5]]) == [[1, 1, 0, 1, 1, 0, 1, 0, 1]]


def test_batches_of_other_lengths_are_laid_one_after_the_other():
    batches = maker(CROWD)
    # g | x y; then i; then b e c | x b e.
    assert mask_of(batches, [3], [[4], [0, 1, 2]]) == [[1] * (3 + 1 + 6)]
    assert mask_of(batches, [0, 1, 2], [[3], [4]]) == [
        [1, 1, 0, 1, 0, 1, 1, 1, 1, 1],  # a: c is right too, and b stands among the negatives
        [1, 1, 1, 1, 1, 0, 1, 1, 1, 1],  # d: e stands among the negatives
        [0, 1, 1, 1, 0, 1, 1, 1, 1, 1],  # a again: b is right, in both places
    ]


def hand_made(examples, rows, others, epoch):
    """The mask in plain loops: a candidate counts unless it is the query, or some record with this query calls it right."""
    batches = maker(examples, epoch=epoch)
    candidates = []
    for group in (rows, *others):
        candidates += [batches.draw(row).positive for row in group]
        candidates += [text for row in group for text in batches.draw(row).negatives]
    whole = []
    for place, row in enumerate(rows):
        query = examples[row].query
        right = {query, *(text for example in examples if example.query == query for text in example.positives)}
        whole.append([int(column == place or text not in right) for column, text in enumerate(candidates)])
    return whole


@pytest.mark.parametrize("epoch", range(4))
@pytest.mark.parametrize("noise", [None, Noise("char_delete", 1.0, frozenset({"anchor", "positive", "negative"}))])
def test_mask_equals_the_hand_made_one_when_right_answers_sit_in_other_batches(epoch, noise):
    rng = np.random.default_rng(3)
    # Six queries, three of them candidates too, and twelve texts over forty records: nearly every batch holds a right answer
    # of a query of another.
    examples = [
        Example(
            f"text {9 + rng.integers(6)}",
            tuple(f"text {t}" for t in rng.choice(6, 2, replace=False)),
            tuple(f"text {t}" for t in rng.choice(12, rng.integers(4), replace=False)),
        )
        for _ in range(40)
    ]
    batches = maker(examples, epoch=epoch, noise=noise)
    order = rng.permutation(40).tolist()
    groups = [order[:7], order[7:10], order[10:22]]
    for mine in range(3):
        others = groups[mine + 1 :] + groups[:mine]
        wanted = hand_made(examples, groups[mine], others, epoch)
        n_own = len(hand_made(examples, groups[mine], (), epoch)[0])
        assert any(0 in row[n_own:] for row in wanted)
        assert mask_of(batches, groups[mine], others) == wanted


def test_query_itself_among_the_candidates_does_not_repel():
    # Candidates: b, a, then the negative a: right for a, for it is a; wrong for e where it is not its own positive.
    assert mask(Example("a", ("b",)), Example("d", ("a",)), Example("e", ("f",), ("a",))) == [
        [1, 0, 1, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]


def test_neither_spaces_nor_case_nor_width_hide_that_a_text_is_right():
    # Candidates: b b, c, d, then the negative Ｂ  B, which is b b in wide letters.
    assert mask(Example("a", ("b b",)), Example(" A ", ("c\n",)), Example("e", ("d",), (" Ｂ  B",))) == [
        [1, 0, 1, 0],
        [0, 1, 1, 0],
        [1, 1, 1, 1],
    ]


def test_texts_that_differ_by_more_than_that_have_numbers_of_their_own():
    texts = ["red shoe", "redshoe", "red shoes", "red-shoe", "shoe red", "rêd shoe", "红鞋", ""]
    assert TextTable(texts).ids == {text: number for number, text in enumerate(texts)}


def test_mask_of_validation_rows_is_of_the_texts_that_epoch_0_draws_and_that_of_training_rows_changes():
    # Candidates: b, e and one of the three negatives of d: hidden from a when it is b.
    examples = [Example("a", ("b",)), Example("d", ("e",), ("b", "x", "y"))]
    in_training = [mask_of(maker(examples, epoch=epoch, n_negatives=1), [0, 1]) for epoch in range(20)]
    in_validation = [mask_of(maker([], examples, epoch=epoch, n_negatives=1), [0, 1]) for epoch in range(20)]
    assert {str(one) for one in in_training} == {"[[1, 1, 0], [1, 1, 1]]", "[[1, 1, 1], [1, 1, 1]]"}
    assert in_validation == [in_training[0]] * 20
