"""What a library says about its functions and classes, read from its source files; nothing is imported."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeGuard

from ebr.data.text.near_duplicates import jaccard, tokens

_SUMMARY_WORDS = range(4, 41)
_MIN_DESCRIPTION_WORDS = 12
_SHORT_DESCRIPTION_WORDS = 25  # below it, the Notes section is asked for more
_MAX_DESCRIPTION_CHARS = 600

# Code that is not the library's own, is not for its users, or (transformers.models) repeats itself two thousand times.
_SKIPPED_FOLDERS = {"tests", "testing", "test", "externals", "vendored", "benchmarks", "examples", "deprecated", "models"}
_KEPT_PRIVATE_FOLDERS = {"_core"}  # where numpy keeps what it shows as numpy.*

# Parsing is most of the time, and a quarter of the files have nothing long enough to say.
_LONG_DOCSTRING = re.compile(r'"""[^"]{80}')


@dataclass(frozen=True)
class ApiDoc:
    """One public object: its dotted name, and a summary and a description of which neither names it or repeats the other."""

    library: str
    name: str
    is_method: bool
    summary: str
    description: str


def source_files(package_dir: Path) -> list[Path]:
    """The library's own source files, sorted; without tests, vendored copies and private folders."""
    return sorted(
        path for path in package_dir.rglob("*.py") if not any(map(_is_skipped, path.relative_to(package_dir).parts[:-1]))
    )


def _is_skipped(folder: str) -> bool:
    return folder in _SKIPPED_FOLDERS or (folder.startswith("_") and folder not in _KEPT_PRIVATE_FOLDERS)


def read_api_docs(path: Path, package_dir: Path) -> Iterator[ApiDoc]:
    """The usable documentation of one file of the package, in file order. A file that does not parse yields nothing."""
    library = package_dir.name
    folders = path.relative_to(package_dir).with_suffix("").parts
    module = ".".join([library, *(folder for folder in folders if not folder.startswith("_"))])
    source = path.read_text(encoding="utf-8", errors="replace")
    for node, owner in _public_objects(source) if _LONG_DOCSTRING.search(source) else ():
        kind = "class" if isinstance(node, ast.ClassDef) else "method" if owner else "function"
        if parsed := parse_docstring(ast.get_docstring(node) or "", node.name, kind):
            yield ApiDoc(library, ".".join(filter(None, (module, owner, node.name))), bool(owner), *parsed)


_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public_objects(source: str) -> Iterator[tuple[_Documented, str]]:
    """Public functions and classes of a module and the public methods of those classes, each with its owner's name or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in somebody else's file is not our user's business
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in filter(_is_public, tree.body):
        yield node, ""
        if isinstance(node, ast.ClassDef):
            yield from ((member, node.name) for member in filter(_is_public, node.body) if not isinstance(member, ast.ClassDef))


def _is_public(node: ast.stmt) -> TypeGuard[_Documented]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return False
    return not any(re.search(r"\b(deprecated|overload)\b", ast.unparse(decorator)) for decorator in node.decorator_list)


_DEPRECATED = re.compile(
    r"\.\. deprecated::|\A\W*(deprecated|(an )?alias (of|for)\b|see\b|internal\b)|\bis deprecated\b", re.IGNORECASE
)
_SIGNATURE_LINE = re.compile(r"\A\s*[\w.]+\([^)]*\)( *->.*)?\n")
_VERSION_NOTE = re.compile(
    r"^\.\. (version(added|changed)|index|_[^:\n]+):.*\n([ \t]+\S.*\n?|[ \t]*\n(?=[ \t]))*", re.MULTILINE
)
_NOTES = re.compile(r"^Notes\n-+\n(.*)", re.MULTILINE | re.DOTALL)


def parse_docstring(docstring: str, name: str, kind: str) -> tuple[str, str] | None:
    """(summary, description) of an object, free of markup and of its own name; None when either is missing or is not prose.

    docstring: with its indentation removed, as ast.get_docstring gives it. kind: "function", "class" or "method". The summary
    is the first sentence. The description is the prose after it, up to the first section, list, formula or example, cut after
    a sentence near 600 characters; a very short one is lengthened from the Notes section.
    """
    if _DEPRECATED.search(docstring):
        return None
    text = _SIGNATURE_LINE.sub("", _VERSION_NOTE.sub("", docstring)).lstrip("\n")
    summary, *sentences = _prose_sentences(text, name, kind) or [""]
    if len(" ".join(sentences).split()) < _SHORT_DESCRIPTION_WORDS and (notes := _NOTES.search(text)):
        sentences += _prose_sentences(notes.group(1), name, kind)
    summary = summary.rstrip(".")
    description = _cut(sentence for sentence in sentences if not _says_nothing_new(sentence, summary))
    is_telling = len(summary.split()) in _SUMMARY_WORDS and len(description.split()) >= _MIN_DESCRIPTION_WORDS
    is_nameless = _mask(kind) not in summary.casefold() and not _names(f"{summary} {description}", name)
    return (summary, description) if is_telling and is_nameless else None


_POINTER = re.compile(r"User Guide|user guide|sphx_glr|tutorial|documentation|docstring|^(See|Refer to|For more)\b")


def _says_nothing_new(sentence: str, summary: str) -> bool:
    return _POINTER.search(sentence) is not None or summary in sentence or jaccard(tokens(sentence), tokens(summary)) >= 0.6


def _cut(sentences: Iterator[str]) -> str:
    """As many leading sentences as fit."""
    description = ""
    for sentence in sentences:
        if len(description) + len(sentence) > _MAX_DESCRIPTION_CHARS:
            break
        description = f"{description} {sentence}".strip()
    return description


# What ends prose at the start of a line: indentation, an example, a fence, a list item, a table, a directive, a field, a tag.
_NOT_PROSE = re.compile(r"\s+\S|>>>|```|[-*+•] |\(?\w{1,2}[.)] |[|+=#<$@\\]|\.\. |:\w[\w ]*:(\s|$)|[a-z]\w*: ")
_SECTION = re.compile(r"^.*\S.*\n[-=~^*]{3,}[ \t]*$", re.MULTILINE)  # a header and its underline
_ABBREVIATIONS = ("e.g.", "i.e.", "cf.", "vs.", "al.", "Eq.", "eq.", "Fig.", "Ref.", "Sec.", "etc.", "resp.")
_NO_ABBREVIATION = "".join(rf"(?<!\b{re.escape(abbreviation)})" for abbreviation in _ABBREVIATIONS)
_SENTENCE_END = re.compile(rf"(?<=[.!?]){_NO_ABBREVIATION}\s+(?=[\"'(A-Z0-9])")
_DEBRIS = re.compile(r"[\\{}`|$<>\x00-\x1f\ufffd]|%\(|::|\.\. |https?:|\*\*|\[\d|\]_|#\d|\w_(?!\w)|\]\(")


def _prose_sentences(text: str, name: str, kind: str) -> list[str]:
    """The sentences before the first thing that is not prose."""
    lines = _SECTION.split(text, maxsplit=1)[0].splitlines()
    paragraphs = "\n".join(takewhile(lambda line: not _NOT_PROSE.match(line), lines)).split("\n\n")
    sentences = (
        sentence for paragraph in paragraphs for sentence in _SENTENCE_END.split(_plain(_masked(paragraph, name, kind)))
    )
    return list(takewhile(_is_prose, sentences))


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    n_plain = sum(re.fullmatch(r"[\"'(]*[A-Za-z][A-Za-z'’-]*[\"').,;:!?]*", word) is not None for word in words)
    is_whole = sentence.endswith((".", "!", "?", '."', ".)")) and not sentence.endswith((" i.e.", " e.g."))
    return is_whole and not _DEBRIS.search(sentence) and n_plain >= 0.75 * len(words)


# Applied in this order; what is left of reST and Markdown afterwards is debris. Citations are: "see [1]_" cannot lose its [1]_.
_MARKUP = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r":math:`([^`]*)`", r"\1"),
        (r"\[`[~!.]*([^`]+)`\](?:\([^)]*\))?", r"\1"),
        (r":[\w:+.-]+:`[~!.]*([^`<]*?)\s*(?:<[^`]*>)?`", r"\1"),
        (r"`([^`<]+?)\s*<[^`>]*>`__?", r"\1"),
        (r"``~?([^`]+)``", r"\1"),
        (r"`[~!.]*([^`]+)`_{0,2}", r"\1"),
        (r"\[([^\]]+)\]\([^)]*\)", r"\1"),
        (r"(?<!\w)\*\*([^*]+)\*\*(?!\w)", r"\1"),
        (r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"\1"),
        (r"\|([A-Za-z][\w ]*)\|", r"\1"),
        (r"\s+", " "),
        (r" ([.,;:)])(?=\s|$)", r"\1"),
    )
)


def _plain(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


# Any word, with what marks it as code: a role, back quotes, a dotted path before it, a call after it.
_REFERENCE = re.compile(
    r"(?:\b(?:the|an?)\s+)?(?:(?P<quote>(?::[\w:]+:)?\[?`{1,2}[~!.]*)|(?<![\w`.]))(?P<path>(?:\w+\.)*)(?P<name>\w+)"
    r"(?P<call>\([^()]*\))?(?(quote)`{1,2}\]?_{0,2})(?:\s+(?:function|class|method|object)\b)?",
    re.IGNORECASE,
)
_LOWER_MASK_AT_START = re.compile(r"(\A|[.!?]\s+)this (?=function|class|method)")


def _mask(kind: str) -> str:
    return f"this {kind}"


def _masked(text: str, name: str, kind: str) -> str:
    """The text with "this function" (or class, or method) wherever it names the object itself as code does."""
    if not _names(text, name):
        return text
    spellings = _spellings(name)
    is_also_a_word = name.isalpha() and name.islower()  # `mean` is; LinearRegression and linear_regression are only names

    def masked(match: re.Match[str]) -> str:
        is_code = match["quote"] or match["path"] or match["call"] or not is_also_a_word
        return _mask(kind) if is_code and match["name"].casefold() in spellings else match[0]

    return _LOWER_MASK_AT_START.sub(r"\1This ", _REFERENCE.sub(masked, text))


def _names(text: str, name: str) -> bool:
    return not _spellings(name).isdisjoint(re.findall(r"\w+", text.casefold()))


def _spellings(name: str) -> set[str]:
    """The name in lower case: as written, as snake_case, and as CamelCase."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return {spelling.casefold() for spelling in (name, snake, name.replace("_", ""))}
