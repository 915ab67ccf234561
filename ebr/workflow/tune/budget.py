"""What a tuning may spend: minutes, which become training steps once it is known what a step takes here."""

from __future__ import annotations

import time
from dataclasses import dataclass

_CAREFUL = 0.92
"""Of the time that is left: steps are not all equally long."""
_LOOKING = 0.25
"""Of the minutes, that evaluations on the part to choose on may take: the rest is for training, and for the proof."""


@dataclass
class Budget:
    """Training steps, and the time by which all must be over.

    ends_at: of time.monotonic(); None = steps alone count. step_s: seconds a step of the plainest recipe; trial_s: what a
    trial takes beside its steps; reserve_s: what must be left for the dial and the proof. used: steps of the trials so far.
    """

    total_steps: int
    ends_at: float | None = None
    step_s: float = 0.0
    trial_s: float = 0.0
    reserve_s: float = 0.0
    used: int = 0

    def allows(self, steps: int, cost: float, beside_s: float = 0.0) -> bool:
        """Whether there is time for a trial of so many steps, each `cost` plain ones, and for beside_s seconds."""
        if self.ends_at is None:
            return True
        needed = steps * self.step_s * cost + self.trial_s + beside_s
        return time.monotonic() + needed + self.reserve_s <= self.ends_at

    def allows_more(self, steps: int, cost: float) -> bool:
        """The same beyond the ladder, which the steps were shared out for: minutes may have more in them than was reckoned."""
        return self.used + steps <= self.total_steps if self.ends_at is None else self.allows(steps, cost)

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
class Speed:
    """What was measured before the ladder is planned, in seconds: a step, what a trial takes beside its steps, the end."""

    step_s: float
    trial_s: float
    reserve_s: float
    once_s: float
    """What is made once for the recipes: mining."""

    def steps_in(self, seconds: float, n_trials: int, cost: float) -> int:
        """Training steps that fit. cost: of a mean step, 1 = a plain one."""
        left = seconds - n_trials * self.trial_s - self.once_s - self.reserve_s
        return max(0, int(_CAREFUL * left / (self.step_s * cost)))
