"""Who holds up the others is found out, and named with where it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from loops import free_port, joined
from ray_trainings import training_spec
from tunewright.train import heartbeat
from tunewright.train.heartbeat import HangWatch, Heartbeat, Pulse, end_process, moved, read_pulses
from tunewright.train.launch import Watcher, _own_error

LEAST_S = 10.0


class Workers:
    """The heartbeats of some workers, written by hand, and a clock that the watch looks at."""

    def __init__(self, folder: Path, world: int = 2):
        self.folder, self.now = folder, 0.0
        self.watch = HangWatch(folder, LEAST_S, clock=lambda: self.now)
        self.pulses = {rank: Pulse(rank, world, f"host{rank}", "", 100 + rank, 1.0) for rank in range(world)}
        self.write()

    def write(self) -> None:
        for rank, pulse in self.pulses.items():
            (self.folder / f"rank-{rank}.json").write_text(json.dumps(asdict(pulse)), encoding="utf-8")

    def change(self, rank: int, **values: Any) -> None:
        self.pulses[rank] = Pulse(**{**asdict(self.pulses[rank]), **values})

    def step(self, step: int, seconds: float = 1.0) -> None:
        """Everybody gets to a step, after so long."""
        for rank, pulse in self.pulses.items():
            self.change(rank, doing="training", step=step, moves=pulse.moves + 1)
        assert self.wait(seconds) is None

    def wait(self, seconds: float, silent: tuple[int, ...] = ()) -> heartbeat.Hung | None:
        """So much time goes by, and nobody moves; processes that are not silent tick."""
        hung = None
        for _ in range(round(seconds)):
            self.now += 1.0
            for rank, pulse in self.pulses.items():
                if rank not in silent:
                    self.change(rank, ticks=pulse.ticks + 1)
            self.write()
            hung = hung or self.watch.look()
        return hung


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    made = Workers(tmp_path)
    for step in (1, 2, 3):
        made.step(step)
    return made


def test_who_moves_does_not_hang(workers: Workers) -> None:
    for step in range(4, 40):
        workers.step(step)
    assert workers.wait(LEAST_S - 1) is None


def test_a_process_that_does_not_run_is_the_one(workers: Workers) -> None:
    workers.change(0, waiting=True)
    hung = workers.wait(LEAST_S + 3, silent=(1,))
    assert hung is not None
    assert str(hung) == (
        "worker 1 of 2 (pid 101 on host1) has not moved for 11 s at step 3, training: "
        "its process does not run"
    )


def test_the_step_of_a_silent_process_is_that_of_those_who_wait_for_it(workers: Workers) -> None:
    workers.change(0, waiting=True, step=7, moves=9)
    hung = workers.wait(LEAST_S + 3, silent=(1,))
    assert hung is not None
    assert (hung.pulse.rank, hung.pulse.step) == (1, 7)


def test_a_worker_that_does_not_wait_for_others_is_the_one_they_wait_for(workers: Workers) -> None:
    workers.change(0, waiting=True, where="train/group.py:40, sum")
    workers.change(1, where="data/rows.py:12, take")
    hung = workers.wait(LEAST_S + 3)
    assert hung is not None
    assert str(hung).endswith("worker 1 of 2 (pid 101 on host1) has not moved for 11 s at step 3, training: "
                              "it is in data/rows.py:12, take")  # fmt: skip


def test_when_all_wait_for_each_other_it_is_said(workers: Workers) -> None:
    workers.change(0, waiting=True, moves=9)
    workers.change(1, waiting=True, moves=8)
    hung = workers.wait(LEAST_S + 3)
    assert hung is not None
    assert hung.pulse.rank == 1, "the one behind"
    assert str(hung).endswith("all workers wait for each other")


def test_slow_steps_make_the_bound_longer(workers: Workers) -> None:
    workers.step(4, seconds=4)
    workers.step(5)
    assert workers.wait(38) is None, "ten times the longest wait"
    assert workers.wait(6) is not None


@pytest.mark.parametrize("doing", ["beginning", "evaluating", "saving", "ending"])
def test_what_is_not_a_step_takes_longer(workers: Workers, doing: str) -> None:
    for rank in (0, 1):
        workers.change(rank, doing=doing, moves=100)
    assert workers.wait(5 * LEAST_S) is None
    assert workers.wait(LEAST_S + 3) is not None


def test_the_first_step_takes_longer(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    workers.step(1)
    assert workers.wait(5 * LEAST_S) is None
    assert workers.wait(LEAST_S + 3) is not None


def test_files_of_a_larger_group_before_this_one_do_not_count(workers: Workers) -> None:
    alone = Pulse(0, 1, "host0", "", 200, 2.0, doing="training", step=4, moves=1)
    workers.pulses = {0: alone}
    for step in range(5, 5 + 3 * round(LEAST_S)):
        workers.step(step)
    assert (workers.folder / "rank-1.json").exists()


def test_a_watch_that_was_stopped_itself_ends_nobody(workers: Workers) -> None:
    workers.now += 1000.0
    assert workers.watch.look() is None


def test_a_worker_that_was_ended_is_not_named_again(workers: Workers) -> None:
    hung = workers.wait(LEAST_S + 3, silent=(1,))
    assert hung is not None
    workers.watch.forget(hung)
    del workers.pulses[1]
    workers.step(4)


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_heartbeat_tells_where_training_is_and_leaves_nothing(tmp_path: Path) -> None:
    def pulse() -> Pulse:
        return read_pulses(tmp_path)[0]

    with Heartbeat(tmp_path, 1, 2, "n", period_s=0.01):
        assert (pulse().rank, pulse().world, pulse().node, pulse().pid) == (1, 2, "n", os.getpid())
        moved("training", 3)
        moved()
        until(lambda: pulse().moves == 2)
        assert (pulse().doing, pulse().step) == ("training", 3)
        before = pulse().ticks
        until(lambda: pulse().ticks > before)
        assert pulse().moves == 2
        assert (tmp_path / "rank-1.json").stat().st_size == heartbeat.RECORD_BYTES
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_ends_late_takes_nothing_from_the_one_that_came_after(tmp_path: Path) -> None:
    late = Heartbeat(tmp_path, 0, 2, "late")
    late.__enter__()
    with Heartbeat(tmp_path, 0, 2, "next"):
        late.__exit__(None, None, None)
        assert [pulse.node for pulse in read_pulses(tmp_path)] == ["next"]
    assert list(tmp_path.iterdir()) == []


def hang(waits: bool, folder: str, port: int) -> None:
    """For a process of its own: a worker that waits for the other one, or that one, which never comes."""
    import torch

    from tunewright.train.group import Group

    rank = 0 if waits else 1
    with joined(rank, 2, port), Heartbeat(Path(folder), rank, 2, period_s=0.05):
        moved("training", 5)
        if waits:
            Group(torch.device("cpu")).sum([1.0])
        else:
            time.sleep(100)


def test_waiting_for_others_is_told_from_hanging_and_a_stopped_process_ends(tmp_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c",
             f"import test_heartbeat; test_heartbeat.hang({waits}, {str(tmp_path)!r}, {port})"],
            env={**environment, "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank, waits in enumerate([True, False])
    ]  # fmt: skip
    try:
        until(lambda: [p.waiting for p in read_pulses(tmp_path) if p.step == 5] == [True, False], 60)
        waiting, hanging = read_pulses(tmp_path)
        assert waiting.where.startswith("train/group.py:") and waiting.where.endswith(", sum")
        assert hanging.where == "", "the test's own code is none of ours"
        running[1].send_signal(signal.SIGSTOP)
        assert not end_process(hanging.pid, hanging.started - 100.0), "another process of that number"
        assert running[1].poll() is None
        assert end_process(hanging.pid, hanging.started)
        assert running[1].wait(10) == -signal.SIGKILL
        assert not end_process(hanging.pid, hanging.started)
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_damaged_checkpoints_are_told_once_each_and_those_of_an_earlier_try_are_not(tmp_path: Path) -> None:
    spec = training_spec(tmp_path, max_steps=1, hang_minutes=None)
    told: list[str] = []
    checkpoints = Path(spec.work) / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "damaged.txt").write_text("of yesterday\n", encoding="utf-8")
    watcher = Watcher(spec, told.append)
    assert watcher.hangs is None, "nobody is ended when the bound is null"
    watcher.look()
    assert told == []
    with (checkpoints / "damaged.txt").open("a", encoding="utf-8") as file:
        file.write("step-000005-0: cut off\n")
    watcher.look()
    watcher.look()
    (sentence,) = told
    assert sentence.endswith("the one before it is used. step-000005-0: cut off")


def test_a_training_whose_workers_kept_hanging_fails_with_the_name() -> None:
    pulse = Pulse(1, 2, "host1", "", 101, 1.0, doing="training", step=3)
    error = _own_error(RuntimeError("worker died"), [heartbeat.Hung(pulse, 11.0, True, False)])
    assert str(error).startswith("training failed: worker 1 of 2 (pid 101 on host1) has not moved for 11 s")
    assert "train.max_failures is used up" in str(error)
    assert str(_own_error(RuntimeError("worker died"), [])) == "training failed: worker died"
