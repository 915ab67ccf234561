"""How the report writes numbers and texts: in the reader's language, and so that no text can harm the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from ebr.config.options import Language
from ebr.data.evaluation.comparison import HEADLINES
from ebr.data.text.terminal_text import in_order
from ebr.visualization.words import words

MISSING = "–"
SHOWN_CHARACTERS = 300
METRIC_NAMES = {**HEADLINES, "recall@1": "Recall@1", "map": "MAP"}
"""As papers write them, in every language."""

_LINE_BREAKS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1f\x85]")
# HTML forbids control characters, and half a surrogate pair cannot be encoded.
_FORBIDDEN = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


class Wording:
    """The words of one language, "en" or "zh", as templates use them. Values are escaped unless they are Markup."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._words = words("report", language)

    def __call__(self, key: str, **values: object) -> Markup:
        """The words of a key, with its placeholders filled."""
        return Markup(self._words[key]).format(**values)

    def __contains__(self, key: str) -> bool:
        return key in self._words

    def count(self, what: str, n: int) -> Markup:
        """'1 query', '1,000 queries'. what: "queries" or "documents"."""
        return self(f"{what}_1") if n == 1 else self(f"{what}_n", n=f"{n:,}")

    def metric(self, name: str) -> str:
        """A metric's name as papers write it, or as it is."""
        return METRIC_NAMES.get(name, name)

    def share(self, value: float | None) -> str:
        """A share as per cent: '12.3 %'."""
        return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def score(value: float | None) -> str:
    """Four digits, as trec_eval gives them; a dash for what is unknown."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference with its sign, a true minus; what rounds to nothing has none."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:+.4f}".replace("-", "−")
    return "0.0000" if text in ("+0.0000", "−0.0000") else text


def probability(value: float | None) -> str:
    """Four digits; what would round to 0.0000 is named by its bound."""
    return "< 0.0001" if value is not None and 0 <= value < 0.00005 else score(value)


def printable(text: str) -> str:
    """Text that UTF-8 and HTML can hold: lone surrogates and control characters become U+FFFD, all line breaks newlines."""
    return _FORBIDDEN.sub("\ufffd", _LINE_BREAKS.sub("\n", in_order(text)))


def isolated(text: str) -> Markup:
    """A name for the middle of a sentence; its direction of writing cannot reach the words around it."""
    return Markup("<bdi>") + escape(printable(text)) + Markup("</bdi>")


def shortened(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """The first characters of a text on one line; what is cut ends in an ellipsis."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1].rstrip() + "…"


def without_unit(label: str) -> str:
    """'3–5 words' → '3–5': the heading above says what is counted, in the reader's language."""
    return label.removesuffix(" words").removesuffix(" word")


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


def facts_to_show(facts: Mapping[str, Any], language: Language) -> tuple[Fact, ...]:
    """One Fact for each entry, in their order; entries of entries become inner facts."""
    return tuple(_fact(str(name), value, language) for name, value in facts.items())


def _fact(name: str, value: Any, language: Language) -> Fact:  # noqa: ANN401
    names = _NAMES.get(name)
    label = names[language == "zh"] if names else name
    if isinstance(value, Mapping) and value:
        return Fact(label, names is not None, "", facts_to_show(value, language))
    return Fact(label, names is not None, _text(value, language))


def _text(value: Any, language: Language) -> str:  # noqa: ANN401
    if value is None:
        return words("report", language)["unset"]
    if value == "" or (isinstance(value, Mapping | Sequence) and not value):
        return words("report", language)["none"]
    if isinstance(value, bool):
        return words("report", language)["yes" if value else "no"]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(item, language) for item in value)
    return str(value)
