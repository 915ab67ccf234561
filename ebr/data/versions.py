"""What a manifest records of the code that made it."""

from __future__ import annotations

import sys
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path


def library_versions() -> dict[str, str]:
    """The versions that a manifest records."""
    names = ("torch", "transformers", "sentence-transformers", "peft", "numpy")
    ours = sys.modules[__package__.partition(".")[0]].__version__  # told by the face of the package, which no room imports
    return {"ebr": ours, **{name: version(name) for name in names}}


def code_sha256() -> str:
    """One hash over every source file of this package: the code that made a report."""
    package = Path(__file__).parent.parent
    digest = sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
