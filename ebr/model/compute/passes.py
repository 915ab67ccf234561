"""Forward passes of one model at once on a processor, each on cores of its own.

Threads that share a pass wait for the slowest of them at every product, and where another program takes a core for a while they
all wait: on a busy machine two threads that share one have been seen to be slower than one alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import TypeVar

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from ebr.model.compute.packed_weights import PackedForward

Batch = TypeVar("Batch")
Rows = TypeVar("Rows")

# A model of these parts alone has no code of a publisher's in it, nor a kernel that packs weights on its way.
_PARTS = ("torch.nn.", "transformers.", "sentence_transformers.", "peft.", "ebr.")
# Read for what they keep from one pass to the next: nothing. BigBird, for one, changes how it attends by the length of a text.
_ENCODERS = {"albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"}
_DECODERS = {"gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"}
# Others stretch their table when a longer text comes, for every pass.
_ROTATIONS = {"default", "linear", "llama3", "yarn"}
# A pass of less is not worth a core of its own; measured on cores with AMX and with AVX-512: more than the second is slower.
_FEWEST_TOKENS, _MOST_TOKENS = 256, 2048


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
    changed = module._forward_hooks or module._forward_pre_hooks or module._compiled_call_impl is not None
    return type(module).__module__.startswith(_PARTS) and not changed and _is_ours(module)


def _is_ours(module: nn.Module) -> bool:
    """Whether a forward that was set on the module alone, if any, is one of this package, or the class's own."""
    forward = module.__dict__.get("forward")
    if isinstance(forward, MethodType):
        return forward.__func__ is type(module).forward
    ours = isinstance(forward, partial) and forward.func.__module__.startswith("ebr.")
    return forward is None or ours or isinstance(forward, PackedForward)


def how_many(model: SentenceTransformer, n_tokens: int, longest: int, token_budget: int) -> tuple[int, int]:
    """Passes at once for texts of so many tokens, and the tokens of each: as many passes as keep every core busy to the end.

    longest: tokens of a text, at most; those at work together are held to what as many passes of the budget would hold.
    """
    n_threads = torch.get_num_threads()
    wanted = min(n_threads, n_tokens // _FEWEST_TOKENS, n_threads * token_budget // longest)
    at_once = n_threads // -(-n_threads // max(1, wanted))  # every thread has its pass
    if model.device.type != "cpu" or at_once < 2 or not keeps_nothing(model):
        return 1, token_budget
    most = min(token_budget, _MOST_TOKENS)
    n_passes = -(-n_tokens // (at_once * most)) * at_once
    return at_once, min(most, -(-n_tokens // n_passes))


def at_once(call: Callable[[Batch], Rows | None], waiting: deque[Batch], n_at_once: int) -> Iterator[tuple[Batch, Rows | None]]:
    """Every batch that waits and what the call gives for it, in their order, so many calls running at once.

    Where one gives None, no more are begun: what was not begun still waits when the results have come to an end. None runs any
    more then, nor when the caller stops, or a call raises: that comes out here. The threads of this process are dealt out.
    """
    n_threads = torch.get_num_threads()
    running: deque[tuple[Batch, Future[Rows | None]]] = deque()
    with _pool(n_at_once, n_threads) as pool:
        is_short = False
        while running or (waiting and not is_short):
            while waiting and not is_short and len(running) < n_at_once:
                batch = waiting.popleft()
                running.append((batch, pool.submit(call, batch)))
            batch, future = running.popleft()
            rows = future.result()
            is_short = is_short or rows is None
            yield batch, rows


@contextmanager
def _pool(n_at_once: int, n_threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(n_at_once, "pass", torch.set_num_threads, (n_threads // n_at_once,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # Each thread has its own number, but a new thread gets the last one that any thread was given.
        torch.set_num_threads(n_threads)
