"""Options of extending a vocabulary."""

from __future__ import annotations

from pathlib import Path

from ebr.config.options import Config, Names, option
from ebr.config.shared.encoder import PoolingMode, pooling_option, trust_option
from ebr.errors import ConfigError


class ExtendConfig(Config):
    """Extend a model's vocabulary by the characters that its tokenizer cannot spell, so that tuning can teach it a script."""

    model_name: str = option(
        "all-MiniLM-L6-v2",
        "the model to extend: a local folder, the embedded model by its name, or a hub id; no adapter",
        "要扩充的模型：本地目录、内置模型名或 hub id；不能是适配器",
    )
    data_path: str | None = option(
        None,
        "training records whose texts are looked through: a file, a glob, or a folder (not its subfolders)",
        "用来统计字符的训练数据：文件、通配符或目录（不含子目录）",
    )
    corpus: Names | None = option(
        None,
        "corpora that are looked through too: corpus.jsonl or the folder that holds it, a table with a column text, "
        "or a text file, one text a line; several with commas",
        "同样用来统计的语料：corpus.jsonl 或其所在目录、含 text 列的表，或每行一条的文本文件；多个用逗号分隔",
    )
    output_path: Path = option(..., "folder of the extended model", "扩充后模型的目录")
    max_new_tokens: int = option(3000, "the most frequent ones are added, at most so many", "按出现次数最多添加的词元数", ge=1)
    seed: int = option(42, "draws the rows of the new tokens", "用于抽取新词元的向量", ge=0, le=2**32 - 1)
    pooling: PoolingMode | None = pooling_option()
    trust_remote_code: bool = trust_option()

    def check(self) -> None:
        """Refuse options that leave nothing to look through. Raises ConfigError."""
        if self.data_path is None and not self.corpus:
            raise ConfigError("data_path, corpus: give one of them, or both: the texts whose characters the model should know")
