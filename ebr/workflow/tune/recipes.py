"""Recipes: what is tried, and what the data suggests to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from ebr.config.shared.objective import DISTILLATION
from ebr.data.training.answers import SameAnswer
from ebr.errors import ConfigError


class Ingredient(str, Enum):
    """What is made before a recipe is trained, of the records that it is trained on, and of the corpora."""

    EXTENDED = "extended"
    """Tokens for the characters that the base cannot spell."""
    MINED = "mined"
    """Hard negatives, by the base."""
    HYBRID = "hybrid"
    """Hard negatives that BM25 and the base score together, to learn their scores."""
    PAIRS = "pairs"
    """Pairs made of the texts themselves: titles, first sentences, crops."""


@dataclass(frozen=True)
class Recipe:
    """One way to tune. options: of FinetuneConfig, beside those that every recipe of a tuning shares."""

    name: str
    ingredients: tuple[Ingredient, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_mined(self) -> bool:
        """Whether it learns from negatives that are mined for it."""
        return bool({Ingredient.MINED, Ingredient.HYBRID} & set(self.ingredients))

    @property
    def has_dropout(self) -> bool:
        """Whether it leaves the model its own dropout, which costs time on a processor."""
        return self.options.get("model_dropout") != 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "ingredients": [one.value for one in self.ingredients], "options": dict(self.options)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Recipe:
        """What to_json wrote. Raises ConfigError for anything else."""
        try:
            ingredients = tuple(Ingredient(one) for one in record["ingredients"])
            return cls(str(record["name"]), ingredients, dict(record["options"]))
        except (KeyError, TypeError, ValueError):
            raise ConfigError("recipe: is none that ebr tune wrote; give the recipe.json of a finished tuning") from None

    def is_like(self, other: Recipe) -> bool:
        """Whether both train alike, whatever they are called."""
        return (set(self.ingredients), dict(self.options)) == (set(other.ingredients), dict(other.options))

    def seeded(self, seed: int) -> Recipe:
        """The same with another seed than the tuning's."""
        return Recipe(f"{self.name}_seed_{seed}", self.ingredients, {**self.options, "seed": seed})

    def without(self, ingredient: Ingredient) -> Recipe:
        """The same without one of its ingredients, and what it needs it for."""
        options = {name: value for name, value in self.options.items() if name not in _NEEDED_FOR.get(ingredient, ())}
        left = tuple(one for one in self.ingredients if one is not ingredient)
        return Recipe(f"{self.name}_without_{ingredient.value}", left, options)


_NEEDED_FOR: Mapping[Ingredient, tuple[str, ...]] = {
    Ingredient.HYBRID: ("loss", "teacher_temperature"),
    Ingredient.EXTENDED: ("new_token_learning_rate",),
}


@dataclass(frozen=True)
class DataFacts:
    """What is known of the records before anything is tried.

    unknown: share of the characters that the base cannot spell and ebr extend could teach it; 0 where it can do nothing.
    every_record_has_negatives: whether stock could read a column of them. has_corpus: whether there are texts beyond records.
    """

    unknown: float
    same_answer: SameAnswer
    every_record_has_negatives: bool
    has_corpus: bool


LEAST_UNKNOWN = 0.02
"""Share of the characters from which teaching a script is worth a recipe."""
_RATES = {"lora": (6e-4, 2e-4, 1.2e-3), "full": (5e-5, 2e-5, 1e-4)}
_STOCK_RATE = {"lora": 2e-4, "full": 2e-5}
_NEW_ROWS = 2e-3
_NO_DROPOUT: Mapping[str, Mapping[str, Any]] = {
    "lora": {"model_dropout": 0.0, "lora_dropout": 0.0},
    "full": {"model_dropout": 0.0},
}
"""On a processor up to twice the steps in the same minutes, worth 0.001 nDCG@10 less if equal: docs/measurements.md."""
_CAUTIOUS = "plain_low"
"""Keeps the model's own dropout, for few records that are passed over many times: docs/measurements.md."""
_ONE = {"neg_nums": 1}
"""A second negative a record costs as much as the first, and gave nothing."""
_HYBRID = {"loss": DISTILLATION, "teacher_temperature": 0.05}


def stock_recipe(facts: DataFacts, finetune_type: str) -> Recipe:
    """What sentence-transformers' own trainer does by default: its loss, its temperature, nothing masked, a usual rate."""
    negatives = 1 if facts.every_record_has_negatives else 0
    options = {
        "loss": "MultipleNegativesRankingLoss",
        "learning_rate": _STOCK_RATE[finetune_type],
        "neg_nums": negatives,
    }
    return Recipe("stock", (), options)


def suggested(facts: DataFacts, finetune_type: str) -> list[Recipe]:
    """What to try, the most promising first: where there is time for few, the last are left out.

    Of a script that the base cannot spell everything hangs on its tokens: every recipe extends it. The rates, the negatives and
    the temperature of the teacher are those that helped on a set of our own, see docs/measurements.md.
    """
    rates = _RATES[finetune_type]
    found = _of_an_extended_base(rates) if facts.unknown >= LEAST_UNKNOWN else _of_any_base(rates, facts)
    shared = {**_ONE, **_NO_DROPOUT[finetune_type]}
    return [replace(recipe, options={**(_ONE if recipe.name == _CAUTIOUS else shared), **recipe.options}) for recipe in found]


def _of_any_base(rates: tuple[float, float, float], facts: DataFacts) -> list[Recipe]:
    first, low, high = rates
    recipes = [
        Recipe("plain", (), {"learning_rate": first}),
        Recipe("mined", (Ingredient.MINED,), {"learning_rate": first}),
        Recipe(_CAUTIOUS, (), {"learning_rate": low}),
        Recipe("hybrid", (Ingredient.HYBRID,), {"learning_rate": first, **_HYBRID}),
        Recipe("mined_high", (Ingredient.MINED,), {"learning_rate": high}),
    ]
    if facts.has_corpus:
        recipes.insert(4, Recipe("pairs", (Ingredient.PAIRS,), {"learning_rate": first}))
    return recipes


def _of_an_extended_base(rates: tuple[float, float, float]) -> list[Recipe]:
    rate, _, high = rates
    extended, rows = Ingredient.EXTENDED, {"new_token_learning_rate": _NEW_ROWS}
    return [
        Recipe("extended", (extended,), {"learning_rate": rate, **rows}),
        Recipe("extended_hybrid", (extended, Ingredient.HYBRID), {"learning_rate": rate, **rows, **_HYBRID}),
        Recipe("extended_high", (extended,), {"learning_rate": high, "new_token_learning_rate": 2 * _NEW_ROWS}),
        Recipe("extended_pairs", (extended, Ingredient.PAIRS), {"learning_rate": rate, **rows}),
        Recipe("plain", (), {"learning_rate": rate}),
    ]
