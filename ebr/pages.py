"""Keeps what tells of the verbs in step with their list: the pages of options and of the API, and the stub of the package.

python -m ebr.pages docs/options.md docs/options.zh.md docs/api.md docs/api.zh.md ebr/__init__.pyi
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ebr.config import Config
from ebr.config.options import Language, choices, default_text, type_name
from ebr.workflow.verbs import VERBS, public_configs, public_functions

_OPTIONS = re.compile(r"(<!-- options: (\w+) -->\n)(?:(?!<!--).)*?(\n?<!-- /options -->)", re.DOTALL)
_NAMES = re.compile(r"(<!-- (functions|configs) -->\n)(?:(?!<!--).)*?(<!-- /\2 -->)", re.DOTALL)


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


def _functions() -> str:
    return "".join(f"\n::: {path}\n" for path in public_functions().values())


def _configs() -> str:
    return "".join(f"\n::: {path}\n    options: {{members: false}}\n" for path in public_configs().values())


def page(text: str, language: Language) -> str:
    """The text, with what stands between each pair of marks made anew.

    Marks: `<!-- options: finetune -->` and `<!-- /options -->`, a table; `<!-- functions -->`, `<!-- configs -->` and their
    ends, what mkdocstrings fills from the docstrings.
    """
    text = _OPTIONS.sub(lambda match: match[1] + options_table(VERBS[match[2]].config, language) + "\n<!-- /options -->", text)
    names = {"functions": _functions, "configs": _configs}
    return _NAMES.sub(lambda match: f"{match[1]}{names[match[2]]()}\n{match[3]}", text)


def stub() -> str:
    """What type checkers and editors read of the package, whose names load on first use."""
    lines = ["# Made by ebr.pages from the list of verbs.", ""]
    for path in sorted([*public_configs().values(), *public_functions().values()]):
        module, _, name = path.rpartition(".")
        lines.append(f"from {module} import {name} as {name}")
    return "\n".join([*lines, "", "__version__: str", ""])


def made_anew(path: Path) -> str:
    """What the file at `path` should hold; .zh in its name: in Chinese."""
    if path.suffix == ".pyi":
        return stub()
    return page(path.read_text(encoding="utf-8"), "zh" if ".zh" in path.name else "en")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(made_anew(Path(name)), encoding="utf-8")
