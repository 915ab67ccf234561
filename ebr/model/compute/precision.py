"""Which precision a model computes in: what this machine can do, what it costs in accuracy, and what was found before."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer

from ebr.data.files.write import cache_home, read_json, write_json
from ebr.data.vectors.batch import Vectors
from ebr.errors import ConfigError, first_line
from ebr.model.compute.attention import FLASH, PADDED, VARLEN, Machine, has_cpp_compiler, this_machine, unpadded_attention
from ebr.model.compute.engine import UnfitTexts
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.compute.packed_weights import why_not_packed
from ebr.model.compute.settings import DTYPES, ComputeSettings, copy_in, settings_of
from ebr.model.encoder.batching import default_token_budget, packed_token_budget
from ebr.model.encoder.pooling import pooling_name
from ebr.model.encoder.prompts import Role, prompt_for
from ebr.model.encoder.text_reader import Prepared
from ebr.model.files.identity import architecture, fingerprint
from ebr.model.files.quantization import is_quantized

log = logging.getLogger(__name__)


def memory_path() -> Path:
    """Where choices are remembered: precision.json in $EBR_CACHE_DIR, or in ~/.cache/ebr."""
    return cache_home() / "precision.json"


def read_memory() -> dict[str, Any]:
    """All records, by key; none where there is no such file."""
    try:
        record = read_json(memory_path())
    except (OSError, ValueError) as error:  # absent, or not ours: it is written anew
        log.debug("%s: %s", memory_path(), error)
        return {}
    return record if isinstance(record, dict) else {}


def write_memory(record: dict[str, Any]) -> None:
    """Replace all records; a folder that cannot be written stops nothing."""
    try:
        write_json(memory_path(), record)
    except OSError as error:
        log.info("%s: the choice is not remembered (%s)", memory_path(), first_line(error))


MOST_TEXTS = 128
# A GPU that is given less is not busy, and every precision looks as fast as the other.
MOST_TEXTS_CUDA = 4096
_FEWEST_TEXTS = 8
_PROBE_TEXTS = 4
# A candidate is encoded three times; a large model on a slow machine must not calibrate for an hour.
_MOST_SECONDS_A_PASS = 15.0
# Compiling takes minutes: with less work than this it would never be earned back.
_COMPILE_FROM_SECONDS = 30 * 60.0
_COMPILE_FROM_TEXTS = 10_000
# A trial takes the time of some 700 texts, and packed weights in float32 save about a quarter: of fewer texts, too little.
_PACK_FROM_TEXTS = 5_000
# float32 is promised to be this close to stock, however it is computed.
_EXACT = 0.99999
# What is less exact must be so much faster than float32: less than that is within what a trial of seconds can tell.
_WORTH_IT = 1.05
_TIMED_PASSES = 2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One way to compute, tried on sample texts: its speed, and its vectors (N, D). settings: as they were in the end."""

    settings: ComputeSettings
    texts_s: float
    vectors: Vectors

    def min_cosine(self, reference: Vectors) -> float:
        """The smallest cosine of a text's vector to the one of the reference."""
        ours, theirs = self.vectors.astype(np.float64), reference.astype(np.float64)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return float(((ours * theirs).sum(axis=1) / np.maximum(norms, 1e-300)).min(initial=1.0))


