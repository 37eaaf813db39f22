"""SIGKILL the driver in three stages; the same command goes on where it was."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_runs import newborn_base, small_run, start_line, write_run

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

WAIT_S = 300.0


def test_killed_in_data_sweep_and_training_the_line_goes_on(tmp_path: Path) -> None:
    base, store = newborn_base(tmp_path / "base"), tmp_path / "store"
    config = write_run(tmp_path / "run.yaml", small_run(base, store))

    kill_when(config, lambda: list(store.glob("work/data-*/tokenizer/tokenizer.json")))
    assert not list(store.glob("artifacts/data/*"))

    kill_when(config, lambda: list(store.glob("work/sweep-*/trials/trial-000/done.json")))
    (data,) = store.glob("artifacts/data/*/manifest.json")
    data_made = data.stat().st_mtime_ns
    (first_trial,) = store.glob("work/sweep-*/trials/trial-000")
    checkpoints = {p: p.stat().st_mtime_ns for p in first_trial.glob("checkpoints/*/manifest.json")}
    assert checkpoints, "a finished trial keeps its checkpoint"

    def training_has_saved() -> list[Path]:
        kept_trial_untouched(checkpoints)
        return list(store.glob("work/train-*/checkpoints/step-00000[5-7]"))

    kill_when(config, training_has_saved)
    (saved,) = store.glob("work/train-*")
    saved_step = max(int(p.name.split("-")[1]) for p in saved.glob("checkpoints/step-*"))

    text = finish(config)
    assert data.stat().st_mtime_ns == data_made
    assert "data       found" in text
    assert "sweep      found" in text
    (trained,) = store.glob("artifacts/train/*/manifest.json")
    facts = json.loads(trained.read_text())["facts"]
    assert facts["steps"] == 8
    assert facts["resumed_at_step"] >= saved_step > 4, "training went on from its own checkpoint"
    steps = [json.loads(line)["step"] for line in (trained.parent / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(5, 9)), "each step after the winner's checkpoint is there once"

    again = finish(config)
    assert again.count(" made ") == 0, "a finished run started again makes nothing"


def kept_trial_untouched(checkpoints: dict[Path, int]) -> None:
    for path, made in checkpoints.items():
        if path.exists():  # until the sweep is published
            assert path.stat().st_mtime_ns == made, "a finished trial was trained again"


def kill_when(config: Path, reached: Callable[[], list[Path]]) -> None:
    """Start the line and SIGKILL its driver as soon as `reached` finds something."""
    line = start_line(config, "--until", "register")
    try:
        deadline = time.monotonic() + WAIT_S
        while not reached():
            assert line.poll() is None, f"ended before it could be killed:\n{line.communicate()[0]}"
            assert time.monotonic() < deadline, "never came to the point where it is to be killed"
            time.sleep(0.02)
    finally:
        line.send_signal(signal.SIGKILL)
        line.communicate()


def finish(config: Path) -> str:
    line = start_line(config, "--until", "register")
    text, _ = line.communicate(timeout=WAIT_S)
    assert line.returncode == 0, text
    return text
