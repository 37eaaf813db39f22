"""How many workers, where weights are kept, in what precision: what cannot be is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tunewright.config import TrainConfig
from tunewright.train.engine import accumulation_steps, deepspeed_config


def train(**values: Any) -> TrainConfig:
    shape = {"max_steps": 1, "global_batch_size": 16, "micro_batch_size": 1}
    return TrainConfig.model_validate({**shape, **values})


def test_elastic_workers_keep_the_global_batch() -> None:
    config = train(workers={"min": 1, "max": 4}, global_batch_size=24)
    assert list(config.world_sizes) == [1, 2, 3, 4]
    assert [accumulation_steps(config, world) for world in config.world_sizes] == [24, 12, 8, 6]
    assert list(train(workers=2).world_sizes) == [2]
    assert config.model_dump(mode="json")["workers"] == {"min": 1, "max": 4}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"workers": {"min": 1, "max": 8}, "micro_batch_size": 3},
            "not a multiple of micro_batch_size=3; nearest valid: 15 and 18",
        ),
        ({"workers": {"min": 3, "max": 2}}, "min=3 is more than max=2"),
        ({"workers": {"max": 0}}, "workers.elastic.max\n.*greater than or equal to 1"),
        ({"workers": 0}, "workers.number\n.*greater than or equal to 1"),
        ({"workers": {"mni": 1, "max": 2}}, "mni\n.*not permitted"),
        ({"workers": 3}, "not a multiple of micro_batch_size\\*workers=3; nearest valid: 15 and 18"),
        ({"zero": {"stage": 0, "offload_optimizer": True}}, "offload_optimizer is done by stages 1, 2 and 3"),
        ({"zero": {"offload_params": True}}, "offload_params is done by stage 3, and stage is 2"),
        (
            {"zero": {"offload_optimizer": True}},
            "workers without a GPU \\(worker_resources.gpus=0\\) have it already",
        ),
        ({"precision": "fp16", "zero": {"stage": 0}}, "fp16 needs zero.stage 1, 2 or 3"),
        ({"hang_minutes": 0}, "greater than 0"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        train(**values)


def test_what_is_kept_in_the_machines_memory_is_pinned_and_stepped_by_torch() -> None:
    zero = {"stage": 3, "offload_optimizer": True, "offload_params": True}
    told = deepspeed_config(train(zero=zero, worker_resources={"gpus": 1}), 1, True)
    there = {"device": "cpu", "pin_memory": True}
    assert told["zero_optimization"]["offload_optimizer"] == there
    assert told["zero_optimization"]["offload_param"] == there
    assert told["zero_force_ds_cpu_optimizer"] is False
    plain = deepspeed_config(train(), 1, True)["zero_optimization"]
    assert "offload_optimizer" not in plain and "offload_param" not in plain
    assert plain["stage3_param_persistence_threshold"] == 100_000
