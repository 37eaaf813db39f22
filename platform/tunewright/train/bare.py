"""A model asked as training asks it, without an engine around it: before training, and in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tunewright.models.packed import Windows, windows_of
from tunewright.train.engine import Engine
from tunewright.train.forward import Forward


class Bare(torch.nn.Module):
    """A model where an engine's DeepSpeed is expected."""

    def __init__(self, module: Any):
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def bare_forward(
    model: Any, device: torch.device, dtype: torch.dtype, row_length: int, windows: Windows | None = None
) -> Forward:
    """The model as training asks it.

    Args:
        windows: how far its layers see; as its settings say when left out.
    """
    seen = windows_of(model.config, row_length) if windows is None else windows
    return Forward(Engine(Bare(model), [], 0, device, dtype), seen)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """While the block runs, nothing in the model is left to chance."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
