"""The choice among trials, with the noise in mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ebr.data.evaluation.comparison import CONFIDENCE, Interval
from ebr.workflow.tune.recipes import Recipe
from ebr.workflow.tune.trials import Figures, Scores, Soup, Trial

MOST_PARTS = 3
"""That an open choice looks at: each takes a training."""


@dataclass(frozen=True)
class Gain:
    """What a model has over the base on the same queries, with 95 % intervals and p-values of randomisation tests.

    ndcg: in nDCG@10. likelihood: of the right answers, in nats: every document counts there, and not the first ten alone, so
    that it tells sooner whether anything was learnt, above all where few of the right answers are known.
    """

    ndcg: Interval
    p: float
    likelihood: Interval
    likelihood_p: float

    @classmethod
    def over(cls, base: Figures, found: Figures, *, seed: int) -> Gain:
        """Of what is found over the base."""
        from ebr.retrieval.measures.significance import paired_bootstrap, randomization_test

        pairs = ((base.ndcg, found.ndcg), (base.likelihood, found.likelihood))
        ndcg, likelihood = ((paired_bootstrap(*pair, seed=seed), randomization_test(*pair, seed=seed)) for pair in pairs)
        return cls(*ndcg, *likelihood)

    @property
    def is_sure_by_ndcg(self) -> bool:
        """Whether more is found beyond chance: interval and randomisation test have to agree."""
        return self.ndcg.low > 0 and self.p <= 1 - CONFIDENCE

    @property
    def is_sure(self) -> bool:
        """Whether it is better beyond chance: by nDCG@10, or by likelihood where nDCG@10 is higher too."""
        is_likelier = self.likelihood.low > 0 and self.likelihood_p <= 1 - CONFIDENCE
        return self.is_sure_by_ndcg or (is_likelier and self.ndcg.difference > 0)

    def told(self) -> str:
        """In figures; likelihood where nDCG@10 alone does not tell."""
        found = f"{_in_figures(self.ndcg)}, p {self.p:.4f}"
        by_likelihood = f" (log-likelihood {_in_figures(self.likelihood)}, p {self.likelihood_p:.4f})"
        return found if self.is_sure_by_ndcg else found + by_likelihood


def _in_figures(interval: Interval) -> str:
    return f"{interval.difference:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


@dataclass(frozen=True)
class Choice:
    """What is taken. best: the trial of the best mean. chosen: the trial that is taken; None = the base stays.

    gain: of what is taken, or of the best where nothing is. n_parts: on whose queries that was found, see seen_on. soup: the
    chosen trial with those that make it better; None until it is stirred.
    """

    best: Trial
    chosen: Trial | None
    gain: Gain
    n_parts: int = 1
    soup: Soup | None = None

    @property
    def is_open(self) -> bool:
        """Whether the best gains over the base, and not beyond chance: more queries may tell."""
        return self.chosen is None and max(self.gain.ndcg.difference, self.gain.likelihood.difference) > 0

    def seen_on(self, parts: Sequence[tuple[Figures, Figures]], *, seed: int) -> Choice:
        """The same, by the best alone on the queries of several parts, which its recipe was not trained on in turn.

        parts: of the base and of the trial. Cross-validation (Stone 1974): what is trained for one part learns mostly from the
        same records as what is trained for another, so that the interval is a little too narrow.
        """
        base, found = (Figures.joined(of) for of in zip(*parts, strict=True))
        gain = Gain.over(base, found, seed=seed)
        return Choice(self.best, self.best if gain.is_sure else None, gain, len(parts))

    def with_soup(self, soup: Soup, base: Figures, *, seed: int) -> Choice:
        """The same, the soup taken: or the chosen trial alone, where the soup is not better than the base beyond chance."""
        assert self.chosen is not None
        alone = replace(self, soup=Soup.of(self.chosen))
        if len(soup.members) == 1:
            return alone
        gain = Gain.over(base, soup.measured, seed=seed)
        return replace(self, soup=soup, gain=gain, n_parts=1) if gain.is_sure else alone


def choose(base: Figures, trials: Sequence[Trial], *, seed: int) -> Choice:
    """Choose among trials that were measured on the same queries as the base.

    As good as the best is what lies within one standard error of the paired difference (the one-standard-error rule of Breiman
    et al. 1984) and is surely better than the base. Of these the simplest is taken: of the fewest ingredients, and among such
    of the best mean. The base stays where there is none.
    """
    best = max(trials, key=lambda trial: trial.mean)
    equals = [trial for trial in trials if is_as_good(trial.ndcg, best.ndcg)]
    for trial in sorted(equals, key=_complexity):
        gain = Gain.over(base, trial.measured, seed=seed)
        if gain.is_sure:
            return Choice(best, trial, gain)
    return Choice(best, None, Gain.over(base, best.measured, seed=seed))


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
