"""What stands below a map."""

from __future__ import annotations

from ebr.visualization.projection import Settings

_UNSAID = ("engine", "neighbor search", "early learning rate", "iterations", "epochs", "points", "fitted on")


def settings_text(settings: Settings) -> str:
    """What made a map, on one line, as it stands below it: perplexity 30, learning rate 1,667; the rest is in its numbers."""
    said = {name: value for name, value in settings.items() if name not in _UNSAID}
    return ", ".join(
        f"{name} {value}" if isinstance(value, str | int) else f"{name} {value:,g}" for name, value in said.items()
    )
