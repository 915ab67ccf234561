"""How fast are texts encoded, and at which accuracy: stock sentence-transformers against ours, in one run, alternating.

Distinct texts, three length profiles. Every arm encodes the same texts in every round; the best round counts, as the machine's
other work can only slow one down. Cosines are to stock float32. A row of its own shows what encoding repeated texts once saves.

    python benchmarks/encode.py                                   # the shop corpus when ../shared/data has it, else the sample
    python benchmarks/encode.py --texts 2000 --rounds 5 --json out.json
    python benchmarks/encode.py --busy                            # beside a process that keeps one core busy
    python benchmarks/encode.py --command --texts 2000            # the whole of ebr infer
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from sentence_transformers import SentenceTransformer

from ebr.errors import ModelError, first_line
from ebr.inference.job.dedup import Dedup, DistinctEncoder
from ebr.model.compute.attention import this_machine
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.compute.packed_weights import why_not_packed
from ebr.model.compute.precision import choose_settings
from ebr.model.compute.settings import DTYPES, settings_of
from ebr.model.encoder.batching import packed_token_budget
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role

CORPORA = (Path("../shared/data/en_esci/eval/corpus.jsonl"), Path("datasets/api_docs/corpus.jsonl"))
STOCK_BATCH = 32
COPIES = 3
Load = Callable[[], SentenceTransformer]
Encode = Callable[[Sequence[str]], np.ndarray]


@dataclass
class Arm:
    """One way to encode, and what was measured of it."""

    name: str
    encode: Encode
    precision: str = "float32"
    seconds: float = float("inf")
    peak_mb: float = 0.0
    vectors: np.ndarray | None = None

    def run(self, texts: Sequence[str]) -> None:
        """Encode once more; the best time counts."""
        gc.collect()
        with PeakMemory() as peak:
            started = time.perf_counter()
            self.vectors = self.encode(texts)
            self.seconds = min(self.seconds, time.perf_counter() - started)
        self.peak_mb = max(self.peak_mb, peak.mb)


class PeakMemory:
    """The most memory beyond what was held at the start: of the GPU where there is one, else of the process, sampled.

    What the process has kept from arms before counts for nothing, so on a CPU it is a lower bound.
    """

    def __enter__(self) -> PeakMemory:
        self.mb = 0.0
        self._done = threading.Event()
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.mb = max(self.mb, (self._process.memory_info().rss - self._before) / 1e6)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if torch.cuda.is_available():
            self.mb = (torch.cuda.max_memory_allocated() - self._before) / 1e6


def profiles(n_texts: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """Distinct texts of three lengths: titles, passages, and both mixed."""
    path = next(path for path in CORPORA if path.is_file())
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    titles = list(dict.fromkeys(record.get("title") or record["text"].split(". ")[0] for record in records))
    passages = list(dict.fromkeys(f"{record.get('title', '')} {record['text']}".strip() for record in records))
    print(f"texts: {path}")
    return {
        "titles": draw(titles, n_texts, rng),
        "passages": draw(passages, n_texts, rng),
        "mixed": draw(draw(titles, n_texts // 2, rng) + draw(passages, n_texts // 2, rng), n_texts, rng),
    }


def draw(texts: Sequence[str], n_texts: int, rng: np.random.Generator) -> list[str]:
    """So many of them, in random order."""
    return [texts[index] for index in rng.choice(len(texts), min(n_texts, len(texts)), replace=False)]


def matrix_peak(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a 2048³ matrix product (8192³ on a GPU): the best of ten."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def flops(model: SentenceTransformer, lengths: np.ndarray) -> float:
    """Of the matrix products of one forward pass over texts of these lengths, without padding."""
    weights = sum(m.weight.numel() for m in model[0].model.modules() if isinstance(m, torch.nn.Linear))
    config = model[0].model.config
    attention = 4 * config.num_hidden_layers * config.hidden_size
    return float(2 * weights * lengths.sum() + attention * (lengths.astype(float) ** 2).sum())


def cosines(ours: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """The smallest and the mean."""
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(reference, axis=1)
    each = (ours.astype(np.float64) * reference).sum(axis=1) / norms
    return float(each.min()), float(each.mean())


def stock(load: Load, dtype: torch.dtype) -> Encode:
    """Stock encode, with the model in this precision."""
    model = load().to(dtype)

    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = model.encode(list(texts), batch_size=STOCK_BATCH, convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().cpu().numpy()

    return encode


def ours(load: Load, texts: Sequence[str], precision: str, compiling: str) -> Arm:
    """Our engine, with settings chosen on these texts."""
    model = load()
    settings = choose_settings(
        model,
        Role.DOCUMENT,
        texts,
        prompt=None,
        precision=precision,
        min_cosine=0.9995,
        torch_compile=compiling,
        token_budget=None,
        batch_size=None,
        n_texts_expected=1_000_000,
        say=lambda line: print(f"  {precision}: {line}"),
    )
    label = f"ours {precision}" if precision == "auto" else f"ours {settings.precision}"
    return Arm(label, LocalEngine(model, Role.DOCUMENT, settings=settings).encode, settings.precision)


def ours_packed(load: Load) -> list[Arm]:
    """Packed weights in each precision that this processor multiplies: what oneDNN emulates would take many times as long."""
    made, half = [], [("bfloat16", "packed bf16")] if this_machine("cpu").has_bfloat16 else []
    for precision, label in (("float32", "packed float32"), *half):
        model = load()
        if reason := why_not_packed(model, DTYPES[precision]):
            print(f"{label} is left out: {reason}")
            continue
        budget = packed_token_budget(model, DTYPES[precision])
        settings = replace(settings_of(model), precision=precision, packed_weights=True, token_budget=budget)
        made.append(Arm(label, LocalEngine(model, Role.DOCUMENT, settings=settings).encode, precision))
    return made


def ours_on_gpu(load: Load) -> list[Arm]:
    """bf16 with each attention that this model and machine can do: padded, torch's own unpadded, flash-attn."""
    made = []
    for attention in ("padded", "varlen", "flash_attention_2"):
        model = load()
        settings = replace(settings_of(model), precision="bfloat16", attention=attention)
        try:
            engine = LocalEngine(model, Role.DOCUMENT, settings=settings)
            engine.encode(["a try"])
        except (ModelError, ImportError, RuntimeError) as error:
            print(f"ours bf16 {attention} is left out: {first_line(error)}")
        else:
            made.append(Arm(f"ours {attention[:6]}", engine.encode, "bfloat16"))
    return made


