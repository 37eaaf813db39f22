"""The line on real models and data that nobody here made, by configuration only."""

from pathlib import Path
from typing import Any

import pytest

from tiny_runs import ROOT, small_run, write_run
from tunewright.config import load_run
from tunewright.pipeline import run_line

SHARED = ROOT.parent / "shared"
STORIES, BABY = SHARED / "models" / "stories260k-hf", SHARED / "models" / "babyllama105-hf"

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(not STORIES.is_dir(), reason="needs the real models and data in ../shared"),
]


def source(path: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "path": str(SHARED / "data" / path), "max_rows": 120, **more}


def run_on(tmp_path: Path, base: Path, rows: dict[str, Any], seq_len: int, **train: Any) -> dict[str, Any]:
    """Data, two workers' training and, where there is a task, evaluation and registration."""
    run = small_run(base, tmp_path / "store", sweep=None)
    run["data"] |= {"sources": [rows], "pack": {"seq_len": seq_len}, "rules": {"max_bad_fraction": 0.9}}
    run["train"] |= {"max_steps": 2, **train}
    run["evaluate"] = {"tasks": []}
    if rows.get("format") != "text":
        held_out = {**rows, "max_rows": 3}
        run["evaluate"] = {"tasks": [{"name": "task", "source": held_out, "max_new_tokens": 4}]}
    config = write_run(tmp_path / "run.yaml", run)
    return run_line(load_run(config), "register")


def check(summary: dict[str, Any]) -> None:
    (funnel,) = summary["data"]["funnel"]
    assert funnel["read"] == funnel["kept"] + funnel["rejected"] + funnel["duplicates"] > 0
    assert summary["data"]["train_rows"] >= 4
    assert summary["version"] == "small@v1"
    assert Path(summary["paths"]["adapter"], "adapter_model.safetensors").is_file()


def test_stories260k_on_gsm8k(ray_cluster: None, tmp_path: Path) -> None:
    columns = {"prompt": "question", "completion": "answer"}
    check(run_on(tmp_path, STORIES, source("gsm8k/train.jsonl", "jsonl", columns=columns), 512))


def test_stories260k_on_banking77_csv(ray_cluster: None, tmp_path: Path) -> None:
    import csv

    with (SHARED / "data" / "banking77" / "train.csv").open(encoding="utf-8") as file:
        text, label = next(csv.reader(file))
    columns = {"prompt": text, "completion": label}
    check(run_on(tmp_path, STORIES, source("banking77/train.csv", "csv", columns=columns), 256))


def test_babyllama105_on_dolly_conversations(ray_cluster: None, tmp_path: Path) -> None:
    check(run_on(tmp_path, BABY, source("dolly-open-qa/chat.jsonl", "jsonl"), 256))


def test_stories260k_on_wnut17_tags(ray_cluster: None, tmp_path: Path) -> None:
    columns = {"prompt": "tokens", "completion": "ner_tags"}
    check(run_on(tmp_path, STORIES, source("wnut17/train.jsonl", "jsonl", columns=columns), 512))


def test_babyllama105_pretrains_on_tinyshakespeare(ray_cluster: None, tmp_path: Path) -> None:
    rows = source("tinyshakespeare/input.txt", "text", format="text")
    check(run_on(tmp_path, BABY, rows, 128, objective="pretrain"))