def choose_settings(
    model: SentenceTransformer,
    role: Role,
    texts: Sequence[str],
    *,
    prompt: str | None,
    precision: str,
    min_cosine: float,
    torch_compile: str,
    token_budget: int | None,
    batch_size: int | None,
    n_texts_expected: int,
    say: Say,
    machine: Machine | None = None,
    model_sha256: str | None = None,
) -> ComputeSettings:
    """How this model is to compute on this machine, found by trying it on some of the texts; the model stays as it is.

    precision: float32, bfloat16, float16, or auto: the fastest whose smallest cosine to float32 is at least min_cosine, found
    once and remembered for this model and machine. torch_compile: always, never, or auto: when the work is over half an hour on
    a CPU and it measures faster. token_budget: None = default_token_budget. n_texts_expected: of the whole run. say: hears one
    line for each candidate and one for the choice. machine: None = this one.
    model_sha256: of its weights; None = not known yet.
    Raises ConfigError for float16 without a GPU.
    """
    device = model.device.type
    machine = machine or this_machine(device)
    if precision == "float16" and device != "cuda":
        raise ConfigError("precision float16: needs a CUDA GPU; on this processor use auto, float32 or bfloat16")
    if precision == "bfloat16" and device == "cpu" and not machine.has_bfloat16:
        say("precision bfloat16: this processor computes it slowly, without avx512_bf16 or amx_bf16; float32 is faster here")
    prompt = prompt_for(model, role) if prompt is None else prompt
    if is_quantized(model):
        say("the model's base is quantized: it computes as it was loaded")
        return replace(settings := settings_of(model), token_budget=token_budget or settings.token_budget)
    work = _Work(
        model,
        role,
        prompt,
        texts,
        min_cosine,
        torch_compile,
        batch_size,
        n_texts_expected,
        say,
        machine,
        token_budget,
        model_sha256,
    )
    return _remembered_or_found(work) if precision == "auto" else _with_compile(work, _asked_for(work, precision))


@dataclass(frozen=True)
class _Work:
    """What is to be computed, and under which conditions."""

    model: SentenceTransformer
    role: Role
    prompt: str
    texts: Sequence[str]
    min_cosine: float
    torch_compile: str
    batch_size: int | None
    n_texts_expected: int
    say: Say
    machine: Machine
    token_budget: int | None
    model_sha256: str | None = None

    def settings(
        self, precision: str, attention: str = PADDED, *, compiled: bool = False, packed: bool = False
    ) -> ComputeSettings:
        budget_of = packed_token_budget if packed else default_token_budget
        budget = self.token_budget or budget_of(self.model, DTYPES[precision])
        return ComputeSettings(precision, compiled, attention, budget, torch.get_num_threads(), self.model.device.type, packed)

    def sample(self, n_texts: int) -> list[str]:
        """So many of the texts, from first to last."""
        places = np.linspace(0, len(self.texts) - 1, num=min(n_texts, len(self.texts)))
        return [self.texts[int(place)] for place in places]

    def worth_compiling(self, texts_s: float) -> bool:
        if self.torch_compile == "auto":
            return self.model.device.type == "cpu" and self.n_texts_expected / texts_s > _COMPILE_FROM_SECONDS
        return self.torch_compile == "always"

    def worth_packing(self) -> bool:
        """Whether float32 with packed weights is to be tried, where there is nothing else to try."""
        return self.n_texts_expected >= _PACK_FROM_TEXTS and why_not_packed(self.model, torch.float32) is None

    def key(self) -> str:
        """Of everything that a choice depends on."""
        first = self.model[0]
        lengths = [getattr(first, name, None) for name in ("query_length", "document_length")]
        compiler = self.torch_compile != "never" and has_cpp_compiler()
        options = [self.min_cosine, self.torch_compile, compiler, unpadded_attention(self.model)]
        passes = [self.token_budget, self.batch_size, pooling_name(self.model)]
        conditions = [self.prompt, self.role.value, self.model.max_seq_length, *lengths, *options, *passes]
        machine = [self.machine.name, self.machine.n_cores, sorted(self.machine.flags), self.model.device.type]
        machine += [torch.get_num_threads(), torch.__version__, transformers.__version__]
        record = [self.model_sha256 or fingerprint(self.model), architecture(self.model), conditions, machine]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _remembered_or_found(work: _Work) -> ComputeSettings:
    """The precision chosen before for this model and machine, else one found now and remembered."""
    if work.model.device.type == "cpu" and not work.machine.has_bfloat16 and not work.worth_packing():
        work.say("precision auto: float32: this processor has no bfloat16 (avx512_bf16, amx_bf16)")
        return _with_compile(work, _asked_for(work, "float32"))
    key = work.key()
    known = _known(read_memory().get(key), work)
    if known is not None:
        work.say(f"precision auto: {_name(known)}, found before for this model and machine ({memory_path()})")
        return known
    if not work.texts:
        work.say("precision auto: float32: there are no texts to try others on")
        return work.settings("float32")
    eager, chosen = _calibrate(work)
    found = {name: getattr(chosen, name) for name in ("precision", "attention", "compiled", "packed_weights")}
    tried = {"texts_s": eager.texts_s, "compile_tried": work.worth_compiling(eager.texts_s)}
    # Read again: a trial takes minutes, in which others remember theirs.
    write_memory({**read_memory(), key: found | tried})
    return chosen


