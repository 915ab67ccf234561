"""The words of reports, pages and maps: en.json and zh.json, with the same sections, keys and placeholders; a test holds them.

report: the evaluation report; page: the interactive map; map: the picture; metric_names, metric_meanings, metric_table: the
figures of a map, by the fields of ClusterQuality and MapTrust; undefined: why a figure has no value, by the English that is
recorded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ebr.config.options import Language


def words(section: str, language: Language) -> Mapping[str, str]:
    """The words of one section, by their keys."""
    return _read(language)[section]


@cache
def _read(language: Language) -> dict[str, dict[str, str]]:
    text = (Path(__file__).parent / f"{language}.json").read_text(encoding="utf-8")
    sections: dict[str, dict[str, str]] = json.loads(text)
    return sections
