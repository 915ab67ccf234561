"""Where a whole model may be written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ebr.data.files.write import read_manifest
from ebr.errors import ConfigError


def check_output(output: Path, folders: Iterable[tuple[str, Path]], *, mark: str, work: str) -> None:
    """Refuse a folder that no work of this kind made, or that is, holds or lies in one of `folders`. Raises ConfigError.

    folders: each with the option that names it. mark: what the manifest of such a work alone holds. work: what it is called.
    """
    for name, folder in folders:
        folder = folder.resolve()
        if output == folder or output in folder.parents or folder in output.parents:
            raise ConfigError(f"output_path {output}: is, holds or lies in the {name} {folder}; write elsewhere")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output_path {output}: is a file; give a folder")
    is_ours = output.is_dir() and mark in (read_manifest(output) or {})
    if output.is_dir() and not is_ours and any(output.iterdir()):
        raise ConfigError(f"output_path {output}: holds something else than an earlier {work}; move it, or give a new folder")
