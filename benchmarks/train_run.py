"""One run of one arm of benchmarks/train.py, in this process: `python benchmarks/train_run.py job.json result.json`."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
import transformers.trainer
from stock import Pairs, read_pairs, stock_model, stock_trainer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ebr import FinetuneConfig, train_sentence_transformer
from ebr.model.encoder.encoder import load_encoder

STOCK, PADDED, OURS = "stock", "padded to max", "ours"
WARM = 2
"""Steps that are not counted: the first allocate memory, and choose kernels."""
PROFILED = 3


@dataclass(frozen=True)
class Arm:
    """Who trains, and in which numbers: float32, bfloat16 (mixed with float32), or weights that are bfloat16 themselves."""

    kind: str
    precision: str
    attention: str = "sdpa"

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.kind} {self.precision}" + (f" {self.attention[:5]}" if self.attention != "sdpa" else "")


@dataclass(frozen=True)
class Job:
    """One run of one arm."""

    arm: Arm
    data: str
    model: str
    dropout: bool
    steps: int
    batch: int
    max_seq_length: int
    lora_r: int
    device: str
    threads: int
    round: int
    options: dict[str, Any] = field(default_factory=dict)
    """Of ours: how it computes."""
    warm: int = WARM
    profile: bool = False


@dataclass(frozen=True)
class Measured:
    """What the counted steps took. rows: of each batch. slots: tokens that passed with gradients, those of the padding too."""

    seconds: float
    setup_s: float
    rows: list[list[int]]
    slots: int
    real_tokens: int
    peak_mb: float
    added_mb: float


# ---------------------------------------------------------------- one run, in a process of its own


class Watch(TrainerCallback):
    """The clock, the meter and the witness of a run, the same for every arm: each Trainer makes one of its own."""

    job: ClassVar[Job]
    pairs: ClassVar[Pairs]
    last: ClassVar[Watch]

    def __init__(self) -> None:
        Watch.last = self
        self.batches: list[list[int]] = []
        self.slots = 0
        place: dict[tuple[str, str], int] = {}
        both = zip(self.pairs.anchors, self.pairs.positives, strict=True)
        # Equal pairs are one row.
        self.row_of = [place.setdefault(pair, row) for row, pair in enumerate(both)]
        self.place = place

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Watch what the model is given, and what the batches are made of."""
        loader, model = kwargs["train_dataloader"], kwargs["model"]
        loader = getattr(loader, "base_dataloader", loader)  # accelerate's own is a shell around it
        self.collate, loader.collate_fn = loader.collate_fn, self._collate
        getattr(model, "module", model)[0].register_forward_pre_hook(self._count)
        self.setup_peak = memory_peak(self.job.device)
        reset_peak(self.job.device)
        self.before = memory_now(self.job.device)
        self.began = self.counted_from = time.perf_counter()

    def _collate(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        self.batches.append([self._row(record) for record in records])
        return self.collate(records)

    def _row(self, record: dict[str, Any]) -> int:
        return self.row_of[record["row"]] if "row" in record else self.place[record["anchor"], record["positive"]]

    def _count(self, module: torch.nn.Module, inputs: tuple[dict[str, Any], ...]) -> None:
        if torch.is_grad_enabled():
            self.slots += inputs[0]["input_ids"].numel()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Start counting when the model is warm; stop at the last step."""
        if state.global_step not in (self.job.warm, self.job.warm + PROFILED, self.job.steps):
            return
        if self.job.device == "cuda":
            torch.cuda.synchronize()
        if state.global_step == self.job.warm:
            self.counted_from, self.slots = time.perf_counter(), 0
            if self.job.profile:
                self.profiler = torch.profiler.profile()
                self.profiler.start()
        elif self.job.profile and state.global_step == self.job.warm + PROFILED:
            self.profiler.stop()
        if state.global_step == self.job.steps:
            self.ended, self.counted_slots = time.perf_counter(), self.slots
            self.peak = memory_peak(self.job.device)


def memory_now(device: str) -> float:
    """Bytes: of tensors on the GPU, else of the process."""
    return torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss


def reset_peak(device: str) -> None:
    """Begin again: what set-up needed at its height, and has kept though it is free, is not training's."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def memory_peak(device: str) -> float:
    """Bytes, likewise; since the process began, or since it was reset."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count what the process that started this one had at that moment.
        return 1024 * next(int(line.split()[1]) for line in status.read_text().split("\n") if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def config_of(job: Job, scratch: Path) -> FinetuneConfig:
    """What every arm shares, in our words; the rest is the default."""
    return FinetuneConfig(
        model_name=job.model,
        data_path=str(scratch / "pairs.json"),
        output_dir=scratch / "out",
        train_batch_size=job.batch,
        max_seq_length=job.max_seq_length,
        max_steps=job.steps,
        num_epochs=1,
        lora_r=job.lora_r,
        lora_dropout=0.1 if job.dropout else 0.0,
        bf16=job.arm.precision == "bfloat16",
        validation_split=0,
        save_steps=0,
        report_to=["none"],
        seed=0,
        **job.options if job.arm.kind == OURS else {},
    )


def train_stock(job: Job, config: FinetuneConfig, pairs: Pairs) -> None:
    """sentence-transformers' own trainer; padded: every text to the limit, as plain scripts do."""
    model = stock_model(config, attention=job.arm.attention)
    if job.arm.kind == PADDED:
        model[0].processing_kwargs = {"text": {"padding": "max_length"}}
    if job.arm.precision == "bf16 weights":
        model.to(torch.bfloat16)
    stock_trainer(model, pairs, config).train()


def run(job: Job) -> Measured:
    """Train, and say what it took."""
    torch.set_num_threads(job.threads)
    pairs = read_pairs(Path(job.data))
    Watch.job, Watch.pairs = job, pairs
    transformers.trainer.DEFAULT_CALLBACKS.append(Watch)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EBR_CACHE_DIR"] = folder
        config = config_of(job, Path(folder))
        pairs.write(Path(config.data_path))
        started = time.perf_counter()
        if job.arm.kind == OURS:
            train_sentence_transformer(config, say=lambda line: print(line, file=sys.stderr))
        else:
            train_stock(job, config, pairs)
    watch = Watch.last
    if job.profile:
        order = "self_cuda_time_total" if job.device == "cuda" else "self_cpu_time_total"
        print(f"{job.arm.name}: {PROFILED} steps\n{watch.profiler.key_averages().table(sort_by=order, row_limit=25)}")
    rows = watch.batches[job.warm : job.steps]
    return Measured(
        seconds=watch.ended - watch.counted_from,
        setup_s=watch.began - started,
        rows=rows,
        slots=watch.counted_slots,
        real_tokens=count_tokens(job, pairs, rows),
        peak_mb=max(watch.peak, watch.setup_peak) / 1e6,
        added_mb=(watch.peak - watch.before) / 1e6,
    )


def count_tokens(job: Job, pairs: Pairs, rows: list[list[int]]) -> int:
    """Of the texts of these rows, cut at the limit."""
    tokenizer = load_encoder(job.model, max_seq_length=job.max_seq_length, device="cpu").tokenizer
    texts = [side[row] for batch in rows for row in batch for side in (pairs.anchors, pairs.positives)]
    return sum(map(len, tokenizer(texts, truncation=True, max_length=job.max_seq_length)["input_ids"]))


def main() -> int:
    """Read the job, write what was measured."""
    record = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    measured = run(Job(**record | {"arm": Arm(**record["arm"])}))
    Path(sys.argv[2]).write_text(json.dumps(asdict(measured)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
