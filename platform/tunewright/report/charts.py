"""The pictures of the report, as SVG whose colours are the page's CSS variables.

One drawing therefore serves light mode, dark mode and print. matplotlib is imported inside functions.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.report.text import finite, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins that matplotlib writes into the SVG and `_page_svg` replaces by CSS variables.
INK, MUTED, GRID, BASE, TUNED, BAD = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
CSS_COLOURS = {INK: "--ink", MUTED: "--muted", GRID: "--line", BASE: "--base", TUNED: "--tuned", BAD: "--bad"}


@dataclass(frozen=True)
class Palette:
    """The colours of a drawing."""

    ink: str
    muted: str
    grid: str
    tuned: str
    bad: str
    paper: str = "none"


PAGE = Palette(INK, MUTED, GRID, TUNED, BAD)
LIGHT = Palette("#1b2024", "#5c6670", "#dcdfdc", "#0b7265", "#a8371f", "#fbfbf8")
"""The page's in light mode, for pictures that stand alone."""

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.parse_math": False,  # a `$` in a field's name is a dollar sign
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
}


def style(palette: Palette) -> Any:
    """matplotlib's settings for a drawing in these colours."""
    colours = {INK: palette.ink, MUTED: palette.muted, GRID: palette.grid}
    return {
        key: colours.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()
    }


LINE_STYLES = {"finished": "-", "stopped": (0, (4, 2.5)), "failed": (0, (1, 2))}


def sweep_chart(name: str, trials: Sequence[Mapping[str, Any]], winner: int | None, metric: str) -> str:
    """The metric of each trial over its steps, named at the line's end; the winner bold."""
    ends: list[tuple[float, float, Mapping[str, Any]]] = []
    with svg_axes(name, 9.2, 3.4) as (axes, done):
        for trial in trials:
            points = series(trial["history"], metric)
            if not points:
                continue
            best = trial["trial"] == winner
            axes.plot(
                *zip(*points, strict=True), color=TUNED if best else MUTED,
                linewidth=2.6 if best else 1.2, linestyle=LINE_STYLES[trial["state"]],
                marker="o", markersize=4 if best else 2.4, zorder=3 if best else 2,
            )  # fmt: skip
            ends.append((*points[-1], trial))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(metric.replace("_", " "))
        if metric == "exact_match":
            axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(left=0)
        whole_steps(axes)
        _name_ends(axes, ends, winner)
    return done[0]


def bars_chart(name: str, rows: Sequence[tuple[str, float, float]], intervals: Sequence[Any]) -> str:
    """Base and tuned share of each row, side by side; 95 % intervals on the first row.

    Args:
        rows: (label, base, tuned), from the top.
        intervals: of base and tuned for the first row.
    """
    half = 0.36
    with svg_axes(name, 9.2, 0.75 + 0.42 * len(rows)) as (axes, done):
        for place, (_, base, tuned) in enumerate(rows):
            for at, value, colour in ((place - half / 2, base, BASE), (place + half / 2, tuned, TUNED)):
                axes.barh(at, value, height=half * 0.92, color=colour)
        for at, value, (low, high) in zip((-half / 2, half / 2), rows[0][1:], intervals, strict=True):
            axes.errorbar(value, at, xerr=[[value - low], [high - value]], color=INK, linewidth=1, capsize=2)
        for place, (_, base, tuned) in enumerate(rows):
            ends = [intervals[0][1], intervals[1][1]] if place == 0 else [base, tuned]
            for at, value, end in zip((place - half / 2, place + half / 2), (base, tuned), ends, strict=True):
                axes.text(max(value, end) + 0.012, at, share(value), va="center", fontsize=7.5)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlim(0, 1.1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.grid(False, axis="y")
    return done[0]


def series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) where the value was measured and is finite."""
    return [(row["step"], row[key]) for row in rows if finite(row.get(key))]


def _name_ends(
    axes: Axes, ends: Sequence[tuple[float, float, Mapping[str, Any]]], winner: int | None
) -> None:
    """Name each line right of the plot, spread so that names do not overlap."""
    low, high = axes.get_ylim()
    heights = spread([(y - low) / (high - low) for _, y, _ in ends], gap=0.075)
    for (x, y, trial), height in zip(ends, heights, strict=True):
        best = trial["trial"] == winner
        text = f"trial {trial['trial']}" + ("" if trial["state"] == "finished" else f", {trial['state']}")
        axes.annotate(
            f"{text}, winner" if best else text, xy=(x, y), xytext=(1.02, height), textcoords="axes fraction",
            va="center", color=TUNED if best else MUTED, fontweight="bold" if best else "normal",
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Values moved as little as needed to stand `gap` apart, in their order.

    [0.9, 0.9, 0.2], gap 0.1  ->  [0.95, 0.85, 0.2]
    """
    order = sorted(range(len(values)), key=lambda i: -values[i])
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _top(groups[-1], values, gap) > _bottom(groups[-2], values, gap) - gap:
            last = groups.pop()
            groups[-1] += last
    placed = {i: _top(group, values, gap) - n * gap for group in groups for n, i in enumerate(group)}
    return [placed[i] for i in range(len(values))]


def _top(group: Sequence[int], values: Sequence[float], gap: float) -> float:
    return sum(values[i] for i in group) / len(group) + gap * (len(group) - 1) / 2


def _bottom(group: Sequence[int], values: Sequence[float], gap: float) -> float:
    return _top(group, values, gap) - gap * (len(group) - 1)


def whole_steps(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(False, axis="x")


@contextmanager
def svg_axes(name: str, width: float, height: float) -> Iterator[tuple[Axes, list[str]]]:
    """Axes of `width` x `height` inches to draw on; afterwards the list holds the SVG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    done: list[str] = []
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), done
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        done.append(_page_svg(file.getvalue(), name))


def _page_svg(svg: str, name: str) -> str:
    """The `<svg>` element alone: sized by the page, ids of its own, colours and font of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r"'DejaVu Sans'(?:, sans-serif)?", "var(--font)", svg)
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1).strip()
