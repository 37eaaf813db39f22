"""Tokens that the base's tokenizer got anew are learned, by each method that trains their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loops import MemoryRows, Training, small_model, train
from tunewright.config import FullConfig, LoraConfig, TrainConfig
from tunewright.config.methods import DoraConfig, FreezeConfig, Method

pytestmark = [
    pytest.mark.usefixtures("one_worker"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # DeepSpeed's:
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

FP32 = torch.float32
STEPS = 12


class WordRows(MemoryRows):
    """Documents `a, new token, b`: the token tells which b, and only it; 46 and 47 are the new tokens."""

    def __init__(self, count: int = 24):
        super().__init__(count, seq_len=6)
        numbers = np.random.default_rng(1)
        for row in range(count):
            for at in (0, 3):
                which = int(numbers.integers(2))
                self.rows["input_ids"][row, at : at + 3] = [int(numbers.integers(40)), 46 + which, 41 + which]
                self.rows["segment_ids"][row, at : at + 3] = at // 3 + 1
                self.rows["position_ids"][row, at : at + 3] = [0, 1, 2]
                self.rows["loss_mask"][row, at : at + 3] = [0, 0, 1]


def with_equal_rows(kind: str) -> Any:
    """A model whose last two tokens are new: alike until they are learned."""
    model = small_model(kind)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.data[46:] = layer.weight.data[:46].mean(0)
    model.config.new_token_ids = [46, 47]
    return model


def training(method: Method, stage: int = 0) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "max_steps": STEPS,
            "logging_steps": 1,
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "learning_rate": 6e-2,
            "lr_scheduler_type": "constant",
            "method": method,
            "zero": {"stage": stage},
        }
    )


@pytest.mark.parametrize(
    ("kind", "stage", "method", "dtype"),
    [
        ("llama", 0, LoraConfig(rank=2), FP32),
        ("llama", 3, LoraConfig(rank=2), torch.bfloat16),
        ("gemma", 2, DoraConfig(rank=2), torch.bfloat16),
        ("llama", 2, FullConfig(), FP32),
        ("llama", 1, FreezeConfig(last_blocks=1, modules=("embed_tokens",)), FP32),
    ],
    ids=["0", "3 bf16", "dora tied bf16", "full", "freeze"],
)
def test_what_only_the_new_tokens_tell_apart_is_learned(
    tmp_path: Path, kind: str, stage: int, method: Method, dtype: torch.dtype
) -> None:
    rows = WordRows()
    done = train(
        Training(training(method, stage), tmp_path, lambda: with_equal_rows(kind), rows, rows, dtype=dtype)
    )
    assert done.losses[STEPS] < 0.3 < 0.69 < done.losses[1]  # log 2 is the best without the new tokens
    if method.result == "adapter":
        rows_of = [w for name, w in done.outcome.weights.items() if "embed_tokens.token_adapter" in name]
        assert [len(w) for w in rows_of] == [2]
        assert not torch.equal(*rows_of[0])


def test_without_rows_of_their_own_they_would_not_be_learned(tmp_path: Path) -> None:
    def deaf() -> Any:
        model = with_equal_rows("llama")
        model.config.new_token_ids = []
        return model

    done = train(Training(training(LoraConfig(rank=2)), tmp_path, deaf, WordRows(), WordRows()))
    assert min(list(done.losses.values())) > 0.6
