"""What a run will cost, measured on the model itself: seconds a token, bytes a token, and whether that fits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from ebr.config import FinetuneConfig
from ebr.model.compute.attention import PADDED, attention_of, is_out_of_memory
from ebr.model.encoder.batching import Ints, cost_of, default_token_budget, token_budget_batches
from ebr.model.encoder.text_reader import Prepared, TextReader
from ebr.training.resources.memory import SavedBytes, available_bytes
from ebr.training.resources.mixed_precision import mixed_precision, products_dtype

_BUDGET_S = 1.5
# Longer passes would take the whole budget on a CPU, and shorter ones leave a GPU idle.
_TOKENS_MEASURED = {"cuda": 8_192}
_TOKENS_MEASURED_ELSE = 512
_MOST_PASSES = 5
ADAM_BYTES = 8
"""AdamW keeps two float32 figures a trainable weight."""
_SECOND_FORWARD = 4 / 3
"""A step is a forward pass and a backward pass of twice its cost; one more forward pass makes four parts of three."""
_LENGTHS = (4096, 2048, 1024, 512, 256, 128, 64)
_PASSES_A_STEP = 2
_CHARACTERS_A_TEXT, _CHARACTERS_MEASURED = 1_000, 100_000
"""Of a text and of all, what is tokenised to be measured: more than the passes need."""
KEPT_SHARE = 0.5
"""Of the free memory, what the engine keeps activations in when activation_memory_gb is not set."""


@dataclass(frozen=True)
class Cost:
    """What was measured of a model, and what a run of it needs. Times in seconds, sizes in bytes.

    weights: as loaded. trained: gradients and optimiser of the trainable weights. a_token: what autograd saves of a token.
    second_a_token: of a forward and a backward pass. longest: tokens of the longest text. Tokens with padding are batch, of a
    batch, and tokens, of the whole run in one process. room: free memory now, with the weights loaded. kept: of it, what
    activations may take at once.
    """

    weights: int
    trained: int
    a_token: float
    second_a_token: float
    longest: int
    batch: int
    tokens: int
    room: int
    kept: float

    @property
    def least(self) -> float:
        """Memory beside the weights that no setting of the micro-batch avoids: one text needs one pass."""
        return self.trained + self.longest * self.a_token

    @property
    def is_computed_twice(self) -> bool:
        """Whether a batch's activations do not fit at once, so that the engine computes micro-batches twice."""
        return self.batch * self.a_token > self.kept

    @property
    def duration_s(self) -> float:
        """Expected time of all forward and backward passes; evaluations and checkpoints come on top."""
        return self.tokens * self.second_a_token * (_SECOND_FORWARD if self.is_computed_twice else 1.0)


@dataclass(frozen=True)
class Workload:
    """What a run computes, in one process. records_a_batch, records: of a batch and of the whole run."""

    records_a_batch: int
    records: int
    tokens_a_record: float
    padding: float
    longest: int

    def tokens(self, n_records: int) -> int:
        """Tokens of so many records, padding counted."""
        return round(n_records * self.tokens_a_record / (1 - self.padding))


def estimate_cost(
    model: SentenceTransformer,
    texts: Sequence[str],
    workload: Workload,
    config: FinetuneConfig,
    *,
    room: int | None = None,
    budget_s: float = _BUDGET_S,
) -> Cost | None:
    """Run a few short forward and backward passes over the texts (passages), and reckon what the run needs.

    room: free bytes; None = as the system says. The model and the random numbers are left as they were. None when not even
    these passes find memory.
    """
    room = available_bytes(model.device) if room is None else room
    try:
        second_a_token, a_token = _measure(model, texts, config, budget_s)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return None
        raise
    if config.gradient_checkpointing:
        a_token, second_a_token = a_token * kept_by_checkpoints(model), second_a_token * _SECOND_FORWARD
    kept = config.activation_memory_gb * 2**30 if config.activation_memory_gb is not None else KEPT_SHARE * room
    batch = workload.tokens(workload.records_a_batch)
    return Cost(
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        trained=sum(
            parameter.nbytes + ADAM_BYTES * parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        ),
        a_token=a_token,
        second_a_token=second_a_token,
        longest=workload.longest,
        batch=batch,
        tokens=workload.tokens(workload.records),
        room=room,
        kept=kept,
    )


