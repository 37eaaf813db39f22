"""How much of each source is used. Every choice is by a hash of the row's content, never by its place:
the same rows are chosen whatever their order, and a data set that grows keeps nearly all of its choices.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunewright.config import BuiltinSource, DataConfig, Sample


@dataclass(frozen=True)
class Census:
    """What there is to choose from, counted over unique rows.

    Attributes:
        rows: (source, value of its stratify column) -> rows.
        strata: value of `split.stratify` -> (rows, smallest key).
    """

    rows: Mapping[tuple[int, str | None], int]
    strata: Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Choice:
    """What the second pass does with a row.

    Attributes:
        share: (source, stratum) -> the part of these rows to use, 0..1; all when not named.
        copies: source -> how often an epoch holds each used row; 2.5 is twice, and once more for half.
        eval_keys: rows that are for evaluation whatever their hash.
        asked: source -> its share of the mixture that the settings ask for.
    """

    share: Mapping[tuple[int, str | None], float] = field(default_factory=dict)
    copies: Mapping[int, float] = field(default_factory=dict)
    eval_keys: frozenset[str] = frozenset()
    asked: Mapping[int, float] = field(default_factory=dict)

    def uses(self, source: int, stratum: str | None, key: str) -> bool:
        share = self.share.get((source, stratum), 1.0)
        return share >= 1.0 or int(key[16:24], 16) / 2**32 < share

    def copies_of(self, source: int, key: str) -> int:
        copies = self.copies.get(source, 1.0)
        whole = int(copies)
        return whole + (int(key[24:32], 16) / 2**32 < copies - whole)


def needs_census(config: DataConfig) -> bool:
    """Whether rows must be counted before any can be chosen."""
    sampled = any(_sample(source).rows or _sample(source).balanced for source in config.sources)
    return (
        sampled or config.mix.strategy != "all" or config.mix.rows is not None or bool(config.split.stratify)
    )


def choose(config: DataConfig, census: Census | None) -> Choice:
    """Shares and copies that the settings ask for."""
    if census is None:
        repeats = {i: float(_repeat(s)) for i, s in enumerate(config.sources)}
        return Choice(copies=repeats)
    share: dict[tuple[int, str | None], float] = {}
    used: dict[int, float] = {}
    for index, source in enumerate(config.sources):
        strata = {stratum: n for (i, stratum), n in census.rows.items() if i == index}
        shares = _shares(_sample(source), strata)
        share |= {(index, stratum): part for stratum, part in shares.items()}
        used[index] = sum(part * strata[stratum] for stratum, part in shares.items())
    copies, asked = _copies(config, used)
    return Choice(share, copies, _eval_keys(config, census), asked)


def _shares(sample: Sample, strata: Mapping[str | None, int]) -> dict[str | None, float]:
    """The part of each stratum to use: the same for all, or the same number of rows from each."""
    total = sum(strata.values())
    if not total:
        return {}
    if not sample.balanced:
        part = min(1.0, sample.rows / total) if sample.rows else 1.0
        return dict.fromkeys(strata, part)
    each = float(min(strata.values()))
    if sample.rows:
        each = min(each, sample.rows / len(strata))
    return {stratum: min(1.0, each / n) for stratum, n in strata.items()}


def _copies(config: DataConfig, used: Mapping[int, float]) -> tuple[dict[int, float], dict[int, float]]:
    """Copies an epoch of each source's used rows, and the share of the epoch asked for."""
    mix = config.mix
    weights = {i: float(getattr(source, "weight", 1.0)) for i, source in enumerate(config.sources)}
    if mix.strategy == "all":
        wanted = {i: n * _repeat(config.sources[i]) for i, n in used.items()}
    elif mix.strategy == "weights":
        wanted = {i: weights[i] if n else 0.0 for i, n in used.items()}
    else:
        wanted = {i: (n * weights[i]) ** (1 / mix.temperature) if n else 0.0 for i, n in used.items()}
    whole = sum(wanted.values())
    if not whole:
        return {}, {}
    asked = {i: part / whole for i, part in wanted.items()}
    if mix.strategy == "all" and mix.rows is None:
        return {i: float(_repeat(config.sources[i])) for i in used}, asked
    rows = float(mix.rows or sum(used.values()))
    copies = {i: min(mix.max_repeat, asked[i] * rows / n) if n else 1.0 for i, n in used.items()}
    return copies, asked


def _eval_keys(config: DataConfig, census: Census) -> frozenset[str]:
    """The row of each stratum with the smallest key: each label is evaluated on something."""
    if config.split.stratify is None or not config.split.eval:
        return frozenset()
    return frozenset(key for rows, key in census.strata.values() if rows > 1)


def _sample(source: Any) -> Sample:
    return Sample() if isinstance(source, BuiltinSource) else source.sample


def _repeat(source: Any) -> int:
    return 1 if isinstance(source, BuiltinSource) else int(source.repeat)


def merge_census(parts: Sequence[str]) -> Census:
    """The census of all buckets, from the JSON that each of them gave."""
    rows: Counter[tuple[int, str | None]] = Counter()
    strata: dict[str, tuple[int, str]] = {}
    for part in parts:
        value = json.loads(part)
        for source, stratum, count in value["rows"]:
            rows[(source, stratum)] += count
        for stratum, count, key in value["strata"]:
            before = strata.get(stratum)
            strata[stratum] = (count, key) if before is None else (before[0] + count, min(before[1], key))
    return Census(rows, strata)
