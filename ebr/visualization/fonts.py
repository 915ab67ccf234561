"""Fonts by the characters that a picture has to show: the default, then whatever is installed for the rest."""

from __future__ import annotations

import importlib
import logging
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

logger = logging.getLogger(__name__)

DEFAULT_FAMILY = "DejaVu Sans"
"""Ships with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew, many symbols; no Chinese, Japanese or Korean."""

CJK_FAMILIES = (
    *(
        "Noto Sans CJK SC",
        "Noto Sans SC",
        "Source Han Sans SC",
        "Source Han Sans CN",
        "WenQuanYi Micro Hei",
        "WenQuanYi Zen Hei",
    ),
    *("Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "STHeiti", "Heiti SC", "Arial Unicode MS"),
    *("Noto Sans CJK TC", "Noto Sans TC", "Source Han Sans TC", "Microsoft JhengHei", "PingFang TC"),
    *("Noto Sans CJK JP", "Noto Sans JP", "Noto Sans CJK KR", "Noto Sans KR", "Malgun Gothic", "Droid Sans Fallback"),
)
"""Well-known families that hold Chinese characters, the widest first."""

INSTALL_HINT = "apt-get install fonts-noto-cjk  or  pip install pylopdf-fonts-zh-cn"

_SHAPELESS = ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp")
_FONT_PACKAGE = "pylopdf_fonts_zh_cn"
_DRAWS_A_BOX_FOR_EVERYTHING = "Last Resort"


@dataclass(frozen=True)
class FontChoice:
    """families: for rcParams["font.family"], tried in order for each character. missing: the characters that none has."""

    families: list[str]
    missing: str


def choose_fonts(texts: Iterable[str], preferred: Sequence[str] = ()) -> FontChoice:
    """Choose the font families that cover the characters of texts; one warning names those that no font has.

    preferred: family names to try before the well-known ones, in order; those that are not installed are passed over.
    """
    families, missing = [DEFAULT_FAMILY], _visible_characters(texts) - _family_characters(DEFAULT_FAMILY)
    if missing:
        _register_font_package()
        installed = _installed_families()
        for tier in (*([name] for name in preferred), CJK_FAMILIES, sorted(installed)):
            candidates = [name for name in tier if name in installed]
            while missing and candidates:
                best = max(candidates, key=lambda name: len(missing & _family_characters(name)))
                if not missing & _family_characters(best):
                    break
                families.append(best)
                missing = missing - _family_characters(best)
    choice = FontChoice(families, "".join(sorted(missing)))
    _warn_of_missing(choice.missing)
    return choice


def _visible_characters(texts: Iterable[str]) -> frozenset[str]:
    """Characters that need a shape: spaces, controls, joiners and variation selectors do not.

    "Unassigned" ones do: to this Python they are, to a younger font they may be an emoji.
    """
    characters = {character for text in texts for character in text}
    shapeless = {c for c in characters if unicodedata.category(c) in _SHAPELESS or "\ufe00" <= c <= "\ufe0f"}
    return frozenset(characters - shapeless)


def _installed_families() -> set[str]:
    names = {entry.name for entry in font_manager.fontManager.ttflist}
    return {name for name in names if not name.startswith(_DRAWS_A_BOX_FOR_EVERYTHING)}


def _family_characters(family: str) -> frozenset[str]:
    """The characters of a family, by its first upright file."""
    files = [entry for entry in font_manager.fontManager.ttflist if entry.name == family]
    return _file_characters(min(files, key=lambda entry: entry.style != "normal").fname)


@cache
def _file_characters(path: str) -> frozenset[str]:
    return frozenset(map(chr, FT2Font(path).get_charmap()))


def _register_font_package() -> None:
    """Make the font of the optional package known to matplotlib, under its own family name, "Noto Sans SC"."""
    try:
        path = Path(importlib.import_module(_FONT_PACKAGE).sans_path())
    except (ImportError, AttributeError):
        return
    if all(Path(entry.fname) != path for entry in font_manager.fontManager.ttflist):
        font_manager.fontManager.addfont(path)


def _warn_of_missing(missing: str) -> None:
    if not missing:
        return
    is_east_asian = any(unicodedata.east_asian_width(c) in "WF" and unicodedata.category(c) != "So" for c in missing)
    remedy = f"; to show Chinese: {INSTALL_HINT}" if is_east_asian else ""
    logger.warning(
        "no installed font has %d of the characters to draw (%s%s): they show as boxes%s",
        len(missing),
        missing[:8],
        "…" if len(missing) > 8 else "",
        remedy,
    )
