"""DeepSpeed is told every number, and the global batch is what it is on any number of workers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config import TrainConfig
from tunewright.config.train import ZeroConfig
from tunewright.train.engine import accumulation_steps, deepspeed_config


def config(rows: int = 16, micro: int = 2, **more: Any) -> TrainConfig:
    return TrainConfig(max_steps=1, global_batch_size=rows, micro_batch_size=micro, **more)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_the_batch_is_micro_batch_times_accumulation_times_workers(
    micro: int, world: int, steps: int
) -> None:
    given = config(micro * world * steps, micro)
    told = deepspeed_config(given, world, bf16=False)
    assert told["train_batch_size"] == given.global_batch_size
    assert told["train_micro_batch_size_per_gpu"] == micro
    assert told["gradient_accumulation_steps"] == steps == accumulation_steps(given, world)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("bf16", [True, False])
def test_stage_precision_and_clipping_are_stated(stage: Any, bf16: bool) -> None:
    told = deepspeed_config(config(max_grad_norm=0.5, zero=ZeroConfig(stage=stage)), 2, bf16)
    assert told["zero_optimization"]["stage"] == stage
    assert told["bf16"] == {"enabled": bf16}
    assert told["gradient_clipping"] == 0.5
    assert "auto" not in str(told)


@given(st.integers(1, 24), st.integers(1, 4), st.integers(1, 30))
def test_any_number_of_workers_takes_the_whole_batch_and_less_than_a_round_more(
    steps: int, micro: int, world: int
) -> None:
    given = config(steps * micro, micro)
    taken = accumulation_steps(given, world) * world
    assert steps <= taken < steps + world
