"""Options of making pairs from a corpus."""

from __future__ import annotations

from pathlib import Path

from ebr.config.options import Config, Names, Words, option
from ebr.errors import ConfigError

PAIR_KINDS = ("title", "first_sentence", "crops")
_SUFFIXES = (".jsonl", ".json")


class PairsConfig(Config):
    """Make training pairs from a corpus that nobody asked anything about: titles, first sentences, crops."""

    corpus: Names = option(
        ...,
        "corpus.jsonl or the folder that holds it, a table with a column text, or a text file, one text a line; "
        "several with commas",
        "corpus.jsonl 或其所在目录、含 text 列的表，或每行一条的文本文件；多个用逗号分隔",
    )
    output_path: Path = option(..., "the new training file: .jsonl or .json", "新的训练文件：.jsonl 或 .json")
    kinds: Words = option(
        [*PAIR_KINDS],
        "what is made of each text: title (title → text), first_sentence (first sentence → rest), crops (two crops of it)",
        "由每条文本生成什么：title（标题 → 正文）、first_sentence（首句 → 其余）、crops（两个随机片段）",
    )
    min_words: int = option(
        6,
        "a text, sentence or crop of fewer words, Chinese segmented, makes no pair; titles may be shorter",
        "正文、句子或片段少于此词数（中文先分词）时不生成样本；标题不受限制",
        ge=1,
    )
    seed: int = option(42, "draws the crops", "用于抽取片段", ge=0, le=2**32 - 1)

    def check(self) -> None:
        """Refuse options that make nothing. Raises ConfigError."""
        if self.output_path.suffix.lower() not in _SUFFIXES:
            raise ConfigError(f"output_path {self.output_path}: must end in {' or '.join(_SUFFIXES)}")
        if not self.kinds or not self.corpus:
            raise ConfigError("corpus, kinds: name at least one of each")
        if unknown := sorted(set(self.kinds) - {*PAIR_KINDS}):
            raise ConfigError(f"kinds: {', '.join(unknown)} unknown; use {', '.join(PAIR_KINDS)}")
