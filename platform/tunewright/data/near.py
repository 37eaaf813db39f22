"""Near duplicates: MinHash signatures of rows, and which rows are almost the same.

Signatures and the sizes of the bands are datasketch's. Its LSH index keeps a Python dictionary and a
set for each row and band, some 3 KiB a row; here the rows that share a band are found by sorting, and
an index is made of those alone.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xxhash

from tunewright.config.data import NearDuplicates
from tunewright.data.words import FACTOR, ngram_hashes, words

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLES_AT_ONCE = 2048  # a long text needs as many times `permutations` x 4 bytes, and no more
MISSED, NEEDLESS = 0.9, 0.1
"""How bad a missed pair is against a pair compared in vain, for datasketch to choose the bands."""


@dataclass(frozen=True)
class Group:
    """Rows that are almost the same as `kept`, and how similar each is to it."""

    kept: str
    dropped: dict[str, float] = field(default_factory=dict)


@cache
def _empty(permutations: int) -> MinHash:
    from datasketch import MinHash

    return MinHash(num_perm=permutations, hashfunc=operator.index, scheme="affine32")


def signature(text: str, config: NearDuplicates) -> bytes:
    """The MinHash of the text's word n-grams: `permutations` numbers of 4 bytes, P of them.

    A text of fewer words than `ngram` has one shingle, all its words; one without words, itself.
    """
    tokens = words(text)
    shingles = ngram_hashes(tokens, config.ngram)
    if not len(shingles):
        whole = b" ".join(tokens) or text.strip().encode("utf-8", "surrogatepass")
        shingles = np.array([xxhash.xxh3_64_intdigest(whole)], np.uint64)
    short = (shingles >> np.uint64(32)).tolist()
    sketch = _empty(config.permutations).copy()
    for start in range(0, len(short), SHINGLES_AT_ONCE):
        sketch.update_batch(short[start : start + SHINGLES_AT_ONCE])
    return bytes(sketch.hashvalues.astype("<u4", copy=False).tobytes())


def near_groups(keys: Sequence[str], signatures: npt.NDArray[np.uint32], threshold: float) -> list[Group]:
    """Groups of rows whose estimated Jaccard similarity reaches `threshold`, by key.

    Rows are taken by key, smallest first. A row that is near enough to one already kept is dropped
    in its favour - that of the most similar, then of the smallest key - and else it is kept. So each
    dropped row is near the row that stands for it, which chains (a like b, b like c, a unlike c)
    would not ensure, and the order of the arguments does not matter.

    Args:
        keys: one for each row, all different.
        signatures: shape (N, P), as `signature` makes them.
        threshold: 0..1, both excluded.
    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4 (bands).
    """
    if not keys:
        return []
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    assert all(keys[a] != keys[b] for a, b in pairwise(order)), "each row has a key of its own"
    shared = _shared_buckets(signatures, *_bands(threshold, signatures.shape[1]))
    kept_in: defaultdict[int, list[int]] = defaultdict(list)  # bucket -> places in `order`
    groups: dict[int, Group] = {}
    has_company = np.max(shared, axis=1) >= 0
    for place in np.flatnonzero(has_company[order]).tolist():
        row = order[place]
        buckets = [bucket for bucket in shared[row].tolist() if bucket >= 0]
        kept = sorted({other for bucket in buckets for other in kept_in[bucket]})
        if kept:
            alike = (signatures[order[kept]] == signatures[row]).mean(axis=1)
            best = int(alike.argmax())
            if alike[best] >= threshold:
                group = groups.setdefault(kept[best], Group(keys[order[kept[best]]]))
                group.dropped[keys[row]] = float(alike[best])
                continue
        for bucket in buckets:
            kept_in[bucket].append(place)
    return [groups[place] for place in sorted(groups)]


@cache
def _bands(threshold: float, permutations: int) -> tuple[int, int]:
    """How many bands, and how many numbers in each: datasketch's optimum for the threshold."""
    from datasketch import MinHashLSH

    try:
        index = MinHashLSH(threshold, permutations, weights=(NEEDLESS, MISSED))
    except ValueError:  # its optimum is a single band, which it refuses
        return 2, permutations // 2
    return index.b, index.r


def _shared_buckets(signatures: npt.NDArray[np.uint32], bands: int, width: int) -> npt.NDArray[np.int32]:
    """The bucket of each row in each band, shape (N, bands); -1 where no other row is in it."""
    count = len(signatures)
    shared = np.full((count, bands), -1, np.int32)
    used = 0
    for band in range(bands):
        hashes = np.zeros(count, np.uint64)
        for column in range(band * width, (band + 1) * width):
            hashes *= np.uint64(FACTOR)
            hashes += signatures[:, column]
        by_hash = np.argsort(hashes)
        same = np.diff(hashes[by_hash]) == 0
        after, before = np.append(False, same), np.append(same, False)
        number = np.cumsum(before & ~after) - 1 + used  # counts up where a run of equal hashes begins
        members = after | before
        shared[by_hash[members], band] = number[members]
        used = int(number[-1]) + 1
    return shared
