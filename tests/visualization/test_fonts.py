"""Fonts are chosen by the characters to draw, among the fonts that are installed."""

import logging
import sys
import types
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from matplotlib import font_manager

from ebr.visualization.fonts import DEFAULT_FAMILY, INSTALL_HINT, choose_fonts


def _make_font(path: Path, family: str, characters: str) -> Path:
    """A TrueType file whose every character is an empty shape: enough to be found and to be asked what it covers."""
    names = [".notdef", *(f"u{ord(c):X}" for c in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in characters})
    builder.setupGlyf({name: _empty_glyph() for name in names})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in names})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular", "psName": family.replace(" ", "")})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def _empty_glyph():
    from fontTools.ttLib.tables._g_l_y_f import Glyph

    return Glyph()


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Only matplotlib's own DejaVu Sans is installed, plus what the test installs; no font package."""
    own = [e for e in font_manager.fontManager.ttflist if e.name == DEFAULT_FAMILY and "matplotlib" in e.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setitem(sys.modules, "pylopdf_fonts_zh_cn", None)

    def install(family, characters):
        font_manager.fontManager.addfont(_make_font(tmp_path / f"{family}.ttf", family, characters))

    return install


def test_characters_of_the_default_font_need_no_other(install, caplog):
    install("Noto Sans SC", "中a")
    choice = choose_fonts(["plain", "naïve Ωмир $x_1$", "tab\tand\nline", "joined\u200d\ufe0f"])
    assert choice.families == [DEFAULT_FAMILY] and choice.missing == ""
    assert not caplog.records


def test_a_well_known_family_is_found_by_the_characters_that_it_has(install):
    install("SimHei", "无关")
    install("WenQuanYi Zen Hei", "中文")
    assert choose_fonts(["中文 labels"]).families == [DEFAULT_FAMILY, "WenQuanYi Zen Hei"]


def test_a_preferred_family_comes_before_a_well_known_one(install):
    install("Noto Sans SC", "中文字")
    install("My Brush", "中文")
    assert choose_fonts(["中文"], preferred=["Not Installed", "My Brush"]).families == [DEFAULT_FAMILY, "My Brush"]
    assert choose_fonts(["中文字"], preferred=["My Brush"]).families == [DEFAULT_FAMILY, "My Brush", "Noto Sans SC"]


def test_the_family_that_covers_most_wins_over_one_that_is_named_earlier(install):
    install("Noto Sans SC", "中")
    install("Noto Sans TC", "中灣")
    assert choose_fonts(["中灣"]).families == [DEFAULT_FAMILY, "Noto Sans TC"]


def test_any_installed_font_serves_when_no_well_known_one_does(install, caplog):
    install("Unheard Of", "中")
    assert choose_fonts(["中"]).families == [DEFAULT_FAMILY, "Unheard Of"]
    assert not caplog.records


def test_the_last_resort_font_is_never_chosen(install):
    install("Last Resort High-Efficiency", "中")
    assert choose_fonts(["中"]).missing == "中"


def test_chinese_without_a_font_is_one_warning_with_a_count_examples_and_the_install_command(install, caplog):
    with caplog.at_level(logging.WARNING):
        choice = choose_fonts(["中文标签的例子很长", "中文"])
    assert choice.families == [DEFAULT_FAMILY] and choice.missing == "".join(sorted("中文标签的例子很长"))
    (record,) = caplog.records
    message = record.getMessage()
    assert "9 of the characters" in message and choice.missing[:8] + "…" in message
    assert INSTALL_HINT in message and "\n" not in message


def test_an_emoji_without_a_font_does_not_advise_a_chinese_font(install, caplog):
    assert choose_fonts(["🦄"]).missing == "🦄"
    assert INSTALL_HINT not in caplog.text and "🦄" in caplog.text


def test_the_font_of_the_optional_package_is_used_when_it_is_installed(install, monkeypatch, tmp_path):
    file = _make_font(tmp_path / "package.ttf", "Noto Sans SC", "中")
    monkeypatch.setitem(sys.modules, "pylopdf_fonts_zh_cn", types.SimpleNamespace(sans_path=lambda: file))
    for _ in range(2):
        assert choose_fonts(["中"]).families == [DEFAULT_FAMILY, "Noto Sans SC"]
    assert sum(entry.fname == str(file) for entry in font_manager.fontManager.ttflist) == 1
