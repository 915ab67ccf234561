"""What a tuning may spend: minutes, which become training steps once it is known what a step takes here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ebr.config import FinetuneConfig
from ebr.data.evaluation.corpus import read_corpus
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.training.examples import Example
from ebr.workflow.tune.final import WEIGHTS
from ebr.workflow.tune.ladder import LEAST_STEPS, Rung
from ebr.workflow.tune.parts import thinned
from ebr.workflow.tune.recipes import Recipe
from ebr.workflow.tune.trials import Workshop

LAST, MINING, DIAL, PROOF = "the last training", "mining of all records", "the dial", "the proof"
_CHARACTERS_A_TOKEN = 4
_TIMED_SHARE = 0.2
"""Of the part to choose on, by which the speed of embedding is reckoned."""
_COST_OF_DROPOUT = 1.8
"""A step of the stock recipe against one without dropout, on two cores of a processor: docs/measurements.md."""
_AROUND_S = 30
"""For what is nowhere reckoned: reading, the report, the card."""
CAREFUL = 0.92
"""Of the time that is left: steps are not all equally long."""
_LOOKING = 0.25
"""Of the minutes, that evaluations on the part to choose on may take: the rest is for training, and for the proof."""


class Spend(NamedTuple):
    """What something takes."""

    steps: int
    seconds: float

    def times(self, count: int) -> Spend:
        """So often."""
        return Spend(count * self.steps, count * self.seconds)

    @classmethod
    def sum(cls, of: Iterable[Spend]) -> Spend:
        """Of all these together."""
        every = list(of)
        return cls(sum(one.steps for one in every), sum(one.seconds for one in every))

    @classmethod
    def most(cls, of: Iterable[Spend]) -> Spend:
        """Enough for any of these."""
        every = list(of)
        return cls(max(one.steps for one in every), max(one.seconds for one in every))


@dataclass
class Budget:
    """Training steps, and the time by which all must be over.

    ends_at: of time.monotonic(); None = steps alone count. used: steps of the trainings so far. later: what is still to come,
    by name: nothing else may spend that.
    """

    total_steps: int
    ends_at: float | None = None
    used: int = 0
    later: dict[str, Spend] = field(default_factory=dict)

    def allows(self, spend: Spend, *, is_planned: bool = False) -> bool:
        """Whether there is something left. is_planned: steps were shared out for it, and only time may have run out."""
        left = Spend.sum([spend, *self.later.values()])
        if self.ends_at is not None:
            return time.monotonic() + left.seconds <= self.ends_at
        return is_planned or self.used + left.steps <= self.total_steps

    def left(self) -> str:
        """What is left, for people."""
        if self.ends_at is None:
            return f"{max(0, self.total_steps - self.used):,} of {self.total_steps:,} steps left"
        return f"{max(0.0, self.ends_at - time.monotonic()) / 60:.0f} min left"


def share_to_look_at(evaluation_s: float, n_evaluations: int, seconds: float) -> float:
    """Of the part to choose on, that evaluations may see, 0 to 1: all of it, or what a slow machine can embed so often.

    evaluation_s: of one evaluation on all of it. n_evaluations: of one tuning. seconds: all its time.
    """
    return min(1.0, _LOOKING * seconds / max(evaluation_s * n_evaluations, 1e-9))


@dataclass(frozen=True)
class Pace:
    """What embedding takes on this machine, and a step of each recipe beside the plainest; measured once for a tuning.

    load_s: to load a model. character_s: to embed a character. max_characters: of a text, about as far as the model reads it.
    passage_share: of the characters of a record's query and positive. dropout_cost: a step with dropout, 1 = without.
    """

    load_s: float = 0.0
    character_s: float = 0.0
    max_characters: int = 0
    passage_share: float = 0.5
    dropout_cost: float = 1.0

    @classmethod
    def measured(cls, shop: Workshop, train: Sequence[Example]) -> Pace:
        """By some of the part to choose on, embedded by the base."""
        config = shop.config
        max_characters = _CHARACTERS_A_TOKEN * config.max_seq_length
        started = time.monotonic()
        model = shop.loaded(config.model_name).model
        load_s = time.monotonic() - started
        replace(shop, choose=thinned(shop.choose, 0.0, config.seed)).measured(model)  # the first texts are slower
        some = replace(shop, choose=thinned(shop.choose, _TIMED_SHARE, config.seed))
        started = time.monotonic()
        some.measured(model)
        took_s = time.monotonic() - started
        queries = _characters((one.query for one in train), max_characters)
        passages = _characters((one.positives[0] for one in train), max_characters)
        return cls(
            load_s,
            took_s / max(1, _characters((*some.choose.queries, *some.choose.documents), max_characters)),
            max_characters,
            passages / max(1, queries + passages),
            _COST_OF_DROPOUT if model.device.type == "cpu" else 1.0,
        )

    def embedding_s(self, texts: Iterable[str]) -> float:
        """What embedding these takes."""
        return self.character_s * _characters(texts, self.max_characters)

    def evaluation_s(self, dataset: EvaluationSet) -> float:
        """What embedding a set takes."""
        return self.embedding_s((*dataset.queries, *dataset.documents))

    def cost(self, recipe: Recipe) -> float:
        """Of a step, 1 = of a record's query and positive alone, without dropout."""
        dropout = self.dropout_cost if recipe.has_dropout else 1.0
        if not recipe.is_mined:
            return dropout
        n_negatives = recipe.options.get("neg_nums", FinetuneConfig.model_fields["neg_nums"].default)
        return dropout * (1 + float(n_negatives) * self.passage_share)


