"""The words of both languages: the same sections, keys and placeholders."""

import json
import re
from pathlib import Path

from ebr.visualization import words as package

ENGLISH, CHINESE = (
    json.loads((Path(package.__file__).parent / name).read_text(encoding="utf-8")) for name in ("en.json", "zh.json")
)


def holes(text):
    return sorted(re.findall(r"{(\w+)[^}]*}", text))


def test_sections_keys_and_placeholders_are_the_same():
    assert list(ENGLISH) == list(CHINESE)
    for section in ENGLISH:
        assert list(ENGLISH[section]) == list(CHINESE[section]), section
        found = {key: (holes(ENGLISH[section][key]), holes(CHINESE[section][key])) for key in ENGLISH[section]}
        assert {key: both for key, both in found.items() if both[0] != both[1]} == {}


def test_words_are_those_of_their_language():
    for key, text in CHINESE["undefined"].items():
        assert package.words("undefined", "en")[key] == key
        assert package.words("undefined", "zh")[key] == text
    assert package.words("metric_table", "zh")["value"] == "数值"
