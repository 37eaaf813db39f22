"""Log-probabilities without the logits of a whole vocabulary: the same numbers, and bounded memory."""

import pytest
import torch

from tunewright.models import token_logps as module
from tunewright.models.token_logps import token_logps


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 16)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 5)
    monkeypatch.setattr(module, "FEW_LOGITS", 0)


def made(bias: bool = False, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(13, 8, dtype=dtype), torch.randn(50, 8, dtype=dtype)
    return hidden, weight, torch.randn(50, dtype=dtype) if bias else None, torch.randint(50, (13,))  # type: ignore[return-value]


def plain(hidden, weight, bias, targets):  # type: ignore[no-untyped-def]
    every = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    return every.gather(1, targets[:, None])[:, 0], every.mean(-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", ["hidden", "weight", "everything"])
def test_values_and_gradients_are_those_of_a_log_softmax(bias: bool, trained: str) -> None:
    hidden, weight, bias_V, targets = made(bias, torch.float32)
    learned = {"hidden": [hidden], "weight": [weight], "everything": [hidden, weight]}[trained]
    if bias and trained == "everything":
        learned.append(bias_V)
    for tensor in learned:
        tensor.requires_grad_()
    up, up_uniform = torch.randn(13), torch.randn(13)
    wanted = plain(hidden, weight, bias_V, targets)
    expected = torch.autograd.grad((wanted[0] * up + wanted[1] * up_uniform).sum(), learned)
    found = token_logps(hidden, weight, bias_V, targets, True)
    assert found[1] is not None
    got = torch.autograd.grad((found[0] * up + found[1] * up_uniform).sum(), learned)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_without_uniform_there_is_none_and_the_gradient_is_the_same() -> None:
    hidden, weight, _, targets = made(dtype=torch.float32)
    hidden.requires_grad_()
    (wanted,) = torch.autograd.grad(plain(hidden, weight, None, targets)[0].sum(), hidden)
    logps, uniform = token_logps(hidden, weight, None, targets)
    assert uniform is None
    torch.testing.assert_close(torch.autograd.grad(logps.sum(), hidden)[0], wanted, rtol=1e-5, atol=1e-6)


def test_evaluation_has_no_graph() -> None:
    hidden, weight, _, targets = made(dtype=torch.float32)
    hidden.requires_grad_()
    with torch.no_grad():
        logps, _ = token_logps(hidden, weight, None, targets)
    assert not logps.requires_grad
    torch.testing.assert_close(logps, plain(hidden, weight, None, targets)[0].detach())


def test_logits_far_apart_are_exact() -> None:
    hidden, weight, _, targets = made(dtype=torch.float32)
    weight[3] *= 60  # its logits leave nothing of the first of their piece
    hidden.requires_grad_()
    logps, _ = token_logps(hidden, weight, None, targets)
    torch.testing.assert_close(logps, plain(hidden, weight, None, targets)[0], rtol=1e-5, atol=1e-4)
    assert logps.detach().min() < -100


def test_no_token_at_all_is_no_error() -> None:
    hidden, weight, _, targets = made(dtype=torch.float32)
    hidden.requires_grad_()
    logps, uniform = token_logps(hidden[:0], weight, None, targets[:0], True)
    assert logps.shape == (0,) and uniform is not None and uniform.shape == (0,)
    (logps.sum() + hidden.sum() * 0).backward()
    assert hidden.grad is not None and not hidden.grad.any()


def test_bf16_is_as_good_as_bf16_logits() -> None:
    hidden, weight, _, targets = made(dtype=torch.float32)
    low_hidden, low_weight = hidden.bfloat16().requires_grad_(), weight.bfloat16()
    found, _ = token_logps(low_hidden, low_weight, None, targets)
    assert found.dtype == torch.float32
    exact = low_hidden.detach().float().requires_grad_()
    wanted, _ = plain(exact, low_weight.float(), None, targets)
    assert float((found - wanted).detach().abs().max()) < 2**-8 * float(wanted.detach().abs().max()) + 0.05
    (got,), (expected,) = (
        torch.autograd.grad(found.sum(), low_hidden),
        torch.autograd.grad(wanted.sum(), exact),
    )
    assert float((got.float() - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_no_tensor_of_tokens_by_vocabulary_is_made() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in (out if isinstance(out, tuple) else (out,)) if hasattr(t, "numel")
            )
            return out

    hidden, weight, _, targets = made(dtype=torch.float32)
    with Watch():
        token_logps(hidden.requires_grad_(), weight, None, targets, True)[0].sum().backward()
    assert 0 < max(sizes) < 13 * 50  # the weight itself has 400 numbers


@pytest.mark.parametrize("bias", [False, True])
def test_few_logits_at_once_give_what_pieces_give(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    hidden, weight, offset, targets = made(bias=True)
    given = (hidden, weight, offset if bias else None, targets)
    pieces = token_logps(*given, True)
    monkeypatch.setattr(module, "FEW_LOGITS", 1 << 20)
    whole = token_logps(*given, True)
    for found, wanted in zip(whole, pieces, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, check_dtype=False)
