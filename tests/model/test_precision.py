"""Which precision is chosen: by what the processor has, by what a trial measures, by what was found before."""

from __future__ import annotations

import gc
import json
import re
import weakref
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from ebr.errors import ConfigError, ModelError
from ebr.model.compute import precision
from ebr.model.compute.attention import Machine, cpu_flags
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.compute.packed_weights import PackedForward
from ebr.model.compute.precision import Trial, choose_settings, memory_path
from ebr.model.compute.settings import settings_of
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role
from ebr.model.files.identity import fingerprint

TEXTS = [f"a {size} {colour} {thing}" for size in ("small", "large") for colour in ("red", "blue") for thing in ("cup", "lamp")]
PLAIN = Machine("an old processor", 2, frozenset({"avx2"}))
UNKNOWN = "SomeModel is none of those"
FAST = Machine("a new processor", 2, frozenset({"avx2", "avx512_bf16"}))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EBR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_model):
    return load_encoder(tiny_model, device="cpu")


def choose(model, machine=FAST, lines=None, **changes):
    options = {
        "prompt": None, "precision": "auto", "min_cosine": 0.9995, "torch_compile": "never", "token_budget": None,
        "batch_size": None, "n_texts_expected": 100, "role": Role.DOCUMENT, "texts": TEXTS,
    } | changes  # fmt: skip
    role, texts = options.pop("role"), options.pop("texts")
    say = (lambda line: None) if lines is None else lines.append
    return choose_settings(model, role, texts, machine=machine, say=say, **options)


def work_of(model):
    return precision._Work(model, Role.DOCUMENT, "", TEXTS, 0.9995, "never", None, 100, print, FAST, None)


@pytest.fixture
def fake(monkeypatch):
    """Trials whose speed and cosine are given by name, not measured; what was tried, in order."""
    speeds = {"float32": 100.0, "bfloat16": 400.0, "float32, compiled": 150.0, "bfloat16, compiled": 500.0}
    speeds |= {"float32, packed weights": 120.0, "bfloat16, packed weights": 600.0}
    cosines = {}
    tried = []

    def measure(work, settings, texts):
        name = precision._name(settings)
        tried.append((name, len(texts)))
        cosine = cosines.get(name, 0.9999)
        if isinstance(cosine, Exception):
            raise cosine
        if name == "float32":
            cosine = 1.0
        return Trial(settings, speeds[name], np.tile(np.float32([cosine, np.sqrt(1 - cosine**2)]), (len(texts), 1)))

    monkeypatch.setattr(precision, "measure", measure)
    # What packing adds has tests of its own; here it is as with a make that is not known.
    monkeypatch.setattr(precision, "why_not_packed", lambda model, dtype: UNKNOWN)
    return speeds, cosines, tried


@pytest.fixture
def packable(fake, monkeypatch):
    """The same for a model and a processor that weights are packed for."""
    monkeypatch.setattr(precision, "why_not_packed", lambda model, dtype: None)
    return fake


# ---------------------------------------------------------------- what a processor has


