"""What goes wrong with a training run, told from its figures: each symptom sees them as they come, and says what it found.

A threshold here has two sides: far from what a healthy run does, and met more than once, so that noise alone does not reach it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, median, median_low
from typing import Protocol

import numpy as np

Figures = Mapping[str, float]
"""What the trainer logs: loss, its bounds loss_floor and loss_chance, grad_norm, learning_rate; or eval_loss."""

LOSS_AT_ZERO, OVERFITTING, NOT_FINITE = "loss-at-zero", "overfitting", "not-finite"
EXPLODING, DEAD, SLOW = "exploding-gradient", "dead-adapter", "slow-steps"
NO_CHECKPOINT, NO_LOG, NO_BEST = "checkpoint-not-written", "log-not-written", "best-weights-lost"

# In a pass of GradScaler's search for a scale, infinite gradients are how it finds one.
_SCALE_SEARCH_STEPS = 30


class AnomalyDetector(Protocol):
    """One way in which a run goes wrong, as its logs show it."""

    name: str

    def see(self, step: int, n_steps: int, figures: Figures) -> str | None:
        """What is wrong at this step, with the figures; None while nothing is. n_steps: those that the loss is the mean of."""
        ...


class LossAtZero:
    """The loss is under a hundredth of what guessing gives, over ten logs and twenty steps: nothing is left to learn.

    Both are counted from the lowest loss there can be. A loss that is logged without its bounds is not judged.
    """

    name = LOSS_AT_ZERO
    share, least_logs, least_steps = 0.01, 10, 20
    least_chance = 1e-6
    """Nats; below it there was no choice, and a loss of zero says nothing."""

    def __init__(self) -> None:
        self._logs: deque[tuple[int, float, float, float]] = deque()

    def see(self, step: int, n_steps: int, figures: Figures) -> str | None:
        """See AnomalyDetector."""
        if not figures.keys() >= {"loss", "loss_floor", "loss_chance"}:
            return None
        self._logs.append((n_steps, figures["loss"], figures["loss_floor"], figures["loss_chance"]))
        while len(self._logs) > self.least_logs and self._covered() - self._logs[0][0] >= self.least_steps:
            self._logs.popleft()
        covered = self._covered()
        if len(self._logs) < self.least_logs or covered < self.least_steps:
            return None
        mean, floor, chance = (sum(log[0] * log[place] for log in self._logs) / covered for place in (1, 2, 3))
        if chance < self.least_chance or not mean - floor < self.share * (chance - floor):
            return None
        least = f" ({floor:.4g} is the least with label smoothing)" if floor else ""
        over = f"over the last {covered} steps; guessing gives {chance:.3g}"
        return f"the loss is {mean:.2g}{least} {over}: nothing is left to learn"

    def _covered(self) -> int:
        return sum(log[0] for log in self._logs)


class Overfitting:
    """The validation loss has not been as low for three evaluations and rises, while the training loss goes on falling.

    Compared are means of three evaluations, now and where they were lowest; what counts as a change is two per cent, and three
    standard deviations of the noise from one evaluation to the next.
    """

    name = OVERFITTING
    patience, width, share = 3, 3, 0.02
    least_rise = 0.005
    """Nats; below it a rise means nothing."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._validation: list[float] = []
        self._training: list[float] = []
        self._sum, self._n = 0.0, 0

    def see(self, step: int, n_steps: int, figures: Figures) -> str | None:
        """See AnomalyDetector."""
        loss, validation = figures.get("loss", math.nan), figures.get("eval_loss", math.nan)
        if math.isfinite(loss):
            self._sum, self._n = self._sum + n_steps * loss, self._n + n_steps
        # The evaluation at the end of a run may repeat the last one.
        if not math.isfinite(validation) or not self._n:
            return None
        self._steps.append(step)
        self._validation.append(validation)
        self._training.append(self._sum / self._n)
        self._sum, self._n = 0.0, 0
        return self._judge()

    def _judge(self) -> str | None:
        lowest = self._validation.index(min(self._validation))
        if len(self._validation) - 1 - lowest < self.patience:
            return None
        validation, training = (_rolling(values, self.width) for values in (self._validation, self._training))
        then = validation.index(min(validation))
        rise, fall = validation[-1] - validation[then], training[then] - training[-1]
        rises = rise > max(self.share * validation[then], self.least_rise, 3 * noise_of(self._validation))
        falls = fall > max(self.share * training[then], 3 * noise_of(self._training))
        if not (rises and falls):
            return None
        (low, now), (before, after) = ((values[lowest], values[-1]) for values in (self._validation, self._training))
        return (
            f"the validation loss rose from {low:.4g} at step {self._steps[lowest]} to {now:.4g}, "
            f"while the training loss fell from {before:.4g} to {after:.4g}"
        )


def _rolling(values: Sequence[float], width: int) -> list[float]:
    return [fmean(values[start : start + width]) for start in range(len(values) - width + 1)]


def noise_of(values: Sequence[float]) -> float:
    """The standard deviation of what is neither level nor steady trend in a series, from its second differences; 0 below three.

    Those of normal noise have six times its variance, and the median of their size is 0.6745 of their deviation; of two in the
    middle it is the lower one, for in a short series some are where it turns.
    """
    if len(values) < 3:
        return 0.0
    bends = [abs(after - 2 * value + before) for before, value, after in zip(values, values[1:], values[2:], strict=False)]
    return median_low(bends) / (0.6745 * math.sqrt(6))


