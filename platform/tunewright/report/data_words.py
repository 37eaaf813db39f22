"""How the data report says its figures and shows what rows hold, on the page and in the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunewright.report.text import NONE, count

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""Characters that would move the cursor, turn the text around, or not be seen at all."""

LOST_AT = {
    "parsed": "cannot be parsed",
    "valid": "not valid",
    "clean": "not clean",
    "unique": "duplicate",
    "kept": "not chosen",
}
LEVELS = {"none": "no change", "some": "some", "much": "much"}


def visible(text: str) -> str:
    """The text with every hidden character spelled out: a right-to-left override as `⟨U+202E⟩`.

    A row is a stranger's: printed as it is, it could rewrite the terminal or reorder the line.
    """
    return HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def percent(part: float | None) -> str:
    """0.1234 -> `12.3 %`; what is not quite nothing or all is not said to be."""
    if part is None:
        return NONE
    text = f"{100 * part:.1f}"
    if text == "0.0" and part > 0:
        text = "<0.1"
    elif text == "100.0" and part < 1:
        text = ">99.9"
    return f"{'0' if text == '0.0' else '100' if text == '100.0' else text} %"


def exact_percent(part: float) -> str:
    """A share that somebody chose, such as a limit: 0.05 -> `5 %`, 0.125 -> `12.5 %`."""
    return f"{100 * part:.6g} %"


def compact(value: float) -> str:
    """9876 -> `9,876`, 2143000 -> `2.14 M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if value >= size:
            scaled = value / (1e3 if letter == "k" else size)
            return f"{scaled:.3g} {letter}" if scaled < 999.5 else f"{scaled:,.0f} {letter}"
    return count(value)


def of(part: float, whole: float) -> float | None:
    """A share, or None where there is no whole."""
    return part / whole if whole else None


def rows(number: int) -> str:
    """1 -> `1 row`, 2500 -> `2,500 rows`."""
    return "1 row" if number == 1 else f"{count(number)} rows"


def gate_value(rule: str, value: float, limit: bool = False) -> str:
    """A gate's figure or its limit: a share as a percentage, a number of rows as one."""
    if not rule.endswith(("fraction", "efficiency", "share")):
        return f"{value:,.6g}"
    return exact_percent(value) if limit else percent(value)


def gate_needs(gate: Mapping[str, Any]) -> str:
    """`at most 5 %`, `at least 100`."""
    limit = gate_value(gate["rule"], gate["limit"], limit=True)
    return f"at least {limit}" if gate["rule"].startswith("min_") else f"at most {limit}"


def drift_value(value: float, unit: str) -> str:
    """A drift row's figure in its unit."""
    if unit == "share":
        return percent(value)
    return count(value) if unit == "rows" else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def drift_measure(row: Mapping[str, Any]) -> str:
    """`PSI 0.31`, or how many times the former figure: `x 1.50`."""
    if "psi" in row:
        return f"PSI {row['psi']:.2f}"
    ratio = row["ratio"]
    return "new" if ratio is None else f"x {ratio:.2f}"


def sorted_gates(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gates, refused ones first."""
    return sorted(report["gates"], key=lambda gate: bool(gate["ok"]))


def border(edge: float, name: str) -> str:
    """A histogram's border as its axis has it; the last one of lengths stands for `and more`."""
    if name == "supervised_share":
        return exact_percent(edge)
    return "more" if edge >= 1 << 30 else count(edge)
