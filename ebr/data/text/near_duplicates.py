"""Texts that say almost the same, found exactly: every pair of token sets whose Jaccard similarity reaches a threshold."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

_TOKEN = re.compile(r"[^\W_]+")


def tokens(text: str) -> frozenset[str]:
    """The text's distinct lower-case words and numbers after NFKC normalisation."""
    return frozenset(_TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared over all tokens; 1.0 for two empty sets."""
    n_shared = len(left & right)
    return n_shared / (len(left) + len(right) - n_shared) if left or right else 1.0


class Groups:
    """Which of n items belong together: a union-find whose root is always the smallest member."""

    def __init__(self, n_items: int) -> None:
        self._parent = list(range(n_items))

    def root(self, item: int) -> int:
        """The smallest item known to belong with this one."""
        while self._parent[item] != item:
            self._parent[item] = item = self._parent[self._parent[item]]
        return item

    def join(self, left: int, right: int) -> None:
        """Put both items, and all that belongs with either, into one group."""
        low, high = sorted((self.root(left), self.root(right)))
        self._parent[high] = low

    def join_equal(self, keys: Iterable[Hashable]) -> None:
        """Join the items whose keys are equal; item i has the i-th key."""
        first: dict[Hashable, int] = {}
        for item, key in enumerate(keys):
            self.join(first.setdefault(key, item), item)

    def join_similar(self, texts: Sequence[str], *, threshold: float) -> None:
        """Join the items whose texts' tokens have a Jaccard similarity >= threshold; item i has the i-th text."""
        token_sets = [tokens(text) for text in texts]
        for left, right in _sharing_rare_tokens(token_sets, threshold):
            if self.root(left) != self.root(right) and jaccard(token_sets[left], token_sets[right]) >= threshold:
                self.join(left, right)


def rarest(tokens: frozenset[str], frequency: Counter[str], threshold: float) -> list[str]:
    """The tokens of a set, of which any set that reaches the threshold with it shares one with its own (prefix filtering).

    Chaudhuri et al. 2006: of each set the rarest |s| - ceil(threshold * |s|) + 1.
    """
    # Rounded before the ceiling: 0.8 * 5 must not become 4.000000000000001.
    n_rarest = len(tokens) - math.ceil(round(threshold * len(tokens), 9)) + 1
    return sorted(tokens, key=lambda token: (frequency[token], token))[:n_rarest]


def _sharing_rare_tokens(token_sets: Sequence[frozenset[str]], threshold: float) -> Iterator[tuple[int, int]]:
    """Every pair of sets that can reach the threshold, and few others: those that share one of their rarest."""
    frequency = Counter(token for token_set in token_sets for token in token_set)
    seen_with: defaultdict[str, list[int]] = defaultdict(list)
    for item, token_set in enumerate(token_sets):
        for token in rarest(token_set, frequency, threshold):
            yield from ((other, item) for other in seen_with[token])
            seen_with[token].append(item)
