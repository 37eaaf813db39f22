"""Tokens that `base.new_tokens` adds are learned by the run's first training, or they stay what they are."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.config.methods import Ia3Config, PrefixTuningConfig, PromptTuningConfig
from tunewright.config.stages import Described
from tunewright.config.train import BaseModelConfig


def check_new_tokens(base: BaseModelConfig, trainings: Sequence[Described]) -> None:
    """Raises `ValueError` when a method could not learn the base's new tokens."""
    if not base.new_tokens:
        return
    first = trainings[0]
    if isinstance(first.train.method, PromptTuningConfig | PrefixTuningConfig | Ia3Config):
        raise ValueError(
            f"base.new_tokens: {first.at}train.method.type={first.train.method.type} trains no embedding, so "
            f"{base.new_tokens[0]} would stay the mean of all tokens; choose lora, dora, rslora, qlora, full "
            f"or freeze with the embeddings among its modules"
        )
    stacked = next((training for training in trainings if training.then == "stack"), None)
    if stacked is not None:
        raise ValueError(
            f"base.new_tokens: with {stacked.at}then=stack two adapters would have rows for "
            f"{base.new_tokens[0]}, which cannot be added up; say then: merge"
        )
