r"""How a text table is written: what stands between its cells and around them, which words are null, and in which encoding."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ebr.errors import ConfigError

NULL = "\\N"
"""How Hive writes a null."""

UTF8 = "utf-8"

DELIMITER_OF_SUFFIX = {".csv": ",", ".tsv": "\t"}
"""What stands between the columns of a file by its name."""

# As browsers have it (WHATWG): what calls itself by the older name holds characters of the newer one, which has all of both.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}


@dataclass(frozen=True)
class Dialect:
    r"""How the cells of a text table are told apart.

    quote: around cells that may hold delimiters, line ends and, doubled, quotes; "" = none. escape: within a quoted cell it
    stands before a quote or itself; where nothing is quoted, before any character, as in Hive (\n and \r are line ends there).
    null_values: cells that mean null beside \N. encoding: a name of Python's.
    """

    delimiter: str
    quote: str = ""
    escape: str = ""
    null_values: tuple[str, ...] = ()
    encoding: str = UTF8

    @classmethod
    def of(cls, delimiter: str) -> Dialect:
        r"""What a delimiter means by itself.

        A person never types \001, so quoting is off: one stray " would swallow the next rows. Only the comma has it.
        """
        return cls(delimiter, quote='"' if delimiter == "," else "")

    @cached_property
    def nulls(self) -> frozenset[str]:
        """Cells that are null."""
        return frozenset((NULL, *self.null_values))

    def facts(self) -> dict[str, Any]:
        """What differs from what the delimiter means by itself; rows read before there was a choice depend on none of it."""
        plain = asdict(Dialect.of(self.delimiter))
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


def parse_dialect(
    delimiter: str,
    *,
    quote: str | None = None,
    escape: str | None = None,
    null_values: Sequence[str] = (),
    encoding: str = UTF8,
) -> Dialect:
    """A dialect from how a person types it; quote None = as the delimiter has it. Raises ConfigError."""
    plain = Dialect.of(parse_delimiter(delimiter))
    quote = plain.quote if quote is None else _mark("quote", quote)
    escape = _mark("escape", escape or "")
    if plain.delimiter in (quote, escape):
        raise ConfigError(f"{'quote' if plain.delimiter == quote else 'escape'}: is the delimiter too; give another character")
    if quote and not plain.delimiter.isascii():
        raise ConfigError(f"quote: needs an ASCII delimiter (got {plain.delimiter!r})")
    if escape == quote:
        escape = ""  # a quote doubled: it is always read
    return Dialect(plain.delimiter, quote, escape, tuple(null_values), _codec(encoding))


def parse_delimiter(text: str) -> str:
    r"""One character from how a person types it: `\001`, `\x01`, `\t`, or the character itself."""
    delimiter = _unescaped(text)
    if len(delimiter) != 1 or delimiter in "\n\r":
        raise ConfigError(f"delimiter: must be one character, like \\001, \\t or , (got {text!r})")
    if delimiter in " +-.0123456789e":
        raise ConfigError(f"delimiter: {delimiter!r} also stands inside the vectors of the output; choose another, like \\001")
    return delimiter


def _unescaped(text: str) -> str:
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape") if text.startswith("\\") else text
    except UnicodeDecodeError:
        return text


def _mark(option: str, text: str) -> str:
    mark = _unescaped(text)
    if mark and (len(mark) != 1 or not mark.isascii() or mark.isalnum() or mark.isspace()):
        example = '"' if option == "quote" else "\\"
        raise ConfigError(f"{option}: must be one ASCII sign, like {example}, or '' for none (got {text!r})")
    return mark


def _codec(name: str) -> str:
    try:
        found = codecs.lookup(name).name
        if "a\n北".encode(found, "replace").decode(found)[:2] != "a\n":
            raise LookupError
    except (LookupError, UnicodeError):
        raise ConfigError(f"encoding: no encoding {name!r}; known are utf-8, gb18030, big5, utf-16, latin-1, …") from None
    return UTF8 if found == "utf-8-sig" else _WIDER.get(found, found)
