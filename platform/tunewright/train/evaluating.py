"""What an evaluation measures: each task's loss and figures on evaluation rows, and the scorer's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tunewright.train.forward import Forward
from tunewright.train.group import Group
from tunewright.train.objectives.base import Answer, FirstPass
from tunewright.train.streams import Micro, Part, Stream, take_padded
from tunewright.train.teaching import ask, ask_first

Scorer = Callable[[Any, int, int], dict[str, tuple[float, float]]]
"""(model, rank, world) -> name -> (numerator, denominator) of this worker's share of a task."""


class Evaluator:
    """Measures a model on evaluation rows, each worker its share of them.

    Args:
        size: rows a forward pass.
        scorer: the task's figure on validation rows, by generation; None for the loss alone.
    """

    def __init__(
        self,
        forward: Forward,
        group: Group,
        streams: Sequence[Stream],
        size: int,
        scorer: Scorer | None = None,
    ):
        self.forward, self.group, self.streams, self.size = forward, group, streams, size
        self.scorer = scorer

    def figures(self) -> dict[str, float]:
        """`eval_loss` of each task, its objective's figures, and the scorer's; the same on every worker."""
        import torch

        model = self.forward.engine.deepspeed.module
        model.eval()
        out: dict[str, float] = {}
        with torch.no_grad():
            for task, stream in enumerate(self.streams):
                if len(stream.eval_rows):
                    figures = self._task(task, stream)
                    out |= {stream.named(f"eval_{name}"): value for name, value in figures.items()}
            if self.scorer is not None:
                for name, parts in self._score(model).items():
                    numerator, denominator = self.group.sum(list(parts))
                    out[name] = numerator / max(1.0, denominator)
        model.train()
        return out

    def _task(self, task: int, stream: Stream) -> dict[str, float]:
        """This task's figures; every worker makes the same number of passes, ZeRO-3 needs it."""
        objective, baselines = stream.objective, {}
        if objective.first_pass is not None:
            tally = Tally(self.streams, [task], self.group)
            for part in self._parts(task, stream):
                tally.add(task, *ask_first(self.forward, self.streams, Micro((part,)), "eval"))
            baselines = tally.baselines()
        loss = units = 0.0
        counts: dict[str, float] = {}
        for part in self._parts(task, stream):
            (answer,) = ask(self.forward, self.streams, Micro((part,)), False, "eval", baselines)
            loss += float(objective.loss(answer, training=False))
            units += objective.units(part.rows)
            for name, value in objective.counts(answer).items():
                counts[name] = counts.get(name, 0.0) + value
        loss, units, *sums = self.group.sum([loss, units, *counts.values()])
        return {
            "loss": loss / max(1.0, units),
            **objective.summary(dict(zip(counts, sums, strict=True))),
        }

    def _parts(self, task: int, stream: Stream) -> Iterator[Part]:
        passes = math.ceil(len(stream.eval_rows) / (self.size * self.group.world))
        for number in range(passes):
            first = (number * self.group.world + self.group.rank) * self.size
            yield Part(task, *take_padded(stream.eval_rows, first, self.size))

    def _score(self, model: Any) -> dict[str, tuple[float, float]]:
        assert self.scorer is not None
        # Each worker generates a different number of tokens; whole weights need no lock step.
        with self.forward.engine.whole_model():
            return self.scorer(model, self.group.rank, self.group.world)


class Tally:
    """Adds up the first pass of the objectives that have one, over all workers."""

    def __init__(self, streams: Sequence[Stream], tasks: Sequence[int], group: Group):
        self.streams, self.group = streams, group
        self.counts: dict[int, dict[str, float]] = {task: {} for task in tasks}

    def add(self, task: int, answer: Answer) -> None:
        if task in self.counts:
            counts = self.counts[task]
            for name, value in self._first(task).counts(answer).items():
                counts[name] = counts.get(name, 0.0) + value

    def baselines(self) -> dict[int, float]:
        """Task -> baseline; the same on every worker, also on one that had no rows of the task."""
        out = {}
        for task, counts in self.counts.items():
            first = self._first(task)
            names = first.names
            sums = self.group.sum([counts.get(name, 0.0) for name in names])
            out[task] = first.baseline(dict(zip(names, sums, strict=True)))
        return out

    def _first(self, task: int) -> FirstPass:
        first = self.streams[task].objective.first_pass
        assert first is not None
        return first
