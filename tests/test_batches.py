"""Batches: a draw is a pure function of seed, epoch and row, noise stays where it belongs, and no right answer repels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ebr.data.examples import Example
from ebr.training.batches import BatchMaker, Noise

TRAIN = [
    Example("q0", ("p0", "p1", "p2"), ("n0", "n1", "n2", "n3", "n1")),
    Example("q1", ("p3",), ("n4",)),
    Example("q2", ("p4", "p5")),
]
VALIDATION = [Example("v0", ("w0", "w1", "w2"), ("x0", "x1", "x2")), Example("v1", ("w3",))]
LONG = "one two three four five six"
NOISE = Noise("char_delete", 0.5, frozenset({"anchor", "positive"}))


def tokenize(texts, *, prompt, task):
    return {"ids": [f"{task}:{prompt}{text}" for text in texts]}


def maker(train=TRAIN, validation=(), *, epoch=0, seed=7, n_negatives=2, noise=None):
    prompts = {"query": "Q ", "document": "D "}
    return BatchMaker(train, validation, tokenize, prompts, n_negatives, seed, noise, epoch)


def draws(batches, rows=(0, 1, 2)):
    return [batches.draw(row) for row in rows]


def test_draw_depends_on_seed_epoch_and_row_alone():
    first, again = maker(noise=NOISE, epoch=3), maker(noise=NOISE, epoch=3)
    wanted = draws(first)
    assert draws(again, [2, 1, 0, 1, 0])[:3] == wanted[::-1]
    again.epoch = 9
    draws(again)
    again.epoch = 3
    assert draws(again) == wanted


def test_epoch_and_seed_each_change_the_draws():
    many = [Example(f"q{i}", tuple(f"p{i}{j}" for j in range(5)), tuple(f"n{i}{j}" for j in range(9))) for i in range(20)]
    first, later, other = (draws(maker(many, epoch=e, seed=s), range(20)) for e, s in ((0, 7), (1, 7), (0, 8)))
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
        assert draws(maker(validation=VALIDATION, epoch=epoch, noise=everything), rows) == wanted
    assert [drawn.query for drawn in wanted] == ["v0", "v1"]
    assert set(wanted[0].negatives) < {"x0", "x1", "x2"}


# ---------------------------------------------------------------- a batch


def test_batch_holds_queries_then_positives_then_negatives_each_with_its_prompt():
    examples = [Example("a", ("b",), ("c",)), Example("d", ("e",), ("f",))]
    batch = maker(examples)([{"row": 1}, {"row": 0}])
    assert batch["query_ids"] == ["query:Q d", "query:Q a"]
    assert batch["passage_ids"] == ["document:D e", "document:D b", "document:D f", "document:D c"]
    assert set(batch) == {"label", "query_ids", "passage_ids"}


def test_label_is_the_rows_in_the_order_of_the_batch():
    label = maker()([{"row": 2}, {"row": 0}])["label"]
    assert label.dtype == torch.int64
    assert label.tolist() == [2, 0]


# ---------------------------------------------------------------- which candidates may repel


def mask(*examples, noise=None):
    return mask_of(maker(examples, noise=noise), range(len(examples)))


def mask_of(batches, rows, others=()):
    allowed = batches.allowed(rows, others)
    assert allowed.dtype == torch.bool
    return allowed.int().tolist()


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
    assert len(batches([{"row": row} for row in rows])["passage_ids"]) == 5
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
    """The mask in plain loops: a candidate counts unless some record with this query holds its text for right."""
    batches = maker(examples, epoch=epoch)
    candidates = []
    for group in (rows, *others):
        candidates += [batches.draw(row).positive for row in group]
        candidates += [text for row in group for text in batches.draw(row).negatives]
    whole = []
    for place, row in enumerate(rows):
        right = {text for example in examples if example.query == examples[row].query for text in example.positives}
        whole.append([int(column == place or text not in right) for column, text in enumerate(candidates)])
    return whole


@pytest.mark.parametrize("epoch", range(4))
@pytest.mark.parametrize("noise", [None, Noise("char_delete", 1.0, frozenset({"anchor", "positive", "negative"}))])
def test_mask_equals_the_hand_made_one_when_right_answers_sit_in_other_batches(epoch, noise):
    rng = np.random.default_rng(3)
    # Six queries and twelve texts over forty records: nearly every batch holds a right answer of a query of another.
    examples = [
        Example(
            f"q{rng.integers(6)}",
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


def test_spaces_around_a_text_do_not_hide_that_it_is_right():
    # Candidates: b, c, d, then the negative b with spaces.
    assert mask(Example("a", ("b",)), Example(" a ", ("c\n",)), Example("e", ("d",), (" b",))) == [
        [1, 0, 1, 0],
        [0, 1, 1, 0],
        [1, 1, 1, 1],
    ]


def test_mask_of_validation_rows_is_of_the_texts_that_epoch_0_draws_and_that_of_training_rows_changes():
    # Candidates: b, e and one of the three negatives of d: hidden from a when it is b.
    examples = [Example("a", ("b",)), Example("d", ("e",), ("b", "x", "y"))]
    in_training = [mask_of(maker(examples, epoch=epoch, n_negatives=1), [0, 1]) for epoch in range(20)]
    in_validation = [mask_of(maker([], examples, epoch=epoch, n_negatives=1), [0, 1]) for epoch in range(20)]
    assert {str(one) for one in in_training} == {"[[1, 1, 0], [1, 1, 1]]", "[[1, 1, 1], [1, 1, 1]]"}
    assert in_validation == [in_training[0]] * 20
