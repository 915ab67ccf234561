"""How facts of any depth are shown: known names in the reader's language, other names as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ebr.retrieval.report.words import WORDS

# name: (English, Chinese)
_NAMES = {
    "code_sha256": ("sha256 of the code", "代码 sha256"),
    "command": ("command", "命令"),
    "config": ("settings", "设置"),
    "cut": ("longer than the model reads", "超出模型长度而被截断"),
    "dim": ("dimensions", "维度"),
    "document": ("documents", "文档"),
    "documents": ("documents", "文档"),
    "folder": ("folder", "目录"),
    "length": ("tokens kept", "保留的 token 数"),
    "lengths": ("tokens kept", "保留的 token 数"),
    "made": ("made at", "生成时间"),
    "max_seq_length": ("tokens kept of a text", "每条文本保留的 token 数"),
    "model_sha256": ("sha256 of the model", "模型 sha256"),
    "n_cut": ("cut", "被截断"),
    "n_documents": ("documents", "文档数"),
    "n_judgements": ("judgements", "相关性判断数"),
    "n_missing_documents": ("judged documents that the corpus lacks", "有判断但语料中没有的文档数"),
    "n_own_documents": ("documents under the id of a query, left out of its ranking", "与查询同 id、不参与其排序的文档数"),
    "n_queries": ("queries", "查询数"),
    "n_texts": ("texts", "文本数"),
    "n_unjudged_queries": ("queries without a relevant document, left out", "因没有相关文档而略去的查询数"),
    "n_unknown_queries": ("judged queries without a text, left out", "因没有文本而略去的查询数"),
    "passage": ("documents", "文档"),
    "passage_max_len": ("tokens kept of a document", "文档保留的 token 数"),
    "path": ("folder", "目录"),
    "pooling": ("pooling", "池化"),
    "prompts": ("prompts", "提示"),
    "queries": ("queries", "查询"),
    "query": ("queries", "查询"),
    "query_max_len": ("tokens kept of a query", "查询保留的 token 数"),
    "seconds": ("seconds", "秒数"),
    "seed": ("seed", "随机种子"),
    "sha256": ("sha256", "sha256"),
    "versions": ("versions", "版本"),
}


@dataclass(frozen=True)
class Fact:
    """One line: a label, and either a text or the lines of what it holds. is_known: the label is words, not a bare name."""

    label: str
    is_known: bool
    text: str
    inner: tuple[Fact, ...] = ()


def facts_to_show(facts: Mapping[str, Any], language: str) -> tuple[Fact, ...]:
    """One Fact for each entry, in their order; entries of entries become inner facts."""
    return tuple(_fact(str(name), value, language) for name, value in facts.items())


def _fact(name: str, value: Any, language: str) -> Fact:  # noqa: ANN401
    names = _NAMES.get(name)
    label = names[language == "zh"] if names else name
    if isinstance(value, Mapping) and value:
        return Fact(label, names is not None, "", facts_to_show(value, language))
    return Fact(label, names is not None, _text(value, language))


def _text(value: Any, language: str) -> str:  # noqa: ANN401
    if value is None:
        return WORDS[language]["unset"]
    if value == "" or (isinstance(value, Mapping | Sequence) and not value):
        return WORDS[language]["none"]
    if isinstance(value, bool):
        return WORDS[language]["yes" if value else "no"]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(item, language) for item in value)
    return str(value)