def test_flags_are_those_of_the_first_processor(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu amx_bf16 avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(info) == {"fpu", "amx_bf16", "avx2"}
    assert cpu_flags(tmp_path / "absent") == frozenset()


@pytest.mark.parametrize(
    ("flags", "has"), [({"avx512_bf16"}, True), ({"amx_bf16"}, True), ({"avx512f", "amx_int8"}, False), (set(), False)]
)
def test_bfloat16_wants_one_of_two_flags(flags, has):
    assert Machine("m", 1, frozenset(flags)).has_bfloat16 is has


def test_without_bfloat16_nothing_is_tried_and_one_line_says_why(model, fake):
    lines = []
    chosen = choose(model, PLAIN, lines)
    assert (chosen.precision, chosen.attention, chosen.compiled) == ("float32", "padded", False)
    assert lines == ["precision auto: float32: this processor has no bfloat16 (avx512_bf16, amx_bf16)"]
    assert fake[2] == []


def test_bfloat16_asked_for_on_a_processor_without_it_runs_and_warns(model):
    lines = []
    assert choose(model, PLAIN, lines, precision="bfloat16").precision == "bfloat16"
    assert len(lines) == 1
    assert "slowly" in lines[0]
    assert choose(model, FAST, lines, precision="bfloat16").precision == "bfloat16"
    assert len(lines) == 1


def test_float16_needs_a_gpu(model):
    with pytest.raises(ConfigError, match="precision float16: needs a CUDA GPU"):
        choose(model, precision="float16")


# ---------------------------------------------------------------- calibration


def test_the_fastest_that_is_close_enough_is_kept_and_each_candidate_has_a_line(model, fake):
    lines = []
    assert choose(model, lines=lines).precision == "bfloat16"
    assert lines == [
        "float32: 100 texts/s",
        "bfloat16: 400 texts/s, smallest cosine 0.99990",
        f"packed weights: {UNKNOWN}",
        "precision auto: bfloat16: 4.0 × float32, smallest cosine 0.99990, at least 0.9995 asked for (8 texts tried)",
    ]


@pytest.mark.parametrize("cosine", [0.9994, float("nan")])
def test_a_candidate_below_min_cosine_is_refused_however_fast(model, fake, cosine):
    fake[1]["bfloat16"] = cosine
    lines = []
    assert choose(model, lines=lines).precision == "float32"
    assert "below 0.9995" in lines[1]
    assert "nothing faster kept a smallest cosine of 0.9995" in lines[-1]


def test_the_smallest_cosine_counts_not_the_mean():
    reference = np.float32([[1, 0], [2, 0], [0, 3]])
    trial = Trial(None, 1.0, np.float32([[1, 0], [5, 0], [3, 4]]))
    assert trial.min_cosine(reference) == pytest.approx(0.8)


def test_min_cosine_can_be_lowered(model, fake):
    fake[1]["bfloat16"] = 0.99
    assert choose(model, min_cosine=0.98).precision == "bfloat16"


def test_a_slower_candidate_is_refused_however_close(model, fake):
    fake[0]["bfloat16"] = 90.0
    assert choose(model).precision == "float32"


def test_a_candidate_that_does_not_run_is_left_out_with_its_reason(model, fake):
    fake[1]["bfloat16"] = RuntimeError("no such kernel\nand more")
    lines = []
    assert choose(model, lines=lines).precision == "float32"
    assert "bfloat16: cannot be used here (no such kernel)" in lines


def test_up_to_128_texts_from_first_to_last_are_tried_and_fewer_when_they_are_slow(model, fake):
    texts = [f"red {index}" for index in range(1000)]
    choose(model, texts=texts)
    assert fake[2] == [("float32", 4), ("float32", 128), ("bfloat16", 128)]
    fake[2].clear()
    fake[0]["float32"] = 2.0  # 2 texts a second: 30 in the 15 seconds that a pass may take
    choose(model, texts=texts, prompt="other")
    assert [n for _, n in fake[2]] == [4, 30, 30]


def test_a_gpu_tries_up_to_4096_texts(model, fake, monkeypatch):
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(precision, "default_token_budget", lambda model, dtype: 512)
    monkeypatch.setattr(precision, "unpadded_attention", lambda model: None)
    fake[0].update({"float32": 1000.0, "float16": 10.0})
    choose(model, texts=[f"red {index}" for index in range(9000)])
    assert fake[2] == [("float32", 4), ("float32", 4096), ("bfloat16", 4096), ("float16", 4096)]


@pytest.mark.parametrize(("texts_s", "chosen"), [(104.0, "float32"), (106.0, "bfloat16")])
def test_what_is_less_exact_must_be_faster_by_more_than_chance(model, fake, texts_s, chosen):
    fake[0]["bfloat16"] = texts_s
    assert choose(model).precision == chosen


@pytest.mark.parametrize(("asked", "held_against"), [("float16", "float32"), ("bfloat16", "bfloat16")])
def test_float16_is_held_against_float32_also_when_asked_for(model, monkeypatch, asked, held_against):
    tried = []

    def measure(work, settings, texts):
        tried.append(precision._name(settings))
        if settings.precision == "float16":
            raise ModelError("float16 overflows for 1 text")
        return Trial(settings, 100.0, np.ones((len(texts), 2), np.float32))

    monkeypatch.setattr(precision, "measure", measure)
    monkeypatch.setattr(precision, "default_token_budget", lambda model, dtype: 512)
    monkeypatch.setattr(precision, "unpadded_attention", lambda model: "varlen")
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    lines = []
    attention = choose(model, lines=lines, precision=asked).attention
    assert tried == [held_against, held_against, f"{asked}, varlen"]
    assert attention == ("padded" if asked == "float16" else "varlen")


def test_a_candidate_whose_vectors_are_not_finite_is_left_out_with_its_reason(model, monkeypatch):
    plain = LocalEngine._forward

    def forward(engine, features):
        rows = plain(engine, features)
        return rows * float("nan") if engine.settings.precision == "bfloat16" else rows

    monkeypatch.setattr(LocalEngine, "_forward", forward)
    lines = []
    assert choose(model, lines=lines, min_cosine=0.5).precision == "float32"
    assert lines[1].startswith("bfloat16: cannot be used here (vectors in bfloat16 are not finite for 8 texts")


def test_only_computing_is_timed_and_the_best_of_two_counts(model, monkeypatch):
    clock = [0.0]
    seconds = iter([100.0, 4.0, 2.0])
    compute, prepare = LocalEngine.compute, LocalEngine.prepare

    def slow_prepare(engine, texts):
        clock[0] += 50.0
        return prepare(engine, texts)

    def slow_compute(engine, prepared, on_batch=None):
        clock[0] += next(seconds)
        return compute(engine, prepared, on_batch)

    monkeypatch.setattr(LocalEngine, "prepare", slow_prepare)
    monkeypatch.setattr(LocalEngine, "compute", slow_compute)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    trial = precision.measure(work_of(model), settings_of(model), TEXTS)
    assert trial.texts_s == pytest.approx(len(TEXTS) / 2.0)


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_leaves_no_copy_of_the_model_behind(model, monkeypatch, fails):
    copies = []
    plain = precision.copy_in

    def copy_in(model, dtype):
        copy = plain(model, dtype)
        copies.append(weakref.ref(copy))
        return copy

    def broken(engine, features):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(precision, "copy_in", copy_in)
    if fails:
        monkeypatch.setattr(LocalEngine, "_forward", broken)
    gc.disable()
    try:
        with pytest.raises(RuntimeError) if fails else nullcontext():
            precision.measure(work_of(model), settings_of(model), TEXTS)
        assert [copy() for copy in copies] == [None]
    finally:
        gc.enable()


def test_a_real_calibration_leaves_the_model_as_it_was(model):
    before, vectors = fingerprint(model), LocalEngine(model, Role.DOCUMENT).encode(TEXTS)
    lines = []
    chosen = choose(model, lines=lines, min_cosine=1.0)  # which no bfloat16 reaches
    assert chosen.precision == "float32"
    assert "below 1.0" in lines[1]
    assert fingerprint(model) == before
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert np.array_equal(LocalEngine(model, Role.DOCUMENT, settings=chosen).encode(TEXTS), vectors)


def test_a_real_trial_of_bfloat16_has_the_cosine_of_bfloat16(model):
    lines = []
    choose(model, lines=lines, min_cosine=0.5)
    said = float(lines[1].rsplit(" ", 1)[1])
    exact = LocalEngine(model, Role.DOCUMENT).encode(TEXTS)
    half = LocalEngine(model, Role.DOCUMENT, settings=replace(settings_of(model), precision="bfloat16")).encode(TEXTS)
    cosines = (half.astype(float) * exact).sum(axis=1)
    assert said == pytest.approx(cosines.min(), abs=1e-4)
    assert said < 1


def test_no_texts_leave_float32(model, fake):
    assert choose(model, texts=[]).precision == "float32"


def test_the_budget_asked_for_is_the_budget(model, fake):
    assert choose(model, token_budget=777).token_budget == 777
    assert choose(model, token_budget=778).token_budget == 778  # also of a choice found before
    assert choose(model, precision="float32", token_budget=779).token_budget == 779


# ---------------------------------------------------------------- packed weights


def test_packed_weights_are_tried_too_and_the_fastest_is_said(model, packable):
    lines = []
    chosen = choose(model, lines=lines)
    assert (chosen.precision, chosen.packed_weights, chosen.compiled) == ("bfloat16", True, False)
    assert lines == [
        "float32: 100 texts/s",
        "bfloat16: 400 texts/s, smallest cosine 0.99990",
        "bfloat16, packed weights: 600 texts/s, smallest cosine 0.99990",
        "precision auto: bfloat16, packed weights: 6.0 × float32, "
        "smallest cosine 0.99990, at least 0.9995 asked for (8 texts tried)",
    ]


def test_packed_float32_is_for_whoever_asks_for_more_than_bfloat16_has_and_is_held_to_what_float32_promises(model, packable):
    packable[1].update({"float32, packed weights": 0.999995})
    chosen = choose(model, min_cosine=0.99999)
    assert (chosen.precision, chosen.packed_weights) == ("float32", True)
    packable[1].update({"float32, packed weights": 0.99998, "bfloat16": 0.9, "bfloat16, packed weights": 0.9})
    assert not choose(model, prompt="other").packed_weights


def test_without_bfloat16_packed_float32_is_tried_for_much_work(model, packable):
    packable[1]["float32, packed weights"] = 0.999999
    lines = []
    assert not choose(model, PLAIN, lines, n_texts_expected=4_999).packed_weights
    assert lines == ["precision auto: float32: this processor has no bfloat16 (avx512_bf16, amx_bf16)"]
    assert packable[2] == []
    chosen = choose(model, PLAIN, n_texts_expected=5_000)
    assert (chosen.precision, chosen.packed_weights) == ("float32", True)
    assert [name for name, _ in packable[2]] == ["float32", "float32", "float32, packed weights"]
    packable[0]["float32, packed weights"] = 104.0  # less than a trial can tell
    assert not choose(model, PLAIN, n_texts_expected=5_000, prompt="other").packed_weights


def test_an_explicit_precision_never_packs(model, packable):
    for name in ("float32", "bfloat16"):
        assert not choose(model, precision=name, n_texts_expected=1_000_000).packed_weights
    assert packable[2] == []


def test_a_packed_choice_is_remembered_as_long_as_weights_can_be_packed(model, packable, monkeypatch):
    first = choose(model)
    packable[2].clear()
    lines = []
    assert choose(model, lines=lines) == first
    assert packable[2] == []
    assert lines[0].startswith("precision auto: bfloat16, packed weights, found before")
    monkeypatch.setattr(precision, "why_not_packed", lambda model, dtype: UNKNOWN)
    assert not choose(model).packed_weights


def test_a_choice_of_before_there_were_packed_weights_is_found_anew(model, packable):
    choose(model)
    record = json.loads(memory_path().read_text())
    for one in record.values():
        del one["packed_weights"]
    memory_path().write_text(json.dumps(record))
    packable[2].clear()
    assert choose(model).packed_weights
    assert packable[2]


def test_the_pass_of_packed_weights_has_a_size_of_its_own_unless_asked_for(model, packable, monkeypatch):
    monkeypatch.setattr(precision, "packed_token_budget", lambda model, dtype: 1365)
    assert choose(model).token_budget == 1365
    assert choose(model, token_budget=777).token_budget == 777


def test_what_is_compiled_is_not_packed(model, packable, compiler):
    packable[0]["bfloat16, compiled"] = 700.0
    chosen = choose(model, torch_compile="always")
    assert (chosen.compiled, chosen.packed_weights) == (True, False)


def test_a_wrong_vector_of_packed_weights_is_refused_by_a_real_trial(model, monkeypatch):
    work = {"n_texts_expected": 5_000, "min_cosine": 0.9995}
    monkeypatch.setattr(precision, "_WORTH_IT", 0.0)  # whatever it takes here
    lines = []
    choose(model, PLAIN, lines, **work)
    assert re.fullmatch(r"float32, packed weights: \d+ texts/s, smallest cosine 1.00000", lines[1])
    plain = PackedForward.__call__

    def shifted(forward, **features):
        output = plain(forward, **features)
        output.last_hidden_state[..., 0] += 0.5
        return output

    monkeypatch.setattr(PackedForward, "__call__", shifted)
    lines = []
    chosen = choose(model, PLAIN, lines, prompt="other", **work)
    assert not chosen.packed_weights
    assert lines[1].endswith(", below 0.99999")


# ---------------------------------------------------------------- memory


def test_a_choice_is_remembered_for_the_model_and_machine(model, fake):
    first = choose(model)
    fake[2].clear()
    lines = []
    assert choose(model, lines=lines) == first
    assert fake[2] == []
    assert lines == [f"precision auto: bfloat16, found before for this model and machine ({memory_path()})"]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "query: "},
        {"min_cosine": 0.99},
        {"torch_compile": "auto"},
        {"role": Role.QUERY},
        {"token_budget": 777},
        {"batch_size": 3},
        {"machine": Machine("another processor", 2, FAST.flags)},
        {"machine": Machine(FAST.name, 4, FAST.flags)},
        {"machine": Machine(FAST.name, 2, FAST.flags | {"amx_bf16"})},
    ],
)
def test_under_other_conditions_it_is_found_anew(model, fake, change):
    choose(model)
    fake[2].clear()
    choose(model, **change)
    assert fake[2]
    fake[2].clear()
    choose(model)
    assert fake[2] == []  # and the first is still known