def token_budget_of(model: SentenceTransformer, config: FinetuneConfig) -> int:
    """Tokens of a micro-batch, as the engine chooses them."""
    dtype = torch.bfloat16 if mixed_precision(config) == "bf16" else torch.float32
    # A backward pass reads and writes twice what a forward pass does.
    suited = default_token_budget(model, dtype) // _PASSES_A_STEP
    return config.micro_batch_tokens or suited


def _n_layers(model: SentenceTransformer) -> int:
    inner = model[0].model.config
    return int(getattr(inner, "num_hidden_layers", None) or getattr(inner, "n_layers", None) or 1)


def kept_by_checkpoints(model: SentenceTransformer) -> float:
    """The share of activations that is left with gradient checkpointing: one layer whole, of the others their input."""
    n_layers = _n_layers(model)
    return min(1.0, 1 / n_layers + 0.06)  # a layer's input is about a sixteenth of what it saves


def ways_to_fit(cost: Cost, model: SentenceTransformer, config: FinetuneConfig) -> list[str]:
    """Settings that would fit, spelt as the front end spells them, with what they need: each alone, best first.

    Where none does alone, the most that all together can do; empty when that is not enough either.
    """
    ways = list(_ways(cost, model, config))
    fitting = [(name, way) for name, way in ways if way.least <= way.room]
    if ways and not fitting:
        together = replace(
            cost,
            trained=min(way.trained for _, way in ways),
            a_token=min(way.a_token for _, way in ways),
            longest=min(way.longest for _, way in ways),
            room=max(way.room for _, way in ways),
        )
        fitting = [(" with ".join(name for name, _ in ways), together)] if together.least <= together.room else []
    return [f"{name}: {size_text(way.least)}" for name, way in fitting]


def _ways(cost: Cost, model: SentenceTransformer, config: FinetuneConfig) -> Iterator[tuple[str, Cost]]:
    """What could be changed, one thing at a time, and what the run would cost then."""
    adapter = _of_adapter(model, config) if config.finetune_type == "full" else cost.trained
    if config.finetune_type == "full":
        yield f"{config.spelling('finetune_type')} lora", replace(cost, trained=adapter)
    if not config.gradient_checkpointing:
        checkpointed = replace(cost, a_token=cost.a_token * kept_by_checkpoints(model))
        yield f"{config.spelling('gradient_checkpointing')} true", checkpointed
    if length := next((length for length in _LENGTHS if length < cost.longest and _fits(cost, length)), 0):
        yield f"texts of {length} tokens ({_length_options(config)})", replace(cost, longest=length)
    if config.finetune_type != "qlora" and model.device.type == "cuda":
        freed = cost.weights * 7 // 8  # four bits for thirty-two
        yield f"{config.spelling('finetune_type')} qlora", replace(cost, trained=adapter, room=cost.room + freed)


def _fits(cost: Cost, length: int) -> bool:
    """Whether texts of this length fit, or are as short as it makes sense to have them."""
    return replace(cost, longest=length).least <= cost.room or length == _LENGTHS[-1]


def _length_options(config: FinetuneConfig) -> str:
    """The options that decide how long texts are, as this front end spells them."""
    own = [name for name in ("query_max_len", "passage_max_len") if config[name]]
    return ", ".join(config.spelling(name) for name in (own if len(own) == 2 else [*own, "max_seq_length"]))


def _of_adapter(model: SentenceTransformer, config: FinetuneConfig) -> int:
    """Bytes of an adapter with its gradients and optimiser: a row and a column of rank r for each linear layer, in float32."""
    linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    n_weights = sum(config.lora_r * (module.in_features + module.out_features) for module in linear)
    return n_weights * (2 * 4 + ADAM_BYTES)


# ---------------------------------------------------------------- measuring


