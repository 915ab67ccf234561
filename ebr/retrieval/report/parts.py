"""What a report is made of: measurements, contrasts and the facts that say how they came to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ebr.data.evaluation.calibration import Calibration
from ebr.data.evaluation.comparison import Comparison, Interval
from ebr.data.evaluation.leaks import LeakCheck
from ebr.retrieval.measures.changes import ChangedQuery, Slice
from ebr.retrieval.measures.compression import Compressed
from ebr.retrieval.measures.measurement import Evaluation
from ebr.retrieval.measures.significance import WinsTiesLosses
from ebr.retrieval.measures.space import SpaceHealth

MOST_CHARACTERS = 4000
"""A longer text is cut even where it is shown in full: forty queries with twenty documents each must stay a page."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One model on one evaluation set.

    name: unique within the set. space, thresholds: None and compression: empty where they were not measured. facts: hash,
    pooling, prompts, lengths, dimension, seconds: whatever a reader needs to get the same numbers, by name; plain values.
    """

    name: str
    evaluation: Evaluation
    space: SpaceHealth | None
    compression: list[Compressed]
    facts: dict[str, Any]
    thresholds: Calibration | None = None


@dataclass(frozen=True)
class Contrast:
    """The base against one tuned model, both by the name of their Measured. worse, better: most changed first."""

    base: str
    tuned: str
    comparison: Comparison
    counts: WinsTiesLosses
    worse: list[ChangedQuery]
    better: list[ChangedQuery]
    slices: list[Slice]


@dataclass(frozen=True, eq=False)
class DatasetReport:
    """All that was measured on one evaluation set.

    measured: the base first. baselines: by name, the mean of each metric. rankings: of the models and the baselines, by name;
    not shown, but what run files are written from.
    """

    name: str
    facts: dict[str, Any]
    measured: list[Measured]
    baselines: dict[str, dict[str, float]]
    contrasts: list[Contrast]
    rankings: dict[str, Evaluation] = field(default_factory=dict)

    def thresholds_by_role(self) -> dict[str, Calibration]:
        """Those of the base and of the first model after it, as `base` and `tuned`."""
        pairs = zip(("base", "tuned"), self.measured, strict=False)
        return {role: model.thresholds for role, model in pairs if model.thresholds}

    def evaluation_json(self) -> dict[str, Any]:
        """What evaluation.json of a model's folder holds: base against tuned, and the thresholds of both."""
        thresholds = {role: calibration.to_json() for role, calibration in self.thresholds_by_role().items()}
        return {**self.contrasts[0].comparison.to_json(), "thresholds": thresholds}


@dataclass(frozen=True)
class Attempt:
    """One recipe that was tried before the choice, or the mean of several (a soup): its nDCG@10 on the records to choose on.

    steps: of a soup, of all that went into it. gain: over the base, with its interval. left_out: the ingredient that it lacks
    to show what that one gives; None for one that could be chosen.
    """

    recipe: str
    steps: int
    ndcg: float
    gain: Interval
    seconds: float
    is_chosen: bool = False
    left_out: str | None = None


@dataclass(frozen=True)
class Ladder:
    """What was tried, in the order in which it was.

    baselines: of the base, of BM25 and of both together, by name. n_in_the_end: records that what was chosen was trained on
    once more, those that it was chosen on among them; 0 = it was not. gain, likelihood: of what was chosen, or of the best,
    over the base, in nDCG@10 and in nats of the right answers. n_further: parts of the records on whose queries that was found;
    0 = those of n_queries.
    """

    n_queries: int
    n_documents: int
    baselines: dict[str, float]
    attempts: tuple[Attempt, ...]
    gain: Interval
    likelihood: Interval
    n_further: int = 0
    n_in_the_end: int = 0


@dataclass(frozen=True, eq=False)
class Report:
    """The evidence: on the set that was tuned for, on another one, and what training may have seen of it.

    leaks: None when nothing could be checked; leak_note says why, or what was checked, in one sentence.
    facts: of the whole run, by name; plain values.
    """

    main: DatasetReport
    forgetting: DatasetReport | None
    leaks: LeakCheck | None
    leak_note: str
    facts: dict[str, Any]
    ladder: Ladder | None = None
    """What was tried before; None where a model was not chosen among several."""