def arms(load: Load, texts: Sequence[str], compiling: str, device: str) -> list[Arm]:
    """Stock float32 first: the others are compared with it."""
    made = [Arm("stock float32", stock(load, torch.float32))]
    if device == "cuda" or this_machine(device).has_bfloat16:
        made.append(Arm("stock bf16", stock(load, torch.bfloat16), "bfloat16"))
    else:
        print("stock bf16 is left out: this processor has no bfloat16, and would take many times as long")
    made.append(ours(load, texts, "float32", "never"))
    made.append(ours(load, texts, "auto", compiling))
    return made + (ours_on_gpu if device == "cuda" else ours_packed)(load)


def measure(profile: str, texts: Sequence[str], the_arms: Sequence[Arm], rounds: int) -> None:
    """Every arm once a round, in turns, after a warm-up."""
    for arm in the_arms:
        arm.encode(texts[:64])
        arm.seconds, arm.peak_mb = float("inf"), 0.0
    for number in range(rounds):
        for index in range(len(the_arms)):
            the_arms[(index + number) % len(the_arms)].run(texts)


def print_table(
    profile: str, texts: Sequence[str], the_arms: Sequence[Arm], counter: SentenceTransformer, peaks: dict[str, float]
) -> list:
    """A row for each arm."""
    lengths = np.array([len(ids) for ids in counter.tokenizer(list(texts), truncation=True)["input_ids"]])
    work, base = flops(counter, lengths), the_arms[0]
    print(f"\n{profile}: {len(texts)} texts of {lengths.mean():.0f} tokens")
    print(f"{'':<14} {'texts/s':>9} {'tokens/s':>9} {'of peak':>8} {'× stock':>8} {'min cosine':>11} {'mean':>9} {'MB':>6}")
    rows = []
    for arm in the_arms:
        smallest, mean = cosines(arm.vectors, base.vectors)
        row = {
            "profile": profile, "arm": arm.name, "texts_s": len(texts) / arm.seconds, "tokens_s": lengths.sum() / arm.seconds,
            "of_peak": work / arm.seconds / peaks[arm.precision], "ratio": base.seconds / arm.seconds, "min_cosine": smallest,
            "mean_cosine": mean, "peak_mb": arm.peak_mb,
        }  # fmt: skip
        print(
            f"{arm.name:<14} {row['texts_s']:>9.1f} {row['tokens_s']:>9.0f} {row['of_peak']:>8.1%} {row['ratio']:>8.2f} "
            f"{smallest:>11.6f} {mean:>9.6f} {arm.peak_mb:>6.0f}"
        )
        rows.append(row)
    return rows


