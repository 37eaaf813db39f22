"""What a training needs is forecast from shapes: live storages, packed rows, operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from loops import small_model
from tunewright.config import TrainConfig
from tunewright.errors import ConfigError
from tunewright.train.forecast.compute import Work, device_named, work_of
from tunewright.train.forecast.estimate import Estimate
from tunewright.train.forecast.memory import Sizes, Traced, memory
from tunewright.train.forecast.trace import LiveStorages, without_data
from tunewright.train.forecast.workload import of_documents

ROW = 64


def config(**values: Any) -> TrainConfig:
    shape = {"max_steps": 1, "global_batch_size": 8, "micro_batch_size": 2}
    return TrainConfig.model_validate({**shape, **values})


def workload() -> Any:
    return of_documents([16] * 8, [8] * 8, ROW, 80, "made up")


def estimate(kind: str = "llama", workers: int = 1, sixteen: bool = False, **values: Any) -> Estimate:
    settings = small_model(kind).config
    return Estimate(settings, config(**values), workload(), 2 if sixteen else 4, workers)


def test_a_storage_counts_while_a_tensor_on_it_lives() -> None:
    with without_data():
        weight = torch.nn.Parameter(torch.empty(100, 100))
        with LiveStorages([weight]) as storages:
            given = torch.ones(10, 100)
            out = given @ weight
            view = out[:5]
            assert storages.live == 2 * 4000
            del out
            assert storages.live == 2 * 4000, "a view holds the storage"
            del view
            assert storages.live == 4000
            assert storages.peak == 2 * 4000


def test_no_memory_is_taken_for_a_model_of_any_size() -> None:
    settings = small_model().config
    settings.update({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32})
    settings.update({"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128})
    large = Estimate(settings, config(method={"type": "lora"}), workload(), 2, 1)
    needed = large.memory()
    assert needed.weights > 13e9
    assert large.parameters.trainable < 1e8
    assert needed.total > needed.weights


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma"])
def test_more_rows_more_memory_and_checkpointing_less(kind: str) -> None:
    plain = estimate(kind, method={"type": "full"})
    more = plain.changed(micro_batch_size=4)
    assert more.memory().activations > 1.8 * plain.memory().activations
    again = plain.changed(gradient_checkpointing=True)
    assert again.memory().activations < plain.memory().activations
    assert plain.memory().weights == again.memory().weights


def test_stages_divide_what_they_divide() -> None:
    sizes, traced = Sizes(10**9, 10**9, 10**7), Traced(10**8, 10**7)
    by_stage = [memory(stage, sizes, traced, 2, 8) for stage in (0, 1, 2, 3)]
    assert by_stage[0].weights == by_stage[2].weights == 2 * 10**9
    assert by_stage[3].weights == 2 * 10**9 // 8
    assert by_stage[1].optimizer == by_stage[3].optimizer == 12 * 10**9 // 8 < by_stage[0].optimizer
    assert by_stage[0].total > by_stage[1].total > by_stage[2].total


def test_a_traced_row_is_packed_as_the_data_stage_packs() -> None:
    seen = workload()
    assert (seen.rows, seen.row_length) == (20, ROW)
    assert seen.tokens == 80 * 16
    assert seen.asked == 0.5
    assert seen.seen == 8.5
    assert seen.segments_S.max() == 4
    assert seen.histogram == ((8, 0), (16, 0), (32, 8), (64, 0)) or sum(n for _, n in seen.histogram) == 8


def test_operations_of_a_step_are_those_of_its_layers() -> None:
    model = small_model()
    work = work_of(model)
    blocks = sum(w.numel() for name, w in model.named_parameters() if "layers" in name and w.dim() == 2)
    assert work.forward == 2 * blocks
    assert work.output == 2 * model.lm_head.weight.numel()
    assert Work(10, 100, 0, 1).step(tokens=2, asked=1, mean_seen=3) == 2 * 20 + 200 + 2 * 3 * 3.5
    frozen = Work(10, 100, 0, 1).step(2, 1, 3)
    assert Work(10, 100, 10, 1).step(2, 1, 3) == frozen + 2 * 10
    assert Work(10, 100, 0, 1).step(2, 1, 3, checkpointing=True) == frozen + 2 * 10 + 2 * 3


def test_a_device_that_is_not_known_is_refused_with_the_nearest() -> None:
    assert device_named("H100").memory == 80 * 10**9
    with pytest.raises(ConfigError, match="did you mean a100-80gb"):
        device_named("a100-80g")


def test_the_mask_of_a_row_is_where_answers_are() -> None:
    seen = of_documents([4, 4], [2, 1], 8, 2, "made up")
    assert np.flatnonzero(seen.mask_S).tolist() in ([2, 3, 7], [3, 6, 7])
