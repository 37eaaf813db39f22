"""Contamination: whether a text holds a passage of an evaluation set, word for word.

A set is known by the hashes of its word n-grams, as `words` hashes them; punctuation, case and blanks
do not matter. Two different n-grams have the same hash once in 2^64. Knows nothing of files or rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunewright.data.words import ngram_hashes, words

SHORTEST = 5
"""An evaluation text of fewer words says nothing: others hold the same words by chance."""


@dataclass(frozen=True)
class Contamination:
    """Looks for what `build` was given.

    Attributes:
        names: the evaluation sets.
        grams: words in a row -> hashes in rising order, and for each the number of its set.
    """

    names: tuple[str, ...]
    grams: dict[int, tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]]

    def find(self, text: str) -> tuple[str, str] | None:
        """The first passage that is also in an evaluation set: the set's name, and the words; or None."""
        tokens = words(text)
        for n, (known, sets) in self.grams.items():
            found = ngram_hashes(tokens, n)
            if not len(found):
                continue
            places = np.searchsorted(known, found)
            places[places == len(known)] = 0
            hits = np.flatnonzero(known[places] == found)
            if len(hits):
                at = int(hits[0])
                return self.names[sets[places[at]]], b" ".join(tokens[at : at + n]).decode()
        return None


def build(texts_by_set: Mapping[str, Iterable[str]], n: int) -> Contamination:
    """What `find` needs to know of the evaluation sets: the hash of every `n` words in a row.

    A text of fewer than `n` words is looked for as a whole; one of fewer than 5 not at all. A passage
    of several sets is put down to the first of them.
    """
    collected: defaultdict[int, list[tuple[int, npt.NDArray[np.uint64]]]] = defaultdict(list)
    for number, texts in enumerate(texts_by_set.values()):
        for text in texts:
            tokens = words(text)
            length = min(n, len(tokens))
            if length >= min(n, SHORTEST):
                collected[length].append((number, ngram_hashes(tokens, length)))
    grams = {}
    for length in sorted(collected, reverse=True):
        parts = collected[length]
        hashes = np.concatenate([part for _, part in parts])
        sets = np.repeat(
            np.array([number for number, _ in parts], np.int32), [len(part) for _, part in parts]
        )
        known, first = np.unique(hashes, return_index=True)
        grams[length] = (known, sets[first])
    return Contamination(tuple(texts_by_set), grams)
