"""Out of memory is not a crash: the step is done again in smaller micro-batches, with the same batch and the same negatives."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch

from ebr.errors import ModelError
from ebr.model.compute.attention import is_out_of_memory
from ebr.training.batches.collator import Batch
from ebr.training.batches.gradient_cache import GradientCache, OneTextTooLarge, RandomState
from ebr.training.resources.memory import HostWatch, out_of_memory_advice

log = logging.getLogger(__name__)

Say = Callable[[str], None]

_QUERY_SHOWN = 60


class Recovery:
    """Runs steps; when one finds no memory, it shrinks the micro-batch and runs it again, from the same random numbers.

    watch: tells that this machine's memory is nearly full, so that the micro-batch shrinks before it is. query_of: the query of
    a row, to name a text by. spelling: what the front end calls an option. meets: whether a step meets the other processes
    half-way: one of them alone cannot do such a step again.
    """

    def __init__(
        self,
        embedder: GradientCache,
        watch: HostWatch,
        *,
        query_of: Callable[[int], str],
        spelling: Callable[[str], str],
        say: Say,
        meets: bool = False,
    ) -> None:
        self.embedder = embedder
        self.watch = watch
        self.query_of = query_of
        self.spelling = spelling
        self.say = say
        self.meets = meets
        self.events: list[str] = []

    def run(self, step: Callable[[], torch.Tensor], batch: Batch) -> torch.Tensor:
        """The step's loss, with the gradients of this one step added to those that were there.

        Raises ModelError that names the text and the options when it does not fit even alone.
        """
        # Memory that others fill is no reason to give up a run that still works.
        is_on_host = self.embedder.model.device.type == "cpu"
        if is_on_host and self.watch.pressure() and self.embedder.can_shrink:
            self._shrink(f"memory is nearly full ({self.watch.words()})")
        parameters = [one for one in self.embedder.model.parameters() if one.requires_grad]
        before = [one.grad for one in parameters]
        random = RandomState.of(self.embedder.model.device)
        while True:
            _set_gradients(parameters, [None] * len(parameters))
            loss = self._attempt(step, batch)
            if loss is not None:
                break
            random.restore(self.embedder.model.device)
        for parameter, gradient in zip(parameters, before, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        return loss

    def _attempt(self, step: Callable[[], torch.Tensor], batch: Batch) -> torch.Tensor | None:
        """The loss; None when memory ran out and the micro-batch is smaller now."""
        try:
            return step()
        except OneTextTooLarge as error:
            # Beside the graphs of others it may fit once fewer of those are kept.
            if error.alone or not self.embedder.can_shrink:
                raise ModelError(f"{error}: {self._named(error.place, batch)}; {out_of_memory_advice(self.spelling)}") from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self.meets:
            raise ModelError(
                f"out of memory, and with {self.spelling('gather_negatives')} one process cannot do a step again by itself; "
                f"set {self.spelling('micro_batch_tokens')} below {self.embedder.token_budget}, and "
                f"{self.spelling('activation_memory_gb')} below {self.embedder.memory / 2**31:.1f}"
            )
        # Only now are the error and, with its frames, the tensors of the failed step gone.
        self._shrink("out of memory")
        return None

    def _shrink(self, why: str) -> None:
        if not self.embedder.can_shrink:
            raise ModelError(f"{why}, with micro-batches as small as they get; {out_of_memory_advice(self.spelling)}")
        line = f"{why}: {self.embedder.shrink()}"
        self.events.append(line)
        self.say(line)
        gc.collect()
        if self.embedder.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _named(self, place: int, batch: Batch) -> str:
        n_queries = len(batch.rows)
        owner = place if place < n_queries else int(batch.owners[place - n_queries])
        what = "the query" if place < n_queries else "a passage of the query"
        return f"{what} {self.query_of(batch.rows[owner])[:_QUERY_SHOWN]!r}"


def _set_gradients(parameters: list[torch.nn.Parameter], gradients: list[torch.Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
