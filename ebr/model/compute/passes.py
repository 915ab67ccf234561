"""Forward passes of one model at once on a processor, each on cores of its own.

Threads that share a pass wait for the slowest of them at every product, and where another program takes a core for a while they
all wait: on a busy machine two threads that share one have been seen to be slower than one alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

Batch = TypeVar("Batch")
Rows = TypeVar("Rows")

# A model of these parts alone has no code of a publisher's in it, nor a kernel that packs weights on its way.
_PARTS = ("torch.nn.", "transformers.", "sentence_transformers.", "peft.")
# Read for what they keep from one pass to the next: nothing. BigBird, for one, changes how it attends by the length of a text.
_ENCODERS = {"albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"}
_DECODERS = {"gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"}
# Others stretch their table when a longer text comes, for every pass.
_ROTATIONS = {"default", "linear", "llama3", "yarn"}
# A pass of less is not worth a core of its own; passes that share a cache are no smaller than the second.
_FEWEST_TOKENS, _ENOUGH_TOKENS = 256, 1024


def keeps_nothing(model: SentenceTransformer) -> bool:
    """Whether passes of a model do not see one another: no part of it keeps anything that a pass leaves."""
    config = getattr(getattr(model[0], "model", None), "config", None)
    if getattr(config, "model_type", None) not in _ENCODERS | _DECODERS:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [one for one in rope.values() if isinstance(one, dict)] or [rope]
    rotates = all(one.get("rope_type", "default") in _ROTATIONS for one in by_layer)
    return rotates and all(_is_plain(module) for module in model.modules())


def _is_plain(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module).__module__.startswith(_PARTS) and not hooked


def how_many(model: SentenceTransformer, n_tokens: int, token_budget: int) -> tuple[int, int]:
    """Passes at once for texts of so many tokens, and the tokens of each: as many passes as keep every core busy to the end.

    token_budget: of one pass alone, which has all of the cache.
    """
    at_once = min(torch.get_num_threads(), n_tokens // _FEWEST_TOKENS)
    if model.device.type != "cpu" or at_once < 2 or not keeps_nothing(model):
        return 1, token_budget
    most = min(token_budget, max(_ENOUGH_TOKENS, token_budget // at_once))
    n_passes = -(-n_tokens // (at_once * most)) * at_once
    return at_once, min(most, -(-n_tokens // n_passes))


class Passes(Generic[Batch, Rows]):
    """Calls of one function, some at once; their results come in the order of the calls.

    pool: None = each runs in the calling thread, when its result is asked for.
    """

    def __init__(self, call: Callable[[Batch], Rows], at_once: int, pool: ThreadPoolExecutor | None) -> None:
        self._call, self._at_once, self._pool = call, at_once, pool
        self._started: deque[tuple[Batch, Future[Rows] | None]] = deque()

    def __bool__(self) -> bool:
        """Whether a result is still to come."""
        return bool(self._started)

    def start(self, waiting: deque[Batch]) -> None:
        """Take from what waits, as long as there is room."""
        while waiting and len(self._started) < self._at_once:
            batch = waiting.popleft()
            self._started.append((batch, self._pool.submit(self._call, batch) if self._pool else None))

    def next(self) -> tuple[Batch, Rows]:
        """The oldest call's batch and result. Raises what it raised."""
        batch, future = self._started.popleft()
        return batch, self._call(batch) if future is None else future.result()


@contextmanager
def passes_at_once(call: Callable[[Batch], Rows], at_once: int) -> Iterator[Passes[Batch, Rows]]:
    """So many calls at once, the threads of this process dealt out among them. None runs any more when the block ends."""
    if at_once < 2:
        yield Passes(call, 1, None)
        return
    n_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(at_once, "pass", torch.set_num_threads, (n_threads // at_once,))
    try:
        yield Passes(call, at_once, pool)
    finally:
        pool.shutdown(cancel_futures=True)
        # Each thread has its own number, but a new thread gets the last one that any thread was given.
        torch.set_num_threads(n_threads)