def _known(record: Any, work: _Work) -> ComputeSettings | None:  # noqa: ANN401
    """The remembered choice, as this run is to use it; None when there is none, or more work now asks for a compiled trial."""
    try:
        precision, attention, compiled = record["precision"], record["attention"], record["compiled"]
        packed = record["packed_weights"] is True
        worth = work.worth_compiling(float(record["texts_s"]))
        missed = worth and not record["compile_tried"]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if missed or precision not in DTYPES or attention not in (PADDED, VARLEN, FLASH):
        return None
    if packed and why_not_packed(work.model, DTYPES[precision]) is not None:
        return None
    return work.settings(precision, attention, compiled=compiled is True and worth, packed=packed)


def _calibrate(work: _Work) -> tuple[Trial, ComputeSettings]:
    """Try what this machine can do against float32 and say what came of it: the best eager trial, and the choice."""
    texts, reference = _reference(work, work.settings("float32"))
    work.say(f"float32: {reference.texts_s:.0f} texts/s")
    eager = reference
    for settings in _candidates(work):
        if settings.precision == "float32" and eager is not reference:
            continue  # the slowest of all to try, and bfloat16 is near enough
        trial = _try(work, settings, texts, reference.vectors)
        if trial is not None and trial.texts_s > max(eager.texts_s, _WORTH_IT * reference.texts_s):
            eager = trial
    best = _try_compiled(work, eager, texts, reference.vectors)
    least = best.min_cosine(reference.vectors)
    why = f"{best.texts_s / reference.texts_s:.1f} × float32, smallest cosine {least:.5f}, at least {work.min_cosine} asked for"
    if best is reference:
        why = f"nothing faster kept a smallest cosine of {work.min_cosine}"
    work.say(f"precision auto: {_name(best.settings)}: {why} ({len(texts)} texts tried)")
    return eager, best.settings


def _asked_for(work: _Work, precision: str) -> ComputeSettings:
    """Settings of this precision, without padding where the device and the model can."""
    padded = work.settings(precision)
    unpadded = unpadded_attention(work.model) if precision != "float32" else None
    if unpadded is None or not work.texts:
        return padded
    texts, reference = _reference(work, _held_against(work, padded))
    trial = _try(work, replace(padded, attention=unpadded), texts, reference.vectors)
    return padded if trial is None else trial.settings


def _with_compile(work: _Work, eager: ComputeSettings) -> ComputeSettings:
    """The same through torch.compile where that is wanted; nothing is tried for work that is small for certain."""
    small = work.torch_compile == "auto" and (eager.device != "cpu" or work.n_texts_expected < _COMPILE_FROM_TEXTS)
    if small or work.torch_compile == "never" or not work.texts:
        return eager
    exact = _held_against(work, eager)
    texts, reference = _reference(work, exact)
    tried = reference if exact is eager else measure(work, eager, texts)
    return _try_compiled(work, tried, texts, reference.vectors).settings


def _held_against(work: _Work, settings: ComputeSettings) -> ComputeSettings:
    """What vectors of these settings are held against: themselves, but float32 for float16, which may overflow."""
    return work.settings("float32") if settings.precision == "float16" else settings


def _candidates(work: _Work) -> Iterator[ComputeSettings]:
    if work.model.device.type == "cuda":
        unpadded = unpadded_attention(work.model)
        for precision in ("bfloat16", "float16"):
            for attention in (PADDED,) if unpadded is None else (PADDED, unpadded):
                yield work.settings(precision, attention)
        return
    precisions = ("bfloat16", "float32") if work.machine.has_bfloat16 else ("float32",)
    if work.machine.has_bfloat16:
        yield work.settings("bfloat16")
    reasons = {precision: why_not_packed(work.model, DTYPES[precision]) for precision in precisions}
    for reason in dict.fromkeys(filter(None, reasons.values())):
        work.say(f"packed weights: {reason}")
    yield from (work.settings(precision, packed=True) for precision in precisions if reasons[precision] is None)


