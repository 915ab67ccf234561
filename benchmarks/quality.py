"""Does a model that we tune retrieve as well as one tuned by stock sentence-transformers? Arms × data sets × seeds.

Every arm trains on the same pairs (a query, each of its positives), from the same initial adapter, at the same learning rate,
batch size, number of steps and token limit, and is evaluated by the same code. Only ours_annotated and ours_mined add
negatives to the pairs. Each run is kept as one JSON in the output folder, and is not done again when it is there; the table at
the end is made of all that are.

    python benchmarks/quality.py --output_dir DIR                                        # every arm that a set has; many hours
    python benchmarks/quality.py --output_dir DIR --sets en_esci --arms stock ours       # some of them
    python benchmarks/quality.py --output_dir DIR --arms ours_recipe --recipe '{"learning_rate": 0.0005}'
    python benchmarks/quality.py --output_dir DIR --table                                # only the table

Arms: base (untuned); stock (its own trainer, MultipleNegativesRankingLoss, its default sampler); stock_no_duplicates (the same
with its sampler that keeps equal texts apart); ours; ours_annotated and ours_mined (negatives of the data, and of
mine_hard_negatives on the base model, from the passages of all training records); ours_recipe (ours with the options of
--recipe; "negatives": "annotated" or "mined" among them says on which records, "teacher": "hybrid" who scores what is mined,
"extend": true that the vocabulary is extended by the records' characters first). A difference to stock is between means over
the seeds that both have; its 95 % bounds resample the queries.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from stock import Pairs, read_pairs, stock_model, stock_trainer

from ebr import ExtendConfig, FinetuneConfig, MiningConfig, extend_vocabulary, mine_hard_negatives, train_sentence_transformer
from ebr.data.evaluation.evaluation_set import read_evaluation_set
from ebr.model.compute.local_engine import RetrievalEncoder
from ebr.model.encoder.encoder import load_encoder
from ebr.retrieval.measures.measurement import evaluate_encoder
from ebr.retrieval.measures.significance import paired_bootstrap
from ebr.training.resources.mixed_precision import mixed_precision

SETS = ("en_banking77", "zh_cmrc2018", "zh_drcd", "en_esci")
STEPS = {"en_banking77": 200, "zh_cmrc2018": 95, "zh_drcd": 125, "en_esci": 85}
ARMS = ("base", "stock", "stock_no_duplicates", "ours", "ours_annotated", "ours_mined", "ours_recipe")
SEEDS = (0, 1, 2)
METRIC = "ndcg@10"


@dataclass(frozen=True)
class Setting:
    """What is held equal in the arms that are compared."""

    data: str
    model: str
    steps: int
    max_seq_length: int
    batch: int
    precision: str

    def name(self) -> str:
        """Fit for a file's name."""
        model = Path(self.model).name
        return f"{self.data}.{model}.steps{self.steps}.len{self.max_seq_length}.batch{self.batch}.{self.precision}"


@dataclass(frozen=True)
class Run:
    """One arm with one seed: how it was tuned, how long that took, and what it is worth."""

    setting: Setting
    arm: str
    seed: int
    options: dict[str, Any]
    """Of ours_recipe."""
    n_pairs: int
    train_s: float
    evaluate_s: float
    threads: int
    means: dict[str, float]
    query_ids: list[str]
    ndcg_at_10: list[float]
    """Of each query, in the order of query_ids."""

    @property
    def label(self) -> str:
        """The arm, and which recipe."""
        return label_of(self.arm, self.options)


# ---------------------------------------------------------------- arms: pairs in, the folder of a tuned model out


def config_of(setting: Setting, seed: int, data: Path, output: Path, options: dict[str, Any]) -> FinetuneConfig:
    """What every arm shares, in our words; what is not named is the default (LoRA r 8, alpha 32, dropout 0.1, lr 2e-4, …)."""
    fixed: dict[str, Any] = {
        "model_name": setting.model,
        "data_path": str(data),
        "output_dir": output,
        "train_batch_size": setting.batch,
        "max_seq_length": setting.max_seq_length,
        "max_steps": setting.steps,
        "bf16": setting.precision == "bfloat16",
        "seed": seed,
        "validation_split": 0,
        "save_steps": 0,
        "report_to": ["none"],
    }
    return FinetuneConfig(**fixed | options)


def tune_stock(pairs: Pairs, config: FinetuneConfig, sampler: BatchSamplers) -> str:
    """Train as stock does, and save."""
    model, tuned = stock_model(config), str(config.output_dir / "tuned")
    stock_trainer(model, pairs, config, sampler).train()
    model.save_pretrained(tuned)
    return tuned


