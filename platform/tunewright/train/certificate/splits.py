"""Entry 3: one global batch gives one loss and one gradient, however it is divided.

Measured on the run's first global batch, each of its rows cut down to its shortest documents. First this
process alone adds it up by its definition, in passes of two sizes, with plain autograd. Then all workers
take it as training does, through DeepSpeed, with a learning rate of zero.

G rows of the global batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tunewright.config import TrainConfig
from tunewright.train.bare import bare_forward, evaluating
from tunewright.train.certificate.entry import Entry, within
from tunewright.train.certificate.packed import name_of
from tunewright.train.certificate.sample import (
    Subject,
    kept_documents,
    reference_of,
)
from tunewright.train.engine import Engine, accumulation_steps
from tunewright.train.evaluating import Tally
from tunewright.train.forward import Forward
from tunewright.train.loop import Loop
from tunewright.train.objectives.base import Rows
from tunewright.train.schedule import Order
from tunewright.train.streams import Index, Micro, Stream, take
from tunewright.train.teaching import ask, ask_first

if TYPE_CHECKING:
    import torch

PASSES = (8, 3)
"""Into how many the batch is divided by this process alone, one way and the other."""
BATCH_TOKENS = 16_384
"""Of a batch of more, each row keeps its shortest document, or pair of them; else its two shortest."""
LOSS = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}
NORM = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}
"""Relative differences. fp32: the sums are taken in another order. bf16: gradients are rounded to 8 bits
where they are added up; see the module's tests for what was measured."""


@dataclass(frozen=True)
class Split:
    """What one way to divide the batch gives."""

    told: str
    loss: float
    norm: float


@dataclass(frozen=True)
class Batch:
    """The first global batch.

    Attributes:
        streams: with shortened rows in place of their own.
        tasks_G, indices_G: as `Order.rows_of_step` gives them.
        tokens: padding aside.
    """

    streams: tuple[Stream, ...]
    tasks_G: Index
    indices_G: Index
    tokens: int

    def micros(self, passes: int) -> Iterator[Micro]:
        """All of it, in about so many passes of the same size."""
        size = math.ceil(len(self.tasks_G) / passes)
        for at in range(0, len(self.tasks_G), size):
            yield take(self.streams, self.tasks_G[at : at + size], self.indices_G[at : at + size])


class ShortRows:
    """A few rows by the numbers that they have among all, cut down."""

    def __init__(self, rows: dict[int, Rows], total: int):
        self.rows, self.total = rows, total

    def __len__(self) -> int:
        return self.total

    def take(self, indices: Sequence[int]) -> Rows:
        taken = [self.rows[int(index)] for index in indices]
        return {name: np.concatenate([row[name] for row in taken]) for name in taken[0]}


class Alone:
    """A group of this process alone, for sums that are not exchanged."""

    def sum(self, values: list[float]) -> list[float]:
        return values


def first_batch(subjects: Sequence[Subject], config: TrainConfig, seed: int) -> Batch:
    """The rows of the run's first step, shortened."""
    streams = [subject.stream for subject in subjects]
    order = Order(config, seed, [len(s.rows) for s in streams], [s.share for s in streams[1:]])
    tasks_G, indices_G = order.rows_of_step(0)
    for units in (2, 1):
        shortened = [
            _chosen(subject, indices_G[tasks_G == task], units) for task, subject in enumerate(subjects)
        ]
        length = max(length for _, length in shortened)
        if len(tasks_G) * length <= BATCH_TOKENS:
            break
    out, tokens = [], 0
    for subject, (numbers, _) in zip(subjects, shortened, strict=True):
        rows = {
            index: kept_documents(subject.stream.rows.take([index]), [chosen], length)
            for index, chosen in numbers.items()
        }
        out.append(
            replace(
                subject.stream,
                rows=ShortRows(rows, len(subject.stream.rows)),
                reference=reference_of(subject.stream, numbers),
            )
        )
        tokens += sum(int((row["segment_ids"] > 0).sum()) for row in rows.values())
    return Batch(tuple(out), tasks_G, indices_G, tokens)


def _chosen(subject: Subject, indices: Index, units: int) -> tuple[dict[int, list[int]], int]:
    """Row -> numbers of the documents it keeps, and the tokens of the longest of such rows.

    What an objective compares stays together: the answers of a pair, and all documents of a row where
    a first pass pairs them anew.
    """
    out: dict[int, list[int]] = {}
    longest = 1
    objective = subject.stream.objective
    for index in sorted({int(index) for index in indices}):
        rows = subject.stream.rows.take([index])
        segments_S, places_S = rows["segment_ids"][0], objective.places(rows)[0]
        most = int(segments_S.max(initial=0))
        lengths = np.bincount(segments_S, minlength=most + 1)
        asked = np.bincount(segments_S[places_S], minlength=most + 1)
        together = 2 if subject.rows_of == "preference" else max(1, most) if objective.first_pass else 1
        groups = [list(range(at, at + together)) for at in range(1, most + 1, together)]
        # Those that teach nothing last: a batch of them would show nothing.
        groups.sort(key=lambda group: (not asked[group].all(), int(lengths[group].sum())))
        out[index] = sorted(number for group in groups[:units] for number in group)
        longest = max(longest, int(lengths[out[index]].sum()))
    return out, longest


