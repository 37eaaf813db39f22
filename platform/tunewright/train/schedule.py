"""Pure functions of the step: learning rate, and which rows the step sees."""

from __future__ import annotations

import math

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


def total_steps(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of the whole training.

    Raises:
        TrainError: fewer packed rows than one global batch.
    """
    per_epoch = steps_per_epoch(config, rows)
    if config.max_steps is not None:
        return config.max_steps
    assert config.num_train_epochs is not None
    return max(1, math.ceil(config.num_train_epochs * per_epoch))


def steps_per_epoch(config: TrainConfig, rows: int) -> int:
    per_epoch = rows // config.global_batch_size
    if not per_epoch:
        raise TrainError(
            f"the data set has {rows} packed rows, fewer than train.global_batch_size="
            f"{config.global_batch_size}; lower it, or give more data"
        )
    return per_epoch


def rows_of_step(config: TrainConfig, seed: int, step: int, rows: int) -> npt.NDArray[np.int64]:
    """Row indices of the global batch of `step`: each row once an epoch, whatever the workers.

    The order of an epoch is a permutation of (seed, epoch), so a run that goes on at a step needs
    no iterator's state and no fixed number of workers. The last rows % batch of an epoch are left
    out of it; another permutation leaves out others.
    """
    epoch, at = divmod(step, steps_per_epoch(config, rows))
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(rows)
    start = at * config.global_batch_size
    return order[start : start + config.global_batch_size]
