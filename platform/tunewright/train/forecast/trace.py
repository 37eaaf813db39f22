"""How much memory a forward and a backward pass hold, found by running them without data.

Tensors have shapes and no content (`FakeTensorMode`), so a model of any size is traced in seconds on
any machine, through the very code that trains it. What is counted are storages: when an operation
makes one it counts, and when the last tensor on it is gone it no longer does.

B rows, S tokens per row.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunewright.train.objectives.base import Mask, Rows


@dataclass(frozen=True)
class Passes:
    """Bytes of the storages made by a micro batch's passes, weights and gradients apart.

    Attributes:
        kept: alive between the forward and the backward pass: what the backward pass will need.
        forward_peak: the most at any time of the forward pass.
        backward_peak: the most at any time of the backward pass.
    """

    kept: int
    forward_peak: int
    backward_peak: int

    @property
    def peak(self) -> int:
        return max(self.forward_peak, self.backward_peak)


@contextmanager
def without_data() -> Iterator[None]:
    """While the block runs, tensors have shapes alone; made-up ones and real ones may meet."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), Unanswered():  # type: ignore[no-untyped-call]
        yield


class Unanswered(TorchDispatchMode):
    """Answers what code asks of tensors' content, which is not there, as the usual case would."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype is torch.bool or 0  # a condition holds; two results do not differ
        if func is torch.ops.aten.equal.default:
            return True
        if func is torch.ops.aten.nonzero.default:
            return torch.empty((0, args[0].dim()), dtype=torch.int64)
        return func(*args, **(kwargs or {}))


def weightless(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give a model on the meta device weights that have shapes alone, inside `without_data`."""
    made: dict[int, torch.Tensor] = {}

    def replaced(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            new = torch.empty(tensor.shape, dtype=kind, device="cpu")
            if isinstance(tensor, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[id(tensor)] = new
        return made[id(tensor)]

    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    own[name] = replaced(tensor)  # type: ignore[assignment]


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while it is on.

    Args:
        ignored: tensors whose storages do not count, such as weights.
    """

    def __init__(self, ignored: Iterable[torch.Tensor] = ()):
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._saw(value)
        return out

    def _saw(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "meta":  # a shape that someone notes down
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._ignored or key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage)
        weakref.finalize(storage, self._gone, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int) -> None:
        if self._known.pop(key, None) is not None:
            self.live -= size


def passes(model: Any, rows: Rows, mask_BS: Mask, dtype: torch.dtype, scattered: bool = False) -> Passes:
    """The memory of a micro batch's passes through a model that is made of shapes alone.

    Args:
        model: with its method on it, by `weightless`.
        rows: of the micro batch; their content does not matter, their documents do.
        mask_BS: the places that the head is asked about.
        scattered: as under ZeRO-3, where some layers go other ways.
    """
    from tunewright.train.bare import bare_forward
    from tunewright.train.objectives.base import Places

    forward = bare_forward(model, torch.device("cpu"), dtype, rows["input_ids"].shape[1])
    weights = list(model.parameters())
    if scattered:
        for weight in weights:
            weight.ds_id, weight.ds_status = 0, None  # DeepSpeed, where it was at work before, asks for both
    for weight in weights:
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    grads = [weight.grad for weight in weights if weight.grad is not None]
    with LiveStorages([*weights, *model.buffers(), *grads]) as storages:
        logps_N, _ = forward.logps(rows, Places.of(mask_BS))
        loss = -logps_N.sum()
        del logps_N
        kept, forward_peak = storages.live, storages.peak
        storages.peak = storages.live
        loss.backward()
        return Passes(kept, forward_peak, storages.peak)
