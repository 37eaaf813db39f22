"""`report.html`: one file with everything in it, to be opened, mailed, printed or archived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.artifacts import explained
from tunewright.report import charts, text
from tunewright.report.training_section import safe, training_section

TEMPLATE = Path(__file__).with_name("page.html")
LONGEST_TEXT = 700


def write_report(
    folder: Path,
    summary: dict[str, Any],
    metrics: dict[str, list[dict[str, Any]]],
    trials: list[dict[str, Any]],
    evaluation: dict[str, Any],
) -> Path:
    """Write `folder`/report.html and return its path.

    Args:
        summary: what `summary.json` holds.
        metrics: `base` (pretraining, may be absent) and `train`: rows of step, loss, eval_loss...
        trials: each with trial, params, state, steps, best and its history.
        evaluation: `base` and `tuned` suite results, `compare`, and `gates` where there are any.
    Raises:
        StoreError: the page cannot be written.
    """
    page = _render(
        summary=summary,
        tasks=[_task(name, evaluation) for name in evaluation.get("tuned") or {}],
        gates=evaluation.get("gates") or [],
        training=training_section(metrics, summary.get("training") or {}),
        sweep=_sweep(trials, summary["winner"]) if trials else None,
    )
    path = folder / "report.html"
    temporary = folder / ".report.html.tmp"
    with explained(f"writing {path}"):
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    return path


def _render(**values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for name in ("share", "difference", "count", "duration", "setting", "short_name"):
        environment.filters[name] = getattr(text, name)
    environment.filters["clip"] = _clip
    environment.filters["with_breaks"] = _with_breaks
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**values)


def _sweep(trials: Sequence[Mapping[str, Any]], winner: Mapping[str, Any] | None) -> dict[str, Any]:
    best = None if winner is None else winner["trial"]
    measured = [metric for metric in ("exact_match", "eval_loss") if _any_point(trials, metric)]
    names = sorted({name for trial in trials for name in trial["params"]})
    found: dict[str, Any] = {"trials": trials, "winner": best, "names": names, "svg": None, "alt": ""}
    if measured:
        metric = measured[0]
        said = [f"trial {t['trial']} {t['state']} at {points[-1][1]:.3g} after step {points[-1][0]:g}"
                for t in trials if (points := charts.series(t["history"], metric))]  # fmt: skip
        found["svg"] = safe(charts.sweep_chart("sweep", trials, best, metric))
        found["alt"] = f"{metric.replace('_', ' ').capitalize()} of each trial: {'; '.join(said)}."
        found["metric"] = metric.replace("_", " ")
    return found


def _any_point(trials: Sequence[Mapping[str, Any]], metric: str) -> bool:
    return any(charts.series(trial["history"], metric) for trial in trials)


def _task(name: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    base, tuned = evaluation["base"][name], evaluation["tuned"][name]
    rows = [("whole answer right", base["exact_match"], tuned["exact_match"])]
    if tuned["valid_json"] is not None:
        rows.append(("valid JSON", base["valid_json"], tuned["valid_json"]))
    rows += [(field, base["fields"][field], value) for field, value in tuned["fields"].items()]
    said = [f"{label} {before:.3f} before and {after:.3f} after" for label, before, after in rows]
    svg = charts.bars_chart(f"bars-{_index(name, evaluation)}", rows, [base["interval"], tuned["interval"]])
    return {
        "name": name,
        "base": base,
        "tuned": tuned,
        "compare": evaluation["compare"][name],
        "svg": safe(svg),
        "alt": f"Base against tuned: {'; '.join(said)}.",
        "examples": [
            {"asked": _asked(t["prompt"]), "expected": t["expected"], "base": b, "tuned": t}
            for b, t in zip(base["examples"], tuned["examples"], strict=True)
        ],
    }


def _index(name: str, evaluation: Mapping[str, Any]) -> int:
    # A task's name may hold anything; an element's id may not.
    return list(evaluation["tuned"]).index(name)


def _asked(prompt: Sequence[Mapping[str, Any]]) -> str:
    """The question: its text alone when it is one, else every turn with its speaker."""
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _clip(value: str) -> str:
    left = len(value) - LONGEST_TEXT
    return value if left <= 0 else f"{value[:LONGEST_TEXT]}… and {left:,} more characters"


def _with_breaks(value: str) -> Any:
    """The text, escaped, that may be broken after each comma: JSON without spaces has no other place."""
    from markupsafe import Markup

    return Markup(",<wbr>").join(value.split(","))
