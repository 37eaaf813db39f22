"""The data report as one page with everything in it: to be opened, mailed, printed or archived.

Made from `report.json` alone, so that it can be made again. Rows are strangers' text: all of it is
escaped, and hidden characters are shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tunewright.data.accounts import check_adds_up, funnel_steps
from tunewright.report import data_words as words
from tunewright.report.text import count

TEMPLATE = Path(__file__).with_name("data_page.html")
RUN_TEMPLATE = Path(__file__).with_name("page.html")
MOST_BARS = 40
MOST_EXAMPLES = 60
MOST_BORDERS = 6
LONGEST_TEXT = 300


def data_page(
    report: Mapping[str, Any], drift: Sequence[Mapping[str, Any]] | None, before: str | None
) -> str:
    """The page of a data set.

    Args:
        report: what `report.json` of a data artifact holds.
        drift: rows of `tunewright.data.drift.drift`; None where there is nothing to compare with.
        before: what it was compared with, as people would look for it: `data/ID`.
    Raises:
        DataError: the report's figures do not add up.
    """
    check_adds_up(report)
    train, evaluation = report["splits"]["train"], report["splits"]["eval"]
    return _render(
        report=report,
        style=_shared_style(),
        totals=_totals(report),
        gates=words.sorted_gates(report),
        funnels=[_funnel(entry) for entry in report["funnel"]],
        examples=_examples(report),
        splits=[("train", train), ("eval", evaluation)] if evaluation["rows"] else [("train", train)],
        histograms=_histograms(report),
        sources=_sources(report),
        labels=_bars(report["labels"]),
        personal_data=_bars(report["personal_data"]),
        scripts=_bars(report["scripts"]),
        contamination=_bars(report["contamination"]),
        drift=drift,
        before=before,
    )


def _render(**values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for name in ("percent", "compact", "visible", "rows", "drift_value", "drift_measure", "gate_needs"):
        environment.filters[name] = getattr(words, name)
    environment.filters["count"] = count
    environment.filters["clip"] = _clip
    environment.globals.update(
        gate_value=words.gate_value, of=words.of, lost_at=words.LOST_AT, levels=words.LEVELS
    )  # fmt: skip
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**values)


def _shared_style() -> Any:
    """The style sheet of the run's page, so that the two are one family."""
    from markupsafe import Markup

    page = RUN_TEMPLATE.read_text(encoding="utf-8")
    return Markup(page.partition("<style>")[2].partition("</style>")[0])  # noqa: S704 - our own file


def _totals(report: Mapping[str, Any]) -> dict[str, Any]:
    funnel = report["funnel"]
    return {
        name: sum(entry[name] for entry in funnel)
        for name in ("read", "parsed", "valid", "clean", "unique", "kept", "drawn")
    }