def alone(batch: Batch, model: Any, device: torch.device, dtype: torch.dtype) -> list[Split]:
    """Loss and gradient norm of the batch by this process, in passes of two sizes."""
    named = [weight for weight in model.parameters() if weight.requires_grad]
    length = next(iter(batch.micros(1))).rows["segment_ids"].shape[1]
    forward = bare_forward(model, device, dtype, length)
    with evaluating(model):
        return [_added_up(batch, forward, named, passes) for passes in PASSES]


def _added_up(batch: Batch, forward: Forward, weights: list[Any], passes: int) -> Split:
    """By the definition: each task's sum over the batch, divided by its units in all of the batch."""
    import torch

    micros = list(batch.micros(passes))
    units = [0.0] * len(batch.streams)
    for part in (part for micro in micros for part in micro.parts):
        units[part.task] += batch.streams[part.task].objective.units(part.rows)
    share = np.bincount(batch.tasks_G, minlength=len(batch.streams)) / len(batch.tasks_G)
    weight = [part / max(1.0, count) for part, count in zip(share.tolist(), units, strict=True)]
    baselines = _baselines(batch, forward, micros)
    total, gradients = 0.0, [torch.zeros_like(w, dtype=torch.float32) for w in weights]
    for micro in micros:
        answers = ask(forward, batch.streams, micro, baselines=baselines)
        losses = [
            batch.streams[part.task].objective.loss(answer) * weight[part.task]
            for part, answer in zip(micro.parts, answers, strict=True)
        ]
        loss = sum(losses[1:], losses[0])
        total += float(loss.detach())
        for whole, own in zip(gradients, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if own is not None:
                whole += own.float()
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    return Split(f"{len(micros)} passes of one process", total, norm)


def _baselines(batch: Batch, forward: Forward, micros: Sequence[Micro]) -> dict[int, float]:
    tasks = [task for task, stream in enumerate(batch.streams) if stream.objective.first_pass is not None]
    if not tasks:
        return {}
    tally = Tally(batch.streams, tasks, cast(Any, Alone()))
    for micro in micros:
        answers = ask_first(forward, batch.streams, micro, "train")
        for part, answer in zip(micro.parts, answers, strict=True):
            tally.add(part.task, answer)
    return tally.baselines()


def by_all_workers(loop: Loop, batch: Batch) -> Split:
    """The same of all workers and their engine, as a step of training takes it; collective.

    The step has a learning rate of zero, and the optimizer forgets it: no weight changes.
    """
    rehearsal = copy.copy(loop)
    rehearsal.streams = batch.streams
    rehearsal.config = loop.config.model_copy(update={"learning_rate": 0.0, "watchdog": None})
    with evaluating(loop.engine.deepspeed.module):
        figures, _, _ = rehearsal._step(0)
    _forget_steps(loop.engine)
    micro, world = loop.config.micro_batch_size, loop.group.world
    steps = accumulation_steps(loop.config, world)
    told = f"{world} worker{'s' * (world > 1)} with {steps} micro batch{'es' * (steps > 1)} of {micro}"
    return Split(told, figures["loss"], figures["grad_norm"])


def _forget_steps(engine: Engine) -> None:
    """Make the optimizer's state that of one that has taken none."""
    optimizer = engine.deepspeed.optimizer
    for state in getattr(optimizer, "optimizer", optimizer).state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name].zero_()
    engine.count_steps_from(0)
    engine.deepspeed.global_steps = 0


def splits_entry(splits: Sequence[Split], batch: Batch, dtype: torch.dtype) -> Entry:
    """Whether all ways to divide the batch give the first one's loss and gradient norm."""
    precision = name_of(dtype)
    first = splits[0]
    measured: dict[str, Any] = {
        # By numpy, for whom what is no number is the largest.
        "loss_difference": float(np.max([_relative(split.loss, first.loss) for split in splits])),
        "gradient_norm_difference": float(np.max([_relative(split.norm, first.norm) for split in splits])),
    }
    tolerance = {"loss_difference": LOSS[precision], "gradient_norm_difference": NORM[precision]}
    figures = [f"{split.told}: loss {split.loss:.6g}, gradient norm {split.norm:.6g}" for split in splits]
    measured |= {"rows": len(batch.tasks_G), "tokens": batch.tokens, "splits": figures}
    if not first.norm > 0:
        said = f"no gradient reaches the trained weights: its norm over the first batch is {first.norm:g}"
        return Entry(3, False, said, measured, tolerance)
    if within(measured, tolerance):
        said = f"{len(batch.tasks_G)} rows give loss {first.loss:.6g} and gradient norm {first.norm:.6g} in "
        return Entry(3, True, said + ", ".join(split.told for split in splits), measured, tolerance)
    said = "the same rows give another loss or gradient when they are divided otherwise: "
    return Entry(3, False, said + "; ".join(figures), measured, tolerance)


def _relative(value: float, of: float) -> float:
    return abs(value - of) / max(abs(of), 1e-12)