def _characters(texts: Iterable[str], most: int) -> int:
    """Of texts, about as far as a model reads them."""
    return sum(min(most, len(text)) for text in texts)


@dataclass(frozen=True)
class Speed:
    """What was measured before the ladder is planned, in seconds.

    step_s: of the plainest recipe. around_s: of a training, beside its steps. evaluation_s: of a trial, loading it included.
    mining_s: of the negatives of the training part, made once for all recipes. dial_s, proof_s: of the end.
    """

    step_s: float = 0.0
    around_s: float = 0.0
    evaluation_s: float = 0.0
    mining_s: float = 0.0
    dial_s: float = 0.0
    proof_s: float = 0.0

    def training_s(self, steps: int, cost: float) -> float:
        """Of so many steps, each of so many plain ones."""
        return steps * cost * self.step_s + self.around_s

    @classmethod
    def measured(cls, shop: Workshop, pace: Pace, recipes: Sequence[Recipe], train: Sequence[Example]) -> Speed:
        """By a few steps of the recipe that was suggested first."""
        recipe = next(one for one in recipes if not one.is_mined)
        shop.base(recipe)
        probe = shop.work / "probe"
        shutil.rmtree(probe, ignore_errors=True)  # one that was killed would be timed in part
        started = time.monotonic()
        _, train_s = shop.trained(recipe, LEAST_STEPS, probe)
        around_s = time.monotonic() - started - train_s
        evaluation_s = pace.load_s + pace.evaluation_s(shop.choose)
        candidates = (one.whole for one in read_corpus(shop.parts.corpus))
        mined = (*candidates, *(one.query for one in train)) if any(one.is_mined for one in recipes) else ()
        kept = [read_evaluation_set(folder) for folder in (shop.config.forgetting_dataset,) if folder]
        proved = [read_evaluation_set(shop.parts.test), *kept]
        return cls(
            step_s=train_s / LEAST_STEPS,
            around_s=around_s,
            evaluation_s=evaluation_s,
            mining_s=pace.embedding_s(mined),
            dial_s=(1 + len(WEIGHTS)) * (evaluation_s + sum(map(pace.evaluation_s, kept))),
            proof_s=3 * (pace.load_s + sum(map(pace.evaluation_s, proved))) + _AROUND_S,
        )


@dataclass(frozen=True)
class Costs:
    """What trainings take. growth: records that are trained on in the end, for one of the training part."""

    growth: float
    pace: Pace = field(default_factory=Pace)
    speed: Speed = field(default_factory=Speed)

    def of_training(self, recipe: Recipe, steps: int) -> Spend:
        """With so many steps, measured by nobody."""
        return Spend(steps, self.speed.training_s(steps, self.pace.cost(recipe)))

    def of_trial(self, recipe: Recipe, steps: int) -> Spend:
        """Trained on the training part, and measured."""
        return Spend.sum([self.of_training(recipe, steps), Spend(0, self.speed.evaluation_s)])

    def of_last(self, recipe: Recipe, steps: int) -> Spend:
        """On all records, what takes so many steps on the training part."""
        return self.of_training(recipe, self.grown(steps))

    def grown(self, steps: int) -> int:
        """Steps that pass over all records as often as so many over the training part."""
        return int(self.growth * steps)

    def of_mining(self, *, on_all: bool) -> Spend:
        """Of the negatives of the training part, or of all records."""
        return Spend(0, self.speed.mining_s * (self.growth if on_all else 1.0))

    def of_ladder(self, rungs: Sequence[Rung], recipes: Sequence[Recipe]) -> Spend:
        """All of it, if the dearest recipes climb; mining included."""
        first, *higher = rungs
        tried = recipes[: first.n_recipes]
        dearest = max(tried, key=self.pace.cost)
        trials = [self.of_trial(recipe, first.steps) for recipe in tried]
        trials += [self.of_trial(dearest, rung.steps).times(rung.n_recipes) for rung in higher]
        return Spend.sum([*trials, self.of_mining(on_all=False)])

    def of_the_end(self, recipes: Sequence[Recipe], stock: Recipe, top: int) -> dict[str, Spend]:
        """By name, what is to come after a ladder with such a top rung, whatever it finds."""
        return {
            DIAL: Spend(0, self.speed.dial_s),
            MINING: self.of_mining(on_all=True),
            LAST: Spend.most(self.of_last(recipe, top) for recipe in recipes),
            stock.name: self.of_last(stock, top),
            PROOF: Spend(0, self.speed.proof_s),
        }
