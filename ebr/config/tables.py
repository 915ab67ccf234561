"""Keeps the options pages in step with the configs: python -m ebr.config.tables docs/options.md docs/options.zh.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ebr.config import (
    Config,
    EvaluationConfig,
    FinetuneConfig,
    IndexConfig,
    InferenceConfig,
    MergeConfig,
    MiningConfig,
    SampleConfig,
    SearchConfig,
    TrainConfig,
    VisualizationConfig,
)
from ebr.config.options import Language, choices, default_text, type_name

CONFIGS: dict[str, type[Config]] = {
    "sample": SampleConfig,
    "finetune": FinetuneConfig,
    "train": TrainConfig,
    "merge": MergeConfig,
    "infer": InferenceConfig,
    "visualize": VisualizationConfig,
    "evaluate": EvaluationConfig,
    "index": IndexConfig,
    "search": SearchConfig,
    "mine": MiningConfig,
}
_MARK = re.compile(r"(<!-- options: (\w+) -->\n)(?:(?!<!--).)*?(\n?<!-- /options -->)", re.DOTALL)


def options_table(config: type[Config], language: Language) -> str:
    """The Markdown table of a config's options that stands in docs/options.md."""
    head = {
        "en": "| option | type | default | meaning |",
        "zh": "| 选项 | 类型 | 默认值 | 含义 |",
    }[language]
    rows = [head, "|---|---|---|---|"]
    for name, field in config.model_fields.items():
        extra = field.json_schema_extra
        text = extra["zh"] if language == "zh" and isinstance(extra, dict) else field.description
        kind = " / ".join(choices(field)) or type_name(field)
        cells = [f"`{config.spelling(name)}`", kind, f"`{default_text(field, language)}`", str(text)]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def with_tables(text: str, language: Language) -> str:
    """The text with the table between each pair of `<!-- options: finetune -->` and `<!-- /options -->` made anew."""
    return _MARK.sub(lambda match: match[1] + options_table(CONFIGS[match[2]], language) + "\n<!-- /options -->", text)


def language_of(path: Path) -> Language:
    """options.zh.md is Chinese."""
    return "zh" if ".zh" in path.name else "en"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_tables(path.read_text(encoding="utf-8"), language_of(path)), encoding="utf-8")
