"""How fast is a model tuned, and in how much memory: stock sentence-transformers, a script that pads to the maximum, and ours.

Every arm tunes the same LoRA adapter on the same batches of the same pairs, in a process of its own, one after another; rounds
begin with another arm each. The first steps are not counted. A ratio is to stock in the same round: median, and range over
the rounds. All arms are watched by one callback, which also sees to it that their batches are the same rows. Dropout off (the
model's and the adapter's) is a row of its own, of every arm.

    python benchmarks/train.py                                      # the embedded model on en_esci; about an hour on two cores
    python benchmarks/train.py --rounds 1 --steps 6 --json out.json # what is in out.json already is not done again
    python benchmarks/train.py --memory                             # ours, batch 32 against 1,024
    python benchmarks/train.py --profile ours                       # what a step is spent on
    python benchmarks/train.py --device cuda --model decoder        # Qwen2 of 0.5 billion random weights

Real tokens are counted from the data, cut at the token limit. The padding share is of the tokens that pass through the model
with gradients, so that what is computed twice counts once. Set-up is all before the first step: loading, and for ours the
check of the data and tokenising, from a cold cache. Peak memory is the process's (on CUDA: the tensors') from its start to the
last step; in brackets, what the steps added at most to what was held when they began.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from train_run import OURS, PADDED, PROFILED, STOCK, WARM, Arm, Job, Measured
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model
from transformers.utils import is_flash_attn_2_available
from transformers.utils.logging import disable_progress_bar

from ebr import FinetuneConfig
from ebr.model.compute.attention import this_machine
from ebr.model.encoder.encoder import load_encoder
from ebr.model.origin import resolve_model
from ebr.training.resources.mixed_precision import mixed_precision

RUN = Path(__file__).with_name("train_run.py")
EMBEDDED, DECODER = "all-MiniLM-L6-v2", "decoder"
F32, BF16, BF16_WEIGHTS = "float32", "bfloat16", "bf16 weights"
LARGE_BATCH = 1024


# ---------------------------------------------------------------- models


def make_model(name: str, dropout: bool, scratch: Path) -> str:
    """A model of this name, in a folder of its own where it must be made: without dropout, or of random weights."""
    folder = scratch / f"{name}{'' if dropout else '-no-dropout'}"
    if name == DECODER:
        # Qwen2 has no dropout of its own.
        return str(folder if folder.is_dir() else make_decoder(scratch / DECODER))
    if dropout:
        return name
    if not folder.is_dir():
        model = load_encoder(name, device="cpu")
        config = model[0].model.config
        for key, value in config.to_dict().items():
            if "dropout" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        model.save_pretrained(str(folder))
    return str(folder)


def make_decoder(folder: Path) -> Path:
    """Qwen2 of the size of Qwen2.5-0.5B with random weights, and the embedded model's tokenizer; last-token pooling."""
    if folder.is_dir():
        return folder
    size = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    heads = {"num_attention_heads": 14, "num_key_value_heads": 2}
    torch.manual_seed(0)
    bare = folder.with_name("bare")
    Qwen2Model(Qwen2Config(**size, **heads, vocab_size=151_936, dtype=torch.bfloat16)).to(torch.bfloat16).save_pretrained(bare)
    AutoTokenizer.from_pretrained(resolve_model(EMBEDDED).location).save_pretrained(bare)
    transformer = Transformer(str(bare))
    SentenceTransformer(modules=[transformer, Pooling(896, "lasttoken")], device="cpu").save_pretrained(str(folder))
    return folder


# ---------------------------------------------------------------- jobs


def arms_of(device: str, model: str) -> list[Arm]:
    """What this machine can run, stock first; what it cannot is said."""
    has_bf16 = device == "cuda" or this_machine(device).has_bfloat16
    if not has_bf16:
        print("bfloat16 arms are left out: this processor has none, and would take many times as long")
        return [Arm(STOCK, F32), Arm(PADDED, F32), Arm(OURS, F32)]
    as_it_comes = BF16 if mixed_precision(FinetuneConfig()) == "bf16" else F32
    arms = [Arm(STOCK, F32), Arm(STOCK, BF16), Arm(STOCK, BF16_WEIGHTS), Arm(PADDED, F32), Arm(OURS, as_it_comes)]
    if device == "cuda" and is_flash_attn_2_available():
        arms.insert(3, Arm(STOCK, BF16_WEIGHTS, "flash_attention_2"))
    elif device == "cuda":
        print("stock with flash-attention is left out: flash-attn is not installed")
    return [replace(arm, precision=BF16) if arm.kind == PADDED and model == DECODER else arm for arm in arms]