def test_other_weights_lengths_or_torch_are_found_anew(model, fake, monkeypatch):
    choose(model)
    for change in (
        lambda: next(model.parameters()).data.add_(1),
        lambda: setattr(model, "max_seq_length", 12),
        lambda: monkeypatch.setattr(precision.torch, "__version__", "9.9"),
        lambda: monkeypatch.setattr(precision.transformers, "__version__", "9.9"),
        lambda: monkeypatch.setattr(torch, "get_num_threads", lambda: 77),
        lambda: setattr(model[1], "pooling_mode", "cls"),
    ):
        change()
        fake[2].clear()
        choose(model)
        assert fake[2]


def test_what_others_remember_meanwhile_is_not_forgotten(model, fake, monkeypatch):
    choose(model)
    plain = precision.measure

    def measure(work, settings, texts):
        record = json.loads(memory_path().read_text())
        memory_path().write_text(json.dumps({**record, "another": {"precision": "float32"}}))
        return plain(work, settings, texts)

    monkeypatch.setattr(precision, "measure", measure)
    choose(model, prompt="other")
    assert "another" in json.loads(memory_path().read_text())
    assert len(json.loads(memory_path().read_text())) == 3


@pytest.mark.parametrize("content", ["{", "[]", '"x"', None])
def test_a_broken_memory_is_ignored_and_written_anew(model, fake, content, cache):
    choose(model)
    key = next(iter(json.loads(memory_path().read_text())))
    memory_path().write_text(content if content is not None else json.dumps({key: {"precision": "int3"}}))
    fake[2].clear()
    choose(model)
    assert fake[2]
    assert json.loads(memory_path().read_text())[key]["precision"] == "bfloat16"


