"""What stands below a map."""

from __future__ import annotations

import re
from typing import Literal

from ebr.visualization.project.projection import Settings
from ebr.visualization.project.quality_words import REASONS

SHARED_START = "PCA of before"
"""Where both maps of a comparison begin."""

_UNSAID = ("engine", "neighbor search", "early learning rate", "iterations", "epochs", "points", "fitted on")
_CHINESE = {
    "perplexity": "困惑度",
    "learning rate": "学习率",
    "neighbors": "邻居数",
    "min dist": "最小距离",
    "start": "初始位置",
    "mode": "模式",
    "seed": "随机种子",
    "variance on x": "x 轴方差占比",
    "variance on y": "y 轴方差占比",
    "placed by neighbours": "按邻居放置",
    "because": "原因",
}
_CHINESE_VALUES = {
    "one point is too few": "只有一个点",
    "all vectors point the same way": REASONS["all vectors point the same way"],
    "reproducible": "可复现",
    "fast": "快速",
    "none": "无",
    "given": "给定",
    SHARED_START: "微调前的 PCA",
}


def settings_text(settings: Settings, language: Literal["en", "zh"] = "en") -> str:
    """What made a map, on one line, as it stands below it: perplexity 30, learning rate 1,667; the rest is in its numbers."""
    said = {name: _value(name, value) for name, value in settings.items() if name not in _UNSAID}
    if language == "zh":
        said = {_CHINESE.get(name, name): _chinese_value(text) for name, text in said.items()}
    return {"en": ", ", "zh": "，"}[language].join(f"{name} {text}" for name, text in said.items())


def _value(name: str, value: float | int | str) -> str:
    if isinstance(value, str) or name == "seed":
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _chinese_value(text: str) -> str:
    return _CHINESE_VALUES.get(text) or re.sub(r"^(\d+) points are too few$", r"只有 \1 个点", text)


def method_text(method: str, language: Literal["en", "zh"] = "en") -> str:
    """A projection's name for people: t-SNE, or PCA instead of t-SNE."""
    return re.sub("^PCA instead of (.*)$", r"PCA（代替 \1）", method) if language == "zh" else method
