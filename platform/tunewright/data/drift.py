"""What changed between two versions of a data set, and whether that is more than chance.

Distributions (token lengths, labels, sources, scripts) are compared by the population stability
index, rates (losses, duplicates, personal data) by their ratio. A change counts only where it is
larger than two samples of these sizes would show if nothing had changed: small sets are noisy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from tunewright.data.accounts import funnel_steps
from tunewright.errors import DataError

Level = Literal["none", "some", "much"]
Report = Mapping[str, Any]

PSI_SOME, PSI_MUCH = 0.1, 0.25
"""From the practice of credit scoring, where the index comes from."""
RATIO_SOME, RATIO_MUCH = 1.1, 1.5
EMPTY = 0.5
"""Rows that a cell counts as where there are none: the index needs a logarithm of its share."""
Z_95 = 1.645
Z_95_BOTH = 1.96


class DriftRow(TypedDict):
    """One comparison; `psi` for a distribution, `ratio` for a rate: now / before, None where before is 0."""

    what: str
    before: float
    now: float
    unit: Literal["tokens", "rows", "share", "per 1,000 rows"]
    psi: NotRequired[float]
    ratio: NotRequired[float | None]
    level: Level


def drift(now: Report, before: Report) -> list[DriftRow]:
    """Compare two reports, `report.json` of two data artifacts; the largest changes first.

    Raises:
        DataError: they are of different tasks, or their histograms have no borders in common.
    """
    if now["task"] != before["task"]:
        raise DataError(
            f"a data set of task {now['task']} cannot be compared with one of task {before['task']}"
        )
    rows = [*_distributions(now, before), *_rates(now, before)]
    order = {"much": 0, "some": 1, "none": 2}
    return sorted(rows, key=lambda row: order[row["level"]])  # stable: else as listed


def psi(now: Mapping[Any, float], before: Mapping[Any, float]) -> float:
    """Population stability index of two sets of counts: 0 for equal shares, above 0.25 for other data.

    {a: 50, b: 50} against {a: 80, b: 20}  ->  0.4159
    """
    totals = sum(now.values()), sum(before.values())
    if not all(totals):
        return 0.0
    index = 0.0
    for key in {**before, **now}:
        if not now.get(key) and not before.get(key):
            continue
        p = max(now.get(key, 0), EMPTY) / totals[0]
        q = max(before.get(key, 0), EMPTY) / totals[1]
        index += (p - q) * math.log(p / q)
    return index


def psi_by_chance(cells: int, now: int, before: int) -> float:
    """The index that two samples of one population stay under 95 times in 100.

    Source: Yurdakul 2018, Statistical Properties of Population Stability Index: the index is
    distributed as (1/n + 1/m) times chi-square of cells - 1; its quantile by Wilson and Hilferty.
    """
    free = cells - 1
    if free < 1 or not now or not before:
        return 0.0
    spread = 2 / (9 * free)
    quantile: float = free * (1 - spread + Z_95 * math.sqrt(spread)) ** 3
    return (1 / now + 1 / before) * quantile


def _distributions(now: Report, before: Report) -> Iterator[DriftRow]:
    yield _lengths(now, before)
    for name, pick in (("labels", _labels), ("sources", _sources), ("scripts", _scripts)):
        mine, theirs = pick(now), pick(before)
        # A set without labels has no shares of them; one source alone always has all rows.
        if mine and theirs and len({*mine, *theirs}) > 1:
            yield _shares(name, mine, theirs)


def _lengths(now: Report, before: Report) -> DriftRow:
    histograms = now["histograms"]["tokens"], before["histograms"]["tokens"]
    common = sorted(set(histograms[0]["edges"]) & set(histograms[1]["edges"]))
    if len(common) < 2:
        raise DataError(
            f"the histograms of token lengths have no borders in common: {histograms[0]['edges']} and "
            f"{histograms[1]['edges']}; prepare the older data set again to compare with it"
        )
    counts = [_rebinned(histogram, common) for histogram in histograms]
    index = psi(*counts)
    return DriftRow(
        what="tokens a document",
        before=_mean_tokens(before),
        now=_mean_tokens(now),
        unit="tokens",
        psi=round(index, 4),
        level=_psi_level(index, *counts),
    )


def _rebinned(histogram: Mapping[str, Any], borders: Sequence[float]) -> dict[float, int]:
    """Training counts over `borders`, all of them the histogram's own; the outermost bins take the rest."""
    counts: dict[float, int] = dict.fromkeys(borders[:-1], 0)
    for left, count in zip(histogram["edges"], histogram["counts"].get("train", ()), strict=False):
        below = [border for border in borders[:-1] if border <= left]
        counts[below[-1] if below else borders[0]] += count
    return counts


