"""The choice among trials, with the noise in mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ebr.data.evaluation.comparison import CONFIDENCE, Interval
from ebr.workflow.tune.recipes import Recipe
from ebr.workflow.tune.trials import Figures, Scores, Soup, Trial

_LEAST_NATS = 0.01
"""Of likelihood, that are worth a model: a training of a few steps moves every answer by next to nothing, and so surely."""
MOST_FURTHER = 2
"""Parts of the records that an open choice is judged on: each takes a training."""


@dataclass(frozen=True)
class Difference:
    """A mean difference of paired scores with its 95 % interval, and the p-value of a randomisation test."""

    interval: Interval
    p: float

    @classmethod
    def of(cls, before: Scores, after: Scores, *, seed: int) -> Difference:
        """What came after, less what was before."""
        from ebr.retrieval.measures.significance import paired_bootstrap, randomization_test

        return cls(paired_bootstrap(before, after, seed=seed), randomization_test(before, after, seed=seed))

    @property
    def is_sure(self) -> bool:
        """Whether it is above 0 beyond chance: interval and test have to agree."""
        return self.interval.low > 0 and self.p <= 1 - CONFIDENCE

    def __str__(self) -> str:
        one = self.interval
        return f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}], p {self.p:.4f}"


@dataclass(frozen=True)
class Gain:
    """What a model has over the base on the same queries.

    ndcg: in nDCG@10. likelihood: of the right answers, in nats: every document counts there, and not the first ten alone, so
    that it tells sooner whether anything was learnt, above all where few of the right answers are known.
    """

    ndcg: Difference
    likelihood: Difference

    @classmethod
    def over(cls, base: Figures, found: Figures, *, seed: int) -> Gain:
        """Of what is found over the base."""
        return cls(
            Difference.of(base.ndcg, found.ndcg, seed=seed),
            Difference.of(base.likelihood, found.likelihood, seed=seed),
        )

    @property
    def n_queries(self) -> int:
        """That it was found on."""
        return self.ndcg.interval.n

    @property
    def is_sure(self) -> bool:
        """Whether it is better beyond chance: by nDCG@10, or by likelihood where nDCG@10 is higher too."""
        is_likelier = self.likelihood.is_sure and self.likelihood.interval.difference >= _LEAST_NATS
        return self.ndcg.is_sure or (is_likelier and self.ndcg.interval.difference > 0)

    @property
    def is_open(self) -> bool:
        """Whether more queries may tell: something is gained, and less than that in nDCG@10 cannot be told from chance."""
        rises = max(self.ndcg.interval.difference, self.likelihood.interval.difference) > 0
        return not self.is_sure and rises and self.ndcg.interval.high > 0

    def told(self) -> str:
        """In figures; likelihood where nDCG@10 alone does not tell."""
        return f"{self.ndcg}" if self.ndcg.is_sure else f"{self.ndcg} (log-likelihood {self.likelihood})"


@dataclass(frozen=True)
class Choice:
    """What is taken. best: the trial of the best mean. chosen: the trial that is taken; None = the base stays.

    gain: of what is taken, or of the best where nothing is. n_further: parts of the records on whose queries that was found,
    see judged_on; 0 = the one that it was chosen on. soup: the chosen trial with those that make it better; None until it is
    stirred.
    """

    best: Trial
    chosen: Trial | None
    gain: Gain
    n_further: int = 0
    soup: Soup | None = None

    def judged_on(self, parts: Sequence[tuple[Figures, Figures]], *, seed: int) -> Choice:
        """The same, the best judged by the queries of further parts of the records, which had no say in what is the best.

        parts: of the base, and of the same recipe trained on what lies outside the part. Cross-validation (Stone 1974): what is
        trained for one part learns mostly from the same records as what is trained for another, so that the interval is a
        little too narrow.
        """
        base, found = (Figures.joined(of) for of in zip(*parts, strict=True))
        gain = Gain.over(base, found, seed=seed)
        return Choice(self.best, self.best if gain.is_sure else None, gain, len(parts))

    def with_soup(self, soup: Soup, base: Figures, *, seed: int) -> Choice:
        """The same, the soup taken: or the chosen trial alone, where the soup is not better than the base beyond chance."""
        assert self.chosen is not None
        gain = Gain.over(base, soup.measured, seed=seed)
        return replace(self, soup=soup, gain=gain) if gain.is_sure else replace(self, soup=Soup.of(self.chosen))


def choose(base: Figures, trials: Sequence[Trial], *, seed: int) -> Choice:
    """Choose among trials that were measured on the same queries as the base.

    As good as the best is what lies within one standard error of the paired difference (the one-standard-error rule of Breiman
    et al. 1984) and is surely better than the base. Of these the simplest is taken: of the fewest ingredients, and among such
    of the best mean. The base stays where there is none.
    """
    best = max(trials, key=lambda trial: trial.mean)
    equals = [trial for trial in trials if is_as_good(trial.ndcg, best.ndcg)]
    gains = {trial: Gain.over(base, trial.measured, seed=seed) for trial in equals}
    chosen = next((trial for trial in sorted(equals, key=_complexity) if gains[trial].is_sure), None)
    return Choice(best, chosen, gains[chosen or best])


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
