"""Counts that many tasks make and one driver adds up: how many rows were lost where, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

STAGES = ("read", "parsed", "valid", "clean", "unique", "kept")
"""What a row passes, in order; a row that is lost is lost at one of them."""
EXAMPLES_KEPT = 3
"""Examples shown of each reason."""
REASONS_KEPT = 200
"""Reasons told apart in a source; the rest are counted as `other reasons`."""
CLUSTERS_KEPT = 20
TEXT_CHARS = 300
NUMBER = re.compile(r"\d(?:[\d.,]*\d)?")


class Figures:
    """Figures of one task. `merge` adds those of another: the order of merging does not matter.

    counts    source -> stage -> rows
    losses    source -> stage -> reason -> rows
    examples  source -> stage -> reason -> the first rows: [file, line, text]
    sums      name -> key -> count, such as personal_data -> email -> 12
    clusters  [size, kind, place, text] of rows with the same content
    """

    def __init__(self, value: Mapping[str, Any] | None = None):
        value = value or {}
        self.counts: dict[str, Counter[str]] = {s: Counter(c) for s, c in value.get("counts", {}).items()}
        self.losses: dict[str, dict[str, Counter[str]]] = {
            source: {stage: Counter(reasons) for stage, reasons in stages.items()}
            for source, stages in value.get("losses", {}).items()
        }
        self.examples: dict[str, dict[str, dict[str, list[list[Any]]]]] = {
            source: {stage: dict(reasons) for stage, reasons in stages.items()}
            for source, stages in value.get("examples", {}).items()
        }
        self.sums: dict[str, Counter[str]] = {name: Counter(c) for name, c in value.get("sums", {}).items()}
        self.clusters: list[list[Any]] = [list(cluster) for cluster in value.get("clusters", ())]

    def count(self, source: int, stage: str, rows: int = 1) -> None:
        self.counts.setdefault(str(source), Counter())[stage] += rows

    def add(self, name: str, counts: Mapping[str, int]) -> None:
        if counts:
            self.sums.setdefault(name, Counter()).update(counts)

    def lose(self, source: int, stage: str, reason: str, file: str, line: int, text: str) -> None:
        """Count a row that did not pass `stage`."""
        at = str(source)
        reasons = self.losses.setdefault(at, {}).setdefault(stage, Counter())
        reason = general(reason)
        if reason not in reasons and len(reasons) >= REASONS_KEPT:
            reason = "other reasons"
        reasons[reason] += 1
        shown = self.examples.setdefault(at, {}).setdefault(stage, {}).setdefault(reason, [])
        if len(shown) < EXAMPLES_KEPT:
            shown.append([file, line, text[:TEXT_CHARS]])

    def shows(self, source: int, stage: str, reason: str) -> bool:
        """Whether one more example of the reason would be kept."""
        shown = self.examples.get(str(source), {}).get(stage, {}).get(general(reason), [])
        return len(shown) < EXAMPLES_KEPT

    def total(self, stage: str) -> int:
        """Rows of all sources that a stage counted."""
        return sum(counts[stage] for counts in self.counts.values())

    def merge(self, other: Figures) -> None:
        for source, counts in other.counts.items():
            self.counts.setdefault(source, Counter()).update(counts)
        for source, stages in other.losses.items():
            for stage, reasons in stages.items():
                self.losses.setdefault(source, {}).setdefault(stage, Counter()).update(reasons)
        for source, shown in other.examples.items():
            for stage, by_reason in shown.items():
                mine = self.examples.setdefault(source, {}).setdefault(stage, {})
                for reason, rows in by_reason.items():
                    both = sorted([*mine.get(reason, []), *rows], key=lambda r: (r[0], r[1]))
                    mine[reason] = both[:EXAMPLES_KEPT]
        for name, counts in other.sums.items():
            self.add(name, counts)
        clusters = sorted([*self.clusters, *other.clusters], key=lambda c: (-c[0], c[2]))
        self.clusters = clusters[:CLUSTERS_KEPT]

    def as_dict(self) -> dict[str, Any]:
        return {
            "counts": {source: dict(counts) for source, counts in self.counts.items()},
            "losses": {
                source: {stage: dict(reasons) for stage, reasons in stages.items()}
                for source, stages in self.losses.items()
            },
            "examples": self.examples,
            "sums": {name: dict(counts) for name, counts in self.sums.items()},
            "clusters": self.clusters,
        }


def general(reason: str) -> str:
    """A reason without its figures, so that like reasons are counted together."""
    return " ".join(NUMBER.sub("N", reason).split())[:160]