def dedup_row(
    texts: Sequence[str], stock_arm: Arm, engine: LocalEngine, rng: np.random.Generator, peaks: dict[str, float]
) -> list:
    """The same texts, each three times in random order: stock encodes all of them."""
    repeated = [texts[index] for index in rng.permutation(np.repeat(np.arange(len(texts)), COPIES))]
    distinct = DistinctEncoder(engine, Dedup.SHARD)
    both = [Arm("stock float32", stock_arm.encode), Arm("ours float32", lambda t: distinct.encode(t, None, None).vectors)]
    measure("repeated", repeated, both, 1)
    return print_table(f"repeated {COPIES} times", repeated, both, engine.model, peaks)


@contextmanager
def another_process(busy: bool) -> Iterator[None]:
    """Beside it, where asked for, a process that multiplies matrices on one thread."""
    code = "import torch; torch.set_num_threads(1); a = torch.randn(1024, 1024)\nwhile True: a @ a"
    other = subprocess.Popen([sys.executable, "-c", code]) if busy else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def whole_command(model: str, texts: Sequence[str], rounds: int) -> None:
    """`ebr infer`, loading, hashing and calibrating included, against stock's encode alone, each in a process of its own."""
    encode_alone = (
        "import json, sys, time\nfrom ebr.model.encoder.encoder import load_encoder\n"
        "texts, model = json.load(open(sys.argv[1])), load_encoder(sys.argv[2], device='cpu')\nmodel.encode(texts[:64])\n"
        f"start = time.perf_counter()\nmodel.encode(texts, batch_size={STOCK_BATCH})\nprint(time.perf_counter() - start)"
    )
    found: dict[str, list[float]] = {"stock": [], "first": [], "again": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            home = Path(scratch)
            (home / "in").mkdir()
            rows = [f"{number}\x01{text}" for number, text in enumerate(texts)]
            (home / "in" / "000000_0.csv").write_text("\n".join(["id\x01text", *rows, ""]), encoding="utf-8")
            (home / "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
            stock_run = [sys.executable, "-c", encode_alone, str(home / "texts.json"), model]
            found["stock"].append(float(subprocess.run(stock_run, text=True, capture_output=True, check=True).stdout))
            # The second finds what the first one has chosen and remembered.
            for arm in ("first", "again"):
                infer = ["infer", "--model_path", model, "--input_dir", str(home / "in"), "--description_column", "text"]
                infer += ["--output_path", str(home / f"{arm}.parquet"), "--torch_compile", "never"]
                environment, started = os.environ | {"EBR_CACHE_DIR": str(home / "cache")}, time.perf_counter()
                subprocess.run([sys.executable, "-m", "ebr", *infer], env=environment, check=True, capture_output=True)
                found[arm].append(time.perf_counter() - started)
    print(f"{len(texts)} texts, csv in, parquet out; median of {rounds}")
    for arm, label in (("stock", "stock encode alone"), ("first", "ebr infer"), ("again", "ebr infer, choice remembered")):
        ratio = statistics.median(one / own for one, own in zip(found["stock"], found[arm], strict=True))
        print(f"{label:<30} {statistics.median(found[arm]):>7.1f} s {ratio:>6.2f} ×")


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--max_seq_length", type=int, default=None)
    has_cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_cuda else "cpu")
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", choices=["never", "auto", "always"], default="auto", help="of ours auto")
    parser.add_argument("--busy", action="store_true", help="beside a process that keeps one core busy")
    parser.add_argument("--command", action="store_true", help="the whole of ebr infer, instead of the arms; on the CPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    idle = ("json", "max_seq_length", "compile", "device")
    if options.command and (given := [name for name in idle if getattr(options, name) != parser.get_default(name)]):
        parser.error(f"--command: does not read {', '.join(f'--{name}' for name in given)}")
    with another_process(options.busy):
        return run(options)


def run(options: argparse.Namespace) -> int:
    """What was asked for."""
    rng = np.random.default_rng(0)
    device = options.device
    machine = this_machine(device)
    peaks = {"float32": matrix_peak(torch.float32, device)}
    if device == "cuda" or machine.has_bfloat16:
        peaks |= {name: matrix_peak(DTYPES[name], device) for name in ("bfloat16", "float16")}
    print(f"{machine.name}, {machine.n_cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("matrix product: " + ", ".join(f"{name} {peak / 1e9:,.0f} GFLOP/s" for name, peak in peaks.items()))
    by_profile = profiles(options.texts, rng)
    if options.command:
        whole_command(options.model, by_profile["passages"], options.rounds)
        return 0
    load = partial(load_encoder, options.model, max_seq_length=options.max_seq_length, device=device)
    the_arms = arms(load, by_profile["mixed"], options.compile, device)
    counter = load()
    rows = []
    for profile, texts in by_profile.items():
        measure(profile, texts, the_arms, options.rounds)
        rows += print_table(profile, texts, the_arms, counter, peaks)
    rows += dedup_row(by_profile["titles"], the_arms[0], LocalEngine(counter, Role.DOCUMENT), rng, peaks)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
