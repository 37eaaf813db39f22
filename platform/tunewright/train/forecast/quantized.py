"""What a base in 4 bits (NF4) holds, and how a model made of shapes alone behaves like one.

N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from tunewright.models.quantize import BLOCK, check_quantizable

NESTED = 256
"""Scales of blocks that bitsandbytes quantizes together, when it quantizes them too."""
NF4_BYTES = 1 / 2 + (1 + 4 / NESTED) / BLOCK
"""Of a weight: 4 bits, and its share of a scale of 8 bits, which has a share of one of 32 bits."""


def bytes_saved(base: Any, bytes_each: int) -> int:
    """What a base without its method saves in 4 bits; embeddings, norms and the output layer stay."""
    weights: int = sum(module.weight.numel() for _, module in check_quantizable(base))
    return round(weights * (bytes_each - NF4_BYTES))


def like_four_bits(model: Any) -> None:
    """Let the adapted layers of a model unpack their weights whenever they use them.

    Adapters over such layers go PEFT's own way: the quick one is for plain layers.
    """
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if type(base) is torch.nn.Linear:
            base.__class__ = _FourBits


class _FourBits(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Unpacking.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out.clone()  # as PEFT does, lest the layer's own answer be changed


class _Unpacking(torch.autograd.Function):
    """x W^T + b; keeps the packed weight alone, and unpacks it for each of its two products."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight_OI)
        return functional.linear(x, weight_OI.to(x.dtype, copy=True), bias_O)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        (weight_OI,) = ctx.saved_tensors
        return upstream[0] @ weight_OI.to(upstream[0].dtype, copy=True), None, None
