"""How much memory a training worker holds at its worst moment, and for what."""

from __future__ import annotations

from dataclasses import dataclass

BUCKET, BUFFER = 50_000_000, 500_000_000
"""Gradients that DeepSpeed copies together at once: `reduce_bucket_size`, and its own number at stage 0."""


@dataclass(frozen=True)
class Held:
    """Bytes for each trained parameter that DeepSpeed holds beside the model's weights.

    Measured with the installed DeepSpeed by `benchmarks/forecast_terms.py`, on 1 and on 2 workers.

    Attributes:
        gradients, optimizer: all the time; the optimizer's fp32 weights are among them.
        backward, step: besides, at the end of the backward pass and while the optimizer steps.
    """

    gradients: float
    optimizer: float
    backward: float
    step: float


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


TERMS: dict[tuple[int, bool], tuple[Held, Held]] = {
    (0, True): (Held(4, 12, 2, 4), Held(0, 0, 0, 0)),
    (1, True): (Held(7.3, 0, 2.3, 0), Held(0, 12, 0, 14)),
    (2, True): (Held(4.5, 0, 5.5, 2), Held(0, 12, 0, 12)),
    (3, True): (Held(10, 0, 4, 0), Held(0, 12, 0, 12)),
    (0, False): (Held(5, 8, 4, 0.5), Held(0, 0, 0, 0)),
    (1, False): (Held(7.2, 0, 8, 0), Held(0, 12, 0, 16)),
    (2, False): (Held(3.3, 0, 8.8, 0.8), Held(0, 12, 3.2, 15.2)),
    (3, False): (Held(15.7, 0, 8, 0), Held(0, 12, 0, 12)),
}
"""(ZeRO stage, whether 16 bit) -> what each worker holds, and what is divided by their number."""


@dataclass(frozen=True)
class Sizes:
    """Parameters that memory follows from.

    Attributes:
        largest_block: of the largest block, which ZeRO-3 gathers as a whole.
    """

    total: int
    trained: int
    largest_block: int


@dataclass(frozen=True)
class Traced:
    """What a micro batch's passes hold.

    Attributes:
        peak: bytes at the worst moment.
        asking: the part of it that is there because of the output layer.
    """

    peak: int
    asking: int


def held(stage: int, sixteen_bit: bool, workers: int) -> Held:
    """What DeepSpeed holds for each trained parameter on each of the workers."""
    whole, divided = TERMS[stage, sixteen_bit]
    pairs = zip(vars(whole).values(), vars(divided).values(), strict=True)
    return Held(*(each + share / workers for each, share in pairs))


def memory(stage: int, sizes: Sizes, traced: Traced, bytes_each: int, workers: int) -> Memory:
    """The worst moment of a training step: in the backward pass, or when the optimizer steps.

    Args:
        stage: of ZeRO.
        bytes_each: of a parameter in the model: 2 or 4.
    """
    terms = held(stage, bytes_each == 2, workers)
    weights, gathered = sizes.total * bytes_each, 0
    if stage == 3:
        weights, gathered = weights // workers, 2 * sizes.largest_block * bytes_each
    gradients, optimizer = (round(sizes.trained * each) for each in (terms.gradients, terms.optimizer))
    # Activations are at their most when the backward pass begins, and gone when gradients are copied.
    at_once = min(sizes.trained, BUCKET if stage else BUFFER)
    copied = round(max(at_once * terms.backward, sizes.trained * terms.step))
    if traced.peak + gathered >= copied:
        return Memory(weights, gradients, optimizer, traced.peak - traced.asking, traced.asking, gathered)
    return Memory(weights, gradients, optimizer, 0, 0, copied)
