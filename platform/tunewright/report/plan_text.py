"""A plan as a person reads it in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunewright.report.text import count, duration
from tunewright.train.forecast.memory import PARTS, size


def plan_lines(planned: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one training."""
    device, memory, batch = planned["device"], planned["memory"], planned["batch"]
    parameters, rows = planned["parameters"], planned["rows"]
    share = parameters["trained"] / parameters["total"]
    yield f"training {planned['training']}: {planned['workers']} x {device['name']}, {planned['precision']}"
    trained = f"{count(parameters['trained'])} trained ({share:.2%})"
    yield f"  parameters   {count(parameters['total'])}, of which {trained}"
    yield (
        f"  rows         {count(rows['packed'])} packed, {count(rows['tokens'])} tokens, "
        f"{rows['learned']:.0%} of them learned"
    )
    yield f"               by {rows['measured_on']}"
    yield f"  documents    {_histogram(rows['histogram'])}"
    yield (
        f"  batch        {batch['rows']} rows: micro batch {batch['micro']} x {planned['workers']} workers "
        f"x {batch['accumulation']} accumulated"
    )
    cost = "" if planned["cost"] is None else f", cost {planned['cost']:,.2f}"
    yield (
        f"  steps        {count(planned['steps'])}, {count(planned['tokens'])} tokens, about "
        f"{duration(planned['seconds'])} at {device['utilisation']:.0%} of the device's rate{cost}"
    )
    held = f"{size(memory['total'])} of {size(device['memory'])}"
    yield f"  memory       {held} a worker, ZeRO stage {memory['stage']}"
    for name, said in PARTS.items():
        yield f"    {said:24} {size(memory[name]):>12}"
    stages = ", ".join(f"{stage}: {size(total)}" for stage, total in planned["memory_by_stage"].items())
    yield f"  by stage     {stages}"
    advice = planned["recommended"]
    if advice is not None:
        yield (
            f"  recommended  zero.stage {advice['stage']}, micro_batch_size {advice['micro_batch_size']} "
            f"(accumulation {advice['accumulation']})"
        )
    if not planned["fits"]:
        largest = max(PARTS, key=lambda name: memory[name])
        yield f"  DOES NOT FIT: the most is for {PARTS[largest]} ({size(memory[largest])}). What would fit:"
        for setting in planned["would_fit"] or [
            "nothing of one setting; change several, or take a larger device"
        ]:
            yield f"    {setting}"


def _histogram(bars: list[list[int]]) -> str:
    total = max(1, sum(documents for _, documents in bars))
    shown = [f"up to {edge:,}: {documents / total:.0%}" for edge, documents in bars if documents]
    return ", ".join(shown)