def _shares(name: str, now: Mapping[str, int], before: Mapping[str, int]) -> DriftRow:
    """One row for a distribution; it shows the share that moved most."""
    totals = sum(now.values()), sum(before.values())
    shares = {key: (now.get(key, 0) / totals[0], before.get(key, 0) / totals[1]) for key in {**before, **now}}
    moved = max(shares, key=lambda key: (abs(shares[key][0] - shares[key][1]), shares[key][0], key))
    index = psi(now, before)
    return DriftRow(
        what=f"{name}; most moved: {moved}" if now != before else f"{name}; largest: {moved}",
        before=round(shares[moved][1], 4),
        now=round(shares[moved][0], 4),
        unit="share",
        psi=round(index, 4),
        level=_psi_level(index, now, before),
    )


def _rates(now: Report, before: Report) -> Iterator[DriftRow]:
    documents = [int(report["splits"]["train"]["documents"]) for report in (now, before)]
    ratio = _ratio(*documents)
    # A set may grow; one that shrinks has lost something.
    level: Level = "none" if documents[0] >= documents[1] else _ratio_level(ratio)
    yield DriftRow(
        what="documents to train on", before=documents[1], now=documents[0], unit="rows", ratio=ratio,
        level=level,
    )  # fmt: skip
    train = [report["splits"]["train"] for report in (now, before)]
    learned, tokens = ([split[key] for split in train] for key in ("supervised_tokens", "tokens"))
    yield _rate("tokens that carry loss", learned, tokens)
    read = [sum(entry["read"] for entry in report["funnel"]) for report in (now, before)]
    lost = [_lost(report) for report in (now, before)]
    for stage in ("parsed", "valid", "clean", "kept"):  # what is lost at `unique` are the duplicates
        yield _rate(f"lost: not {stage}", [counts[stage] for counts in lost], read)
    for kind in ("exact", "near"):
        yield _rate(f"{kind} duplicates", [r["duplicates"][kind] for r in (now, before)], read)
    for kind in sorted({*now["personal_data"], *before["personal_data"]}):
        found = [report["personal_data"].get(kind, 0) for report in (now, before)]
        yield _rate(f"personal data: {kind}", found, read, "per 1,000 rows")


def _rate(
    what: str, counts: Sequence[int], of: Sequence[int], unit: Literal["share", "per 1,000 rows"] = "share"
) -> DriftRow:
    """Compare two counts, each of so many: those of now and those of before."""
    rates = [n / total if total else 0.0 for n, total in zip(counts, of, strict=True)]
    level: Level = "none"
    if _beyond_chance(counts, of):
        # Half a case more keeps a first case among thousands from being an endless increase.
        halves = [(n + 0.5) / (total + 1) for n, total in zip(counts, of, strict=True)]
        level = _ratio_level(halves[0] / halves[1])
    now, before = (round(rate * (1000 if unit == "per 1,000 rows" else 1), 4) for rate in rates)
    return DriftRow(what=what, before=before, now=now, unit=unit, ratio=_ratio(*rates), level=level)


def _beyond_chance(counts: Sequence[int], of: Sequence[int]) -> bool:
    """Whether two counts differ more than those of 95 in 100 pairs of samples of one population.

    Two-sided, by the normal approximation of Poisson counts: a row may hold several cases.
    """
    if not all(of):
        return False
    pooled = sum(counts) / sum(of)
    error = math.sqrt(pooled * (1 / of[0] + 1 / of[1]))
    return abs(counts[0] / of[0] - counts[1] / of[1]) > Z_95_BOTH * error


def _ratio(now: float, before: float) -> float | None:
    if before:
        return round(now / before, 4)
    return None if now else 1.0


def _ratio_level(ratio: float | None) -> Level:
    if ratio is None or ratio <= 0:
        return "much"
    away = max(ratio, 1 / ratio)
    return "much" if away >= RATIO_MUCH else "some" if away >= RATIO_SOME else "none"


def _psi_level(index: float, now: Mapping[Any, int], before: Mapping[Any, int]) -> Level:
    cells = sum(1 for key in {**before, **now} if now.get(key) or before.get(key))
    if index <= psi_by_chance(cells, sum(now.values()), sum(before.values())):
        return "none"
    return "much" if index >= PSI_MUCH else "some" if index >= PSI_SOME else "none"


def _mean_tokens(report: Report) -> float:
    train = report["splits"]["train"]
    return round(train["tokens"] / train["documents"], 1) if train["documents"] else 0.0


def _lost(report: Report) -> Counter[str]:
    lost: Counter[str] = Counter()
    for entry in report["funnel"]:
        for step in funnel_steps(entry):
            lost[step.stage] += step.lost
    return lost


def _labels(report: Report) -> dict[str, int]:
    return dict(report["labels"])


def _sources(report: Report) -> dict[str, int]:
    return {name: entry["rows"] for name, entry in report["sources"].items()}


def _scripts(report: Report) -> dict[str, int]:
    return dict(report["scripts"])
