"""What a manifest records of the code that made it."""

from __future__ import annotations

import sys
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path


def own_version() -> str:
    """EBR's own."""
    face = sys.modules[__package__.partition(".")[0]]  # it tells the version, and no room imports it
    return str(face.__version__)


def library_versions() -> dict[str, str]:
    """The versions that a manifest records."""
    names = ("torch", "transformers", "sentence-transformers", "peft", "numpy")
    return {"ebr": own_version(), **{name: version(name) for name in names}}


def code_sha256() -> str:
    """One hash over every source file of this package: the code that made a report."""
    package = Path(__file__).parent.parent
    digest = sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
