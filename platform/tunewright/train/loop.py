"""Runs optimizer steps. Knows nothing of Ray, of how metrics are shown, or of what a task is.

The loss of a step is the sum over the supervised tokens of its global batch divided by their
number, whatever the micro batch, the accumulation and the number of workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.config import TrainConfig
from tunewright.data.shards import PackedRows
from tunewright.errors import NonFiniteLoss, ResumeMismatch
from tunewright.train.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint, save_checkpoint
from tunewright.train.engine import Engine
from tunewright.train.objectives import Batch, loss_sum, make_batch, supervised_mask
from tunewright.train.schedule import learning_rate, rows_of_step, total_steps

if TYPE_CHECKING:
    import torch

Metrics = dict[str, float]
Scorer = Callable[[Any, int, int], dict[str, tuple[float, float]]]
"""(model, rank, world) -> name -> (numerator, denominator) of this worker's share of a task."""


@dataclass(frozen=True)
class Job:
    """What the loop is to do.

    Attributes:
        identity: hash of everything that decides the weights; a checkpoint of another is refused.
        stop_step: the last step to take; the schedule still spans all of training.
        start: a checkpoint folder to begin from when the job has none of its own.
    """

    config: TrainConfig
    seed: int
    identity: str
    checkpoints: Path
    stop_step: int | None = None
    start: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """Where training began, this time, and where it ended."""

    began_at: int
    tokens_per_s: float
    step: int
    total_steps: int
    tokens: int
    metrics: Metrics
    weights: dict[str, torch.Tensor]


