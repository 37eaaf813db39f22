"""Memory figures follow what the process holds, and a try at a training has a number."""

from __future__ import annotations

import json
from pathlib import Path

from tunewright.train.memory import memory_figures
from tunewright.train.worker import next_attempt

MIB = 1024**2
SLACK_GIB = 0.005
"""The kernel's count of pages in use may be some hundred behind."""


def test_memory_in_use_rises_and_falls_and_the_peak_stays() -> None:
    before = memory_figures()
    held = bytearray(b"x") * (200 * MIB)
    during = memory_figures()
    assert len(held) == 200 * MIB
    del held
    after = memory_figures()
    assert during["rss_gib"] - before["rss_gib"] > 0.15 < during["rss_gib"] - after["rss_gib"]
    assert after["peak_rss_gib"] > during["rss_gib"] - SLACK_GIB and during["rss_gib"] > 0.1
    assert before["peak_rss_gib"] >= before["rss_gib"]


def test_each_try_at_a_training_has_the_next_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert next_attempt(path) == 1
    rows = [{"step": 10, "attempt": 1}, {"step": 20, "attempt": 2}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 30, "att', encoding="utf-8")
    assert next_attempt(path) == 3
