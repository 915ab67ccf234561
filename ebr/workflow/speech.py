"""What every verb needs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

Say = Callable[[str], None]
"""Where a verb's lines for people go; the shell and the notebook pass print."""


def library_versions() -> dict[str, str]:
    """The versions that a manifest records."""
    names = ("torch", "transformers", "sentence-transformers", "peft", "numpy")
    return {name: version(name) for name in names}
