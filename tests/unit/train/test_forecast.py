"""What a training needs is forecast from shapes: live storages, packed rows, operations."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from loops import small_model
from tunewright.config import TrainConfig
from tunewright.errors import ConfigError
from tunewright.train.forecast.compute import Work, device_named, work_of
from tunewright.train.forecast.estimate import Estimate
from tunewright.train.forecast.memory import KEPT, MAPPED, Setting, Sizes, Traced, memory
from tunewright.train.forecast.trace import LiveStorages, without_data
from tunewright.train.forecast.workload import of_documents
from tunewright.train.launch import worker_env

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
    sizes, traced = Sizes(2 * 10**9, 10**9, 10**9, 10**7), Traced(10**8, 10**7)
    by_stage = [memory(Setting(stage, 2, workers=8), sizes, traced) for stage in (0, 1, 2, 3)]
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


def test_a_base_in_four_bits_counts_as_it_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # weights are not packed here
    settings = small_model("llama", hidden_size=64, intermediate_size=128).config
    small = Estimate(settings, config(method={"type": "qlora", "rank": 4}), workload(), 2, 1)
    plain = Estimate(settings, config(method={"type": "lora", "rank": 4}), workload(), 2, 1)
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    # Each weight half a byte; each 64 of them a scale of a byte; each 256 of those one of 4 bytes.
    packed = linear / 2 + linear / 64 + 4 * linear / 64 / 256
    assert small.memory().weights == round(plain.memory().weights - 2 * linear + packed)
    assert small.parameters == plain.parameters


def test_weights_are_packed_to_what_is_counted() -> None:
    pytest.importorskip("bitsandbytes", reason="the extra [qlora] is not installed")
    from tunewright.models.quantize import quantize_nf4
    from tunewright.train.forecast.quantized import bytes_saved

    model = small_model("llama", hidden_size=512, intermediate_size=1024, num_attention_heads=8)
    saved = bytes_saved(model, 4)
    before = sum(weight.nbytes for weight in model.parameters())
    quantize_nf4(model, torch.float32)
    after = 0
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        after += weight.nbytes
        after += 0 if state is None else state.absmax.nbytes + state.state2.absmax.nbytes
    assert before - after == pytest.approx(saved, rel=1e-3)


@pytest.mark.parametrize("method", [{"last_blocks": 3}, {"last_blocks": 5, "modules": ["lm_head"]}])
def test_frozen_blocks_hold_nothing_for_the_backward_pass(method: dict[str, Any]) -> None:
    settings = small_model("llama", num_hidden_layers=6).config
    shown = Estimate(settings, config(method={"type": "freeze", **method}), workload(), 4, 1)
    wanted = shown._traced(6, 1, False)
    found = shown._of_all_blocks(1, False)
    assert found.peak == pytest.approx(wanted.peak, rel=0.05)
    every = Estimate(settings, config(method={"type": "full"}), workload(), 4, 1)
    assert found.peak < every._of_all_blocks(1, False).peak


def test_a_module_with_a_number_in_its_name_is_looked_for_in_the_whole_model() -> None:
    settings = small_model("llama", num_hidden_layers=6).config
    method = {"type": "lora", "target_modules": ["layers.5.self_attn.q_proj"]}
    shown = Estimate(settings, config(method=method), workload(), 4, 1)
    assert shown.memory().activations > 0


def test_gradients_wait_only_where_a_step_has_several_micro_batches() -> None:
    sizes, traced = Sizes(2 * 10**8, 10**8, 10**8, 10**6), Traced(10**11, 0)
    waiting = memory(Setting(2, 2, workers=4, gpu=True), sizes, traced)
    alone = memory(Setting(2, 2, workers=4, accumulates=False, gpu=True), sizes, traced)
    assert (waiting.gradients, alone.gradients) == (2 * 10**8 // 4, 0)


def test_what_a_process_keeps_of_its_passes_is_there_when_the_optimizer_steps() -> None:
    sizes, traced = Sizes(2 * 10**8, 10**8, 10**8, 10**6), Traced(10**9, 0)
    here, gpu = (memory(Setting(2, 2, gpu=gpu), sizes, traced) for gpu in (False, True))
    assert here.buffers == 12 * 10**8 and here.activations == round(KEPT * 10**9)
    assert gpu.buffers == 12 * 10**8 and gpu.activations == 0


def test_small_buffers_are_made_of_what_the_process_kept() -> None:
    sizes, traced = Sizes(2 * 10**8, 10**8, 10**6, 10**5), Traced(10**9, 0)
    needed = memory(Setting(2, 2), sizes, traced)
    assert needed.total == sizes.weights + 12 * 10**6 + 2 * 2 * 10**6 + round(KEPT * 10**9)


def test_the_size_of_blocks_that_go_back_is_the_workers() -> None:
    assert worker_env(1)["MALLOC_MMAP_THRESHOLD_"] == str(MAPPED)