def tune_ours(pairs: Pairs, config: FinetuneConfig, *, with_negatives: bool = False) -> str:
    """Our engine, on the pairs alone or with the negatives that the data has."""
    pairs.write(Path(config.data_path), with_negatives=with_negatives)
    return str(train_sentence_transformer(config, say=_silence).model_path)


def tune_mined(pairs: Pairs, config: FinetuneConfig, teacher: str | None = None) -> str:
    """Our engine, with negatives mined by the untuned model from the passages of all records, and scored by a teacher."""
    data = Path(config.data_path)
    source, corpus = data.with_name("pairs.json"), data.with_name("corpus.jsonl")
    pairs.write(source)
    lines = [json.dumps({"_id": str(row), "text": text}) for row, text in enumerate(pairs.passages())]
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    mining = MiningConfig(model_path=config.model_name, data_path=str(source), corpus=corpus, output_path=data)
    mining.max_seq_length, mining.teacher = config.max_seq_length, teacher
    mine_hard_negatives(mining, say=_silence)
    return str(train_sentence_transformer(config, say=_silence).model_path)


def extended(pairs: Pairs, config: FinetuneConfig) -> str:
    """The base with tokens for the characters of the records that it cannot spell."""
    source = Path(config.data_path).with_name("to_spell.json")
    pairs.write(source)
    extending = ExtendConfig(model_name=config.model_name, data_path=str(source), output_path=source.with_name("extended"))
    return str(extend_vocabulary(extending, say=_silence).model_path)


def _silence(line: str) -> None:
    """What is said on the way is not kept."""


TUNE: dict[str, Callable[[Pairs, FinetuneConfig], str]] = {
    "base": lambda pairs, config: config.model_name,
    "stock": lambda pairs, config: tune_stock(pairs, config, BatchSamplers.BATCH_SAMPLER),
    "stock_no_duplicates": lambda pairs, config: tune_stock(pairs, config, BatchSamplers.NO_DUPLICATES),
    "ours": tune_ours,
    "ours_annotated": lambda pairs, config: tune_ours(pairs, config, with_negatives=True),
    "ours_mined": tune_mined,
    "ours_hybrid": partial(tune_mined, teacher="hybrid"),
}
OF_A_RECIPE = {"negatives", "teacher", "extend"}
"""What a recipe says beside options of the tuning."""


def records_arm(arm: str, options: dict[str, Any]) -> str:
    """The arm whose records are trained on: a recipe names its own."""
    if arm != "ours_recipe":
        return arm
    return f"ours_{options.get('teacher', options.get('negatives'))}" if options.keys() & {"teacher", "negatives"} else "ours"


def measure(folder: Path, setting: Setting, arm: str, seed: int, options: dict[str, Any]) -> Run:
    """Tune and evaluate once."""
    pairs, dataset = read_pairs(folder), read_evaluation_set(folder / "eval")
    with tempfile.TemporaryDirectory() as scratch:
        known = {name: value for name, value in options.items() if name not in OF_A_RECIPE}
        config = config_of(setting, seed, Path(scratch) / "train.json", Path(scratch), known)
        config.check()
        started = time.perf_counter()
        if options.get("extend"):
            config.model_name = extended(pairs, config)
        tuned = TUNE[records_arm(arm, options)](pairs, config)
        trained = time.perf_counter()
        model: SentenceTransformer = load_encoder(tuned, max_seq_length=setting.max_seq_length)
        evaluation = evaluate_encoder(RetrievalEncoder(model, show_progress=False), dataset)
    return Run(
        setting=setting,
        arm=arm,
        seed=seed,
        options=options,
        n_pairs=len(pairs.anchors),
        train_s=round(trained - started, 1),
        evaluate_s=round(time.perf_counter() - trained, 1),
        threads=torch.get_num_threads(),
        means=evaluation.means(),
        query_ids=evaluation.query_ids,
        ndcg_at_10=evaluation.scores[METRIC].tolist(),
    )


# ---------------------------------------------------------------- results


def label_of(arm: str, options: dict[str, Any]) -> str:
    """The arm's name; recipes that differ get names that differ."""
    return arm + (f"-{zlib.crc32(json.dumps(options, sort_keys=True).encode()):08x}" if options else "")


def file_of(output: Path, setting: Setting, label: str, seed: int) -> Path:
    """Where a run is kept."""
    return output / f"{setting.name()}.{label}.seed{seed}.json"


