"""Runs optimizer steps. Knows nothing of Ray, of how metrics are shown, or of what a task teaches.

The loss of a step is the sum over the units of its global batch (supervised tokens, pairs...) divided
by their number, whatever the micro batch, the accumulation and the number of workers. Of several
tasks, each one's loss weighs as its share of the batch's rows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tunewright.config import TrainConfig
from tunewright.errors import NonFiniteLoss
from tunewright.models.packed import windows_of
from tunewright.train import stopping
from tunewright.train.checkpoint import Checkpoint
from tunewright.train.engine import Engine
from tunewright.train.evaluating import Evaluator, Scorer, Tally
from tunewright.train.forward import Forward
from tunewright.train.group import Group
from tunewright.train.heartbeat import moved
from tunewright.train.noise import RowNoise, add_neftune, own_dropout
from tunewright.train.saving import Saver, weights_of
from tunewright.train.scaling import LossScale
from tunewright.train.schedule import Order, learning_rate, total_steps
from tunewright.train.streams import Micro, Stream, take
from tunewright.train.teaching import ask, ask_first
from tunewright.train.watch import Watch

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Metrics = dict[str, float]
Stopped = Literal["asked", "signalled"]


@dataclass(frozen=True)
class Job:
    """What the loop is to do.

    Attributes:
        identity: hash of everything that decides the weights; a checkpoint of another is refused.
        stop_step: the last step to take; the schedule still spans all of training.
        start: a checkpoint folder to begin from when the job has none of its own.
        stop_file: when it appears, training saves and stops.
    """

    config: TrainConfig
    seed: int
    identity: str
    checkpoints: Path
    stop_step: int | None = None
    start: Path | None = None
    stop_file: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """Where training began, this time, and where it ended.

    Attributes:
        ended: why it ended before the last step, if it did for good.
        stopped: it was interrupted, and goes on when it is started again.
        weights_step: the step that `weights` are of: the last one, or the best.
    """

    began_at: int
    tokens_per_s: float
    step: int
    total_steps: int
    tokens: int
    metrics: Metrics
    weights: dict[str, torch.Tensor]
    weights_step: int
    ended: str | None = None
    stopped: Stopped | None = None


class Loop:
    """One worker's training, in lock step with the others.

    Args:
        streams: the rows of the main task, and of those beside it.
        on_step: called on every worker after a logged step, an evaluation and at the end.
        scorer: the task's figure on validation rows, by generation; None for the loss alone.
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        streams: Sequence[Stream],
        on_step: Callable[[Metrics], None],
        scorer: Scorer | None = None,
    ):
        self.job, self.config, self.engine = job, job.config, engine
        self.streams, self.on_step = streams, on_step
        lengths = [len(stream.rows) for stream in streams]
        self.order = Order(self.config, job.seed, lengths, [stream.share for stream in streams[1:]])
        self.total = total_steps(self.config, self.order)
        self.stop = min(self.total, job.stop_step or self.total)
        self.group = Group(engine.device)
        self.saver = Saver(self.config, engine, self.group, job.checkpoints, job.identity, job.start)
        model = engine.deepspeed.module
        row_length = streams[0].rows.take([0])["input_ids"].shape[1]
        self.forward = Forward(engine, windows_of(model.config, row_length))
        size = self.config.micro_batch_size
        self.evaluator = Evaluator(self.forward, self.group, streams, size, scorer)
        self.noise = RowNoise(job.seed)
        own_dropout(model, self.noise)
        if self.config.neftune_alpha is not None:
            add_neftune(model, self.config.neftune_alpha, self.noise)
        self.watch = Watch(self.config)
        self.scale = LossScale(engine)
        self.speed = Speed()
        self.tokens = 0
        self.figures: Metrics = {}
        self.stopped: Stopped | None = None

    def run(self) -> Outcome:
        """Train from the newest checkpoint, or the start, to the stop step.

        Raises:
            NonFiniteLoss: before the weights of that step could be saved.
            ResumeMismatch: the checkpoint belongs to another run.
            TrainError: the loss ran away too often, or a figure to be judged by is not there.
        """
        step = began_at = self._begin()
        self.speed = Speed(float(self.figures.get("tokens_per_s", 0.0)))
        while step < self.stop and not self.watch.ended and not self.stopped:
            step = self._advance(step)
        weights_step = self._take_best(step)
        return Outcome(
            began_at=began_at,
            tokens_per_s=self.speed.tokens_per_s,
            step=step,
            total_steps=self.total,
            tokens=self.tokens,
            metrics=self.figures,
            weights=weights_of(self.engine.trainable_state()),
            weights_step=weights_step,
            ended=self.watch.ended if step < self.total else None,
            stopped=self.stopped,
        )

    def _advance(self, step: int) -> int:
        """Take a step, and do what is due after it; the step to go on from."""
        config = self.config
        before = time.monotonic()
        figures, tokens, save_asked = self._step(step)
        self.speed.took(tokens, time.monotonic() - before)  # evaluating and saving are not training speed
        step += 1
        if self.watch.saw_loss(figures["loss"]):
            return self._go_back(step)
        regular = bool(config.eval_steps and step % config.eval_steps == 0)
        evaluated = regular or step == self.stop
        if evaluated:
            moved("evaluating")
            figures |= self.evaluator.figures()
        # One that is due to the stop of a sweep's trial must not count: a run goes on behind it.
        improved = (regular or step == self.total) and self.watch.saw_evaluation(step, figures)
        logged = evaluated or step % config.logging_steps == 0
        if logged:
            self._log(step, figures)
        final = step == self.stop or self.watch.ended is not None
        due = improved or save_asked or self.stopped is not None or step % config.save_steps == 0
        # A state in the middle of a spike is none to come back to.
        if final or (due and self.watch.quiet):
            self._save(step)
        if logged:
            self.on_step(self.figures)
        return step

    def _step(self, step: int) -> tuple[Metrics, int, bool]:
        """One optimizer step; the same result for any split of the global batch.

        Returns its figures, its tokens, and whether `save_minutes` are over. May set `stopped`.
        """
        config, engine = self.config, self.engine
        moved("training", step + 1)
        micros, present = self._micro_batches(step)
        units, tokens, save_asked = self._agree(micros)
        weights = [n / config.global_batch_size / max(1.0, u) for n, u in zip(present, units, strict=True)]
        baselines = self._baselines(micros)
        rate = self.watch.rate_scale * learning_rate(config, step, self.total)
        engine.set_learning_rate(rate)
        # DeepSpeed divides by the accumulation steps and by the number of workers; undo both, so
        # that each unit weighs the same.
        scale = len(micros) * self.group.world
        sums = [0.0] * len(self.streams)
        for number, micro in enumerate(micros):
            loss = self._micro_loss(step, micro, weights, baselines, sums)
            if number == len(micros) - 1:
                # Before the backward pass that would step, with the gradients of the others too.
                sums = self.group.sum(sums)
                if not all(map(math.isfinite, sums)):
                    raise NonFiniteLoss(step + 1, "loss")
            engine.backward(loss * scale)
        left_out = self.scale.left_out(step + 1)
        if not left_out and not math.isfinite(engine.gradient_norm):
            raise NonFiniteLoss(step + 1, "gradient norm")
        self.tokens += tokens
        figures = {"loss": sum(total * weight for total, weight in zip(sums, weights, strict=True))}
        if len(self.streams) > 1:
            means = [
                (stream, total / u) for stream, total, u in zip(self.streams, sums, units, strict=True) if u
            ]
            figures |= {f"loss/{stream.name or 'main'}": mean for stream, mean in means}
        figures |= {"lr": rate, **({} if left_out else {"grad_norm": engine.gradient_norm})}
        figures |= self.scale.figures()
        if config.watchdog is not None:
            figures["rollbacks"] = self.watch.rollbacks
        return figures, tokens, save_asked

    def _micro_batches(self, step: int) -> tuple[list[Micro], list[int]]:
        """This worker's micro batches of the step, and how many rows each task has in all of them.

        Where the workers do not divide the batch, the last ones have a micro batch of empty rows.
        """
        tasks_G, indices_G = self.order.rows_of_step(step)
        present = np.bincount(tasks_G, minlength=len(self.streams))
        shape = (-1, self.group.world, self.config.micro_batch_size)
        left = -len(tasks_G) % (shape[1] * shape[2])
        every = np.pad(tasks_G, (0, left)), np.pad(indices_G, (0, left), constant_values=-1)
        mine = [each.reshape(shape)[:, self.group.rank] for each in every]
        return [take(self.streams, *pair) for pair in zip(*mine, strict=True)], [int(n) for n in present]

    def _micro_loss(
        self, step: int, micro: Micro, weights: list[float], baselines: dict[int, float], sums: list[float]
    ) -> torch.Tensor:
        """The weighted loss of a micro batch; each task's own is added to `sums`."""
        rows = micro.rows
        self.noise.begin(step, micro.keys, rows["segment_ids"])
        losses = []
        answers = ask(self.forward, self.streams, micro, baselines=baselines)
        for part, answer in zip(micro.parts, answers, strict=True):
            loss = self.streams[part.task].objective.loss(answer)
            sums[part.task] += float(loss.detach())
            losses.append(loss * weights[part.task])
        return sum(losses[1:], losses[0])

    def _baselines(self, micros: list[Micro]) -> dict[int, float]:
        """Task -> the number of its objective's first pass over the global batch."""
        tasks = [task for task, stream in enumerate(self.streams) if stream.objective.first_pass is not None]
        if not tasks:
            return {}
        tally = Tally(self.streams, tasks, self.group)
        for micro in micros:
            for part, answer in zip(
                micro.parts, ask_first(self.forward, self.streams, micro, "train"), strict=True
            ):
                tally.add(part.task, answer)
        return tally.baselines()

    def _agree(self, micros: list[Micro]) -> tuple[list[float], int, bool]:
        """Sum over all workers what each has and wants, in one exchange: units by task, tokens."""
        units = [0.0] * len(self.streams)
        tokens = 0.0
        for part in (part for micro in micros for part in micro.parts):
            units[part.task] += self.streams[part.task].objective.units(part.rows)
            tokens += int((part.rows["segment_ids"] > 0).sum())
        asked = self.group.leads and self.job.stop_file is not None and self.job.stop_file.exists()
        wants = [self.saver.minutes_due(), asked, stopping.signalled()]
        *units, tokens, minutes, file, signals = self.group.sum([*units, tokens, *map(float, wants)])
        if file or signals:
            self.stopped = "asked" if file else "signalled"
        return units, int(tokens), minutes > 0

    def _log(self, step: int, figures: Metrics) -> None:
        self.figures = {
            "step": step,
            "total_steps": self.stop,
            "epoch": self.order.epoch(step),
            **figures,
            "tokens": self.tokens,
            "tokens_per_s": self.speed.since_log(),
            "eta_s": (self.stop - step) * self.speed.seconds_per_step,
        }

    def _save(self, step: int) -> None:
        moved("saving")
        state = {"tokens": self.tokens, "metrics": self.figures, "watch": self.watch.state()}
        state["scale"] = self.scale.state()
        self.saver.save(step, state, self.watch.best_step)

    def _begin(self) -> int:
        """The step to go on from, with everything as it was then."""
        checkpoint = self.saver.find()
        # Of fp16's first steps none may be taken, and there must be something to save all the same.
        if checkpoint is None and self.config.watchdog is None and self.config.precision != "fp16":
            return 0
        micro = take(self.streams, np.array([0]), np.array([0]))
        weights = [0.0] * len(self.streams)
        self.engine.materialise_optimizer(lambda: self._micro_loss(0, micro, weights, {}, weights[:]))
        if checkpoint is None:  # something to come back to, should the first losses run away
            self.engine.restore(self.engine.trainable_state(), 0)
            self._save(0)
            return 0
        return self._load(checkpoint)

    def _load(self, checkpoint: Checkpoint) -> int:
        self.engine.restore(checkpoint.tensors(), checkpoint.step)
        self.scale.restore(checkpoint.state["scale"], checkpoint.step)
        self.tokens = int(checkpoint.state["tokens"])
        self.figures = dict(checkpoint.state["metrics"])
        self.watch = Watch.of(self.config, checkpoint.state["watch"])
        if self.watch.best_step and not self.saver.has(self.watch.best_step):
            if self.watch.best_step == checkpoint.step:
                self.saver.adopt(checkpoint)
            else:  # left behind by the sweep that this training starts from
                self.watch.best, self.watch.best_step = None, 0
        return checkpoint.step

    def _go_back(self, step: int) -> int:
        """To the newest checkpoint, which is from before the spike, with half the learning rate."""
        checkpoint = self.saver.find()
        assert checkpoint is not None, "there has been one since the first step"
        rollbacks = self.watch.rollbacks
        back = self._load(checkpoint)
        self.watch.went_back(rollbacks, step)
        if self.group.leads:
            log.warning("loss spiked, went back", extra={"from_step": step, "to_step": back})
        self._save(back)  # a run that is killed now remembers it
        return back

    def _take_best(self, step: int) -> int:
        """The step whose weights are training's result; they are in the engine afterwards."""
        best, over = self.config.best, step == self.total or self.watch.ended is not None
        if best is None or not best.publish or not over or self.watch.best_step in (0, step):
            return step
        checkpoint = self.saver.best(self.watch.best_step)
        self.engine.restore(checkpoint.tensors(), checkpoint.step)
        return checkpoint.step


class Speed:
    """Tokens and seconds of the steps taken in this process."""

    def __init__(self, tokens_per_s: float = 0.0):
        self.tokens_per_s = tokens_per_s
        """Over all steps up to the last one logged; what the checkpoint knew before there is one."""
        self.steps, self.tokens, self.seconds = 0, 0, 0.0
        self._begun = time.monotonic()
        self._logged_tokens, self._logged_seconds = 0, 0.0

    def took(self, tokens: int, seconds: float) -> None:
        self.steps, self.tokens, self.seconds = self.steps + 1, self.tokens + tokens, self.seconds + seconds

    @property
    def seconds_per_step(self) -> float:
        """Evaluations and saves included."""
        return (time.monotonic() - self._begun) / max(1, self.steps)

    def since_log(self) -> float:
        """Tokens per second since the last call."""
        tokens, seconds = self.tokens - self._logged_tokens, self.seconds - self._logged_seconds
        self._logged_tokens, self._logged_seconds = self.tokens, self.seconds
        self.tokens_per_s = self.tokens / self.seconds
        return tokens / seconds
