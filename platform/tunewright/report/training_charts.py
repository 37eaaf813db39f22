"""The pictures of a training: what was measured at each step, and what happened to it on the way.

The same drawing is an SVG for the page, coloured by the page, and a PNG to be sent around.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from tunewright.artifacts import explained
from tunewright.report import charts
from tunewright.report.charts import LIGHT, PAGE, Palette, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
PNG_DPI = 160
STEEP = 20.0
"""A largest value this many times the median is drawn on a logarithmic scale."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step.

    `resumed` and `rollback` lie before the step they carry, the first one told afterwards.
    """

    step: float
    kind: Literal["resumed", "rollback", "best", "ended"]


def marks_of(rows: Rows, training: Mapping[str, Any]) -> list[Mark]:
    """What happened, as the figures tell it.

    Args:
        rows: with `attempt` and `rollbacks`, where they are known.
        training: `weights_step` of the published weights, `steps` and, if it ended early, `ended`.
    """
    marks: list[Mark] = []
    for before, after in pairwise(rows):
        if after.get("attempt", 1) > before.get("attempt", 1):
            marks.append(Mark(after["step"], "resumed"))
        if after.get("rollbacks", 0) > before.get("rollbacks", 0):
            marks.append(Mark(after["step"], "rollback"))
    best = training.get("weights_step")
    if best is not None and best != training.get("steps"):
        marks.append(Mark(best, "best"))
    if training.get("ended") and rows:
        marks.append(Mark(rows[-1]["step"], "ended"))
    return marks


@dataclass(frozen=True)
class Panel:
    """One picture: its file's name, its title, what it draws, and whether there is anything to draw."""

    name: str
    title: str
    keys: tuple[str, ...]
    draw: Callable[[Axes, Rows, Palette], None]

    def has(self, rows: Rows) -> bool:
        return any(len(series(rows, key)) > 1 for key in self.keys)

    def said(self, rows: Rows) -> str:
        """First and last values, for somebody who does not see the picture."""
        parts = []
        for key in self.keys:
            points = series(rows, key)
            if points:
                ends = ", ".join(f"{value:.3g} at step {step:g}" for step, value in (points[0], points[-1]))
                parts.append(f"{WORDS[key]} {ends}")
        return "; ".join(parts)


def panel_svg(name: str, panel: Panel, rows: Rows, marks: Sequence[Mark]) -> str:
    """The picture as an `<svg>` whose colours are the page's; `name` makes its ids its own."""
    with charts.svg_axes(name, 4.6, 2.6) as (axes, done):
        _draw(axes, panel, rows, marks, PAGE)
    return done[0]


