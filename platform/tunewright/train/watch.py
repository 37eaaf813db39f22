"""What training's own figures decide: the best step, when to stop early, when to go back.

Pure: figures in, decisions out. All that it knows goes into a checkpoint and comes back from one, so a
run that goes on decides as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any, Literal

from tunewright.config import TrainConfig
from tunewright.errors import TrainError


@dataclass
class Watch:
    """The figures so far.

    Attributes:
        losses: the last ones that were not high, oldest first.
        high: how many of the newest losses in a row were high.
        rollbacks: how often training went back.
        best, best_step: the best figure of `train.best` and its step; step 0 before there is one.
        early_best, stale: the best figure of `early_stopping`, and evaluations since it.
        ended: why training ended before its last step.
    """

    config: TrainConfig
    losses: list[float] = field(default_factory=list)
    high: int = 0
    rollbacks: int = 0
    best: float | None = None
    best_step: int = 0
    early_best: float | None = None
    stale: int = 0
    ended: str | None = None

    def state(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "config"}

    @classmethod
    def of(cls, config: TrainConfig, state: Mapping[str, Any]) -> Watch:
        """The watch that `state` was taken from."""
        return cls(config, **state)

    @property
    def rate_scale(self) -> float:
        """What the learning rate is multiplied by: each return halves it."""
        return 0.5**self.rollbacks

    @property
    def quiet(self) -> bool:
        """Whether the newest loss was not high: a state to come back to."""
        return self.high == 0

    def saw_loss(self, loss: float) -> bool:
        """Note a step's loss; True when training should go back."""
        dog = self.config.watchdog
        if dog is None:
            return False
        if len(self.losses) == dog.window and loss > dog.factor * median(self.losses):
            self.high += 1
            return self.high >= dog.patience
        self.high = 0
        self.losses = [*self.losses, loss][-dog.window :]
        return False

    def went_back(self, rollbacks: int, step: int) -> None:
        """Count a return; `rollbacks` is what was known before the checkpoint's state replaced it.

        Raises:
            TrainError: it was one too many.
        """
        dog = self.config.watchdog
        assert dog is not None
        self.rollbacks = rollbacks + 1
        if self.rollbacks > dog.max_rollbacks:
            raise TrainError(
                f"the loss ran away {self.rollbacks} times: at step {step} it was above {dog.factor:g} times "
                f"its median for {dog.patience} steps again, with {0.5**rollbacks:g} of the learning rate "
                f"asked for; lower train.learning_rate or train.max_grad_norm, or look at the data"
            )

    def saw_evaluation(self, step: int, figures: Mapping[str, float]) -> bool:
        """Note an evaluation; True when its step is the best so far, to be kept. May set `ended`.

        Raises:
            TrainError: it has no such figure.
        """
        self._judge_early(step, figures)
        best = self.config.best
        if best is None or not self.quiet:
            return False
        value = _figure(figures, best.metric, "best")
        if not _better(value, self.best, best.mode, 0.0):
            return False
        self.best, self.best_step = value, step
        return True

    def _judge_early(self, step: int, figures: Mapping[str, float]) -> None:
        early = self.config.early_stopping
        if early is None:
            return
        value = _figure(figures, early.metric, "early_stopping")
        if _better(value, self.early_best, early.mode, early.min_delta):
            self.early_best, self.stale = value, 0
            return
        self.stale += 1
        if self.stale >= early.patience:
            self.ended = (
                f"{early.metric} was {value:.6g} at step {step}, no better than {_told(self.early_best)} "
                f"for {self.stale} evaluations"
            )


def _figure(figures: Mapping[str, float], name: str, field: str) -> float:
    if name not in figures:
        there = ", ".join(sorted(figures)) or "no figure"
        raise TrainError(
            f"train.{field}.metric={name}, and the evaluation has {there}; "
            f"name one of them, or give the data an evaluation split"
        )
    return figures[name]


def _better(value: float, than: float | None, mode: Literal["min", "max"], by: float) -> bool:
    if not math.isfinite(value):
        return False
    if than is None:
        return True
    return value < than - by if mode == "min" else value > than + by


def _told(value: float | None) -> str:
    return "none before" if value is None else f"{value:.6g}"
