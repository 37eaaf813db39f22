"""Signs of life of a training's workers, and the watch over them that names one that hangs.

Each worker keeps a small file in the work folder, visible from all nodes: how far its training thread
came and where in the code it is now, and a count that goes on while the process runs at all. The watch
measures how long neither changes by its own clock, so that the clocks of the nodes do not matter.
Knows nothing of Ray: whoever watches ends the process.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal

from tunewright.artifacts import explained

Doing = Literal["beginning", "training", "evaluating", "saving", "ending"]

FOLDER = "heartbeats"
PERIOD_S = 1.0
RECORD_BYTES = 1024
"""Each file keeps its size, and is written in place: a full disk does not make a worker look dead."""
PATIENCE_OUTSIDE_STEPS = 6.0
"""Loading, the first step, evaluations and saves are given so many times as long as a step."""
PATIENCE_PER_MOVE = 10.0
"""A worker may take so many times as long as the longest wait before, however short the bound."""
LONGEST_LOOK_S = 5.0
"""A watch that was itself stopped counts no more than this of the time."""
PACKAGE = str(Path(__file__).parents[1])
OTHERS = ("torch/distributed/", "deepspeed/comm/", "deepspeed/runtime/comm/", "ray/train/")
"""Code in which a worker waits for the others."""


@dataclass(frozen=True)
class Pulse:
    """What a worker's file says.

    Attributes:
        started: when the process began, in seconds of its host's clock; with `pid` it names the process.
        moves: how often the training thread got somewhere.
        ticks: how often the process wrote the file.
        waiting: the training thread is in code that waits for the other workers.
        where: the line of ours that the training thread is in.
    """

    rank: int
    world: int
    host: str
    node: str
    pid: int
    started: float
    doing: Doing = "beginning"
    step: int = 0
    moves: int = 0
    ticks: int = 0
    waiting: bool = False
    where: str = ""


@dataclass
class _Moves:
    doing: Doing = "beginning"
    step: int = 0
    count: int = 0


_moves = _Moves()


def moved(doing: Doing | None = None, step: int | None = None) -> None:
    """Tell that this process's training got somewhere; costs next to nothing.

    Args:
        doing, step: what it does now, and in which step; as before when left out.
    """
    _moves.doing = doing or _moves.doing
    _moves.step = _moves.step if step is None else step
    _moves.count += 1


class Heartbeat:
    """While the block runs, this thread's progress and the process's life are in `folder`.

    Raises:
        StoreError: the file cannot be made.
    """

    def __init__(self, folder: Path, rank: int, world: int, node: str = "", period_s: float = PERIOD_S):
        import psutil

        self.path, self.period_s = folder / f"rank-{rank}.json", period_s
        process = psutil.Process()
        self._pulse = Pulse(rank, world, socket.gethostname(), node, process.pid, process.create_time())
        self._thread_id = threading.get_ident()
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        _moves.doing, _moves.step, _moves.count = "beginning", 0, 0
        with explained(f"heartbeat {self.path}"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)  # of the one before, which may not have ended yet
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
            self._write()
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._beating.join()
        mine = os.fstat(self._file).st_ino
        os.close(self._file)
        with suppress(FileNotFoundError):
            if self.path.stat().st_ino == mine:  # and not that of one that came after
                self.path.unlink()

    def _beat(self) -> None:
        while not self._done.wait(self.period_s):
            try:
                self._write()
            except OSError:  # training does not end for want of a sign of life; the watch may end it
                continue

    def _write(self) -> None:
        frames = sys._current_frames()
        where, waiting = _place(frames.pop(self._thread_id, None))
        # Backward passes on a GPU run in threads of autograd's, and ZeRO's collectives in them.
        waiting = waiting or any(_place(frame)[1] for frame in frames.values())
        self._pulse = replace(
            self._pulse,
            doing=_moves.doing,
            step=_moves.step,
            moves=_moves.count,
            ticks=self._pulse.ticks + 1,
            waiting=waiting,
            where=where,
        )
        record = json.dumps(asdict(self._pulse)).encode()
        os.pwrite(self._file, record.ljust(RECORD_BYTES), 0)


def _place(frame: FrameType | None) -> tuple[str, bool]:
    """The innermost line of ours, and whether the code that it called waits for other workers."""
    waiting = False
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return f"{Path(file).relative_to(PACKAGE)}:{frame.f_lineno}, {frame.f_code.co_name}"[
                -200:
            ], waiting
        waiting = waiting or any(part in file.replace(os.sep, "/") for part in OTHERS)
        frame = frame.f_back
    return "", waiting


def read_pulses(folder: Path) -> list[Pulse]:
    """What the workers' files say; one that is being written is left out."""
    out = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            out.append(Pulse(**json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError):
            continue
    return out


@dataclass(frozen=True)
class Hung:
    """A worker that stood still for too long; as a string, a sentence for the user.

    Attributes:
        seconds: for how long.
        stopped: its process does not run at all, not only its training.
        all_wait: every worker waits for the others.
    """

    pulse: Pulse
    seconds: float
    stopped: bool
    all_wait: bool

    def __str__(self) -> str:
        pulse = self.pulse
        if self.stopped:
            why = "its process does not run"
        elif self.all_wait:
            why = "all workers wait for each other"
        else:
            why = f"it is in {pulse.where or 'code of a library'}"
        return (
            f"worker {pulse.rank} of {pulse.world} (pid {pulse.pid} on {pulse.host}) has not moved for "
            f"{self.seconds:.0f} s at step {pulse.step}, {pulse.doing}: {why}"
        )


@dataclass
class _Seen:
    """What the watch knows of a worker.

    Attributes:
        still_s, silent_s: how long since it moved, and since its process gave a sign of life.
        longest_s: the longest wait between two moves within steps.
    """

    pulse: Pulse
    order: int
    still_s: float = 0.0
    silent_s: float = 0.0
    longest_s: float = 0.0
    first_step: int | None = None

    def update(self, pulse: Pulse, gap: float) -> None:
        before, self.pulse = self.pulse, pulse
        self.still_s += gap
        self.silent_s = 0.0 if pulse.ticks != before.ticks else self.silent_s + gap
        if pulse.moves != before.moves:
            if before.doing == pulse.doing == "training" and not self.in_first_step:
                self.longest_s = max(self.longest_s, self.still_s)
            self.still_s = 0.0
        if pulse.doing == "training" and self.first_step is None:
            self.first_step = pulse.step

    @property
    def in_first_step(self) -> bool:
        return self.first_step is None or self.pulse.step == self.first_step

    def bound_s(self, least_s: float) -> float:
        bound = max(least_s, PATIENCE_PER_MOVE * self.longest_s)
        in_steps = self.pulse.doing == "training" and not self.in_first_step
        return bound if in_steps else PATIENCE_OUTSIDE_STEPS * bound


@dataclass
class HangWatch:
    """Looks at the heartbeats in a folder, again and again.

    Args:
        least_s: within steps, a worker that stands still for less does not hang.
    """

    folder: Path
    least_s: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[tuple[int, int, float], _Seen] = field(default_factory=dict)
    _looked: float | None = None
    _groups: int = 0

    def look(self) -> Hung | None:
        """The worker that holds up the others, once one has stood still for too long."""
        now = self.clock()
        gap = 0.0 if self._looked is None else min(now - self._looked, LONGEST_LOOK_S)
        self._looked = now
        pulses = {(p.rank, p.pid, p.started): p for p in read_pulses(self.folder)}
        self._seen = {key: seen for key, seen in self._seen.items() if key in pulses}
        for key, pulse in pulses.items():
            if key in self._seen:
                self._seen[key].update(pulse, gap)
            else:
                self._groups += 1
                self._seen[key] = _Seen(pulse, self._groups)
        if not self._seen:
            return None
        # Files of a larger group that was killed may still lie there: the newest worker knows how many count.
        world = max(self._seen.values(), key=lambda seen: seen.order).pulse.world
        group = [seen for seen in self._seen.values() if seen.pulse.rank < world]
        if all(seen.still_s <= seen.bound_s(self.least_s) for seen in group):
            return None
        return _culprit(group, self.least_s)

    def forget(self, hung: Hung) -> None:
        """Take a worker that has ended off the watch."""
        (self.folder / f"rank-{hung.pulse.rank}.json").unlink(missing_ok=True)


def _culprit(group: list[_Seen], least_s: float) -> Hung:
    """The one whose process is silent, else one that does not wait for others, else the one behind."""

    def silent(seen: _Seen) -> bool:
        return seen.silent_s > min(least_s, seen.still_s) / 2

    worst = min(
        group, key=lambda s: (not silent(s), s.pulse.waiting, s.pulse.step, s.pulse.moves, s.pulse.rank)
    )
    pulse = worst.pulse
    if silent(worst):  # its file is older than its end; those who wait for it know where it should be
        furthest = max((seen.pulse for seen in group), key=lambda p: (p.step, p.moves))
        pulse = replace(pulse, step=furthest.step, doing=furthest.doing)
    return Hung(pulse, worst.still_s, silent(worst), all(seen.pulse.waiting for seen in group))


def end_process(pid: int, started: float) -> bool:
    """SIGKILL the process on this host that began then; False when it is gone, or another has its number.

    A process that is stopped ends too.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - started) > 1.0:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
