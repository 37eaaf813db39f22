"""Root-mean-square norms in one step of autograd: the same numbers, a third of the passes over memory.

Architectures write their norm as half a dozen operations on copies in fp32, and autograd undoes each
of them. Which of the two usual forms a module has (scale by `weight`, or by 1 + `weight` before rounding)
is found by asking it; one that is neither stays as it is.

N tokens, H width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

PROBE_TOLERANCE = 1e-6
Form = tuple[bool, float]
"""(whether the weight counts from one, epsilon)"""


def quicken_norms(model: torch.nn.Module) -> int:
    """Let the model's frozen norms be quick ones; returns how many became so.

    Weights and their names stay as they are.
    """
    count = 0
    for module in model.modules():
        if "forward" in module.__dict__ or not type(module).__name__.endswith("RMSNorm"):
            continue
        form = _form(module)
        if form is not None:
            module.__dict__["forward"] = _QuickNorm(module, form)
            count += 1
    return count


class _QuickNorm:
    """The forward pass of a module; knows when to leave it to the module's own."""

    def __init__(self, module: Any, form: Form):
        self.module, self.form = module, form

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = self.module.weight
        # Trained here, or whole only while DeepSpeed's hooks hold it so; and what is only answered shall be
        # what the same weights answer elsewhere, to the last bit.
        if (
            not torch.is_grad_enabled()
            or weight.requires_grad
            or hasattr(weight, "ds_id")
            or weight.dtype != hidden.dtype
        ):
            own: Callable[..., torch.Tensor] = type(self.module).forward
            return own(self.module, hidden)
        out: torch.Tensor = _Norm.apply(hidden, weight, *self.form)  # type: ignore[no-untyped-call]
        return out


def _form(module: Any) -> Form | None:
    """How the module scales; None if it is none of the two forms, or its weight is not at hand."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weight is None or weight.dim() != 1 or not weight.is_floating_point() or epsilon is None:
        return None
    if not weight.numel() or hasattr(weight, "ds_id") or weight.requires_grad:
        return None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = torch.randn(4, len(weight)).to(weight.device, weight.dtype)
        wanted = type(module).forward(module, probe).float()
        for from_one in (False, True):
            found = _Norm.apply(probe, weight, from_one, float(epsilon))  # type: ignore[no-untyped-call]
            if float((found.float() - wanted).abs().max()) <= PROBE_TOLERANCE * float(wanted.abs().max()):
                return from_one, float(epsilon)
    return None


class _Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon), scaled; keeps x and one number a token."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_H: torch.Tensor, from_one: bool, epsilon: float
    ) -> torch.Tensor:
        normed = x.to(torch.float32, copy=True)
        length = torch.linalg.vector_norm(normed, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed.mul_(inverse)
        ctx.from_one = from_one
        ctx.save_for_backward(x, inverse, weight_H)
        if from_one:
            return normed.mul_(weight_H.float() + 1.0).to(x.dtype)
        return normed.to(x.dtype).mul_(weight_H)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        (up,) = upstream
        x, inverse, weight_H = ctx.saved_tensors
        scale_H = (weight_H.float() + 1.0) if ctx.from_one else weight_H.float()
        grad = up.float() * scale_H
        given = x.float()
        # What lengthens x as a whole changes nothing.
        along = torch.linalg.vecdot(grad, given).unsqueeze(-1)
        along.mul_(inverse.square()).div_(-x.shape[-1])
        return grad.addcmul_(given, along).mul_(inverse).to(x.dtype), None, None, None
