"""SIGTERM lets a training on real Ray workers finish its step and save, whoever gets it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from loops import VOCABULARY, small_model
from tunewright.artifacts import MANIFEST, write_json
from tunewright.config import TrainConfig
from tunewright.data.rows import Document
from tunewright.data.shards import write_shard
from tunewright.errors import TrainError
from tunewright.train.checkpoint import latest_checkpoint
from tunewright.train.launch import run_workers
from tunewright.train.worker import WorkerSpec, read_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 200
SEQ_LEN = 24


@pytest.fixture
def spec(ray_cluster: None, tmp_path: Path) -> WorkerSpec:
    small_model().save_pretrained(tmp_path / "base")
    numbers = np.random.default_rng(1)
    for split, rows in (("train", 16), ("eval", 4)):
        (tmp_path / "data" / split).mkdir(parents=True)
        documents = [
            Document(numbers.integers(0, VOCABULARY, SEQ_LEN).astype(np.int32), np.ones(SEQ_LEN, np.int8))
            for _ in range(rows)
        ]
        write_shard(
            tmp_path / "data" / split / "shard-000.parquet", documents, [[n] for n in range(rows)], SEQ_LEN
        )
    write_json(tmp_path / "data" / MANIFEST, {"config": {}})
    config = {"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2, "logging_steps": 1}
    return WorkerSpec(
        config=TrainConfig.model_validate({**config, "precision": "fp32", "save_steps": STEPS}),
        seed=1,
        identity="the same",
        base=str(tmp_path / "base"),
        data=str(tmp_path / "data"),
        work=str(tmp_path / "work"),
        stop_step=None,
        start=None,
        export=False,
        make_scorer=None,
    )


@contextmanager
def after_steps(spec: WorkerSpec, count: int, act: Callable[[], None]) -> Iterator[None]:
    """While the block runs, do something once, when so many steps are written down."""
    done = threading.Event()

    def wait() -> None:
        while not done.wait(0.05):
            if len(read_metrics(Path(spec.work) / "metrics.jsonl")) >= count:
                act()
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def steps_of(spec: WorkerSpec) -> list[int]:
    return [int(m["step"]) for m in read_metrics(Path(spec.work) / "metrics.jsonl")]


def test_sigterm_to_the_driver_stops_after_a_step_and_the_next_start_goes_on(spec: WorkerSpec) -> None:
    stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with (
        after_steps(spec, 3, stop),
        pytest.raises(TrainError, match="asked to stop after step .*, and has saved"),
    ):
        run_workers(spec)
    saved = latest_checkpoint(Path(spec.work) / "checkpoints")
    assert saved is not None
    assert 3 <= saved.step == steps_of(spec)[-1] < STEPS
    assert not (Path(spec.work) / "stop").exists()
    run_workers(spec)
    assert steps_of(spec) == list(range(1, STEPS + 1))


def test_sigterm_to_a_worker_loses_no_step(spec: WorkerSpec) -> None:
    ended: list[float] = []

    def end_worker() -> None:
        workers = [
            process
            for process in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in " ".join(process.cmdline() or [process.name()])
        ]
        assert workers
        workers[0].send_signal(signal.SIGTERM)
        ended.append(time.monotonic())

    with after_steps(spec, 3, end_worker):
        run_workers(spec)
    assert ended
    assert steps_of(spec) == list(range(1, STEPS + 1))
    names = {path.name for path in (Path(spec.work) / "checkpoints").glob("step-*")}
    assert len(names) == 2 and f"step-{STEPS:06d}" in names  # the other was saved on the signal
