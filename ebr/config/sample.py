"""Options of the sample corpus."""

from __future__ import annotations

from pathlib import Path

from ebr.config.options import Config, option


class SampleConfig(Config):
    """Build a real retrieval set from the documentation of the installed Python libraries."""

    output_root: Path = option(
        Path(),
        "train_text/, infer_data/ and datasets/ are filled below this folder",
        "在此目录下写入 train_text/、infer_data/ 和 datasets/",
    )
    train_pairs: int = option(2000, "training pairs at most", "训练样本对上限", ge=10)
    eval_queries: int = option(600, "evaluation queries at most", "评测查询数上限", ge=10)
    seed: int = option(
        42, "the same seed and library versions give the same files", "相同种子与库版本得到相同文件", ge=0, le=2**32 - 1
    )
