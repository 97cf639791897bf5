"""Near-duplicates: retain rows that say what is to be forgotten would teach it back."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from expunge.records import Row

SHINGLE = 3
THRESHOLD = 0.8  # Jaccard similarity of word 3-grams of question and answer together


def words(row: Row) -> tuple[str, ...]:
    """Lower-case words of question, answer or text, punctuation and spacing aside; signs where there is no word."""
    text = f"{row.prompt()} {row.reference()}".casefold()
    return tuple(re.findall(r"\w+", text) or text.split())


def same_text(a: Row, b: Row) -> bool:
    """Whether two rows say the same, up to case, punctuation and spacing."""
    return words(a) == words(b)


def shingles(row: Row) -> frozenset[tuple[str, ...]]:
    """The row's set of word 3-grams (the whole text when shorter)."""
    w = words(row)
    return frozenset(w[i : i + SHINGLE] for i in range(max(1, len(w) - SHINGLE + 1)))


def near_duplicates(forget: Sequence[Any], retain: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Pairs (forget row, retain row) whose word 3-grams overlap by Jaccard >= 0.8, found by an inverted index.

    Rows that are not text have no near-duplicates.
    """
    texts = [row for row in forget if isinstance(row, Row)]
    sets = [shingles(row) for row in texts]
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, grams in enumerate(sets):
        for gram in grams:
            index[gram].append(i)
    pairs = []
    for row in (r for r in retain if isinstance(r, Row)):
        grams = shingles(row)
        shared = Counter(i for gram in grams for i in index.get(gram, ()))
        pairs += [
            (texts[i], row) for i, n in shared.items() if n / (len(grams) + len(sets[i]) - n) >= THRESHOLD
        ]
    return pairs
