"""The READMEs say what the code does, and say the same in both languages."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from ebr.cli import COMMANDS
from ebr.config.objective import LOSSES
from ebr.config.options import add_arguments, flag_to_name
from ebr.config.tables import CONFIGS, language_of, with_tables

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
READMES = pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=lambda path: path.name)

EVERY_COMMAND, OF_SOME = {"config", "dry_run"}, {"check"}
OF_OTHER_TOOLS = {"--multi_gpu", "--help", "--no-deps", "--local-dir", "--logdir", "--nproc_per_node"}
"""Flags of argparse, pip, hf, tensorboard, torchrun and accelerate."""
SCRIPTS = {"ebr_finetune.py": "finetune", "train.py": "train", "merge.py": "merge"}

# Findings are named where they are judged; the names of cut texts are made of their role.
JUDGES = ["training/record_findings.py", "training/run_findings.py", "training/symptoms.py", "workflow/check.py"]
CUT = {"queries-cut", "passages-cut"}
KEBAB = r"[a-z]+(?:-[a-z]+)+"

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(text, language):
    return [body for name, body in FENCE.findall(text) if name == language]


def without_comments(block):
    lines = (re.sub(r"(^|\s+)# .*", "", line).rstrip() for line in block.splitlines())
    return [line for line in lines if line]


def headings(text):
    return re.findall(r"^(#+) (.+)$", FENCE.sub("", text), re.MULTILINE)


def anchor(heading):
    """GitHub's: lower case, punctuation gone, spaces to dashes."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def our_commands(text):
    """(subcommand, its arguments) of every shell line that runs EBR."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.split(" > ")[0])
            words = words[1:] if words[:1] == ["nohup"] else words
            words = ["python", *words[3:]] if words[:2] == ["torchrun", "--nproc_per_node"] else words
            if words[:1] == ["ebr"]:
                yield words[1], words[2:]
            elif words[:1] == ["python"] and words[1] in SCRIPTS:
                yield SCRIPTS[words[1]], words[2:]


@READMES
@pytest.mark.parametrize("name", CONFIGS)
def test_each_command_has_one_options_table(readme, name):
    assert read(readme).count(f"<!-- options: {name} -->\n") == 1


@READMES
def test_options_tables_are_those_of_the_configs(readme):
    assert with_tables(read(readme), language_of(readme)) == read(readme), "run: make docs"


def test_every_command_of_the_shell_has_a_table():
    of_commands = {name: command.config for name, command in COMMANDS.items()}
    assert of_commands.pop("check") is CONFIGS["finetune"]  # the same options
    assert of_commands == CONFIGS


def test_both_languages_have_the_same_sections_in_the_same_order():
    english, chinese = headings(read(ENGLISH)), headings(read(CHINESE))
    assert [level for level, _ in english] == [level for level, _ in chinese]
    # A stage's heading names its command in both languages, so two that changed places would show.
    commands = [re.findall(r"`[^`]+`", text) for _, text in english]
    assert commands == [re.findall(r"`[^`]+`", text) for _, text in chinese]
    assert sum(map(len, commands)) == len(COMMANDS)


@pytest.mark.parametrize("language", ["bash", "python", "json"])
def test_both_languages_show_the_same_code(language):
    english, chinese = ([without_comments(block) for block in blocks(read(path), language)] for path in (ENGLISH, CHINESE))
    assert english
    assert english == chinese


def test_both_languages_show_the_same_result_of_the_demo():
    english, chinese = (re.findall(r"<!-- demo -->\n(.*?)<!-- /demo -->", read(path), re.DOTALL) for path in (ENGLISH, CHINESE))
    assert len(english) == 1
    assert english == chinese


@READMES
def test_every_flag_exists(readme):
    configs = [command.config for command in COMMANDS.values()]
    names = {name for config in configs for name in {*config.model_fields, *config.spellings()}} | EVERY_COMMAND | OF_SOME
    switches = {f"no_{name}" for config in configs for name, field in config.model_fields.items() if field.annotation is bool}
    known = {f"--{name}" for name in names | switches} | OF_OTHER_TOOLS
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"<!--.*?-->", "", read(readme))))
    assert flags >= {"--num_epochs", "--lr"}
    assert {flag for flag in flags if flag not in known and flag_to_name(flag) not in known} == set()


@READMES
def test_every_command_line_is_accepted_by_its_command(readme):
    shown = list(our_commands(read(readme)))
    assert {name for name, _ in shown} >= set(COMMANDS)
    for name, words in shown:
        config = COMMANDS[name].config
        parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--config", default=argparse.SUPPRESS)
        parser.add_argument("--dry_run", action="store_true", default=argparse.SUPPRESS)
        if COMMANDS[name].check:
            parser.add_argument("--check", action="store_true", default=argparse.SUPPRESS)
        add_arguments(parser, config)
        if COMMANDS[name].positional:
            parser.add_argument("words", nargs="*")
        values, unknown = parser.parse_known_args([flag_to_name(word) for word in words])
        assert not unknown, f"ebr {name} has no {unknown}"
        config.from_dict({key: value for key, value in vars(values).items() if key not in {*EVERY_COMMAND, *OF_SOME, "words"}})


@READMES
def test_every_finding_has_a_row_that_says_what_to_do(readme):
    named = {name for file in JUDGES for name in re.findall(rf'"({KEBAB})"', read(ROOT / "ebr" / file))}
    rows = re.findall(rf"^\| (`{KEBAB}`(?:[,、] ?`{KEBAB}`)*) \|", read(readme), re.MULTILINE)
    assert {name for row in rows for name in re.findall(KEBAB, row)} == named | CUT


@READMES
def test_every_loss_is_told_of(readme):
    assert {name for name in LOSSES if f"`{name}`" not in read(readme)} == set()


@READMES
def test_every_relative_link_leads_somewhere(readme):
    text = read(readme)
    links = re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", FENCE.sub("", text))
    anchors = {anchor(heading) for _, heading in headings(text)}
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, f"no section {link}"
        elif "://" not in link:
            assert (ROOT / link.split("#")[0]).exists(), f"no file {link}"


def test_the_two_readmes_link_each_other():
    assert "(README.zh-CN.md)" in read(ENGLISH).split("\n## ")[0]
    assert "(README.md)" in read(CHINESE).split("\n## ")[0]