def alternating(arms: Sequence[Arm], template: Job, rounds: int, models: dict[bool, str]) -> Iterator[Job]:
    """Every arm once a round, with dropout and without, another one first each time."""
    for number in range(rounds):
        for dropout in models:
            for index in range(len(arms)):
                arm = arms[(index + number) % len(arms)]
                yield replace(template, arm=arm, model=models[dropout], dropout=dropout, round=number)


def key_of(job: Job) -> str:
    """What tells jobs apart; where a model was made for this run does not."""
    return json.dumps(asdict(replace(job, model=Path(job.model).name)), sort_keys=True)


class Bench:
    """Runs jobs, and keeps what they measured in a file: what stands in it is not run again."""

    def __init__(self, path: Path | None, scratch: Path) -> None:
        self.path, self.scratch = path, scratch
        self.done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}

    def measure(self, job: Job) -> Measured:
        """Of this job, now or before."""
        key = key_of(job)
        if key not in self.done:
            self.done[key] = self._run(job)
            if self.path:
                aside = self.path.with_suffix(".part")
                aside.write_text(json.dumps(self.done), encoding="utf-8")
                aside.replace(self.path)
        return Measured(**self.done[key])

    def _run(self, job: Job) -> dict[str, Any]:
        source, result = self.scratch / "job.json", self.scratch / "result.json"
        result.unlink(missing_ok=True)
        source.write_text(json.dumps(asdict(job)), encoding="utf-8")
        hidden = {} if job.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"} | hidden
        command = [sys.executable, str(RUN), str(source), str(result)]
        done = subprocess.run(command, env=environment, text=True, capture_output=True)
        if done.returncode:
            raise SystemExit(f"{job.arm.name} failed:\n{done.stderr[-4000:]}")
        if job.profile:
            print(done.stdout)
        measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        rate = sum(map(len, measured["rows"])) / measured["seconds"]
        what = f"batch {job.batch}, round {job.round + 1}{'' if job.dropout else ', dropout off'}"
        print(f"  {job.arm.name}, {what}: {rate:.2f} pairs/s", flush=True)
        return measured


# ---------------------------------------------------------------- tables


def pairs_a_second(measured: Measured) -> float:
    """Of the counted steps."""
    return sum(map(len, measured.rows)) / measured.seconds


def ratios(runs: dict[int, Measured], others: dict[int, Measured] | None) -> str:
    """Of pairs/s, round by round: median, and range."""
    if not others:
        return f"{'-':>18}"
    values = [pairs_a_second(runs[number]) / pairs_a_second(others[number]) for number in sorted(runs.keys() & others.keys())]
    return f"{statistics.median(values):>5.2f} ({min(values):.2f}-{max(values):.2f})".rjust(18)


def print_speed(title: str, by_arm: dict[Arm, dict[int, Measured]]) -> None:
    """A row for each arm: medians over the rounds."""
    print(f"\n{title}")
    print(
        f"{'':<26} {'pairs/s':>8} {'tokens/s':>9} {'padding':>8} {'× stock float32':>18} {'× stock bf16':>18} "
        f"{'MB peak (added)':>16} {'set-up s':>9}"
    )
    for arm, runs in by_arm.items():
        speed = statistics.median(map(pairs_a_second, runs.values()))
        tokens = statistics.median(run.real_tokens / run.seconds for run in runs.values())
        padding = statistics.median(1 - run.real_tokens / run.slots if run.slots else float("nan") for run in runs.values())
        peak, added = (max(getattr(run, name) for run in runs.values()) for name in ("peak_mb", "added_mb"))
        setup = statistics.median(run.setup_s for run in runs.values())
        to_stock = [ratios(runs, by_arm.get(Arm(STOCK, precision))) for precision in (F32, BF16)]
        memory = f"{peak:,.0f} ({added:,.0f})"
        print(f"{arm.name:<26} {speed:>8.2f} {tokens:>9.0f} {padding:>8.1%} {' '.join(to_stock)} {memory:>16} {setup:>9.1f}")
    seen = {json.dumps(runs[number].rows) for runs in by_arm.values() for number in runs}
    print("batches: the same rows in every arm and round" if len(seen) == 1 else f"batches: DIFFER, {len(seen)} series of rows")


