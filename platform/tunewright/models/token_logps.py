"""Log-probabilities of given tokens from hidden states, without the logits of a whole vocabulary in memory.

For the log-probability of one token the logits of all others are needed only as the logarithm of their
summed exponentials, and for the gradient of a hidden state only as the mean of the output layer's rows
under the softmax. Both can be gathered piece by piece over the vocabulary, as attention is over keys.
Source of the running sums: Milakov and Gimelshein 2018, Online normalizer calculation for softmax
(arXiv:1805.02867); of their use here: Wijmans et al. 2024, Cut Your Losses (arXiv:2411.09009).

N tokens asked for, H width, V vocabulary, P pieces of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

TOKENS_AT_ONCE = 512
PIECE = 4096
"""Of the vocabulary. Logits of 512 tokens by 4,096 entries are 8 MB in fp32, small enough to stay cached."""
FEW_LOGITS = 1 << 20
"""So many are made at once, 4 MB in fp32: pieces would cost more than they save."""
SMALLEST_SHARE = 1e-30
"""A softmax value above this is exact enough in fp32 to tell the sum of exponentials from it."""


def token_logps(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    want_uniform: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(N,) log-probabilities, in fp32, of the targets under softmax(hidden @ weight.T + bias).

    Also, if wanted, the mean over the vocabulary of the log-probabilities at each place, which label
    smoothing needs: the smoothed loss is -(1 - e) * logp - e * uniform. Both are differentiable in
    hidden, weight and bias. Memory beyond the gradients is bounded by a constant, whatever N and V.

    When hidden states need gradients and the weights do not, they are prepared in the forward pass
    from the same logits, as the backward pass only scales them.
    """
    if len(hidden_NH) * len(weight_VH) <= FEW_LOGITS:
        return _plain(hidden_NH, weight_VH, bias_V, targets_N, want_uniform)
    weighted = weight_VH.requires_grad or (bias_V is not None and bias_V.requires_grad)
    if not torch.is_grad_enabled() or not (hidden_NH.requires_grad or weighted):
        logps_N, uniform_N, _ = _measured(hidden_NH, weight_VH, bias_V, targets_N, want_uniform, False)
        return logps_N, uniform_N
    given = (hidden_NH, weight_VH, bias_V, targets_N, want_uniform)
    logps_N, uniform_N = _TokenLogps.apply(*given)  # type: ignore[no-untyped-call]
    return logps_N, uniform_N if want_uniform else None


def _plain(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    want_uniform: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """By the logits themselves, where they are few."""
    every_NV = torch.nn.functional.linear(hidden_NH, weight_VH, bias_V).float().log_softmax(-1)
    logps_N = every_NV.gather(1, targets_N[:, None])[:, 0]
    return logps_N, every_NV.mean(-1) if want_uniform else None


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        want_uniform: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_wants, weight_wants, bias_wants, *_ = ctx.needs_input_grad
        ctx.want_uniform, ctx.weighted = want_uniform, weight_wants or bias_wants
        logps_N, uniform_N, sums = _measured(
            hidden_NH, weight_VH, bias_V, targets_N, want_uniform, hidden_wants and not ctx.weighted
        )
        if ctx.weighted:
            ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, sums.total_N)
        else:  # of the places' own logits: what the softmax expects is taken from what is seen
            expected_NH = sums.expected_NH
            assert expected_NH is not None
            chosen_NH = weight_VH[targets_N].float().sub_(expected_NH).to(hidden_NH.dtype)
            even_NH = None
            if want_uniform:
                even_NH = expected_NH.neg_().add_(_mean_row(weight_VH)).to(hidden_NH.dtype)
            ctx.save_for_backward(chosen_NH, even_NH)
        return logps_N, uniform_N

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        up_N, up_uniform_N = upstream
        if ctx.weighted:
            return (*_recomputed(ctx, up_N, up_uniform_N), None, None)
        chosen_NH, even_NH = ctx.saved_tensors
        grad_NH = chosen_NH * up_N[:, None].to(chosen_NH.dtype)
        if ctx.want_uniform and up_uniform_N is not None:
            grad_NH += even_NH * up_uniform_N[:, None].to(chosen_NH.dtype)
        return grad_NH, None, None, None, None


@dataclass
class _Sums:
    """Over the vocabulary, for each token: the logarithm of the summed exponentials of the logits, and
    the mean of the output layer's rows under the softmax."""

    total_N: torch.Tensor
    expected_NH: torch.Tensor | None


def _measured(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    want_uniform: bool,
    want_expected: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, _Sums]:
    """(log-probabilities, their mean over the vocabulary, the sums they were made of)."""
    hidden_NH = hidden_NH.detach()
    weight_VH, bias_V = weight_VH.detach(), None if bias_V is None else bias_V.detach()
    parts = [
        _summed(hidden_NH[at : at + TOKENS_AT_ONCE], weight_VH, bias_V, want_expected)
        for at in range(0, max(1, len(hidden_NH)), TOKENS_AT_ONCE)
    ]
    total_N = torch.cat([part.total_N for part in parts])
    expected = [part.expected_NH for part in parts if part.expected_NH is not None]
    sums = _Sums(total_N, torch.cat(expected) if want_expected else None)
    hidden = hidden_NH.float()
    logit_N = (hidden * weight_VH[targets_N]).sum(-1)
    if bias_V is not None:
        logit_N += bias_V[targets_N]
    uniform_N = None
    if want_uniform:  # the mean of linear functions is one of them
        uniform_N = hidden @ _mean_row(weight_VH)
        if bias_V is not None:
            uniform_N += bias_V.float().mean()
        uniform_N -= total_N
    return logit_N - total_N, uniform_N, sums


