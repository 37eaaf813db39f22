"""The train stage: data + base (+ a sweep's best checkpoint, + an earlier adapter) -> a trained model."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunewright.artifacts import Artifact, Plan, Store, code_hash, digest, read_json
from tunewright.config import ObjectiveConfig, TrainConfig
from tunewright.errors import ModelError, TrainError
from tunewright.models.adapter_config import name_base
from tunewright.models.base import count_parameters, model_folder
from tunewright.train.launch import Progress, Tell, following, run_workers
from tunewright.train.objectives.choose import ROWS_OF, rows_for
from tunewright.train.worker import TaskSpec, WorkerSpec

STAGE_CODE = ("train", "models", "data/shards", "data/tables", "data/encryption")
PLACEMENT_ONLY = {
    "workers",
    "worker_resources",
    "max_failures",
    "keep_checkpoints",
    "save_steps",
    "save_minutes",
    "logging_steps",
    "tensorboard",
    "mlflow",
    "hang_minutes",
}
"""Settings that change neither the weights nor what is reported of them."""


@dataclass(frozen=True)
class TaskData:
    """A side task's name, its data set, what that teaches, and its share of the rows."""

    name: str
    config: ObjectiveConfig
    data: Artifact
    share: float


@dataclass(frozen=True)
class Training:
    """What a training is made from.

    Attributes:
        beside: the tasks beside the main one.
        start: a sweep whose best trial's checkpoint training goes on from.
        previous: an earlier training over the same base, whose adapter training goes on with.
        stacked: whether that adapter stays as it is and a new one is trained on top.
    Raises:
        TrainError: a data set is not for its objective.
    """

    config: TrainConfig
    base: Artifact
    data: Artifact
    seed: int
    beside: tuple[TaskData, ...] = ()
    start: Artifact | None = None
    previous: Artifact | None = None
    stacked: bool = False

    def __post_init__(self) -> None:
        _check_objective("train.objective", self.config, self.data)
        for task in self.beside:
            _check_objective(f"objective of the task {task.name}", task.config, task.data)

    @cached_property
    def plan(self) -> Plan:
        """The identity of a training: its parents, hyperparameters, seed and code, not where it runs."""
        parents = self._parents()
        if self.start is not None:
            parents["start"] = self.start.ref
        return Plan("train", parents, self.deciding(PLACEMENT_ONLY), code_hash(*STAGE_CODE))

    @cached_property
    def identity(self) -> str:
        """Hash of what decides the weights at a step; the number of workers is not part of it."""
        config = self.deciding(PLACEMENT_ONLY | {"eval_steps", "zero", "micro_batch_size"})
        return digest({"config": config, **self._parents()})

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """As the workers take them."""
        main = TaskSpec("", self.config, str(self.data.path))
        return (main, *(TaskSpec(t.name, t.config, str(t.data.path), t.share) for t in self.beside))

    def _parents(self) -> dict[str, str]:
        parents = {"base": self.base.ref, "data": self.data.ref}
        parents |= {f"data:{task.name}": task.data.ref for task in self.beside}
        if self.previous is not None:
            parents["previous"] = self.previous.ref
        return parents

    def deciding(self, without: set[str]) -> dict[str, Any]:
        """What decides the training besides its parents, but these settings."""
        deciding = {**self.config.model_dump(mode="json", exclude=without), "seed": self.seed}
        if self.beside:
            each = ObjectiveConfig.model_fields.keys()
            deciding["beside"] = [
                {"name": t.name, "share": t.share, **t.config.model_dump(mode="json", include=set(each))}
                for t in self.beside
            ]
        return deciding | ({"stacked": True} if self.stacked else {})


def _check_objective(field: str, config: ObjectiveConfig, data: Artifact) -> None:
    task = data.facts["task"]
    if task == rows_for(config.objective):
        return
    fitting = [name for name, rows in ROWS_OF.items() if rows == task]
    raise TrainError(f"{field} is {config.objective}, but the rows are {task}s; say {' or '.join(fitting)}")


def train(
    store: Store, training: Training, progress: Progress | None = None, tell: Tell | None = None
) -> Artifact:
    """Train as planned, from the newest checkpoint of an earlier, killed try if there is one.

    Args:
        progress: called with the figures of each logged step.
        tell: hears of workers that were ended and of checkpoints that are damaged; else the log does.
    Raises:
        TrainError: workers were lost more often than `max_failures`, or the loop refused.
        ClusterError: the cluster is smaller than the run.
    """
    started = time.monotonic()
    config, plan = training.config, training.plan
    work = store.work_dir(plan)
    spec = WorkerSpec(
        config=config,
        seed=training.seed,
        identity=training.identity,
        base=str(model_folder(training.base)),
        tasks=training.tasks,
        work=str(work),
        start=str(training.start.path / "winner") if training.start else None,
        previous=str(training.previous.path / "adapter") if training.previous else None,
        stacked=training.stacked,
    )
    with following(work / "metrics.jsonl", progress):
        run_workers(spec, tell=tell)
    outcome = read_json(work / "outcome.json")
    out = work / "out"
    shutil.copytree(training.data.path / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    shutil.copy(work / "metrics.jsonl", out / "metrics.jsonl")
    if (out / "adapter").is_dir():
        name_base(out / "adapter", training.base)
    facts = {"method": config.method.type, "parameters": _trained_parameters(out), **outcome}
    facts |= {"objective": config.objective, "zero_stage": config.zero.stage}
    artifact = store.publish(plan, out, facts, time.monotonic() - started)
    shutil.rmtree(work)
    return artifact


def _trained_parameters(out: Path) -> int:
    count = sum(count_parameters(out / kind) for kind in ("adapter", "model"))
    if not count:
        raise ModelError(f"{out}: nothing was trained")
    return count
