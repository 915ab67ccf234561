"""Everything around the model: how fast tables are read and vectors written, what it adds to encoding, and how much memory.

python benchmarks/tables.py rows          # reading and writing alone: an engine that returns ready 384-d vectors
python benchmarks/tables.py end_to_end    # CSV in, vectors on disk, against encoding alone
python benchmarks/tables.py memory        # 1,000,000 rows through a tiny model, with the memory curve (about 10 minutes)
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ebr import InferenceConfig, run_batch_inference
from ebr.inference.workers import computing
from ebr.model.compute.local_engine import LocalEngine
from ebr.model.encoder.encoder import load_encoder
from ebr.model.encoder.prompts import Role

CORPORA = (Path("../shared/data/en_esci/eval/corpus.jsonl"), Path("datasets/api_docs/corpus.jsonl"))
DIM = 384
BAR_EVERY_S = 2.0


class ReadyEngine:
    """Ready vectors for any texts: what is left is everything else."""

    dim = DIM
    token_budget = 1

    def __init__(self) -> None:
        drawn = np.random.default_rng(0).standard_normal((1 << 15, DIM), dtype=np.float32)
        self.vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def prepare(self, texts: list[str]) -> int:
        """How many there are."""
        return len(texts)

    def compute(self, n_texts: int, on_batch: object = None) -> np.ndarray:
        """(n_texts, 384)."""
        return self.vectors[:n_texts]


def corpus() -> list[str]:
    """Texts of real products or documents, in one line each."""
    path = next(path for path in CORPORA if path.is_file())
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [f"{record.get('title', '')} {record['text']}".strip().replace("\n", " ").replace("\x01", " ") for record in records]


def write_table(path: Path, n_rows: int) -> None:
    """Rows of id, description, label; every text is distinct, for its row number stands in it."""
    texts = corpus()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        columns = [[str(i) for i in range(n_rows)], [f"{i} {texts[i % len(texts)]}" for i in range(n_rows)], ["label"] * n_rows]
        pq.write_table(pa.table(dict(zip(("id", "description", "label"), columns, strict=True))), path)
        return
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("id\x01description\x01label\n")
        for i in range(n_rows):
            file.write(f"{i}\x01{i} {texts[i % len(texts)]}\x01label\n")


def rows(scratch: Path, n_rows: int) -> None:
    """Rows a second of wall time, and a second of processor time of all threads: the rate of one core."""
    computing.EngineSpec.on = lambda self, model: ReadyEngine()  # the model is loaded, and stands aside
    print(f"{'in':<10} {'out':<13} {'rows':>8} {'rows/s':>9} {'rows/s a core':>14}")
    for suffix_in, suffix_out, dtype in [
        (".csv", ".txt", "float32"),
        (".csv", ".parquet", "float32"),
        (".parquet", ".parquet", "float32"),
        (".parquet", ".parquet", "float16"),
        (".parquet", ".npy", "float32"),
        (".parquet", "", "float32"),
    ]:
        folder, output = scratch / f"in{suffix_in}", scratch / "out" / f"vectors{suffix_out}"
        form = suffix_out[1:] or "parquet"
        if not folder.is_dir():
            write_table(folder / f"table{suffix_in}", n_rows)
        config = InferenceConfig(
            input_dir=folder,
            output_path=output,
            output_format=form,
            vector_dtype=dtype,
            precision="float32",
            torch_compile="never",
        )
        spent = []
        for _ in range(2):  # the first pays for imports and for loading the model
            clear(output)
            before = time.process_time(), time.perf_counter()
            result = run_batch_inference(config, say=lambda line: None)
            spent.append((time.process_time() - before[0], time.perf_counter() - before[1]))
        cpu, wall = (seconds - loading for seconds, loading in zip(spent[1], loading_time(), strict=True))
        name = form + (" 16" if dtype == "float16" else "") + ("" if suffix_out else " parts")
        print(f"{suffix_in[1:]:<10} {name:<13} {n_rows:>8,} {n_rows / wall:>9,.0f} {n_rows / cpu:>14,.0f}")
        assert result.embedded.n_rows == n_rows


def loading_time() -> tuple[float, float]:
    """Processor and wall seconds that loading and hashing the model takes: no part of reading and writing."""
    before = time.process_time(), time.perf_counter()
    computing.load_for_inference(InferenceConfig(), lambda line: None)
    return time.process_time() - before[0], time.perf_counter() - before[1]


def clear(output: Path) -> None:
    """Forget a run."""
    shutil.rmtree(output.parent, ignore_errors=True)


def end_to_end(scratch: Path, n_rows: int) -> None:
    """The same texts, encoded in memory and run from table to file, in turns."""
    write_table(scratch / "in" / "table.csv", n_rows)
    texts = [f"{i} {text}" for i, text in enumerate(corpus()[:n_rows])]
    engine = LocalEngine(load_encoder("all-MiniLM-L6-v2"), Role.DOCUMENT)
    print(f"{'out':<8} {'rows':>6} {'encoding alone s':>17} {'end to end s':>13} {'ratio':>6}")
    for suffix in (".txt", ".parquet"):
        output = scratch / "out" / f"vectors{suffix}"
        config = InferenceConfig(input_dir=scratch / "in", output_path=output, precision="float32", torch_compile="never")
        alone, whole = [], []
        for _ in range(3):
            started = time.perf_counter()
            engine.encode(texts)
            alone.append(time.perf_counter() - started)
            clear(output)
            started = time.perf_counter()
            run_batch_inference(config, say=lambda line: None)
            whole.append(time.perf_counter() - started)
        print(f"{suffix[1:]:<8} {n_rows:>6,} {min(alone):>17.2f} {min(whole):>13.2f} {min(whole) / min(alone):>6.2f}")


def memory(scratch: Path, n_rows: int) -> None:
    """Runs of a tenth and of all rows, each in a process of its own that is watched from outside."""
    model = tiny_model(scratch / "tiny")
    write_table(scratch / "part" / "table.csv", n_rows // 10)
    write_table(scratch / "whole" / "table.csv", n_rows)
    peaks = {}
    for name, count in (("part", n_rows // 10), ("whole", n_rows)):
        output = scratch / "out" / name / "vectors.parquet"
        options = ["--model_path", model, "--input_dir", scratch / name, "--output_path", output, "--precision", "float32"]
        command = [sys.executable, "-m", "ebr", "infer", *map(str, options)]
        started = time.perf_counter()
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        curve = []
        while process.poll() is None:
            try:
                curve.append(process.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        assert process.wait() == 0, "the run failed"
        peaks[name] = max(curve)
        tenths = [max(part) for part in np.array_split(np.array(curve), 10)]
        print(f"{count:>9,} rows  {seconds:>6.0f} s  {count / seconds:>7,.0f} rows/s  peak {peaks[name]:>5.0f} MiB")
        print(f"           MiB, the most in each tenth of the run: {' '.join(f'{tenth:.0f}' for tenth in tenths)}")
    print(f"grown by {peaks['whole'] - peaks['part']:+.0f} MiB from {n_rows // 10:,} to {n_rows:,} rows")


def tiny_model(folder: Path) -> str:
    """One layer of 32 dimensions, with the embedded model's tokenizer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    tokenizer = load_encoder("all-MiniLM-L6-v2").tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    first = Transformer(str(folder / "base"), max_seq_length=16)
    SentenceTransformer(modules=[first, Pooling(32, "mean")], device="cpu").save_pretrained(str(folder / "model"))
    return str(folder / "model")


QUESTIONS = {"rows": (rows, 100_000), "end_to_end": (end_to_end, 600), "memory": (memory, 1_000_000)}


def main() -> int:
    """Answer one question, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("question", nargs="*", choices=[*QUESTIONS, []], default=list(QUESTIONS))
    parser.add_argument("--rows", type=int, help="instead of 100,000, 600 and 1,000,000")
    options = parser.parse_args()
    for question in options.question:
        answer, n_rows = QUESTIONS[question]
        with tempfile.TemporaryDirectory() as scratch:
            answer(Path(scratch), options.rows or n_rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
