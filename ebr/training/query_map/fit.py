"""Learn the map: from the identity, towards the records, and no further than those that were held out gain."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ebr.config import AdaptConfig
from ebr.data.speech import Say
from ebr.errors import DataError
from ebr.training.loss.objectives import InfoNCE, Targets
from ebr.training.query_map.cached import CachedBatch, CachedRecords

_MOST_HELD_OUT, _MOST_PASSAGES = 1000, 4096
"""Records that are looked at, and passages beside their own: enough to tell, and a look is quick."""
_STEPS_A_LOOK, _PATIENCE = 20, 5
_TEMPERATURES = tuple(0.2 / 1.6**place for place in range(12))
"""Down to 0.001."""
_SURE, _LEAST_GAIN = 2.0, 0.01
"""Standard errors that a difference must have to be taken for one, and nats that are worth a model."""
_NONE = torch.zeros(0)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A map on the V records that were held out.

    costs: (V,) nats, at the temperature that suits the map best: to spread all scores alike is no gain. reciprocal_ranks: (V,)
    of each record's own positive, among its candidates that are no right answers.
    """

    costs: Tensor
    reciprocal_ranks: Tensor

    @property
    def loss(self) -> float:
        """Mean cost; lower is better."""
        return float(self.costs.mean())

    @property
    def mrr(self) -> float:
        """0..1, higher is better."""
        return float(self.reciprocal_ranks.mean())

    def is_surely_better_than(self, other: HeldOut) -> bool:
        """Whether the loss is lower beyond chance, and the ranking not worse beyond it."""
        return (
            other.loss - self.loss >= _LEAST_GAIN
            and _standard_errors(other.costs - self.costs) > _SURE
            and _standard_errors(self.reciprocal_ranks - other.reciprocal_ranks) >= -_SURE
        )

    def to_json(self) -> dict[str, float]:
        """The means."""
        return {"loss": self.loss, "mrr": self.mrr}


@dataclass(frozen=True, eq=False)
class QueryMap:
    """The map that was chosen, and how. weight: W, (D, D) float32: a query's vector x becomes W x."""

    weight: Tensor
    step: int
    n_steps: int
    seconds: float
    before: HeldOut
    after: HeldOut

    @property
    def distance(self) -> float:
        """Of W from the identity: the root of the sum of the squared differences."""
        return float((self.weight - torch.eye(len(self.weight))).norm())

    def line(self) -> str:
        """What became of the held-out records, for people."""
        return (
            f"step {self.step} of {self.n_steps}, {self.seconds:.1f} s; held out: loss {self.before.loss:.4f} → "
            f"{self.after.loss:.4f}, MRR {self.before.mrr:.4f} → {self.after.mrr:.4f}"
        )


def fit_query_map(records: CachedRecords, config: AdaptConfig, say: Say) -> QueryMap:
    """The map that is best for the held-out records, of those on the way from the identity.

    Minimised: the in-batch loss of fine-tuning (see InfoNCE; right answers are hidden) + towards_identity × ‖W − I‖². The same
    vectors, config and seed give the same map. Raises DataError where no map is surely better than none.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(config.seed)
    objective = InfoNCE(config.temperature)
    held_out = records.held_out(rng, most_rows=_MOST_HELD_OUT, most_passages=_MOST_PASSAGES)
    identity = torch.eye(records.dim)
    weight = identity.clone().requires_grad_()
    before = best = _look(identity, held_out)
    chosen, chosen_step, step = identity, 0, 0
    optimizer = torch.optim.Adam([weight], lr=config.learning_rate)
    for step, batch in enumerate(records.epochs(rng, config.train_batch_size), start=1):
        optimizer.zero_grad()
        targets = Targets(batch.mask, _NONE, _NONE)
        cost = objective(batch.queries @ weight.T, batch.candidates, targets)["contrastive_loss"]
        (cost + config.towards_identity * (weight - identity).square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % _STEPS_A_LOOK == 0 or step == config.max_steps:
            now = _look(weight.detach(), held_out)
            if now.loss < best.loss:
                best, chosen, chosen_step = now, weight.detach().clone(), step
        if step - chosen_step >= _PATIENCE * _STEPS_A_LOOK or step >= config.max_steps:
            break
    found = QueryMap(chosen, chosen_step, step, time.perf_counter() - started, before, best)
    if not best.is_surely_better_than(before):
        raise DataError(
            f"data_path {config.data_path}: no map of the queries is surely better than none ({found.line()}); nothing was "
            "written: the base as it is serves these queries as well. Give more records, or tune the model itself (ebr "
            "finetune), which moves documents too"
        )
    say(f"map     {found.line()}")
    return found


@torch.no_grad()
def _look(weight: Tensor, batch: CachedBatch) -> HeldOut:
    """How a map does on records that it does not learn from."""
    rows = torch.arange(len(batch.queries))
    candidates = normalize(batch.candidates, dim=1)
    cosines = (normalize(batch.queries @ weight.T, dim=1) @ candidates.T).masked_fill(~batch.mask, -torch.inf)
    each = ((cosines / temperature).logsumexp(dim=1) - cosines.diagonal() / temperature for temperature in _TEMPERATURES)
    costs = min(each, key=lambda found: float(found.mean()))
    # By the vectors as they are, in which a model that is compared by inner product ranks; a tie is lost.
    scores = (batch.queries @ weight.T) @ batch.candidates.T
    ahead = (scores >= scores.diagonal()[:, None]) & batch.mask
    ahead[rows, rows] = False
    return HeldOut(costs.double(), 1 / (1 + ahead.sum(dim=1)).double())


def _standard_errors(differences: Tensor) -> float:
    """How many of its own standard errors a mean lies above 0; of one alone, or of equal ones, as far as can be."""
    mean = float(differences.mean())
    error = float(differences.std()) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return mean / error if error else float(np.sign(mean)) * float("inf") if mean else 0.0
