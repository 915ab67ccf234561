"""Scripts that put no space between words, as ranges for a character class of a regular expression."""

IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han, with its extensions and compatibility forms."""
KANA = "\u3040-\u30ff"
"""Hiragana and katakana, their marks and stops among them."""
SOUTH_EAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai and Lao, Burmese, Khmer."""
