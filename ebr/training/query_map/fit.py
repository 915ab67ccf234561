"""Learn the map: from the identity, towards the records, and no further than those that were held out gain."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebr.config import AdaptConfig
from ebr.data.speech import Say
from ebr.errors import DataError
from ebr.training.loss.objectives import InfoNCE, Targets
from ebr.training.query_map.cached import CachedBatch, CachedRecords

_MOST_HELD_OUT, _MOST_PASSAGES = 1000, 4096
"""Records that are looked at, and passages beside their own: enough to tell, and a look is quick."""
_STEPS_A_LOOK, _PATIENCE = 10, 10
_NONE = torch.zeros(0)


@dataclass(frozen=True)
class HeldOut:
    """A map on the records that were held out: the loss, and MRR among the candidates (0..1, higher is better)."""

    loss: float
    mrr: float


@dataclass(frozen=True)
class QueryMap:
    """The map that was chosen, and how. weight: W, (D, D) float32: a query's vector x becomes W x."""

    weight: Tensor
    step: int
    n_steps: int
    seconds: float
    before: HeldOut
    after: HeldOut
    distance: float
    """Of W from the identity: the root of the sum of the squared differences."""

    def line(self) -> str:
        """What became of the held-out records, for people."""
        return (
            f"step {self.step} of {self.n_steps}, {self.seconds:.1f} s; held out: MRR {self.before.mrr:.4f} → "
            f"{self.after.mrr:.4f}, loss {self.before.loss:.4f} → {self.after.loss:.4f}"
        )


def fit_query_map(records: CachedRecords, config: AdaptConfig, say: Say) -> QueryMap:
    """The map that is best for the held-out records, of those on the way from the identity.

    Minimised: the in-batch loss of fine-tuning (see InfoNCE; right answers are hidden) + towards_identity × ‖W − I‖². The same
    vectors, config and seed give the same map. Raises DataError where no map is better than none.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(config.seed)
    objective = InfoNCE(config.temperature)
    held_out = records.held_out(rng, most_rows=_MOST_HELD_OUT, most_passages=_MOST_PASSAGES)
    identity = torch.eye(records.dim)
    weight = identity.clone().requires_grad_()
    before = best = _look(identity, held_out, objective)
    chosen, chosen_step, step = identity, 0, 0
    optimizer = torch.optim.Adam([weight], lr=config.learning_rate)
    for step, batch in enumerate(records.epochs(rng, config.train_batch_size), start=1):
        optimizer.zero_grad()
        cost = _loss(weight, batch, objective) + config.towards_identity * (weight - identity).square().sum()
        cost.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % _STEPS_A_LOOK == 0 or step == config.max_steps:
            now = _look(weight.detach(), held_out, objective)
            if now.loss < best.loss and now.mrr >= before.mrr:
                best, chosen, chosen_step = now, weight.detach().clone(), step
        if step - chosen_step >= _PATIENCE * _STEPS_A_LOOK or step >= config.max_steps:
            break
    if not chosen_step:
        raise DataError(
            f"data_path {config.data_path}: no map of the queries is better than none for the records that were held out (MRR "
            f"{before.mrr:.4f}, loss {before.loss:.4f}; {step} steps tried); nothing was written. Give more records, or tune the "
            "model itself (ebr finetune), which moves documents too"
        )
    distance = float((chosen - identity).norm())
    found = QueryMap(chosen, chosen_step, step, time.perf_counter() - started, before, best, distance)
    say(f"map     {found.line()}")
    return found


def _loss(weight: Tensor, batch: CachedBatch, objective: InfoNCE) -> Tensor:
    targets = Targets(batch.mask, _NONE, _NONE)
    return objective(batch.queries @ weight.T, batch.candidates, targets)["contrastive_loss"]


@torch.no_grad()
def _look(weight: Tensor, batch: CachedBatch, objective: InfoNCE) -> HeldOut:
    """How a map does on records that it does not learn from."""
    n_queries = len(batch.queries)
    # By the vectors as they are: of length 1 where the model is compared by cosine, and a query's own length moves no rank.
    scores = (batch.queries @ weight.T) @ batch.candidates.T
    own = scores.diagonal()[:, None]
    others = batch.mask.clone()
    others[torch.arange(n_queries), torch.arange(n_queries)] = False
    ranks = 1 + ((scores >= own) & others).sum(dim=1)
    return HeldOut(_loss(weight, batch, objective).item(), (1 / ranks.double()).mean().item())
