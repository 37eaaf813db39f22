"""What an evaluation measures: the loss of the evaluation rows, and the task's figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.data.shards import PackedRows
from tunewright.models.packed import EVERY_LAYER, Windows
from tunewright.train.engine import Engine
from tunewright.train.group import Group
from tunewright.train.objectives import Batch, loss_sum, make_batch

if TYPE_CHECKING:
    import torch

Scorer = Callable[[Any, int, int], dict[str, tuple[float, float]]]
"""(model, rank, world) -> name -> (numerator, denominator) of this worker's share of a task."""


def batch_loss(engine: Engine, batch: Batch, smoothing: float = 0.0) -> torch.Tensor:
    """Sum of the loss over the batch's supervised tokens."""
    logits = engine.deepspeed(**batch.inputs).logits
    if not batch.supervised:  # a forward and backward pass all the same: workers move together
        return logits.sum() * 0.0  # type: ignore[no-any-return]
    return loss_sum(logits, batch, smoothing)


class Evaluator:
    """Measures a model on evaluation rows, each worker its share of them.

    Args:
        size: rows a forward pass.
        scorer: the task's figure on validation rows, by generation; None for the loss alone.
    """

    def __init__(
        self,
        engine: Engine,
        group: Group,
        rows: PackedRows,
        size: int,
        scorer: Scorer | None = None,
        windows: Windows = EVERY_LAYER,
    ):
        self.engine, self.group, self.rows, self.size = engine, group, rows, size
        self.scorer, self.windows = scorer, windows

    def figures(self) -> dict[str, float]:
        """`eval_loss`, weighted by tokens, and the scorer's figures; the same on every worker."""
        import torch

        model = self.engine.deepspeed.module
        model.eval()
        out = {}
        with torch.no_grad():
            if len(self.rows):
                total, count = self.group.sum(list(self._loss()))
                out["eval_loss"] = total / max(1.0, count)
            if self.scorer is not None:
                for name, parts in self._score(model).items():
                    numerator, denominator = self.group.sum(list(parts))
                    out[name] = numerator / max(1.0, denominator)
        model.train()
        return out

    def _loss(self) -> tuple[float, float]:
        """This worker's share; every worker makes the same number of passes, ZeRO-3 needs it."""
        rows, size = len(self.rows), self.size
        passes = math.ceil(rows / (size * self.group.world))
        total = count = 0.0
        for number in range(passes):
            first = (number * self.group.world + self.group.rank) * size
            index = [min(i, rows - 1) for i in range(first, first + size)]
            taken = self.rows.take(index)
            taken["loss_mask"][np.arange(first, first + size) >= rows] = 0
            batch = make_batch(taken, self.engine.device, self.engine.dtype, self.windows)
            total += float(batch_loss(self.engine, batch))
            count += batch.supervised
        return total, count

    def _score(self, model: Any) -> dict[str, tuple[float, float]]:
        assert self.scorer is not None
        # Each worker generates a different number of tokens; whole weights need no lock step.
        with self.engine.whole_model():
            return self.scorer(model, self.group.rank, self.group.world)
