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

from tunewright.models.few_rows import few_rows

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
        x_NH = x.reshape(-1, x.shape[-1])
        out_NH = torch.empty_like(x_NH)
        inverse_N1 = x.new_empty(len(x_NH), 1, dtype=torch.float32)
        scale_H = weight_H.float() + 1.0 if from_one else weight_H
        for few in few_rows(x_NH):
            normed = x_NH[few].to(torch.float32, copy=True)
            inverse = torch.linalg.vector_norm(normed, dim=-1, keepdim=True, out=inverse_N1[few])
            inverse.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
            normed.mul_(inverse)
            if from_one:
                out_NH[few] = normed.mul_(scale_H)
            else:
                out_NH[few].copy_(normed).mul_(scale_H)
        ctx.from_one = from_one
        ctx.save_for_backward(x, inverse_N1, weight_H)
        return out_NH.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        x, inverse_N1, weight_H = ctx.saved_tensors
        x_NH, up_NH = x.reshape(-1, x.shape[-1]), upstream[0].reshape(-1, x.shape[-1])
        scale_H = (weight_H.float() + 1.0) if ctx.from_one else weight_H.float()
        out_NH = torch.empty_like(x_NH)
        for few in few_rows(x_NH):
            grad, given, inverse = up_NH[few].float() * scale_H, x_NH[few].float(), inverse_N1[few]
            # What lengthens x as a whole changes nothing.
            along = torch.linalg.vecdot(grad, given).unsqueeze(-1)
            along.mul_(inverse.square()).div_(-x.shape[-1])
            out_NH[few] = grad.addcmul_(given, along).mul_(inverse)
        return out_NH.view(x.shape), None, None, None