def test_a_folder_that_cannot_be_written_stops_nothing(model, fake, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EBR_CACHE_DIR", str(tmp_path / "file"))
    assert choose(model).precision == "bfloat16"


# ---------------------------------------------------------------- torch.compile


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(precision, "has_cpp_compiler", lambda: True)


LONG = {"torch_compile": "auto", "n_texts_expected": 1_000_000}  # at 400 texts/s 2,500 s, over half an hour


def test_compiling_is_tried_for_over_half_an_hour_of_work_and_kept_when_faster(model, fake, compiler):
    assert choose(model, **LONG).compiled
    fake[0]["bfloat16, compiled"] = 399.0
    assert not choose(model, **LONG, prompt="other").compiled


def test_compiling_is_not_tried_for_less_work(model, fake, compiler):
    assert not choose(model, torch_compile="auto", n_texts_expected=700_000).compiled  # 1,750 s
    assert "bfloat16, compiled" not in dict(fake[2])


def test_more_work_than_before_has_compiling_tried_and_less_does_without(model, fake, compiler):
    choose(model, torch_compile="auto", n_texts_expected=100)
    fake[2].clear()
    assert choose(model, **LONG).compiled
    assert fake[2]
    fake[2].clear()
    assert choose(model, **LONG).compiled
    assert not choose(model, torch_compile="auto", n_texts_expected=100).compiled
    assert fake[2] == []


def test_compiling_that_costs_accuracy_is_refused(model, fake, compiler):
    fake[1]["bfloat16, compiled"] = 0.99
    assert not choose(model, **LONG).compiled


def test_compiled_float32_must_be_as_exact_as_float32(model, fake, compiler):
    fake[1]["float32, compiled"] = 0.99998
    assert not choose(model, PLAIN, precision="float32", torch_compile="always").compiled
    fake[1]["float32, compiled"] = 0.999995
    assert choose(model, PLAIN, precision="float32", torch_compile="always").compiled


def test_always_compiles_little_work_and_slower_too(model, fake, compiler):
    fake[0]["bfloat16, compiled"] = 10.0
    assert choose(model, torch_compile="always").compiled
    assert not choose(model, torch_compile="never").compiled


@pytest.mark.parametrize("asked", ["auto", "always"])
def test_without_a_compiler_it_stays_eager_and_says_so_once(model, fake, monkeypatch, asked):
    monkeypatch.setattr(precision, "has_cpp_compiler", lambda: False)
    lines = []
    assert not choose(model, lines=lines, torch_compile=asked, n_texts_expected=10**6).compiled
    assert [line for line in lines if "compiler" in line] == [
        f"torch_compile {asked}: no C++ compiler on this machine (g++ or clang++); eager"
    ]


def test_float32_of_little_work_is_not_timed_at_all(model, fake, compiler):
    lines = []
    assert not choose(model, PLAIN, lines, precision="float32", torch_compile="auto").compiled
    assert (fake[2], lines) == ([], [])


def test_a_compilation_that_fails_in_its_trial_is_said_and_eager_kept(model, compiler, monkeypatch):
    def compile_(function, *, dynamic):
        def compiled(*args, **kwargs):
            raise AssertionError("no such instruction")

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    lines = []
    assert not choose(model, PLAIN, lines, precision="float32", torch_compile="always").compiled
    assert lines == ["float32, compiled: compiling failed; eager"]
    assert "forward" not in vars(model[0].model)


def test_a_quantized_base_computes_as_it_was_loaded(model, fake):
    model[0].model.is_quantized = True
    lines = []
    assert choose(model, lines=lines, precision="bfloat16").precision == "float32"
    assert len(lines) == 1
    assert "quantized" in lines[0]
