"""PEFT's LoRA layers with one step of autograd each: the same numbers, fewer passes over memory.

PEFT's own forward pass makes the update as a tensor of its own, scales it into another and adds it
into a third; so does its backward pass. Here the products add to what is there already.

N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.nn import functional


class QuickLora(Linear):
    """A LoRA layer whose forward pass is PEFT's own whenever it is more than the plain update in training."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = self.active_adapters
        plain = len(names) == 1 and names[0] in self.lora_A and names[0] not in self.lora_variant
        # What is only answered shall be, to the last bit, what the adapter answers when it is loaded again.
        if not torch.is_grad_enabled() or not plain or args or kwargs or self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        (name,) = names
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        base = self.base_layer
        # Under ZeRO-3 weights are whole only while the layers that own them are called.
        scattered = hasattr(base.weight, "ds_id") or hasattr(down, "ds_id")
        alike = base.weight.dtype == x.dtype == down.dtype == up.dtype
        if scattered or not alike or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        dropout = self.lora_dropout[name]
        dropped = None if isinstance(dropout, torch.nn.Identity) else dropout(x)
        given = (x, dropped, base.weight, base.bias, down, up, self.scaling[name])
        out: torch.Tensor = _LowRank.apply(*given)  # type: ignore[no-untyped-call]
        return out


def quicken_lora(model: torch.nn.Module) -> int:
    """Let the model's plain LoRA layers be quick ones; returns how many became so.

    Names, weights and what is saved stay as they are.
    """
    found = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    for layer in found:
        layer.__class__ = QuickLora
    return len(found)


def _is_plain(layer: Linear) -> bool:
    """Whether it is a frozen linear layer and one update made by two matrices."""
    base = layer.base_layer
    names = list(layer.lora_A)
    return (
        type(base) is torch.nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and not layer.fan_in_fan_out
        and not layer.lora_variant
        and all(layer.lora_A[name].bias is None and layer.lora_B[name].bias is None for name in names)
        and all(not layer.use_dora.get(name) for name in names)
    )


class _LowRank(torch.autograd.Function):
    """x W^T + b + scale * (dropped A^T) B^T; keeps x and its product with A."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        down_RI: torch.Tensor,
        up_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low_NR = functional.linear(x if dropped is None else dropped, down_RI)
        scaled_OR = up_OR * scale
        out = functional.linear(x, weight_OI, bias_O)
        out.view(-1, out.shape[-1]).addmm_(low_NR.view(-1, low_NR.shape[-1]), scaled_OR.T)
        ctx.scale, ctx.separate = scale, dropped is not None
        ctx.save_for_backward(x if dropped is None else dropped, low_NR, weight_OI, down_RI, scaled_OR)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        (up,) = upstream
        given, low_NR, weight_OI, down_RI, scaled_OR = ctx.saved_tensors
        wants_x, wants_dropped, _, _, wants_down, wants_up, _ = ctx.needs_input_grad
        up_NO = up.reshape(-1, up.shape[-1])
        of_low_NR = up_NO @ scaled_OR
        of_x = of_dropped = None
        if wants_x:
            of_x_NI = up_NO @ weight_OI
            if not ctx.separate:
                of_x_NI.addmm_(of_low_NR, down_RI)
            of_x = of_x_NI.view(given.shape)
        if wants_dropped:
            of_dropped = (of_low_NR @ down_RI).view(given.shape)
        of_down = of_low_NR.T @ given.reshape(-1, given.shape[-1]) if wants_down else None
        of_up = (up_NO.T @ low_NR.view(-1, low_NR.shape[-1])).mul_(ctx.scale) if wants_up else None
        return of_x, of_dropped, None, None, of_down, of_up, None