def keep(run: Run, path: Path) -> None:
    """Write a whole file or none."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(asdict(run), indent=1), encoding="utf-8")
    aside.replace(path)


def read_runs(output: Path) -> list[Run]:
    """Every run of the folder."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*.seed*.json"))]
    return [Run(**record | {"setting": Setting(**record["setting"])}) for record in found]


def seed_means(runs: Sequence[Run], seeds: set[int]) -> np.ndarray:
    """(Q,) each query's nDCG@10, averaged over these seeds."""
    return np.mean([run.ndcg_at_10 for run in runs if run.seed in seeds], axis=0)


def against(runs: Sequence[Run], others: Sequence[Run]) -> str:
    """Runs − others: the difference, its bounds by query, and how far it swings by seed. An arm with one run has no seeds."""
    seeds = {run.seed for run in runs} & {run.seed for run in others}
    if not seeds:
        return f"{'':<34}"
    interval = paired_bootstrap(seed_means(others, seeds), seed_means(runs, seeds), seed=0)
    by_seed = [seed_means(runs, {seed}).mean() - seed_means(others, {seed}).mean() for seed in sorted(seeds)]
    swing = f"{np.std(by_seed, ddof=1):.4f}" if len(by_seed) > 1 else "-"
    return f"{interval.difference:>+8.4f} [{interval.low:+.4f}, {interval.high:+.4f}] {swing:>7}"


def print_table(runs: Sequence[Run]) -> None:
    """A row for each arm, below its setting."""
    blank = " " * 34
    runs = sorted(runs, key=lambda run: (run.setting.name(), ARMS.index(run.arm), run.label, run.seed))
    for name, group in itertools.groupby(runs, key=lambda run: run.setting.name()):
        members = list(group)
        by_label = {label: list(its_runs) for label, its_runs in itertools.groupby(members, key=lambda run: run.label)}
        # The base has no seed: it stands beside each of them.
        seeds = {run.seed for run in members}
        base = [replace(run, seed=seed) for run in by_label.get("base", []) for seed in seeds]
        print(f"\n{name}: {members[0].n_pairs:,} pairs, {len(members[0].query_ids):,} queries")
        header = f"{'arm':<20} {'seeds':>5} {'nDCG@10':>8} {'− stock [95 % bounds] ± seeds':<34} {'− base, likewise':<34}"
        print(f"{header} {'train s':>7}")
        for label, its_runs in by_label.items():
            mean, seconds = np.mean([(run.means[METRIC], run.train_s) for run in its_runs], axis=0)
            to_stock = blank if label in ("base", "stock") else against(its_runs, by_label.get("stock", []))
            to_base = blank if label == "base" else against(its_runs, base)
            print(f"{label:<20} {len(its_runs):>5} {mean:>8.4f} {to_stock} {to_base} {seconds:>7.0f}")
        for label, its_runs in by_label.items():
            if its_runs[0].options:
                print(f"{label}: {json.dumps(its_runs[0].options)}")


def arms_of(data: str, wanted: Sequence[str] | None) -> list[str]:
    """Those asked for, or all that say something about a set: equal texts and annotations are en_esci's matter."""
    if wanted:
        return list(wanted)
    left_out = {"ours_recipe"} if data == "en_esci" else {"ours_recipe", "ours_annotated", "ours_mined"}
    return [arm for arm in ARMS if arm not in left_out]


def main() -> int:
    """Do what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs are kept, one JSON each")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="default: all but ours_recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, help=f"default: {STEPS}, else 120")
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", type=json.loads, default={}, help="options of ours_recipe, as JSON")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for data in () if options.table else options.sets:
        setting = Setting(
            data=data,
            model=options.model,
            steps=options.steps or STEPS.get(data, 120),
            max_seq_length=options.max_seq_length,
            batch=options.batch,
            precision="bfloat16" if mixed_precision(FinetuneConfig()) == "bf16" else "float32",
        )
        for arm in arms_of(data, options.arms):
            recipe = options.recipe if arm == "ours_recipe" else {}
            for seed in options.seeds[:1] if arm == "base" else options.seeds:
                path = file_of(options.output_dir, setting, label_of(arm, recipe), seed)
                if not path.is_file():
                    run = measure(options.data / data, setting, arm, seed, recipe)
                    keep(run, path)
                    took = f"{run.train_s:.0f} s training, {run.evaluate_s:.0f} s evaluation"
                    print(f"{time.strftime('%H:%M')} {path.stem}: nDCG@10 {run.means[METRIC]:.4f}; {took}", flush=True)
    print_table(read_runs(options.output_dir))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
