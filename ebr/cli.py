"""The shell: arguments → config → one call of a verb → print."""

from __future__ import annotations

import argparse
import codecs
import difflib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ebr.config.options import add_arguments, flag_to_name, read_record
from ebr.errors import ConfigError, EBRError, Interrupted, ReaderGone, json_escape
from ebr.workflow.verbs import VERBS, Verb, load

USAGE_ERROR = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Errors in our words: an unknown flag names the nearest known one."""

    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        raise ConfigError(f"{message}; {self.prog} --help lists the options")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401
        """Refuse what is left over, with a near miss."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
            raise ConfigError(f"{unknown[0]}: unknown option" + (f"; did you mean {near[0]}?" if near else ""))
        return parsed, unknown


def main(arguments: Sequence[str] | None = None) -> int:
    """`ebr COMMAND …` and `python -m ebr COMMAND …`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog="ebr", description="Fine-tune a text-embedding model on your own pairs, embed tables, look at maps.")
    ours = sys.modules[__package__].__version__  # told by the face of the package, which no room imports
    parser.add_argument("--version", action="version", version=f"%(prog)s {ours}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, verb in VERBS.items():
        words = f" [{verb.positional.upper()}]" if verb.positional else ""
        # Sixty options in the usage line would bury what stands below it.
        usage = f"%(prog)s{words} [--option value ...]"
        about = verb.summary()
        _fill(commands.add_parser(name, help=about, description=about, usage=usage, allow_abbrev=False), verb)
    arguments = [flag_to_name(token) for token in arguments]
    return guarded(lambda: _run_parsed(vars(parser.parse_args(arguments)), arguments[1:]))


def finetune(arguments: Sequence[str] | None = None) -> int:
    """`python ebr_finetune.py …`: `ebr finetune` by the name that users know."""
    return main(["finetune", *(sys.argv[1:] if arguments is None else arguments)])


def train(arguments: Sequence[str] | None = None) -> int:
    """`python train.py …`: `ebr train` by the name that users know."""
    return main(["train", *(sys.argv[1:] if arguments is None else arguments)])


def merge(arguments: Sequence[str] | None = None) -> int:
    """`python merge.py …`: `ebr merge` by the name that users know."""
    return main(["merge", *(sys.argv[1:] if arguments is None else arguments)])


def _fill(parser: argparse.ArgumentParser, verb: Verb) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options from a JSON file or any output's manifest; flags win",
    )
    parser.add_argument("--dry_run", action="store_true", help="validate, count, say what would be done, and do nothing")
    if verb.check:
        parser.add_argument("--check", action="store_true", help="only look at data, options and machine, as ebr check does")
    add_arguments(parser, verb.config)
    if verb.positional:
        help_text = f"{verb.positional}, without its flag"
        parser.add_argument("words", nargs="*", metavar=verb.positional.upper(), help=help_text)


def _run_parsed(values: dict[str, Any], arguments: Sequence[str]) -> int:
    verb = VERBS[values.pop("command")]
    record, dry_run, only_check = values.pop("config"), values.pop("dry_run"), values.pop("check", False)
    if (words := values.pop("words", None)) and verb.positional:
        if verb.positional in values:
            raise ConfigError(f"{verb.positional}: given with its flag and without; give it once")
    for option, value in values.items():
        if value in ("none", ["none"]) and verb.config.may_be_unset(option):
            values[option] = None  # unsets what the record or the default set
    if words and verb.positional:
        values[verb.positional] = " ".join(words)  # whatever it says: a text to search for may be "none"
    config = verb.config.from_dict(read_record(record) if record else {}, overrides=values)
    if dry_run:
        _say("\n".join(load(verb.plan)(config).lines()))
        _say("dry run: nothing was written")
        return 0
    if verb.on_every_gpu and not only_check:
        relaunch = load(verb.on_every_gpu)
        exit_code: int | None = relaunch(verb.name, arguments, lambda n_gpus: load(verb.plan)(config, n_gpus))
        if exit_code is not None:
            return exit_code
    run = load(verb.check if only_check and verb.check else verb.run)
    result = run(config, say=_say_to_reader if verb.ends_with_reader else _say)
    # What a program reads holds nothing but the data: no empty line either.
    if _is_first_process() and (summary := result.summary()):
        _say(f"\n{summary}")
    return 0


def _say_to_reader(line: str) -> None:
    """Print at once. Raises ReaderGone when nobody reads it any more, OSError when it cannot be written."""
    try:
        print(line, flush=True)
    except BrokenPipeError as error:
        _let_go()
        raise ReaderGone from error
    except OSError as error:
        _let_go()
        raise OSError(error.errno, error.strerror, "standard output") from error


def _say(line: str) -> None:
    """Print at once; to nobody, once nobody reads it any more or its disk is full: the work is worth more than its log."""
    try:
        _say_to_reader(line)
    except ReaderGone:
        pass
    except OSError as error:
        logging.getLogger("ebr").warning("%s: %s; nothing more is printed there", error.filename, error.strerror)


def _let_go() -> None:
    """Whatever is still printed goes nowhere: Python would complain once more when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def spell_anything() -> None:
    """Have what a terminal cannot spell printed as its escape: lines for people never fail, and JSON lines stay exact."""
    codecs.register_error(json_escape.__name__, json_escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=json_escape.__name__)


def _is_first_process() -> bool:
    """Of those that a launcher started; alone, it is."""
    return os.environ.get("RANK", "0") == "0"


def guarded(run: Callable[[], int]) -> int:
    """Errors that a user can mend are one message and exit code 2; Ctrl-C is 130; others are ours and keep their traceback."""
    spell_anything()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("ebr").setLevel(logging.INFO if _is_first_process() else logging.ERROR)
    try:
        return run()
    except ReaderGone:
        return 0
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        return INTERRUPTED
    except EBRError as error:
        print(f"ebr: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = error.filename2 or error.filename or "writing"
        print(f"ebr: {place}: {error.strerror or error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("\nebr: interrupted; nothing half-written was kept", file=sys.stderr)
        return INTERRUPTED
    finally:
        try:
            sys.stdout.flush()  # of --help, say
        except BrokenPipeError:
            _let_go()


if __name__ == "__main__":
    raise SystemExit(main())
