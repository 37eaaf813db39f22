"""The whole line for objectives with a head: rows to a registered version that plain loaders open."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_runs import newborn_base, small_run, write_run
from tunewright.config import load_run
from tunewright.pipeline import run_line
from tunewright.train.worker import read_metrics

pytestmark = pytest.mark.cluster

WORDS = ("red", "green", "small", "round", "cheap", "heavy")
THINGS = ("box", "lamp", "chair", "ticket", "bottle")
CITIES = ("paris", "rome", "oslo")


def rows_of(objective: str, count: int = 120) -> list[dict[str, Any]]:
    chosen = random.Random(5)
    out: list[dict[str, Any]] = []
    for number in range(count):
        thing = f"{chosen.choice(WORDS)} {chosen.choice(THINGS)} number {number}"
        if objective == "classify":
            label = chosen.choice(("buy", "return"))
            out.append({"text": f"{thing}: I want to {label} it", "label": label})
        elif objective == "tag":
            city = chosen.choice(CITIES)
            words = [*thing.split(), "to", city]
            out.append({"tokens": words, "tags": ["O"] * (len(words) - 1) + ["B-city"]})
        else:
            answers = {"chosen": f"Yes, the {thing} is here.", "rejected": f"No {thing}, go away!"}
            out.append({"prompt": f"Do you have a {thing}?", **answers})
    return out


@pytest.mark.parametrize(
    ("objective", "labels", "figure"),
    [
        ("classify", ["buy", "return"], "eval_calibration_error"),
        ("tag", ["B-city", "O"], "eval_f1"),
        ("reward", ["score"], "eval_margin"),
    ],
)
def test_rows_become_a_registered_classifier(
    ray_cluster: None, tmp_path: Path, objective: str, labels: list[str], figure: str
) -> None:
    from tunewright.models.heads import load_classifier

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rows_of(objective)), encoding="utf-8")
    base = newborn_base(tmp_path / "base")
    run = small_run(base, tmp_path / "store", sweep=None, evaluate=None)
    run["data"] |= {"sources": [{"type": "jsonl", "path": str(rows)}], "pack": {"seq_len": 160}}
    run["train"] |= {"objective": objective, "max_steps": 3, "eval_steps": 2, "zero": {"stage": 3}}
    run["train"]["zero"]["stage3_param_persistence_threshold"] = 0
    summary = run_line(load_run(write_run(tmp_path / "run.yaml", run)), "register")
    assert summary["version"] == "small@v1"
    adapter = Path(summary["paths"]["adapter"])
    assert json.loads((adapter / "labels.json").read_text(encoding="utf-8")) == labels
    metrics = read_metrics(adapter.parent / "metrics.jsonl")
    assert [figure in step for step in metrics] == [False, True, True]
    model, names = load_classifier(base, adapter, torch.float32)
    ids = torch.arange(7)[None]
    with torch.no_grad():
        scores = model(input_ids=ids).logits
    assert list(names) == labels
    assert scores.shape == ((1, 7, 2) if objective == "tag" else (1, len(labels)))
