"""Terminals that cannot spell everything: lines for people never fail, and lines of data say the very same."""

from __future__ import annotations

import inspect
import io
import json
import sys

import pytest

from ebr import cli
from ebr.data import speech
from ebr.workflow.verbs import VERBS, load, public_functions

LINE = "的 é 😀 – \udcd6"
SPELLED = {
    "gbk": r"的 é \ud83d\ude00 – \udcd6",
    "latin-1": r"\u7684 é \ud83d\ude00 \u2013 \udcd6",
    "cp1252": r"\u7684 é \ud83d\ude00 – \udcd6",
    "ascii": r"\u7684 \u00e9 \ud83d\ude00 \u2013 \udcd6",
    "utf-8": r"的 é 😀 – \udcd6",
}
EVERY_ENCODING = pytest.mark.parametrize("encoding", SPELLED)


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard output a terminal of an encoding that refuses what it cannot spell; gives what is printed on it."""

    def made(encoding):
        stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict", newline="")
        monkeypatch.setattr(sys, "stdout", stream)  # within the test: pytest sets its own before each

        def printed():
            stream.flush()
            return stream.buffer.getvalue().decode(encoding)

        return printed

    return made


@EVERY_ENCODING
def test_verb_called_from_a_script_says_its_lines_whatever_the_terminal(encoding, terminal):
    printed = terminal(encoding)
    speech.speak(LINE)
    speech.speak("plain")
    assert printed() == SPELLED[encoding] + "\nplain\n"


@EVERY_ENCODING
def test_command_says_lines_and_summary_whatever_the_terminal(encoding, terminal, monkeypatch):
    class Done:
        def summary(self):
            return f"written to {LINE}"

    monkeypatch.setattr("ebr.inference.command.run_batch_inference", lambda config, say: say(LINE) or Done())
    printed = terminal(encoding)
    assert cli.main(["infer"]) == 0
    assert printed() == f"{SPELLED[encoding]}\n\nwritten to {SPELLED[encoding]}\n"


@EVERY_ENCODING
def test_hits_stay_exact_json_whatever_the_terminal(encoding, terminal, monkeypatch):
    class Done:
        def summary(self):
            return ""

    hit = {"query": LINE, "columns": {"text": 'a "b" \\ \n' + LINE}}
    monkeypatch.setattr(VERBS["search"].run, lambda config, say: say(json.dumps(hit, ensure_ascii=False)) or Done())
    printed = terminal(encoding)
    assert cli.main(["search", "a", "--output_format", "jsonl"]) == 0
    assert json.loads(printed()) == hit


def test_help_comes_through_too(terminal):
    printed = terminal("ascii")
    with pytest.raises(SystemExit):
        cli.main(["search", "--help"])
    assert "--query" in printed()


def test_answer_that_cannot_be_read_is_none(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("中文\n".encode("gbk")), "utf-8"))
    assert speech._answer("where to? ") == ""


def test_every_verb_speaks_by_itself():
    verbs = {path: inspect.signature(load(path)).parameters for path in public_functions().values()}
    defaults = {name: parameters["say"].default for name, parameters in verbs.items() if "say" in parameters}
    assert len(defaults) >= 9
    assert set(defaults.values()) == {speech.speak}
