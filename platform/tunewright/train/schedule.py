"""Pure functions of the step: learning rate, and which rows the step sees."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tunewright.config import TrainConfig
from tunewright.errors import TrainError


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (0-based): linear warm-up, then the chosen decay to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * done)) if config.lr_scheduler_type == "cosine" else 1 - done
    return config.learning_rate * share


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
