"""Texts from elsewhere in a Markdown page: shown as they are, whatever markup they hold."""

from __future__ import annotations

import json
import re
import unicodedata

from ebr.data.text.terminal_text import in_order

_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
"""What begins or ends something in Markdown; an underscore within a word does not."""
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_BACKTICKS = re.compile(r"`+")


class Markdown(str):
    """Text that is Markdown already."""


def one_line(text: str) -> str:
    """The text without control characters, in_order, each run of white space one space."""
    shown = "".join(" " if unicodedata.category(one) in {"Cc", "Zl", "Zp"} else one for one in in_order(text))
    return " ".join(shown.split())


def as_markdown(text: str) -> Markdown:
    """Plain text for a paragraph, a list or a cell of a table, on one line."""
    return Markdown(_MARKUP.sub(r"\\\g<0>", one_line(text).translate(_HTML)))


def code_cell(text: str) -> Markdown:
    """A text in quotes, as JSON has it, so that spaces at its ends and line breaks show: code, also in a cell of a table."""
    quoted = json.dumps(in_order(text), ensure_ascii=False)
    fence = "`" * (1 + max(map(len, _BACKTICKS.findall(quoted)), default=0))
    # Quotes part the text from the fence; a bar would end the cell, in code too.
    return Markdown(f"{fence}{quoted}{fence}".replace("|", r"\|"))
