"""Which scripts and languages training texts are written in, told by their characters and a few words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ebr.data.training.examples import Example

_MOST_EXAMPLES = 5_000
_MOST_CHARACTERS = 1_000
"""Of a text: its language shows early."""
_OWN_LANGUAGE = {
    "Kana": "ja", "Hangul": "ko", "Thai": "th", "Greek": "el", "Hebrew": "he", "Georgian": "ka", "Armenian": "hy",
    "Lao": "lo", "Khmer": "km", "Myanmar": "my", "Tamil": "ta", "Telugu": "te", "Han": "zh",
}  # fmt: skip
"""Scripts that one language nearly has to itself, Han last: Japanese and Korean texts may hold it too."""
_SPELLINGS = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "KATAKANA-HIRAGANA": "Kana"}
_WIDTHS = {"FULLWIDTH", "HALFWIDTH"}
_ENGLISH = re.compile(r"\b(?:the|and|with|what|how|this|that|you|from|does)\b", re.IGNORECASE)
_ENGLISH_SHARE = 0.1
"""Of texts in Latin letters that hold one of these words; product names in other languages hold fewer."""
_SHARE_IN_TEXT = 0.1
"""Of a text's letters: a Chinese title may be half a brand's name, and a character says as much as three letters."""
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Writing:
    """How texts are written. scripts: share of the letters by script (Latin, Han, Kana, …), largest first, from 1 % on.

    languages: ISO 639-1 codes that are sure, by how many texts have them, from 1 % on; a language that shares its script with
    others, English apart, is not told.
    """

    scripts: dict[str, float]
    languages: tuple[str, ...]


def writing_of(examples: Sequence[Example]) -> Writing:
    """The writing of the queries and their first positives; of many examples, every so manieth."""
    step = -(-len(examples) // _MOST_EXAMPLES) or 1
    letters: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    n_texts = n_latin = n_english = 0
    for example in examples[::step]:
        for text in (example.query, example.positives[0]):
            scripts = _scripts(text[:_MOST_CHARACTERS])
            letters += scripts
            n_texts += 1
            if language := _own_language(scripts):
                languages[language] += 1
            elif scripts and scripts.most_common(1)[0][0] == "Latin":
                n_latin += 1
                n_english += bool(_ENGLISH.search(text))
    if n_english and n_english >= _ENGLISH_SHARE * n_latin:
        languages["en"] = n_latin
    shares = {script: count / letters.total() for script, count in letters.most_common()}
    return Writing(
        {script: round(share, 4) for script, share in shares.items() if share >= _LEAST_SHARE},
        tuple(language for language, count in languages.most_common() if count >= _LEAST_SHARE * n_texts),
    )


def _own_language(scripts: Counter[str]) -> str | None:
    """The language of a text with enough letters of a script that is nearly its own."""
    least = _SHARE_IN_TEXT * scripts.total()
    return next((language for script, language in _OWN_LANGUAGE.items() if scripts[script] > least), None)


def _scripts(text: str) -> Counter[str]:
    """Letters of a text, by script."""
    found: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            found[_script(character)] += count
    return found


@cache
def _script(letter: str) -> str:
    words = unicodedata.name(letter, "OTHER").split()
    word = words[1] if words[0] in _WIDTHS and len(words) > 1 else words[0]
    return _SPELLINGS.get(word, word.capitalize())
