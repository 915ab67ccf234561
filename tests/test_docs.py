"""READMEs and docs say what the code does, and say the same in both languages."""

import argparse
import re
import shlex
from pathlib import Path
from typing import Literal

import pytest

from ebr.config.options import add_arguments, flag_to_name
from ebr.config.shared.objective import LOSSES
from ebr.pages import made_anew
from ebr.workflow.verbs import VERBS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
ENGLISH_ONLY = {"measurements.md"}
PAGES = sorted(path for path in DOCS.glob("*.md") if ".zh." not in path.name and path.name not in ENGLISH_ONLY)
PAIRS = [(README["en"], README["zh"]), *((path, path.with_suffix(".zh.md")) for path in PAGES)]
EVERY_FILE = [path for pair in PAIRS for path in pair] + [DOCS / name for name in sorted(ENGLISH_ONLY)]
LANGUAGES = pytest.mark.parametrize("language", ["en", "zh"])
BOTH = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].stem)

EVERY_COMMAND, OF_SOME = {"config", "dry_run"}, {"check"}
OF_OTHER_TOOLS = {
    "--memory",
    "--multi_gpu",
    "--sets",
    "--steps",
    "--help",
    "--no-deps",
    "--local-dir",
    "--logdir",
    "--nproc_per_node",
}
"""Flags of benchmarks, argparse, pip, hf, tensorboard, torchrun and accelerate."""
OF_OTHER_PROGRAMS = {"publishing", "scale", "serving"}
"""Pages on Ray, Spark, inference servers and the hub, with their flags."""
SCRIPTS = {"ebr_finetune.py": "finetune", "train.py": "train", "merge.py": "merge"}

# Findings are named where they are judged; the names of cut texts are made of their role.
JUDGES = [
    *(f"training/doctor/{name}.py" for name in ("data_checks", "run_checks", "command")),
    "training/loop/anomalies.py",
]
CUT = {"queries-cut", "passages-cut"}
KEBAB = r"[a-z]+(?:-[a-z]+)+"

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def read(path):
    return path.read_text(encoding="utf-8")


def everything(language, but=()):
    """README and docs of one language, one after another, without the pages that are named."""
    return "\n".join(read(pair[language == "zh"]) for pair in PAIRS if pair[0].stem not in but)


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


MADE = [*(DOCS / name for name in ("options.md", "options.zh.md", "api.md", "api.zh.md")), ROOT / "ebr" / "__init__.pyi"]


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_what_is_made_of_the_list_of_verbs_is_up_to_date(path):
    assert made_anew(path) == read(path), "run: make docs"


@pytest.mark.parametrize("path", MADE[:2], ids=lambda path: path.name)
def test_every_command_has_one_options_table(path):
    named = re.findall(r"<!-- options: (\w+) -->\n", read(path))
    assert sorted(named) == sorted({*VERBS} - {"check"})  # whose options are those of finetune
    assert VERBS["check"].config is VERBS["finetune"].config


def test_every_page_has_its_twin_and_a_place_in_the_site():
    assert {path.name for path in DOCS.glob("*.zh.md")} == {other.name for _, other in PAIRS[1:]}
    listed = set(re.findall(r"[\w-]+\.md", read(ROOT / "mkdocs.yml").split("nav:")[1]))
    assert listed == {path.name for path in PAGES} | ENGLISH_ONLY


def test_every_public_name_stands_in_the_api():
    import ebr

    for path in (DOCS / "api.md", DOCS / "api.zh.md"):
        named = re.findall(r"^::: (\S+)$", read(path), re.MULTILINE)
        assert sorted(named) == sorted(f"{getattr(ebr, name).__module__}.{name}" for name in ebr.__all__)


def test_files_that_the_architecture_names_are_there():
    for path in (DOCS / "architecture.md", DOCS / "architecture.zh.md"):
        named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", read(path)))
        assert len(named) > 20
        assert [name for name in named if not (ROOT / "ebr" / name).is_file() and not (ROOT / name).is_file()] == []


@LANGUAGES
def test_a_readme_is_two_screens(language):
    text = read(README[language])
    assert len(text.splitlines()) <= 220
    assert len(text.encode()) <= 14_000


@BOTH
def test_both_languages_have_the_same_sections_in_the_same_order(pair):
    english, chinese = (headings(read(path)) for path in pair)
    assert english
    assert [level for level, _ in english] == [level for level, _ in chinese]
    # A verb's heading names its command in both languages, so two that changed places would show.
    commands = [re.findall(r"`[^`]+`", text) for _, text in english]
    assert commands == [re.findall(r"`[^`]+`", text) for _, text in chinese]


