"""How much memory a training worker holds at its worst moment, and for what.

Bytes that follow from the code of DeepSpeed 0.19 and torch's AdamW; `tests/unit/train/test_forecast_terms.py`
compares them with the storages of real engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

GIB = 2**30
PARTS = {
    "weights": "weights of the model",
    "gradients": "gradients",
    "optimizer": "optimizer, fp32 weights",
    "activations": "activations",
    "logits": "output layer",
    "buffers": "DeepSpeed's copies",
}
"""The parts of `Memory`, as a person reads them."""
BUCKET = 50_000_000
"""Gradients exchanged at once: `reduce_bucket_size`; and the `stage3_prefetch_bucket_size` of weights."""
BUFFER = 500_000_000
"""The same at stage 0, where it is DeepSpeed's own number."""
LIVE = 1_000_000_000
"""Parameters that ZeRO-3 gathers, or steps, at most at once."""
KEPT = 1.7
"""What a process's heap takes for tensors that come and go, as a multiple of what is alive of them.

glibc looks for an aligned block with some bytes to spare, so that the hole that a tensor leaves behind is
often too small for the next one of its size. By `benchmarks/plan_memory.py`: 1.65 to 1.76 for five of its
cases, and more for DoRA, whose layers make and free many tensors of a size.
"""
MAPPED = 32 << 20
"""Bytes from which a block goes back to the system when it is freed; smaller ones stay with the process.

What `train/launch.py` tells glibc, and the most that glibc can be told.
"""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at its worst moment.

    Attributes:
        weights: of the model; this worker's share of them under ZeRO-3.
        gradients: of the trained parameters.
        optimizer: its moments, and the fp32 weights that it steps.
        activations: what the forward pass keeps for the backward pass, and what comes and goes there.
        logits: what asking the output layer adds to that.
        buffers: what DeepSpeed copies together to exchange or to step, and gathers under ZeRO-3.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int

    @property
    def parts(self) -> dict[str, int]:
        return dict(vars(self))

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Sizes:
    """What memory follows from.

    Attributes:
        weights: bytes of the whole model's.
        total, trained: parameters.
        largest: parameters of the largest trained weight.
    """

    weights: int
    total: int
    trained: int
    largest: int


@dataclass(frozen=True)
class Traced:
    """What a micro batch's passes hold.

    Attributes:
        peak: bytes at the worst moment.
        asking: the part of it that is there because of the output layer.
    """

    peak: int
    asking: int


@dataclass(frozen=True)
class Setting:
    """How a training is divided.

    Attributes:
        stage: of ZeRO.
        bytes_each: of a parameter in the model: 2 or 4.
        accumulates: whether a step has several micro batches, so that gradients wait for the next one.
        gpu: where buffers take their whole size at once; a processor's take what was written to them.
    """

    stage: int
    bytes_each: int
    workers: int = 1
    accumulates: bool = True
    gpu: bool = False


class Moment(NamedTuple):
    """Bytes beside the weights and the optimizer's own.

    Attributes:
        piece: of one of the buffers; small ones are made of memory that is free within the process.
    """

    gradients: int
    buffers: int
    piece: int


def memory(setting: Setting, sizes: Sizes, traced: Traced) -> Memory:
    """The worst moment of a training step: its passes, the exchange of gradients, or the optimizer's step."""
    stage, each = setting.stage, setting.bytes_each
    weights = sizes.weights // setting.workers if stage == 3 else sizes.weights
    masters = 4 if stage or each == 2 else 0  # an fp32 model that nothing divides is stepped itself
    optimizer = (8 + masters) * _stepped(setting, sizes)
    passes = round(traced.peak * (1.0 if setting.gpu else KEPT))
    held, worst = in_passes(setting, sizes), []
    for moment in (held, in_exchange(setting, sizes), in_step(setting, sizes)):
        # Activations are at their most when the backward pass begins, and gone when gradients are exchanged.
        left = passes if moment is held else _left(setting, passes, moment)
        asking = round(left * traced.asking / max(1, traced.peak))
        worst.append(Memory(weights, moment.gradients, optimizer, left - asking, asking, moment.buffers))
    return max(worst, key=lambda each: each.total)


def _left(setting: Setting, passes: int, moment: Moment) -> int:
    """What of the passes' memory the process still has when gradients are exchanged, or AdamW steps."""
    if setting.gpu:
        return 0
    return passes if moment.piece >= MAPPED else max(0, passes - moment.buffers)


def in_passes(setting: Setting, sizes: Sizes) -> Moment:
    """While a micro batch after the first goes through the model."""
    stage, each = setting.stage, setting.bytes_each
    waiting = each * (_stepped(setting, sizes) if stage >= 2 else sizes.trained)
    gradients = waiting if setting.accumulates or stage == 3 else 0
    buffers = _bucket(setting, sizes) if stage == 3 or (stage and setting.gpu) else 0
    if stage == 3 and setting.workers > 1:
        buffers += each * min(sizes.total, LIVE + BUCKET)  # gathered weights stay until the backward pass
    return Moment(gradients, buffers, 0)


def in_exchange(setting: Setting, sizes: Sizes) -> Moment:
    """At the end of the last backward pass of a step, when gradients are averaged over the workers."""
    stage, each = setting.stage, setting.bytes_each
    at_once, mine = each * min(sizes.trained, BUCKET), each * _stepped(setting, sizes)
    exchanged = at_once if setting.workers > 1 else 0
    if stage == 0:
        together = each * min(sizes.trained, BUFFER)
        return Moment(each * sizes.trained, together, together)
    if stage == 1:  # gradients move into the bucket, are sent from a copy of it, and are taken out of it
        gradients = each * sizes.trained
        if setting.gpu:
            return Moment(gradients, _bucket(setting, sizes), at_once)
        return Moment(gradients, max(exchanged, min(mine, at_once)), at_once)
    if stage == 2:
        waiting = mine if setting.accumulates else 0
        return Moment(waiting + mine, _bucket(setting, sizes) + max(0, exchanged - mine), at_once)
    return Moment(mine, _bucket(setting, sizes) + 2 * at_once, at_once)


def in_step(setting: Setting, sizes: Sizes) -> Moment:
    """While AdamW steps: it makes two tensors as large as each weight, or on GPUs one as large as all."""
    stage, each = setting.stage, setting.bytes_each
    mine = _stepped(setting, sizes)
    if stage == 0:
        copied = 4 * mine if each == 2 else 0
        made = 4 * mine if setting.gpu else 12 * sizes.largest
        return Moment(each * mine, copied + made, 4 * sizes.largest)
    piece = 4 * (min(mine, LIVE) if stage == 3 else mine)
    # Gradients in fp32, and what AdamW makes.
    return Moment(each * mine, 3 * piece + (_bucket(setting, sizes) if stage == 3 else 0), piece)


def _stepped(setting: Setting, sizes: Sizes) -> int:
    """Parameters that one worker steps."""
    return -(-sizes.trained // setting.workers) if setting.stage else sizes.trained


def _bucket(setting: Setting, sizes: Sizes) -> int:
    """Bytes in which gradients are laid side by side."""
    return setting.bytes_each * (BUCKET if setting.gpu else min(sizes.trained, BUCKET))


def size(value: float) -> str:
    """Bytes as a person reads them: 512 MiB, 1.5 GiB."""
    return f"{value / GIB:,.1f} GiB" if value >= GIB else f"{value / 2**20:,.0f} MiB"
