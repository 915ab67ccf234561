"""How many of what, in words."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `1,234 rows`. many: None = one with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def are(count: int) -> str:
    """`is` for one, else `are`."""
    return "is" if count == 1 else "are"


def were(count: int) -> str:
    """`was` for one, else `were`."""
    return "was" if count == 1 else "were"