def write_pngs(folder: Path, rows: Rows, marks: Sequence[Mark]) -> list[Path]:
    """Write NAME.png of each picture there is something to draw for; returns their paths.

    Raises:
        StoreError: the folder cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    with explained(f"writing plots to {folder}"), rc_context(charts.style(LIGHT)):
        folder.mkdir(parents=True, exist_ok=True)
        for panel in PANELS:
            path = folder / f"{panel.name}.png"
            path.unlink(missing_ok=True)  # of an earlier training, which had what this one has not
            if not panel.has(rows):
                continue
            figure = Figure(figsize=(6.4, 3.6), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.add_subplot(facecolor="none")
            axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
            _draw(axes, panel, rows, marks, LIGHT)
            figure.savefig(path, dpi=PNG_DPI, facecolor=LIGHT.paper, metadata={"Software": None})
            written.append(path)
    return written


def _draw(axes: Axes, panel: Panel, rows: Rows, marks: Sequence[Mark], palette: Palette) -> None:
    panel.draw(axes, rows, palette)
    axes.set_xlabel("optimizer step")
    axes.set_xlim(*_span(rows))
    charts.whole_steps(axes)
    for mark in marks:
        _mark(axes, panel, rows, mark, palette)
    if len(axes.get_legend_handles_labels()[1]) > 1 or panel.name == "loss":
        axes.legend(loc="best", handlelength=1.6, fontsize=7.5)


def _span(rows: Rows) -> tuple[float, float]:
    steps = [row["step"] for row in rows]
    low, high = min(steps), max(steps)
    room = max(1.0, 0.02 * (high - low))
    return max(0.0, low - room), high + room


def _mark(axes: Axes, panel: Panel, rows: Rows, mark: Mark, palette: Palette) -> None:
    if mark.kind == "best":
        at = dict(series(rows, "eval_loss")).get(mark.step)
        if panel.name == "loss" and at is not None:
            axes.plot(
                [mark.step], [at], "o", color=palette.tuned, fillstyle="none", markersize=9,
                markeredgewidth=1.4, label="published",
            )  # fmt: skip
        return
    style = {"resumed": ":", "rollback": "--", "ended": "-"}[mark.kind]
    axes.axvline(mark.step, color=palette.bad if mark.kind == "rollback" else palette.muted, linewidth=0.9,
                 linestyle=style, zorder=1)  # fmt: skip


def _loss(axes: Axes, rows: Rows, palette: Palette) -> None:
    train, held_out = series(rows, "loss"), series(rows, "eval_loss")
    if train:
        axes.plot(*zip(*train, strict=True), color=palette.muted, linewidth=1.1, label="training")
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True), color=palette.tuned, linewidth=1.8, marker="o", markersize=3.2,
            label="evaluation",
        )  # fmt: skip
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=min(0.0, *(value for _, value in train + held_out)))


def _plain(key: str, label: str, bottom: float | None = None) -> Callable[[Axes, Rows, Palette], None]:
    def draw(axes: Axes, rows: Rows, palette: Palette) -> None:
        points = series(rows, key)
        axes.plot(*zip(*points, strict=True), color=palette.tuned, linewidth=1.3)
        axes.set_ylabel(label)
        if bottom is not None:
            axes.set_ylim(bottom=bottom)

    return draw


def _rate(axes: Axes, rows: Rows, palette: Palette) -> None:
    _plain("lr", "learning rate", 0.0)(axes, rows, palette)
    # 1.5e-4 rather than 0.00015.
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}".replace("e-0", "e-") if value else "0")


def _gradient(axes: Axes, rows: Rows, palette: Palette) -> None:
    points = series(rows, "grad_norm")
    values = [value for _, value in points]
    _plain("grad_norm", "gradient norm")(axes, rows, palette)
    if min(values) > 0 and max(values) > STEEP * median(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(bottom=0)


def _memory(axes: Axes, rows: Rows, palette: Palette) -> None:
    for key, colour, dashed, label in (
        ("rss_gib", palette.tuned, False, "in use"),
        ("peak_rss_gib", palette.tuned, True, "most so far"),
        ("cuda_gib", palette.ink, False, "GPU, in use"),
        ("peak_cuda_gib", palette.ink, True, "GPU, most so far"),
    ):
        points = series(rows, key)
        if points:
            axes.plot(
                *zip(*points, strict=True), color=colour, linewidth=1.3, label=label,
                linestyle=(0, (4, 2.5)) if dashed else "-",
            )  # fmt: skip
    axes.set_ylabel("GiB, worker 0")
    axes.set_ylim(bottom=0)


WORDS = {
    "loss": "training loss",
    "eval_loss": "evaluation loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens per second",
    "rss_gib": "memory in use, in GiB",
    "peak_rss_gib": "most memory so far, in GiB",
    "cuda_gib": "GPU memory in use, in GiB",
    "peak_cuda_gib": "most GPU memory so far, in GiB",
}
PANELS = (
    Panel("loss", "Loss", ("loss", "eval_loss"), _loss),
    Panel("learning_rate", "Learning rate", ("lr",), _rate),
    Panel("gradient_norm", "Gradient norm, before clipping", ("grad_norm",), _gradient),
    Panel("tokens_per_s", "Speed", ("tokens_per_s",), _plain("tokens_per_s", "tokens/s", 0.0)),
    Panel("memory", "Memory", ("rss_gib", "peak_rss_gib", "cuda_gib", "peak_cuda_gib"), _memory),
)
