"""What a processor cannot show: half precision, texts without padding, quantised bases and full memory on a GPU. `make gpu`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from ebr import cli
from ebr.config import FinetuneConfig, InferenceConfig, MergeConfig, TrainConfig
from ebr.data.vectors.embeddings import read_embeddings
from ebr.inference.command import run_batch_inference
from ebr.model.compute.attention import FLASH, PADDED, VARLEN, attention_of
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.compute.serving import unpadded
from ebr.model.compute.settings import ComputeSettings
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role
from ebr.workflow.finetuning import train_sentence_transformer
from ebr.workflow.merging import merge_adapter

N_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not N_GPUS, reason="needs a CUDA device: make gpu")]
flash = pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed")

EMBEDDED = "all-MiniLM-L6-v2"
RNG = np.random.default_rng(0)
WORDS = "a small red shoe that lamp buys for the big blue book 这是一个大国".split()
TEXTS = [" ".join(RNG.choice(WORDS, size)) for size in RNG.integers(1, 90, 300)]


def vectors_in(precision: str, attention: str = PADDED, budget: int = 4096) -> np.ndarray:
    """The embedded model's, computed so on the GPU."""
    settings = ComputeSettings(precision, False, attention, budget, torch.get_num_threads(), "cuda")
    engine = LocalEngine(load_encoder(EMBEDDED, device="cuda"), Role.DOCUMENT, settings=settings)
    assert engine.settings == settings, "nothing was put in the place of what is to be tested"
    return engine.encode(TEXTS)


def least_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of vectors of length 1, row by row."""
    return float((ours.astype(np.float64) * theirs).sum(axis=1).min())


def silence(line: str) -> None:
    """What a run says is not looked at."""


# ---------------------------------------------------------------- inference


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    """Float32 on the processor."""
    return LocalEngine(load_encoder(EMBEDDED, device="cpu"), Role.DOCUMENT).encode(TEXTS)


def test_float32_on_the_gpu_is_float32(exact: np.ndarray) -> None:
    assert least_cosine(vectors_in("float32"), exact) > 0.99999


@pytest.mark.parametrize("attention", [PADDED, VARLEN, pytest.param(FLASH, marks=flash)])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_float32_however_it_attends(precision: str, attention: str, exact: np.ndarray) -> None:
    found = vectors_in(precision, attention)
    assert np.isfinite(found).all()
    assert least_cosine(found, exact) > {"bfloat16": 0.999, "float16": 0.9999}[precision]


@pytest.mark.parametrize("attention", [VARLEN, pytest.param(FLASH, marks=flash)])
def test_who_shares_a_pass_without_padding_does_not_matter(attention: str) -> None:
    assert least_cosine(vectors_in("bfloat16", attention, 512), vectors_in("bfloat16", attention, 8192)) > 0.9999


def test_a_table_is_embedded_as_on_the_processor(exact: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    rows = "".join(f"r{row}\x01{text}\n" for row, text in enumerate(TEXTS))
    (tmp_path / "table" / "part-0.csv").write_text(f"id\x01description\n{rows}", encoding="utf-8")
    output = tmp_path / "vectors.txt"
    run_batch_inference(InferenceConfig(model_path=EMBEDDED, input_dir=tmp_path / "table", output_path=output), say=silence)
    found = read_embeddings(output, ",")
    assert found.columns["id"] == [f"r{row}" for row in range(len(TEXTS))]
    assert least_cosine(found.vectors, exact) > 0.999


def test_full_memory_makes_batches_smaller_and_loses_no_text(exact: np.ndarray) -> None:
    with little_memory(96 * 2**20):
        found = vectors_in_small_memory()
    assert least_cosine(found, exact) > 0.99999


def vectors_in_small_memory() -> np.ndarray:
    """All texts at once, which do not fit; the engine's own settings change on the way."""
    settings = ComputeSettings("float32", False, PADDED, 10**6, torch.get_num_threads(), "cuda")
    engine = LocalEngine(load_encoder(EMBEDDED, device="cuda"), Role.DOCUMENT, settings=settings)
    long = engine.encode(TEXTS + [" ".join(WORDS * 15)] * 600)
    assert engine.settings.token_budget < 10**6
    return long[: len(TEXTS)]


@contextmanager
def little_memory(n_bytes: int) -> Iterator[None]:
    """This process may take so many more bytes of the GPU than it holds already, and the model itself."""
    torch.cuda.empty_cache()
    held, whole = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + 2**27 + n_bytes) / whole)  # the embedded model is 90 MB
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


# ---------------------------------------------------------------- training


