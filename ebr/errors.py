"""Errors that a user can mend. Each message says where, what, and how; the command line prints it and exits with 2."""

import json
import os
import sys
from importlib.util import find_spec

# The import names of the packages of each extra of pyproject.toml.
_EXTRAS = {
    "report": ("matplotlib",),
    "maps": ("matplotlib", "openTSNE", "plotly", "pynndescent", "umap"),
    "index": ("faiss",),
    "qlora": ("bitsandbytes",),
    "notebook": ("nbclient", "nbformat"),
    "ray": ("ray",),
}


def first_line(error: BaseException) -> str:
    """What an error of a library says, as far as it fits into one of ours."""
    return str(error).strip().split("\n", 1)[0][:300]


def why_not_utf8(text: str, *, is_path: bool = True) -> str | None:
    """Why a name cannot stand in a record, nor be given to libraries that open files by UTF-8 alone; None where it can.

    is_path: False for other text, which only has to be whole.
    """
    try:
        if text.encode() == (os.fsencode(text) if is_path else text.encode()):
            return None
    except UnicodeEncodeError:
        pass
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        return f"is read as {encoding} here, where records and libraries take UTF-8 alone; set PYTHONUTF8=1"
    return "is not UTF-8; rename the file or folder" if is_path else "is not UTF-8; rename what it names, or type it in UTF-8"


def json_escape(error: UnicodeError) -> tuple[str, int]:
    r"""A codec's error handler: what an encoding cannot spell becomes \uXXXX as in JSON, where it means the very same."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


class EBRError(Exception):
    """The base of every error that EBR raises on purpose."""


class ConfigError(EBRError, ValueError):
    """An option is unknown, out of range, or does not fit another option."""


class DataError(EBRError, ValueError):
    """An input file or record cannot be used."""


class ModelError(EBRError, ValueError):
    """A model or adapter cannot be found, verified or used as asked."""


class MissingPackageError(EBRError, ImportError):
    """An optional package is absent; the message carries the command that installs it."""


def how_to_install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'ebr-retrieval[{extra}]'"


def require_extra(extra: str, what: str) -> None:
    """Raises MissingPackageError when a package of an extra is absent. what: that which needs it, for the message."""
    if absent := [name for name in _EXTRAS[extra] if not _is_there(name)]:
        raise MissingPackageError(f"{what} needs {', '.join(absent)}, absent here: {how_to_install(extra)}")


def _is_there(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a data folder of this name looks like a package without a file


class SaveError(EBRError, OSError):
    """A result cannot be written where it belongs; the message says where it is instead, and how to go on."""


class Interrupted(EBRError):
    """The user stopped a run; the message says what was saved and how to go on."""


class ReaderGone(Exception):
    """Whoever read what is printed has enough, as `head` has: no error, and nothing is said of it."""
