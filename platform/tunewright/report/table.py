"""The table at the end of a run: plain text, aligned, at most `WIDTH` columns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from tunewright.report.text import NONE, count, difference, duration, setting, share, short_name

WIDTH = 100
NAME_WIDTH = 36


def summary_table(summary: dict[str, Any]) -> str:
    """Base against tuned, trials, seconds a stage, where everything lies."""
    blocks = [_headline(summary), _figures(summary), _facts(summary), _stages(summary), _places(summary)]
    return "\n\n".join("\n".join(_fitted(line) for line in block) for block in blocks if block)


def _headline(summary: dict[str, Any]) -> list[str]:
    title = f"{summary['run']}: {summary['version'] or 'no version registered'}"
    if summary["version"] and summary["alias"]:
        title += f", alias {summary['alias']}"
    return [f"{title}, in {duration(summary['seconds'])}"]


def _figures(summary: dict[str, Any]) -> list[str]:
    base, tuned = summary["base"], summary["tuned"]
    if base is None or tuned is None:
        return []
    names = {"exact match": "exact_match", "loss": "loss"}
    rows = [(name, base[key], tuned[key]) for name, key in names.items()]
    rows += [(f"field {name}", base["fields"].get(name), value) for name, value in tuned["fields"].items()]
    head = ("", "base", "tuned", "difference")
    cells = [(name, share(b), share(t), difference(b, t)) for name, b, t in rows]
    return _aligned([head, *cells])


def _facts(summary: dict[str, Any]) -> list[str]:
    winner, equal, speed = summary["winner"], summary["served_equals_evaluated"], summary["tokens_per_s"]
    rows = [("data", _data(summary["data"]))] if summary["data"] else []
    if summary["base"]:
        rows.insert(0, ("base model", summary["base"]["model"]))
    if speed is not None:
        rows.append(("training", f"{count(speed)} tokens/s"))
    if winner:
        params = ", ".join(f"{short_name(name)} {setting(value)}" for name, value in winner["params"].items())
        rows.append(("sweep", f"{summary['trials']} trials, best is trial {winner['trial']}: {params}"))
    if summary["endpoint"]:
        rows.append(("endpoint", summary["endpoint"]))
    if equal:
        rows.append(("served", f"{equal['equal']} of {equal['asked']} answers equal the evaluated ones"))
    return _aligned(rows) if rows else []


def _data(data: dict[str, Any]) -> str:
    read, kept = (sum(row[key] for row in data["funnel"]) for key in ("read", "kept"))
    return (
        f"{count(read)} rows read, {count(kept)} kept, {count(data['tokens'])} tokens "
        f"in {count(data['train_rows'])} packed rows"
    )


def _stages(summary: dict[str, Any]) -> list[str]:
    head = ("stage", "seconds", "", "artifact")
    rows = [
        (stage["name"], f"{stage['seconds']:.1f}", stage["state"], stage["artifact"] or NONE)
        for stage in summary["stages"]
    ]
    return _aligned([head, *rows], right=(1,))


def _places(summary: dict[str, Any]) -> list[str]:
    return ["where everything lies", *_aligned(sorted_paths(summary["paths"]), cut=False)]


def sorted_paths(paths: dict[str, str]) -> list[tuple[str, str]]:
    """(name, path), with the home folder as `~`: shorter, and still to be pasted into a shell."""
    home = os.path.expanduser("~")
    inside = home + os.sep
    return [
        (name, path.replace(home, "~", 1) if path.startswith(inside) else path)
        for name, path in paths.items()
    ]


def _aligned(
    rows: Sequence[Sequence[str]], right: Sequence[int] | None = None, cut: bool = True
) -> list[str]:
    """Rows in columns, two spaces apart and two in; numbers to the right.

    Args:
        right: columns aligned to the right; in a table of four all but the first when left out.
        cut: whether a line that is too long loses its end; else it goes on below.
    """
    columns = len(rows[0])
    if right is None:
        right = range(1, columns) if columns == 4 else ()
    rows = [[_clip(row[0], NAME_WIDTH), *row[1:]] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(columns)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = ("  " + "  ".join(cells)).rstrip()
        lines += [_clip(line, WIDTH)] if cut else list(_folded(line, widths[0] + 4))
    return lines


def _folded(line: str, indent: int) -> Iterator[str]:
    """The line in pieces of at most `WIDTH`: a path is worth nothing when cut."""
    yield line[:WIDTH]
    rest, room = line[WIDTH:], WIDTH - indent
    for start in range(0, len(rest), room):
        yield " " * indent + rest[start : start + room]


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _fitted(line: str) -> str:
    return _clip(line, WIDTH).rstrip()
