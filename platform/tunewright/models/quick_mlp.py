"""Gated layers, down(silu(gate(x)) * up(x)), whose middle is one step of autograd: the same numbers.

What the activation gives is not kept for the backward pass but computed again, and rows are taken a few
at a time, so that the middle of the layer is read from memory once and not four times. Whether a
module's forward pass is this one is found by asking it with other layers in the place of its own.

N tokens, I inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from tunewright.models.few_rows import few_rows

LAYERS = ("gate_proj", "up_proj", "down_proj", "act_fn")


def quicken_mlps(model: torch.nn.Module) -> int:
    """Let the model's gated layers be quick ones; returns how many became so.

    Weights and their names stay as they are.
    """
    count = 0
    for module in model.modules():
        if "forward" not in module.__dict__ and _is_gated(module):
            module.__dict__["forward"] = _QuickMlp(module)
            count += 1
    return count


class _QuickMlp:
    """The forward pass of a module; what is only answered is left to the module's own."""

    def __init__(self, module: Any):
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        module = self.module
        if not torch.is_grad_enabled():
            own: Callable[..., torch.Tensor] = type(module).forward
            return own(module, x)
        gated: torch.Tensor = _Gated.apply(module.gate_proj(x), module.up_proj(x))  # type: ignore[no-untyped-call]
        out: torch.Tensor = module.down_proj(gated)
        return out


def _is_gated(module: Any) -> bool:
    if not all(hasattr(module, name) for name in LAYERS):
        return False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = torch.randn(3, 8)
    layers = SimpleNamespace(
        gate_proj=lambda x: x * 1.5 - 0.25,
        up_proj=lambda x: x.flip(-1) + 0.5,
        down_proj=lambda x: x.cumsum(-1),
        act_fn=module.act_fn,
    )
    wanted = layers.down_proj(functional.silu(layers.gate_proj(probe)) * layers.up_proj(probe))
    try:
        found = type(module).forward(layers, probe)
    except (AttributeError, TypeError):  # it asks for more than these layers
        return False
    return isinstance(found, torch.Tensor) and torch.equal(found, wanted)


class _Gated(torch.autograd.Function):
    """silu(gate) * up; keeps both."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        gate_NI, up_NI = _flat(gate), _flat(up)
        out_NI = torch.empty_like(gate_NI)
        for few in few_rows(gate_NI):
            torch.mul(functional.silu(gate_NI[few]), up_NI[few], out=out_NI[few])
        return out_NI.view(gate.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        gate_NI, up_NI, given_NI = _flat(gate), _flat(up), _flat(upstream[0])
        of_gate_NI, of_up_NI = torch.empty_like(gate_NI), torch.empty_like(up_NI)
        for few in few_rows(gate_NI):
            torch.mul(given_NI[few], functional.silu(gate_NI[few]), out=of_up_NI[few])
            of_activation = given_NI[few] * up_NI[few]
            torch.ops.aten.silu_backward.grad_input(of_activation, gate_NI[few], grad_input=of_gate_NI[few])
        return of_gate_NI.view(gate.shape), of_up_NI.view(up.shape)


def _flat(each: torch.Tensor) -> torch.Tensor:
    return each.reshape(-1, each.shape[-1])