@pytest.fixture
def options(tiny_model: str, pairs_file: Path, tmp_path: Path) -> dict[str, object]:
    """Of a short run on thirty pairs, the embedded model at a rate at which it learns them."""
    return {
        "model_name": EMBEDDED, "data_path": str(pairs_file), "output_dir": tmp_path / "saved", "report_to": ["none"],
        "max_steps": 30, "learning_rate": 1e-3, "validation_split": 0, "train_batch_size": 10, "seed": 1,
    }  # fmt: skip


def losses(config: FinetuneConfig) -> list[float]:
    """Of the steps that were logged."""
    result = train_sentence_transformer(config, say=silence)
    return [entry["loss"] for entry in result.record.history if "loss" in entry]


@pytest.mark.parametrize("precision", [{"bf16": False}, {"bf16": True}, {"bf16": False, "fp16": True}, {}], ids=str)
@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_a_tuning_learns_in_every_precision(precision: dict[str, bool], finetune_type: str, options: dict[str, object]) -> None:
    rate = {"learning_rate": 1e-4} if finetune_type == "full" else {}
    found = losses(FinetuneConfig(**options | precision | rate, finetune_type=finetune_type))
    assert np.isfinite(found).all()
    assert np.mean(found[-3:]) < 0.8 * found[0]


def test_training_without_padding_begins_with_the_loss_of_padding(options: dict[str, object]) -> None:
    plain = {"lora_dropout": 0.0, "max_steps": 1, "bf16": True}
    padded = losses(FinetuneConfig(**options | plain, attn_implementation="sdpa"))
    free = losses(FinetuneConfig(**options | plain))
    assert free == pytest.approx(padded, rel=0.02)


def test_a_model_without_attention_dropout_does_train_without_padding(tiny_decoder: str) -> None:
    model = load_encoder(tiny_decoder, device="cuda").to(torch.bfloat16)
    with unpadded(model):
        assert attention_of(model) in (VARLEN, FLASH)


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_learns_and_merges(bits: int, tiny_decoder: str, triplets_file: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        model_name_or_path=tiny_decoder, train_dataset=str(triplets_file), output_dir=tmp_path / "run", finetune_type="qlora",
        quantization_bits=bits, lr=1e-2, max_steps=20, validation_split=0, log_with=["none"], passage_max_len=64,
    )  # fmt: skip
    result = train_sentence_transformer(config, say=silence)
    found = [entry["loss"] for entry in result.record.history if "loss" in entry]
    assert np.isfinite(found).all()
    assert np.mean(found[-3:]) < found[0]
    merged = merge_adapter(
        MergeConfig(base_model_path=tiny_decoder, lora_adapter_path=result.model_path, output_path=tmp_path / "merged"),
        say=silence,
    )
    tuned, whole = (load_encoder(str(path), device="cuda") for path in (result.model_path, merged.model_path))
    texts = TEXTS[:20]
    assert least_cosine(LocalEngine(whole, Role.DOCUMENT).encode(texts), LocalEngine(tuned, Role.DOCUMENT).encode(texts)) > 0.97


def test_a_step_that_does_not_fit_is_done_again_in_smaller_parts(options: dict[str, object], tmp_path: Path) -> None:
    long = [{"anchor": text, "positive": f"{text} {text}"} for text in dict.fromkeys(TEXTS)]
    data = tmp_path / "long.json"
    data.write_text(json.dumps(long), encoding="utf-8")
    large = {"data_path": str(data), "train_batch_size": 64, "max_steps": 3, "micro_batch_tokens": 65_536, "bf16": False}
    config = FinetuneConfig(**options | large)
    with little_memory(600 * 2**20):
        result = train_sentence_transformer(config, say=silence)
    assert result.record.n_steps == 3
    assert result.record.recoveries, "the limit was not reached: lower it"


@pytest.mark.skipif(N_GPUS < 2, reason="needs two GPUs")
def test_two_gpus_with_gathered_negatives_are_one_with_the_whole_batch(options: dict[str, object], tmp_path: Path) -> None:
    def flags(name: str, *more: str) -> list[str]:
        kept = {key: value for key, value in options.items() if key not in ("train_batch_size", "output_dir", "report_to")}
        given = [f"--{key}={value}" for key, value in kept.items()]
        return ["finetune", *given, "--report_to=none", "--lora_dropout=0", f"--output_dir={tmp_path / name}", *more]

    def history(name: str) -> Iterator[float]:
        (log,) = (tmp_path / name).glob("*/training_log.json")
        return (entry["loss"] for entry in json.loads(log.read_text(encoding="utf-8")) if "loss" in entry)

    assert cli.main(flags("two", "--train_batch_size=5", "--gather_negatives", "--bf16=false")) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ebr.training.resources.processes.visible_gpus", lambda: 1)
        assert cli.main(flags("one", "--train_batch_size=10", "--bf16=false")) == 0
    assert list(history("two")) == pytest.approx(list(history("one")), rel=0.05)
