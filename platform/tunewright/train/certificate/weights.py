"""Entry 6: exactly the method's weights are trained; they moved, and no other weight did."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.config.methods import Method
from tunewright.train.certificate.entry import Entry
from tunewright.train.engine import Engine
from tunewright.train.group import Group
from tunewright.train.methods.names import trainable_names

if TYPE_CHECKING:
    import torch

Hashes = dict[str, bytes]
"""Name of a weight -> hash of its values."""
PIECE = 1 << 24
"""Numbers that are hashed at a time."""
LEAST_MOVED = 0.5
"""Share of the trained weights that must have moved. After one step, half of LoRA's have: the others get
no gradient while their partners are zero."""


@dataclass(frozen=True)
class Before:
    """The weights before training.

    Attributes:
        trained: hashes of the trained weights, in fp32.
        frozen: of all others; under ZeRO-3 of this worker's part of them.
        numbers, all_numbers: how many are trained, and how many there are.
    """

    trained: Hashes
    frozen: Hashes
    numbers: int
    all_numbers: int


def trainable_problem(model: torch.nn.Module, method: Method) -> str:
    """Why the weights that take gradients are not the method's; empty if they are."""
    expected = trainable_names(model, method)
    found = {name for name, weight in model.named_parameters() if weight.requires_grad}
    more, fewer = sorted(found - expected), sorted(expected - found)
    told = []
    if more:
        told.append(f"{len(more)} weights would be trained that {method.type} does not name, first {more[0]}")
    if fewer:
        told.append(f"{len(fewer)} weights of {method.type} would not be trained, first {fewer[0]}")
    return "; ".join(told) or ("" if found else f"{method.type} trains no weight")


def look_before(model: torch.nn.Module) -> Before:
    """Hash the weights of a model that is whole on this worker."""
    trained, frozen = {}, {}
    numbers = every = 0
    for name, weight in model.named_parameters():
        every += weight.numel()
        if weight.requires_grad:
            trained[name] = _hash(weight.detach().float())
            numbers += weight.numel()
        else:
            frozen[name] = _hash(weight)
    return Before(trained, frozen, numbers, every)


def differing_workers(before: Before, group: Group) -> list[int]:
    """Which workers hold other weights than worker 0; collective."""
    own = hashlib.sha256(b"".join(h for hashes in (before.trained, before.frozen) for h in hashes.values()))
    differs = own.digest() != group.told(own.digest())
    flags = group.sum([float(differs and rank == group.rank) for rank in range(group.world)])
    return [rank for rank, flag in enumerate(flags) if flag]


def hash_frozen(engine: Engine) -> Hashes:
    """Hashes of the weights that are not trained; under ZeRO-3 of the part that this worker holds."""
    trained = {id(weight) for _, weight in engine.named}
    return {
        name: _hash(getattr(weight, "ds_tensor", weight))
        for name, weight in engine.deepspeed.module.named_parameters()
        if id(weight) not in trained
    }


def changed_anywhere(before: Hashes, after: Hashes, group: Group) -> tuple[int, str]:
    """How many frozen weights changed on the worker where most did, and the first one's name; collective."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    counts = group.sum([float(len(changed) * (rank == group.rank)) for rank in range(group.world)])
    return int(max(counts)), changed[0] if changed else ""


def weights_entry(
    before: Before, after: Mapping[str, torch.Tensor], changed: tuple[int, str], method: Method, workers: int
) -> Entry:
    """Whether training moved what it was to move, and nothing else.

    Args:
        after: fp32 values of the trained weights.
        changed: of `changed_anywhere`.
    """
    moved = sum(_hash(after[name]) != hashed for name, hashed in before.trained.items() if name in after)
    measured: dict[str, Any] = {
        "trained_weights": len(before.trained),
        "trained_numbers": before.numbers,
        "trained_share": before.numbers / before.all_numbers,
        "moved": moved,
        "frozen_weights": len(before.frozen),
        "frozen_changed": changed[0],
        "workers": workers,
    }
    tolerance = {"frozen_changed": 0.0}
    lost = sorted(set(before.trained) ^ set(after))
    if lost:
        said = f"{len(lost)} trained weights are not those that training began with, first {lost[0]}"
        return Entry(6, False, said, measured, tolerance)
    if changed[0]:
        named = f", first {changed[1]}" if changed[1] else ""
        said = (
            f"{changed[0]} of {len(before.frozen)} weights that {method.type} does not train changed{named}"
        )
        return Entry(6, False, said, measured, tolerance)
    if moved < LEAST_MOVED * len(before.trained):
        said = f"{moved} of {len(before.trained)} trained weights moved: training did not reach the others"
        return Entry(6, False, said, measured, tolerance)
    rest = f"none of the {len(before.frozen)} others did" if before.frozen else "there are no others"
    said = (
        f"{moved} of {len(before.trained)} weights of {method.type} moved ({before.numbers:,} numbers, "
        f"{before.numbers / before.all_numbers:.2%} of the model), {rest}"
    )
    return Entry(6, True, said, measured, tolerance)


def _hash(weight: torch.Tensor) -> bytes:
    sha = hashlib.sha256()
    for piece in _pieces(weight):
        sha.update(piece)
    return sha.digest()[:16]


def _pieces(weight: torch.Tensor) -> Iterator[memoryview]:
    import torch

    flat = weight.detach().reshape(-1)
    for at in range(0, len(flat), PIECE):
        yield flat[at : at + PIECE].cpu().contiguous().view(torch.uint8).numpy().data