def _measure(model: SentenceTransformer, texts: Sequence[str], config: FinetuneConfig, budget_s: float) -> tuple[float, float]:
    """(seconds a token, bytes a token) of forward and backward passes, padding counted as tokens."""
    reader = TextReader(model, "document", model.prompts.get("document") or "")
    prepared = reader.prepare(_short_texts(texts))
    # What the engine would never compute at once may not fit, and need not.
    at_once = min(_TOKENS_MEASURED.get(model.device.type, _TOKENS_MEASURED_ELSE), token_budget_of(model, config))
    batches = _small_batches(prepared.lengths, at_once)
    was_training, devices = model.training, [model.device] if model.device.type == "cuda" else []
    # Dropout draws random numbers here, and the run that follows must draw its own as if nothing had been.
    with torch.random.fork_rng(devices=devices), _autocast(model, config):
        model.train()
        try:
            return _timed(model, reader, prepared, batches, budget_s)
        finally:
            model.train(was_training)
            model.zero_grad(set_to_none=True)


def _timed(
    model: SentenceTransformer, reader: TextReader, prepared: Prepared, batches: Sequence[Ints], budget_s: float
) -> tuple[float, float]:
    """As _measure. batches: the first, of one text, warms up; the others' time counts, as far as budget and memory reach."""
    packed = prepared.tokens is not None and attention_of(model) != PADDED
    costs = [cost_of(prepared.lengths[batch], padded=not packed) for batch in batches]
    seconds: list[float] = []
    saved: list[int] = []
    for place, batch in enumerate(batches):
        before = time.perf_counter()
        try:
            with SavedBytes(model.parameters()) if place < 2 else nullcontext() as counted:
                model(reader.features(prepared, batch, packed=packed))["sentence_embedding"].float().sum().backward()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
        except (RuntimeError, MemoryError) as error:
            if place > 0 and is_out_of_memory(error):
                break
            raise
        seconds.append(time.perf_counter() - before)
        if counted is not None:
            saved.append(counted.total)
        # One pass counts beside the warm-up, unless a pass is so slow that one must do.
        if sum(seconds[1:]) + seconds[-1] > budget_s and (place > 0 or seconds[0] > budget_s):
            break
    warm = slice(1, None) if len(seconds) > 1 else slice(None)
    return sum(seconds[warm]) / sum(costs[: len(seconds)][warm]), _slope(costs, saved)


def _slope(costs: Sequence[int], saved: Sequence[int]) -> float:
    """Bytes a token: by the difference of two passes, for autocast keeps a copy of each weight whatever the tokens."""
    if len(saved) > 1 and costs[1] > costs[0] and saved[1] > saved[0]:
        return (saved[1] - saved[0]) / (costs[1] - costs[0])
    return saved[0] / costs[0]


def _short_texts(texts: Sequence[str]) -> list[str]:
    """Some of the texts, from all over them, and of each the beginning."""
    short = [text[:_CHARACTERS_A_TEXT] for text in texts]
    return short[:: max(1, math.ceil(sum(map(len, short)) / _CHARACTERS_MEASURED))]


def _small_batches(lengths: Ints, token_budget: int) -> list[Ints]:
    """One text, then a few micro-batches: texts near the middle of the lengths, so that none is a freak."""
    order = np.argsort(lengths, kind="stable")
    middle = order[len(order) // 4 : max(len(order) // 4 + 1, 3 * len(order) // 4)]
    fitting = max(1, _MOST_PASSES * token_budget // int(lengths[middle].mean()))
    drawn = middle[:: max(1, len(middle) // fitting)]
    return [drawn[:1], *(drawn[batch] for batch in token_budget_batches(lengths[drawn], token_budget))][: _MOST_PASSES + 1]


def _autocast(model: SentenceTransformer, config: FinetuneConfig) -> AbstractContextManager[object]:
    dtype = products_dtype(config)
    return nullcontext() if dtype is torch.float32 else torch.autocast(model.device.type, dtype)


# ---------------------------------------------------------------- for people


def size_text(n_bytes: float) -> str:
    """Bytes for people: 1.6 GiB, 25 MiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.0f} MiB"


def duration_text(seconds: float) -> str:
    """A time for people, with no more digits than an estimate has: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
