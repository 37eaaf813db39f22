"""Workers that are killed or stopped, checkpoints that are damaged: the loss curve is the same to the bit."""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path

import pytest
import torch

from ray_trainings import after_steps, losses_of, training_spec, worker_pid
from tunewright.train.checkpoint import latest_checkpoint
from tunewright.train.launch import run_workers
from tunewright.train.worker import WorkerSpec

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 60
HANG_MINUTES = 0.2


@pytest.fixture(scope="module")
def folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def spec_of(folder: Path, work: str, **values: object) -> WorkerSpec:
    return training_spec(folder, work, workers=2, max_steps=STEPS, save_steps=7, **values)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> WorkerSpec:
    spec = spec_of(folder, "undisturbed")
    run_workers(spec)
    assert list(losses_of(spec)) == list(range(1, STEPS + 1))
    return spec


def assert_the_same(spec: WorkerSpec, undisturbed: WorkerSpec) -> None:
    assert losses_of(spec) == losses_of(undisturbed)
    ends = [latest_checkpoint(Path(each.work) / "checkpoints") for each in (spec, undisturbed)]
    (one, other) = [end.tensors() for end in ends if end is not None]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_killed_workers_and_a_damaged_checkpoint_change_nothing(
    folder: Path, undisturbed: WorkerSpec
) -> None:
    numbers = random.Random(5)
    spec = spec_of(folder, "killed")
    told: list[str] = []
    # What Ray itself remembers of an earlier attempt is not read.
    snapshot = Path(spec.work) / "ray" / "attempt-1" / "checkpoint_manager_snapshot.json"
    snapshot.parent.mkdir(parents=True)
    snapshot.write_text('{"checkpoint_results": [{"checkpoint_dir_name"', encoding="utf-8")

    def kill() -> None:
        os.kill(worker_pid(spec, numbers.randrange(2)), signal.SIGKILL)

    def damage_and_kill() -> None:
        saved = latest_checkpoint(Path(spec.work) / "checkpoints")
        assert saved is not None
        os.truncate(saved.path / "trainable.safetensors", 100)
        kill()

    # Behind the second checkpoint and well before the end.
    first, second = sorted(numbers.sample(range(16, STEPS - 15), 2))
    with after_steps(spec, (first, kill), (second, damage_and_kill)) as killed:
        run_workers(spec, tell=told.append)
    assert killed == [first, second]
    (sentence,) = told
    assert "the one before it is used" in sentence and "does not match its SHA-256" in sentence
    assert_the_same(spec, undisturbed)


def test_a_worker_that_is_stopped_is_named_and_ended_and_training_goes_on(
    folder: Path, undisturbed: WorkerSpec
) -> None:
    spec = spec_of(folder, "stopped", hang_minutes=HANG_MINUTES)
    told: list[str] = []
    pids: list[int] = []

    def stop() -> None:
        pids.append(worker_pid(spec, 1))
        os.kill(pids[0], signal.SIGSTOP)

    with after_steps(spec, (20, stop)):
        run_workers(spec, tell=told.append)
    (sentence,) = told
    assert sentence.startswith(f"worker 1 of 2 (pid {pids[0]} on ")
    assert re.search(r" at step 2\d, training: its process does not run\. It was ended", sentence), sentence
    assert not Path(f"/proc/{pids[0]}").exists()
    assert_the_same(spec, undisturbed)
