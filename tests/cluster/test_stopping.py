"""SIGTERM lets a training on real Ray workers finish its step and save, whoever gets it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ray_trainings import after_steps, losses_of, training_spec, worker_pid
from tunewright.errors import TrainError
from tunewright.train.checkpoint import latest_checkpoint
from tunewright.train.launch import run_workers
from tunewright.train.worker import WorkerSpec

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 200


@pytest.fixture
def spec(ray_cluster: None, tmp_path: Path) -> WorkerSpec:
    return training_spec(tmp_path, max_steps=STEPS, save_steps=STEPS)


def test_sigterm_to_the_driver_stops_after_a_step_and_the_next_start_goes_on(spec: WorkerSpec) -> None:
    stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with (
        after_steps(spec, (3, stop)),
        pytest.raises(TrainError, match="asked to stop after step .*, and has saved"),
    ):
        run_workers(spec)
    saved = latest_checkpoint(Path(spec.work) / "checkpoints")
    assert saved is not None
    assert 3 <= saved.step == max(losses_of(spec)) < STEPS
    assert not (Path(spec.work) / "stop").exists()
    run_workers(spec)
    assert list(losses_of(spec)) == list(range(1, STEPS + 1))


def test_sigterm_to_a_worker_loses_no_step(spec: WorkerSpec) -> None:
    with after_steps(spec, (3, lambda: os.kill(worker_pid(spec, 0), signal.SIGTERM))) as ended:
        run_workers(spec)
    assert ended == [3]
    assert list(losses_of(spec)) == list(range(1, STEPS + 1))
    names = {path.name for path in (Path(spec.work) / "checkpoints").glob("step-*")}
    assert len(names) == 2 and f"step-{STEPS:06d}" in names  # the other was saved on the signal
