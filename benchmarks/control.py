"""Control run: does fine-tuning help because of the pairs, or would anything help.

Tunes the embedded model twice from the same seed on the sample corpus: once on its pairs, once on the same texts with the
positives dealt out to wrong anchors. Only the first may gain. Takes about ten minutes on two cores.

    ebr sample && python benchmarks/control.py            # both arms
    python benchmarks/control.py shuffled                  # one of them
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from ebr import FinetuneConfig, train_sentence_transformer

PAIRS, EVALUATION = Path("train_text/api_docs.json"), Path("datasets/api_docs")
# What the notebook does.
RECIPE = {
    "eval_dataset": EVALUATION,
    "train_batch_size": 32,
    "eval_batch_size": 32,
    "max_seq_length": 64,
    "eval_steps": 1000,
    "report_to": ["none"],
}


def shuffled_pairs(records: list[dict[str, str]], rng: np.random.Generator) -> list[dict[str, str]]:
    """Every anchor gets the positive of the next one on a random ring, so that none keeps its own."""
    ring = rng.permutation(len(records))
    return [
        {"anchor": records[here]["anchor"], "positive": records[there]["positive"]}
        for here, there in zip(ring, np.roll(ring, -1), strict=True)
    ]


def main() -> int:
    """Train both arms and print a row for each; 1 when the pairs do not gain, or the shuffled pairs do."""
    records = json.loads(PAIRS.read_text(encoding="utf-8"))
    arms = {"pairs": records, "shuffled": shuffled_pairs(records, np.random.default_rng(42))}
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in sys.argv[1:] or arms:
            data = Path(scratch) / f"{name}.json"
            data.write_text(json.dumps(arms[name]), encoding="utf-8")
            result = train_sentence_transformer(FinetuneConfig(data_path=str(data), output_dir=f"{scratch}/{name}", **RECIPE))
            rows[name] = result.comparison.changes[0]
    print(f"\n{'arm':<10}  {'base':>6}  {'tuned':>6}  {'difference':>10}  95 % interval   (nDCG@10)")
    for name, change in rows.items():
        interval = change.interval
        bounds = f"[{interval.low:+.4f}, {interval.high:+.4f}]"
        print(f"{name:<10}  {change.base:.4f}  {change.tuned:.4f}  {interval.difference:>+10.4f}  {bounds}")
    gains = {name: change.interval.low > 0 for name, change in rows.items()}
    return 0 if gains.get("pairs", True) and not gains.get("shuffled", False) else 1


if __name__ == "__main__":
    raise SystemExit(main())
