"""The page's section about a training: its pictures, and in words what happened to it on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.report.training_charts import PANELS, Mark, Panel, Rows, marks_of, panel_svg


def training_section(metrics: Mapping[str, Rows], training: Mapping[str, Any]) -> dict[str, Any]:
    """Sentences and pictures; there are no pictures without figures.

    Args:
        metrics: `train`, and `base`, of which the loss alone is shown; either may be absent.
        training: of the main training, what `marks_of` wants.
    """
    rows, base = metrics.get("train") or (), metrics.get("base") or ()
    marks = marks_of(rows, training)
    shown = [_figure(panel, "train", rows, marks, panel.title) for panel in PANELS if panel.has(rows)]
    loss = PANELS[0]
    if loss.has(base):
        shown.append(_figure(loss, "base", base, [], "Loss in the pretraining of the base"))
    return {
        "happened": " ".join(_happened(marks, training)),
        "figures": shown,
        "certificate": training.get("certificate") or [],
    }


def _figure(panel: Panel, name: str, rows: Rows, marks: Sequence[Mark], title: str) -> dict[str, Any]:
    svg = panel_svg(f"{name}-{panel.name.replace('_', '-')}", panel, rows, marks)
    return {"title": title, "svg": safe(svg), "alt": f"{title}: {panel.said(rows)}."}


def _happened(marks: Sequence[Mark], training: Mapping[str, Any]) -> list[str]:
    """A sentence for each kind of mark."""
    said = []
    for kind, words in (
        ("resumed", "was interrupted and went on from a checkpoint before {} (dotted lines)"),
        ("rollback", "went back to a checkpoint before {}, as the loss ran away (dashed lines)"),
        ("best", "published the weights of {}, which had the best evaluation (ring)"),
    ):
        steps = [f"{mark.step:g}" for mark in marks if mark.kind == kind]
        if steps:
            said.append(f"Training {words.format(_listed(steps))}.")
    if any(mark.kind == "ended" for mark in marks):
        said.append(f"Training ended early: {training['ended']}.")
    return said


def _listed(steps: Sequence[str]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(steps[:-1])} and {steps[-1]}"


def safe(svg: str) -> Any:
    """Markup that matplotlib made; it escapes the texts within."""
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704 - not the user's text
