"""What every verb needs."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

Say = Callable[[str], None]
"""Where a verb's lines for people go; the shell and the notebook pass print."""


def library_versions() -> dict[str, str]:
    """The versions that a manifest records."""
    names = ("torch", "transformers", "sentence-transformers", "peft", "numpy")
    return {name: version(name) for name in names}


def code_sha256() -> str:
    """One hash over every source file of this package: the code that made a report."""
    package = Path(__file__).parent.parent
    digest = sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
