"""The choice among trials, with the noise in mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ebr.data.evaluation.comparison import CONFIDENCE, Interval
from ebr.workflow.tune.recipes import Recipe
from ebr.workflow.tune.trials import Soup, Trial

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """What is taken. best: the trial of the best mean. chosen: the trial that is taken; None = the base stays.

    gain: of what is taken over the base, or of the best where nothing is. p: of the same, by a randomisation test. soup: the
    chosen trial with those that make it better; None until it is stirred.
    """

    best: Trial
    chosen: Trial | None
    gain: Interval
    p: float
    soup: Soup | None = None

    def with_soup(self, soup: Soup, base: Scores, *, seed: int) -> Choice:
        """The same, the soup taken: or the chosen trial alone, where the soup is not better than the base beyond chance."""
        assert self.chosen is not None
        gain, p = _gain(base, soup.by_query(), seed)
        if not _is_beyond_chance(gain, p):
            return replace(self, soup=Soup.of(self.chosen))
        return replace(self, soup=soup, gain=gain, p=p)


def choose(base: Scores, trials: Sequence[Trial], *, seed: int) -> Choice:
    """Choose among trials that were measured on the same queries as the base.

    As good as the best is what lies within one standard error of the paired difference (the one-standard-error rule of Breiman
    et al. 1984) and gains over the base beyond chance: interval and randomisation test have to agree. Of these the simplest
    is taken: of the fewest ingredients, and among such of the best mean. The base stays where there is none.
    """
    best = max(trials, key=lambda trial: trial.mean)
    equals = [trial for trial in trials if is_as_good(trial.by_query(), best.by_query())]
    for trial in sorted(equals, key=_complexity):
        gain, p = _gain(base, trial.by_query(), seed)
        if _is_beyond_chance(gain, p):
            return Choice(best, trial, gain, p)
    return Choice(best, None, *_gain(base, best.by_query(), seed))


def _is_beyond_chance(gain: Interval, p: float) -> bool:
    """Interval and randomisation test have to agree."""
    return gain.low > 0 and p <= 1 - CONFIDENCE


def _gain(base: Scores, found: Scores, seed: int) -> tuple[Interval, float]:
    """What is found over the base, with its interval, and the p-value of a randomisation test."""
    from ebr.retrieval.measures.significance import paired_bootstrap, randomization_test

    return paired_bootstrap(base, found, seed=seed), randomization_test(base, found, seed=seed)


def _complexity(trial: Trial) -> tuple[int, float]:
    return len(trial.recipe.ingredients), -trial.mean


def left_below(steps: int, trials: Sequence[Trial]) -> list[Recipe]:
    """The recipes that were never tried with so many steps, those with the best figures first.

    Those that lost by more steps already are passed over.
    """
    of_recipe: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.steps):
        of_recipe.setdefault(trial.recipe.name, []).append(trial)
    longest = [own[-1] for own in of_recipe.values() if own[-1] == max(own, key=lambda one: one.mean)]
    found = [trial for trial in longest if trial.steps < steps]
    return [trial.recipe for trial in sorted(found, key=lambda trial: -trial.mean)]


def is_as_good(scores: Scores, best: Scores) -> bool:
    """Whether the mean of the paired difference to the best is within its own standard error."""
    differences = best - scores
    error = float(differences.std(ddof=1)) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return bool(differences.mean() <= error)
