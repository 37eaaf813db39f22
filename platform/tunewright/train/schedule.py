"""Pure functions of the step: learning rate, and which rows the step sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tunewright.config import TrainConfig
from tunewright.errors import TrainError

WSD_DECAY = 0.1
"""Share of all steps in which the rate of `wsd` falls, when the configuration does not say."""


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (0-based): linear warm-up, then the chosen decay.

    The decay spans the steps behind the warm-up and would be at `min_lr_ratio` in step
    `total_steps`, the first that is not taken.
    """
    peak, warm = config.learning_rate, warmup_steps(config, total_steps)
    if step < warm:
        return peak * (step + 1) / warm
    lowest = config.min_lr_ratio
    return peak * (lowest + (1 - lowest) * _height(config, step, warm, total_steps))


def warmup_steps(config: TrainConfig, total_steps: int) -> int:
    """Steps in which the rate rises; a share of all steps is rounded up."""
    return config.warmup_steps or _share(config.warmup_fraction, total_steps)


def _share(fraction: float, steps: int) -> int:
    """A share of the steps, rounded up; 0.07 of 100 is 7, though their product is a little more."""
    return math.ceil(fraction * steps - 1e-9)


def _height(config: TrainConfig, step: int, warm: int, total_steps: int) -> float:
    """How high the rate stands between its lowest, 0, and its highest, 1."""
    kind = config.lr_scheduler_type
    if kind == "constant":
        return 1.0
    begin = warm
    if kind == "wsd":
        share = WSD_DECAY if config.decay_fraction is None else config.decay_fraction
        begin = max(warm, total_steps - _share(share, total_steps))
        if step < begin:
            return 1.0
    done = (step - begin) / max(1, total_steps - begin)
    return 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done


class Order:
    """Which rows a step sees: a pure function of the step, whatever the workers.

    A task's rows come in the order of a permutation of (seed, task, epoch), epoch after epoch without a
    gap, so each row comes once an epoch; a run that goes on at a step needs no iterator's state. Every
    global batch has as many rows of a side task as keeps it nearest to its share of all rows so far.

    Args:
        lengths: rows of each task, the main one first.
        shares: of the side tasks.
    Raises:
        TrainError: fewer rows of the main task than a global batch takes, or a task without any.
    """

    def __init__(self, config: TrainConfig, seed: int, lengths: Sequence[int], shares: Sequence[float] = ()):
        self.batch, self.seed, self.lengths, self.shares = config.global_batch_size, seed, lengths, shares
        if not all(lengths):
            raise TrainError("a side task has no packed rows to train on; give it more data, or leave it out")
        most = math.ceil(self.batch * (1 - sum(shares)))
        if lengths[0] < most:
            raise TrainError(
                f"the data set has {lengths[0]} packed rows, fewer than the {most} of them in a batch of "
                f"train.global_batch_size={self.batch}; lower it, or give more data"
            )
        self._permuted: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def taken(self, step: int) -> list[int]:
        """Rows of each task in all steps before `step`."""
        beside = [math.floor(step * self.batch * share + 0.5) for share in self.shares]
        return [step * self.batch - sum(beside), *beside]

    def epoch(self, step: int) -> float:
        """How often the main task's rows were seen before `step`."""
        return self.taken(step)[0] / self.lengths[0]

    def rows_of_step(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(G,) tasks and (G,) rows of them: the global batch of the step, task after task."""
        tasks, rows = [], []
        for task, (first, end) in enumerate(zip(self.taken(step), self.taken(step + 1), strict=True)):
            tasks += [task] * (end - first)
            rows += [self._row(task, at) for at in range(first, end)]
        return np.array(tasks, np.int64), np.array(rows, np.int64)

    def _row(self, task: int, at: int) -> int:
        epoch, place = divmod(at, self.lengths[task])
        if (task, epoch) not in self._permuted:
            self._permuted = {key: order for key, order in self._permuted.items() if key[0] != task}
            words = [self.seed, epoch + (task << 32)]
            random = np.random.Generator(np.random.Philox(key=words))
            self._permuted[task, epoch] = random.permutation(self.lengths[task])
        return int(self._permuted[task, epoch][place])


def total_steps(config: TrainConfig, order: Order) -> int:
    """Optimizer steps of the whole training: until each main row was seen in every epoch."""
    if config.max_steps is not None:
        return config.max_steps
    assert config.num_train_epochs is not None
    rows = math.ceil(config.num_train_epochs * order.lengths[0] - 1e-9)
    step = max(1, math.floor(rows / order.batch))
    while order.taken(step)[0] < rows:
        step += 1
    return step
