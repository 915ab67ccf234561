"""What a tuning may spend: minutes, which become training steps once it is known what a step takes here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ebr.config import FinetuneConfig
from ebr.data.evaluation.corpus import read_corpus
from ebr.data.evaluation.evaluation_set import EvaluationSet, read_evaluation_set
from ebr.data.training.examples import Example
from ebr.workflow.tune.final import WEIGHTS
from ebr.workflow.tune.ladder import LEAST_STEPS
from ebr.workflow.tune.parts import thinned
from ebr.workflow.tune.recipes import NEGATIVES, STOCK, Recipe
from ebr.workflow.tune.trials import Workshop

_CHARACTERS_A_TOKEN = 4
_TIMED_SHARE = 0.2
"""Of the part to choose on, by which the speed of embedding is reckoned."""
_COST_OF_DROPOUT = 1.8
"""A step of the stock recipe against one without dropout, on two cores of a processor: docs/measurements.md."""
_AROUND_S = 30
"""For what is nowhere reckoned: reading, the report, the card."""
_CAREFUL = 0.92
"""Of the time that is left: steps are not all equally long."""
_LOOKING = 0.25
"""Of the minutes, that evaluations on the part to choose on may take: the rest is for training, and for the proof."""


@dataclass
class Budget:
    """Training steps, and the time by which all must be over.

    ends_at: of time.monotonic(); None = steps alone count. step_s: seconds a step of the plainest recipe; trial_s: what a
    trial takes beside its steps; reserve_s: what must be left for the dial and the proof. used: steps of the trials so far.
    promised: trainings that are still to come, by name: steps, and what one of them costs in plain ones.
    """

    total_steps: int
    ends_at: float | None = None
    step_s: float = 0.0
    trial_s: float = 0.0
    reserve_s: float = 0.0
    used: int = 0
    promised: dict[str, tuple[int, float]] = field(default_factory=dict)

    def allows(self, steps: int, cost: float, beside_s: float = 0.0) -> bool:
        """Whether there is time for a trial of so many steps, each `cost` plain ones, and for beside_s seconds."""
        if self.ends_at is None:
            return True
        ahead = steps * cost + sum(count * each for count, each in self.promised.values())
        needed = ahead * self.step_s + (1 + len(self.promised)) * self.trial_s + beside_s
        return time.monotonic() + needed + self.reserve_s <= self.ends_at

    def allows_more(self, steps: int, cost: float, beside_s: float = 0.0) -> bool:
        """The same beyond the ladder, which the steps were shared out for: minutes may have more in them than was reckoned."""
        if self.ends_at is not None:
            return self.allows(steps, cost, beside_s)
        return self.used + steps + sum(count for count, _ in self.promised.values()) <= self.total_steps

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
        if recipe.name == STOCK:
            return self.dropout_cost
        if not NEGATIVES & set(recipe.ingredients):
            return 1.0
        n_negatives = recipe.options.get("neg_nums", FinetuneConfig.model_fields["neg_nums"].default)
        return 1 + float(n_negatives) * self.passage_share


def _characters(texts: Iterable[str], most: int) -> int:
    """Of texts, about as far as a model reads them."""
    return sum(min(most, len(text)) for text in texts)


@dataclass(frozen=True)
class Speed:
    """What was measured before the ladder is planned, in seconds: a step, what a trial takes beside its steps, the end."""

    step_s: float
    trial_s: float
    reserve_s: float
    once_s: float
    """What is made once for the recipes, and once more of all records: mining."""

    def steps_in(self, seconds: float, n_trials: int, cost: float) -> int:
        """Training steps that fit. cost: of a mean step, 1 = a plain one."""
        left = seconds - n_trials * self.trial_s - 2 * self.once_s - self.reserve_s
        return max(0, int(_CAREFUL * left / (self.step_s * cost)))

    @classmethod
    def measured(cls, shop: Workshop, pace: Pace, recipes: Sequence[Recipe], train: Sequence[Example]) -> Speed:
        """By a few steps of the recipe that was suggested first."""
        recipe = next(one for one in recipes if not NEGATIVES & set(one.ingredients))
        shop.base(recipe)
        probe = shop.work / "probe"
        shutil.rmtree(probe, ignore_errors=True)  # one that was killed would be timed in part
        started = time.monotonic()
        _, train_s = shop.trained(recipe, LEAST_STEPS, probe)
        around_s = time.monotonic() - started - train_s
        evaluate_s = pace.evaluation_s(shop.choose)
        is_mined = any(NEGATIVES & set(recipe.ingredients) for recipe in recipes)
        mined = (*(one.whole for one in read_corpus(shop.parts.corpus)), *(one.query for one in train)) if is_mined else ()
        proved = [read_evaluation_set(folder) for folder in (shop.parts.test, shop.config.forgetting_dataset) if folder]
        return cls(
            step_s=train_s / LEAST_STEPS,
            trial_s=around_s + pace.load_s + evaluate_s,
            reserve_s=3 * (pace.load_s + sum(map(pace.evaluation_s, proved))) + (1 + len(WEIGHTS)) * evaluate_s + _AROUND_S,
            once_s=pace.embedding_s(mined),
        )
