"""Workers that die in the middle of preparing data lose no row and count none twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from data_desk import Desk, data_config, documents, shard_hashes, write_lines
from tiny_runs import newborn_base
from tunewright.artifacts import Artifact, Store
from tunewright.config import BaseModelConfig
from tunewright.data.prepare import prepare, prepare_plan
from tunewright.data.sources import chunks
from tunewright.data.support_desk import training_lines
from tunewright.models.base import register_folder

pytestmark = [pytest.mark.chaos, pytest.mark.cluster]
ROWS = 8_000
KILLS = 2


class Killer(threading.Thread):
    """SIGKILLs workers that prepare data, as the kernel does when memory is short."""

    def __init__(self, spill: Path):
        super().__init__(daemon=True)
        self.spill, self.killed, self.done = spill, 0, threading.Event()

    def run(self) -> None:
        seen = 0
        while self.killed < KILLS and not self.done.wait(0.02):
            written = len(list(self.spill.glob("*.parquet"))) if self.spill.is_dir() else 0
            if written > seen:  # in the middle: something is written and more is under way
                seen = written + 2
                self.killed += self._kill_one()

    def _kill_one(self) -> int:
        for process in psutil.Process().children(recursive=True):
            try:
                if process.name().startswith("ray::") and "MapBatches" in process.name():
                    os.kill(process.pid, signal.SIGKILL)
                    return 1
            except (psutil.Error, ProcessLookupError):
                continue
        return 0


def test_workers_killed_in_mid_run_lose_no_row_and_count_none_twice(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 150_000)
    store = Store(tmp_path / "store")
    base, _ = register_folder(store, BaseModelConfig(model=str(newborn_base(tmp_path / "base"))))
    lines = list(training_lines(ROWS, 3, 0.1))
    given = write_lines(tmp_path / "rows.jsonl", lines)
    desk = Desk(store, base, Artifact(tmp_path, None))  # type: ignore[arg-type]
    config = data_config(sources=[given])
    plan = prepare_plan(config, base)
    killer = Killer(store.root / "work" / f"data-{plan.id}" / "spill")
    killer.start()
    begun = time.monotonic()
    hurt = prepare(store, config, base, plan)
    killer.done.set()
    killer.join()
    assert killer.killed == KILLS, f"killed {killer.killed} workers in {time.monotonic() - begun:.1f} s"
    whole = desk.make(sources=[{**given, "system": None}], split={"eval": 0.1000000001})
    (entry,) = hurt.facts["funnel"]
    assert entry["read"] == entry["kept"] + entry["rejected"] + entry["duplicates"] == ROWS
    assert hurt.facts["funnel"][0] | {"source": ""} == whole.facts["funnel"][0] | {"source": ""}
    assert shard_hashes(hurt) == shard_hashes(whole)
    assert Counter(documents(hurt, "train")).total() == hurt.facts["train_documents"]
