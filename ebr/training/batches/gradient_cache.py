"""The texts of a batch, embedded in micro-batches: sorted by length, cut under a token budget, computed twice where they must.

Gradients are those of one pass over the whole batch. What autograd saves of a micro-batch is kept for its backward pass as
long as it fits in the memory allowed; of the others only the vectors are, and their backward pass computes them again with the
random numbers of the first time (gradient caching, Gao et al. 2021). So a batch of any size trains in the memory of one
micro-batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from ebr.errors import ModelError
from ebr.model.compute.attention import PADDED, attention_of, is_out_of_memory
from ebr.model.encoder.batching import Ints, cost_of, token_budget_batches
from ebr.model.encoder.text_reader import TextReader, asks_for_role
from ebr.training.batches.collator import TextGroup
from ebr.training.resources.memory import SavedBytes

log = logging.getLogger(__name__)

Say = Callable[[str], None]

_FEWEST_TOKENS = 64
PASS_COST_CPU, PASS_COST_CUDA = 64, 2048
"""Tokens that take as long as a pass costs beside its tokens: what is done once a layer, and products too thin to be fast."""


def least_padding_cuts(lengths: Sequence[int] | Ints, token_budget: int, pass_cost: int) -> list[Ints]:
    """Indices of the texts of each micro-batch, the longest texts first; a pure function of the arguments.

    lengths: in tokens. Of all ways to cut the sorted texts, the one with the smallest sum of (longest × texts + pass_cost) over
    the micro-batches, none beyond token_budget but a text that is so alone: the optimal partition of a sequence, by dynamic
    programming, in O(texts × texts of a micro-batch).
    """
    counts = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    n, longest_first = len(order), counts[order]
    # least[i]: the cost of the first i texts; a micro-batch that begins at text j is as wide as that text.
    least, begins = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    earliest = 0
    for end in range(1, n + 1):
        while earliest < end - 1 and longest_first[earliest] * (end - earliest) > token_budget:
            earliest += 1
        starts = np.arange(earliest, end)
        costs = least[starts] + longest_first[starts] * (end - starts) + pass_cost
        # Of equal cuts the one that begins first: fewer passes.
        best = int(np.argmin(costs))
        least[end], begins[end] = costs[best], starts[best]
    cuts = [n]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    return [order[start:end] for end, start in zip(cuts[-2::-1], cuts[:0:-1], strict=True)]


class OneTextTooLarge(ModelError):
    """A text that does not fit in memory even in a micro-batch of its own.

    place: of the text in its batch. n_tokens: how long it is. alone: whether nothing of other micro-batches was kept beside it.
    """

    def __init__(self, place: int, n_tokens: int, *, alone: bool) -> None:
        super().__init__(f"a text of {n_tokens} tokens does not fit in memory, even alone")
        self.place = place
        self.n_tokens = n_tokens
        self.alone = alone


@dataclass(frozen=True)
class RandomState:
    """Where the generators of the CPU and of the device stand."""

    cpu: Tensor
    device: Tensor | None

    @classmethod
    def of(cls, device: torch.device) -> RandomState:
        """As they stand now."""
        if device.type == "cpu":
            return cls(torch.get_rng_state(), None)
        return cls(torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_index(device)))

    def restore(self, device: torch.device) -> None:
        """Have them draw again what they drew from here."""
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(device).set_rng_state(self.device, *_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """MPS has one device and one generator; its functions take no device."""
    return () if device.type == "mps" else (device,)


@dataclass
class _Pass:
    """One micro-batch. places: (n,) of its texts in the batch. rows: (n, D), with their graph where that is kept.

    random, autocast: what it was computed with; by the time of its backward pass, autocast's block has ended.
    """

    group: TextGroup
    members: Ints
    places: Ints
    random: RandomState
    autocast: tuple[bool, torch.dtype]
    rows: Tensor

    @property
    def is_kept(self) -> bool:
        return self.rows.requires_grad


@dataclass
class GradientCache:
    """Embeds the texts of batches with one model.

    readers: for each source, by role. token_budget: tokens of a micro-batch, those of the padding included. memory: bytes that
    autograd may save at a time. say: hears once that micro-batches are computed twice, and each time that they shrink.
    """

    model: SentenceTransformer
    readers: Sequence[Mapping[str, TextReader]]
    token_budget: int
    memory: float
    say: Say = log.info
    _bytes_a_token: float = field(default=0.0, init=False)
    _longest_measured: int = field(default=0, init=False)
    _held: float = field(default=0.0, init=False)
    """Bytes that the graphs of the latest batch hold."""
    _has_said_twice: bool = field(default=False, init=False)

    def embed(self, groups: Sequence[TextGroup]) -> Tensor:
        """(N, D): a row a text, by its place in the batch; float32 unless the model is of float64."""
        passes = self._forward_all(groups)
        order = torch.cat([torch.from_numpy(one.places) for one in passes]).argsort().to(self.model.device)
        if not any(one.is_kept for one in passes) and not torch.is_grad_enabled():
            return torch.cat([one.rows for one in passes])[order]
        anchor = torch.zeros((), device=self.model.device, requires_grad=True)
        rows: Tensor = _CachedPass.apply(anchor, self, passes)
        return rows[order]

    def shrink(self) -> str:
        """Halve the micro-batch, and what autograd may save with it; returns one line that says so."""
        before, self.token_budget = self.token_budget, max(_FEWEST_TOKENS, self.token_budget // 2)
        # Of what was allowed, half may be far more than there is.
        self.memory = min(self.memory, self._held or self.memory) / 2
        return f"micro-batch {before:,} → {self.token_budget:,} tokens; the batch and its negatives stay as they are"

    @property
    def can_shrink(self) -> bool:
        """Whether a smaller micro-batch is left to try."""
        return self.token_budget > _FEWEST_TOKENS

    def _forward_all(self, groups: Sequence[TextGroup]) -> list[_Pass]:
        passes: list[_Pass] = []
        needs_graph = torch.is_grad_enabled()
        self._held = 0.0
        # The longest come first here too: what is measured of them holds for the others.
        for group in sorted(groups, key=lambda one: -int(one.prepared.lengths.max())):
            padded = not self._packs(group)
            lengths = group.prepared.lengths
            for members in self._cuts(lengths, padded=padded):
                tokens, longest = cost_of(lengths[members], padded=padded), int(lengths[members].max())
                if needs_graph and longest > self._longest_measured:
                    one = self._measured(group, members, tokens, longest)
                else:
                    # One more must fit beside those that are kept: the one that is computed again.
                    fits = self._held + 2 * tokens * self._bytes_a_token <= self.memory or not passes
                    one = self._forward(group, members, with_graph=needs_graph and fits)
                passes.append(one)
                self._held += tokens * self._bytes_a_token if one.is_kept else 0.0
        self._say_twice(passes)
        return passes

    def _cuts(self, lengths: Ints, *, padded: bool) -> list[Ints]:
        if not padded:
            return token_budget_batches(lengths, self.token_budget, padded=False)
        cost = PASS_COST_CUDA if self.model.device.type == "cuda" else PASS_COST_CPU
        return least_padding_cuts(lengths, self.token_budget, cost)

    def _measured(self, group: TextGroup, members: Ints, tokens: int, longest: int) -> _Pass:
        """A pass over the longest texts so far, which tells what autograd saves a token; attention saves by their square."""
        with SavedBytes(self.model.parameters()) as saved:
            one = self._forward(group, members, with_graph=True)
        # Copies of weights that autocast makes are there once, whatever the tokens.
        of_texts = max(saved.total - self._cast_weights(one), saved.total // 10)
        self._bytes_a_token, self._longest_measured = of_texts / tokens, longest
        return one

    def _cast_weights(self, one: _Pass) -> int:
        is_autocast, dtype = one.autocast
        matrices = [weight for weight in self.model.parameters() if weight.requires_grad and weight.ndim > 1]
        return sum(weight.numel() for weight in matrices) * dtype.itemsize if is_autocast else 0

    def _forward(self, group: TextGroup, members: Ints, *, with_graph: bool) -> _Pass:
        device = self.model.device
        random = RandomState.of(device)
        autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        with _naming(group, members, alone=not self._held):
            rows = self._rows(group, members, with_graph=with_graph)
        return _Pass(group, members, group.places[members], random, autocast, rows)

    def _rows(self, group: TextGroup, members: Ints, *, with_graph: bool) -> Tensor:
        reader = self.readers[group.source][group.role]
        features = reader.features(group.prepared, members, packed=self._packs(group))
        # Of pooled texts the role is neither; a model that asks for it has its texts apart, see asks_for_role.
        task: dict[str, Any] = {"task": group.role} if asks_for_role(self.model) else {}
        with torch.set_grad_enabled(with_graph):
            rows: Tensor = self.model(features, **task)["sentence_embedding"]
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def _packs(self, group: TextGroup) -> bool:
        return group.prepared.tokens is not None and attention_of(self.model) != PADDED

    def backward(self, one: _Pass, gradient: Tensor, *, alone: bool) -> None:
        """Add a micro-batch's share to the gradients of the weights.

        gradient: (n, D), of its rows. alone: whether no other's graph is kept any more.
        """
        with _naming(one.group, one.members, alone=alone):
            rows = one.rows if one.is_kept else self._again(one)
            torch.autograd.backward(rows, gradient.to(rows.dtype))
        one.rows = rows.detach()  # with the graph goes what it saved

    def _again(self, one: _Pass) -> Tensor:
        """The rows of a micro-batch with their graph, from the random numbers of the first time."""
        device, (is_autocast, dtype) = self.model.device, one.autocast
        now = RandomState.of(device)
        one.random.restore(device)
        with torch.autocast(device.type, dtype, enabled=is_autocast):
            rows = self._rows(one.group, one.members, with_graph=True)
        now.restore(device)
        return rows

    def _say_twice(self, passes: Sequence[_Pass]) -> None:
        n_twice = sum(not one.is_kept for one in passes)
        if not n_twice or self._has_said_twice or not torch.is_grad_enabled():
            return
        self._has_said_twice = True
        self.say(
            f"gradient cache: of {len(passes)} micro-batches a batch, {n_twice} are computed twice, to stay within "
            f"{self.memory / 2**30:.1f} GiB of activations; the gradients are the same"
        )


@contextmanager
def _naming(group: TextGroup, members: Ints, *, alone: bool) -> Iterator[None]:
    """Out of memory over a single text is an error that names it; see OneTextTooLarge."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error) and len(members) == 1:
            place, n_tokens = int(group.places[members[0]]), int(group.prepared.lengths[members[0]])
            raise OneTextTooLarge(place, n_tokens, alone=alone) from error
        raise


class _CachedPass(torch.autograd.Function):
    """The vectors of all passes as one leaf of the loss; its backward pass goes through the passes one after another."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, embedder: GradientCache, passes: list[_Pass]) -> Tensor:  # noqa: ANN401
        ctx.embedder, ctx.passes = embedder, passes
        return torch.cat([one.rows.detach() for one in passes])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:  # noqa: ANN401
        start = 0
        for one in ctx.passes:
            alone = not any(other.is_kept for other in ctx.passes if other is not one)
            ctx.embedder.backward(one, gradient[start : start + len(one.places)], alone=alone)
            start += len(one.places)
        ctx.passes = []
        return None, None, None