def _reference(work: _Work, settings: ComputeSettings) -> tuple[list[str], Trial]:
    """Sample texts that fit in memory, as many as are encoded in seconds, and their vectors, which others are held against."""
    probe = measure(work, settings, work.sample(_PROBE_TEXTS))
    most = MOST_TEXTS_CUDA if work.model.device.type == "cuda" else MOST_TEXTS
    n_texts = int(min(most, max(_FEWEST_TEXTS, _MOST_SECONDS_A_PASS * probe.texts_s)))
    texts = work.sample(n_texts)
    trial = measure(work, settings, texts)
    # The others were too large: measure raises for a vector that was computed and is not finite.
    fits = np.flatnonzero(np.isfinite(trial.vectors).all(axis=1))
    return [texts[index] for index in fits], replace(trial, vectors=trial.vectors[fits])


def _try(work: _Work, settings: ComputeSettings, texts: Sequence[str], reference: Vectors) -> Trial | None:
    """One candidate, said in one line; None when it does not run, or its vectors are too far from the reference."""
    try:
        trial = measure(work, settings, texts)
    except Exception as error:  # whatever a kernel, a compiler or a model's own code raises: this way does not work here
        work.say(f"{_name(settings)}: cannot be used here ({first_line(error)})")
        return None
    least = trial.min_cosine(reference)
    if settings.compiled and not trial.settings.compiled:
        work.say(f"{_name(settings)}: compiling failed; eager")
        return None
    wanted = max(work.min_cosine, _EXACT) if settings.precision == "float32" else work.min_cosine
    verdict = "" if least >= wanted else f", below {wanted}"
    work.say(f"{_name(settings)}: {trial.texts_s:.0f} texts/s, smallest cosine {least:.5f}{verdict}")
    # A vector that is not a number has no cosine, and no comparison with it holds.
    return trial if least >= wanted else None


def _try_compiled(work: _Work, eager: Trial, texts: Sequence[str], reference: Vectors) -> Trial:
    """The same through torch.compile, where that is wanted, possible and, unless it is wanted always, faster."""
    if not work.worth_compiling(eager.texts_s):
        return eager
    if not has_cpp_compiler():
        work.say(f"torch_compile {work.torch_compile}: no C++ compiler on this machine (g++ or clang++); eager")
        return eager
    settings = work.settings(eager.settings.precision, eager.settings.attention, compiled=True)
    compiled = _try(work, settings, texts, reference)
    faster = compiled is not None and (work.torch_compile == "always" or compiled.texts_s > eager.texts_s)
    return compiled if compiled is not None and faster else eager


def measure(work: _Work, settings: ComputeSettings, texts: Sequence[str]) -> Trial:
    """Encode texts with a copy of the model that computes so: once to warm up, then timed; the best time counts.

    Raises ModelError when vectors are not finite.
    """
    try:
        return _measure(work, settings, texts)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold the copy
        raise
    finally:
        if settings.compiled:
            torch._dynamo.reset()  # else it keeps the copy
        # A model is full of cycles: without this the next candidate finds the memory of this one taken.
        gc.collect()
        if work.model.device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(work: _Work, settings: ComputeSettings, texts: Sequence[str]) -> Trial:
    model = copy_in(work.model, DTYPES[settings.precision])
    engine = LocalEngine(model, work.role, prompt=work.prompt, batch_size=work.batch_size, settings=settings)
    # Outside the clock: a run prepares texts in a thread of its own, while it computes.
    prepared = engine.prepare(texts)
    _compute(engine, prepared)
    seconds = float("inf")
    for _ in range(_TIMED_PASSES):
        started = time.perf_counter()
        vectors = _compute(engine, prepared)
        seconds = min(seconds, time.perf_counter() - started)
    return Trial(replace(engine.settings, token_budget=settings.token_budget), len(texts) / max(seconds, 1e-9), vectors)


def _compute(engine: LocalEngine, prepared: Prepared) -> Vectors:
    try:
        return engine.compute(prepared)
    except UnfitTexts as error:
        return error.vectors


def _name(settings: ComputeSettings) -> str:
    attention = [] if settings.attention == PADDED else [settings.attention]
    made = [word for word, is_so in (("packed weights", settings.packed_weights), ("compiled", settings.compiled)) if is_so]
    return ", ".join([settings.precision, *attention, *made])
