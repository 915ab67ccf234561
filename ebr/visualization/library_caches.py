"""Where libraries that draw maps keep what they compile and look up: their own places, or ours where those take no files."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from ebr.data.files.write import cache_home

_NUMBA, _MATPLOTLIB = "NUMBA_CACHE_DIR", "MPLCONFIGDIR"


def settle_numba_cache(package: str) -> None:
    """Let numba keep what it compiles of a package; to be called before the package is imported.

    Beside a package that is installed read-only it cannot, and without a home it ends in "no locator available".
    """
    if os.environ.get(_NUMBA) or _takes_files(_folder_of(package)):
        return
    os.environ[_NUMBA] = str(_own_folder("numba"))
    if "numba" in sys.modules:  # which has read the variable already
        sys.modules["numba"].config.CACHE_DIR = os.environ[_NUMBA]


def settle_matplotlib_cache() -> None:
    """Let matplotlib keep its list of fonts; to be called before it is imported. Else each run looks at every font again."""
    try:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    except RuntimeError:
        home = None
    if not os.environ.get(_MATPLOTLIB) and not (home and _takes_files(home)):
        os.environ[_MATPLOTLIB] = str(_own_folder("matplotlib"))


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else Path("/nowhere")


def _takes_files(folder: Path) -> bool:
    """Whether files can be written there, or where the first folder that is missing would be made."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _own_folder(name: str) -> Path:
    """A folder of ours that nobody else writes to, for what lies there is run as code; if need be for one process."""
    folder = cache_home() / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = folder.stat()
        if _takes_files(folder) and facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return folder
    except OSError:
        pass
    made = Path(tempfile.mkdtemp(prefix=f"ebr-{name}-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
