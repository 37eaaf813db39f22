"""What the stages of a run share: the run, its store, what was made or found, and what a person sees."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tunewright.artifacts import Artifact, Plan, Store, explain_os_error
from tunewright.config import RunConfig
from tunewright.errors import StoreError

FAULT_VARIABLE = "TUNEWRIGHT_FAULT"
"""Set to `STAGE:started` to kill the driver there; for tests of resuming."""


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
        """Step, loss, learning rate, tokens/s and time left of a training."""
        parts = [
            f"{label}step {int(metrics['step'])}/{int(metrics['total_steps'])}",
            f"loss {metrics['loss']:.3f}",
            f"lr {metrics['lr']:.2e}",
            f"{metrics['tokens_per_s']:,.0f} tokens/s",
            f"{metrics['eta_s']:.0f} s left",
        ]
        if "eval_loss" in metrics:
            parts.insert(2, f"eval loss {metrics['eval_loss']:.3f}")
        self.live("  ".join(parts), every_s=0.0 if "eval_loss" in metrics else 2.0)


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