def _funnel(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A source with its stages: widths in percent of the rows read."""
    read = int(entry["read"])
    lost = sum(step.lost for step in funnel_steps(entry))
    drawn = [{"stage": step.stage, "before": step.before, "after": step.after, "lost": step.lost,
              "reasons": step.reasons, "width": _width(step.after, read), "gone": _width(step.lost, read)}
             for step in funnel_steps(entry)]  # fmt: skip
    return {**entry, "lost": lost, "steps": drawn}


def _width(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}" if whole else "0"


def _examples(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Examples of losses; where there are too many, each reason's first come first."""
    found = [
        {**example, "source": entry["source"]} for entry in report["funnel"] for example in entry["examples"]
    ]
    if len(found) <= MOST_EXAMPLES:
        return found
    seen: dict[tuple[str, str, str], int] = {}
    turns = []
    for place, example in enumerate(found):
        key = (example["source"], example["stage"], example["reason"])
        seen[key] = seen.get(key, 0) + 1
        turns.append((seen[key], place))
    return [found[place] for place in sorted(place for _, place in sorted(turns)[:MOST_EXAMPLES])]


def _histograms(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    titles = {
        "tokens": ("Tokens a document", "tokens"),
        "chars": ("Characters an example", "characters"),
        "supervised_share": ("Share of a document's tokens that carry loss", ""),
    }
    drawn = [_histogram(report, name, *titles[name]) for name in titles]
    return [histogram for histogram in drawn if histogram]


def _histogram(report: Mapping[str, Any], name: str, title: str, unit: str) -> dict[str, Any] | None:
    """Bars of each split's shares over the bins that hold anything; None where none does."""
    given = report["histograms"][name]
    edges = given["edges"]
    counts = {split: list(values) for split, values in given["counts"].items() if sum(values)}
    filled = [i for i in range(len(edges) - 1) if any(values[i] for values in counts.values())]
    if not filled:
        return None
    first, last = filled[0], filled[-1] + 1
    if last - first < 4:  # one lonely bar says little of where it stands
        first, last = max(0, first - 1), min(len(edges) - 1, last + 1)
    shares = {split: [n / sum(values) for n in values] for split, values in counts.items()}
    ceiling = _ceiling(max(max(values) for values in shares.values()))
    bins = []
    for i in range(first, last):
        span = f"{words.border(edges[i], name)} to {words.border(edges[i + 1], name)} {unit}".strip()
        said = ", ".join(f"{s} {words.percent(shares[s][i])} ({count(counts[s][i])})" for s in counts)
        heights = {split: f"{100 * values[i] / ceiling:.2f}" for split, values in shares.items()}
        bins.append({"title": f"{span}: {said}", **heights})
    return {
        "title": title,
        "bins": bins,
        "splits": list(counts),
        "ticks": [(f"{100 * k / 4:.0f}", words.exact_percent(ceiling * k / 4)) for k in range(1, 5)],
        "axis": [(f"{100 * (i - first) / (last - first):.2f}", words.border(edges[i], name))
                 for i in range(first, last + 1, math.ceil((last - first) / MOST_BORDERS))],
        "mark": _mark(report["seq_len"], edges[first : last + 1]) if name == "tokens" else None,
    }  # fmt: skip


def _ceiling(highest: float) -> float:
    """The smallest round share that is not below: 0.31 -> 0.4."""
    return min((step for step in (0.04, 0.08, 0.12, 0.2, 0.4, 0.6, 0.8, 1.0) if step >= highest), default=1.0)


def _mark(seq_len: int, edges: Sequence[float]) -> str | None:
    """Where the length of a packed row stands on an axis of doubling borders, in percent from the left."""
    for i, (low, high) in enumerate(pairwise(edges)):
        if low < seq_len <= high:
            inside = math.log2(seq_len / low) / math.log2(high / low) if low else seq_len / high
            return f"{100 * (i + inside) / (len(edges) - 1):.2f}"
    return None


def _sources(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Shares of an epoch, asked for and got; left out where there is only one source."""
    if len(report["sources"]) < 2:
        return []
    widest = max(max(s["asked"] or 0, s["share"] or 0) for s in report["sources"].values())
    return [
        {"name": name, **source, "width": _width(source["share"] or 0, widest),
         "wanted": _width(source["asked"] or 0, widest)}
        for name, source in report["sources"].items()
    ]  # fmt: skip


def _bars(counts: Mapping[str, int]) -> dict[str, Any] | None:
    """The largest counts with their widths, and what the others have together."""
    ordered = sorted(((n, name) for name, n in counts.items() if n), key=lambda item: (-item[0], item[1]))
    if not ordered:
        return None
    total, shown, rest = sum(counts.values()), ordered[:MOST_BARS], ordered[MOST_BARS:]
    return {
        "rows": [{"name": name, "count": n, "share": n / total, "width": _width(n, ordered[0][0])}
                 for n, name in shown],
        "total": total,
        "others": len(rest),
        "of_others": sum(n for n, _ in rest),
    }  # fmt: skip


def _clip(value: str) -> str:
    left = len(value) - LONGEST_TEXT
    return value if left <= 0 else f"{value[:LONGEST_TEXT]}… and {left:,} more characters"
