"""Where lines for people go, and who answers a question."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable

from ebr.errors import json_escape

Say = Callable[[str], None]
"""Where a verb's lines for people go; the notebook's and a script's are spoken, the shell passes its own."""


def silence(line: str) -> None:
    """Say nothing: of what one verb does on the way of another, and of the processes behind the first."""


def speak(line: str) -> None:
    """Print; what the terminal cannot spell as its escape in JSON: no line for people is worth the work that it is about."""
    try:
        print(line)  # noqa: T201
    except UnicodeEncodeError:
        codecs.register_error(json_escape.__name__, json_escape)
        encoding = sys.stdout.encoding
        print(line.encode(encoding, json_escape.__name__).decode(encoding))  # noqa: T201


Ask = Callable[[str], str]
"""A question → the user's answer; empty when there is none."""


def terminal() -> Ask | None:
    """Whoever sits at the terminal; None where nobody does."""
    return _answer if sys.stdin is not None and sys.stdin.isatty() else None


def _answer(question: str) -> str:
    try:
        return input(question)
    except (EOFError, KeyboardInterrupt, UnicodeError):  # no answer either, and no reason to lose what the question is about
        return ""