def _summed(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, want_expected: bool
) -> _Sums:
    """The sums of a few tokens: piece after piece, each weighed by its share of the exponentials so far."""
    tokens = len(hidden_NH)
    total_N = hidden_NH.new_full((tokens,), -torch.inf, dtype=torch.float32)
    expected_NH = torch.zeros_like(hidden_NH, dtype=torch.float32) if want_expected else None
    buffers = _Buffers(hidden_NH, min(PIECE, len(weight_VH)))
    piece_NH = torch.empty_like(hidden_NH)
    for piece, logits_NP in _pieces(hidden_NH, weight_VH, bias_V, buffers):
        share_NP = torch.softmax(logits_NP, -1, out=buffers.of("share", logits_NP.shape))
        part_N = _log_sum(logits_NP, share_NP)
        both_N = torch.logaddexp(total_N, part_N)
        if expected_NH is not None:
            low_NP = share_NP
            if hidden_NH.dtype != torch.float32:
                low_NP = buffers.low[: share_NP.numel()].view(share_NP.shape).copy_(share_NP)
            torch.mm(low_NP, weight_VH[piece], out=piece_NH)
            expected_NH.mul_((total_N - both_N).exp_()[:, None])
            expected_NH.addcmul_(piece_NH, (part_N - both_N).exp_()[:, None])
        total_N = both_N
    return _Sums(total_N, expected_NH)


class _Buffers:
    """Memory for the logits of some tokens and a piece of the vocabulary, used for each piece anew."""

    def __init__(self, hidden_NH: torch.Tensor, piece: int):
        count = len(hidden_NH) * piece
        self.low = hidden_NH.new_empty(count)
        self.high = {name: hidden_NH.new_empty(count, dtype=torch.float32) for name in ("logits", "share")}

    def of(self, name: str, shape: torch.Size) -> torch.Tensor:
        return self.high[name][: shape.numel()].view(shape)


def _pieces(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, buffers: _Buffers
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The logits, in fp32, of each piece of the vocabulary; gone when the next is asked for."""
    for at in range(0, len(weight_VH), PIECE):
        piece = slice(at, at + PIECE)
        rows = weight_VH[piece]
        shape = torch.Size((len(hidden_NH), len(rows)))
        low_NP = torch.mm(hidden_NH, rows.T, out=buffers.low[: shape.numel()].view(shape))
        logits_NP = buffers.of("logits", shape).copy_(low_NP)
        if bias_V is not None:
            logits_NP += bias_V[piece]
        yield piece, logits_NP


def _log_sum(logits_NP: torch.Tensor, share_NP: torch.Tensor) -> torch.Tensor:
    """log(sum(exp(logits))) of each row, from one of its logits and what the softmax made of it.

    Exponentials are not taken a second time: they cost more than the matrix product.
    """
    first_N = share_NP[:, 0]
    if bool((first_N > SMALLEST_SHARE).all()):
        return logits_NP[:, 0] - first_N.log()
    return logits_NP.amax(-1) - share_NP.amax(-1).log()


def _mean_row(weight_VH: torch.Tensor) -> torch.Tensor:
    return weight_VH.mean(0, dtype=torch.float32)


def _recomputed(ctx: Any, up_N: torch.Tensor, up_uniform_N: torch.Tensor | None) -> tuple[Any, Any, Any]:
    """Gradients of hidden, weight and bias; the logits are computed a second time, piece by piece.

    The gradient of a logit is `up` where it is the target's, `up_uniform / V` everywhere, and its share
    of the softmax times the negative sum of the two.
    """
    hidden_NH, weight_VH, bias_V, targets_N, total_N = ctx.saved_tensors
    hidden_wants, weight_wants, bias_wants, *_ = ctx.needs_input_grad
    size = len(weight_VH)
    grad_NH = torch.zeros_like(hidden_NH, dtype=torch.float32) if hidden_wants else None
    grad_VH = torch.zeros_like(weight_VH) if weight_wants else None
    grad_V = torch.zeros_like(bias_V) if bias_wants else None
    even_N = up_uniform_N if ctx.want_uniform and up_uniform_N is not None else torch.zeros_like(up_N)
    for at in range(0, len(hidden_NH), TOKENS_AT_ONCE):
        few = slice(at, at + TOKENS_AT_ONCE)
        buffers = _Buffers(hidden_NH[few], min(PIECE, size))
        for piece, logits_NP in _pieces(hidden_NH[few], weight_VH, bias_V, buffers):
            grad_NP = torch.softmax(logits_NP, -1, out=buffers.of("share", logits_NP.shape))
            share_N = (_log_sum(logits_NP, grad_NP) - total_N[few]).exp_()
            grad_NP.mul_((share_N * -(up_N + even_N)[few])[:, None])
            grad_NP += (even_N / size)[few, None]
            here = ((targets_N[few] >= piece.start) & (targets_N[few] < piece.stop)).nonzero()[:, 0]
            grad_NP[here, targets_N[few][here] - piece.start] += up_N[few][here]
            low_NP = grad_NP.to(hidden_NH.dtype)
            if grad_NH is not None:
                grad_NH[few] += low_NP @ weight_VH[piece]
            if grad_VH is not None:
                grad_VH[piece] += low_NP.T @ hidden_NH[few]
            if grad_V is not None:
                grad_V[piece] += grad_NP.sum(0).to(grad_V.dtype)
    return None if grad_NH is None else grad_NH.to(hidden_NH.dtype), grad_VH, grad_V
