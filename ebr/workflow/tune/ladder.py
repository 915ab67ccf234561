"""The ladder: many recipes with few steps, the best third of them with three times as many, and so on (successive halving).

Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization". Every trial begins anew
with the steps of its rung: the learning rate of each falls to zero at its own end, so that each is a finished model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ebr.workflow.tune.recipes import Recipe

FACTOR = 3
"""So many times the steps on the next rung, for one recipe in so many: as Li et al. 2018 (Hyperband) take it."""
LEAST_STEPS = 8
"""Fewer tell nothing of a recipe."""
MOST_EPOCHS = 4
NO_FIGURE = float("-inf")
"""Of a recipe that cannot be tried: it goes no further."""
_MOST_RUNGS = 3


@dataclass(frozen=True)
class Rung:
    """How many recipes are tried, and with how many steps each."""

    n_recipes: int
    steps: int


def plan_ladder(n_recipes: int, epoch_steps: int, fits: Callable[[list[Rung]], bool]) -> list[Rung]:
    """The longest rungs that fit, with as many recipes as get LEAST_STEPS; what fits no more is one recipe with a step.

    epoch_steps: steps of one pass over the pairs of the records; no trial makes more than MOST_EPOCHS passes.
    """
    for n in range(n_recipes, 0, -1):
        counts = _counts(n)
        most = max(LEAST_STEPS, MOST_EPOCHS * epoch_steps // FACTOR ** (len(counts) - 1))
        n_fitting = bisect_right(range(1, most + 1), 0, key=lambda steps: 0 if fits(_rungs(counts, steps)) else 1)
        if n_fitting >= LEAST_STEPS or n == 1:
            return _rungs(counts, max(1, n_fitting))
    raise ValueError("there is no recipe to try")


def _rungs(counts: Sequence[int], steps: int) -> list[Rung]:
    return [Rung(count, steps * FACTOR**place) for place, count in enumerate(counts)]


def _counts(n_recipes: int) -> list[int]:
    """Recipes on each rung: all of them, the best third, and so on."""
    counts = [n_recipes]
    while counts[-1] > 1 and len(counts) < _MOST_RUNGS:
        counts.append(-(-counts[-1] // FACTOR))
    return counts


def total_of(rungs: Sequence[Rung], growth: float = 1.0) -> int:
    """Steps of the whole ladder, and of the two trainings in the end, of what was chosen and of the stock recipe.

    growth: steps of a training in the end, for one of the top rung.
    """
    return sum(rung.n_recipes * rung.steps for rung in rungs) + 2 * int(growth * rungs[-1].steps)


def least_in_all(growth: float) -> int:
    """Steps of a ladder of one recipe, and of the end."""
    return total_of([Rung(1, LEAST_STEPS)], growth)


def n_trials(n_recipes: int) -> int:
    """Of a whole ladder."""
    return sum(_counts(n_recipes))


def climb(rungs: Sequence[Rung], recipes: Sequence[Recipe], try_recipe: Callable[[Recipe, int], float | None]) -> None:
    """Try the first recipes on the lowest rung, and those with the best figures on each further one.

    try_recipe: trains with so many steps and returns the figure, higher is better; None = there is no time left, and the
    climb ends; NO_FIGURE = this one cannot be tried. Of equal figures the recipe that was suggested first goes on.
    """
    here = list(recipes[: rungs[0].n_recipes])
    for rung in rungs:
        figures: dict[str, float] = {}
        for recipe in here[: rung.n_recipes]:
            figure = try_recipe(recipe, rung.steps)
            if figure is None:
                return
            figures[recipe.name] = figure
        tried = [recipe for recipe in here[: rung.n_recipes] if figures[recipe.name] > NO_FIGURE]
        here = sorted(tried, key=lambda recipe: -figures[recipe.name])