@BOTH
@pytest.mark.parametrize("language", ["bash", "python", "json"])
def test_both_languages_show_the_same_code(pair, language):
    english, chinese = ([without_comments(block) for block in blocks(read(path), language)] for path in pair)
    assert english == chinese


def test_both_languages_show_the_same_result_of_the_demo():
    english, chinese = (re.findall(r"<!-- demo -->\n(.*?)<!-- /demo -->", read(path), re.DOTALL) for path in README.values())
    assert len(english) == 1
    assert english == chinese


@LANGUAGES
def test_every_flag_exists(language):
    configs = [command.config for command in VERBS.values()]
    names = {name for config in configs for name in {*config.model_fields, *config.spellings()}} | EVERY_COMMAND | OF_SOME
    yes_or_no = (bool, bool | Literal["auto"])
    fields = [item for config in configs for item in config.model_fields.items()]
    switches = {f"no_{name}" for name, field in fields if field.annotation in yes_or_no}
    known = {f"--{name}" for name in names | switches} | OF_OTHER_TOOLS
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"<!--.*?-->", "", everything(language, but=OF_OTHER_PROGRAMS))))
    assert flags >= {"--num_epochs", "--lr"}
    assert {flag for flag in flags if flag not in known and flag_to_name(flag) not in known} == set()


@LANGUAGES
def test_every_command_line_is_accepted_by_its_command(language):
    shown = list(our_commands(everything(language)))
    assert {name for name, _ in shown} >= set(VERBS)
    for name, words in shown:
        config = VERBS[name].config
        parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--config", default=argparse.SUPPRESS)
        parser.add_argument("--dry_run", action="store_true", default=argparse.SUPPRESS)
        if VERBS[name].check:
            parser.add_argument("--check", action="store_true", default=argparse.SUPPRESS)
        add_arguments(parser, config)
        if VERBS[name].positional:
            parser.add_argument("words", nargs="*")
        values, unknown = parser.parse_known_args([flag_to_name(word) for word in words])
        assert not unknown, f"ebr {name} has no {unknown}"
        given = {key: value for key, value in vars(values).items() if key not in {*EVERY_COMMAND, *OF_SOME, "words"}}
        # A file of options has those that are required.
        required = [key for key, field in config.model_fields.items() if field.is_required()] if "config" in values else []
        config.from_dict(dict.fromkeys(required, "told by the file") | given)


@LANGUAGES
def test_every_finding_has_a_row_that_says_what_to_do(language):
    named = {name for file in JUDGES for name in re.findall(rf'"({KEBAB})"', read(ROOT / "ebr" / file))}
    rows = re.findall(rf"^\| (`{KEBAB}`(?:[,、] ?`{KEBAB}`)*) \|", everything(language), re.MULTILINE)
    assert {name for row in rows for name in re.findall(KEBAB, row)} == named | CUT


@LANGUAGES
def test_every_loss_is_told_of(language):
    assert {name for name in LOSSES if f"`{name}`" not in everything(language)} == set()


def anchors_of(path):
    return {anchor(heading) for _, heading in headings(read(path))}


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(path):
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", FENCE.sub("", read(path))):
        if "://" in link:
            continue
        file, _, section = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"no file {link}"
        if section:
            assert section in anchors_of(target), f"no section {link}"


@pytest.mark.parametrize("path", [path for pair in PAIRS[1:] for path in pair], ids=lambda path: path.name)
def test_a_page_links_other_pages_of_its_own_language(path):
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s:]+\.md[^)\s]*)\)", FENCE.sub("", read(path)))}
    assert path.name not in links
    assert {link for link in links - ENGLISH_ONLY if (".zh." in link) != (".zh." in path.name)} == set()


def test_the_two_readmes_link_each_other():
    assert "(README.zh-CN.md)" in read(README["en"]).split("\n## ")[0]
    assert "(README.md)" in read(README["zh"]).split("\n## ")[0]


@pytest.mark.long
def test_the_sixty_seconds_of_the_readme_run(tiny_model, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"<!-- sixty seconds -->\n```python\n(.*?)```", read(README["en"]), re.DOTALL)
    assert len(code.splitlines()) <= 16
    small = f"FinetuneConfig(model_name={tiny_model!r}, max_steps=2, "
    code = (
        code.replace("FinetuneConfig(", small, 2)
        .replace(f"import {small}", "import FinetuneConfig(")
        .replace('"all-MiniLM-L6-v2"', repr(tiny_model))
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    said = capsys.readouterr().out
    assert "nDCG@10" in said
    assert len(said.strip().splitlines()) > 3
