"""Precisions chosen before, one record for each model and machine, in a file of the user's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ebr.data.files.write import cache_home, read_json, write_json
from ebr.errors import first_line

log = logging.getLogger(__name__)


def memory_path() -> Path:
    """Where choices are remembered: precision.json in $EBR_CACHE_DIR, or in ~/.cache/ebr."""
    return cache_home() / "precision.json"


def read_memory() -> dict[str, Any]:
    """All records, by key; none where there is no such file."""
    try:
        record = read_json(memory_path())
    except (OSError, ValueError) as error:  # absent, or not ours: it is written anew
        log.debug("%s: %s", memory_path(), error)
        return {}
    return record if isinstance(record, dict) else {}


def write_memory(record: dict[str, Any]) -> None:
    """Replace all records; a folder that cannot be written stops nothing."""
    try:
        write_json(memory_path(), record)
    except OSError as error:
        log.info("%s: the choice is not remembered (%s)", memory_path(), first_line(error))
