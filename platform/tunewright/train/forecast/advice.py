"""What to change in a training so that it fits into a device's memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tunewright.train.forecast.estimate import STAGES, Estimate
from tunewright.train.forecast.memory import size

ROOM = 0.9
"""Of a device's memory that a training may plan for; allocators and libraries want the rest."""
ALTERNATIVES = 3


def recommended(estimate: Estimate, room: float) -> dict[str, int] | None:
    """The least ZeRO stage, and with it the largest micro batch, that fit into so many bytes."""
    config = estimate.config
    sizes = [n for n in range(config.global_batch_size, 0, -1) if config.global_batch_size % n == 0]
    for stage in STAGES if estimate.workers > 1 else STAGES[:1]:
        for micro in sizes:
            if micro * estimate.workers > config.global_batch_size:
                continue
            changed = estimate.changed(micro_batch_size=micro)
            if changed.memory(stage).total <= room:
                steps = math.ceil(config.global_batch_size / (micro * estimate.workers))
                return {"stage": stage, "micro_batch_size": micro, "accumulation": steps}
    return None


def would_fit(estimate: Estimate, room: float) -> Iterator[str]:
    """Settings, one at a time, with which the training fits into so many bytes; the cheapest ones first."""
    seen: set[str] = set()
    for said, changed in _changes(estimate):
        key = said.split(":")[0]
        if key in seen:
            continue
        needed = changed.memory().total
        if needed <= room:
            seen.add(key)
            yield f"{said} ({size(needed)})"


def _changes(estimate: Estimate) -> Iterator[tuple[str, Estimate]]:
    config = estimate.config
    for micro in (n for n in range(config.micro_batch_size - 1, 0, -1) if config.global_batch_size % n == 0):
        yield f"train.micro_batch_size: {micro}", estimate.changed(micro_batch_size=micro)
    if not config.gradient_checkpointing:
        yield "train.gradient_checkpointing: true", estimate.changed(gradient_checkpointing=True)
    for stage in range(config.zero.stage + 1, 4):
        zero = config.zero.model_copy(update={"stage": stage})
        yield f"train.zero.stage: {stage}", estimate.changed(zero=zero)
    for times in (2, 4, 8):
        workers = times * estimate.workers
        yield f"train.workers: {workers}", estimate.changed(workers=workers)
    if config.method.type in ("full", "freeze"):
        from tunewright.config import LoraConfig

        yield "train.method: {type: lora, rank: 16}", estimate.changed(method=LoraConfig())