def speed(bench: Bench, options: argparse.Namespace, template: Job) -> None:
    """The table of arms, with dropout and without."""
    models = {dropout: make_model(options.model, dropout, bench.scratch) for dropout in (True, False)}
    found: dict[bool, dict[Arm, dict[int, Measured]]] = {}
    for job in alternating(arms_of(options.device, options.model), template, options.rounds, models):
        found.setdefault(job.dropout, {}).setdefault(job.arm, {})[job.round] = bench.measure(job)
    for dropout, by_arm in found.items():
        first_to_last = dict(sorted(by_arm.items(), key=lambda item: (item[0].kind != STOCK, item[0].kind != PADDED)))
        print_speed(f"dropout {'as it is' if dropout else 'off'}, {options.rounds} rounds", first_to_last)


def memory(bench: Bench, options: argparse.Namespace, template: Job) -> None:
    """Ours with a small batch; then a large one, allowed the activations that the small one took, unless --ours says more."""
    arm = arms_of(options.device, options.model)[-1]
    small = replace(template, arm=arm, model=make_model(options.model, True, bench.scratch), steps=options.memory_steps, warm=0)
    first = bench.measure(small)
    allowed = {"activation_memory_gb": round(first.added_mb * 1e6 / 2**30, 2)} | template.options
    large = replace(small, batch=LARGE_BATCH, options=allowed)
    print(f"\n{arm.name}, {options.memory_steps} steps, the first one included")
    for job in (small, large):
        measured = bench.measure(job)
        ratio = f"× {measured.peak_mb / first.peak_mb:.2f} (added × {measured.added_mb / first.added_mb:.2f})"
        peak = f"{measured.peak_mb:,.0f} MB, of which training added {measured.added_mb:,.0f}"
        print(f"batch {job.batch:>5}: {pairs_a_second(measured):.2f} pairs/s, peak {peak}: {ratio} {json.dumps(job.options)}")


def main() -> int:
    """Print the tables that were asked for."""
    has_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/en_esci"), help="folder with train.jsonl")
    parser.add_argument("--model", default=EMBEDDED, help=f"or {DECODER}: Qwen2 of 0.5 billion random weights")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_cuda else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help=f"of each run, the first {WARM} of which are not counted")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--lora_r", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ours", type=json.loads, default={}, help='options of ours, as JSON: {"micro_batch_tokens": 2048}')
    parser.add_argument("--memory", action="store_true", help=f"ours, --batch against {LARGE_BATCH}, instead of the arms")
    parser.add_argument("--memory_steps", type=int, default=2, help="steps of --memory")
    parser.add_argument("--profile", choices=[STOCK, OURS], help="the operators of some steps, instead of the arms")
    parser.add_argument("--json", type=Path, help="where results are kept; a killed run goes on")
    options = parser.parse_args()
    disable_progress_bar()
    machine = this_machine(options.device)
    print(f"{machine.name}, {machine.n_cores} cores, {options.threads} threads, torch {torch.__version__}")
    template = Job(
        arm=Arm(STOCK, F32), data=str(options.data.resolve()), model=options.model, dropout=True, steps=options.steps,
        batch=options.batch, max_seq_length=options.max_seq_length, lora_r=options.lora_r, device=options.device,
        threads=options.threads, round=0, options=options.ours,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.json, Path(scratch))
        if options.profile:
            arm = next(arm for arm in reversed(arms_of(options.device, options.model)) if arm.kind == options.profile)
            model = make_model(options.model, True, bench.scratch)
            steps = max(options.steps, WARM + PROFILED)
            bench.measure(replace(template, arm=arm, model=model, steps=steps, profile=True))
        elif options.memory:
            memory(bench, options, template)
        else:
            speed(bench, options, template)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
