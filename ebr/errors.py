"""Errors that a user can mend. Each message says where, what, and how; the command line prints it and exits with 2."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, as far as it fits into one of ours."""
    return str(error).strip().split("\n", 1)[0][:300]


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


class SaveError(EBRError, OSError):
    """A result cannot be written where it belongs; the message says where it is instead, and how to go on."""


class Interrupted(EBRError):
    """The user stopped a run; the message says what was saved and how to go on."""


class ReaderGone(Exception):
    """Whoever read what is printed has enough, as `head` has: no error, and nothing is said of it."""