class Loop:
    """One worker's training, in lock step with the others.

    Args:
        on_step: called on every worker after a logged step, an evaluation and at the end.
        scorer: the task's figure on validation rows, by generation; None for the loss alone.
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        train_rows: PackedRows,
        eval_rows: PackedRows,
        on_step: Callable[[Metrics], None],
        scorer: Scorer | None = None,
    ):
        import torch.distributed as dist

        self.job, self.config, self.engine = job, job.config, engine
        self.train_rows, self.eval_rows = train_rows, eval_rows
        self.on_step, self.scorer = on_step, scorer
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.total = total_steps(self.config, len(train_rows))
        self.stop = min(self.total, job.stop_step or self.total)
        self.tokens = 0
        self.figures: Metrics = {}
        self.speed = 0.0

    def run(self) -> Outcome:
        """Train from the newest checkpoint, or the start, to the stop step.

        Raises:
            NonFiniteLoss: before the weights of that step could be saved.
            ResumeMismatch: the checkpoint belongs to another run.
        """
        step = began_at = self._resume()
        if step < self.stop:
            step = self._train(step)
        state = self.engine.trainable_state()
        weights = {name[2:]: value for name, value in state.items() if name.startswith("w/")}
        return Outcome(began_at, self.speed, step, self.total, self.tokens, self.figures, weights)

    def _train(self, step: int) -> int:
        config, started, begun_at = self.config, time.monotonic(), step
        stepping_s, logged_s, logged_tokens = 0.0, 0.0, self.tokens
        begun_tokens = self.tokens
        while step < self.stop:
            before = time.monotonic()
            figures = self._step(step)
            stepping_s += time.monotonic() - before  # evaluation and saving are not training speed
            step += 1
            last = step == self.stop
            due_eval = last or bool(config.eval_steps and step % config.eval_steps == 0)
            due_log = due_eval or step % config.logging_steps == 0
            if due_eval:
                figures |= self._evaluate()
            if due_log:
                self.figures = {
                    "step": step,
                    "total_steps": self.stop,
                    "epoch": step * config.global_batch_size / max(1, len(self.train_rows)),
                    **figures,
                    "tokens": self.tokens,
                    "tokens_per_s": (self.tokens - logged_tokens) / (stepping_s - logged_s),
                    "eta_s": (self.stop - step) * (time.monotonic() - started) / (step - begun_at),
                }
                logged_s, logged_tokens = stepping_s, self.tokens
                self.speed = (self.tokens - begun_tokens) / stepping_s
            if last or step % config.save_steps == 0:
                self._save(step)
            if due_log:
                self.on_step(self.figures)
        return step

    def _step(self, step: int) -> Metrics:
        """One optimizer step; the same result for any split of the global batch."""
        import torch

        config, engine = self.config, self.engine
        torch.manual_seed((self.job.seed * 1_000_003 + step) * 4096 + self.rank)
        ids = rows_of_step(config, self.job.seed, step, len(self.train_rows))
        mine = ids.reshape(-1, self.world, config.micro_batch_size)[:, self.rank]
        micro = [self.train_rows.take(rows) for rows in mine]
        local = [float(sum(supervised_mask(rows).sum() for rows in micro))]
        local.append(float(sum((rows["segment_ids"] > 0).sum() for rows in micro)))
        supervised, tokens = self._sum(local)
        rate = learning_rate(config, step, self.total)
        engine.set_learning_rate(rate)
        # DeepSpeed divides by the accumulation steps and by the number of workers; undo both, so
        # that each token weighs the same.
        scale = len(micro) * self.world / max(1.0, supervised)
        summed = 0.0
        for number, rows in enumerate(micro):
            batch = make_batch(rows, engine.device, engine.dtype)
            loss = self._loss(batch)
            summed += float(loss.detach())
            if number == len(micro) - 1:
                (summed,) = self._sum([summed])
                if not math.isfinite(summed):
                    raise NonFiniteLoss(step + 1, "loss")
            engine.deepspeed.backward(loss * scale)
            engine.deepspeed.step()
        norm = float(engine.deepspeed.get_global_grad_norm() or 0.0)
        if not math.isfinite(norm):
            raise NonFiniteLoss(step + 1, "gradient norm")
        self.tokens += int(tokens)
        return {"loss": summed / max(1.0, supervised), "lr": rate, "grad_norm": norm}

    def _loss(self, batch: Batch) -> torch.Tensor:
        logits = self.engine.deepspeed(**batch.inputs).logits
        if not batch.supervised:  # a forward and backward pass all the same: workers move together
            return logits.sum() * 0.0  # type: ignore[no-any-return]
        loss: torch.Tensor = loss_sum(logits, batch)
        return loss

    def _evaluate(self) -> Metrics:
        """Loss over the evaluation rows, token-weighted, and the task's figure."""
        import torch

        engine, config = self.engine, self.config
        model = engine.deepspeed.module
        model.eval()
        out: Metrics = {}
        with torch.no_grad():
            if len(self.eval_rows):
                total, count = self._eval_loss(config.micro_batch_size)
                total, count = self._sum([total, count])
                out["eval_loss"] = total / max(1.0, count)
            if self.scorer is not None:
                parts = self._score(model)
                for name, (numerator, denominator) in parts.items():
                    numerator, denominator = self._sum([numerator, denominator])
                    out[name] = numerator / max(1.0, denominator)
        model.train()
        return out

    def _eval_loss(self, size: int) -> tuple[float, float]:
        """This worker's share; every worker makes the same number of passes, ZeRO-3 needs it."""
        rows = len(self.eval_rows)
        passes = math.ceil(rows / (size * self.world))
        total = count = 0.0
        for number in range(passes):
            first = (number * self.world + self.rank) * size
            index = [min(i, rows - 1) for i in range(first, first + size)]
            taken = self.eval_rows.take(index)
            taken["loss_mask"][np.arange(first, first + size) >= rows] = 0
            batch = make_batch(taken, self.engine.device, self.engine.dtype)
            total += float(self._loss(batch))
            count += batch.supervised
        return total, count

    def _score(self, model: Any) -> dict[str, tuple[float, float]]:
        assert self.scorer is not None
        if self.engine.stage < 3:
            return self.scorer(model, self.rank, self.world)
        import deepspeed

        # Each worker generates a different number of tokens; gathered weights need no lock step.
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            return self.scorer(model, self.rank, self.world)

    def _resume(self) -> int:
        """The step to go on from: own newest checkpoint, else the start's, else 0."""
        checkpoint = self._find_checkpoint()
        if checkpoint is None:
            return 0
        if checkpoint.state["identity"] != self.job.identity:
            raise ResumeMismatch(
                f"{checkpoint.path} was made with other data, another base or other hyperparameters; "
                f"training does not go on from it"
            )
        batch = make_batch(self.train_rows.take([0]), self.engine.device, self.engine.dtype)
        self.engine.materialise_optimizer(lambda: self._loss(batch) * 0.0)
        self.engine.restore(checkpoint.tensors(), checkpoint.step)
        self.tokens = int(checkpoint.state["tokens"])
        self.figures = dict(checkpoint.state["metrics"])
        self.speed = float(self.figures.get("tokens_per_s", 0.0))
        return checkpoint.step

    def _find_checkpoint(self) -> Checkpoint | None:
        """Worker 0 looks, and moves damaged ones aside; the others open what it found."""
        import torch.distributed as dist

        found: list[str | None] = [None]
        if self.rank == 0:
            own = latest_checkpoint(self.job.checkpoints)
            start = self.job.start
            found = [str(own.path) if own else str(start) if start else None]
        dist.broadcast_object_list(found)
        return open_checkpoint(Path(found[0])) if found[0] else None

    def _save(self, step: int) -> None:
        import torch.distributed as dist

        tensors = self.engine.trainable_state()
        if self.rank == 0:
            state = {
                "step": step,
                "identity": self.job.identity,
                "tokens": self.tokens,
                "world": self.world,
                "metrics": self.figures,
            }
            save_checkpoint(self.job.checkpoints, tensors, state, self.config.keep_checkpoints)
        dist.barrier()  # nobody reports a step whose checkpoint may not exist yet

    def _sum(self, values: list[float]) -> list[float]:
        """Sums over all workers, in fp64."""
        import torch
        import torch.distributed as dist

        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor]
