"""The bytes that a real DeepSpeed engine holds at each moment of a step, counted by its storages."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from tunewright.train.forecast.memory import Sizes

BLOCKS, MICRO_BATCHES = 4, 2


@dataclass(frozen=True)
class Found:
    """Bytes beside the weights and the optimizer's own, which are `held`.

    Attributes:
        passes: when the last micro batch of a step has gone forward.
        exchange: the most in its backward pass.
        step: the most while the optimizer steps.
    """

    sizes: Sizes
    held: int
    passes: int
    exchange: int
    step: int


def found(_rank: int, case: tuple[int, str]) -> Found:
    """Take two steps over all weights of a model of equal blocks, on rows so short that they hardly count."""
    import torch
    import torch.distributed as dist
    import transformers

    from tunewright.config import TrainConfig
    from tunewright.train import engine as engines
    from tunewright.train.forecast.trace import LiveStorages
    from tunewright.train.methods import apply_method

    stage, precision = case
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    settings = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    config = TrainConfig.model_validate(
        {
            "max_steps": 2,
            "global_batch_size": MICRO_BATCHES * dist.get_world_size(),
            "micro_batch_size": 1,
            "method": {"type": "full"},
            "zero": {"stage": stage, "stage3_param_persistence_threshold": 0},
        }
    )
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with LiveStorages() as storages:
        model = transformers.AutoModelForCausalLM.from_config(settings, dtype=dtype)
        trained: Any = apply_method(model, config.method, 1).train()
        numbers = [weight.numel() for weight in trained.parameters()]
        each = torch.finfo(dtype).bits // 8
        sizes = Sizes(each * sum(numbers), sum(numbers), sum(numbers), max(numbers))
        with patch.object(engines, "deepspeed_config", bucket_of(sizes.trained)):
            engine = engines.build_engine(trained, config, dtype, torch.device("cpu")).deepspeed
        out = {}
        for _ in range(2):
            for _ in range(MICRO_BATCHES):
                loss = engine(input_ids=ids, use_cache=False).logits.float().sum() * 1e-3
                out["passes"] = storages.live
                storages.peak = storages.live
                engine.backward(loss)
                del loss
                out["exchange"] = storages.peak
                storages.peak = storages.live
                engine.step()
                out["step"] = storages.peak
            gc.collect()
    held = storages.live
    if stage == 3:  # the bucket and the gradients are there all the time
        held -= 2 * each * sizes.trained if dist.get_world_size() == 1 else each * sizes.trained * 3 // 2
    return Found(sizes, held, **{name: value - held for name, value in out.items()})


def bucket_of(elements: int) -> Any:
    """`deepspeed_config` with a bucket as large as the gradients: one of its real size would hide them."""
    from tunewright.train.engine import deepspeed_config

    def config(*given: Any) -> dict[str, Any]:
        made = deepspeed_config(*given)
        made["zero_optimization"]["reduce_bucket_size"] = elements
        return made

    return config
