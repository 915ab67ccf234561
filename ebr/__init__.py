"""EBR: embedding-based retrieval, tuned on your own data.

Public names load on first use, so that `import ebr` costs nothing and changes nothing; __init__.pyi tells them to editors.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"


def _public() -> dict[str, str]:
    """Where each public name stands."""
    from ebr.workflow.verbs import public_configs, public_functions

    return public_configs() | public_functions()


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "__all__":
        return sorted(_public())
    if not name.startswith("_") and name in (public := _public()):
        from ebr.workflow.verbs import load

        return load(public[name])
    raise AttributeError(f"module 'ebr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_public()]
