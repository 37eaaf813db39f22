"""What the stages of a run share: the run, its store, what was made or found, and what a person sees."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

from tunewright.artifacts import Artifact, Plan, Store, explain_os_error
from tunewright.config import RunConfig
from tunewright.errors import StoreError
from tunewright.train.sinks import Sinks, check_sinks

FAULT_VARIABLE = "TUNEWRIGHT_FAULT"
"""Set to `STAGE:started` to kill the driver there; for tests of resuming."""
PROGRESS = re.compile(r"\[ *\d+:\d\d\.\d\] {12}(?! |trial )")
"""How a line of progress begins: indented under its stage. Those of a sweep's trials are results."""
NOT_SHOWN = {
    "step", "total_steps", "epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "eta_s", "attempt",
    "rollbacks", "loss_scale", "overflows", "rss_gib", "peak_rss_gib", "cuda_gib", "peak_cuda_gib",
}  # fmt: skip
"""Figures of training that are shown in a way of their own, or not; the others are an evaluation's."""
MOST_SHOWN = 4
"""Figures of an evaluation on one line; the metrics file has all."""


@dataclass
class StageRecord:
    """How one stage went."""

    name: str
    seconds: float
    state: str
    artifact: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seconds": round(self.seconds, 2),
            "state": self.state,
            "artifact": self.artifact,
        }


@dataclass
class Line:
    """A run on its way from rows to an endpoint."""

    run: RunConfig
    store: Store
    out: TextIO = field(default_factory=lambda: sys.stdout)
    started: float = field(default_factory=time.monotonic)
    records: list[StageRecord] = field(default_factory=list)
    _shown: float = 0.0
    _attempt: int = 1

    def __post_init__(self) -> None:
        """Raises `ConfigError` when figures are to go where nothing installed here can send them."""
        check_sinks(self.run.train)
        self.sinks = Sinks(self.run, self.store.root / "runs" / self.run.name)
        self.out = in_place(self.out)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """One line for the person who watches, with the time since the start."""
        minutes, seconds = divmod(self.elapsed, 60)
        print(f"[{int(minutes):2d}:{seconds:04.1f}] {text}", file=self.out, flush=True)

    def live(self, text: str, every_s: float = 2.0) -> None:
        """A line of progress; those that come too fast are left out."""
        now = time.monotonic()
        if now - self._shown >= every_s:
            self._shown = now
            self.say(f"           {text}")

    def make(
        self, name: str, plan: Plan, build: Callable[[], Artifact], tell: Callable[[Artifact], str]
    ) -> Artifact:
        """The artifact of `plan`: found in the store, or built now under its lock.

        Raises:
            StoreLocked: another run is making the same artifact.
            StoreError: the disk is full or read-only; what is finished is kept.
        """
        begun = time.monotonic()
        artifact = self.store.find(plan)
        state = "found"
        if artifact is None:
            with self.store.lock(f"{plan.kind}-{plan.id}", f"run {self.run.name}, stage {name}"):
                artifact = self.store.find(plan)
                if artifact is None:
                    state = "made"
                    self.say(f"{name:<10} ...")
                    _fault(f"{name}:started")
                    try:
                        artifact = build()
                    except OSError as error:
                        raise StoreError(f"stage {name}: {explain_os_error(error)}") from error
        self.record(name, time.monotonic() - begun, state, artifact.ref, tell(artifact))
        return artifact

    def record(self, name: str, seconds: float, state: str, artifact: str, told: str) -> None:
        self.records.append(StageRecord(name, seconds, state, artifact))
        self.say(f"{name:<10} {state:<5} {told}  ({seconds:.1f} s)")

    def training_line(self, metrics: dict[str, float], label: str = "") -> None:
        """Where a training is and how it goes; figures of the run's own go to its sinks too."""
        if not label:
            self.sinks.add(metrics)
        attempt = int(metrics.get("attempt", 1))
        if attempt > self._attempt:
            self.say(f"           {label}goes on from its newest checkpoint, try {attempt}")
        self._attempt = attempt
        self.live(f"{label}{training_figures(metrics)}", every_s=0.0 if evaluation_of(metrics) else 2.0)


def training_figures(metrics: Mapping[str, float]) -> str:
    """`step 40/300  loss 1.061  lr 8.03e-04  7,644 tokens/s  1.2 GiB  26 s left`, and an evaluation's."""
    parts = [f"step {int(metrics['step'])}/{int(metrics['total_steps'])}", f"loss {metrics['loss']:.3f}"]
    parts += [f"{k.replace('_', ' ')} {v:.3f}" for k, v in list(evaluation_of(metrics).items())[:MOST_SHOWN]]
    parts += [f"lr {metrics['lr']:.2e}", f"{metrics['tokens_per_s']:,.0f} tokens/s"]
    memory = metrics.get("peak_cuda_gib", metrics.get("peak_rss_gib"))
    if memory is not None:
        parts.append(f"{memory:.1f} GiB")
    if metrics.get("rollbacks"):
        parts.append(f"rollbacks {int(metrics['rollbacks'])}")
    return "  ".join([*parts, f"{_brief(metrics['eta_s'])} left"])


def evaluation_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures of an evaluation among those of a step; empty if there was none."""
    return {k: v for k, v in metrics.items() if k not in NOT_SHOWN and not k.startswith("loss/")}


def _brief(seconds: float) -> str:
    """`26 s`, `3 min`, `2 h 5 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def in_place(out: TextIO) -> TextIO:
    """`out`, or, if it is a terminal, one in which a line of progress takes the last one's place."""
    terminal = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return cast(TextIO, InPlace(out)) if terminal else out


class InPlace:
    """A terminal in which a line of progress takes the place of the one before it."""

    def __init__(self, out: TextIO):
        self._out, self._rest, self._progress = out, "", False

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            progress = PROGRESS.match(line) is not None
            if self._progress:
                self._out.write("\x1b[1A\r\x1b[2K")  # up, to its beginning, empty
            # One that ran over the edge would take two lines, of which one were left.
            self._out.write((line[: self._columns()] if progress else line) + "\n")
            self._progress = progress
        return len(text)

    def _columns(self) -> int:
        try:
            columns = os.get_terminal_size(self._out.fileno()).columns
        except OSError:
            columns = 0
        return (columns or 80) - 1

    def flush(self) -> None:
        if self._rest:
            self._out.write(self._rest)
            self._rest, self._progress = "", False
        self._out.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


@contextmanager
def quiet_libraries(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """The real stdout and stderr, while whatever libraries and Ray print goes to the file `log`.

    File descriptors are swapped, not Python objects: Ray's core and its threads write there too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    real = [os.dup(1), os.dup(2)]
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    out, err = (os.fdopen(os.dup(descriptor), "w", encoding="utf-8") for descriptor in real)
    try:
        yield out, err
    finally:
        for stream in (sys.stdout, sys.stderr, out, err):
            stream.flush()
        for descriptor, target in zip(real, (1, 2), strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
        out.close()
        err.close()


def _fault(point: str) -> None:
    if os.environ.get(FAULT_VARIABLE) == point:
        sys.stdout.flush()
        os.kill(os.getpid(), 9)
