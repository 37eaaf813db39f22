"""Trainings of seconds on real Ray workers, and ways to disturb them at a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from loops import VOCABULARY, small_model, worker_spec
from tunewright.artifacts import MANIFEST, write_json
from tunewright.config import TrainConfig
from tunewright.data.rows import Document
from tunewright.data.shards import write_shard
from tunewright.train import heartbeat
from tunewright.train.heartbeat import read_pulses
from tunewright.train.worker import WorkerSpec, read_metrics

SEQ_LEN = 24
ROWS = 16


def training_spec(folder: Path, work: str = "work", **values: Any) -> WorkerSpec:
    """A training of the small model on random rows in `folder`, made once; `work` is its own folder."""
    if not (folder / "base").exists():
        _make(folder)
    config = TrainConfig.model_validate(
        {
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "logging_steps": 1,
            "precision": "fp32",
            "method": {"type": "lora", "rank": 4, "dropout": 0.3},
            **values,
        }
    )
    return worker_spec(folder, config, work, export=False)  # type: ignore[no-any-return]


def _make(folder: Path) -> None:
    small_model().save_pretrained(folder / "base")
    numbers = np.random.default_rng(1)
    for split, rows in (("train", ROWS), ("eval", 4)):
        (folder / "data" / split).mkdir(parents=True)
        documents = [
            Document(numbers.integers(0, VOCABULARY, SEQ_LEN).astype(np.int32), np.ones(SEQ_LEN, np.int8))
            for _ in range(rows)
        ]
        shard = folder / "data" / split / "shard-000.parquet"
        write_shard(shard, documents, [[n] for n in range(rows)], SEQ_LEN)
    write_json(folder / "data" / MANIFEST, {"config": {}})


@contextmanager
def after_steps(spec: WorkerSpec, *acts: tuple[int, Callable[[], None]]) -> Iterator[list[int]]:
    """While the block runs, do each thing once, when so many steps are written down; yields those done."""
    over = threading.Event()
    done: list[int] = []

    def wait() -> None:
        for count, act in acts:
            while len(losses_of(spec)) < count:
                if over.wait(0.02):
                    return
            act()
            done.append(count)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def losses_of(spec: WorkerSpec) -> dict[int, float]:
    """Step -> loss, as written down."""
    return {int(m["step"]): m["loss"] for m in read_metrics(Path(spec.work) / "metrics.jsonl")}


def worker_pid(spec: WorkerSpec, rank: int) -> int:
    """The process that is worker `rank` now."""
    (pulse,) = [p for p in read_pulses(Path(spec.work) / heartbeat.FOLDER) if p.rank == rank]
    return pulse.pid
