"""The end of a run: summary.json, report.html, the table, and the two lines a person copies next."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from tunewright.artifacts import Artifact, explained, read_json, write_json
from tunewright.config import RunConfig
from tunewright.evaluation_stage import read_scores
from tunewright.line import Line

PEAKS = ("peak_rss_gib", "peak_cuda_gib")
"""Figures of worker 0 of which the largest is told."""


def finish(line: Line, folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Write summary.json and report.html, and print the table."""
    from tunewright.report import summary_table, write_report

    metrics = _metrics(line, made)
    summary = _summary(line, folder, made, metrics.get("train", []))
    write_json(folder / "summary.json", summary)
    write_report(folder, summary, metrics, _trials(made), _evaluation(line, made))
    if "train" in made:
        _show_training(line, folder, made, metrics["train"], summary)
    print(f"\n{summary_table(summary)}\n", file=line.out)
    print(_next_steps(line.run, folder, summary), file=line.out, flush=True)
    return summary


def _show_training(
    line: Line, folder: Path, made: dict[str, Any], rows: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    """Pictures of the training beside the report, its metrics file, and what its sinks have not got."""
    from tunewright.report.training_charts import marks_of, write_pngs

    write_pngs(folder / "plots", rows, marks_of(rows, summary["training"]))
    with explained(f"writing {folder / 'metrics.jsonl'}"):
        shutil.copy(made["train"].path / "metrics.jsonl", folder / "metrics.jsonl")
    names = {role: made[role].ref for role in ("base", "data", "train", "evaluate") if role in made}
    for told in line.sinks.finish(rows, names | {"version": summary["version"] or "none"}):
        line.say(f"{'':<10}       {told}")


def _next_steps(run: RunConfig, folder: Path, summary: dict[str, Any]) -> str:
    """The two lines a person copies next."""
    command = Path(sys.executable).with_name("tunewright")
    lines = []
    if summary["version"] and run.serve:
        up = "make serve" if run.name == "quickstart" else f"{command} deploy {folder / 'config.json'}"
        lines.append(f"keep the endpoint up       {up}")
    own = "cp jobs/configs/own_data.yaml my.yaml   (name your rows and model in it)"
    lines.append(f"your own data and model    {own}, then {command} run my.yaml")
    return "\n".join(lines)


def _summary(line: Line, folder: Path, made: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    run, swept, version = line.run, made.get("sweep"), made.get("version")
    trained, evaluation = made.get("train"), made.get("evaluate")
    paths = {"run": str(folder), "report": str(folder / "report.html"), "store": str(line.store.root)}
    if trained is not None:
        kind = "adapter" if (trained.path / "adapter").is_dir() else "model"
        paths[kind] = str(trained.path / kind)
        paths["plots"] = str(folder / "plots")
        if run.train.tensorboard:
            paths["tensorboard"] = str(folder / "tensorboard")
    if "data" in made:
        paths["quarantine"] = str(made["data"].path / "quarantine")
    return {
        "run": run.name,
        "seconds": round(line.elapsed, 1),
        "stages": [record.as_dict() for record in line.records],
        "base": _figures(run.base.model, evaluation, "base"),
        "tuned": _figures(version.name if version else "tuned", evaluation, "tuned"),
        "winner": swept
        and {
            "trial": swept.facts["winner"],
            "params": swept.facts["params"],
            "exact_match": swept.facts.get("exact_match"),
        },
        "trials": run.sweep.trials if run.sweep else 0,
        "version": version.name if version else None,
        "alias": made.get("alias"),
        "endpoint": made.get("endpoint"),
        "served_equals_evaluated": made.get("served"),
        "tokens_per_s": trained.facts["tokens_per_s"] if trained else None,
        "training": _training(trained, rows),
        "data": _data_summary(made.get("data")),
        "paths": paths,
    }


def _training(trained: Artifact | None, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How the training went, in what a report is made from."""
    if trained is None:
        return None
    from tunewright.train.certificate import certificate_rows, read_certificate

    facts = trained.facts
    peaks = {k: max(row[k] for row in rows if k in row) for k in PEAKS if any(k in row for row in rows)}
    return {
        "steps": facts["steps"],
        "weights_step": facts.get("weights_step"),
        "ended": facts.get("ended"),
        "tries": max((int(row.get("attempt", 1)) for row in rows), default=1),
        "certificate": certificate_rows(read_certificate(trained.path)),
        "rollbacks": max((int(row.get("rollbacks", 0)) for row in rows), default=0),
        **peaks,
    }


def _figures(model: str, evaluation: Artifact | None, which: str) -> dict[str, Any] | None:
    """The first task's figures of base or tuned model."""
    results = evaluation.facts[which] if evaluation else {}
    if not results:
        return None
    return {"model": model, **next(iter(results.values()))}


def _data_summary(data: Artifact | None) -> dict[str, Any] | None:
    if data is None:
        return None
    facts = data.facts
    reasons: dict[str, int] = {}
    for source in facts["funnel"]:
        for reason, count in source["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    return {
        "funnel": facts["funnel"],
        "reasons": reasons,
        "train_rows": facts["train_rows"],
        "eval_rows": facts["eval_rows"],
        "tokens": facts["train_tokens"],
        "personal_data": facts["personal_data"],
    }


def write_data_report(folder: Path, data: Artifact) -> Path:
    """Write `data/report.json` and `data/report.html` of a run; returns the page's path.

    Drift is against the data set that the run had before this one; it stays in the report for as
    long as the data set does.
    """
    from tunewright.data.drift import drift
    from tunewright.report.data_page import data_page

    path = folder / "data" / "report.json"
    before = read_json(path) if path.is_file() else None
    if before is not None and before["artifact"] == data.ref:
        return path.with_suffix(".html")
    report = read_json(data.path / "report.json")
    if before is not None and before["task"] != report["task"]:
        before = None  # of another kind: there is nothing to compare
    moved = drift(report, before) if before else None
    since = before["artifact"] if before else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".html").write_text(data_page(report, moved, since), encoding="utf-8")
    write_json(path, {**report, "artifact": data.ref, "before": since, "drift": moved})
    return path.with_suffix(".html")


def _metrics(line: Line, made: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Loss curves: the base's pretraining where Tunewright made it, and the final training.

    A training that went on from a sweep's trial begins with that trial's curve.
    """
    from tunewright.train.worker import read_metrics

    out: dict[str, list[dict[str, Any]]] = {}
    pretrained = made["base"].manifest.parents.get("trained")
    if pretrained:
        out["base"] = read_metrics(line.store.load(pretrained, verify=False).path / "metrics.jsonl")
    if "train" in made:
        own = read_metrics(made["train"].path / "metrics.jsonl")
        begun = own[0]["step"] if own else float("inf")
        before = read_metrics(made["sweep"].path / "winner.jsonl") if "sweep" in made else []
        out["train"] = [m for m in before if m["step"] < begun] + own
    return out


def _trials(made: dict[str, Any]) -> list[dict[str, Any]]:
    if "sweep" not in made:
        return []
    trials: list[dict[str, Any]] = read_json(made["sweep"].path / "trials.json")
    return trials


def _evaluation(line: Line, made: dict[str, Any]) -> dict[str, Any]:
    if "evaluate" not in made:
        return {}
    evaluation: Artifact = made["evaluate"]
    parents = evaluation.manifest.parents
    base, tuned = (
        read_scores(line.store.load(parents[f"{k}_scores"], verify=False)) for k in ("base", "tuned")
    )
    return {"base": base, "tuned": tuned, **{k: evaluation.facts[k] for k in ("compare", "gates")}}