class NotFinite:
    """The loss or the gradient is no number any more. Mixed precision in float16 may meet that for a while, and goes on."""

    name = NOT_FINITE

    def __init__(self, fp16: bool = False) -> None:
        self.fp16 = fp16
        self._good: str = ""
        self._bad_steps = 0

    def see(self, step: int, n_steps: int, figures: Figures) -> str | None:
        """See AnomalyDetector."""
        seen = {name: figures[name] for name in ("loss", "grad_norm", "eval_loss") if name in figures}
        bad = [name for name, value in seen.items() if not math.isfinite(value)]
        words = ", ".join(f"{name} {value:.4g}" for name, value in seen.items())
        if not bad:
            if "loss" in seen:
                self._good, self._bad_steps = f"; at step {step} it still was {words}", 0
            return None
        self._bad_steps += n_steps
        if self.fp16 and bad == ["grad_norm"] and self._bad_steps < _SCALE_SEARCH_STEPS:
            return None
        return f"no number any more: {words}{self._good}"


class ExplodingGradient:
    """The gradient is a hundred times its usual size, twice within five logs.

    Usual is the median of the last fifty. Where most batches have nothing to teach, that is small, and an ordinary batch far
    above it: so it must also be ten times the largest of them. The latest ten do not count, or a gradient that grows from log
    to log would never stand out.
    """

    name = EXPLODING
    times_median, times_largest, least_logs, latest, repeats = 100, 10, 10, 10, 2

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=50)
        self._recent: deque[bool] = deque(maxlen=5)

    def see(self, step: int, n_steps: int, figures: Figures) -> str | None:
        """See AnomalyDetector."""
        norm = figures.get("grad_norm", math.nan)
        if not math.isfinite(norm):
            return None
        n_seen = len(self._usual)
        usual = list(self._usual)[: max(n_seen - self.latest, n_seen // 2)]
        high = (
            max(self.times_median * median(usual), self.times_largest * max(usual)) if n_seen >= self.least_logs else math.inf
        )
        # Where there was no gradient, any is one that came to life.
        exceeds = 0 < high < norm
        self._recent.append(exceeds)
        if not exceeds:
            self._usual.append(norm)
            return None
        if sum(self._recent) < self.repeats:
            return None
        return f"the gradient's norm is {norm:.3g}, {norm / median(usual):,.0f} times the usual {median(usual):.3g}"


class ZeroGradient:
    """No weight gets a gradient although there is a loss, in three logs in turn."""

    name = DEAD
    repeats = 3
    least_loss = 1e-3
    """Below it there may be no gradient, and LossAtZero has the word."""

    def __init__(self) -> None:
        self._count = 0

    def see(self, step: int, n_steps: int, figures: Figures) -> str | None:
        """See AnomalyDetector."""
        if "grad_norm" not in figures or "loss" not in figures:
            return None
        dead = figures["grad_norm"] == 0 and figures["loss"] > self.least_loss
        self._count = self._count + 1 if dead else 0
        if self._count < self.repeats:
            return None
        loss = figures["loss"]
        return f"no trained weight gets a gradient: its norm is 0 in {self._count} logs in turn, at a loss of {loss:.4g}"


class FrozenVectors:
    """A fixed text has the vector that it had before the run, after twenty steps and still after fifty.

    Steps count while the learning rate is a tenth of its peak or more: bfloat16 rounds away what warm-up does at first.
    A run that ends before is judged at its end, from ten such steps on.
    """

    checks, least = (20, 50), 10

    def __init__(self, before: np.ndarray, peak: float) -> None:
        self.before = before
        self.peak = peak
        self._steps = 0
        self._left = list(self.checks)

    def is_due(self, n_steps: int, figures: Figures) -> bool:
        """Whether to look at the vector now."""
        if not self._left or "learning_rate" not in figures:
            return False
        if figures["learning_rate"] >= 0.1 * self.peak:
            self._steps += n_steps
        return self._steps >= self._left[0]

    def is_due_at_end(self) -> bool:
        """Whether to look at the vector once more, and judge."""
        return bool(self._left) and self._steps >= self.least

    def see(self, now: np.ndarray, *, is_last: bool = False) -> str | None:
        """What is wrong when it is so at the last look; the first that shows a change is the last."""
        self._left = [] if is_last else [check for check in self._left if check > self._steps]
        largest = float(np.abs(now - self.before).max())
        # Not <=: what is nan has changed.
        if not largest <= 1e-6 * float(np.abs(self.before).max()):
            self._left = []
            return None
        if self._left:
            return None
        return f"the vector of a fixed text is the same as before, {self._steps} steps ago (largest difference {largest:.1g})"


class SlowSteps:
    """Two windows in turn have less than a third of the steps a second of the best one.

    A window is twenty steps and ten seconds at least, or five steps in two minutes.
    """

    times = 3.0
    windows = ((20, 10.0), (5, 120.0))

    def __init__(self) -> None:
        self.best = 0.0
        self._n, self._seconds, self._was_slow = 0, 0.0, False

    def see(self, seconds: float) -> str | None:
        """One step took so long, evaluations and checkpoints apart."""
        self._n, self._seconds = self._n + 1, self._seconds + seconds
        if not any(self._n >= steps and self._seconds >= least for steps, least in self.windows):
            return None
        rate = self._n / self._seconds
        self._n, self._seconds = 0, 0.0
        self.best = max(self.best, rate)
        is_slow, was_slow = rate * self.times < self.best, self._was_slow
        self._was_slow = is_slow
        if not (is_slow and was_slow):
            return None
        return f"{rate:.3g} steps a second now, {self.best:.3g} at best: {self.best / rate:.1f} times slower"
