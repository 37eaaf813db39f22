"""Checks that cost nothing, made before anything starts: files, base, search space, cluster size."""

from __future__ import annotations

from math import prod

from tunewright.config import FileSource, RunConfig
from tunewright.errors import ConfigError


def check_files(run: RunConfig) -> None:
    """Raises the first problem with what the run names: sources, base model, search space, tasks.

    Raises:
        DataError: a source is missing, empty or not what it claims.
        ModelError: the base folder is missing or cannot be used.
        ConfigError: the search space is not valid.
    """
    from tunewright.data.sources import source_files

    for source in (*run.data.sources, *(task.source for task in run.evaluate.tasks)):
        if isinstance(source, FileSource):
            source_files(source)
    if run.base.model != "tiny":
        from tunewright.models.base import check_base

        check_base(run.base)
    gates = [name for name, needed in run.evaluate.gates if needed is not None]
    if gates and not run.evaluate.tasks:
        raise ConfigError(
            f"evaluate.gates.{gates[0]} needs something to measure: name a task under evaluate.tasks"
        )
    if run.sweep is not None:
        check_sweep(run)


def check_sweep(run: RunConfig) -> None:
    """Every trial's configuration must be one that training takes."""
    from tunewright.tune.space import draw_trials, load_space, with_params

    assert run.sweep is not None
    space = load_space(run.sweep.space)
    points = prod(len(d.grid) for d in space.values() if d.grid is not None)
    if points > run.sweep.trials:
        raise ConfigError(
            f"{run.sweep.space}: the grids have {points} points, more than sweep.trials={run.sweep.trials}; "
            f"raise trials to {points}, or say `choice` instead of `grid`"
        )
    for params in draw_trials(space, run.sweep.trials, run.seed):
        with_params(run.train, params | {"train.workers": run.sweep.workers})
    if run.sweep.metric not in ("exact_match", "eval_loss"):
        raise ConfigError(f"sweep.metric={run.sweep.metric} is not known; valid: exact_match, eval_loss")
    if run.sweep.metric == "exact_match" and not run.evaluate.tasks:
        raise ConfigError(
            "sweep.metric=exact_match needs a task: name one under evaluate.tasks, "
            "or set sweep.metric: eval_loss with mode: min"
        )


def check_cluster_size(run: RunConfig) -> None:
    """Raises `ClusterError` when the connected cluster, idle, could not hold the run's workers."""
    from tunewright.train.launch import check_cluster

    resources = run.train.worker_resources
    check_cluster(run.train.workers, resources.cpus, resources.gpus)
    if run.sweep is not None:
        check_cluster(run.sweep.workers, resources.cpus, resources.gpus)
